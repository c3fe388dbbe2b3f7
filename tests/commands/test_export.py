"""merge and export of language models, as a user would bring them: a tiny Llama in a GGUF file, or a folder."""

import json
import os

import numpy as np
import pytest
from checks import same_bits, tiny_bert, write_bert
from gguf_llamas import METADATA, N, adapter_folder, decoder_folder, tiny_gguf

from lorabook import InputError, LoRAConfig, inject, load_model, save_adapter
from lorabook.adapters import LoHaConfig, LoRALinear, adapters, base_params, merge, unload
from lorabook.files import read_gguf, read_weights
from lorabook.models import gguf_merged, load_causal_lm, read_gguf_adapter, save_decoder
from lorabook.tasks import exporting

IDS = {"input_ids": np.random.default_rng(3).integers(0, N, (2, 9))}


@pytest.fixture
def base(tmp_path, rng):
    return tiny_gguf(tmp_path / "base.gguf", rng)


@pytest.fixture
def quantised(tmp_path, rng):
    return tiny_gguf(tmp_path / "base.gguf", rng, "Q8_0")


def answers(*model):
    return load_model(*model).answer(IDS)


def close(got, want, tolerance):
    return np.abs(got - want).max() <= tolerance * np.abs(want).max()


# ---- merged ----------------------------------------------------------------------------------------------------------


def test_a_gguf_base_becomes_a_folder(run_json, base, tmp_path):
    adapter, out = adapter_folder(tmp_path / "a", base), tmp_path / "out"
    told = run_json("merge", base, "--adapter", adapter, "--out", out)
    files = ["tokenizer.json", "tokenizer_config.json", "model.safetensors", "config.json"]
    assert told["files"] == files and sorted(os.listdir(out)) == sorted(files)
    assert told["weight_error"] == 0 and told["logit_difference"] < 1e-4 and told["r"] == 4
    assert close(answers(out), answers(base, adapter), 1e-4)
    assert not close(answers(out), answers(base), 1e-2)
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is True and "lm_head.weight" not in read_weights(out)
    assert config["merged_from"] == {"model": str(base), "adapter": str(adapter)}
    one, other = load_model(base).about, load_model(out).about
    assert one.tokenizer.encode("ab <|im_end|>").ids == other.tokenizer.encode("ab <|im_end|>").ids
    chat = [{"role": "user", "content": "a b"}]
    assert one.template.text(chat) == other.template.text(chat) and one.ends == other.ends


def test_a_gguf_base_becomes_a_gguf_file(run_json, base, tmp_path):
    adapter, out = adapter_folder(tmp_path / "a", base, target_modules=["q_proj", "down_proj"]), tmp_path / "out"
    told = run_json("merge", base, "--adapter", adapter, "--gguf", "--out", out)
    assert os.listdir(out) == ["model.gguf"] == told["files"] and told["changed"] == 4
    assert close(answers(out / "model.gguf"), answers(base, adapter), 1e-4)
    (before, old), (after, new) = read_gguf(base), read_gguf(out / "model.gguf")
    assert [*before] == [*after] and [*old] == [*new]
    for name, tensor in old.items():
        assert tensor.kind == new[name].kind
        assert same_bits(tensor.raw(), new[name].raw()) == ("attn_q" not in name and "ffn_down" not in name)


@pytest.mark.parametrize(
    ("dtype", "kind", "least", "most"), [("float32", "F32", 0, 0), ("float16", "F16", 1e-5, 5e-4),
                                         ("bfloat16", "BF16", 1e-4, 4e-3), ("q8_0", "Q8_0", 1e-3, 0.02)],
)  # fmt: skip
def test_a_quantised_base(run_json, assert_refused, quantised, tmp_path, dtype, kind, least, most):
    """What changes is written as asked for, all else as it is, to the last byte; the error is told."""
    base = quantised
    adapter, out = adapter_folder(tmp_path / "a", base, target_modules=["k_proj", "v_proj"]), tmp_path / "out"
    message = (
        f"{base} is quantised (Q8_0), and its update would be lost in rounding to that again; say --dtype: float32"
    )
    assert_refused(message, "merge", base, "--adapter", adapter, "--gguf", "--out", out)
    message = f"{base} is quantised (Q8_0), and a folder holds floats; say --dtype: float32, float16"
    assert_refused(message, "merge", base, "--adapter", adapter, "--out", out)
    assert not out.exists()
    told = run_json("merge", base, "--adapter", adapter, "--gguf", "--dtype", dtype, "--out", out)
    assert told["changed"] == 4 and least <= told["weight_error"] <= most
    (before, old), (after, new) = read_gguf(base), read_gguf(out / "model.gguf")
    for name, tensor in old.items():
        changed = name.split(".")[2:3] in (["attn_k"], ["attn_v"])
        assert new[name].kind == (kind if changed else tensor.kind)
        assert same_bits(tensor.raw(), new[name].raw()) != changed
    assert {key: v for key, v in before.items() if key != "tokenizer.ggml.token_type"}.keys() <= after.keys()
    assert after["general.file_type"] == {"float32": 0, "float16": 1, "bfloat16": 32, "q8_0": 7}[dtype]
    assert close(answers(out / "model.gguf"), answers(base, adapter), 1e-5 if dtype == "float32" else 0.1)


