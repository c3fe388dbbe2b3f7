"""A step in shards on threads: the same bits for any number of workers, and the gradients of the whole batch."""

import itertools
import os
import subprocess
import sys
import threading
import time
import types
import weakref

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  SciPy has a BLAS of its own: loaded here, or it would appear in the middle
from checks import TOLERANCES, assert_close, assert_lives_on, held, lora_mlp, move, same_bits, tiny_bert, tiny_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from lorabook import InputError, LoRAConfig, NonFiniteError, inject
from lorabook.adapters import LoRALinear, adapters
from lorabook.backend import to_numpy
from lorabook.data import Batches
from lorabook.functional import absorbed_attention
from lorabook.layers import Run, add_grads
from lorabook.models import MLP
from lorabook.parallel import Workers, cores, cut, keep_freed_memory
from lorabook.parallel import threads as parallel
from lorabook.tasks import evaluate
from lorabook.training import AdamW, train

WORKERS = pytest.mark.parametrize("n", [1, 2, 3])
ROWS = 181  # of 9 tokens: four shards, one of them a row longer than the others


BERT, FEATURES = tiny_bert(np.random.default_rng(0)), MLP((9, 2), rng=np.random.default_rng(0))


def rows_of(rows, *shape, dtype="int64"):
    """(model, batch) of this shape that takes no memory: texts of integers, features of floats."""
    array = np.broadcast_to(np.zeros((), dtype), (rows, *shape))
    return (BERT, {"input_ids": array}) if array.dtype.kind == "i" else (FEATURES, {"x": array})


# ---- how a batch is cut ----------------------------------------------------------------------------------------------


def test_tokens_are_the_rows_that_a_linear_layer_sees(put):
    batch = {name: put(array) for name, array in tiny_ids().items()}
    assert (BERT.rows(batch), BERT.tokens(batch)) == (4, 20)
    batch = {"x": put(np.zeros((7, 5))), "labels": put(np.zeros(7, int))}
    assert FEATURES.rows(batch) == FEATURES.tokens(batch) == 7


@pytest.mark.parametrize(
    ("case", "n"),
    [
        (rows_of(1, 9), 1),
        (rows_of(255, 1), 1),
        (rows_of(16, 128), 4),
        (rows_of(32, 128), 8),
        (rows_of(3, 600), 3),
        (rows_of(1, 9999), 1),
        (rows_of(64, 64, dtype="float32"), 1),
        (rows_of(256, 9, dtype="float32"), 2),
        (rows_of(2048, 9, dtype="float32"), 4),
    ],
    ids=lambda case: str(case if isinstance(case, int) else next(iter(case[1].values())).shape),
)
def test_number_of_shards(case, n):
    shards = cut(*case)
    assert len(shards) == n
    assert (shards[0].start, shards[-1].stop) == (0, case[0].rows(case[1]))
    assert all(below.stop == above.start for below, above in itertools.pairwise(shards))


@settings(max_examples=100, deadline=None, database=None, report_multiple_bugs=False)
@given(st.integers(1, 3000), st.integers(1, 600), st.sampled_from(["int64", "int32", "float32", "float64"]))
def test_a_cut_covers_every_row_once_and_evenly(rows, width, dtype):
    model, batch = rows_of(rows, width, dtype=dtype)
    shards, tokens = cut(model, batch), rows * width if "int" in dtype else rows
    assert [i for shard in shards for i in range(rows)[shard]] == list(range(rows))
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    n, per_row = len(shards), tokens / rows
    assert n == 1 or n % 2 == 0 or n == rows
    assert (n == 1) == (tokens < 256 or rows == 1)
    if 1 < n < rows:
        assert 128 <= tokens / n <= 768
        assert max(sizes) * per_row <= 768 + per_row


def test_one_shard_on_a_gpu(monkeypatch):
    """Where there is no GPU: something whose type is of a module called cupy."""
    cupy = types.ModuleType("cupy")
    cupy.isdtype = np.isdtype
    monkeypatch.setitem(parallel.array_namespace.__globals__["sys"].modules, "cupy", cupy)
    array = type("ndarray", (), {"__module__": "cupy", "shape": (64, 128), "dtype": np.dtype("int64")})()
    assert BERT.tokens({"input_ids": array}) == 64 * 128
    assert cut(BERT, {"input_ids": array}) == [slice(0, 64)]
    assert len(cut(*rows_of(64, 128))) == 16


