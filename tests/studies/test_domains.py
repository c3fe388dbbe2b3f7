"""The language model's experiment, on a tiny decoder in the place of SmolLM2, and made-up texts of the four domains."""

import json
import math

import numpy as np
import pytest
from gguf_llamas import tiny_gguf

from lorabook import InputError
from lorabook.book.plots import domains as plotting
from lorabook.data import DOMAINS
from lorabook.studies import domains

TEST_TEXTS = 5


@pytest.fixture
def task(tmp_path, monkeypatch):
    folder = tmp_path / "texts"
    folder.mkdir()
    for letter, (file, _) in zip("abcd", DOMAINS.values(), strict=True):
        lines = [f"{i}\t0.5\t{letter * (3 + i % 4)} {i}" for i in range(60)]
        (folder / file).write_text("\n".join(lines))
    monkeypatch.setattr(domains, "locate", lambda name: folder)
    model = tiny_gguf(tmp_path / "tiny.gguf", np.random.default_rng(0))
    return domains.DomainsTask(str(model), "tweets", T=16, batch_size=2, steps=6, measured=TEST_TEXTS)


def test_the_study_chooses_rates_and_learns_the_domain(task, tmp_path, monkeypatch):
    monkeypatch.setattr(domains, "RATES", {"lora": (1e-2, 1e-12), "full": (1e-12, 1e-3)})
    monkeypatch.setattr(domains, "RANKS", (2, 4))
    rows = domains.rows(folder=tmp_path / "runs", task=task)
    tuning = [row for row in rows if row["part"] == "validation"]
    assert [(row["method"], row["r"], row["lr"], row["domain"]) for row in tuning] == [
        ("lora", 8, 1e-2, "tweets"),
        ("lora", 8, 1e-12, "tweets"),
        ("full", None, 1e-12, "tweets"),
        ("full", None, 1e-3, "tweets"),
    ]
    test = rows[len(tuning) :]
    assert [row["domain"] for row in test] == list(DOMAINS) * (1 + 3 * 3)
    chosen = {(row["method"], row["lr"]) for row in test}
    assert chosen == {("base", None), ("lora", 1e-2), ("full", 1e-3)}
    assert all(math.isclose(row["perplexity"], math.exp(row["loss"])) for row in rows)
    before = {row["domain"]: row["loss"] for row in test if row["method"] == "base"}
    learned = [row["loss"] for row in test if row["domain"] == "tweets" and row["method"] != "base"]
    assert max(learned) < before["tweets"]
    assert len(plotting.domains(rows).axes[0].get_yticks()) == 1  # of the ranks that are drawn, none; and full


def test_a_run_is_measured_on_rows_that_none_is_trained_on(task):
    train, validation, test = (task.rows("tweets", part) for part in ("train", "validation", "test"))
    assert len(validation) == len(test) == TEST_TEXTS < len(train)
    texts = [{row.text for row in rows} for rows in (train, validation, test)]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


def test_a_run_is_not_repeated_and_its_steps_are_counted(task, tmp_path, monkeypatch):
    taken = []
    train = domains.train
    monkeypatch.setattr(domains, "train", lambda *args, **kw: taken.append(history := train(*args, **kw)) or history)
    setting = domains.DomainRun("lora", 2, 1e-3, 0)
    rows = domains.run(setting, tmp_path, task)
    assert [len(history) for history in taken] == [task.steps]
    assert {row["params"] for row in rows} == {2 * 2 * (64 * 4 + 2 * (64 + 32) + 3 * (64 + 96))}
    assert domains.run_all([setting, setting], tmp_path, task=task) == rows * 2
    domains.run(domains.DomainRun("lora", 2, 1e-3, 0, tuning=True), tmp_path, task)
    assert [len(history) for history in taken] == [task.steps, task.steps // 2]


def test_another_seed_draws_other_rows_and_two_processes_give_the_same(task, tmp_path):
    settings = [domains.DomainRun("full", lr=1e-3, seed=seed) for seed in (0, 1)]
    found = []
    for workers in (1, 2):
        rows = [row for own in settings for row in domains.run(own, tmp_path / str(workers), task, workers)]
        found.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    assert found[0] == found[1]
    assert found[0][0]["loss"] != found[0][4]["loss"]


def test_a_result_of_another_task_is_refused(task, tmp_path):
    domains.run(domains.DomainRun("base"), tmp_path, task)
    path = tmp_path / "base" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"run": {"setting": {}, "task": {}}}))
    with pytest.raises(InputError, match=r"result.json is of another setting: .*Choose another folder of runs"):
        domains.run_all([domains.DomainRun("base")], tmp_path, task=task)
