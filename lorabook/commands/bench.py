"""`lorabook bench`: time and peak memory, side by side in one run."""

HELP = "time and peak memory of a training step, beside PEFT's in the same run if asked"
EXAMPLE = "lorabook bench step --model minilm --batch-size 16 --seq-len 128 --r 8 --vs peft"
SHARED = ()


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("what", choices=["step"], help="step: forward, backward and AdamW, float32, no dropout")
    parser.add_argument("--model", default="minilm", help="minilm, or a Hugging Face folder with a BERT encoder")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--seq-len", type=int, default=128, help="tokens a text (default: %(default)s)")
    parser.add_argument("--r", type=int, default=8, help="rank (default: %(default)s)")
    parser.add_argument(
        "--target-modules", nargs="+", default=["all-linear"], metavar="NAME", help="all-linear: the six a block"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=15, help="steps that count (default: %(default)s)")
    parser.add_argument("--vs", choices=["peft"], help="the other side; needs the extra `oracle`")


def run(args):
    """Measure and compare."""
    from ..bench import SIX, compare_steps
    from ..errors import InputError

    names = ("batch_size", "seq_len", "r", "threads", "runs")
    if bad := [name for name in names if getattr(args, name) < 1]:
        raise InputError(f"--{bad[0].replace('_', '-')} must be at least 1; got {getattr(args, bad[0])}")
    targets = list(SIX) if args.target_modules == ["all-linear"] else args.target_modules
    options = {name: getattr(args, name) for name in ("model", *names[:-1])} | {"target_modules": targets}
    result = compare_steps(options, args.runs, vs=args.vs)
    lines = [f"{'':<10}{'median s':>10}{'min s':>10}{'peak MB':>10}"]
    for side in ("lorabook", "peft"):
        if side in result:
            lines.append(
                f"{side:<10}"
                + "".join(f"{result[side][k]:>10.{d}f}" for k, d in (("median", 3), ("min", 3), ("peak_mb", 0)))
            )
    if args.vs:
        lines.append(f"{'ratio':<10}{result['time_ratio']:>10.2f}{'':>10}{result['memory_ratio']:>10.2f}")
    lines.append(f"\nmatrix products alone: {100 * result['gemm_share']:.0f} % of lorabook's time")
    return result, "\n".join(lines)
