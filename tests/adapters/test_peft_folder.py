"""PEFT adapter folders: what is written comes back; what cannot be used is refused by name and changes nothing."""

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
import sys

import numpy as np
import pytest
from checks import assert_close, same_bits, tiny_bert, tiny_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import made

from lorabook import FormatError, InputError, LoRAConfig, LoRALinear, files, inject
from lorabook.adapters import (
    adapters,
    base_params,
    config_of,
    load_adapter,
    merge,
    peft_folder,
    read_adapter_config,
    save_adapter,
    unload,
)
from lorabook.training import AdamW

LABELS = ["bad", "good", "so so"]
CONFIGS = {
    "plain": {"r": 2, "lora_alpha": 8, "target_modules": ["query", "value"]},
    "patterns": {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["query", "value", "output.dense"],
        "rank_pattern": {r"layer\.1\..*\.query": 1, "query": 2, "output.dense": 4},
        "alpha_pattern": {"value": 1.5},
        "use_rslora": True,
    },
    "head": {"target_modules": ["key"], "r": 2, "modules_to_save": ["classifier"]},
    "two modules to save": {"target_modules": ["key"], "r": 2, "modules_to_save": ["classifier", "pooler"]},
    "every bias": {"target_modules": ["query"], "r": 2, "bias": "all", "modules_to_save": ["classifier"]},
    "adapted biases": {"target_modules": ["query", "pooler.dense"], "r": 2, "bias": "lora_only"},
    "regex": {"target_modules": r".*\.layer\.\d\.attention\.self\.(query|key)", "r": 2},
    "all-linear": {"target_modules": "all-linear", "r": 3, "lora_alpha": 4, "lora_dropout": 0.25},
    "all-linear and head": {"target_modules": "all-linear", "r": 3, "modules_to_save": ["classifier"]},
    "gaussian": {"target_modules": ["query"], "r": 2, "init_lora_weights": "gaussian"},
}
EVERY_CONFIG = pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)


def base():
    return tiny_bert(np.random.default_rng(0), dtype="float32")


def trained(options, folder):
    """A model with an adapter that has been trained for two steps, and is saved in the folder."""
    model, config = base(), LoRAConfig(**options)
    inject(model, config, 3)
    optimizer = AdamW(0.05)
    for _ in range(2):
        optimizer.step(
            model.trainable_params(), model.loss_and_grad(tiny_ids() | {"labels": np.array([0, 2, 1, 2])})[1]
        )
    folder.mkdir(exist_ok=True)
    save_adapter(folder, model, "tiny", "SEQ_CLS", LABELS)
    return model, config


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "good"
    trained(CONFIGS["plain"], folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "adapter")


def options_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def change(folder, **options):
    (folder / "adapter_config.json").write_text(json.dumps(options_of(folder) | options))


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    arrays, _ = files.read_safetensors(path)
    files.write_safetensors(path, change(dict(arrays)))


def assert_refused(folder, *messages, kind=FormatError, model=None):
    """load_adapter raises this, and leaves the model exactly as it was."""
    model = model or base()
    before = {n: (a, a.copy()) for n, a in model.named_params().items()}
    trainable, layers = set(model.trainable_params()), dict(model.named_layers())
    with pytest.raises(kind) as error:
        load_adapter(folder, model)
    assert not [m for m in messages if m not in str(error.value)], str(error.value)
    assert "\n" not in str(error.value)
    assert model.named_params().keys() == before.keys()
    assert all(a is before[n][0] and same_bits(a, before[n][1]) for n, a in model.named_params().items())
    assert set(model.trainable_params()) == trainable
    assert all(layer is layers[path] for path, layer in model.named_layers())


# ---- what is written comes back --------------------------------------------------------------------------------------


