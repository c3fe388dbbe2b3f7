"""llama.cpp itself (library xllamacpp) opens what is written for it, and gives the tokens that are found here."""

import gc
import json
import urllib.request

import numpy as np
import pytest
from gguf_llamas import N, adapter_folder, tiny_gguf

from lorabook import hub, load_model
from lorabook.models import Sampling, continuations
from lorabook.tasks import find, write_adapter_gguf, write_merged_gguf

PROMPT = [int(token) for token in np.random.default_rng(5).integers(0, N - 3, 9)]
REAL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def xllamacpp():
    return pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")


@pytest.fixture
def theirs(xllamacpp):
    """Call llama.cpp: (greedy tokens after a prompt, {token: log probability} of the most probable first ones)."""

    def call(path, prompt, new, lora=None, ends=False, rounded=False):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = str(path), 64, 1, 0
        params.warmup, params.cpuparams.n_threads = False, 1
        if not rounded:  # in its own precision it keeps keys and values in float16
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if lora:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        server = xllamacpp.Server(params)
        question = {"prompt": prompt, "n_predict": new, "temperature": 0.0, "top_k": 1, "return_tokens": True}
        question |= {"cache_prompt": False, "n_probs": 5, "ignore_eos": not ends}
        address = f"{server.listening_address}/completion"
        with urllib.request.urlopen(address, json.dumps(question).encode()) as answer:
            told = json.load(answer)
        del server
        gc.collect()
        first = told["completion_probabilities"][0]["top_logprobs"]
        return told["tokens"], {own["id"]: own["logprob"] for own in first}

    return call


def ours(model, prompt, new, stop=()):
    """The same of a model here."""
    logits = model.answer({"input_ids": np.array([prompt])})[0, -1].astype("f8")
    logits -= logits.max()
    logits -= np.log(np.exp(logits).sum())
    return [found[0] for found in continuations(model, [prompt], new, Sampling(), stop)], logits


def same(came, want, tolerance):
    """The same tokens, and of the first one log probabilities as near as rounding leaves them."""
    (tokens, first), (own, logits) = came, want
    assert tokens == own
    for token, logprob in first.items():
        assert abs(logprob - logits[token]) < tolerance, (token, logprob, logits[token])


OPTIONS = [
    {},
    {"use_rslora": True, "r": 3, "rank_pattern": {"k_proj": 2, "down_proj": 5}, "alpha_pattern": {"v_proj": -3.0}},
    {"target_modules": ["q_proj"]},
    {"target_modules": ["k_proj"]},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_adapter_on_its_base(theirs, tmp_path, rng, options):
    base = tiny_gguf(tmp_path / "base.gguf", rng)
    adapter = adapter_folder(tmp_path / "a", base, **options)
    model = load_model(base, adapter)
    write_adapter_gguf(tmp_path / "a.gguf", model)
    plain = theirs(base, PROMPT, 24)
    same(plain, ours(load_model(base), PROMPT, 24), 1e-4)
    came = theirs(base, PROMPT, 24, tmp_path / "a.gguf")
    same(came, ours(model, PROMPT, 24), 1e-4)
    assert came[0] != plain[0]


def test_an_adapter_whose_rows_stand_otherwise_is_another(theirs, tmp_path, rng, monkeypatch):
    """What llama.cpp would make of rows that nobody turned: so it can tell, and the tests above do."""
    base = tiny_gguf(tmp_path / "base.gguf", rng)
    model = load_model(base, adapter_folder(tmp_path / "a", base, target_modules=["q_proj"]))
    for where in ("permuted", "unpermuted"):
        monkeypatch.setattr(f"lorabook.models.gguf_lora.{where}", lambda W, heads: W)
    write_adapter_gguf(tmp_path / "a.gguf", model)
    assert theirs(base, PROMPT, 24, tmp_path / "a.gguf")[0] != ours(model, PROMPT, 24)[0]


@pytest.mark.parametrize(
    ("tied", "targets"), [(True, ["lm_head", "q_proj"]), (False, ["lm_head", "q_proj", "up_proj"])]
)
def test_a_merged_file_with_a_head_of_its_own(theirs, tmp_path, rng, tied, targets):
    base = tiny_gguf(tmp_path / "base.gguf", rng, tied=tied)
    adapter = adapter_folder(tmp_path / "a", base, target_modules=targets)
    model, source = load_model(base, adapter), find(base, adapter)
    want = ours(model, PROMPT, 24)
    if not tied:
        write_adapter_gguf(tmp_path / "a.gguf", model)
        same(theirs(base, PROMPT, 24, tmp_path / "a.gguf"), want, 1e-4)
    write_merged_gguf(tmp_path, model, source)
    same(theirs(tmp_path / "model.gguf", PROMPT, 24), want, 1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_a_merged_file_of_a_quantised_base(theirs, tmp_path, rng, dtype):
    """llama.cpp rounds activations to 8 bits before a quantised product: log probabilities are near, no more."""
    base = tiny_gguf(tmp_path / "base.gguf", rng, "Q8_0")
    adapter = adapter_folder(tmp_path / "a", base)
    write_merged_gguf(tmp_path, load_model(base, adapter), find(base, adapter), dtype)
    _, logits = ours(load_model(base, adapter), PROMPT, 1)
    _, first = theirs(tmp_path / "model.gguf", PROMPT, 1)
    assert max(abs(logprob - logits[token]) for token, logprob in first.items()) < 0.3
    _, plain = ours(load_model(base), PROMPT, 1)
    assert max(abs(logprob - plain[token]) for token, logprob in first.items()) > 1


@pytest.fixture(scope="module")
def real():
    folder, damage = hub.cached("smollm2")
    if folder is None or damage:
        pytest.skip("the real smollm2 is not in the cache: lorabook fetch smollm2")
    return folder / REAL


def test_the_real_model(theirs, real, tmp_path):
    """An adapter that changes the answer, beside the base and merged into it."""
    adapter = adapter_folder(tmp_path / "a", real, scale=0.08, r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = load_model(real, adapter)
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompt = model.about.tokenizer.encode(text).ids
    plain, _ = theirs(real, prompt, 6, ends=True)
    write_adapter_gguf(tmp_path / "a.gguf", model)
    came = theirs(real, prompt, 6, tmp_path / "a.gguf", ends=True)
    want = ours(model, prompt, 6, model.about.ends)
    assert plain != came[0] == want[0]
    told = write_merged_gguf(tmp_path, model, find(real, adapter), "float16")
    assert told.changed == 60 and told.error < 5e-4
    assert theirs(tmp_path / "model.gguf", prompt, 6, ends=True)[0] == want[0]