# ---- threads ---------------------------------------------------------------------------------------------------------


def nine_rows():
    return Batches({"x": np.ones((9, 5)), "labels": np.zeros(9, int)}, 9)


@pytest.mark.parametrize("n", [0, -1, 1.0, 2.5, "2", True, False, [2]])
def test_a_number_of_workers_that_is_none(n):
    with pytest.raises(InputError, match=r"workers must be an integer of at least 1; got "):
        Workers(n)
    with pytest.raises(InputError, match=r"workers must be an integer of at least 1; got "):
        train(lora_mlp(np.random.default_rng(0)), nine_rows(), AdamW(0), epochs=1, workers=n)


def test_workers_that_are_not_at_work_say_so(rng):
    """Before and after their context."""
    batch = {"x": rng.standard_normal((4, 7)).astype("f4"), "labels": np.array([0, 1, 2, 3])}
    model, workers = MLP((7, 6, 5), rng=rng), Workers(2)
    for _ in range(2):
        for use in (
            lambda: workers.answer(model, batch),
            lambda: workers.loss_and_grad(model, batch),
            lambda: workers.map(str, [1]),
            lambda: workers.spread(str, [1]),
        ):
            with pytest.raises(InputError, match="not at work; use them inside `with Workers"):
                use()
        with workers:
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_works_without_the_parents_threads():
    """In a process of its own: this one has threads that a fork would warn about."""
    code = """
import os, numpy as np
from lorabook.models import MLP
from lorabook.parallel import Workers
rng = np.random.default_rng(0)
model, x = MLP((7, 9, 5), rng=rng), rng.standard_normal((3000, 7)).astype("f4")
batch = {"x": x, "labels": np.arange(3000) % 5}
with Workers(2) as workers:
    loss, grads = workers.loss_and_grad(model, batch)
    if child := os.fork():
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    again, same = workers.loss_and_grad(model, batch)
    assert again == loss and all((same[name] == grads[name]).all() for name in grads)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_thread_outlives_the_workers():
    before = threading.active_count()
    with Workers(3) as team:
        list(team.map(abs, range(9)))
        assert threading.active_count() > before
    assert threading.active_count() == before


def test_results_come_in_order_and_shards_at_the_same_time():
    second_is_done = threading.Event()

    def one(i):
        assert i or second_is_done.wait(30), "the second never ran beside the first"
        if i:
            second_is_done.set()
        return i

    with Workers(2) as team:
        assert list(team.map(one, range(2))) == [0, 1]


@pytest.mark.parametrize("n", [2, 3])
def test_few_results_are_computed_ahead(n):
    """However slow the one who takes them is."""
    begun, results = [], 30
    with Workers(n) as team:
        for taken, _ in enumerate(team.map(begun.append, range(results)), 1):
            time.sleep(0.01)  # for the threads to do all that they may
            assert len(begun) <= min(results, taken + n)
    assert sorted(begun) == list(range(results))


@pytest.mark.parametrize("n", [2, 3])
def test_whoever_stops_taking_stops_the_rest(n):
    begun = []
    with Workers(n) as team:
        results = team.map(begun.append, range(100))
        next(results)
        results.close()
    assert len(begun) <= 1 + n


@WORKERS
def test_an_error_comes_where_its_result_would(n):
    def one(i):
        begun.append(i)
        return 1 / (i - 3)

    begun, got = [], []
    with Workers(n) as team, pytest.raises(ZeroDivisionError):
        got.extend(team.map(one, range(100)))
    assert len(begun) <= 4 + n


@WORKERS
def test_the_gradients_of_few_shards_are_in_memory_at_once(n, monkeypatch):
    """Of 16 shards: those that wait, the one that is added, and the sum."""
    model, batch, lock, alive, most = made("full"), texts(16 * 64), threading.Lock(), set(), []
    real = type(model).loss_and_grad

    def counting(*args):
        loss, grads = real(model, *args)
        with lock:
            number = len(most)
            alive.add(number)
            weakref.finalize(grads["classifier.bias"], alive.discard, number)
            most.append(len(alive))
        return loss, grads

    model.loss_and_grad = counting
    got = step(n, model, batch)
    assert len(most) == len(cut(model, batch)) == 18
    assert max(most) <= n + 3
    assert_close_step(got, made("full").loss_and_grad(batch))


def test_map_takes_several_arguments():
    for n in (1, 2):
        with Workers(n) as team:
            assert list(team.map(divmod, [7, 8, 9], [2, 3, 4])) == [(3, 1), (2, 2), (2, 1)]
            assert list(team.map(divmod, [], [])) == []


@WORKERS
def test_the_error_state_of_numpy_reaches_the_threads(n):
    arrays = [np.zeros(1), np.array([1e4])]
    with Workers(n) as team:
        with np.errstate(all="raise"), pytest.raises(FloatingPointError, match="overflow"):
            list(team.map(np.exp, arrays))
        with np.errstate(all="ignore"):
            assert np.isinf(list(team.map(np.exp, arrays))[1])
        with pytest.warns(RuntimeWarning, match="overflow"):
            list(team.map(np.exp, arrays))


BLAS = {library["filepath"] for library in threadpool_info() if library["user_api"] == "blas"}  # SciPy brings another


def blas_threads():
    return {library["num_threads"] for library in threadpool_info() if library["filepath"] in BLAS}


@WORKERS
def test_blas_has_one_thread_inside_and_as_many_as_before_outside(n):
    with threadpool_limits(3, "blas"):
        assert blas_threads() == {3}
        with Workers(n) as team:
            assert blas_threads() == {1}
            assert list(team.map(lambda _: blas_threads(), range(4))) == 4 * [{1}]
        assert blas_threads() == {3}
        with pytest.raises(ZeroDivisionError), Workers(n) as team:
            list(team.map(lambda i: 1 / i, [1, 0]))
        assert blas_threads() == {3}
        train(lora_mlp(np.random.default_rng(0)), nine_rows(), AdamW(0), epochs=1)
        assert blas_threads() == {3}


def test_every_thread_limits_its_blas(monkeypatch):
    """A BLAS that is built on OpenMP has a limit for each thread: that of the main thread does not reach the others."""
    limited = []
    real = parallel.threadpool_limits
    monkeypatch.setattr(
        parallel, "threadpool_limits", lambda *a: limited.append((threading.get_ident(), *a)) or real(*a)
    )
    with Workers(2) as team:
        threads = set(team.map(lambda _: threading.get_ident(), range(4)))
    assert {(thread, 1, "blas") for thread in threads} <= set(limited)
    assert threading.get_ident() not in threads


def watched(model):
    """The list that every backward pass puts into: the threads of BLAS, and whether it runs on the main thread."""
    seen = []

    def backward(*args, **options):
        seen.append((blas_threads(), threading.current_thread() is threading.main_thread()))
        return type(model).backward(model, *args, **options)

    model.backward = backward
    return seen


@pytest.mark.parametrize(("rows", "inside"), [(28, 3), (29, 1)])
def test_a_batch_of_texts_that_is_not_cut_leaves_the_sharing_to_blas(rows, inside):
    """It is computed by the thread that asks, whose limit it is that is lifted."""
    model, batch = made("all matrices"), texts(rows)
    assert (len(cut(model, batch)) == 1) == (inside == 3)
    seen = watched(model)
    with threadpool_limits(2, "blas"):
        with Workers(3) as team:
            team.loss_and_grad(model, batch)
            assert blas_threads() == {1}
            with pytest.raises(InputError, match="ids must be"):
                team.loss_and_grad(model, batch | {"input_ids": batch["input_ids"] + 12})
            assert blas_threads() == {1}
        assert blas_threads() == {2}
    assert seen == [({inside}, inside == 3)] * len(cut(model, batch))


def test_features_are_never_left_to_blas(rng):
    model = lora_mlp(rng)
    seen = watched(model)
    step(3, model, {"x": rng.standard_normal((9, 5)), "labels": rng.integers(0, 7, 9)})
    assert seen == [({1}, False)]


def test_one_worker_a_core(monkeypatch):
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert Workers().n == cores() == 3
    monkeypatch.delattr(parallel.os, "sched_getaffinity")
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 7)
    assert cores() == 7
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: None)
    assert Workers().n == 1


def test_another_allocator_is_left_alone(monkeypatch):
    options = []
    libraries = [OSError("no library"), TypeError("Windows"), types.SimpleNamespace()]
    libraries.append(types.SimpleNamespace(mallopt=lambda *option: options.append(option)))
    for library in libraries:

        def load(name, library=library):
            if isinstance(library, Exception):
                raise library
            return library

        monkeypatch.setattr(parallel.ctypes, "CDLL", load)
        keep_freed_memory()
    assert [option for option, _ in options] == [-8, -3, -1]


# ---- loss and gradients ----------------------------------------------------------------------------------------------


def texts(rows=ROWS):
    """A batch of 9 words each in random order, padded to random lengths."""
    rng = np.random.default_rng(3)
    ids = rng.integers(4, 12, (rows, 9))
    ids[:, 0] = 2
    mask = np.arange(9) < rng.integers(2, 10, (rows, 1))
    return {"input_ids": ids * mask, "attention_mask": mask.astype(int), "labels": rng.integers(0, 3, rows)}


KINDS = {  # which linear layers have LoRA; None: full fine-tuning
    "all matrices": {"target_modules": "all-linear"},
    "query and value": {"target_modules": ["query", "value"]},
    "factored": {"target_modules": "all-linear", "order": "factored"},
    "full": None,
    "dropout": {"target_modules": "all-linear", "lora_dropout": 0.3},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
NO_DROPOUT = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dropout"])


def made(kind, dtype="float64"):
    model, options = tiny_bert(np.random.default_rng(1), dtype=dtype), dict(KINDS[kind] or {})
    if not options:
        return model
    order = options.pop("order", "auto")
    inject(model, LoRAConfig(r=2, init_lora_weights=False, modules_to_save=["classifier"], **options), 0)
    for layer in adapters(model).values():
        layer.order = order
    return model


def step(n, model, batch, seed=None):
    with Workers(n) as team:
        return team.loss_and_grad(model, batch, None if seed is None else np.random.default_rng(seed))


def assert_same_step(got, want):
    assert same_bits(got[0], want[0])
    assert got[1].keys() == want[1].keys()
    assert not [name for name, grad in got[1].items() if not same_bits(grad, want[1][name])]


def assert_close_step(got, want, tolerance=1e-12):
    """Gradients relative to the largest entry of all: a key's bias has gradient 0."""
    assert_close(got[0], want[0], tolerance)
    largest = max(np.abs(to_numpy(grad)).max() for grad in want[1].values())
    assert got[1].keys() == want[1].keys()
    for name, grad in want[1].items():
        atol = tolerance * largest
        np.testing.assert_allclose(to_numpy(got[1][name]), to_numpy(grad), rtol=0, atol=atol, err_msg=name)


