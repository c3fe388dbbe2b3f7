"""The benchmark counts, runs and adds up; how fast anything is, is no matter for a test."""

import contextlib
import importlib.util
import itertools
import json
import os
import types

import matplotlib.pyplot as plt
import numpy as np
import pytest
from checks import assert_close, on_ranks, same_bits, tiny_bert, tiny_config, write_bert

from lorabook import InputError, backend, cli
from lorabook.adapters import adapters
from lorabook.bench import SIX, Case, Gemm, answers, compare, devices, hardware, ours, products, series, turns
from lorabook.bench.__main__ import Timed
from lorabook.book.plots import bench
from lorabook.commands import bench as command
from lorabook.files import read_csv

OPTIONS = ["--batch-size", 3, "--seq-len", 5, "--r", 2, "--threads", 1, "--runs", 2]
PEFT = importlib.util.find_spec("peft") is not None and importlib.util.find_spec("torch") is not None
BESIDE_PEFT = [pytest.mark.oracle, pytest.mark.skipif(not PEFT, reason="needs PEFT")]


@pytest.fixture
def model(tmp_path):
    network = tiny_bert(np.random.default_rng(0), dtype="float32")
    return str(write_bert(tmp_path / "model", network, tensors={"classifier.weight": None, "classifier.bias": None}))


@pytest.fixture
def tiny(model):
    def case(**options):
        return Case(**{"model": model, "batch_size": 3, "seq_len": 5, "r": 2, "threads": 1} | options)

    return case


# ---- which products a step needs -------------------------------------------------------------------------------------

MINILM = tiny_config(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12)
N, B, D, M = 16 * 128, 16, 384, 1536  # tokens, texts, widths


def flops(method="lora", **options):
    return sum(p.flops for p in products(MINILM, Case(**options), method))


def test_flops_of_minilm_by_hand():
    one = 2 * N * D * D  # a product of 384 x 384 with all tokens
    block = (4 + 2 * 4) * one  # query, key, value, attention output; two of four times the size
    first = 2 * B * (4 * D * D + 2 * D * M)  # the last block, first tokens only
    head = 2 * B * (D * D + D * 2)  # pooler and classifier
    forward = 5 * block + first + head
    assert forward == 36_300_152_832
    classifier_dw = 2 * B * D * 2
    assert flops(what="forward") == forward
    assert flops() == forward + (forward - 3 * one) + classifier_dw  # nothing needs dx below the first block
    assert flops(target_modules=("query",)) == flops()  # still: what feeds it is never needed
    assert flops("full") == 3 * forward
    assert flops(target_modules=("intermediate.dense",)) == flops() - one - 4 * one  # nor attention output and up of it


def test_the_lowest_adapted_layers_are_the_bottom(tiny):
    case = tiny(target_modules=("encoder.layer.1.attention.output.dense",))
    dx = [p.layer for p in products(tiny_config(), case) if p.kind == "dx"]
    path = "bert.encoder.layer.1."
    assert dx == ["classifier", "bert.pooler.dense", f"{path}output.dense", f"{path}intermediate.dense"]
    of_weights = [p.layer for p in products(tiny_config(), case) if p.kind == "dW"]
    assert of_weights == ["classifier"]


@pytest.mark.parametrize(("seq_len", "absorbed"), [(5, True), (1, False)])
def test_the_last_block_is_for_the_first_tokens(tiny, seq_len, absorbed):
    case = tiny(seq_len=seq_len)
    for method in ("lora", "full"):
        for p in products(tiny_config(), case, method):
            all_tokens = "layer.0." in p.layer or (p.layer.endswith((".key", ".value")) and not absorbed)
            assert p.N == (3 * seq_len if all_tokens else 3)
    shapes = {p.layer: (p.d_out, p.d_in) for p in products(tiny_config(), tiny())}
    network = tiny_bert(np.random.default_rng(0), labels=2).named_params()
    assert shapes == {path: network[f"{path}.weight"].shape for path in shapes}
    assert len(shapes) == 2 * 6 + 2


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("what", ["step", "forward"])
def test_the_ceiling_multiplies_everything(tiny, threads, what):
    gemm = Gemm(tiny(threads=threads, what=what))
    ways = {"one", "blas", "shards"} if threads > 1 else {"one"}
    for method in ("lora", "full"):
        assert set(gemm.operands) >= set(gemm.lists[method])
        for way in sorted(ways):
            for p in gemm.lists[method]:
                gemm.operands[p][2][...] = np.nan
            times = gemm._time([gemm.operands[p] for p in gemm.lists[method]], way, 2, 3)
            assert len(times) == 3 and min(times) > 0
            last = {id(gemm.operands[p][2]): p for p in gemm.lists[method]}  # outputs of one shape are shared
            for p in last.values():
                a, b, out = gemm.operands[p]
                assert 2 * a.shape[0] * a.shape[1] * b.shape[1] == p.flops
                assert_close(out, a @ b, 1e-6)
    assert set(gemm.turn(2, "lora")) == ways


