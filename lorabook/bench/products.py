"""The products with the model's matrices that a step cannot do without: what the ceiling of its speed is made of."""

from dataclasses import dataclass

from ..absorbed import absorbing_is_cheaper
from ..adapters import LoRAConfig
from .case import LABELS

KINDS = {"forward": "x W^T", "dx": "dout W", "dW": "dout^T x"}


@dataclass(frozen=True)
class Product:
    """One product with the weight (d_out, d_in) of a layer, for N rows; KINDS says which."""

    kind: str
    layer: str
    N: int
    d_in: int
    d_out: int

    @property
    def shape(self):
        """What decides its speed."""
        return self.kind, self.N, self.d_in, self.d_out

    @property
    def flops(self):
        """N d_in d_out multiplications and as many additions, whichever the kind."""
        return 2 * self.N * self.d_in * self.d_out


def products(config, case, method="lora"):
    """The products, in order of execution, of one step of BERT with a sequence classifier. method: "lora" or "full".

    A layer with weight W takes three products, all of the same size:

        forward   x W^T       always
        dW        dout^T x    only where W trains: everywhere in full fine-tuning; with LoRA only in the classifier
        dx        dout W      only where something below the layer trains: in full fine-tuning the embeddings are below
                              everything; with LoRA the lowest adapted layers are the bottom. query, key and value of
                              one block stand side by side, none below another

    The classifier reads the hidden state of the first token only. So the last block's products are needed for the B
    first tokens, in both directions; those of key and value too, whose weights can be absorbed (see `absorbed`), unless
    texts are so short that making keys and values costs less. Inference is the forward part alone: a merged adapter
    costs nothing.

    Not counted, so that the share of a step that this makes out is rather too low than too high: the products inside
    attention (q k^T, p v), and those with the factors of rank r, which each contraction order has in another number.
    """
    layers = _linears(config, case)
    targets = chosen(config, case)
    bottom = -1 if method == "full" else min(level for path, level, *_ in layers if path in (*targets, "classifier"))
    forward = [Product("forward", path, *sizes) for path, _, *sizes in layers]
    if case.what == "forward":
        return forward
    backward = []
    for path, level, *sizes in reversed(layers):
        if method == "full" or path == "classifier":
            backward.append(Product("dW", path, *sizes))
        if level > bottom:
            backward.append(Product("dx", path, *sizes))
    return forward + backward


def chosen(config, case):
    """Paths of the matrices that get an adapter. Raises InputError if a target matches none."""
    paths = [path for path, *_ in _linears(config, case)]
    adapter = LoRAConfig(r=case.r, target_modules=case.target_modules, modules_to_save=("classifier",))
    return adapter.select(paths)


def _linears(config, case):
    """[(path, level, N, d_in, d_out)] from bottom to top; layers on one level do not feed each other."""
    d, d_mlp, last = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"] - 1
    B, tokens = case.batch_size, case.batch_size * case.seq_len
    absorbed = absorbing_is_cheaper(1, case.seq_len, config["num_attention_heads"], d)
    layers = []
    for i in range(last + 1):
        N, path = B if i == last else tokens, f"bert.encoder.layer.{i}"
        read = N if absorbed else tokens
        layers += [
            (f"{path}.attention.self.query", 4 * i, N, d, d),
            (f"{path}.attention.self.key", 4 * i, read, d, d),
            (f"{path}.attention.self.value", 4 * i, read, d, d),
            (f"{path}.attention.output.dense", 4 * i + 1, N, d, d),
            (f"{path}.intermediate.dense", 4 * i + 2, N, d, d_mlp),
            (f"{path}.output.dense", 4 * i + 3, N, d_mlp, d),
        ]
    top = 4 * (last + 1)
    return [*layers, ("bert.pooler.dense", top, B, d, d), ("classifier", top + 1, B, d, LABELS)]