@NO_DROPOUT
def test_shards_give_the_gradients_of_the_whole_batch(kind):
    model, batch = made(kind), texts()
    got = step(2, model, batch)
    assert len(cut(model, batch)) == 4
    assert got[1].keys() == model.trainable_params().keys()
    assert_close_step(got, model.loss_and_grad(batch))


@EVERY_KIND
def test_the_same_bits_for_any_number_of_workers_and_every_time(kind):
    model, batch = made(kind), texts()
    first = step(1, model, batch, seed=5)
    for n in (2, 3, 2):
        assert_same_step(step(n, model, batch, seed=5), first)


@WORKERS
def test_every_shard_draws_a_dropout_of_its_own(n):
    model, batch = made("dropout"), texts()
    loss, grads = 0.0, {}
    for shard, rng in zip(cut(model, batch), np.random.default_rng(5).spawn(4), strict=True):
        share = (shard.stop - shard.start) / ROWS
        own, own_grads = model.loss_and_grad({name: array[shard] for name, array in batch.items()}, Run(rng=rng))
        loss, grads = loss + share * own, add_grads(grads, {name: share * grad for name, grad in own_grads.items()})
    got = step(n, model, batch, seed=5)
    assert_close_step(got, (loss, grads), 1e-14)
    for seed in (None, 6):
        assert not np.isclose(step(n, model, batch, seed)[0], got[0], rtol=1e-6)


