"""`lorabook merge`: a plain checkpoint with W + scaling * B @ A in the place of W."""

from ..errors import InputError, printable
from ..locks import output_folder

HELP = "write a plain Hugging Face checkpoint with the adapter merged into the weights"
EXAMPLE = "lorabook merge minilm --adapter runs/reviews --out runs/merged"
SHARED = ()


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("model", metavar="MODEL", help="minilm, or a Hugging Face folder with a BERT encoder")
    parser.add_argument("--adapter", required=True, metavar="DIR", help="PEFT adapter folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not hold a model")


def run(args):
    """Load, merge, write weights, config.json and the tokenizer's files."""
    from ..adapter_io import load_adapter
    from ..adapters import unload
    from ..adapters.inject import merge
    from ..hub import public_name
    from ..loading import find
    from ..models.bert import BertForSequenceClassification
    from ..models.pretrained import save_pretrained

    source = find(args.model, args.adapter)
    if source.labels is None:
        raise InputError(f"neither {args.adapter} nor {args.model} holds a classifier; expected one of them to")
    labels = list(source.labels)
    model = BertForSequenceClassification.from_pretrained(source.folder, labels=len(labels))
    config = load_adapter(args.adapter, model)
    with output_folder(args.out) as out:
        if holds := sorted(p.name for p in out.iterdir() if p.suffix in (".json", ".safetensors")):
            raise InputError(f"{out} holds a model or an adapter already ({', '.join(holds)}); choose another --out")
        merge(model)
        unload(model)
        names = {"model": printable(public_name(source.base)), "adapter": printable(args.adapter)}
        files = save_pretrained(out, model, source.tokenizer_folder, labels, merged_from=names)
    text = f"merged r = {config.r} into {args.model}; wrote {out}: {', '.join(files)}"
    return {"out": str(out), "r": config.r, "labels": labels, "files": files}, text
