"""The task of language models, by a stand-in that sees one token: rows, labels and perplexity are those of any."""

import json
import math

import numpy as np
import pytest
from tiny_language import END, SHORT, Bigrams, byte_tokenizer, turns

from lorabook import InputError
from lorabook.data import Batches, ChatTemplate
from lorabook.tasks import LanguageAbout, LanguageModelling, Perplexity, evaluate, hardly_learned, table
from lorabook.training import AdamW, train

TOKENIZER = byte_tokenizer()


class Toy:
    """Opens `toy`, which has a chat template, and `base`, which has none."""

    def takes(self, model):
        return model in ("toy", "base")

    def load(self, model, adapter, max_length, base_dtype, recompute=False):
        network = Bigrams(TOKENIZER.get_vocab_size())
        end, template = TOKENIZER.token_to_id(END), None if model == "base" else ChatTemplate(SHORT)
        network.about = LanguageAbout(model, model, TOKENIZER, max_length or 64, end, template=template)
        return network


def task():
    return LanguageModelling({"toy": Toy()})


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [{"messages": turns(f"How much is {i} and {i}?", f"{2 * i}.")} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_which_models_it_takes():
    assert task().takes("toy") and not task().takes("minilm") and not LanguageModelling({}).takes("smollm2")


def test_a_run_lowers_the_perplexity_of_the_held_out_rows(chats):
    job = task().training("toy", chats, batch_size=2, validate=True)
    assert (job.task_type, job.labels, job.max_length) == ("CAUSAL_LM", [], 64)
    assert {"position_ids", "segment_ids"} <= {*job.batches.at(0)} and "packed" in job.notes[-1]
    assert "segment_ids" not in job.test[0]
    rows = [own for batch in job.test for own in batch["input_ids"]]
    assert len(rows) == 4 and len([own for batch in job.validation for own in batch["input_ids"]]) == 3
    before = evaluate(job.model, job.test)
    history = train(job.model, job.batches, AdamW(5e-2), epochs=20, workers=2)
    after = evaluate(job.model, job.test)
    assert history[-1]["loss"] < history[0]["loss"] / 2 and after.perplexity < before.perplexity / 4
    assert after.tokens == before.tokens == sum(len(f"{2 * i}.") + 1 for i in held_out(job))


def held_out(job):
    texts = (TOKENIZER.decode(ids.tolist()) for batch in job.test for ids in batch["input_ids"])
    return [int(text.split("is ")[1].split(" ")[0]) for text in texts]


def test_perplexity_is_that_of_all_tokens_however_they_are_batched(chats):
    job = task().training("toy", chats, pack=False)
    n = job.batches.n
    whole = evaluate(job.model, Batches(job.batches.examples, n))
    parts = evaluate(job.model, Batches(job.batches.examples, 5), workers=2)
    packed = evaluate(job.model, task().training("toy", chats).batches)
    assert whole.tokens == parts.tokens == packed.tokens
    for own in (parts, packed):
        assert own.loss == pytest.approx(whole.loss, rel=1e-11)
    assert whole.perplexity == pytest.approx(math.exp(whole.loss))
    weight, total = job.model.params["weight"], []
    for labels, ids in zip(job.batches.examples.labels, job.batches.examples.ids, strict=True):
        for before, after in zip(ids, labels[1:], strict=False):
            if after >= 0:
                total.append(np.log(np.exp(weight[before]).sum()) - weight[before, after])
    assert (len(total), np.mean(total)) == (whole.tokens, pytest.approx(whole.loss, rel=1e-11))


def test_what_can_be_evaluated(chats, tmp_path):
    whole = task().test("toy", chats)
    parts = [task().test("toy", chats, split=part) for part in ("train", "test")]
    count = [evaluate(job.model, job.batches).tokens for job in (whole, *parts)]
    assert count[0] == count[1] + count[2]
    (tmp_path / "other.csv").write_text("text\nanother domain\n")
    assert evaluate(whole.model, task().test("toy", tmp_path / "other.csv").batches).tokens == len("another domain")
    some, none = whole.batches[0], {"input_ids": np.ones((1, 2), int), "labels": np.full((1, 2), -100)}
    assert evaluate(whole.model, [none, some, none]) == evaluate(whole.model, some)
    with pytest.raises(InputError, match="all are below 0"):
        evaluate(whole.model, {"input_ids": np.ones((1, 2), int), "labels": np.full((1, 2), -100)})


def test_chats_need_a_model_with_a_template_and_texts_do_not(chats, tmp_path):
    with pytest.raises(InputError, match="base has no chat template"):
        task().training("base", chats)
    (tmp_path / "a.csv").write_text("prompt,completion\n" + "".join(f"p{i}, c{i}\n" for i in range(8)))
    assert task().training("base", tmp_path / "a.csv").batches.n
    with pytest.raises(InputError, match="base has no chat template"):
        task().training("base", tmp_path / "a.csv", as_chat=True)


def test_an_adapter_folder_is_trained_further_as_an_adapter(chats, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter folder; name the model under it"):
        task().training(str(tmp_path), chats)


def test_validation_rows_of_a_file(chats):
    job = task().training("toy", chats, eval_data=chats)
    assert sum(len(batch["input_ids"]) for batch in job.validation) == 16


def test_evaluate_tells_loss_perplexity_and_tokens(chats, run, run_json, monkeypatch):
    monkeypatch.setitem(table.LANGUAGE_MODELS, "toy", Toy())
    found = run_json("evaluate", "toy", chats)
    job = task().test("toy", chats)
    assert found["tokens"] == sum(len(f"{2 * i}.") + 1 for i in range(16))
    assert (found["loss"], found["perplexity"]) == pytest.approx(evaluate(job.model, job.batches)[:2], rel=1e-9)
    code, out, _ = run("evaluate", "toy", chats)
    assert code == 0 and f"{found['tokens']:,} tokens of {chats}: loss {found['loss']:.4f} nats a token" in out


def test_a_run_after_which_the_loss_is_no_lower_is_told_of():
    before = Perplexity(2.0, 7.4, 9)
    assert "has not fallen (2.0000 nats a token before, 2.1000 now)" in hardly_learned(
        [], [], before, Perplexity(2.1, 8.2, 9)
    )
    assert hardly_learned([], [], before, Perplexity(1.9, 6.7, 9)) is None
