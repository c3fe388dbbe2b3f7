"""Adapter folders of other programs, brought to PEFT's form. Those of PEFT itself: tests/oracle/test_folders.py."""

import json

import numpy as np
import pytest
from checks import assert_close, tiny_bert, tiny_ids

from lorabook import FormatError, InputError, files
from lorabook.adapters import adapters, contents, load_adapter, peft_folder, read_folder

QUERY, VALUE = (f"bert.encoder.layer.{i}.attention.self.{n}" for i, n in ((0, "query"), (1, "value")))
MLX = {
    "model": "mine",
    "fine_tune_type": "lora",
    "num_layers": 2,
    "lora_parameters": {"rank": 3, "scale": 0.7, "dropout": 0.1, "keys": ["attention.self.query"]},
}


def base():
    return tiny_bert(np.random.default_rng(0), dtype="float32")


def factors(rng, d_in=6, d_out=6, r=3):
    return {
        "lora_a": rng.standard_normal((d_in, r)).astype("f4"),
        "lora_b": rng.standard_normal((r, d_out)).astype("f4"),
    }


@pytest.fixture
def mlx(tmp_path, rng):
    """(folder, {layer: its factors}) of an adapter as mlx-lm writes it."""
    layers = {QUERY: factors(rng), VALUE: factors(rng), "bert.encoder.layer.1.output.dense": factors(rng, d_in=7)}
    write(tmp_path, MLX, {f"{path}.{n}": a for path, both in layers.items() for n, a in both.items()})
    return tmp_path, layers


def write(folder, options, arrays):
    (folder / "adapter_config.json").write_text(json.dumps(options))
    files.write_safetensors(folder / "adapters.safetensors", arrays)


def test_mlx_factors_are_transposed_and_scale_is_the_scaling(mlx, capsys):
    folder, layers = mlx
    model = base()
    config = load_adapter(folder, model)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 0.7 * 3, 0.1)
    found = adapters(model)
    assert found.keys() == layers.keys()
    for path, layer in found.items():
        assert layer.scaling == pytest.approx(0.7, rel=1e-15)
        assert_close(layer.delta_weight(), 0.7 * (layers[path]["lora_a"] @ layers[path]["lora_b"]).T, 1e-6)
    assert "is an adapter of mlx-lm; read as LoRA with lora_alpha = scale * rank" in capsys.readouterr().err


def test_mlx_forward_by_its_own_formula(mlx, rng):
    """y = x W^T + scale (x lora_a) lora_b."""
    folder, layers = mlx
    model, plain = base(), base()
    load_adapter(folder, model)
    layer, x = adapters(model)[QUERY], rng.standard_normal((4, 6)).astype("f4")
    want = dict(plain.named_layers())[QUERY](x)[0] + 0.7 * x @ layers[QUERY]["lora_a"] @ layers[QUERY]["lora_b"]
    assert_close(layer(x)[0], want, 1e-6)


