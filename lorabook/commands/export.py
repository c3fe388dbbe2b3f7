"""`lorabook export`: an adapter as one GGUF file, which llama.cpp loads over the base model."""

from pathlib import Path

from ..errors import InputError
from .arguments import CAUSAL_LM, integer

HELP = (
    "write an adapter as a GGUF file, which llama.cpp loads over its own file of the base: llama-cli -m BASE --lora OUT"
)
EXAMPLE = "lorabook export smollm2 --adapter runs/mine --out mine.gguf"
SHARED = ()
DTYPES = ("float32", "float16", "bfloat16")  # `models.FACTORS`, which takes long to import


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("model", metavar="MODEL", help=CAUSAL_LM)
    parser.add_argument("--adapter", required=True, metavar="DIR", help="PEFT adapter folder")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, NAME.gguf; must not be there")
    rank = "write plain LoRA of this rank, the closest to the adapter, which may be of any method; tells how close"
    parser.add_argument("--rank", type=integer(1), metavar="R", help=rank)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the factors (default: %(default)s)")


def run(args):
    """Load the base with its adapter, and write the factors under GGUF's names."""
    from ..adapters import to_lora
    from ..tasks import find, write_adapter_gguf

    _check_free(args.out)
    model = find(args.model, args.adapter, answers="texts").load()
    errors = to_lora(model, args.rank) if args.rank else {}
    adapted = write_adapter_gguf(args.out, model, args.dtype, Path(args.out).stem)
    size = Path(args.out).stat().st_size
    text = (
        f"wrote {args.out}: the factors of {adapted} matrices, {size / 1e6:,.2f} MB; read back before it got its name"
    )
    result = {"out": str(args.out), "adapted": adapted, "bytes": size}
    if errors:
        worst = max(errors, key=errors.get)
        text += f"\nat rank {args.rank} at most {errors[worst]:.2%} of an update is lost, in {worst}"
        result |= {"rank": args.rank, "error": errors[worst]}
    return result, text


def _check_free(out):
    """Raise InputError unless it may become a GGUF file."""
    out = Path(out)
    if out.suffix != ".gguf":
        raise InputError(f"--out must be the name of a file, ending in .gguf; got {out}")
    if out.exists():
        raise InputError(f"{out} is there already; choose another --out")
