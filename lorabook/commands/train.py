"""`lorabook train`: fine-tune a model with LoRA or a variant; the output folder is a PEFT adapter folder."""

import argparse
import contextlib
import functools
import sys
from pathlib import Path

from ..adapters import METHODS, adapters, memory_table
from ..backend import get_xp
from ..errors import InputError
from ..files import fingerprint, format_table, output_folder, write_csv
from ..training import KEEP, OPTIMIZERS, SCHEDULES
from .arguments import (
    CAUSAL_LM,
    ENCODER,
    add_as_chat,
    add_base_dtype,
    add_encoding,
    add_workers,
    integer,
    number,
)

HELP = "fine-tune a model with LoRA; the output folder opens in PEFT"
EXAMPLE = """lorabook train minilm reviews.csv --out runs/mine
  lorabook train smollm2 chats.jsonl --out runs/chats --base-dtype q4"""
SHARED = ("seed", "backend")
PREPARED = (
    *("adapter", "method", "option", "target_modules", "epochs", "batch_size", "seed", "max_length", "encoding"),
    *("eval_data", "eval_every", "keep", "accumulate", "r", "lora_alpha", "use_rslora", "lora_dropout"),
)


def add_arguments(parser):
    """Options of the command."""

    def add(name, help, **options):
        parser.add_argument(name, help=help, **options)

    add("model", f"mlp-digits, {ENCODER}; or {CAUSAL_LM}", metavar="MODEL")
    data = (
        "digits-rotated etc.; movie-reviews; for a language model reviews, tweets, products, editorials, shakespeare, "
    )
    data += (
        "messages-fr etc.; a .csv, .tsv or .jsonl file with text and label, for a language model with text, or prompt "
    )
    data += (
        "and completion, or messages: one in four different texts, or prompts, of each class is held out to test on, "
    )
    add("data", f"{data}whatever rows you append later", metavar="DATA")
    add("--max-length", "tokens a text (default: 128; for a language model 512)", type=integer(2), metavar="T")
    add_base_dtype(parser)
    less = "train a language model in less memory, for one more forward pass a step: its blocks keep their inputs alone"
    add("--recompute", less, action="store_true", default=None)
    packed = "several texts in a row of --max-length tokens, none of which sees another (default for a language model)"
    add("--pack", packed, action=argparse.BooleanOptionalAction)
    add_as_chat(parser)
    add("--out", "adapter folder to write; must not hold another run", required=True, metavar="DIR")
    add("--adapter", "train this adapter further; its options, labels and base model stay", metavar="DIR")
    add("--method", f"lora (default), or {', '.join(name for name in METHODS if name != 'lora')}", metavar="NAME")
    more = "an option of the method under PEFT's name, such as decompose_both=true; may be given several times"
    add("--option", more, action="append", metavar="NAME=VALUE")
    add("--r", "rank (default: 8)", type=integer(1, 2**16))
    add("--lora-alpha", "scaling is lora_alpha / r (default: 16)", type=number(above=0))
    add("--lora-dropout", "dropout on the input of the update (default: 0)", type=number(), metavar="P")
    add("--use-rslora", "scaling is lora_alpha / sqrt(r)", action="store_true", default=None)
    add(
        "--target-modules",
        "layers (default: of queries and values; for mlp-digits all); all-linear: all but the head",
        nargs="+",
        metavar="NAME",
    )
    add(
        "--lr",
        "learning rate of the optimizer (default: 0.001; for mlp-digits 0.01, for a language model 0.0002)",
        type=number(),
    )
    rule = f"what makes steps of gradients: {', '.join(OPTIMIZERS)}; all but the first two are made for LoRA's factors "
    rule += "(default: adamw)"
    add("--optimizer", rule, choices=list(OPTIMIZERS), default="adamw", metavar="NAME")
    schedules = {"choices": list(SCHEDULES)}
    add("--weight-decay", "decay of the weights (default: 0)", type=number(), default=0.0, metavar="X")
    add("--lr-schedule", "how the learning rate ends (default: linear; for mlp-digits cosine)", **schedules)
    add("--warmup", "steps of linear warm-up (default: 0)", type=integer(0), default=0, metavar="STEPS")
    add("--max-grad-norm", "clip the gradient's norm (default: off)", type=number(above=0), metavar="X")
    passes = "passes over the data (default: 2, on a small file as many as make 200 steps; for mlp-digits 60, for a "
    passes += "language model 1, or as many as make 50 steps)"
    add("--epochs", passes, type=integer(1))
    rows = "rows a step (default: 32, on a small file fewer; for mlp-digits 64, for a language model 8)"
    add("--batch-size", rows, type=integer(1))
    parts = "batches whose gradients make one step: as a batch so many times as large, in less memory (default: 1)"
    add("--accumulate", parts, type=integer(1), default=1, metavar="N")
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
        from ..parallel import Ranks as Workers
    else:
        from ..parallel import Workers
    with Workers(args.workers) as workers, contextlib.ExitStack() as held:
        return _run(args, workers, held)


