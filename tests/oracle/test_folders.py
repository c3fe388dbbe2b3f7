"""Hugging Face folders that transformers wrote, read; and what lorabook writes, opened by transformers."""

import json

import numpy as np
import pytest
from checks import tiny_ids

from lorabook import LoRAConfig, cli, inject
from lorabook.adapters import save_adapter
from lorabook.data import encode, load_tokenizer
from lorabook.models import BertForSentenceEmbedding, BertForSequenceClassification, save_pretrained

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Film", "film", "Good", "good", "a", "##s", "."]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "initializer_range": 0.4,
    "num_labels": 3,
}


@pytest.fixture
def made(torch, transformers):
    """made(class name) -> a tiny random model of transformers."""

    def make(name="BertForSequenceClassification"):
        torch.manual_seed(0)
        return getattr(transformers, name)(transformers.BertConfig(**SIZES)).eval()

    return make


@pytest.fixture
def batch(torch):
    return {name: torch.tensor(array) for name, array in tiny_ids().items()}


def close(got, want, tolerance=1e-5):
    want = want.detach().float().numpy()
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def hidden(folder):
    return BertForSentenceEmbedding.from_pretrained(folder).children["bert"](tiny_ids())[0]


def test_a_pretrained_checkpoint_under_the_old_names(made, batch, tmp_path, capsys):
    """As bert-base-uncased has them: LayerNorm.gamma and beta, and the heads of pretraining."""
    from safetensors.torch import save_file

    theirs = made("BertForPreTraining")
    for name, tensor in theirs.named_parameters():
        if "LayerNorm" in name:
            tensor.data.uniform_(0.5, 1.5) if name.endswith("weight") else tensor.data.normal_()
    theirs.config.save_pretrained(tmp_path)
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {}
    for name, tensor in theirs.state_dict().items():
        for today, then in names.items():
            name = name.replace(today, then)
        old[name] = tensor.clone().contiguous()
    assert any(name.startswith("cls.predictions.") for name in old)
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    close(hidden(tmp_path), theirs.bert(**batch).last_hidden_state)
    assert "heads for other tasks are passed over (cls)" in capsys.readouterr().err


def test_parts_written_by_transformers(made, batch, tmp_path):
    theirs = made()
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    ours = BertForSequenceClassification.from_pretrained(tmp_path, labels=3)
    close(ours(tiny_ids())[0], theirs(**batch).logits)


def test_parts_written_for_transformers(transformers, made, batch, tmp_path):
    made().save_pretrained(tmp_path / "a")
    ours = BertForSequenceClassification.from_pretrained(tmp_path / "a", labels=3)
    (tmp_path / "b").mkdir()
    save_pretrained(tmp_path / "b", ours, tmp_path / "a", ["x", "y", "z"], max_shard_size=8000)
    assert len(list((tmp_path / "b").glob("model-*-of-*.safetensors"))) > 2
    network = transformers.BertForSequenceClassification
    theirs, report = network.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    close(ours(tiny_ids())[0], theirs.eval()(**batch).logits)


@pytest.fixture
def merged(torch, transformers, made, tmp_path):
    """merged(dtype) -> our model with an adapter, the base's folder, that of the merged model: a base with case."""

    def merge(dtype):
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        made().to(getattr(torch, dtype)).save_pretrained(base)
        (base / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        tokenizer = transformers.BertTokenizerFast(str(base / "vocab.txt"), do_lower_case=False, model_max_length=20)
        tokenizer.save_pretrained(base)
        ours = BertForSequenceClassification.from_pretrained(base, labels=3)
        config = LoRAConfig(r=4, init_lora_weights=False, modules_to_save=["classifier"])
        inject(ours, config, 0)
        adapter.mkdir()
        save_adapter(adapter, ours, task_type="SEQ_CLS", labels=["x", "y", "z"])
        assert cli.main(["merge", str(base), "--adapter", str(adapter), "--out", str(tmp_path / "new" / "merged")]) == 0
        return ours, base, tmp_path / "new" / "merged"

    return merge


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_merged_model_computes_in_what_was_written(torch, transformers, merged, batch, dtype):
    ours, base, folder = merged(dtype)
    assert json.loads((base / "config.json").read_text())["dtype"] == dtype
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.dtype == torch.float32 and theirs.config.id2label == {0: "x", 1: "y", 2: "z"}
    close(ours(tiny_ids())[0], theirs(**batch).logits)


def test_a_merged_model_keeps_case_and_length(transformers, merged):
    _, base, folder = merged("float32")
    before, after = (transformers.AutoTokenizer.from_pretrained(path) for path in (base, folder))
    text = "a Good film. Films"
    want = before(text)["input_ids"]
    assert WORDS.index("Good") in want and WORDS.index("good") not in want
    assert after(text)["input_ids"] == want == encode(load_tokenizer(folder), [text])[0].ids
    assert after.model_max_length == before.model_max_length == 20