@WORKERS
@pytest.mark.parametrize("part", [slice(0, 1), slice(1, 3), slice(3, 4), slice(None), slice(2, 2)], ids=str)
def test_a_part_of_the_shards_is_as_among_all(n, part):
    model, batch = made("dropout"), texts()
    with Workers(n) as team:
        every = list(team.shards(model, batch, np.random.default_rng(5)))
        some = list(team.shards(model, batch, np.random.default_rng(5), part))
    assert len(every) == 4 and len(some) == len(every[part])
    for got, want in zip(some, every[part], strict=True):
        assert_same_step(got, want)


def test_without_dropout_a_generator_changes_nothing():
    model, batch = made("all matrices"), texts()
    assert_same_step(step(2, model, batch, seed=5), step(2, model, batch))


TARGETS = {
    "labels": lambda rng: rng.integers(0, 7, 601),
    "labels, few of which count": lambda rng: np.where(
        rng.random(601) < np.linspace(0, 1, 601), rng.integers(0, 7), -100
    ),
    "values": lambda rng: rng.standard_normal((601, 7)),
    "whole numbers": lambda rng: np.where(rng.random((601, 7)) < np.linspace(0, 1, 601)[:, None], 2, -3),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_rows_of_features(rng, kind):
    model, batch = lora_mlp(rng), {"x": rng.standard_normal((601, 5)), "labels": TARGETS[kind](rng)}
    model.loss = "cross_entropy" if "labels" in kind else "mean_squared_error"
    assert [s.stop - s.start for s in cut(model, batch)] == [300, 301]
    assert_close_step(step(2, model, batch), model.loss_and_grad(batch))


@pytest.mark.parametrize("rows", [1, 2, 28])
def test_a_small_batch_is_one_shard(rows):
    model, batch = made("all matrices"), texts(rows)
    assert len(cut(model, batch)) == 1
    assert_close_step(step(2, model, batch), model.loss_and_grad(batch))


def test_on_every_backend(put):
    batch, host = texts(), made("all matrices")
    want = host.loss_and_grad(batch)
    got = step(2, move(made("all matrices"), put), {name: put(array) for name, array in batch.items()})
    assert_lives_on(put(np.zeros(1)), got[0], *got[1].values())
    assert_close_step(got, want)


def test_float32_stays_float32():
    model, batch = made("full", "float32"), texts()
    loss, grads = step(2, model, batch)
    assert {a.dtype for a in (loss, *grads.values())} == {np.dtype("f4")}
    want = made("full").loss_and_grad(batch)
    assert_close_step((loss, grads), want, 20 * TOLERANCES["float32"])  # two blocks, six products each


def test_the_model_is_not_changed():
    model, batch = made("all matrices"), texts()
    before = {name: array.copy() for name, array in model.named_params().items()}
    attributes = {path: dict(vars(layer)) for path, layer in model.named_layers()}
    given = {name: array.copy() for name, array in batch.items()}
    step(3, model, batch, seed=1)
    assert batch.keys() == given.keys() and all(same_bits(batch[name], given[name]) for name in given)
    assert all(same_bits(array, before[name]) for name, array in model.named_params().items())
    assert {path: dict(vars(layer)) for path, layer in model.named_layers()} == attributes


@pytest.mark.parametrize(("rows", "targets"), [(ROWS, ROWS - 1), (ROWS, ROWS + 1), (4, 5), (0, 0), (ROWS, 0)])
def test_as_many_targets_as_rows(rows, targets):
    batch = texts(rows) | {"labels": texts(targets)["labels"]}
    shapes = rf"input_ids \({rows}, 9\), attention_mask \({rows}, 9\), labels \({targets},\)"
    what = "some rows, with labels for each" if rows == targets else "arrays of as many rows each"
    with pytest.raises(InputError, match=f"expected a batch of {what}; got {shapes}"):
        step(2, made("full"), batch)


# ---- answers ---------------------------------------------------------------------------------------------------------


def answered(n, model, batch):
    with Workers(n) as team:
        return team.answer(model, batch)


def shards_of(n, model, batch):
    """[(rows, threads of BLAS, whether on the main thread)] of every call of model.answer, in order of the rows."""
    seen, (first, *_) = [], batch

    def answer(part):
        seen.append((part[first], blas_threads(), threading.current_thread() is threading.main_thread()))
        return type(model).answer(model, part)

    model.answer = answer
    answered(n, model, batch)
    starts = [row.tobytes() for row in batch[first]]
    return sorted(seen, key=lambda call: starts.index(call[0][0].tobytes()))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("rows", [1, 28, ROWS, 600])
def test_answer_gives_what_the_model_gives_for_the_whole_batch(dtype, tolerance, rows):
    model, batch = made("all matrices", dtype), texts(rows)
    want = model.answer(batch)
    first = answered(1, model, batch)
    assert type(first) is np.ndarray and first.dtype == dtype
    assert_close(first, want, tolerance)
    for n in (2, 3):
        assert same_bits(answered(n, model, batch), first)


def test_answers_to_features_come_in_order(rng):
    model, batch = lora_mlp(rng), {"x": rng.standard_normal((3000, 5))}
    want = model.answer(batch)
    for n in (1, 2, 3):
        assert_close(answered(n, model, batch), want, 1e-14)


def test_answer_on_every_backend(put):
    batch = texts()
    got = answered(2, move(made("all matrices"), put), {name: put(array) for name, array in batch.items()})
    assert_lives_on(put(np.zeros(1)), got)
    assert_close(got, made("all matrices").answer(batch), 1e-13)


def test_shards_of_answer_are_twice_as_large():
    model, batch = made("full"), texts(600)
    calls = shards_of(2, model, batch)
    assert [len(rows) for rows, _, _ in calls] == [100] * 6  # 900 tokens; in training it would be 10 shards
    assert same_bits(np.concatenate([rows for rows, _, _ in calls]), batch["input_ids"])
    assert len(cut(model, batch)) == 10


def test_answer_leaves_a_small_batch_of_texts_to_blas():
    with threadpool_limits(2, "blas"):
        assert [call[1:] for call in shards_of(3, made("full"), texts(28))] == [({3}, True)]
        assert [call[1:] for call in shards_of(3, made("full"), texts(60))] == [({1}, False)] * 2
        assert blas_threads() == {2}


def test_answers_to_features_are_never_left_to_blas(rng):
    assert [call[1:] for call in shards_of(3, lora_mlp(rng), {"x": rng.standard_normal((9, 5))})] == [({1}, False)]


# ---- attention that absorbs ------------------------------------------------------------------------------------------


@NO_DROPOUT
def test_the_last_block_absorbs_with_the_same_bits_for_any_number_of_workers(kind):
    model, batch, calls = made(kind), texts(), []
    real = absorbed_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lorabook.models.attention.absorbed_attention", lambda *args: calls.append(1) or real(*args))
        first = step(1, model, batch)
        assert len(calls) == (0 if kind == "factored" else 4)  # one a shard
        for n in (2, 3):
            assert_same_step(step(n, model, batch), first)


# ---- errors ----------------------------------------------------------------------------------------------------------


@WORKERS
def test_an_overflow_in_a_shard_raises(rng, n):
    model, x = lora_mlp(rng), rng.standard_normal((600, 5))
    x[-1], before = 1e200, held(model)
    with np.errstate(all="raise", under="ignore"), pytest.raises(FloatingPointError):
        step(n, model, {"x": x, "labels": np.zeros(600, int)})
    assert held(model) == before


@WORKERS
@pytest.mark.parametrize("row", [0, ROWS - 1])
def test_an_error_in_one_shard_comes_out_as_itself(n, row):
    model, batch = made("all matrices"), texts()
    batch["input_ids"][row, 3], before = 12, held(model)
    with pytest.raises(InputError, match=r"ids must be from 0 to 11; got 0 to 12"):
        step(n, model, batch)
    assert held(model) == before
    batch["input_ids"][row, 3] = 11
    assert_close_step(step(n, model, batch), made("all matrices").loss_and_grad(batch))


# ---- one update for all shards ---------------------------------------------------------------------------------------


def counted(model):
    """The list that the path of each adapter goes into whenever it forms its update."""
    formed = []

    def counting(path, layer):
        return lambda: formed.append(path) or LoRALinear.delta_weight(layer)

    for path, layer in adapters(model).items():
        layer.delta_weight = counting(path, layer)
    return formed


@WORKERS
def test_a_step_forms_every_update_once(n):
    model, batch = made("all matrices"), texts()
    formed = counted(model)
    step(n, model, batch)
    assert sorted(formed) == sorted(adapters(model)) and len(formed) == 13


@pytest.mark.parametrize("kind", ["factored", "dropout"])
def test_a_step_that_does_not_merge_forms_none(kind):
    model, batch = made(kind), texts()
    formed = counted(model)
    step(2, model, batch, seed=1)
    assert not formed


def test_no_part_of_the_shards_forms_none():
    model, batch = made("all matrices"), texts()
    formed = counted(model)
    with Workers(2) as team:
        assert list(team.shards(model, batch, part=slice(4, 4))) == []
        assert not formed
        assert len(list(team.shards(model, batch, part=slice(0, 1)))) == 1
    assert sorted(formed) == sorted(adapters(model))


def test_nothing_is_stored_where_the_caller_stops(monkeypatch):
    model, batch = made("all matrices"), texts()
    before = held(model)
    monkeypatch.setattr(parallel, "add_grads", lambda *grads: 1 / 0)
    with threadpool_limits(2, "blas"):
        with Workers(2) as team, pytest.raises(ZeroDivisionError):
            team.loss_and_grad(model, batch)
        assert blas_threads() == {2}
    assert held(model) == before


@WORKERS
def test_an_evaluation_forms_every_update_once(n):
    model, batch = made("all matrices"), texts()
    want, formed = model.evaluate(batch), counted(model)
    batches = [model.part(batch, rows) for rows in (slice(0, 100), slice(100, 107), slice(107, None))]
    got = evaluate(model, batches, n)
    assert sorted(formed) == sorted(adapters(model))
    assert got == pytest.approx(want, rel=1e-13)
    assert got == evaluate(made("all matrices"), batches, 1)


# ---- a whole run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["all matrices", "full", "dropout"])
def test_a_run_gives_the_same_weights_for_any_number_of_workers(kind):
    runs = []
    for workers in (1, 2, None):
        model = made(kind, "float32")
        history = train(model, Batches(texts(400), 190, seed=1), AdamW(1e-2), epochs=2, seed=4, workers=workers)
        runs.append((history, {name: array.tobytes() for name, array in model.named_params().items()}))
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0][0]) == 4
    assert runs[0][1] != {name: array.tobytes() for name, array in made(kind, "float32").named_params().items()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fc1.base_layer.weight", np.nan),
        ("fc2.base_layer.bias", np.inf),
        ("fc1.lora_A", np.inf),
        ("fc2.lora_B", np.nan),
        ("fc1.base_layer.weight", 1e38),
    ],
)
def test_what_is_not_finite_is_named_with_two_workers(name, value):
    rng = np.random.default_rng(0)
    model = MLP((6, 8, 3), rng=rng)
    inject(model, LoRAConfig(r=2, init_lora_weights=False))
    model.named_params()[name][...] = value
    before, held_before = {name: array.tobytes() for name, array in model.named_params().items()}, held(model)
    x = 10 * rng.standard_normal((600, 6)).astype("f4")
    batches = Batches({"x": x, "labels": np.arange(600) % 3}, 300)
    assert len(cut(model, batches.at(0))) == 2
    with pytest.raises(NonFiniteError, match=rf"step 0: .*layer {name.partition('.')[0]}\b.*as before"):
        train(model, batches, AdamW(1e-2), epochs=1, workers=2)
    assert {name: array.tobytes() for name, array in model.named_params().items()} == before
    assert held(model) == held_before


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be given a core on this system")
@pytest.mark.parametrize("more", [0, 1])
def test_as_many_threads_as_cores_have_one_each(more):
    own, n = os.sched_getaffinity(0), cores() + more
    meet = threading.Barrier(n)

    def places(_):
        meet.wait(60)  # every thread of the pool is here at once
        return frozenset(os.sched_getaffinity(0))

    with Workers(n) as team:
        seen = list(team.map(places, range(n)))
    alone = n > 1 and not more
    assert sorted(map(sorted, seen)) == ([[core] for core in sorted(own)] if alone else [sorted(own)] * n)
    assert os.sched_getaffinity(0) == own
