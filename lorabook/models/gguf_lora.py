"""A LoRA adapter as llama.cpp loads it over a GGUF base: one GGUF file with the factors of each adapted matrix.

llama.cpp computes W x + scale (alpha / r) B (A x) with one alpha for the whole file, r being the rank that B shows,
and scale what its user asks for, 1 by default. Here each layer has its own s: of use_rslora, of rank and alpha
patterns. So the file says the alpha of most layers, alpha = s r, and the others have B' = B s r / alpha instead of B.
"""

from collections import Counter

import numpy as np

from ..adapters import LoRALinear, adapters, as_plain, base_params, config_of
from ..backend import to_numpy
from ..errors import FormatError, InputError
from ..files import GGUFArray, check_values, number, one_of, read_gguf, short
from .gguf_llama import gguf_name, hf_name, permuted, turned_heads, unpermuted

RULES = {
    "general.architecture": one_of("llama"),
    "general.type": one_of("adapter"),
    "adapter.type": one_of("lora"),
    "adapter.lora.alpha": number(-3.5e38, 3.5e38),
}
FACTORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # what factors can be written as
OF_LLAMA = ("llama", "mistral")  # model types whose GGUF files are of the architecture "llama"


def gguf_adapter(model, dtype="float32", name=None):
    """(metadata, {name: GGUFArray}) for `files.write_gguf`, of the LoRA adapter in a Llama-shaped decoder.

    Of each adapted matrix X there are X.lora_a (r, d_in) and X.lora_b (d_out, r), X in GGUF's names. Rows of W_q and
    W_k stand in another order in llama.cpp; W + s B A keeps it if the rows of B are put in that order too. dtype: of
    FACTORS. name: of the adapter, for whoever lists files. Raises InputError for what such a file does not hold:
    other architectures and methods, parameters trained in full, an update of the head where it is tied to the embedding
    in the file, as llama.cpp then has no matrix for it.
    """
    if dtype not in FACTORS:
        raise InputError(f"dtype must be one of {', '.join(FACTORS)}; got {short(dtype)}")
    config, kind = model.config, FACTORS[dtype]
    check_llama(config)
    options, chosen = config_of(model), adapters(model)
    model.refuse_merged(before="writing the adapter")
    if others := [path for path, layer in chosen.items() if type(layer) is not LoRALinear]:
        method = chosen[others[0]].method
        how = "merge it, or make LoRA of it: export --rank R"
        raise InputError(f"{others[0]} has an adapter of the method {method}; llama.cpp adds LoRA alone: {how}")
    if full := [name for name in base_params(model) if options.trains_in_full(name, chosen)]:
        raise InputError(f"{full[0]} was trained in full, and a GGUF adapter holds factors alone: merge it")
    if model.sizes.tie_word_embeddings and "lm_head" in chosen:
        raise InputError(
            "lm_head has an adapter, but is tied to the embedding: llama.cpp has one matrix for both, and cannot adapt "
            "one of them: merge it"
        )
    plain = model.named_params() | as_plain(options, chosen)[1]
    alphas = {path: layer.scaling * len(plain[f"{path}.lora_A"]) for path, layer in chosen.items()}
    alpha = _alpha_of_file(alphas)
    arrays = {}
    for path in chosen:
        A, B = (to_numpy(plain[f"{path}.{factor}"]) for factor in ("lora_A", "lora_B"))
        name_in_file = gguf_name(f"{path}.weight")
        B = permuted(B, turned_heads(name_in_file, _with_heads(config))) * B.dtype.type(alphas[path] / alpha)
        arrays[f"{name_in_file}.lora_a"] = GGUFArray(A, kind)
        arrays[f"{name_in_file}.lora_b"] = GGUFArray(B, kind)
    metadata = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    metadata |= {"general.name": name} if name else {}
    return metadata | {"adapter.lora.alpha": np.float32(alpha)}, arrays


def check_llama(config):
    """Raise InputError unless the GGUF files of models with this config are of the architecture "llama"."""
    if (kind := config.get("model_type")) not in OF_LLAMA:
        known = " and ".join(map(repr, OF_LLAMA))
        raise InputError(f"a model of type {short(kind)} is not written to GGUF here; only {known} are")


def read_gguf_adapter(path, config):
    """{path of a layer: (lora_A (r, d_in), lora_B (d_out, r), scaling)} of a GGUF adapter, as Hugging Face orders rows.

    config: of the model that it is for. W gets scaling B A. Raises FormatError unless the file is a LoRA adapter for a
    Llama, and each factor has the other.
    """
    metadata, tensors = read_gguf(path)
    check_values(path, metadata, RULES)
    alpha, found = metadata["adapter.lora.alpha"], {}
    for name, tensor in tensors.items():
        matrix, _, factor = name.rpartition(".")
        try:
            layer = hf_name(matrix).removesuffix(".weight")
        except (KeyError, ValueError):
            layer = None
        if layer is None or factor not in ("lora_a", "lora_b") or len(tensor.shape) != 2:
            raise FormatError(f"{path}: tensor {short(name)} is no lora_a or lora_b of a matrix of a Llama")
        found.setdefault(layer, {})[factor] = tensor.read()
    layers = {}
    for layer, factors in found.items():
        shapes = [factors[factor].shape for factor in ("lora_a", "lora_b") if factor in factors]
        if len(shapes) < 2 or shapes[0][0] != shapes[1][1]:
            raise FormatError(f"{path}: {layer} needs lora_a (r, d_in) and lora_b (d_out, r); got {shapes}")
        r, heads = shapes[0][0], turned_heads(gguf_name(f"{layer}.weight"), _with_heads(config))
        layers[layer] = factors["lora_a"], unpermuted(factors["lora_b"], heads), alpha / r if alpha else 1.0
    return layers


def _with_heads(config):
    """The config with the heads of the keys, where it leaves them out since they are as many."""
    heads = config["num_attention_heads"]
    return {"num_attention_heads": heads, "num_key_value_heads": config.get("num_key_value_heads") or heads}


def _alpha_of_file(alphas):
    """The alpha of most layers. 0 would mean to llama.cpp that there is none, and that the scale is 1."""
    usable = [alpha for alpha in alphas.values() if np.float32(alpha) and np.isfinite(np.float32(alpha))]
    return Counter(usable).most_common(1)[0][0] if usable else 1.0
