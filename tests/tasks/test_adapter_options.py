"""`lorabook train --method NAME`: every variant trains from the command line, and says what does not apply to it."""

import pytest

from lorabook import InputError
from lorabook.adapters import METHODS, read_adapter_config
from lorabook.tasks.adapter_options import OPTIONS, adapter_config

EXTRA = {"fourierft": ["--option", "n_frequency=200", "--option", "init_weights=true"]}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_digits(run_json, tmp_path, method):
    argv = ["train", "mlp-digits", "digits-rotated", "--out", tmp_path / "a", "--method", method, "--epochs", "20"]
    result = run_json(*argv, *EXTRA.get(method, []))
    assert read_adapter_config(tmp_path / "a").method == method
    assert result["test_accuracy"]["after"] > result["test_accuracy"]["before"] + 0.05


def test_names_that_differ_between_methods():
    assert adapter_config("loha", {"lora_alpha": 3, "r": 2}).alpha == 3
    assert adapter_config("hira", {"lora_dropout": 0.5}).hira_dropout == 0.5
    assert adapter_config("lora", {}).lora_alpha == OPTIONS["lora_alpha"]
    assert adapter_config("lokr", {}, ["decompose_both=true", "decompose_factor=4"]).decompose_factor == 4
    assert adapter_config("lokr", {}, ["init_weights=lycoris"]).init_weights == "lycoris"
    assert adapter_config("dora", {}, ["detach_norm=False"]).detach_norm is False


@pytest.mark.parametrize(
    ("method", "given", "more", "message"),
    [
        ("adalora", {}, [], "unknown method 'adalora'; expected one of lora, dora, "),
        ("ia3", {"r": 4}, [], "--r does not apply to the method ia3, whose options are feedforward_modules, init_ia3"),
        ("hira", {"use_rslora": True}, [], "--use-rslora does not apply to the method hira"),
        ("lora", {}, ["n_frequency=3"], "expected --option NAME=VALUE with a name of lora: r, .*; got 'n_frequency=3'"),
        ("lora", {}, ["r"], "expected --option NAME=VALUE"),
        ("lora", {}, ["target_modules=x"], "expected --option NAME=VALUE"),
    ],
)
def test_what_does_not_apply(method, given, more, message):
    with pytest.raises(InputError, match=message):
        adapter_config(method, given, more)


def test_an_adapter_of_another_method_is_not_trained_further(run, tmp_path):
    train = ["train", "mlp-digits", "digits-rotated", "--epochs", "1"]
    assert run(*train, "--out", tmp_path / "a", "--method", "loha")[0] == 0
    code, _, err = run(*train, "--out", tmp_path / "b", "--adapter", tmp_path / "a", "--method", "lora")
    assert code == 2 and "--method lora contradicts the adapter" in err and "which has loha" in err
    assert run(*train, "--out", tmp_path / "c", "--adapter", tmp_path / "a")[0] == 0
    assert read_adapter_config(tmp_path / "c").method == "loha"
    code, _, err = run(*train, "--out", tmp_path / "d", "--adapter", tmp_path / "a", "--option", "alpha=3")
    assert code == 2 and "--option is for a new adapter" in err