def test_one_weight_a_layer(tiny):
    gemm = Gemm(tiny())
    weights = {p.layer: gemm.operands[p][1] for p in gemm.lists["lora"] if p.kind == "forward"}
    assert len({id(W.base) for W in weights.values()}) == len(weights)


# ---- the sides -------------------------------------------------------------------------------------------------------


def arrays_changed_by(once, network):
    before = {name: array.copy() for name, array in network.named_params().items()}
    once()
    after = network.named_params()
    return {name for name, array in before.items() if not same_bits(array, after[name])}


@pytest.fixture
def watched(monkeypatch):
    """The networks that the sides build."""
    built, network = [], ours.network
    monkeypatch.setattr(ours, "network", lambda case: built.append(network(case)) or built[-1])
    return built


def test_our_step_trains_the_factors_and_the_classifier(tiny, watched):
    once, device = ours.lora(tiny(target_modules=("query", "output.dense")))
    assert isinstance(device, devices.Host)
    once()  # B has left zero, so A moves too
    chosen = adapters(watched[0])
    assert len(chosen) == 2 * 3
    factors = {f"{path}.lora_{factor}" for path in chosen for factor in "AB"}
    assert arrays_changed_by(once, watched[0]) == factors | {"classifier.weight", "classifier.bias"}


def test_our_full_step_trains_everything(tiny, watched):
    once, _ = ours.full(tiny())
    changed = arrays_changed_by(once, watched[0])
    still = set(watched[0].named_params()) - changed
    assert still <= {f"bert.encoder.layer.{i}.attention.self.key.bias" for i in range(2)}  # softmax cannot see it


def test_our_inference_is_merged_and_trains_nothing(tiny, watched):
    once, _ = ours.lora(tiny(what="forward"))
    assert all(layer.merged for layer in adapters(watched[0]).values())
    assert arrays_changed_by(once, watched[0]) == set()


def test_a_random_model_needs_no_file(watched):
    case = Case(model="block-1024", batch_size=1, seq_len=3, r=2, threads=1)
    once, _ = ours.lora(case)
    params = watched[0].named_params()
    assert params["bert.encoder.layer.3.intermediate.dense.base_layer.weight"].shape == (4096, 1024)
    for name, array in params.items():
        assert array.dtype == np.float32
        if array.ndim == 2 and "lora" not in name and "LayerNorm" not in name:
            assert np.std(array) == pytest.approx(0.02, rel=0.1)
    assert np.all(params["bert.embeddings.LayerNorm.weight"] == 1)
    once()
    assert all(np.all(np.isfinite(array)) for array in watched[0].trainable_params().values())


def test_the_same_seed_is_the_same_model_and_batch(tiny):
    first, second, other = (ours.network(tiny(seed=seed)).named_params() for seed in (0, 0, 1))
    assert same_bits(first["classifier.weight"], second["classifier.weight"])
    assert not same_bits(first["classifier.weight"], other["classifier.weight"])
    ids, labels = tiny().batch(12).values()
    assert ids.shape == (3, 5) and ids.min() > 0  # no padding: both sides attend to everything
    assert set(labels) <= {0, 1}


def test_several_short_steps_follow_an_untimed_one():
    log = []
    device = types.SimpleNamespace(synchronize=lambda: log.append("wait"), peak_mb=lambda once: once() or 7.0)
    timed = Timed(lambda: log.append("step"), device)
    assert len(timed.turn(1)) == 1
    assert log == ["wait", "step", "wait"]
    log.clear()
    assert len(timed.turn(2)) == 2
    assert log == ["step", *["wait", "step", "wait"] * 2]
    assert timed.peak() == 7.0


