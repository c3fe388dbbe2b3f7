"""`lorabook merge`: a plain checkpoint with W + scaling * B @ A in the place of W."""

from ..errors import InputError
from ..io import read_safetensors
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
    """Load, merge, write model.safetensors, config.json and tokenizer.json."""
    from ..adapter_io import labels_of, load_adapter
    from ..adapters import unload
    from ..adapters.inject import merge
    from ..hub import locate
    from ..models.bert import BertForSequenceClassification, save_pretrained

    folder = locate(args.model)
    labels = labels_of(args.adapter) or _labels(args.adapter, folder)
    model = BertForSequenceClassification.from_pretrained(folder, labels=len(labels))
    config = load_adapter(args.adapter, model)
    with output_folder(args.out) as out:
        if (out / "model.safetensors").exists():
            raise InputError(f"{out} holds a model.safetensors already; choose another --out")
        merge(model)
        unload(model)
        save_pretrained(out, model, folder, labels)
    text = f"merged r = {config.r} into {args.model}; wrote {out}: model.safetensors, config.json, tokenizer.json"
    return {"out": str(out), "r": config.r, "labels": labels}, text


def _labels(adapter, folder):
    """Names of the classes for an adapter that does not tell them: as many as its classifier has, or the model's own.

    The names are those in the model's config.json if it has as many, else LABEL_0, LABEL_1, ...: as transformers does.
    """
    from ..adapter_io import classes_of
    from ..models.bert import label_names, read_config

    classes = classes_of(adapter)
    if classes is None:
        weight = read_safetensors(folder / "model.safetensors")[0].get("classifier.weight")
        if weight is None or weight.ndim != 2:
            raise InputError(f"neither {adapter} nor {folder} holds a classifier; expected one of them to")
        classes = weight.shape[0]
    names = label_names(read_config(folder))
    return names if len(names) == classes else [f"LABEL_{i}" for i in range(classes)]
