"""The encoder's experiments, on a tiny encoder and a small file in the place of MiniLM and the movie reviews."""

import json

import numpy as np
import pytest
from checks import tiny_bert, write_bert

from lorabook import io, reviews
from lorabook.jobs import make_job
from lorabook.layers import Linear
from lorabook.models.bert import BertForSequenceClassification


@pytest.fixture
def job(tmp_path, monkeypatch):
    network = tiny_bert(np.random.default_rng(0), dtype="float32")
    model = write_bert(tmp_path / "model", network, tensors={"classifier.weight": None, "classifier.bias": None})
    lines = [f"{('good fine', 'bad poor')[i % 2]},{'np'[i % 2]}" for i in range(48)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *lines]))

    def job(*_, seed):
        return make_job(str(model), str(tmp_path / "data.csv"), 4, seed, 9)

    monkeypatch.setattr(reviews, "make_job", job)


@pytest.mark.parametrize("settings", [reviews.recipe, reviews.which_matrices, reviews.which_rank])
def test_every_setting_has_a_folder_of_its_own(settings):
    names = [setting.name for setting in settings()]
    assert len(set(names)) == len(names)


def test_which_matrices_compares_equal_numbers_of_parameters(rng):
    d = 384
    config = {name: d for name in ("hidden_size", "intermediate_size")} | {"num_hidden_layers": 1, "vocab_size": 9}
    config |= {"num_attention_heads": 12, "max_position_embeddings": 8, "type_vocab_size": 2}
    model = BertForSequenceClassification(config, labels=2)
    linears = [path for path, layer in model.named_layers() if isinstance(layer, Linear)]
    counts = set()
    for setting in reviews.which_matrices():
        adapted = [path for path in linears if any(path.endswith(f".{target}") for target in setting.targets)]
        counts.add(len(adapted) * setting.r * 2 * d)
    assert counts == {16 * d}


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_a_run_leaves_its_result_and_is_not_repeated(job, tmp_path, monkeypatch, method):
    setting = reviews.Setting(method, *((("query", "value"), 2) if method == "lora" else ()), epochs=2)
    row = reviews.run(setting, tmp_path)
    folder = tmp_path / setting.name
    assert row == json.loads((folder / "result.json").read_text())
    assert {"lora": 2 * 2 * 2 * 2 * 6 + 14, "head": 14}.get(method, row["params"]) == row["params"]
    assert (folder / "adapter_config.json").exists() == (method == "lora")
    if method == "full":
        update, _ = io.read_safetensors(folder / "update.safetensors")
        assert len(update) == 2 * 6
        assert all(np.abs(delta).max() > 0 for delta in update.values())
    monkeypatch.setattr(reviews, "train", None)
    assert reviews.run_all([setting], tmp_path) == [row]