def test_a_side_that_breaks_or_refuses_says_why(tiny):
    with pytest.raises(RuntimeError, match="the nonsense side failed: KeyError: 'nonsense'"):
        with turns.Side("nonsense", tiny()) as side:
            side.ask("ready")
    with turns.Side("lorabook", tiny(target_modules=("nothing",))) as side:
        with pytest.raises(InputError, match=r"the lorabook side cannot run: target module 'nothing' matches no"):
            side.ask("ready")
    assert side.process.poll() is not None


def test_the_memory_of_the_parent_does_not_count(tiny):
    ballast = np.ones(50_000_000)  # 400 MB
    with turns.Side("lorabook", tiny()) as side:
        side.ask("turn", 1)
        peak = side.ask("peak")
    assert 20 < peak < 300 < ballast.nbytes / 1e6


def test_peak_of_a_gpu_is_the_most_at_once_while_a_step_runs():
    used, hooks = [100e6], []

    class Hook:
        def __enter__(self):
            hooks.append(self)

        def __exit__(self, *_):
            hooks.remove(self)

    def allocate(size):
        used[0] += size
        for hook in hooks:
            hook.malloc_postprocess(device_id=0, size=size, mem_size=size, mem_ptr=1, pmem_id=1)

    def once():
        allocate(30e6)
        used[0] -= 20e6
        allocate(5e6)
        used[0] -= 15e6

    pool = types.SimpleNamespace(used_bytes=lambda: used[0])
    cuda = types.SimpleNamespace(MemoryHook=Hook, Device=lambda: types.SimpleNamespace(synchronize=lambda: None))
    device = devices.CupyDevice(types.SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool))
    allocate(500e6)
    used[0] -= 500e6
    assert device.peak_mb(once) == 130.0
    assert not hooks


def test_peak_of_torch_is_counted_from_the_step_on():
    log = []
    names = ("synchronize", "reset_peak_memory_stats", "max_memory_allocated")
    cuda = types.SimpleNamespace(**{name: lambda name=name: log.append(name) or 3e6 for name in names})
    assert devices.TorchCuda(types.SimpleNamespace(cuda=cuda)).peak_mb(lambda: log.append("once")) == 3.0
    assert log == ["synchronize", "reset_peak_memory_stats", "once", "synchronize", "max_memory_allocated"]