def test_a_file_is_the_same_however_its_base_is_held(run_json, quantised, tmp_path):
    adapter, held = adapter_folder(tmp_path / "a", quantised, target_modules=["q_proj"]), tmp_path / "held"
    for name, base_dtype in (("one", None), ("two", "q4"), ("three", "nf4")):
        told = json.loads((adapter / "lorabook.json").read_text()) | {"base_dtype": base_dtype}
        told.pop("base_sha256" if base_dtype == "nf4" else None, None)
        (adapter / "lorabook.json").write_text(json.dumps(told))
        out = held / name
        told = run_json("merge", quantised, "--adapter", adapter, "--dtype", "float32", "--gguf", "--out", out)
        assert told["changed"] == (14 if base_dtype == "nf4" else 2)  # in nf4 the whole base has other numbers
        model = load_model(quantised, adapter, base_dtype=base_dtype)
        assert close(answers(out / "model.gguf"), model.answer(IDS), 1e-4)
    assert (held / "one/model.gguf").read_bytes() == (held / "two/model.gguf").read_bytes()


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_on_the_head_breaks_the_tie(run_json, tmp_path, rng, tied):
    base, out = tiny_gguf(tmp_path / "base.gguf", rng, tied=tied), tmp_path / "out"
    adapter = adapter_folder(tmp_path / "a", base, target_modules=["lm_head", "v_proj"])
    run_json("merge", base, "--adapter", adapter, "--out", out)
    run_json("merge", base, "--adapter", adapter, "--gguf", "--out", out / "gguf")
    weights, (_, old), (_, new) = read_weights(out), read_gguf(base), read_gguf(out / "gguf/model.gguf")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert same_bits(weights["model.embed_tokens.weight"], old["token_embd.weight"].read())
    assert same_bits(new["token_embd.weight"].raw(), old["token_embd.weight"].raw())
    assert same_bits(new["output.weight"].read(), weights["lm_head.weight"])
    assert not same_bits(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    for path in (out, out / "gguf/model.gguf"):
        assert close(answers(path), answers(base, adapter), 1e-4)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "tied", "biases"])
def test_a_folder_becomes_a_folder(run_json, tmp_path, rng, kind):
    base = decoder_folder(tmp_path / "base", kind, rng)
    (base / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    adapter, out = adapter_folder(tmp_path / "a", base, target_modules=["q_proj", "up_proj"]), tmp_path / "out"
    told = run_json("merge", base, "--adapter", adapter, "--out", out)
    assert set(told["files"]) == {"tokenizer.json", "generation_config.json", "model.safetensors", "config.json"}
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    ids = {"input_ids": IDS["input_ids"] % 37}
    assert close(load_model(out).answer(ids), load_model(base, adapter).answer(ids), 1e-4)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, out))
    changed = {"architectures", "dtype", "merged_from", "tie_word_embeddings"}
    assert {k: v for k, v in after.items() if k not in changed} == {k: v for k, v in before.items() if k not in changed}
    assert after["tie_word_embeddings"] is before.get("tie_word_embeddings", False)
    told = run_json("merge", base, "--adapter", adapter, "--dtype", "float16", "--out", tmp_path / "half")
    assert 0 < told["weight_error"] < 5e-4
    assert {str(array.dtype) for array in read_weights(tmp_path / "half").values()} == {"float16"}