@EVERY_CONFIG
def test_round_trip(tmp_path, options):
    model, config = trained(options, tmp_path / "a")
    other = base()
    read = load_adapter(tmp_path / "a", other)
    targets = config.target_modules  # a text is written as what it chose; SEQ_CLS saves the head
    expected = {"target_modules": sorted(adapters(model) if isinstance(targets, str) else targets)}
    expected |= {"modules_to_save": list(dict.fromkeys((*config.modules_to_save, "classifier")))}
    assert read.as_dict() == config.as_dict() | expected
    assert other.named_params().keys() == model.named_params().keys()
    assert all(same_bits(a, model.named_params()[n]) for n, a in other.named_params().items())
    assert same_bits(other(tiny_ids())[0], model(tiny_ids())[0])
    assert not np.array_equal(other(tiny_ids())[0], base()(tiny_ids())[0])
    assert {p: (a.r, a.scaling) for p, a in adapters(other).items()} == {
        p: (a.r, a.scaling) for p, a in adapters(model).items()
    }
    assert not other.trainable_params()


@EVERY_CONFIG
def test_same_content_same_bytes(tmp_path, options):
    trained(options, tmp_path / "a")
    trained(options, tmp_path / "b")
    names = os.listdir(tmp_path / "a")
    assert sorted(names) == ["adapter_config.json", "adapter_model.safetensors", "lorabook.json"]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_order_of_target_modules_changes_no_byte(tmp_path):
    for name, targets in (("a", ["value", "query"]), ("b", ["query", "value"])):
        trained({"r": 2, "target_modules": targets}, tmp_path / name)
    assert (tmp_path / "a" / "adapter_config.json").read_bytes() == (
        tmp_path / "b" / "adapter_config.json"
    ).read_bytes()


def test_order_of_patterns_is_kept(tmp_path):
    """Where patterns overlap, the first one counts; sorting them would change ranks."""
    patterns = {"query": 3, r"layer\.1\..*\.query": 1}
    for name, pattern in (("a", patterns), ("b", dict(reversed(patterns.items())))):
        trained({"r": 2, "target_modules": ["query"], "rank_pattern": pattern}, tmp_path / name)
        model = base()
        read = load_adapter(tmp_path / name, model)
        assert list(read.rank_pattern.items()) == list(pattern.items())
        ranks = [adapter.r for adapter in adapters(model).values()]
        assert ranks == ([3, 3] if name == "a" else [3, 1])


LAYER = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("plain", {f"{LAYER}.lora_A.weight": (2, 6), f"{LAYER}.lora_B.weight": (6, 2)}),
        ("patterns", {f"{LAYER}.lora_A.weight": (2, 6), f"{LAYER.replace('0', '1')}.lora_A.weight": (1, 6)}),
        ("head", {"base_model.model.classifier.weight": (3, 6), "base_model.model.classifier.bias": (3,)}),
        ("two modules to save", {"base_model.model.bert.pooler.dense.weight": (6, 6)}),
        ("every bias", {f"{LAYER}.base_layer.bias": (6,), f"{LAYER.replace('query', 'key')}.bias": (6,)}),
        ("adapted biases", {"base_model.model.bert.pooler.dense.base_layer.bias": (6,)}),
    ],
)
def test_names_are_those_of_peft(tmp_path, name, tensors):
    trained(CONFIGS[name], tmp_path / "a")
    arrays, metadata = files.read_safetensors(tmp_path / "a" / "adapter_model.safetensors")
    assert metadata == {"format": "pt"}
    assert {n: arrays[n].shape for n in tensors} == tensors


def test_config_states_what_peft_defaults_differently(good):
    options = options_of(good)
    expected = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 8, "use_rslora": False}
    expected |= {"base_model_name_or_path": "tiny", "inference_mode": True, "use_dora": False, "fan_in_fan_out": False}
    expected |= {"rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": ["classifier"], "bias": "none"}
    expected |= {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    assert expected.items() <= options.items()
    assert list(options) == sorted(options)


def test_options_that_are_absent_have_pefts_defaults(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["query"]}))
    config = read_adapter_config(folder)
    assert (config.r, config.lora_alpha, config.use_rslora, config.bias) == (8, 8, False, "none")


