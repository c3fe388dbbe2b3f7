"""Plain LoRA in the place of another adapter: what is exact at which rank, and what is refused."""

import copy

import numpy as np
import pytest
from checks import assert_close, same_bits

from lorabook import InputError, LoRAConfig, inject, merge
from lorabook.adapters import (
    DoRAConfig,
    HiRAConfig,
    LoHaConfig,
    MiSSConfig,
    VeRAConfig,
    adapters,
    base_params,
    config_of,
    to_lora,
)
from lorabook.layers import quantize
from lorabook.models import MLP

X = np.random.default_rng(0).standard_normal((6, 24))


def made(config, dtype="float64"):
    """An MLP of 24, 36 and 12 numbers, whose adapters have learned something."""
    model, rng = MLP((24, 36, 12), "silu", rng=np.random.default_rng(1)).to(np, dtype), np.random.default_rng(2)
    inject(model, config, 3)
    for layer in adapters(model).values():
        for name, array in layer.params.items():
            layer.params[name] = (array + 0.3 * rng.standard_normal(array.shape)).astype(array.dtype)
    return model


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        (LoRAConfig(r=3, lora_alpha=7), 3),
        (LoRAConfig(r=3, lora_alpha=7, init_lora_weights="pissa"), 6),
        (LoRAConfig(r=3, init_lora_weights="olora"), 6),
        (LoHaConfig(r=2), 4),
        (MiSSConfig(r=3), 3),
        (VeRAConfig(r=3), 3),
    ],
    ids=["lora", "pissa", "olora", "loha", "miss", "vera"],
)
def test_the_rank_of_an_update(config, rank):
    """At this rank nothing is lost, and at one less something is."""
    model = made(config)
    want, less = model.predict(X), copy.deepcopy(model)
    assert max(to_lora(model, rank).values()) < 1e-13
    assert_close(model.predict(X), want, 1e-12)
    assert min(to_lora(less, rank - 1).values()) > 1e-3


@pytest.mark.parametrize("config", [DoRAConfig(r=2), HiRAConfig(r=2)], ids=["dora", "hira"])
def test_an_update_of_full_rank(config):
    model = made(config)
    errors = [to_lora(copy.deepcopy(model), r) for r in (1, 2, 4, 8, 12)]
    for path in ("fc1", "fc2"):
        falls = [error[path] for error in errors]
        assert falls == sorted(falls, reverse=True) and falls[1] > 1e-2


def test_factors_are_balanced_and_the_head_stays():
    model = made(LoRAConfig(r=4, target_modules=["fc1"], modules_to_save=["fc2"], bias="lora_only"))
    before = {name: array.copy() for name, array in base_params(model).items()}
    to_lora(model, 2)
    (layer,) = adapters(model).values()
    assert_close(np.linalg.norm(layer.params["lora_A"], axis=1), np.linalg.norm(layer.params["lora_B"], axis=0), 1e-12)
    assert all(same_bits(array, before[name]) for name, array in base_params(model).items())
    trains = {"fc1.lora_A", "fc1.lora_B", "fc1.base_layer.bias", "fc2.weight", "fc2.bias"}
    assert set(model.trainable_params()) == trains
    config = config_of(model)
    assert (config.r, config.lora_alpha, config.bias, config.modules_to_save) == (2, 2, "lora_only", ("fc2",))


def test_an_update_of_nothing():
    model = MLP((24, 36, 12))
    inject(model, LoRAConfig(r=2))
    assert set(to_lora(model, 3).values()) == {0.0}
    assert not any(layer.delta_weight().any() for layer in adapters(model).values())


def test_over_a_base_in_four_bits():
    model = MLP((64, 128, 12), rng=np.random.default_rng(1))
    quantize(model, "nf4")
    inject(model, LoHaConfig(r=2, init_weights=False), 3)
    x = np.random.default_rng(0).standard_normal((6, 64)).astype("f4")
    want, held = model.predict(x), {path: type(layer.base_layer) for path, layer in adapters(model).items()}
    assert max(to_lora(model, 4).values()) < 1e-5
    assert {path: type(layer.base_layer) for path, layer in adapters(model).items()} == held
    assert_close(model.predict(x), want, 1e-4)


@pytest.mark.parametrize(
    ("spoil", "r", "message"),
    [
        (lambda model: None, 0, "r must be a positive integer; got 0"),
        (lambda model: None, 10**6, "r must be at most 864, the number of weights of fc1, 36x24; got 1000000"),
        (merge, 2, "fc1 is merged; call unmerge"),
        (
            lambda model: adapters(model)["fc2"].params["lora_A"].fill(np.nan),
            2,
            "the update of fc2 holds NaN or Inf, of which there is no SVD; train it again",
        ),
    ],
    ids=["rank", "large rank", "merged", "nan"],
)
def test_refused_with_the_model_unchanged(spoil, r, message):
    model = made(DoRAConfig(r=2))
    spoil(model)
    layers = adapters(model)
    with pytest.raises(InputError, match=message):
        to_lora(model, r)
    assert adapters(model) == layers and config_of(model) == DoRAConfig(r=2)


def test_without_adapters():
    with pytest.raises(InputError, match="the model has no adapters"):
        to_lora(MLP((24, 36, 12)), 2)
