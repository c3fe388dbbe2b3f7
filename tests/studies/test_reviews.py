"""The encoder's experiments, on a tiny encoder and a small file in the place of MiniLM and the movie reviews."""

import json

import numpy as np
import pytest
from checks import tiny_config, write_bert

from lorabook import InputError
from lorabook import files as io
from lorabook.book import figures
from lorabook.files import read_csv
from lorabook.layers import Linear
from lorabook.linalg import subspace
from lorabook.models import BertForSequenceClassification
from lorabook.studies import review_directions, reviews

QV = ("query", "value")


def write_task(tmp_path, **sizes):
    network = BertForSequenceClassification(tiny_config(**sizes), labels=2)
    for name, array in network.named_params().items():
        array[...] = name.endswith("LayerNorm.weight")
        array += 0.4 * np.random.default_rng(0).standard_normal(array.shape)
    model = write_bert(tmp_path / "model", network, tensors={"classifier.weight": None, "classifier.bias": None})
    lines = [f"{('good fine', 'bad poor')[i % 2]}{' film' * (i // 8)},{'np'[i % 2]}" for i in range(48)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *lines]))
    return reviews.ReviewsTask(str(model), str(tmp_path / "data.csv"), 4, 9)


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path)


@pytest.fixture
def default_task(tmp_path, monkeypatch):
    """A task with matrices of rank 64, in the place of the real one."""
    task = write_task(tmp_path, hidden_size=66)
    monkeypatch.setattr(reviews, "ReviewsTask", lambda: task)


def test_every_setting_has_a_folder_of_its_own_and_tables_share_runs():
    tables = [settings() for settings in (reviews.recipe, reviews.which_matrices, reviews.which_rank)]
    assert [len(table) for table in tables] == [15, 21, 45]
    settings = {setting for table in tables for setting in table}
    assert len(settings) == len({setting.name for setting in settings}) == 15 + 21 + 45 - 9


def test_which_matrices_compares_equal_numbers_of_parameters():
    d = 384
    config = {name: d for name in ("hidden_size", "intermediate_size")} | {"num_hidden_layers": 1, "vocab_size": 9}
    config |= {"num_attention_heads": 12, "max_position_embeddings": 8, "type_vocab_size": 2}
    model = BertForSequenceClassification(config, labels=2)
    linears = [path for path, layer in model.named_layers() if isinstance(layer, Linear)]
    counts = set()
    for setting in reviews.which_matrices():
        adapted = [path for path in linears if any(path.endswith(f".{target}") for target in setting.targets)]
        counts.add(len(adapted) * setting.r * 2 * d)
    assert counts == {16 * d}


@pytest.mark.parametrize("method", ["lora", "head", "classifier", "full"])
def test_a_run_leaves_its_result_and_is_not_repeated(task, tmp_path, monkeypatch, method):
    setting = reviews.ReviewsRun(method, *((QV, 2) if method == "lora" else ()), epochs=2)
    row = reviews.run(setting, tmp_path, task)
    folder = tmp_path / setting.name
    assert row == json.loads((folder / "result.json").read_text())
    expected = {"lora": 2 * 2 * 2 * 2 * 6 + 14, "head": 6 * 6 + 6 + 14, "classifier": 14}
    assert expected.get(method, row["params"]) == row["params"]
    assert (folder / "adapter_config.json").exists() == (method == "lora")
    if method == "full":
        update, _ = io.read_safetensors(folder / "update.safetensors")
        assert len(update) == 2 * 6
        assert all(np.abs(delta).max() > 0 for delta in update.values())
    monkeypatch.setattr(reviews, "train", None)
    assert reviews.run_all([setting, setting], tmp_path, task=task) == [row]


def test_two_processes_give_the_same_bits(task, tmp_path):
    settings = [reviews.ReviewsRun("lora", QV, 2, seed, epochs=1) for seed in (0, 1)] + [
        reviews.ReviewsRun("full", epochs=1)
    ]
    files = ["adapter_model.safetensors"] * 2 + ["update.safetensors"]
    results = []
    for jobs in (1, 2):
        rows = reviews.run_all(settings, tmp_path / str(jobs), jobs, task=task)
        arrays = [
            (tmp_path / str(jobs) / setting.name / file).read_bytes()
            for setting, file in zip(settings, files, strict=True)
        ]
        results.append(([{k: v for k, v in row.items() if k != "seconds"} for row in rows], arrays))
    assert results[0] == results[1]
    assert [row["seed"] for row in rows] == [0, 1, 0]


