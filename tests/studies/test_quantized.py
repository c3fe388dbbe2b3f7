"""A base in few bits under LoRA: what it starts from."""

import copy

import numpy as np
import pytest
from checks import assert_close

from lorabook.adapters import LoRAConfig, adapters, inject
from lorabook.layers import Linear, QuantizedLinear
from lorabook.models import MLP
from lorabook.quantization import quantizer
from lorabook.studies import quantized

PATHS = ("fc1", "fc2")


def started(format, start):
    """(the dense model, the same in few bits under LoRA at its start, the error that is told)."""
    dense = MLP((64, 32, 10), rng=np.random.default_rng(0))
    model = copy.deepcopy(dense)
    factors, error = quantized.round_base(model, format, start, dict.fromkeys(PATHS, 4), dict.fromkeys(PATHS, 2.0))
    inject(model, LoRAConfig(r=4, lora_alpha=8, target_modules=list(PATHS)), rng=0)
    quantized.put_factors(model, factors)
    return dense, model, error


@pytest.mark.parametrize(("format", "start"), quantized.RUNS)
def test_the_error_is_that_of_what_the_model_starts_with(format, start):
    dense, model, error = started(format, start)
    lost = whole = 0.0
    for path in PATHS:
        W, layer = dense.children[path].weight, adapters(model)[path]
        assert type(layer.children["base_layer"]) is (QuantizedLinear if format in ("nf4", "int4") else Linear)
        near = layer.children["base_layer"].weight + layer.delta_weight()
        assert layer.params["lora_B"].any() == (start == "LoftQ")
        if format != "float32" and start == "B = 0":
            assert np.array_equal(near, quantizer(format)(W).dequantize())
        lost, whole = lost + np.sum((W - near) ** 2, dtype="f8"), whole + np.sum(W**2, dtype="f8")
    assert_close(error, np.sqrt(lost / whole), 1e-4) if format != "float32" else None
    assert (error < 1e-6) == (format == "float32") and np.sqrt(lost / whole) < error + 1e-6


@pytest.mark.parametrize("format", ["nf4", "nf2"])
def test_loftq_starts_nearer_than_zero(format):
    assert started(format, "LoftQ")[2] < started(format, "B = 0")[2]


def test_a_row_of_the_digits():
    rows = quantized.digits_rows(r=2, seeds=(0,), runs=[("nf2", "LoftQ")], epochs=1)
    (row,) = rows
    assert rows == [quantized.digits_row("nf2", "LoftQ", 0, r=2, epochs=1)]
    assert 0.4 < row["weight_error"] < 0.7 and row["before"] > 0.5 and 0 < row["test_accuracy"] < 1
    assert (row["format"], row["start"], row["r"], row["seed"]) == ("nf2", "LoftQ", 2, 0)
