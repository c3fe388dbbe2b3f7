"""Language models by name, folder, file or adapter folder: how they are held, and what they know of texts and chats."""

import json

import numpy as np
import pytest
from checks import encoder_folder, same_bits
from tiny_decoders import TOKENIZER, decoder_folder, gguf_file
from tiny_language import END, SHORT

import lorabook as lb
from lorabook import InputError
from lorabook.adapters import about, adapters
from lorabook.layers import QuantizedLinear
from lorabook.tasks import find, is_causal

END_ID = TOKENIZER.token_to_id(END)
BATCH = {"input_ids": np.array([[3, 1, 4, 1, 5, 9, 2, 6]])}


@pytest.fixture
def gguf(tmp_path):
    return gguf_file(tmp_path / "tiny.gguf")


def test_what_is_a_language_model(gguf, tmp_path):
    (tmp_path / "alone").mkdir()
    gguf.rename(gguf := tmp_path / "alone" / "tiny.gguf")
    assert all(map(is_causal, ("smollm2", gguf, gguf.parent, decoder_folder(tmp_path / "a"), "nowhere.gguf")))
    assert is_causal("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert not any(map(is_causal, ("minilm", "mlp-digits", encoder_folder(tmp_path / "b"), tmp_path / "nowhere")))
    assert lb.load_model(gguf.parent).about.ends == {END_ID}
    gguf_file(gguf.parent / "second.gguf")
    with pytest.raises(InputError, match="holds 2 GGUF files .second.gguf, tiny.gguf.; name one"):
        lb.load_model(gguf.parent)


def test_the_blocks_of_a_file_are_kept_as_they_are(gguf):
    full, kept = (lb.load_model(gguf, base_dtype=name) for name in ("float32", "q4"))
    layers = [layer for _, layer in kept.named_layers() if isinstance(layer, QuantizedLinear)]
    assert len(layers) == 14 and {layer.format for layer in layers} == {"q4_1"}
    assert kept.children["lm_head"].weight is kept.children["model"].children["embed_tokens"].params["weight"]
    dense = dict(full.named_layers())
    for path, layer in kept.named_layers():
        if isinstance(layer, QuantizedLinear):
            assert same_bits(layer.weight, dense[path].weight)
    np.testing.assert_allclose(kept.answer(BATCH), full.answer(BATCH), rtol=1e-4, atol=1e-5)


def test_a_folder_is_rounded_to_nf4_but_for_its_head(tmp_path):
    folder = decoder_folder(tmp_path / "a", tied=False)
    model = lb.load_model(folder, base_dtype="nf4")
    held = {path for path, layer in model.named_layers() if isinstance(layer, QuantizedLinear)}
    assert len(held) == 14 and "lm_head" not in held
    full = dict(lb.load_model(folder).named_layers())
    for path in held:
        error = dict(model.named_layers())[path].weight - full[path].weight
        assert 0 < np.abs(error).max() < 0.2
    with pytest.raises(InputError, match="no matrix in blocks of 4 or 8 bits.*choose nf4 or float32"):
        lb.load_model(folder, base_dtype="q4")
    with pytest.raises(InputError, match="base_dtype must be one of float32, q4, nf4; got 'int3'"):
        lb.load_model(folder, base_dtype="int3")
    with pytest.raises(InputError, match="is for language models|are for language models"):
        lb.load_model(encoder_folder(tmp_path / "b"), labels=["a", "b"], base_dtype="nf4")


def test_blocks_that_keep_their_input_alone_compute_the_same(tmp_path):
    folder = decoder_folder(tmp_path / "a")
    batch, found = BATCH | {"labels": BATCH["input_ids"]}, []
    for recompute in (False, True):
        model = lb.load_model(folder, recompute=recompute)
        lb.inject(model, lb.LoRAConfig(r=2, target_modules="all-linear", init_lora_weights=False), rng=1)
        found.append(model.loss_and_grad(batch))
    assert found[0][0] == found[1][0]
    assert found[0][1].keys() == found[1][1].keys()
    assert all(same_bits(grad, found[1][1][name]) for name, grad in found[0][1].items())


def test_what_a_model_knows_of_texts(gguf, tmp_path):
    own = lb.load_model(gguf).about
    assert (own.end_id, own.ends, own.template.source, own.chats, own.max_length) == (
        END_ID,
        {END_ID},
        SHORT,
        None,
        128,
    )
    folder = decoder_folder(tmp_path / "a", template=None, eos_token_id=[5, 7])
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
    own = lb.load_model(folder, max_length=20).about
    assert (own.end_id, own.ends, own.template, own.max_length) == (END_ID, {5, 7, 9, END_ID}, None, 20)
    (folder / "tokenizer_config.json").unlink()
    own = lb.load_model(folder).about
    assert (own.end_id, own.ends) == (5, {5, 7, 9})
    with pytest.raises(InputError, match="max_length must be .* 2 to 128"):
        lb.load_model(folder, max_length=129)
    (folder / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(InputError, match="generation_config.json: eos_token_id must be an integer"):
        lb.load_model(folder)


def trained(path, **options):
    model = lb.load_model(path, **options)
    lb.inject(model, lb.LoRAConfig(r=2, target_modules="all-linear", init_lora_weights=False), rng=1)
    return model


@pytest.mark.parametrize(("base", "others"), [("q4", ["float32"]), ("float32", ["q4"]), ("nf4", [])])
def test_an_adapter_over_each_kind_of_base_is_saved_and_loaded(gguf, tmp_path, base, others):
    model = trained(gguf, base_dtype=base)
    lb.save_adapter(tmp_path / "a", model)
    told = about(tmp_path / "a")
    assert (told["base_model"], told["base_dtype"], told["chats"]) == (str(gguf), base, None)
    loaded = lb.load_model(tmp_path / "a")
    assert loaded.about.base_dtype == base and same_bits(loaded.answer(BATCH), model.answer(BATCH))
    for other in others:  # the same numbers, held otherwise
        again = lb.load_model(tmp_path / "a", base_dtype=other)
        np.testing.assert_allclose(again.answer(BATCH), model.answer(BATCH), rtol=1e-4, atol=1e-5)
    if not others:
        with pytest.raises(InputError, match="was trained on other base weights"):
            lb.load_model(tmp_path / "a", base_dtype="float32")


def test_an_adapter_says_what_it_is_to_peft(gguf, tmp_path):
    lb.save_adapter(tmp_path / "a", trained(gguf))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", str(gguf))
    assert config["modules_to_save"] in (None, [])
    assert {path.rpartition(".")[2] for path in config["target_modules"]} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_all_linear_leaves_the_head_out_here_and_in_files(tmp_path):
    folder = decoder_folder(tmp_path / "a", tied=False)
    model = trained(folder)
    assert len(adapters(model)) == 14 and "lm_head" not in adapters(model)
    lb.save_adapter(tmp_path / "b", model)
    file = tmp_path / "b" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": "all-linear"}))
    assert same_bits(lb.load_model(tmp_path / "b").answer(BATCH), model.answer(BATCH))


def test_an_adapter_for_another_model(gguf, tmp_path):
    lb.save_adapter(tmp_path / "a", trained(gguf))
    other = gguf_file(tmp_path / "other.gguf", **{"llama.rope.freq_base": 2e4})
    lb.load_model(other, adapter=tmp_path / "a")  # the same weights
    with pytest.raises(InputError, match="was trained on other base weights"):
        lb.load_model(decoder_folder(tmp_path / "b"), adapter=tmp_path / "a")
    with pytest.raises(InputError, match="has no labels"):
        lb.load_model(tmp_path / "a", labels=["a", "b"])
    gguf.unlink()
    with pytest.raises(InputError, match="tiny.gguf"):
        lb.load_model(tmp_path / "a")


def test_who_answers_with_what(gguf, tmp_path):
    with pytest.raises(InputError, match="is a language model, which continues texts: lorabook generate"):
        find(gguf, answers="labels")
    with pytest.raises(InputError, match="is no language model"):
        find(encoder_folder(tmp_path / "a"), answers="texts")
    assert find(gguf, answers="texts").labels is None
    with pytest.raises(InputError, match="minilm, smollm2, an adapter folder.*or a .gguf file"):
        find("nobody")


def test_packed_texts_do_not_see_each_other(tmp_path):
    from lorabook.data import Packed, Plain, Sequences

    model = lb.load_model(decoder_folder(tmp_path / "a")).to(np, "float64")
    lb.inject(model, lb.LoRAConfig(r=2, init_lora_weights=False), rng=1)
    texts = Sequences([Plain(text) for text in ("ab", "bees hum", "c", "dance")], TOKENIZER, 16, END_ID)
    packed = Packed(texts)
    assert packed.n == 2
    total, alone = model.loss_and_grad(packed.rows(np.arange(2))), 0.0
    grads = dict.fromkeys(total[1], 0.0)
    for i in range(4):
        batch = texts.rows(np.array([i]))
        share = model.count(batch) / texts.tokens
        loss, own = model.loss_and_grad(batch)
        alone += share * loss
        grads = {name: grad + share * own[name] for name, grad in grads.items()}
    assert total[0] == pytest.approx(alone, rel=1e-11)
    for name, grad in grads.items():
        np.testing.assert_allclose(total[1][name], grad, rtol=1e-9, atol=1e-12)


def test_tokens_of_the_tokenizer_that_the_model_has_not(tmp_path):
    folder = decoder_folder(tmp_path / "a")
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"] |= {"zz": 999}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(InputError, match="knows 259 tokens, the model only 258"):
        lb.load_model(folder)
