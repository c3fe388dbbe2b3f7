"""The decoder's benches compute the same on both sides, and count the products that they need."""

import importlib.util

import numpy as np
import pytest

from lorabook import InputError
from lorabook.adapters import adapters
from lorabook.bench import SEVEN, Case, Gemm, case, decoder, ours, products
from lorabook.cli import main
from lorabook.layers import QuantizedLinear, Recompute

PEFT = importlib.util.find_spec("peft") is not None and importlib.util.find_spec("torch") is not None
TINY = decoder.SMOLLM2 | {"vocab_size": 96, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 16}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(case.RANDOM, "tiny", TINY)

    def make(**options):
        return Case(
            **{"model": "tiny", "batch_size": 2, "seq_len": 5, "r": 2, "threads": 1, "target_modules": SEVEN} | options
        )

    return make


def test_flops_of_smollm2_by_hand():
    own = Case(model="smollm2", batch_size=4, target_modules=SEVEN)
    block = 2 * 512 * 576 * (2 * 576 + 2 * 192 + 3 * 1536)
    lowest = 2 * 512 * 576 * (576 + 2 * 192)  # nothing needs dx below the first block's q, k and v
    head = 2 * 4 * 127 * 576 * 49152
    forward = 30 * block + head
    assert sum(p.flops for p in products(own.config(), own)) == 2 * forward - lowest
    assert sum(p.flops for p in products(own.config(), own, "full")) == 3 * forward


def test_a_token_a_pass_after_the_prompt(tiny):
    own = tiny(what="generate", new_tokens=3)
    found = [(p.layer, p.N) for p in products(TINY, own)]
    assert len(found) == 3 * (7 * 2 + 1)
    assert [N for layer, N in found if layer == "lm_head"] == [2, 2, 2]
    assert [N for layer, N in found if layer.endswith("0.self_attn.q_proj")] == [10, 2, 2]
    assert set(Gemm(own).turn(1, "lora")) == {"one"}


def test_products_are_of_the_model_s_weights(tiny):
    network = ours.network(tiny())
    shapes = {path: layer.shape for path, layer in network.named_layers() if hasattr(layer, "effective_weight")}
    assert {p.layer: (p.d_out, p.d_in) for p in products(TINY, tiny())} == shapes


def test_our_step_trains_the_factors_over_a_base_in_four_bits(tiny, monkeypatch):
    built, network = [], ours.network
    monkeypatch.setattr(ours, "network", lambda own: built.append(network(own)) or built[-1])
    once, _ = ours.lora(tiny(base_dtype="nf4", recompute=True))
    layers = dict(built[0].named_layers())
    assert sum(isinstance(layer, QuantizedLinear) for layer in layers.values()) == len(adapters(built[0])) == 14
    assert isinstance(layers["model.layers.0"], Recompute)
    before = {name: array.copy() for name, array in built[0].state().items()}
    once()
    once()  # B has left zero, so A moves too
    moved = {name for name, array in built[0].state().items() if not np.array_equal(array, before[name])}
    assert moved == {name for name in before if "lora_" in name} != set()


def test_weights_do_not_depend_on_how_they_are_held(tiny):
    dense, coded = (ours.network(tiny(base_dtype=name)).state() for name in ("float32", "q8_0"))
    assert np.array_equal(dense["model.embed_tokens.weight"], coded["model.embed_tokens.weight"])
    assert np.std(dense["model.layers.1.mlp.up_proj.weight"]) == pytest.approx(0.02, rel=0.1)


@pytest.mark.oracle
@pytest.mark.skipif(not PEFT, reason="needs PEFT")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
def test_both_sides_learn_and_generate(tiny):
    from lorabook.bench import theirs

    for side in (ours.lora, theirs.peft):
        tokens = side(tiny(what="generate", new_tokens=4))[0]()
        assert np.shape(tokens) == (2, 4)
        once, _ = side(tiny())
        once()


def test_generation_goes_to_the_end(tiny):
    assert np.shape(ours.lora(tiny(what="generate", new_tokens=4))[0]()) == (2, 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"what": "generate", "model": "block-1024"}, "--model smollm2"),
        ({"base_dtype": "nf4", "model": "block-1024"}, "--model smollm2"),
        ({"what": "forward"}, "bench generate"),
        ({"what": "generate", "seq_len": 10, "new_tokens": 7}, "at most 16"),
    ],
)
def test_what_a_decoder_has_not(tiny, options, says):
    with pytest.raises(InputError, match=says):
        tiny(**options).config()


def test_options_that_mean_nothing(capsys):
    assert main(["bench", "step", "--new-tokens", "3"]) == 2
    assert "no option --new-tokens" in capsys.readouterr().err