def test_the_machine_in_words():
    assert hardware.machine().endswith(" cores")
    assert f"numpy {np.__version__}, " in hardware.versions()
    assert "torch" in hardware.versions(vs="peft") and "torch" not in hardware.versions()


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_json(run, model):
    def call(what, *argv):
        code, out, err = run("bench", what, "--model", model, *OPTIONS, *argv, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def check_side(side):
    assert 0 < side["min"] <= side["median"]
    assert 20 < side["peak_mb"] < 2000
    assert side["gemm_share"] == side["gemm_seconds"] / side["median"]


def test_a_step_is_measured_in_a_process_of_its_own(run_json):
    result = run_json("step")
    check_side(result["lorabook"])
    assert result["gemm_share"] == result["lorabook"]["gemm_share"]
    assert result["gemm_seconds"] == min(result["gemm"]["lora"].values())
    assert result["target_modules"] == list(SIX)
    assert "time_ratio" not in result


def test_a_machine_that_slows_down_between_turns_leaves_the_ratio_alone(tiny, monkeypatch):
    speed = itertools.chain([1.0] * turns.WARMUP, [1.0, 1.0, 3.0, 3.0, 1.0])

    class Side(contextlib.nullcontext):
        def __init__(self, name, case):
            super().__init__(self)
            self.name = name

        def ask(self, what, n=None, method=None):
            if what == "peak":
                return 100.0
            if self.name == "lorabook" and what == "turn":
                Side.seconds = next(speed)
            seconds = {"lorabook": 0.4, "full": 0.5, "gemm": 0.2}[self.name] * getattr(Side, "seconds", 1)
            return {"one": [seconds]} if self.name == "gemm" else [seconds] * (n or 1)

    monkeypatch.setattr(turns, "Side", Side)
    monkeypatch.setattr(turns, "PAUSE", 0)
    result = turns.compare(tiny(), runs=5, vs="full")
    assert result["time_ratio"] == pytest.approx(0.8)
    assert [row["time_ratio"] for row in turns.rows(result)] == [result["time_ratio"], 1]


@pytest.mark.parametrize("vs", ["full", pytest.param("peft", marks=BESIDE_PEFT)])
def test_two_sides_and_their_ratios(run_json, run, model, tmp_path, vs):
    out = tmp_path / "new" / "step.csv"
    result = run_json("step", "--vs", vs, "--out", out)
    check_side(result["lorabook"])
    check_side(result[vs])
    assert 0 < result["time_ratio"] < 1000
    assert result["memory_ratio"] == result["lorabook"]["peak_mb"] / result[vs]["peak_mb"]
    assert list(result["gemm"]) == (["lora", "full"] if vs == "full" else ["lora"])
    ours, theirs = read_csv(out)
    assert (ours["side"], theirs["side"]) == ("lorabook", vs)
    assert ours["time_ratio"] == pytest.approx(result["time_ratio"], rel=1e-5)
    assert theirs["time_ratio"] == theirs["memory_ratio"] == 1
    assert ours["target_modules"] == "all-linear" and ours["machine"] == hardware.machine()
    assert out.read_text().startswith(f"# lorabook bench step --model {model} --batch-size 3")


@on_ranks
def test_ranks_beside_threads(run_json):
    result = run_json("step", "--vs", "ranks", "--threads", 2)
    check_side(result["ranks"])
    assert result["memory_ratio"] < 0.8, "two processes, but the memory of one"


def test_without_mpiexec_the_comparison_says_so(run, model, monkeypatch):
    monkeypatch.setattr("lorabook.bench.job.shutil.which", lambda *_, **__: None)
    code, _, err = run("bench", "step", "--model", model, *OPTIONS, "--vs", "ranks")
    assert code == 2
    assert "pip install -e '.[mpi]'" in err


@pytest.mark.oracle
@pytest.mark.skipif(not PEFT, reason="needs PEFT")
def test_inference_beside_torch(run_json):
    result = run_json("forward", "--vs", "peft")
    check_side(result["peft"])
    assert result["what"] == "forward"


def test_with_a_broken_peft_the_comparison_says_so(run, model, tmp_path, monkeypatch):
    """It is there, but cannot be imported. `test_extras` hides it."""
    for name in ("torch", "transformers", "peft"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('it is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, err = run("bench", "step", "--model", model, *OPTIONS, "--vs", "peft")
    assert code == 2
    assert "the peft side cannot run: it is broken" in err and "install the extra `oracle`" in err


@pytest.mark.parametrize("what", ["gemm", "step", "forward"])
def test_text_is_narrow(run, model, what):
    code, out, err = run(
        "bench", what, "--model", model, *OPTIONS, "--threads", 2, *["--vs", "full"] * (what == "step")
    )
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    ceiling = next(line for line in out.splitlines() if line.startswith("the products alone "))
    assert "shards, s" in ceiling and ("Of ceiling: " in out) == (what != "gemm")


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(["good", "the bad film", "a poor plot a fine film", "bad"] * 3))
    return str(tmp_path / "texts.txt")


@pytest.mark.parametrize("vs", [None, pytest.param("peft", marks=BESIDE_PEFT)])
def test_answers_here_and_there(run, model, texts, tmp_path, vs):
    options = ["--model", model, "--data", texts, "--texts", 9, "--seq-len", 9, "--batch-size", 4, "--r", 2]
    options += ["--threads", 1, "--runs", 2, *(["--vs", vs] if vs else []), "--out", tmp_path / "predict.csv"]
    code, out, err = run("bench", "predict", *options)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines()[:-2])) <= 80
    rows = read_csv(tmp_path / "predict.csv")
    assert [row["side"] for row in rows] == (["lorabook", "peft"] if vs else ["lorabook"])
    assert all(0 < row["min"] <= row["median"] and 20 < row["peak_mb"] < 2000 for row in rows)
    assert rows[0]["first_seconds"] > 0
    if vs:
        assert rows[0]["memory_ratio"] == pytest.approx(rows[0]["peak_mb"] / rows[1]["peak_mb"], rel=1e-4)
        assert rows[0]["time_ratio"] > 0
        assert "lorabook over PEFT's merged model in transformers:" in out