def test_what_peft_writes_beside_is_information(folder):
    extra = {"peft_version": "0.21.0", "auto_mapping": {"a": 1}, "revision": "main", "megatron_core": "megatron.core"}
    off = {"use_dora": False, "exclude_modules": None, "loftq_config": {}, "layers_pattern": [], "eva_config": None}
    change(folder, **extra, **off, inference_mode=False, qalora_group_size=16, runtime_config={"x": 1})
    model = base()
    assert load_adapter(folder, model).r == 2
    assert len(adapters(model)) == 4


def test_a_module_to_save_that_the_model_lacks_is_passed_over(tmp_path):
    """For SEQ_CLS PEFT lists both names that a head may have."""
    model, _ = trained(CONFIGS["head"], tmp_path / "a")
    change(tmp_path / "a", modules_to_save=["classifier", "score"])
    other = base()
    assert load_adapter(tmp_path / "a", other).modules_to_save == ("classifier",)
    assert same_bits(other(tiny_ids())[0], model(tiny_ids())[0])


def test_copies_that_peft_makes_of_a_saved_module(tmp_path):
    model, _ = trained(CONFIGS["every bias"], tmp_path / "a")
    copies = {
        "base_model.model.classifier.original_module.bias": np.zeros(3, "f4"),
        "base_model.model.classifier.modules_to_save.bias": np.zeros(3, "f4"),
    }
    change_tensors(tmp_path / "a", lambda arrays: arrays | copies)
    other = base()
    load_adapter(tmp_path / "a", other)
    assert same_bits(other(tiny_ids())[0], model(tiny_ids())[0])


def test_float64_model_takes_a_float32_adapter(folder):
    model, other = base(), base().to(np, "float64")
    load_adapter(folder, model)
    (folder / "lorabook.json").unlink()  # the sha256 is that of the float32 weights
    load_adapter(folder, other)
    assert {a.dtype for a in other.named_params().values()} == {np.dtype("f8")}
    assert_close(other(tiny_ids())[0], model(tiny_ids())[0], 1e-5)


def test_without_lorabook_json_any_fitting_base_is_taken(folder):
    (folder / "lorabook.json").unlink()
    other = tiny_bert(np.random.default_rng(1), dtype="float32")
    load_adapter(folder, other)
    assert len(adapters(other)) == 4
    assert peft_folder.about(folder)["labels"] is None


def test_a_merged_model_is_not_saved(tmp_path):
    """Its weights are no longer those of the base, whose sha256 goes into the folder."""
    model, _ = trained(CONFIGS["plain"], tmp_path / "a")
    merge(model)
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"self.query is merged; call unmerge\(\) before saving the adapter"):
        save_adapter(tmp_path / "b", model)
    assert not os.listdir(tmp_path / "b")


@pytest.mark.parametrize("options", [{"lora_alpha": 99}, {"r": 3}, {"use_rslora": True}, {"target_modules": ["query"]}])
def test_the_config_in_the_file_is_the_models(tmp_path, options):
    """Nobody passes one at saving, so none that is wrong: as many models, as many files."""
    model, config = trained(CONFIGS["plain"], tmp_path / "a")
    other, another = trained(CONFIGS["plain"] | options, tmp_path / "b")
    assert config_of(model) is config != another is config_of(other)
    for name, own in (("a", config), ("b", another)):
        written, said = options_of(tmp_path / name), own.as_dict()
        assert all(written[option] == said[option] for option in options)
        again = base()
        assert load_adapter(tmp_path / name, again) == config_of(again)
        save_adapter(tmp_path / f"{name}{name}", again, "tiny", "SEQ_CLS", LABELS)
        for file in os.listdir(tmp_path / name):
            assert (tmp_path / f"{name}{name}" / file).read_bytes() == (tmp_path / name / file).read_bytes()


