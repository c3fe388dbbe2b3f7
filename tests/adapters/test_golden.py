"""Against numbers that PEFT made (tests/golden/make_golden.py): a gradient check alone is blind to a wrong scaling."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorabook import LoRAConfig, files, inject, load_adapter, merge
from lorabook.adapters import adapters, base_params, plain_name, unfreeze
from lorabook.models import MLP, BertForSequenceClassification
from lorabook.training import AdamW


@pytest.fixture(params=["mlp", "bert"])
def file(request):
    arrays, metadata = files.read_safetensors(
        Path(__file__).parents[1] / "golden" / f"lora_{request.param}.safetensors"
    )
    x, labels = arrays["x"], {"labels": arrays["labels"]}
    if request.param == "bert":  # PEFT was given this mask
        arrays["batch"] = {"input_ids": x, "attention_mask": (x != 0).astype(int)} | labels
    else:
        arrays["batch"] = {"x": x} | labels
    return arrays, {name: json.loads(value) for name, value in metadata.items() if value.startswith("{")}


@pytest.fixture
def golden(file):
    return file[0], LoRAConfig(**file[1]["config"])


def part(arrays, kind):
    return {name.partition(":")[2]: a for name, a in arrays.items() if name.startswith(f"{kind}:")}


@pytest.fixture(params=["factored", "merged"])
def model(file, golden, rng, request):
    arrays, config = golden
    sizes = file[1].get("bert")
    model = BertForSequenceClassification(sizes, labels=3) if sizes else MLP((7, 9, 8, 5), "gelu", rng=rng)
    model.to(np, "float64").load(part(arrays, "base"))
    inject(model, config, rng)
    held = part(arrays, "base") | part(arrays, "factor")
    model.load({name: held[plain_name(name)] for name in model.named_params()})
    for layer in adapters(model).values():
        layer.order = request.param
    return model


def close(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-10, atol=1e-13, err_msg=name)


def test_logits_loss_and_every_gradient(golden, model):
    arrays, _ = golden
    np.testing.assert_allclose(model.answer(arrays["batch"]), arrays["logits"], rtol=1e-12)
    loss, grads = model.loss_and_grad(arrays["batch"])
    np.testing.assert_allclose(loss, arrays["loss"], rtol=1e-12)
    close(grads, part(arrays, "grad"))


def test_merged_weights(golden, model):
    merge(model)
    wanted = part(golden[0], "merged")
    assert wanted.keys() == {f"{path}.weight" for path in adapters(model)}
    close({n: a for n, a in base_params(model).items() if n in wanted}, wanted)


def test_ten_adamw_steps(golden, model):
    arrays, _ = golden
    optimizer, params = AdamW(0.01), model.trainable_params()
    for _ in range(10):
        optimizer.step(params, model.loss_and_grad(arrays["batch"])[1])
    close(params, part(arrays, "after"))


def test_another_scaling_would_be_noticed(golden, model):
    arrays, _ = golden
    for layer in adapters(model).values():
        layer.scaling *= 1.001
    assert np.abs(model.answer(arrays["batch"]) - arrays["logits"]).max() > 1e-5


# ---- each method of PEFT's, in float32 -------------------------------------------------------------------------------

VARIANTS = Path(__file__).parents[1] / "golden" / "variants.safetensors"


@pytest.fixture(params=[*json.loads(files.read_safetensors(VARIANTS)[1]["config"])])
def saved(request, tmp_path):
    """(the folder that PEFT saved, what it computed, the model under it)."""
    arrays, metadata = files.read_safetensors(VARIANTS)
    config, case = json.loads(metadata["config"])[request.param], part(arrays, request.param)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    files.write_safetensors(tmp_path / "adapter_model.safetensors", part(case, "file"))
    model = MLP((12, 16, 8), "gelu")
    model.load(part(arrays, "base"))
    return tmp_path, case | {"batch": {"x": arrays["x"], "labels": arrays["labels"]}}, model


def near(got, want, name=None):
    """Within 1e-6, of the largest number where that is above 1."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * max(1, np.abs(want).max()), err_msg=name)


def test_what_peft_saved_gives_its_numbers(saved):
    folder, golden, model = saved
    load_adapter(folder, model)
    near(model.answer(golden["batch"]), golden["logits"])
    unfreeze(model)
    _, grads = model.loss_and_grad(golden["batch"])
    wanted = part(golden, "grad")
    assert grads.keys() == wanted.keys()
    for name, grad in grads.items():
        near(grad, wanted[name], name)
    merge(model)
    for name, array in base_params(model).items():
        near(array, part(golden, "merged")[name], name)