def test_answers_that_differ_are_told():
    with pytest.raises(RuntimeError, match="the answers of lorabook and peft differ"):
        answers._check({"lorabook": [[0.4, 0.6]], "peft": [[0.5, 0.5]]})


def test_gemm_counts_each_product_of_a_step(run_json, tmp_path):
    result = run_json("gemm", "--threads", 2, "--out", tmp_path / "gemm.csv")
    case = Case(batch_size=3, seq_len=5)
    for method in ("lora", "full"):
        assert sum(row[method] for row in result["rows"]) == len(products(tiny_config(), case, method))
        work = sum(2 * row["N"] * row["d_in"] * row["d_out"] * row[method] for row in result["rows"])
        assert result["gflop"][method] == work / 1e9
    rows = read_csv(tmp_path / "gemm.csv")
    assert len(rows) == 3 * len(result["rows"])
    assert {row["way"] for row in rows} == {"one", "blas", "shards"}
    assert all(row["gflops"] > 0 for row in rows)


def test_scaling_varies_one_thing_at_a_time(run, run_json, model, monkeypatch, tmp_path):
    grid = {"batch_size": (1, 3), "seq_len": (5, 10), "r": (7,), "adapted": (("query",),)}
    monkeypatch.setattr(series, "GRID", grid)
    rows = run_json("step", "--scaling", "--out", tmp_path / "scaling.csv")["rows"]
    assert [(row["varied"], row["value"]) for row in rows] == [
        *(("batch_size", 1), ("batch_size", 3), ("seq_len", 5), ("adapted", 2))  # 10 tokens, rank 7: more than it has
    ]
    assert rows[1]["median"] == rows[2]["median"]  # the same setting is measured once
    assert [row["batch_size"] for row in rows] == [1, 3, 3, 3]
    assert len(read_csv(tmp_path / "scaling.csv")) == 4
    monkeypatch.setattr(series, "GRID", {"batch_size": (1,)})
    _, out, _ = run("bench", "step", "--model", model, *OPTIONS, "--scaling")
    assert "batch_size" in out and max(map(len, out.splitlines())) <= 80


def test_sweep_in_one_process_and_in_two(run, tmp_path):
    options = ["--jobs", 2, "--ranks", 1, "--seeds", 1, "--epochs", 1, "--runs", 1, "--out", tmp_path / "s.csv"]
    code, out, err = run("bench", "sweep", *options, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["time_ratio"] == result["many"]["median"] / result["one"]["median"]
    assert [row["jobs"] for row in read_csv(tmp_path / "s.csv")] == [1, 2]


def test_a_larger_model_has_a_batch_of_its_own(monkeypatch):
    seen = []
    monkeypatch.setattr("lorabook.bench.compare", lambda case, *_, **__: seen.append(case) or 1 / 0)
    for model in ("block-1024", "minilm"):
        with pytest.raises(ZeroDivisionError):
            cli.main(["bench", "step", "--model", model])
    assert [(case.batch_size, case.seq_len) for case in seen] == [(4, 512), (16, 128)]


@pytest.mark.parametrize(
    ("what", "argv", "message"),
    [
        ("step", ["--runs", "0"], "argument --runs: expected an integer from 1 to 1000000000; got '0'"),
        ("step", ["--batch-size", "-1"], "argument --batch-size: expected an integer from 1 to 1000000000; got '-1'"),
        ("step", ["--seq-len", "10"], "--seq-len must be at most 9, the positions of"),
        ("step", ["--target-modules", "nothing"], "matches no linear layer"),
        ("gemm", ["--target-modules", "nothing"], "matches no linear layer"),
        ("step", ["--r", "99"], "the lorabook side cannot run: r must be at most 36"),
        ("step", ["--tf32"], "it needs --backend cupy"),
        ("step", ["--out", "numbers.txt"], "--out must be a file whose name ends in .csv; got numbers.txt"),
        ("step", ["--jobs", "2"], "bench step has no option --jobs"),
        ("forward", ["--vs", "full"], "--vs full is for bench step"),
        ("forward", ["--vs", "ranks"], "--vs ranks is for bench step"),
        ("forward", ["--scaling"], "bench forward has no option --scaling"),
        ("gemm", ["--vs", "peft"], "bench gemm has no option --vs"),
        ("sweep", [], "bench sweep has no option --batch-size"),
    ],
)
def test_bad_input(run, model, what, argv, message):
    code, _, err = run("bench", what, "--model", model, *OPTIONS, *argv)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--jobs", "1"], "2 processes or more, once or more; got 1, 3"),
        (["--ranks", "999"], "rank 999 is larger"),
        (["--seeds", "0"], "argument --seeds: expected an integer from 1 to 1000; got '0'"),
    ],
)
def test_bad_input_of_the_sweep(run, argv, message):
    code, _, err = run("bench", "sweep", "--jobs", 2, *argv)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_each_default_is_told_in_the_help(run):
    _, out, _ = run("bench", "--help")
    for default in (16, 128, 4, 512, 8, "minilm", "all-linear"):
        assert str(default) in out
    assert set(command.OPTIONS) == {"gemm", "step", "forward", "predict", "generate", "sweep"}


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(backend.gpu_problem() is None, reason="a GPU answers: its absence cannot be tested")
@pytest.mark.parametrize("what", ["gemm", "step", "forward", "predict", "sweep"])
def test_without_a_gpu_the_command_says_so(run, what):
    code, _, err = run("bench", what, "--backend", "cupy")
    assert code == 2
    assert err.startswith("lorabook bench: backend cupy cannot be used: ")
    assert err.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [False, True])
