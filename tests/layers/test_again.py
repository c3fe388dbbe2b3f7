"""Arrays that are taken out of caches and made again: the same bits, in less memory."""

import numpy as np
import pytest
from checks import same_bits
from tiny_llamas import SIZES

from lorabook import LoRAConfig, inject
from lorabook.layers import Again, within, without
from lorabook.models import LlamaForCausalLM, decoder_block


def test_an_array_goes_out_wherever_it_is_and_comes_back():
    x, other = np.ones(3), np.ones(3)
    cache = (x, (other, (x, None)), [x], "x")
    place, another = Again(), Again()
    bare = without(cache, x, place)
    assert bare[0] is place and bare[1][1][0] is place and bare[1][0] is other and bare[2][0] is x
    made = []
    whole = within(bare, place, lambda: made.append(1) or x)
    assert whole[0] is x and whole[1][1][0] is x and whole[1][0] is other and made == [1]
    assert without(x, x, place) is place and within(place, place, lambda: other) is other
    assert within((another, None), place, pytest.fail) == (another, None)


def arrays_in(cache):
    return [a for part in cache for a in arrays_in(part)] if isinstance(cache, tuple | list) else [cache]


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), ("down_proj",)])
def test_a_block_keeps_neither_norms_outputs_nor_the_gated_product_and_has_the_same_gradients(monkeypatch, targets):
    config = SIZES | {"model_type": "llama", "vocab_size": 23, "tie_word_embeddings": False}
    rng = np.random.default_rng(0)
    model = LlamaForCausalLM(config)
    for array in model.named_params().values():
        array[...] = rng.standard_normal(array.shape) / 4
    inject(model, LoRAConfig(r=2, init_lora_weights=False, target_modules=targets))
    ids = rng.integers(0, 23, (3, 7))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    sizes = []
    for take_out in (without, lambda cache, x, place: cache):
        monkeypatch.setattr(decoder_block, "without", take_out)
        _, cache = model.children["model"](batch)
        held = {id(a): a.nbytes for a in arrays_in(cache) if isinstance(a, np.ndarray)}
        sizes.append((sum(held.values()), *model.loss_and_grad(batch)))
    (less, loss, grads), (more, want, wanted) = sizes
    assert less < more
    assert loss == want and grads.keys() == wanted.keys() and all(same_bits(grads[n], wanted[n]) for n in grads)
