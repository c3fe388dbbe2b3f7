"""`lorabook train`: fine-tune a model with LoRA; the output folder is a PEFT adapter folder."""

import contextlib
import functools
from pathlib import Path

from ..adapters import LoRAConfig, inject, memory_table
from ..backend import get_xp
from ..errors import InputError
from ..io import fingerprint
from ..locks import output_folder
from ..optim import SCHEDULES, AdamW
from ..tables import format_table, write_csv
from .arguments import add_model_and_data, add_workers, integer, number

HELP = "fine-tune a model with LoRA; the output folder opens in PEFT"
EXAMPLE = "lorabook train minilm movie-reviews --r 8 --target-modules query value --epochs 2 --out runs/mine"
SHARED = ("seed", "backend")


def add_arguments(parser):
    """Options of the command."""
    add_model_and_data(parser)
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="adapter folder to write; must not hold another run"
    )
    parser.add_argument("--r", type=integer(1, 2**16), default=8, help="rank (default: %(default)s)")
    parser.add_argument(
        "--lora-alpha", type=number(), default=16, help="scaling is lora_alpha / r (default: %(default)s)"
    )
    parser.add_argument(
        "--lora-dropout", type=number(), default=0.0, metavar="P", help="dropout on the LoRA branch's input"
    )
    parser.add_argument("--use-rslora", action="store_true", help="scaling is lora_alpha / sqrt(r)")
    parser.add_argument(
        "--target-modules", nargs="+", metavar="NAME", help="layers (default: query value; for mlp-digits all)"
    )
    parser.add_argument("--lr", type=number(), help="learning rate of AdamW (default: 0.001; for mlp-digits 0.01)")
    parser.add_argument(
        "--lr-schedule",
        choices=list(SCHEDULES),
        help="how the learning rate ends (default: linear; for mlp-digits cosine)",
    )
    parser.add_argument(
        "--warmup", type=integer(0), default=0, metavar="STEPS", help="steps of linear warm-up (default: 0)"
    )
    parser.add_argument(
        "--max-grad-norm", type=number(above=0), metavar="X", help="clip the gradient's norm (default: off)"
    )
    parser.add_argument(
        "--epochs", type=integer(1), help="passes over the data, a whole number (default: 2; for mlp-digits 60)"
    )
    parser.add_argument("--batch-size", type=integer(1), help="rows a step (default: 32; for mlp-digits 64)")
    parser.add_argument(
        "--checkpoint-every",
        type=integer(1),
        default=100,
        metavar="N",
        help="steps between checkpoints (default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --out where its checkpoint stands")
    add_workers(parser, ", with --distributed of each rank")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="share the work with the other ranks of an MPI job (extra `mpi`): mpiexec -n 4 python -m mpi4py -m "
        "lorabook train ... --distributed",
    )


def run(args):
    """Train, evaluate, save the adapter and the history."""
    if args.distributed:
        from ..ranks import Ranks as Workers
    else:
        from ..parallel import Workers
    with Workers(args.workers) as workers, contextlib.ExitStack() as held:
        return _run(args, workers, held)


def _run(args, workers, held):
    """held: what ends with the run: the lock on its folder."""
    from ..adapter_io import save_adapter
    from ..jobs import DEFAULTS, evaluate, kind_of, make_job
    from ..train import train

    xp = get_xp(args.backend)
    if args.distributed and xp.__name__ == "cupy":
        raise InputError("--distributed shares the work out to processors, not to GPUs; pass --backend numpy")
    for name, value in DEFAULTS[kind_of(args.model)].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    options = {name: getattr(args, name) for name in ("r", "lora_alpha", "use_rslora", "lora_dropout")}
    targets = args.target_modules
    LoRAConfig(**options)  # complains before anything is fetched
    optimizer = AdamW(args.lr)
    job = make_job(args.model, args.data, args.batch_size, args.seed, args.max_length)
    config = LoRAConfig(
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        modules_to_save=job.modules_to_save,
        **options,
    )
    model = job.model.to(xp)
    inject(model, config)
    out = held.enter_context(_folder(args)) if workers.first else Path(args.out)
    args.after_interrupt = functools.partial(_after_interrupt, out, args.checkpoint_every)

    workers.agree(lambda: {"test_rows": fingerprint({f"{i}": a for i, a in enumerate(sum(job.test, ()))})})
    before = evaluate(model, job.test, workers, progress=True)
    history = train(
        model,
        job.batches,
        optimizer,
        epochs=args.epochs,
        lr_schedule=args.lr_schedule,
        warmup=args.warmup,
        max_grad_norm=args.max_grad_norm,
        seed=args.seed,
        checkpoint=out / "checkpoint.safetensors",
        checkpoint_every=args.checkpoint_every,
        resume=args.resume,
        description={"model": args.model, "adapter": config.as_dict()},
        progress=True,
        workers=workers,
    )
    after = evaluate(model, job.test, workers, progress=True)
    if workers.first:
        save_adapter(out, model, config, args.model, job.task_type, job.labels, job.max_length)
        write_csv(out / "history.csv", history, args.command_line)
    memory = memory_table(model)
    result = {
        "test_loss": {"before": before[0], "after": after[0]},
        "test_accuracy": {"before": before[1], "after": after[1]},
        "steps": len(history),
        "memory": memory,
        "adapter_sha256": fingerprint(model.trainable_params()),
        "out": str(out),
    }
    text = (
        f"test loss      {before[0]:.4f} -> {after[0]:.4f} nats\n"
        f"test accuracy  {100 * before[1]:.1f} -> {100 * after[1]:.1f} %\n\n"
        f"Memory by arithmetic, without activations:\n{_memory(memory)}\n\n"
        f"wrote {out}: adapter_model.safetensors, adapter_config.json,\n"
        "      lorabook.json, history.csv, checkpoint.safetensors"
    )
    if args.distributed:
        result["traffic"] = workers.traffic(model)
        text += f"\n\n{_traffic(result['traffic'])}"
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