def test_the_tokenizer_beside_the_adapter_goes_along(run_json, tmp_path, rng):
    base = decoder_folder(tmp_path / "base", "llama", rng)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    adapter = adapter_folder(tmp_path / "a", base)
    own = json.loads((base / "tokenizer.json").read_text()) | {"version": "1.0"}
    (adapter / "tokenizer.json").write_text(json.dumps(own, indent=1))
    run_json("merge", base, "--adapter", adapter, "--out", tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"


def test_what_a_gguf_base_learned_in_full(run_json, base, tmp_path):
    """modules_to_save: the embedding, and with it the head that is tied to it."""
    options = {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter, out = adapter_folder(tmp_path / "a", base, **options), tmp_path / "out"
    run_json("merge", base, "--adapter", adapter, "--gguf", "--out", out)
    assert close(answers(out / "model.gguf"), answers(base, adapter), 1e-4)


# ---- the adapter alone -----------------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": -3.0}},
    {"use_rslora": True, "rank_pattern": {"down_proj": 1}},
    {"lora_alpha": 0},
    {"lora_alpha": 0, "alpha_pattern": {"v_proj": 5}},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_adapter_is_the_same_update(run_json, base, tmp_path, options, dtype):
    adapter, out = adapter_folder(tmp_path / "a", base, **options), tmp_path / "out.gguf"
    told = run_json("export", base, "--adapter", adapter, "--out", out, "--dtype", dtype)
    assert told == {"out": str(out), "adapted": 14, "bytes": out.stat().st_size}
    assert sorted(os.listdir(tmp_path)) == ["a", "base.gguf", "out.gguf"]
    model = load_model(base, adapter)
    found = read_gguf_adapter(out, model.config)
    layers = {path: layer for path, layer in model.named_layers() if path in found}
    assert len(found) == len(layers) == 14
    tolerance = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
    for path, (A, B, scaling) in found.items():
        assert scaling
        delta = layers[path].delta_weight()
        assert np.abs(scaling * B @ A - delta).max() <= tolerance * max(np.abs(delta).max(), 1e-30), path


def test_an_adapter_that_took_its_start_out_of_the_base(base, tmp_path, rng):
    """llama.cpp has the base as it was: so the file holds the start, too, with the other sign."""
    model = load_model(base)
    inject(model, LoRAConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa"))
    layers = adapters(model)
    for layer in layers.values():
        layer.params["lora_A"] += rng.standard_normal(layer.params["lora_A"].shape).astype("f4")
    assert exporting.write_adapter_gguf(tmp_path / "out.gguf", model) == 4
    for path, (A, B, scaling) in read_gguf_adapter(tmp_path / "out.gguf", model.config).items():
        assert A.shape[0] == B.shape[1] == 4
        update = layers[path].effective(layers[path].weight)[0] - base_params(model)[f"{path}.weight"]
        assert close(scaling * B @ A, update, 1e-5)


@pytest.mark.parametrize(("rank", "exact"), [(4, True), (1, False)])
def test_an_adapter_of_another_method_as_lora(run, run_json, base, tmp_path, rng, rank, exact):
    """LoHa of r = 2 is LoRA of rank 4; of less, the file has the closest, and the error is told."""
    model = load_model(base)
    inject(model, LoHaConfig(r=2, target_modules=["q_proj", "v_proj"], init_weights=False), rng)
    save_adapter(tmp_path / "a", model)
    argv = ["export", base, "--adapter", tmp_path / "a", "--out", tmp_path / "out.gguf"]
    code, _, err = run(*argv)
    assert code == 2 and "llama.cpp adds LoRA alone: merge it, or make LoRA of it: export --rank R" in err
    told = run_json(*argv, "--rank", rank)
    assert told["adapted"] == 4 and told["rank"] == rank and (told["error"] < 1e-6) == exact
    layers, errors = adapters(model), []
    for path, (A, B, scaling) in read_gguf_adapter(tmp_path / "out.gguf", model.config).items():
        assert len(A) == rank
        update = layers[path].effective(layers[path].weight)[0] - layers[path].weight
        errors.append(np.linalg.norm(scaling * B @ A - update) / np.linalg.norm(update))
    assert len(errors) == 4 and max(errors) == pytest.approx(told["error"], abs=1e-5)


def test_names_and_numbers_of_an_adapter(run_json, base, tmp_path):
    adapter, out = adapter_folder(tmp_path / "a", base), tmp_path / "mine.gguf"
    run_json("export", base, "--adapter", adapter, "--out", out)
    metadata, tensors = read_gguf(out)
    assert metadata == {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "general.name": "mine",
        "adapter.lora.alpha": 6.0,
    }
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(tensors) == {f"blk.{i}.{part}.weight.lora_{f}" for i in (0, 1) for part in parts for f in "ab"}
    arrays = read_weights(adapter / "adapter_model.safetensors")
    B = arrays["base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"]  # 2 heads of 16 rows
    rows = [8 * (i % 2) + i // 2 for i in range(16)]
    assert same_bits(tensors["blk.1.attn_k.weight.lora_b"].read(), B[[*rows, *(16 + row for row in rows)]])
    A = arrays["base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"]
    assert same_bits(tensors["blk.1.attn_k.weight.lora_a"].read(), A)
    B = arrays["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
    assert same_bits(tensors["blk.1.attn_v.weight.lora_b"].read(), B)


def test_a_folder_base_will_do_for_an_adapter(run_json, tmp_path, rng):
    base = decoder_folder(tmp_path / "base", "mistral", rng)
    adapter = adapter_folder(tmp_path / "a", base, target_modules="all-linear")
    assert run_json("export", base, "--adapter", adapter, "--out", tmp_path / "a.gguf")["adapted"] == 14


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_bad_input_of_export(assert_refused, base, tmp_path, rng):
    adapter, out = adapter_folder(tmp_path / "a", base), tmp_path / "new" / "a.gguf"
    argv = ["export", base, "--adapter", adapter, "--out"]
    assert_refused("--out must be the name of a file, ending in .gguf", *argv, tmp_path / "new")
    assert_refused(f"{base} is there already; choose another --out", *argv, base)
    assert_refused("cannot read", "export", base, "--adapter", tmp_path / "none", "--out", out)
    qwen = decoder_folder(tmp_path / "qwen", "qwen2", rng)
    other = adapter_folder(tmp_path / "b", qwen)
    message = "a model of type 'qwen2' is not written to GGUF here; only 'llama' and 'mistral' are"
    assert_refused(message, "export", qwen, "--adapter", other, "--out", out)
    assert_refused("was trained on other base weights", "export", base, "--adapter",
                   adapter_folder(tmp_path / "c", tiny_gguf(tmp_path / "c.gguf", rng)), "--out", out)  # fmt: skip
    assert_refused("does not fit the model", "export", base, "--adapter", other, "--out", out)
    head = adapter_folder(tmp_path / "d", base, target_modules=["lm_head"])
    assert_refused(
        "lm_head has an adapter, but is tied to the embedding", "export", base, "--adapter", head, "--out", out
    )
    full = adapter_folder(tmp_path / "e", base, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    message = "was trained in full, and a GGUF adapter holds factors alone: merge it"
    assert_refused(message, "export", base, "--adapter", full, "--out", out)
    assert not (tmp_path / "new").exists()


def test_a_head_of_its_own_is_exported(run_json, tmp_path, rng):
    base = tiny_gguf(tmp_path / "base.gguf", rng, tied=False)
    adapter = adapter_folder(tmp_path / "a", base, target_modules=["lm_head"])
    run_json("export", base, "--adapter", adapter, "--out", tmp_path / "a.gguf")
    assert set(read_gguf(tmp_path / "a.gguf")[1]) == {"output.weight.lora_a", "output.weight.lora_b"}


def test_bad_input_of_merge(assert_refused, base, tmp_path, rng):
    adapter, out = adapter_folder(tmp_path / "a", base), tmp_path / "out"
    argv = ["merge", base, "--adapter", adapter, "--out"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x.gguf").write_text("")
    assert_refused("holds a model or an adapter already (x.gguf); choose another --out", *argv, tmp_path / "full")
    message = "a folder is written in float32 or float16; --dtype q8_0 needs --gguf"
    assert_refused(message, *argv, out, "--dtype", "q8_0")
    folder = decoder_folder(tmp_path / "folder", "llama", rng)
    other = adapter_folder(tmp_path / "b", folder)
    message = f"{folder} is no GGUF file, from which a merged one has its tokenizer; convert the merged folder with"
    assert_refused(message, "merge", folder, "--adapter", other, "--gguf", "--out", out)
    assert_refused("does not fit the model", "merge", base, "--adapter", other, "--out", out)
    bare = {key: value for key, value in METADATA.items() if not key.startswith("tokenizer.ggml.m")}
    bare = tiny_gguf(tmp_path / "bare.gguf", rng, metadata=bare)
    assert_refused("tokenizer.ggml.model is None", "merge", bare, "--adapter", adapter, "--out", out)
    assert_refused("tokenizer.ggml.model is None", "merge", bare, "--adapter", adapter, "--gguf", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("option", [["--gguf"], ["--dtype", "float16"]])
def test_options_of_language_models_alone(assert_refused, tmp_path, rng, option):
    base = write_bert(tmp_path / "base", tiny_bert(rng, dtype="float32"))
    model = load_model(base, labels=["a", "b", "c"])
    inject(model, LoRAConfig(r=2, target_modules=["query"]))
    save_adapter(tmp_path / "a", model)
    argv = ["merge", base, "--adapter", tmp_path / "a", "--out", tmp_path / "out"]
    assert_refused("gives texts labels; --gguf and --dtype are of language models", *argv, *option)
    message = "is no language model, but one that gives texts labels"
    assert_refused(message, "export", base, "--adapter", tmp_path / "a", "--out", tmp_path / "a.gguf")


# ---- read back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [[], ["--gguf"]])
def test_a_slip_in_writing_is_noticed_before_anything_is_kept(run, base, tmp_path, option, monkeypatch):
    """Rows that are not turned back, say: the numbers are all there, in the wrong place."""
    adapter, out = adapter_folder(tmp_path / "a", base), tmp_path / "out"
    if option:
        monkeypatch.setattr("lorabook.models.gguf_merge.permuted", lambda W, heads: W)
    else:
        monkeypatch.setattr("lorabook.models.decoder_save.to_numpy", lambda array: array[::-1])
    code, _, err = run("merge", base, "--adapter", adapter, "--out", out, *option)
    assert code == 2 and "was read back with an error of" in err and "nothing was kept" in err
    assert os.listdir(out) == []


def test_a_slip_in_merging_is_noticed(run, base, tmp_path, monkeypatch):
    """The weights are written as they are, but are not what the adapter does."""
    adapter, out = adapter_folder(tmp_path / "a", base), tmp_path / "out"
    monkeypatch.setattr(exporting, "merge", lambda model: None)
    for option in ([], ["--gguf"]):
        code, _, err = run("merge", base, "--adapter", adapter, "--out", out, *option)
        assert code == 1 and "away from those of the base with its adapter; nothing was kept" in err
    assert os.listdir(out) == []


def test_a_slip_in_an_adapter_is_noticed(run, base, tmp_path, monkeypatch):
    adapter, out = adapter_folder(tmp_path / "a", base), tmp_path / "out.gguf"
    monkeypatch.setattr("lorabook.models.gguf_lora.permuted", lambda W, heads: W)
    code, _, err = run("export", base, "--adapter", adapter, "--out", out)
    assert code == 2 and "q_proj.lora_B was read back with an error of" in err
    assert not out.exists()


def test_numbers_that_a_type_cannot_hold(assert_refused, tmp_path, rng):
    base = tiny_gguf(tmp_path / "base.gguf", rng, scale=1e-7)
    adapter = adapter_folder(tmp_path / "a", base, scale=1e-5)
    argv = ["merge", base, "--adapter", adapter, "--dtype", "float16", "--out", tmp_path / "out"]
    for option in ([], ["--gguf"]):
        assert_refused("its numbers are too small for the type; write float32; nothing was kept", *argv, *option)


def test_a_model_with_an_adapter_is_not_written_as_a_plain_one(base, tmp_path):
    model = load_model(base, adapter_folder(tmp_path / "a", base))
    for write in (lambda: save_decoder(tmp_path, model), lambda: gguf_merged(base, model)):
        with pytest.raises(InputError, match="has an adapter"):
            write()
    merge(model)
    with pytest.raises(InputError, match="is merged; call unmerge"):
        exporting.write_adapter_gguf(tmp_path / "a.gguf", model)
    unload(model)
    with pytest.raises(InputError, match="the model has no adapters"):
        exporting.write_adapter_gguf(tmp_path / "a.gguf", model)
    save_decoder(tmp_path, model, max_shard_size=50_000)
    assert len([*tmp_path.glob("model-*-of-*.safetensors")]) > 3
    assert same_bits(load_causal_lm(tmp_path).answer(IDS), model.answer(IDS))


def test_lora_alone_goes_into_an_adapter(base, tmp_path):
    class Other(LoRALinear):
        method = "other"

    model = load_model(base)
    inject(model, LoRAConfig(target_modules=["q_proj"]))
    adapters(model)["model.layers.1.self_attn.q_proj"].__class__ = Other
    with pytest.raises(InputError, match="has an adapter of the method other; llama.cpp adds LoRA alone: merge it"):
        exporting.write_adapter_gguf(tmp_path / "a.gguf", model)
