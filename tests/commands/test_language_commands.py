"""train, evaluate and generate on a language model; and those commands that are not for one."""

import csv
import json

import pytest
from checks import same_bits
from tiny_decoders import decoder_folder, gguf_file, poems

import lorabook as lb
from lorabook.files import read_weights

FAST = ["--lr", "0.02", "--target-modules", "all-linear", "--workers", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    gguf_file(folder / "tiny.gguf")
    poems(folder / "poems.csv")
    return folder


@pytest.fixture
def train(home, tmp_path, run_json):
    """A run on the poems: (its folder, what it said)."""

    def call(*options, name="a", data="poems.csv"):
        out = tmp_path / name
        return out, run_json("train", home / "tiny.gguf", home / data, "--out", out, *FAST, *options)

    return call


def adapter_weights(folder):
    return read_weights(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("base", ["float32", "q4", "nf4"])
def test_a_run_speaks_of_loss_and_perplexity(train, run, base):
    out, found = train("--epochs", 40, "--base-dtype", base)
    assert found["test_loss"]["after"] < found["test_loss"]["before"]
    assert found["test_perplexity"]["after"] < found["test_perplexity"]["before"] and "test_accuracy" not in found
    everything, lora = found["memory"]
    assert (
        everything["trained"] == 78_336
        and lora["trained"] == 14_848
        and (lora["weights"] < 4 * 78_336) is (base != "float32")
    )
    code, text, _ = run("generate", out, "--prompt", "Roses are", "Snow is", "--max-new-tokens", 10)
    assert (code, text) == (0, "> Roses are\n red.\n\n> Snow is\n white.\n")


def test_what_it_prints(home, tmp_path, run):
    code, text, err = run(
        *("train", home / "tiny.gguf", home / "poems.csv", "--out", tmp_path / "a", "--epochs", 2),
        *(*FAST, "--eval-every", 1, "--keep", "best", "--eval-data", home / "poems.csv"),
    )
    assert code == 0, err
    lines = text.splitlines()
    assert lines[0].startswith("test loss        ") and lines[0].endswith(" nats")
    assert lines[1].startswith("test perplexity  ") and " -> " in lines[1]
    assert "kept the weights after step 2 of 2" in text and "perplexity" in lines[4] and "accuracy" not in text
    with open(tmp_path / "a" / "history.csv") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert [*rows[0]][-2:] == ["eval_loss", "eval_perplexity"] and float(rows[1]["eval_perplexity"]) > 1


def test_a_run_that_stops_goes_on_to_the_same_bits(train, home, tmp_path, run, monkeypatch):
    options = ("--epochs", 6, "--base-dtype", "q4", "--recompute", "--lora-dropout", 0.1, "--checkpoint-every", 2)
    whole, _ = train(*options)
    from lorabook.training import loop

    class Killed(BaseException):
        pass

    def stops(self, step, factor, take=loop.Steps.take):
        if step == 4:
            raise Killed
        return take(self, step, factor)

    argv = ["train", home / "tiny.gguf", home / "poems.csv", "--out", tmp_path / "b", *FAST, *options]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Steps, "take", stops)
        run(*argv)
    assert not (tmp_path / "b" / "adapter_config.json").exists()
    code, _, err = run(*argv, "--resume")
    assert code == 0, err
    ours, theirs = adapter_weights(whole), adapter_weights(tmp_path / "b")
    assert ours.keys() == theirs.keys() and all(same_bits(a, theirs[name]) for name, a in ours.items())


def test_recompute_changes_memory_alone_and_packing_rounding_alone(train):
    plain, less, apart = (
        adapter_weights(train("--epochs", 2, *options, name=str(i))[0])
        for i, options in enumerate([(), ("--recompute",), ("--no-pack",)])
    )
    assert all(same_bits(array, less[name]) for name, array in plain.items())
    assert plain.keys() == apart.keys()


def test_an_adapter_is_prompted_as_it_was_trained(train, run, run_json):
    plain, _ = train("--epochs", 1)
    chats, _ = train("--epochs", 40, "--as-chat", name="chats")
    assert [lb.load_model(folder).about.chats for folder in (plain, chats)] == [False, True]
    ask = ("--prompt", "Roses are", "--max-new-tokens", 8)

    def answer(*argv):
        return run_json("generate", *argv, *ask)["answers"][0]["answer"]

    assert answer(plain) == answer(plain, "--raw") != answer(plain, "--chat")
    assert answer(chats) == answer(chats, "--chat") == " red." and answer(chats, "--raw") != " red."
    code, _, err = run("generate", chats, "--raw", "--chat", *ask)
    assert code == 2 and "not allowed with" in err


def test_evaluate_measures_as_the_adapter_was_trained(train, home, run_json, run):
    out, found = train("--epochs", 20, "--as-chat")
    told = run_json("evaluate", out, home / "poems.csv", "--split", "test")
    assert told["loss"] == pytest.approx(found["test_loss"]["after"], rel=1e-4) and told["tokens"] > 5
    other = run_json("evaluate", out, home / "poems.csv", "--split", "test", "--no-as-chat")
    assert other["loss"] > told["loss"]
    assert run_json("evaluate", out, home / "poems.csv")["tokens"] > told["tokens"]
    code, text, _ = run("evaluate", out, home / "poems.csv", "--split", "test")
    assert code == 0 and f"{told['tokens']} tokens of" in text and f"perplexity {told['perplexity']:.4g}" in text


def test_an_adapter_is_trained_further(train, home, tmp_path, run_json, assert_refused):
    first, found = train("--epochs", 10, "--as-chat")
    argv = ["train", home / "tiny.gguf", home / "poems.csv", "--adapter", first, "--lr", 0.01, "--workers", 1]
    again = run_json(*argv, "--out", tmp_path / "b", "--epochs", 2)
    assert again["test_loss"]["before"] == pytest.approx(found["test_loss"]["after"], rel=1e-4)
    assert json.loads((tmp_path / "b" / "lorabook.json").read_text())["chats"] is True
    assert_refused("as --adapter", "train", first, home / "poems.csv", "--out", tmp_path / "c")


def test_what_a_base_model_cannot_learn(tmp_path, home, assert_refused):
    folder = decoder_folder(tmp_path / "base", template=None)
    argv = ["train", folder, home / "poems.csv", "--out", tmp_path / "a"]
    assert_refused("has no chat template", *argv, "--as-chat")
    assert_refused("no matrix in blocks of 4 or 8 bits", *argv, "--base-dtype", "q4")
    assert_refused("has no chat template", "generate", folder, "--prompt", "a", "--chat")
    assert_refused("128 at most", "generate", folder, "--prompt", "a" * 100, "--max-new-tokens", 40)
    assert not (tmp_path / "a").exists()


def test_commands_that_are_for_other_models(home, tmp_path, assert_refused):
    gguf = home / "tiny.gguf"
    assert_refused("which continues texts: lorabook generate", "predict", gguf, "--text", "a")
    assert_refused(
        "is a language model", "sweep", "--model", gguf, "--data", home / "poems.csv", "--out", tmp_path / "s"
    )
    out = ["--out", tmp_path / "a"]
    for option in (["--base-dtype", "nf4"], ["--recompute"], ["--no-pack"], ["--as-chat"]):
        message = f"{option[0].replace('--no-', '--')} is for language models; mlp-digits is none"
        assert_refused(message, "train", "mlp-digits", "digits-rotated", *out, *option)


def test_the_matrices_of_a_file(home, tmp_path, run_json):
    found = run_json("spectrum", home / "tiny.gguf", "--layer", "self_attn.q_proj", "--out", tmp_path)
    assert {row["layer"] for row in found["layers"]} == {f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)}
    assert found["layers"][0]["shape"] == [64, 64]


def test_several_answers_as_json(home, run_json):
    found = run_json("generate", home / "tiny.gguf", "--prompt", "a", "b", "--max-new-tokens", 3, "--base-dtype", "q4")
    assert [row["prompt"] for row in found["answers"]] == ["a", "b"] and found["tokens"] == 6
    assert {row["end"] for row in found["answers"]} == {"length"}
