"""`lorabook train`: fine-tune a model with LoRA; the output folder is a PEFT adapter folder."""

from threadpoolctl import threadpool_limits

from ..adapters import LoRAConfig, inject, memory_table
from ..backend import data_like, get_xp
from ..data import SHIFTS, Batches, digits
from ..errors import InputError
from ..io import fingerprint, prepare_folder, save_adapter
from ..optim import SCHEDULES, AdamW
from ..tables import format_table, write_csv

HELP = "fine-tune a model with LoRA; the output folder opens in PEFT"
EXAMPLE = "lorabook train mlp-digits digits-rotated --r 4 --out runs/rotated"


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("model", metavar="MODEL", choices=["mlp-digits"], help="mlp-digits")
    parser.add_argument("data", metavar="DATA", help=", ".join(SHIFTS))
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="adapter folder to write; must not hold another run"
    )
    parser.add_argument("--r", type=int, default=8, help="rank (default: %(default)s)")
    parser.add_argument("--lora-alpha", type=float, default=16, help="scaling is lora_alpha / r (default: %(default)s)")
    parser.add_argument(
        "--lora-dropout", type=float, default=0.0, metavar="P", help="dropout on the LoRA branch's input"
    )
    parser.add_argument("--use-rslora", action="store_true", help="scaling is lora_alpha / sqrt(r)")
    parser.add_argument(
        "--target-modules", nargs="+", default=["all-linear"], metavar="NAME", help="layers (default: all-linear)"
    )
    parser.add_argument("--lr", type=float, default=1e-2, help="learning rate of AdamW (default: %(default)s)")
    parser.add_argument("--lr-schedule", choices=list(SCHEDULES), default="cosine", help="(default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=0, metavar="STEPS", help="steps of linear warm-up (default: 0)")
    parser.add_argument("--max-grad-norm", type=float, metavar="X", help="clip the gradient's norm (default: off)")
    parser.add_argument("--epochs", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS", help="(default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out where its checkpoint stands")


def run(args):
    """Train, evaluate, save the adapter and the history."""
    from ..pretrain import pretrained_mlp
    from ..train import train

    xp = get_xp(args.backend)
    targets = args.target_modules
    config = LoRAConfig(
        r=args.r,
        lora_alpha=args.lora_alpha,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        use_rslora=args.use_rslora,
        lora_dropout=args.lora_dropout,
    )
    task = digits(args.data, args.seed)
    batches = Batches(task.x_train, task.y_train, args.batch_size, args.seed)
    model = pretrained_mlp(digits(seed=args.seed), seed=args.seed).to(xp)
    inject(model, config)
    out = prepare_folder(args.out)
    checkpoint = out / "checkpoint.safetensors"
    if not args.resume and (taken := [p.name for p in out.iterdir() if p.suffix == ".safetensors"]):
        raise InputError(f"{out} holds {taken[0]} already; pass --resume to continue that run, or another --out")

    like = next(iter(model.named_params().values()))
    test = data_like(task.x_test, like), data_like(task.y_test, like)
    before = model.evaluate(*test)
    with threadpool_limits(1):  # as in `pretrain`: the matrices are small
        history = train(
            model,
            batches,
            AdamW(args.lr),
            epochs=args.epochs,
            lr_schedule=args.lr_schedule,
            warmup=args.warmup,
            max_grad_norm=args.max_grad_norm,
            seed=args.seed,
            checkpoint=checkpoint,
            checkpoint_every=args.checkpoint_every,
            resume=args.resume,
            description={"model": args.model, "adapter": config.as_dict()},
            progress=True,
        )
    after = model.evaluate(*test)
    save_adapter(out, model, config, args.model)
    write_csv(out / "history.csv", history, f"lorabook train {args.model} {args.data}")
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
        f"{_memory(memory)}\n\n"
        f"test loss      {before[0]:.4f} -> {after[0]:.4f} nats\n"
        f"test accuracy  {100 * before[1]:.1f} -> {100 * after[1]:.1f} %\n\n"
        f"wrote {out}: adapter_model.safetensors, adapter_config.json, history.csv, checkpoint.safetensors"
    )
    return result, text


def _memory(rows):
    def kilobytes(column):
        return lambda row: f"{row[column] / 1000:,.1f}"

    columns = {
        "training": lambda row: "everything" if row["method"] == "full" else "LoRA",
        "numbers": lambda row: f"{row['trained']:,}",
        "share %": lambda row: f"{100 * row['share']:.1f}",
        "weights kB": kilobytes("weights"),
        "gradients kB": kilobytes("gradients"),
        "AdamW kB": kilobytes("optimizer"),
        "total kB": kilobytes("total"),
    }
    return format_table(rows, columns)