@pytest.mark.parametrize("at", [0, -1])
def test_an_adapter_put_in_by_hand_is_not_saved(tmp_path, at):
    """No config says what it is, or another one than that of the others."""
    model, _ = trained(CONFIGS["plain"], tmp_path / "a")
    path = list(adapters(model))[at]
    layers, (parent, _, name) = dict(model.named_layers()), path.rpartition(".")
    layers[parent].children[name] = by_hand = LoRALinear(layers[path].base_layer, r=3)
    with pytest.raises(InputError, match=rf"{path} was put in by hand"):
        save_adapter(tmp_path / "b", model)
    by_hand.config = LoRAConfig(r=3)
    with pytest.raises(InputError, match="has another config than"):
        save_adapter(tmp_path / "b", model)
    unload(model)
    with pytest.raises(InputError, match="the model has no adapters; put them in with `inject`"):
        save_adapter(tmp_path / "b", model)
    assert not (tmp_path / "b").exists()


def test_what_trains_beside_the_adapter_is_not_dropped(tmp_path):
    model, _ = trained(CONFIGS["plain"], tmp_path / "a")
    model.set_trainable([*model.trainable_params(), "bert.pooler.dense.weight"])
    with pytest.raises(InputError, match=r"bert.pooler.dense.weight trains, but is in no adapter; .*modules_to_save"):
        save_adapter(tmp_path / "b", model)


def test_what_the_adapter_is_gets_saved_whatever_trains(tmp_path):
    trained(CONFIGS["plain"], tmp_path / "a")
    model = base()
    load_adapter(tmp_path / "a", model)
    assert not model.trainable_params()
    save_adapter(tmp_path / "b", model, "tiny", "SEQ_CLS", LABELS)
    assert all(
        (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in os.listdir(tmp_path / "a")
    )


def test_the_folder_is_created_with_its_parents(tmp_path):
    model, _ = trained(CONFIGS["plain"], tmp_path / "a")
    save_adapter(tmp_path / "b" / "c" / "d", model)
    assert load_adapter(tmp_path / "b" / "c" / "d", base()).r == 2


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_save_leaves_the_former_adapter(folder, monkeypatch, failing):
    model, config = base(), LoRAConfig(**CONFIGS["head"])
    inject(model, config)
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left on device"):
        save_adapter(folder, model)
    monkeypatch.undo()
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    save_adapter(folder, model)
    assert load_adapter(folder, base()).modules_to_save == ("classifier",)


# ---- refusals: the option or tensor is named, the model is untouched -------------------------------------------------


@pytest.mark.parametrize("kind", ["ADALORA", "OFT", "lora", "", None, 3, ["LORA"]])
def test_another_kind_of_adapter(folder, kind):
    change(folder, peft_type=kind)
    assert_refused(folder, f"peft_type is {kind!r}; only 'LORA'", "adapter_config.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_bdlora", True),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("use_dora", 0),
        ("use_dora", 0.0),
        ("use_dora", ""),
        ("target_parameters", ["experts.weight"]),
        ("trainable_token_indices", [1, 2]),
        ("use_qalora", True),
        ("alora_invocation_tokens", [5]),
        ("layer_replication", [[0, 2]]),
        ("megatron_config", {"a": 1}),
        ("loftq_config", {"loftq_bits": 4}),
        ("ensure_weight_tying", True),
        ("an_option_of_the_future", "on"),
        ("an_option_of_the_future", 1),
    ],
)
def test_an_option_that_is_on_but_not_implemented(folder, name, value):
    change(folder, **{name: value})
    assert_refused(folder, f"option {name}={value!r} is not implemented")


@pytest.mark.parametrize("init", ["pissa_niter_4", "PiSSA_niter_16", "corda", "lora_ga"])
def test_an_initialisation_that_changes_the_base(folder, init):
    change(folder, init_lora_weights=init, corda_config={"corda_method": "ipm"})
    assert_refused(folder, f"init_lora_weights={init!r} changed the base weights", "convert the adapter to plain LoRA")


def test_an_initialisation_over_quantised_weights(folder):
    change(folder, init_lora_weights="loftq", loftq_config={"loftq_bits": 4})
    assert_refused(folder, "init_lora_weights='loftq' was trained over quantised base weights", "merge it in PEFT")


@pytest.mark.parametrize("init", ["of_the_future", "", None, 2, [], {"a": 1}])
def test_an_initialisation_that_is_unknown(folder, init):
    change(folder, init_lora_weights=init)
    assert_refused(folder, f"init_lora_weights={init!r} is unknown here and may have changed the base weights")


