"""`lorabook merge`: a plain checkpoint with W + scaling * B @ A in the place of W."""

from pathlib import Path

from ..errors import InputError, printable
from ..files import output_folder
from .arguments import CAUSAL_LM, ENCODER

HELP = (
    "write a plain Hugging Face checkpoint, or a GGUF file, with the adapter merged into the weights; it is read back "
    "before it gets its name"
)
EXAMPLE = """lorabook merge minilm --adapter runs/reviews --out runs/merged
  lorabook merge smollm2 --adapter runs/mine --gguf --dtype q8_0 --out runs/merged"""
SHARED = ()
DTYPES = ("float32", "float16", "bfloat16", "q8_0")  # `models.KINDS`, which takes long to import
HELD = (".json", ".safetensors", ".gguf")


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("model", metavar="MODEL", help=f"{ENCODER}; or {CAUSAL_LM}")
    parser.add_argument("--adapter", required=True, metavar="DIR", help="PEFT adapter folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not hold a model")
    gguf = (
        "of a MODEL that is a GGUF file: write model.gguf, with the tokenizer and all else of MODEL as they are there"
    )
    parser.add_argument("--gguf", action="store_true", help=gguf)
    dtype = "of what is written, of a language model: float32 or float16; with --gguf also bfloat16 or q8_0, of the "
    dtype += "matrices that change (default: float32, or as they are there; of a quantised MODEL it must be given)"
    parser.add_argument("--dtype", choices=DTYPES, help=dtype)


def run(args):
    """Load, merge, write weights, config.json and the tokenizer's files, or one GGUF file."""
    from ..adapters import config_of
    from ..files import public_name
    from ..tasks import DecoderSource, check_dtype, find, write_classifier, write_folder, write_merged_gguf

    _check_free(args.out)
    source = find(args.model, args.adapter)
    decoder = isinstance(source, DecoderSource)
    if not decoder and source.labels is None:
        raise InputError(f"neither {args.adapter} nor {args.model} holds a classifier; expected one of them to")
    if not decoder and (args.gguf or args.dtype):
        raise InputError(f"{args.model} gives texts labels; --gguf and --dtype are of language models: leave them out")
    if decoder and not args.gguf and args.dtype not in (None, "float32", "float16"):
        raise InputError(f"a folder is written in float32 or float16; --dtype {args.dtype} needs --gguf")
    model = source.load() if decoder else source.load_network(len(source.labels))
    r = config_of(model).r
    if decoder:
        check_dtype(source, model, args.gguf, args.dtype)
    names = {"model": printable(public_name(source.base)), "adapter": printable(args.adapter)}
    with output_folder(args.out) as out:
        _check_free(out)
        if not decoder:
            written = write_classifier(out, model, source, names)
        elif args.gguf:
            written = write_merged_gguf(out, model, source, args.dtype)
        else:
            written = write_folder(out, model, source, args.dtype, names)
    told = {"out": str(out), "r": r, "files": written.files, "logit_difference": written.difference}
    told |= {"weight_error": written.error} if decoder else {"labels": list(source.labels)}
    told |= {} if written.changed is None else {"changed": written.changed}
    text = [f"merged r = {r} into {args.model}; wrote {out}: {', '.join(written.files)}"]
    if written.changed is not None:
        text.append(f"{written.changed} tensors changed, all others are {args.model}'s byte for byte")
    apart = f"{written.difference:.1e} of the largest logit from {args.model} with the adapter beside its weights"
    rounding = f"; rounding took {written.error:.1e} of a matrix at most" if written.error else ""
    text.append(f"read back before it got its name: at most {apart}{rounding}")
    return told, "\n".join(text)


def _check_free(out):
    """Raise InputError if a folder holds a model already."""
    out = Path(out)
    holds = sorted(path.name for path in out.iterdir() if path.suffix in HELD) if out.is_dir() else []
    if holds:
        raise InputError(f"{out} holds a model or an adapter already ({', '.join(holds)}); choose another --out")