def test_mlx_folder_saved_again_is_pefts(mlx, tmp_path):
    model = base()
    load_adapter(mlx[0], model)
    peft_folder.save_adapter(tmp_path / "again", model)
    other = base()
    load_adapter(tmp_path / "again", other)
    assert_close(other(tiny_ids())[0], model(tiny_ids())[0], 1e-6)
    assert peft_folder.about(mlx[0]) == dict.fromkeys(peft_folder.RULES)
    assert contents.classes_of(mlx[0], "classifier") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type is 'dora'; only 'lora' is implemented"),
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full'"),
        ({"fine_tune_type": None}, "fine_tune_type is None"),
        ({"lora_parameters": None}, "lora_parameters must hold rank, scale, dropout and keys; got None"),
        ({"lora_parameters": {}}, "rank must be an integer from 1 to 1000000; got None"),
        ({"lora_parameters": {"rank": 3}}, "scale must be a number from -1e+30 to 1e+30; got None"),
        ({"lora_parameters": {"rank": True, "scale": 1.0}}, "rank must be an integer"),
        ({"lora_parameters": {"rank": 3, "scale": "20"}}, "scale must be a number"),
        ({"lora_parameters": {"rank": 3, "scale": 1.0, "dropout": 1}}, "lora_dropout must be a number p"),
        ({"lora_parameters": {"rank": 3, "alpha": 16, "scale": 1.0}}, "got the unknown ['alpha']"),
        ({"lora_parameters": {"rank": 4, "scale": 1.0}}, "has shape (3, 6), expected (4, 6)"),
        ({"num_layers": "all"}, "num_layers must be an integer from -1 on, or null; got 'all'"),
    ],
    ids=str,
)
def test_mlx_options_that_are_not_lora(mlx, changes, message):
    (mlx[0] / "adapter_config.json").write_text(json.dumps(MLX | changes))
    with pytest.raises(FormatError) as error:
        load_adapter(mlx[0], base())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{QUERY}.m": np.ones(6, "f4")}, f"{QUERY}.m (6,) is no lora_a or lora_b of a linear layer"),
        ({f"{QUERY}.lora_a": np.ones((2, 6, 3), "f4")}, "lora_a (2, 6, 3) is no lora_a"),
        ({f"{VALUE}.lora_b": None}, f"missing base_model.model.{VALUE}.lora_B.weight"),
        ({"model.layers.0.q_proj.lora_a": np.ones((6, 3), "f4")}, "unexpected base_model.model.model.layers.0"),
        ({f"{QUERY}.lora_a": np.ones((3, 6), "f4")}, "has shape (6, 3), expected (3, 6)"),
        ({f"{QUERY}.lora_a": np.full((6, 3), np.nan, "f4")}, f"{QUERY}.lora_a holds 18 numbers that are NaN"),
    ],
    ids=str,
)
def test_mlx_tensors_that_do_not_fit(mlx, tensors, message):
    arrays, _ = files.read_safetensors(mlx[0] / "adapters.safetensors")
    write(mlx[0], MLX, {n: a for n, a in (arrays | tensors).items() if a is not None})
    with pytest.raises(FormatError) as error:
        load_adapter(mlx[0], base())
    assert message in str(error.value)


def test_mlx_tensors_are_missing(mlx):
    (mlx[0] / "adapters.safetensors").unlink()
    with pytest.raises(InputError, match=r"adapters.safetensors: No such file"):
        load_adapter(mlx[0], base())


def test_names_of_several_adapters(tmp_path, rng):
    """Which of them is meant nobody says."""
    both = {n.upper().replace("LORA", "lora"): a.T for n, a in factors(rng).items()}
    arrays = {f"base_model.model.{QUERY}.{n}.{a}.weight": v.copy() for n, v in both.items() for a in ("default", "b")}
    files.write_safetensors(tmp_path / "adapter_model.safetensors", arrays)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 3, "target_modules": ["query"]})
    )
    with pytest.raises(FormatError, match="holds several adapters, b, default; expected one a folder"):
        read_folder(tmp_path)


@pytest.mark.parametrize("live", ["lora_A.default", "lora_A"])
@pytest.mark.parametrize("copies", ["live", "both", "saved"])
def test_a_saved_module_under_the_name_of_the_adapter(tmp_path, rng, live, copies):
    """In the state dict of a live model it is there alone, or beside the module as it was."""
    plain, trained = rng.standard_normal((2, 3, 6)).astype("f4")
    arrays = {n.upper().replace("LORA", "lora"): a.T for n, a in factors(rng).items()}
    arrays = {f"base_model.model.{QUERY}.{n}{live[6:]}.weight": np.ascontiguousarray(a) for n, a in arrays.items()}
    head = "base_model.model.classifier"
    arrays |= {f"{head}.original_module.weight": plain, f"{head}.modules_to_save.default.weight": trained}
    if copies != "live":
        arrays[f"{head}.weight"] = plain if copies == "both" else trained
    files.write_safetensors(tmp_path / "adapter_model.safetensors", arrays)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 3, "target_modules": ["query"], "modules_to_save": ["classifier"]})
    )
    found = read_folder(tmp_path)
    assert found.arrays.keys() == {f"{head}.weight", *(f"base_model.model.{QUERY}.lora_{x}.weight" for x in "AB")}
    stale = copies == "both" and live == "lora_A"  # as PEFT saves them: what has the plain name is what is loaded
    np.testing.assert_array_equal(found.arrays[f"{head}.weight"], plain if stale else trained)
    told = "." in live or copies == "live"
    assert [("'default'" in line) for line in found.remarks] == [True] * told
