"""A LoRA step of a BERT, counted: its launches by phase, and its FLOPs, bytes and least time by part, for any batch."""

import contextlib
import importlib

import numpy as np

from ..adapters import LoRAConfig, LoRALinear, inject
from ..bench import SIX
from ..data import Batches
from ..models import BertForSequenceClassification
from ..parallel import Workers
from ..training import AdamW, Hooks, Loop, Steps
from . import recorder
from .recorder import COPIES, RANK, during, one_kernel, recorded

TINY = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu", "pad_token_id": 0,
}  # fmt: skip
MINILM = TINY | {"vocab_size": 1000, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
MINILM |= {"num_attention_heads": 12}
PHASES = ("W + s B A", "forward", "the loss", "backward", "norm of the gradient", "AdamW")
DATA_SHEET = {"float32": 67e12, "TF32": 495e12, "bandwidth": 3.35e12}  # H100 SXM: data sheet, not measured; TF32 dense


def random_bert(config, r=RANK):
    """BERT with weights from N(0, 0.02^2), random adapters on SIX, and a classifier that trains."""
    model, draw = BertForSequenceClassification(config, labels=2), np.random.default_rng(0)
    for array in model.named_params().values():
        if array.ndim == 2:
            array[...] = 0.02 * draw.standard_normal(array.shape)
    adapters = LoRAConfig(
        r=r, lora_alpha=16, target_modules=SIX, modules_to_save=("classifier",), init_lora_weights=False
    )
    inject(model, adapters, draw)
    return model


def random_batch(B, T, vocabulary=50):
    """Ids (B, T) and labels (B,)."""
    draw = np.random.default_rng(0)
    return {"input_ids": draw.integers(1, vocabulary, (B, T)), "labels": draw.integers(0, 2, B)}


def prepare(config, order="merged"):
    """A model whose parameters are recorded, with every adapter in this order, and GELU as one kernel."""
    model = random_bert(config)
    for _, layer in model.named_layers():
        layer.params = {name: recorded(array) for name, array in layer.params.items()}
        if isinstance(layer, LoRALinear):
            layer.order = order
        if hasattr(layer, "activation"):
            layer.activation.forward = one_kernel
    model.forward, model.backward = during("forward", model.forward), during("backward", model.backward)
    return model


@contextlib.contextmanager
def as_on_a_device():
    """What the library does in another way on a device than on NumPy arrays."""
    optim, steps = _inside("training.optim"), _inside("training.steps")
    ways = {
        "training.optim.BLOCK": optim.MOST,  # NumPy lays as many numbers end to end as stay in its cache
        "training.steps.squared_norm": during("norm of the gradient", steps.squared_norm),
        "parallel.threads.cut": lambda model, batch, *size: [slice(0, model.rows(batch))],  # NumPy cuts a batch
        "functional.attend.SCORES": 1 << 60,  # NumPy takes a few heads at a time, a device all
        "functional.attend.bmm": recorder.bmm,
        "functional.absorbed.bmm": recorder.bmm,
        "functional.attend.contiguous": recorder.contiguous,
        "functional.attend.empty": recorder.empty,
        "functional.reductions.ones": recorder.ones,
    }
    places = [(_inside(path.rpartition(".")[0]), path.rpartition(".")[2], way) for path, way in ways.items()]
    before = [(module, name, getattr(module, name)) for module, name, _ in places]
    try:
        for module, name, way in places:
            setattr(module, name, way)
        yield
    finally:
        for module, name, way in before:
            setattr(module, name, way)


def _inside(path):
    """A module of another room, by its dotted path: what is put in the place of its names is no use of its own."""
    return importlib.import_module(f"{__package__.rpartition('.')[0]}.{path}")


def record(model, B, T):
    """(the log of one step as a device takes it, {phase: launches}, where the host waited)."""
    params, optimizer = model.trainable_params(), AdamW(1e-3)
    optimizer.prepare(params)
    batch = random_batch(B, T)
    batch["attention_mask"] = np.ones((B, T), int)
    batch["attention_mask"][0, -1] = 0  # padding: where there is none NumPy adds no bias; a device does not look
    with as_on_a_device(), Workers(1) as workers:
        optimizer._packs(params)  # as after the first step
        loop = Loop(model, optimizer, workers, params, 1, 1)
        run = Steps(loop, Hooks([], 1), Batches(batch, B), 0, None, read_every=10)
        optimizer.step = during("AdamW", optimizer.step)
        log, waits = recorder.begin()
        run.take(0, 1.0)
        recorder.begin()  # what follows belongs to no step
    launches = dict.fromkeys(PHASES, 0)
    for entry in log:
        shared = entry["place"].startswith("lora") and entry["phase"] == "the loss"
        launches["W + s B A" if shared else entry["phase"]] += 1
    return log, launches, waits


# ---- FLOPs, bytes, seconds -------------------------------------------------------------------------------------------


def part(entry):
    """What an entry of the log belongs to."""
    if entry["name"] == "matmul":
        if entry["batched"]:
            return "products of attention"
        return "products with A or B" if entry["r"] else "products with W"
    module, function = entry["place"].split(".")
    if module in ("attend", "absorbed") or function == "softmax_":
        return "attention: copies" if entry["name"] in COPIES else "attention: softmax, scaling"
    if function.startswith("layer_norm"):
        return "layer norm"
    if function in ("gelu_erf", "activation_backward"):
        return "GELU"
    if module in ("optim", "clipping", "steps"):
        return "norm of the gradient, AdamW"
    return "W + s B A, scaling" if module == "lora" else "the rest: bias, residual"


def device_time(flops, moved, product, tf32=False):
    """Least seconds for operations of so many FLOPs and bytes, at the peaks of the data sheet."""
    peak = np.where(product & tf32, DATA_SHEET["TF32"], DATA_SHEET["float32"])
    return np.maximum(flops / peak, moved / DATA_SHEET["bandwidth"])


class Step:
    """The operations of a step for any batch size B: FLOPs and bytes are affine in B, so two steps give all."""

    def __init__(self, config, T):
        model = prepare(config)
        first, second = (record(model, B, T)[0] for B in (6, 10))
        assert [part(e) for e in first] == [part(e) for e in second]
        self.model, self.log, self.parts = model, first, np.array([part(e) for e in first])
        self.product = np.char.startswith(self.parts, "products")
        self.at6, self.at10 = (np.array([[e["flops"], e["bytes"]] for e in log], float) for log in (first, second))

    def work(self, B):
        """(FLOPs, bytes) of each operation."""
        return (self.at6 + (B - 6) / 4 * (self.at10 - self.at6)).T

    def seconds(self, B, tf32=False):
        """Least time of each operation on the device."""
        return device_time(*self.work(B), self.product, tf32)

    def by_part(self, B):
        """Rows {part, launches, flops, bytes, time} of each part, the slowest first."""
        (flops, moved), time, rows = self.work(B), self.seconds(B), []
        for name in dict.fromkeys(self.parts.tolist()):
            own = self.parts == name
            row = {"part": name, "launches": int(own.sum()), "flops": flops[own].sum()}
            rows.append(row | {"bytes": moved[own].sum(), "time": time[own].sum()})
        return sorted(rows, key=lambda row: -row["time"])


def by_phase(jobs=1, progress=False, runs=None):
    """Rows {phase, launches, waits, arrays, read_every}: one step of MiniLM with LoRA, as a device takes it."""
    model = prepare(MINILM)
    _, launches, waits = record(model, 6, 128)
    arrays = len(model.trainable_params())
    rest = {"waits": len(waits), "arrays": arrays, "read_every": 10}
    return [{"phase": phase, "launches": n} | rest for phase, n in launches.items()]
