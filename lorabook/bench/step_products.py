"""The products with the model's matrices that a step cannot do without: what the ceiling of its speed is made of."""

from dataclasses import dataclass

from ..adapters import LoRAConfig
from ..functional import absorbing_is_cheaper
from ..models import classifier_of
from . import decoder
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
    """The products, in order of execution, of one step of a `SequenceClassifier`. method: "lora" or "full".

    A layer with weight W takes three products, all of the same size:

        forward   x W^T       always
        dW        dout^T x    only where W trains: everywhere in full fine-tuning; with LoRA only in the head
        dx        dout W      only where something below the layer trains: in full fine-tuning the embeddings are below
                              everything; with LoRA the lowest adapted layers are the bottom. query, key and value of
                              one block stand side by side, none below another

    The head reads the hidden state of the first token only. So the last block's products are needed for the B
    first tokens, in both directions; those of key and value too, whose weights can be absorbed (see `absorbed`), unless
    texts are so short that making keys and values costs less. Inference is the forward part alone: a merged adapter
    costs nothing.

    Of a decoder all tokens of the last block are asked for, the head reads those that predict another, and its weight,
    which is the embedding's, is frozen under LoRA.

    Not counted, so that the share of a step that this makes out is rather too low than too high: the products inside
    attention (q k^T, p v), and those with the factors of rank r, which each contraction order has in another number.
    """
    if case.what == "generate":
        return [Product("forward", *own) for own in decoder.passes(config, case)]
    layers, head = _linears(config, case), _head(config)
    targets = chosen(config, case)
    trains = {path for path, *_ in layers if path in targets or path.startswith(head)}
    bottom = -1 if method == "full" else min(level for path, level, *_ in layers if path in trains)
    forward = [Product("forward", path, *sizes) for path, _, *sizes in layers]
    if case.what == "forward":
        return forward
    backward = []
    for path, level, *sizes in reversed(layers):
        if method == "full" or path.startswith(head):
            backward.append(Product("dW", path, *sizes))
        if level > bottom:
            backward.append(Product("dx", path, *sizes))
    return forward + backward


def chosen(config, case):
    """Paths of the matrices that get an adapter. Raises InputError if a target matches none."""
    paths, head = [path for path, *_ in _linears(config, case) if path != "lm_head"], _head(config)
    return LoRAConfig(r=case.r, target_modules=case.target_modules, modules_to_save=head).select(paths)


def _head(config):
    """Names of what is trained in full beside the adapters."""
    return () if decoder.decodes(config) else classifier_of(config).architecture.head_modules


def _linears(config, case):
    """[(path, level, N, d_in, d_out)] from bottom to top; layers on one level do not feed each other."""
    if decoder.decodes(config):
        return decoder.linears(config, case)
    architecture = classifier_of(config).architecture
    sizes = architecture.sizes(config)
    d, d_mlp, last = sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers - 1
    B, tokens = case.batch_size, case.batch_size * case.seq_len
    absorbed = absorbing_is_cheaper(1, case.seq_len, sizes.num_attention_heads, d)
    layers = []
    for i in range(last + 1):
        N = B if i == last else tokens
        read = N if absorbed else tokens
        own = [("query", 0, N, d, d), ("key", 0, read, d, d), ("value", 0, read, d, d), ("output", 1, N, d, d)]
        own += [("up", 2, N, d, d_mlp), ("down", 3, N, d_mlp, d)]
        layers += [(architecture.layer(i, part), 4 * i + level, *shape) for part, level, *shape in own]
    (dense, output), top = architecture.head_layers, 4 * (last + 1)
    return [*layers, (dense, top, B, d, d), (output, top + 1, B, d, LABELS)]