def test_an_interrupted_run_continues(task, tmp_path, monkeypatch):
    setting = reviews.ReviewsRun("lora", QV, 2)
    whole = reviews.run(setting, tmp_path / "whole", task)
    monkeypatch.setattr(reviews, "evaluate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reviews.run(setting, tmp_path / "cut", task)
    monkeypatch.undo()
    monkeypatch.setattr("lorabook.training.steps.Steps.take", None)  # every step is in the checkpoint
    row = reviews.run(setting, tmp_path / "cut", task)
    assert {**row, "seconds": 0} == {**whole, "seconds": 0}


def test_a_result_of_another_setting_is_refused(task, tmp_path, monkeypatch):
    setting = reviews.ReviewsRun("classifier", epochs=1)
    reviews.run(setting, tmp_path, task)
    monkeypatch.setitem(reviews.RATES, "classifier", 0.5)
    with pytest.raises(InputError, match=r"result.json is of another setting: .*0.001.*, not .*0.5.*another folder"):
        reviews.run_all([setting], tmp_path, task=task)


@pytest.fixture
def runs(default_task, tmp_path):
    """What a figure's rows function takes: one process, no progress, a folder of runs."""
    return 1, False, tmp_path / "runs"


def stored(folder, setting, place):
    """(lora_A, lora_B) of a run, as the file has them."""
    arrays, _ = io.read_safetensors(folder / setting.name / "adapter_model.safetensors")
    return (arrays[f"base_model.model.{place.path}.{factor}.weight"].astype("f8") for factor in ("lora_A", "lora_B"))


def test_every_figure_of_the_runs_is_made_and_drawn(default_task, tmp_path):
    (tmp_path / "data").mkdir()
    names = [name for name in figures.FIGURES if name.startswith("reviews_")]
    for name in names:
        picture = figures.rebuild(name, tmp_path, runs=tmp_path / "runs")
        assert picture.stat().st_size > 10_000
    rows = {name.removeprefix("reviews_"): read_csv(tmp_path / "data" / f"{name}.csv") for name in names}
    assert list(rows["recipe"][0]) == "method targets r epochs lr seed params test_loss test_accuracy seconds".split()
    assert len(list((tmp_path / "runs").iterdir())) == 15 + 21 + 45 - 9
    matrices, pairs = 2 * 2, 2 * 2 + 1  # layers, or layers and the random control
    assert {name: len(table) for name, table in rows.items()} == {
        "recipe": 15,
        "matrices": 21,
        "rank": 45,
        "subspaces": 3 * pairs * (4 * 7 + 7 * 7),
        "amplification": matrices * 5 * 3,
        "spectrum": matrices * (9 + 3 * (9 + 6 + 1)),
        "intruders": matrices * 3 * (3 + 5),
    }


def test_updates_are_those_of_the_runs(runs):
    folder = runs[-1]
    lora, full = reviews.ReviewsRun("lora", QV, 2, 1), reviews.ReviewsRun("full")
    opened = review_directions.Runs([lora, full], folder)
    place = review_directions.Where("value", 1, "bert.encoder.layer.1.attention.self.value")
    A, B = stored(folder, lora, place)
    np.testing.assert_array_equal(opened.factors(lora)[place][0], A)
    np.testing.assert_allclose(opened.update(lora)[place], 16 / 2 * B @ A, rtol=1e-12, atol=1e-15)
    update, _ = io.read_safetensors(folder / full.name / "update.safetensors")
    np.testing.assert_array_equal(opened.update(full)[place], update[f"{place.path}.weight"])
    job = reviews.ReviewsTask().job()
    np.testing.assert_array_equal(opened.base[place], job.model.named_params()[f"{place.path}.weight"])
    assert len(opened.places) == 4


def test_subspaces_compare_runs_of_different_seeds(runs):
    rows = review_directions.subspaces(*runs)
    assert {(row["seed1"], row["seed2"]) for row in rows} == {(0, 1), (1, 2), (2, 0)}
    assert all(row["kind"] == ("trained" if row["matrix"] else "random") for row in rows)
    place, settings = (
        review_directions.Where("query", 0, "bert.encoder.layer.0.attention.self.query"),
        {s.r: s for s in reviews.which_rank([1]) if s.targets == QV},
    )
    A, _ = stored(runs[-1], settings[8], place)
    other, _ = stored(runs[-1], next(s for s in reviews.which_rank([2]) if s.targets == QV and s.r == 64), place)
    key = {"r1": 8, "matrix": "query", "layer": 0, "seed1": 1, "i": 4, "j": 16}
    (row,) = [row for row in rows if key.items() <= row.items()]
    assert row["phi"] == pytest.approx(subspace.subspace_similarity(A, other)[3, 15], abs=5e-5)


def test_amplification_is_the_ratio_of_its_columns(runs):
    for row in review_directions.amplifications(*runs):
        assert row["amplification"] == pytest.approx(row["norm_update"] / row["from_update"], rel=1e-6)
        assert row["from_update"] <= row["from_weight"] <= row["norm_weight"] * (1 + 1e-12)


def test_spectra_end_at_the_rank_and_hold_all_of_the_energy(runs):
    rows = review_directions.spectra(*runs)
    last = {}
    for row in rows:
        assert row["what"] == "weight" or row["seed"] in (0, 1, 2)
        last[row["what"], row["r"], row["matrix"], row["layer"], row["seed"]] = row
    assert {(key[1], row["i"]) for key, row in last.items() if key[0] == "lora"} == {(8, 8), (1, 1)}
    assert all(row["energy"] == pytest.approx(1) for key, row in last.items() if key[0] == "lora")
    assert all(0.9 < row["energy"] < 1 for key, row in last.items() if key[0] != "lora")


def test_intruders_are_counted_as_in_subspace(runs):
    rows = review_directions.intruders(*runs)
    setting = next(s for s in reviews.which_rank([2]) if s.targets == QV and s.r == 1)
    opened = review_directions.Runs([setting], runs[-1])
    for place, delta in opened.update(setting).items():
        key = {"method": "lora", "r": 1, "epochs": setting.epochs, "seed": 2}
        key |= {"matrix": place.matrix, "layer": place.layer}
        (row,) = [row for row in rows if key.items() <= row.items()]
        assert row["intruders"] == len(subspace.intruder_dimensions(opened.base[place], delta))
        assert row["smallest_cosine"] == pytest.approx(subspace.largest_cosines(opened.base[place], delta).min())


def test_half_an_epoch_is_half_of_the_texts_once(task, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(reviews, "train", lambda model, batches, optimizer, **options: seen.append((batches, options)))
    for epochs in (0.5, 1, 2):
        reviews.run(reviews.ReviewsRun("classifier", epochs=epochs), tmp_path, task)
    (half, once), (whole, one), (_, two) = seen
    assert [half.n * 2, once["epochs"]] == [whole.n, 1] and [one["epochs"], two["epochs"]] == [1, 2]