def _run(args, workers, held):
    """held: what ends with the run: the lock on its folder."""
    from ..adapters import save_adapter
    from ..tasks import described, evaluate, hardly_learned, prepare, task_of
    from ..training import train

    xp, task = get_xp(args.backend), task_of(args.model)
    if args.distributed and xp.__name__ == "cupy":
        raise InputError("--distributed shares the work out to processors, not to GPUs; pass --backend numpy")
    optimizer = OPTIMIZERS[args.optimizer](task.lr if args.lr is None else args.lr, weight_decay=args.weight_decay)
    folder = _folder(args) if workers.first else contextlib.nullcontext(Path(args.out))
    # What is wrong with a path that is there is said before any work; one that is not is made when all else is right.
    out = held.enter_context(folder) if Path(args.out).exists() else None
    own = {name: getattr(args, name) for name in ("base_dtype", "recompute", "pack", "as_chat")}
    given = {name: getattr(args, name) for name in PREPARED}
    plan = prepare(args.model, args.data, xp, task_options=own, **given)
    job, model = plan.job, plan.job.model
    if hasattr(optimizer, "scaling"):
        optimizer.scaling = _scaling(model, args.optimizer)
    optimizer.check_rates(model.trainable_params())
    out = out or held.enter_context(folder)
    args.after_interrupt = functools.partial(_after_interrupt, out, args.checkpoint_every)
    workers.agree(lambda: {f"test_rows.{name}": value for name, value in described(job.test).items()})
    history = train(
        model,
        job.batches,
        optimizer,
        epochs=plan.epochs,
        lr_schedule=args.lr_schedule or task.lr_schedule,
        warmup=args.warmup,
        max_grad_norm=args.max_grad_norm,
        seed=args.seed,
        checkpoint=out / "checkpoint.safetensors",
        checkpoint_every=args.checkpoint_every,
        resume=args.resume,
        description=plan.description,
        progress=True,
        workers=workers,
        accumulate=args.accumulate,
        hooks=plan.hooks,
    )
    if workers.first:  # before anything else that could fail
        facts = job.task_type, job.labels, job.max_length, job.training_texts
        save_adapter(out, model, args.model, *facts)
        write_csv(out / "history.csv", history, args.command_line, plan.notes)
    after = evaluate(model, job.test, workers, progress=True)
    short = hardly_learned(history, job.batches, plan.before.result, after)
    if short:
        print(f"note: {short}", file=sys.stderr)
    result, text = _report(plan, len(history), after, out, optimizer)
    result["notes"] = [*plan.notes, *filter(None, [short])]
    if args.distributed:
        result["traffic"] = workers.traffic(model)
        text += f"\n\n{_traffic(result['traffic'])}"
    return result, text


def _scaling(model, optimizer):
    """s of the adapters of the model: that of W + s B A, the same in all, as this optimizer needs it."""
    found = {
        layer.scaling for layer in adapters(model).values() if "lora_A" in layer.params and hasattr(layer, "scaling")
    }
    if len(found) != 1:
        came = " and ".join(f"{s:g}" for s in sorted(found)) or "none"
        raise InputError(f"--optimizer {optimizer} needs layers W + s B A, all of one scaling s; they have {came}")
    return found.pop()


def _report(plan, steps, after, out, optimizer):
    """(the result for --json, the text) of a run; after: what `evaluate` gives on the test rows at its end."""
    state = sum(array.nbytes for arrays in optimizer.state.values() for array in arrays.values())
    model, before = plan.job.model, plan.before.result
    measured = [(metric, getattr(before, metric), getattr(after, metric)) for metric in model.metrics]
    result = {
        **{f"test_{metric}": {"before": first, "after": last} for metric, first, last in measured},
        "steps": steps,
        "kept_step": steps,
        "memory": memory_table(model, len(optimizer.slots), state),
        "adapter_sha256": fingerprint(model.trainable_params()),
        "out": str(out),
    }
    kept = ""
    if plan.evaluation and plan.evaluation.keep == "best":
        step, *best = plan.evaluation.best
        told = ", ".join(f"{m} {_amount(m, v)}{UNITS[m]}" for m, v in zip(model.metrics, best, strict=True))
        result["kept_step"] = step + 1
        kept = f"kept the weights after step {step + 1} of {steps}, the best on the\nvalidation rows: {told}\n\n"
    width = max(map(len, model.metrics))
    lines = [f"test {m:<{width}}  {_amount(m, a)} -> {_amount(m, b)}{UNITS[m]}" for m, a, b in measured]
    text = (
        "\n".join(lines) + f"\n\n{kept}"
        f"Memory by arithmetic, without activations:\n{_memory(result['memory'])}\n\n"
        f"wrote {out}: adapter_model.safetensors, adapter_config.json,\n"
        "      lorabook.json, history.csv, checkpoint.safetensors"
    )
    return result, text


UNITS = {"loss": " nats", "accuracy": " %", "perplexity": ""}


def _amount(metric, value):
    return (
        f"{100 * value:.1f}" if metric == "accuracy" else f"{value:.4g}" if metric == "perplexity" else f"{value:.4f}"
    )


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
        "training": lambda row: {"full": "everything", "lora": "LoRA"}.get(row["method"], row["method"]),
        "numbers": lambda row: f"{row['trained']:,}",
        "share %": lambda row: f"{100 * row['share']:.1f}",
        f"weights {name}": amount("weights"),
        f"gradients {name}": amount("gradients"),
        f"optimizer {name}": amount("optimizer"),
        f"total {name}": amount("total"),
    }
    return format_table(rows, columns)
