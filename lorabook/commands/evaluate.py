"""`lorabook evaluate`: loss and accuracy on a task's test rows, with or without an adapter."""

from ..backend import get_xp

HELP = "loss and accuracy of a model on a task's held-out rows, with or without an adapter"
EXAMPLE = "lorabook evaluate minilm movie-reviews --adapter runs/reviews"


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument(
        "model", metavar="MODEL", help="mlp-digits, minilm, or a Hugging Face folder with a BERT encoder"
    )
    parser.add_argument(
        "data", metavar="DATA", help="digits-rotated and the like; movie-reviews; a .csv, .tsv or .jsonl file"
    )
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter folder")
    parser.add_argument(
        "--max-length", type=int, default=128, metavar="T", help="cut texts after T tokens (default: %(default)s)"
    )


def run(args):
    """Evaluate; nothing is written."""
    from ..adapter_io import check_labels, load_adapter
    from ..adapters import merge
    from ..jobs import evaluate, make_job

    xp = get_xp(args.backend)
    job = make_job(args.model, args.data, seed=args.seed, max_length=args.max_length)
    if args.adapter:
        check_labels(args.adapter, job.labels)
        load_adapter(args.adapter, job.model)
        merge(job.model)
    loss, accuracy = evaluate(job.model.to(xp), job.test)
    rows = sum(len(y) for _, y in job.test)
    text = f"{rows:,} held-out rows: loss {loss:.4f} nats, {100 * accuracy:.1f} % right"
    return {"rows": rows, "loss": loss, "accuracy": accuracy}, text
