"""An output layer that is the embedding: one array through moving, copying, loading, saving, training and resuming."""

import copy
import json

import numpy as np
import pytest
from checks import assert_close, same_bits
from tiny_llamas import SIZES, batch_of, made

from lorabook import Batches, FormatError, LoRAConfig, files, inject, merge, unload, unmerge
from lorabook.layers import distinct, quantize
from lorabook.models import LlamaForCausalLM
from lorabook.training import AdamW, train

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KINDS = pytest.mark.parametrize("kind", ["tied", "qwen2"])


def is_one(model):
    params = model.named_params()
    return params[EMBED] is params[HEAD]


def tied(kind="tied", seed=0, dtype="float32", **options):
    return made(kind, np.random.default_rng(seed), dtype, **options)


@KINDS
@pytest.mark.parametrize("recompute", [False, True])
def test_it_stays_one(xp, kind, recompute):
    model = tied(kind, recompute=recompute)
    assert (
        is_one(model) and HEAD not in model.trainable_params() and not is_one(made("llama", np.random.default_rng(0)))
    )
    before = model.named_params()[EMBED].copy()
    assert is_one(model.to(xp, "float64")) and is_one(model.to(np, "float32"))
    assert same_bits(model.named_params()[HEAD], before)
    other = copy.deepcopy(model)
    assert is_one(other) and other.named_params()[EMBED] is not model.named_params()[EMBED]


def test_its_gradients_add():
    model, apart = tied(dtype="float64"), LlamaForCausalLM(tied().config | {"tie_word_embeddings": False})
    apart.to(np, "float64").load(model.named_params())
    batch = batch_of(np.random.default_rng(1))
    (loss, grads), (again, parts) = model.loss_and_grad(batch), apart.loss_and_grad(batch)
    assert loss == again and np.any(parts[EMBED]) and np.any(parts[HEAD])
    assert_close(grads[EMBED], parts[EMBED] + parts[HEAD], 1e-14)
    assert grads.keys() == model.trainable_params().keys() == parts.keys() - {HEAD}


@pytest.mark.parametrize("names", [(EMBED,), (HEAD,), (EMBED, HEAD)], ids=str)
def test_one_name_in_a_file_is_enough(tmp_path, names):
    model = tied()
    arrays = {n: a.copy() for n, a in model.named_params().items() if n not in (EMBED, HEAD) or n in names}
    files.write_safetensors(tmp_path / "model.safetensors", arrays)
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    other = LlamaForCausalLM.from_pretrained(tmp_path)
    assert is_one(other) and all(same_bits(a, model.named_params()[n]) for n, a in other.named_params().items())
    if len(names) == 1:
        files.write_safetensors(tmp_path / "model.safetensors", {n: a for n, a in arrays.items() if n not in names})
        with pytest.raises(FormatError, match="promises"):
            LlamaForCausalLM.from_pretrained(tmp_path)


def test_it_trains_once_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    batch = {"input_ids": rng.integers(0, SIZES["vocab_size"], (6, 5))}
    batch["labels"] = batch["input_ids"]
    whole, part, again = (tied() for _ in range(3))
    start, step = whole.named_params()[EMBED].copy(), AdamW.step

    def run_of(model, **more):
        return train(model, Batches(batch, 3), AdamW(0.02), epochs=4, seed=3, **more)

    want, place = run_of(whole), {"checkpoint": tmp_path / "c", "checkpoint_every": 2}

    def stopping(self, *args, **kwargs):
        if self.step_count == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AdamW, "step", stopping)
        run_of(part, **place)
    arrays, _ = files.read_checkpoint(tmp_path / "c")
    assert f"param:{EMBED}" in arrays and f"param:{HEAD}" not in arrays
    assert run_of(again, resume=True, **place) == want
    for model in (whole, again):
        assert is_one(model) and not np.array_equal(model.named_params()[EMBED], start)
    assert all(same_bits(array, whole.named_params()[name]) for name, array in again.named_params().items())


def test_under_adapters_and_in_four_bits():
    """Codes are made of neither: what the embedding shares stays as it is; a merged head has a weight of its own."""
    model, batch = tied(dtype="float64"), batch_of(np.random.default_rng(1))
    assert HEAD.removesuffix(".weight") not in quantize(model) and is_one(model)
    inject(model, LoRAConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False), 1)
    embedding, base = model.named_params()[EMBED], "lm_head.base_layer.weight"
    assert model.named_params()[base] is embedding and len(distinct(model.named_params())) < len(model.named_params())
    want = model.predict(batch)
    merge(model)
    assert model.named_params()[base] is not embedding
    assert_close(model.predict(batch), want, 1e-6)
    unmerge(model)
    assert model.named_params()[base] is embedding and same_bits(model.predict(batch), want)
    unload(model)
    assert is_one(model)
