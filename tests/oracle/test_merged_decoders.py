"""transformers opens merged folders, and PEFT the adapter on the base beneath: the same logits, the same tokens."""

import json

import numpy as np
import pytest
from gguf_llamas import adapter_folder, decoder_folder, tiny_gguf
from safetensors.numpy import load_file

from lorabook import load_model
from lorabook.tasks import find, write_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
]
IDS = np.random.default_rng(3).integers(0, 37, (2, 9))
TEXTS = ("ab a  b\n12 3", "<|im_start|>user\nHi<|im_end|>", "\u00e9\u4e2d", "")


def logits_of(torch, net):
    with torch.no_grad():
        return net.eval()(input_ids=torch.tensor(IDS)).logits.numpy()


def assert_near(got, want):
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def merged(tmp_path, base, adapter, dtype=None):
    model, source = load_model(base, adapter), find(base, adapter)
    want = model.answer({"input_ids": IDS})
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", model, source, dtype)
    return tmp_path / "out", want


@pytest.mark.parametrize("kind", ["llama", "tied", "mistral", "qwen2", "llama3"])
@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "down_proj"], ["lm_head", "v_proj"]], ids=["blocks", "head"])
def test_of_a_folder(torch, transformers, peft, tmp_path, rng, kind, targets):
    base = decoder_folder(tmp_path / "base", kind, rng)
    adapter = adapter_folder(tmp_path / "a", base, target_modules=targets)
    out, want = merged(tmp_path, base, adapter)
    net = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert_near(logits_of(torch, net), want)
    tied = kind in ("tied", "qwen2") and "lm_head" not in targets
    assert (net.lm_head.weight is net.model.embed_tokens.weight) == tied
    if "lm_head" not in targets or kind not in ("tied", "qwen2"):
        plain = transformers.AutoModelForCausalLM.from_pretrained(base)
        assert_near(logits_of(torch, peft.PeftModel.from_pretrained(plain, adapter)), want)


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "down_proj"], ["lm_head"]], ids=["blocks", "head"])
def test_of_a_gguf_base(torch, transformers, peft, tmp_path, rng, targets):
    """The tokenizer and the chat template too; PEFT has its base from a merge of nothing."""
    base = tiny_gguf(tmp_path / "base.gguf", rng)
    adapter = adapter_folder(tmp_path / "a", base, target_modules=targets)
    out, want = merged(tmp_path, base, adapter)
    net = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert_near(logits_of(torch, net), want)
    about, theirs = load_model(base).about, transformers.AutoTokenizer.from_pretrained(out)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == about.tokenizer.encode(text).ids
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    chat = [{"role": "user", "content": "a b"}]
    assert theirs.apply_chat_template(chat, tokenize=False) == about.template.text(chat)
    if "lm_head" not in targets:
        nothing = adapter_folder(tmp_path / "b", base, scale=0.0)
        (tmp_path / "plain").mkdir()
        plain, _ = merged(tmp_path / "plain", base, nothing)
        net = transformers.AutoModelForCausalLM.from_pretrained(plain)
        assert_near(logits_of(torch, peft.PeftModel.from_pretrained(net, adapter)), want)


def test_half_precision(torch, transformers, tmp_path, rng):
    base = tiny_gguf(tmp_path / "base.gguf", rng, "Q8_0")
    out, want = merged(tmp_path, base, adapter_folder(tmp_path / "a", base), "float16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "float16"
    assert {str(a.dtype) for a in load_file(out / "model.safetensors").values()} == {"float16"}
    net = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert np.abs(logits_of(torch, net) - want).max() < 0.02 * np.abs(want).max()