def test_on_a_gpu(model, tf32):
    if problem := backend.gpu_problem():
        pytest.skip(problem)
    case = Case(model=model, batch_size=3, seq_len=5, r=2, threads=1, backend="cupy", tf32=tf32)
    result = compare(case, runs=2, vs="full")
    assert result["gemm"]["lora"]["device"] > 0
    assert 0 < result["lorabook"]["peak_mb"] <= result["full"]["peak_mb"]


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch):
    """Instead of a measurement: numbers that grow with the tokens."""

    def pretend(case, runs, vs=None, **_):
        tokens = case.batch_size * case.seq_len
        result = {name: getattr(case, name) for name in case.__dataclass_fields__}
        result |= {"runs": runs, "vs": vs, "adapted": len(case.target_modules), "machine": "M", "versions": "V"}
        result["time_ratio"] = 0.5
        for side, seconds in (("lorabook", 1e-3 * tokens), (vs, 2e-3 * tokens)):
            result[side] = {"median": seconds, "min": seconds, "peak_mb": 100 * seconds + 100}
            result[side] |= {"gemm_seconds": seconds / 2, "gemm_share": 0.5}
        return result

    monkeypatch.setattr(series, "compare", pretend)


def test_picture_of_the_settings(measured):
    rows = series.step_time()
    assert len(rows) == 2 * len(series.STEP_TIME)
    figure = bench.step_time(rows)
    assert plt.get_fignums() == []
    times, memory = figure.axes
    assert [bar.get_width() for bar in times.patches] == [0.5] * len(series.STEP_TIME)
    assert all(0.5 < bar.get_width() < 1 for bar in memory.patches)
    ticks = [label.get_text() for label in times.get_yticklabels()]
    assert ticks[0] == "16 x 128\ninference, merged"
    assert ticks[-1] == "16 x 128\nall-linear"
    assert {text.get_text() for text in times.texts} >= {"PEFT = 1", "0.50", "2.05 s : 4.10 s", "32.0 ms : 64.0 ms"}
    assert all(axes.get_xlabel() for axes in figure.axes)


def test_picture_of_how_cost_grows(measured):
    rows = series.scaling(Case(model="block-1024"), vs="peft")
    figure = bench.step_scaling(rows)
    assert len(figure.axes) == 8
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert "stay at 16 x 128 tokens, r = 8, all-linear" in figure._suptitle.get_text()
    assert [text.get_text() for text in figure.axes[0].texts] == ["lorabook", "PEFT"]
    ours = figure.axes[0].lines[0]
    assert list(ours.get_xdata()) == list(series.GRID["batch_size"])
    assert list(ours.get_ydata()) == [1e-3 * 128 * b for b in series.GRID["batch_size"]]
