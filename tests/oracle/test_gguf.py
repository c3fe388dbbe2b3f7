"""The real SmolLM2 in its GGUF file, against the library `gguf`, transformers and llama.cpp."""

import json
import urllib.request

import numpy as np
import pytest
from checks import same_bits
from gguf_llamas import tiny_gguf

from lorabook import hub
from lorabook.data import chat_template, gguf_tokenizer
from lorabook.files import read_gguf
from lorabook.models import llama_of_gguf

TEXTS = (
    *("Hello world", " leading", "trailing ", "two  spaces", "tabs\t\tand\n\nlines\r\n", "", " ", "\n", "   \n  x"),
    *(
        "I'm, you've, we'll, they'd, IT'S, don't",
        "1234567 12.5 3rd x2y \u00b2\u00bd \u0663\u0664",
        "caf\u00e9 na\u00efve \u00df",
    ),
    *(
        "\u4e2d\u6587\u5b57\u7b26",
        "\U0001f600\U0001f468\u200d\U0001f469",
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
        "e\u0301 \u00a0 nbsp \u2028 line",
    ),
    *("def f(x):\n    return x**2  # comment\n", "https://example.org/a?b=c&d=%20", "!!! ??? ...---", "<b>&amp;</b>"),
    *(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "a<|endoftext|>b",
        "<|im_start",
        "<jupyter_code>x = 1",
    ),
    *("The quick brown fox jumps over the lazy dog. " * 20, "aaaaaaaaaaaaaaaaaaaaaaaa", "\u0120\u010a"),
)


@pytest.fixture(scope="module")
def path():
    return hub.locate("smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def found(path):
    return read_gguf(path)


def test_every_tensor_is_the_librarys(path, found):
    import gguf

    metadata, tensors = found
    theirs = gguf.GGUFReader(path)
    assert list(tensors) == [tensor.name for tensor in theirs.tensors] and len(tensors) == 272
    for tensor in theirs.tensors:
        ours = tensors[tensor.name]
        assert (ours.kind, ours.shape) == (tensor.tensor_type.name, tuple(reversed(tensor.shape.tolist())))
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(ours.shape)
        assert same_bits(ours.read(), want)
        if ours.kind.startswith("Q"):
            assert same_bits(ours.quantized().dequantize(), want)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(metadata) == list(fields)
    for name, field in fields.items():
        ours, want = metadata[name], field.contents()
        assert (ours.tolist() if isinstance(ours, np.ndarray) else ours) == want


@pytest.mark.parametrize(("kind", "tied"), [("F32", True), ("Q8_0", False), ("Q4_1", True)])
def test_names_and_rows_are_those_of_transformers(tmp_path, rng, transformers, kind, tied):
    """transformers opens the same file; every parameter has the same name and numbers, those of q and k too.

    A tiny one: of the real one it takes minutes.
    """
    path = tiny_gguf(tmp_path / "tiny.gguf", rng, kind, tied=tied)
    config, weights = llama_of_gguf(path, *read_gguf(path))
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    state = {name: p.detach().float().numpy() for name, p in model.named_parameters()}
    assert weights.keys() == state.keys()
    for name, weight in weights.items():
        assert same_bits(weight.read(), state[name]), name
    theirs = model.config.to_dict()
    theirs["rope_theta"] = theirs.get("rope_theta") or theirs["rope_parameters"]["rope_theta"]
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rope_theta",
                "tie_word_embeddings", "bos_token_id", "eos_token_id"):  # fmt: skip
        assert config[key] == theirs[key], key
    assert np.float32(config["rms_norm_eps"]) == np.float32(theirs["rms_norm_eps"])


def test_texts_are_cut_as_by_llama_cpp(path, found):
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), 64, 1
    server, ours = xllamacpp.Server(params), gguf_tokenizer(path, found[0])
    for text in TEXTS:
        question = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        with urllib.request.urlopen(f"{server.listening_address}/tokenize", question) as answer:
            assert ours.encode(text).ids == json.load(answer)["tokens"], text
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    assert chat_template(found[0]).startswith("{% for message in messages %}")
