"""`lorabook evaluate`: loss and accuracy on a task's test rows, with or without an adapter."""

from ..backend import get_xp
from .arguments import add_model_and_data, add_workers

HELP = "loss and accuracy of a model on a task's held-out rows, with or without an adapter"
EXAMPLE = "lorabook evaluate minilm movie-reviews --adapter runs/reviews"
SHARED = ("seed", "backend")


def add_arguments(parser):
    """Options of the command."""
    add_model_and_data(parser)
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter folder")
    add_workers(parser)


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
    loss, accuracy = evaluate(job.model.to(xp), job.test, args.workers, progress=True)
    rows = sum(len(y) for _, y in job.test)
    text = f"{rows:,} held-out rows: loss {loss:.4f} nats, {100 * accuracy:.1f} % right"
    return {"rows": rows, "loss": loss, "accuracy": accuracy}, text