@pytest.mark.parametrize("init", ["eva", "orthogonal", "mica", "MiCA"])
def test_an_initialisation_that_leaves_the_base_alone(folder, init):
    """What was trained from there is plain LoRA."""
    want = base()
    load_adapter(folder, want)
    change(folder, init_lora_weights=init, eva_config={"rho": 2.0} if init == "eva" else None)
    model = base()
    assert load_adapter(folder, model).init_lora_weights == (True if init == "eva" else init.lower())
    assert same_bits(model(tiny_ids())[0], want(tiny_ids())[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r must be a positive integer; got 0"),
        ({"r": "2"}, "r must be a positive integer; got '2'"),
        ({"r": True}, "r must be a positive integer; got True"),
        ({"r": 2.0}, "r must be a positive integer; got 2.0"),
        ({"lora_alpha": "8"}, "lora_alpha must be a finite number; got '8'"),
        ({"lora_alpha": math.inf}, "adapter_config.json is not JSON: no finite number: 'Infinity'"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number; got None"),
        ({"r": None}, "r must be a positive integer; got None"),
        ({"bias": None}, "bias must be none, all or lora_only; got None"),
        (
            {"layers_to_transform": False},
            "layers_to_transform must be the number of a block, or a list of them; got False",
        ),
        ({"layers_to_transform": "0"}, "layers_to_transform must be the number of a block"),
        (
            {"layers_to_transform": 7},
            "target_modules=('query', 'value') within layers_to_transform=7 matches no linear",
        ),
        ({"layers_pattern": "layer"}, "layers_pattern=('layer',) needs layers_to_transform"),
        ({"layers_to_transform": 0, "target_modules": ".*query"}, "layers_to_transform limits a list of names"),
        ({"exclude_modules": 0}, "exclude_modules must be a list of names; got 0"),
        ({"exclude_modules": ["query", "value"]}, "leaves none of 4 layers"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a finite number"),
        ({"lora_dropout": 1}, "lora_dropout must be a number p with 0 <= p < 1; got 1"),
        ({"lora_dropout": "0.1"}, "lora_dropout"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false; got 'yes'"),
        ({"use_rslora": 1}, "use_rslora must be true or false; got 1"),
        ({"bias": "some"}, "bias must be none, all or lora_only; got 'some'"),
        ({"rank_pattern": [["query", 2]]}, "rank_pattern must be a dictionary"),
        ({"rank_pattern": {"query": 0}}, "r must be a positive integer; got 0"),
        ({"rank_pattern": {"(query": 2}}, "'(query' is not a regular expression"),
        ({"rank_pattern": {"(?i)query": 2}}, "'(?i)query' is not a regular expression"),
        ({"rank_pattern": {"query": 1}}, "has shape (2, 6), expected (1, 6)"),
        ({"alpha_pattern": 3}, "alpha_pattern must be a dictionary"),
        ({"alpha_pattern": {"query": None}}, "lora_alpha must be a finite number; got None"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"target_modules": 3}, "target_modules must be"),
        ({"target_modules": []}, "target_modules=() matches no linear layer"),
        ({"target_modules": ["query", 3]}, "target_modules must be"),
        ({"target_modules": ["querry"]}, "target module 'querry' matches no linear layer; closest: query"),
        ({"target_modules": "query"}, "target_modules='query' matches no linear layer"),
        ({"target_modules": "("}, "'(' is not a regular expression"),
        ({"target_modules": "a{99999999999}"}, "is not a regular expression"),
        ({"modules_to_save": "classifier"}, "modules_to_save must be a list of names; got 'classifier'"),
        ({"modules_to_save": 5}, "modules_to_save must be a list of names; got 5"),
        ({"modules_to_save": [5]}, "modules_to_save must be a list of names; got [5]"),
        ({"r": 36}, "has shape (2, 6), expected (36, 6)"),
        (
            {"r": 10**400},
            "adapter_config.json does not fit the model: r must be at most 36, the number of weights of "
            "bert.encoder.layer.0.attention.self.query, 6x6; got 1000000",
        ),
    ],
    ids=lambda v: str(v)[:40],
)
def test_bad_values(folder, options, message):
    change(folder, **options)
    assert_refused(folder, message, kind=InputError)


def test_missing_tensors_are_named(folder):
    change_tensors(folder, lambda arrays: {n: a for n, a in arrays.items() if n != f"{LAYER}.lora_B.weight"})
    assert_refused(folder, f"missing {LAYER}.lora_B.weight", "adapter_model.safetensors does not fit the model")


def test_extra_tensors_are_named(folder):
    change_tensors(folder, lambda arrays: arrays | {f"{LAYER}.lora_magnitude_vector": np.ones(6, "f4")})
    assert_refused(folder, f"unexpected {LAYER}.lora_magnitude_vector")


def test_misshapen_tensors_are_named(folder):
    change_tensors(folder, lambda arrays: arrays | {f"{LAYER}.lora_A.weight": np.ones((6, 2), "f4")})
    assert_refused(folder, f"{LAYER}.lora_A.weight has shape (6, 2), expected (2, 6)")


def test_of_many_wrong_tensors_five_are_named(folder):
    change_tensors(folder, lambda arrays: {"a": np.ones(1, "f4")})
    assert_refused(folder, "missing base_model.model.bert", "(and 6 more)")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_with_a_number_that_is_none(folder, value):
    bad = np.ones((2, 6), "f4")
    bad[1, 2] = value
    change_tensors(folder, lambda arrays: arrays | {f"{LAYER}.lora_A.weight": bad})
    assert_refused(folder, f"tensor {LAYER}.lora_A.weight", "NaN or infinite")


@pytest.mark.parametrize("bad", [np.full((2, 6), 1e39), np.ones((2, 6), "i4")])
def test_a_tensor_that_the_model_cannot_hold(folder, bad):
    """What float32 makes infinite, and what is no floating-point number."""
    change_tensors(folder, lambda arrays: arrays | {f"{LAYER}.lora_A.weight": bad})
    assert_refused(folder, f"{LAYER}.lora_A.weight holds no numbers that float32 can hold")


def test_a_scaling_that_the_model_cannot_hold(folder):
    change(folder, lora_alpha=1e300)
    assert_refused(folder, "the scaling 5e+299 of ", "is too large for float32")


def test_a_rank_that_is_not_in_the_file(folder):
    change(folder, r=3)
    assert_refused(folder, "has shape (2, 6), expected (3, 6)")


def test_a_rank_above_the_layers_smaller_side(folder, capsys, rng):
    """PEFT saves it, and opens it."""
    change(folder, r=7, target_modules=["0.attention.self.query"])
    shapes = {f"{LAYER}.lora_A.weight": (7, 6), f"{LAYER}.lora_B.weight": (6, 7)}
    new = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    change_tensors(folder, lambda old: {n: a for n, a in old.items() if "lora" not in n} | new)
    (folder / "lorabook.json").unlink()
    model = base()
    load_adapter(folder, model)
    (layer,) = adapters(model).values()
    assert_close(layer.delta_weight(), 8 / 7 * new[f"{LAYER}.lora_B.weight"] @ new[f"{LAYER}.lora_A.weight"], 1e-6)
    path = LAYER.removeprefix("base_model.model.")
    note = f"note: r = 7 is above the largest rank of {path}, 6x6: what is above 6 adds nothing\n"
    assert capsys.readouterr().err == note


@pytest.mark.parametrize("name", ["bert.pooler.dense.bias", "bert.embeddings.word_embeddings.weight"])
def test_other_base_weights(folder, name):
    model = base()
    model.named_params()[name][0] += 1
    assert_refused(folder, "trained on other base weights", "sha256", model=model)


def test_what_was_trained_is_no_base_weight(tmp_path):
    """A saved head belongs to the adapter: a model whose head started elsewhere takes it."""
    model, _ = trained(CONFIGS["head"], tmp_path / "a")
    other = base()
    other.named_params()["classifier.weight"][...] = 7
    load_adapter(tmp_path / "a", other)
    assert same_bits(other(tiny_ids())[0], model(tiny_ids())[0])


@pytest.mark.parametrize("promised", [None, 3, "", "0" * 63, "X" * 64, ["x"]])
def test_a_promised_sha256_that_is_none(folder, promised):
    (folder / "lorabook.json").write_text(json.dumps({"base_sha256": promised}))
    assert_refused(folder, "lorabook.json: base_sha256 must be 64 hexadecimal digits", f"got {promised!r}")


def test_another_sha256(folder):
    (folder / "lorabook.json").write_text(json.dumps({"base_sha256": "0" * 64}))
    assert_refused(folder, "trained on other base weights")


# ---- what the folder says beside -------------------------------------------------------------------------------------


def save_over(folder, base_model, **options):
    model = base()
    config = LoRAConfig(**CONFIGS["plain"])
    inject(model, config)
    save_adapter(folder, model, base_model, "SEQ_CLS", LABELS, **options)
    return model


@pytest.mark.parametrize("name", ["minilm", "sentence-transformers/all-MiniLM-L6-v2"])
def test_a_known_base_model_has_its_public_name_in_peft(tmp_path, name):
    model = save_over(tmp_path, name, max_length=96)
    assert options_of(tmp_path)["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    under = {name: array for name, array in base_params(model).items() if not name.startswith("classifier.")}
    told = {"base_sha256": files.fingerprint(under), "base_model": "minilm", "labels": LABELS, "max_length": 96}
    told |= {"training_texts": None, "chats": None, "base_dtype": None}
    assert peft_folder.about(tmp_path) == json.loads((tmp_path / "lorabook.json").read_text()) == told


def test_a_folder_as_base_model_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    save_over(tmp_path, "base")
    assert options_of(tmp_path)["base_model_name_or_path"] == str(tmp_path / "base")
    told = peft_folder.about(tmp_path)
    assert (told["base_model"], told["max_length"]) == (str(tmp_path / "base"), None)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the names of files are text")
def test_a_base_model_in_a_folder_whose_name_is_no_text(tmp_path):
    base = tmp_path / os.fsdecode(b"caf\xe9")
    base.mkdir()
    save_over(tmp_path / "a", base)
    assert options_of(tmp_path / "a")["base_model_name_or_path"] is None
    assert peft_folder.about(tmp_path / "a")["base_model"] is None


def test_a_folder_that_peft_wrote_knows_its_base_model_only(folder):
    (folder / "lorabook.json").unlink()
    change(folder, base_model_name_or_path="sentence-transformers/all-MiniLM-L6-v2")
    nothing = dict.fromkeys(["base_sha256", "labels", "max_length", "training_texts", "chats", "base_dtype"])
    assert peft_folder.about(folder) == {"base_model": "minilm"} | nothing
    change(folder, base_model_name_or_path=None)
    assert peft_folder.about(folder) == {"base_model": None} | nothing


@pytest.mark.parametrize(
    ("name", "value"),
    [("base_model", 3), ("max_length", 0), ("max_length", True), ("max_length", "128"), ("training_texts", "0123")],
)
def test_lorabook_json_of_another_kind(folder, name, value):
    (folder / "lorabook.json").write_text(json.dumps({name: value}))
    with pytest.raises(FormatError, match=rf"lorabook.json: {name} must be .*; got {value!r}"):
        peft_folder.about(folder)


@pytest.mark.parametrize("labels", [3, "bad", [1, 2], {"bad": 0}, [None]])
def test_labels_that_are_none(folder, labels):
    (folder / "lorabook.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(FormatError, match="labels must be a list of names"):
        peft_folder.about(folder)


def test_a_model_that_has_adapters_already(folder):
    model = base()
    load_adapter(folder, model)
    assert_refused(folder, kind=InputError, model=model)


def test_a_pickle_is_not_opened(folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    assert_refused(folder, "adapter_model.bin is a pickle", "safe_serialization=True", kind=InputError)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert_refused(folder, name, "No such file", kind=InputError)


@pytest.mark.parametrize("name", ["adapter_config.json", "lorabook.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"a"', '{"a": 1', '{"a":' * 9999, "\xff", "{} {}"])
def test_malformed_json(folder, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    assert_refused(folder, name)


def test_every_truncation_of_the_tensors(folder):
    path = folder / "adapter_model.safetensors"
    data, model = path.read_bytes(), base()
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        assert_refused(folder, "adapter_model.safetensors", model=model)


# ---- anything at all -------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
MODEL = base()
OPTIONS = [field.name for field in dataclasses.fields(LoRAConfig)]


def assert_only_refused(folder):
    with pytest.raises(InputError):
        load_adapter(folder, MODEL)
    assert not adapters(MODEL)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_as_tensors(good, data):
    copy = _copy(good)
    (copy / "adapter_model.safetensors").write_bytes(data)
    assert_only_refused(copy)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | VALUES.map(lambda v: json.dumps(v).encode()))
def test_arbitrary_bytes_and_json_as_config(good, data):
    copy = _copy(good)
    (copy / "adapter_config.json").write_bytes(data)
    assert_only_refused(copy)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([*OPTIONS, "peft_type", "use_dora", "exclude_modules"]), VALUES)
def test_an_option_of_arbitrary_value(good, name, value):
    copy = _copy(good)
    options = options_of(good) | {name: value}
    (copy / "adapter_config.json").write_text(json.dumps(options))
    try:
        config = read_adapter_config(copy)
    except InputError as error:
        assert "adapter_config.json" in str(error)
    else:
        assert LoRAConfig(**config.as_dict()) == config


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["base_sha256", "base_model", "labels", "max_length", "x"]), VALUES, max_size=4))
def test_arbitrary_values_beside(good, content):
    copy = _copy(good)
    (copy / "lorabook.json").write_text(json.dumps({"base_sha256": "0" * 64} | content))
    assert_only_refused(copy)
    try:
        told = peft_folder.about(copy)
    except FormatError as error:
        assert any(name in str(error) for name in content) or "is not JSON" in str(error)
    else:
        assert all(told[name] == content[name] for name in content.keys() & told.keys() if content[name] is not None)


def _copy(good):
    """One scratch folder, refilled."""
    copy = good.parent / "scratch"
    shutil.copytree(good, copy, dirs_exist_ok=True)
    return copy


class Untold:
    """What `load_model` says of a model, as far as `inject` and `save_adapter` read it."""

    base, labels, max_length = None, LABELS, 9

    def __init__(self, trained):
        self.trained = trained


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("start", ["trained", "random", "adapted", "saved"])
def test_a_random_head_that_does_not_train_is_told_and_saved(tmp_path, rng, kind, start):
    """All of it: what the checkpoint does not hold is another one in the next model."""
    model = made(rng, kind, dtype="float32")
    model.about = Untold(start == "trained")
    names = {"bert": ("query", "value"), "distilbert": ("q_lin", "v_lin"), "roberta": ("query", "value")}[kind]
    options = {"modules_to_save": model.head_modules} if start == "saved" else {}
    outside = ["classifier.out_proj" if kind == "roberta" else model.head_modules[0]] if start == "adapted" else []
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        inject(model, LoRAConfig(r=2, target_modules=[*names, *outside], init_lora_weights=False, **options))
    line = f"{model.head_modules[0]} starts at random and does not train"
    assert (line in told.getvalue()) is (start == "random")
    if start == "adapted":
        return  # PEFT saves a head in full, by the end of its name: refused, which is tested above
    save_adapter(tmp_path / "a", model)
    again = made(np.random.default_rng(9), kind, dtype="float32")
    own = again.named_params()
    for name, array in base_params(model).items():
        if not name.startswith(tuple(f"{module}." for module in model.head_modules)):
            own[name][...] = array
    load_adapter(tmp_path / "a", again)
    assert_close(again(tiny_ids())[0], model(tiny_ids())[0], 1e-6)
