"""The decoder's sides of `bench step` and `bench generate`: SmolLM2's sizes with random weights, no download.

Both sides of `generate` continue the same prompt greedily, by as many tokens, with a cache of keys and values. What is
timed is all of it: the pass over the prompt and a pass for each further token.
"""

import numpy as np

from ..layers import Linear, distinct, quantize
from ..models import DECODERS, LlamaForCausalLM, continuations
from .devices import Host

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# SmolLM2-135M (Ben Allal et al. 2025, arXiv:2502.02737).
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "initializer_range": 0.02,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


def decodes(config):
    """Whether this config.json is a decoder's."""
    return config.get("model_type") in DECODERS  # none: of BERT, as in files


def network(config, case):
    """The model with weights N(0, 0.02^2) and norms at rest, its linear layers in the case's base_dtype.

    A weight goes into a few bits before the next is drawn, as on loading: all in float32 are never in memory at once.
    """
    model, rng = LlamaForCausalLM(config, case.recompute), np.random.default_rng(case.seed)
    linear = {f"{path}.weight": path for path, layer in model.named_layers() if type(layer) is Linear}
    for name in [name for name, array in distinct(model.named_params()).items() if array.ndim == 2]:
        array = model.named_params()[name]
        rng.standard_normal(dtype="float32", out=array)
        array *= 0.02
        del array
        if case.base_dtype != "float32" and name in linear:
            quantize(model, case.base_dtype, [linear[name]])
    return model


def generate(config, case):
    """(once, device) of our side of `bench generate`: once() gives the new tokens of each row."""
    model, prompts = network(config, case), case.prompts(config)

    def once():
        found = [[] for _ in prompts]
        for tokens in continuations(model, prompts, case.new_tokens):
            for row, token in tokens.items():
                found[row].append(token)
        return found

    return once, Host()


def generate_there(config, case):
    """(once, device) of transformers: what PEFT's model is once its adapters are merged."""
    import torch

    model = network_there(config).eval()
    ids = torch.tensor(case.prompts(config))
    options = {"do_sample": False, "max_new_tokens": case.new_tokens, "min_new_tokens": case.new_tokens}

    @torch.inference_mode()
    def once():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        return found[:, ids.shape[1] :].tolist()

    return once, Host()


def network_there(config):
    """The same model in transformers, in float32, with its default attention; no token ends a text."""
    import transformers

    transformers.logging.set_verbosity_error()
    own = transformers.AutoConfig.for_model(**config, bos_token_id=None, eos_token_id=None)
    return transformers.AutoModelForCausalLM.from_config(own).float()


def linears(config, case):
    """[(path, level, N, d_in, d_out)] from bottom to top, of a pass over all tokens; see `step_products`."""
    sizes = DECODERS[config["model_type"]].sizes(config)
    d, d_mlp, N = sizes.hidden_size, sizes.intermediate_size, case.batch_size * case.seq_len
    d_q, d_kv = (heads * sizes.head_dim for heads in (sizes.num_attention_heads, sizes.num_key_value_heads))
    layers = []
    for i in range(sizes.num_hidden_layers):
        own = [("self_attn.q_proj", 0, d, d_q), ("self_attn.k_proj", 0, d, d_kv), ("self_attn.v_proj", 0, d, d_kv)]
        own += [("self_attn.o_proj", 1, d_q, d), ("mlp.gate_proj", 2, d, d_mlp), ("mlp.up_proj", 2, d, d_mlp)]
        own += [("mlp.down_proj", 3, d_mlp, d)]
        layers += [(f"model.layers.{i}.{part}", 4 * i + level, N, *shape) for part, level, *shape in own]
    asked = case.batch_size * (case.seq_len - 1)  # each token but a row's last predicts the next one
    return [*layers, ("lm_head", 4 * sizes.num_hidden_layers, asked, d, sizes.vocab_size)]


def passes(config, case):
    """The (path, N, d_in, d_out) of `bench generate`, in order: of the prompt, then of one token of each row."""
    *layers, (head, _, _, *shape) = linears(config, case)
    B = case.batch_size
    first = [(path, N, *own) for path, _, N, *own in layers] + [(head, B, *shape)]
    return first + [(path, B, *own) for path, _, *own in first] * (case.new_tokens - 1)
