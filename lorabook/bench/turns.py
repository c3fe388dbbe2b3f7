"""Two sides take turns: each in a process of its own, so that its peak memory is its own, step by step.

A change of the machine's speed so meets both. Before a turn there is a pause in which the other side's threads go to
sleep: for some milliseconds after its work a thread of BLAS or OpenMP spins, and would take a core away. Short steps
come several to a turn, after an untimed one, because a turn starts with a cold cache and training does not.
"""

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict

from tqdm import tqdm

from ..errors import InputError
from .case import Case
from .decoder import decodes
from .gemm import PAUSE
from .hardware import machine, versions
from .job import mpiexec
from .step_products import chosen, products

METHODS = {"lorabook": "lora", "ranks": "lora", "peft": "lora", "full": "full"}  # a side: what it computes
WARMUP = 3
TURN, MOST = 0.2, 20  # a turn: as many steps as take about TURN seconds, at most MOST


def compare(case, runs=15, vs=None, progress=False):
    """Time and peak memory of our side and of `vs` ("peft", "full", "ranks" or None), and the ceiling: one dict.

    {the case's fields, runs, vs, adapted, machine, versions, gemm, gemm_seconds, gemm_share, time_ratio, memory_ratio,
    lorabook: {median, min, peak_mb, gemm_seconds, gemm_share}, vs: likewise}. Seconds are of one step; gemm: medians
    {method: {way: seconds}}, of which the fastest way is gemm_seconds. time_ratio: lorabook's over the other side's
    seconds, turn by turn, of which the median: a machine whose speed changes does so between turns. memory_ratio: of
    the peaks. Raises InputError if a side cannot run.
    """
    config = case.config()
    adapted = len(chosen(config, case))
    names = ["lorabook", *([vs] if vs else [])]
    methods = dict.fromkeys(METHODS[name] for name in names)
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(Side(name, case)) for name in (*names, "gemm")}
        for side in sides.values():
            side.ask("ready")
        for _ in range(WARMUP):
            slowest = max(sides[name].ask("turn", 1)[0] for name in names)
        n = max(1, min(MOST, int(TURN / slowest)))
        seconds = {name: [] for name in names}
        gemm = {method: {} for method in methods}
        for _ in tqdm(range(runs), delay=2, disable=None if progress else True, unit="turn"):
            for name in names:
                time.sleep(PAUSE)
                seconds[name].append(sides[name].ask("turn", n))
            for method in methods:
                for way, times in sides["gemm"].ask("turn", n, method).items():
                    gemm[method].setdefault(way, []).extend(times)
        peaks = {name: sides[name].ask("peak") for name in names}
    gemm = {method: {way: statistics.median(times) for way, times in ways.items()} for method, ways in gemm.items()}
    result = asdict(case) | {"runs": runs, "vs": vs, "adapted": adapted, "decoder": decodes(config)}
    result |= {"machine": machine(case.backend), "versions": versions(case.backend, vs), "gemm": gemm}
    result["gflop"] = {method: _gflop(config, case, method) for method in methods}
    for name in names:
        every, ceiling = [*itertools.chain(*seconds[name])], min(gemm[METHODS[name]].values())
        median = statistics.median(every)
        result[name] = {"median": median, "min": min(every), "peak_mb": peaks[name]}
        result[name] |= {"gemm_seconds": ceiling, "gemm_share": ceiling / median}
    result |= {key: result["lorabook"][key] for key in ("gemm_seconds", "gemm_share")}
    if vs:
        turns = zip(*(map(statistics.median, seconds[name]) for name in names), strict=True)
        result["time_ratio"] = statistics.median(own / other for own, other in turns)
        result["memory_ratio"] = result["lorabook"]["peak_mb"] / result[vs]["peak_mb"]
    return result


def ceiling(case, runs=5):
    """The products of a step by shape and in total: {the case's fields, runs, machine, versions, rows, gemm, gflop}.

    rows: as `Gemm.shapes`. gemm: {method: {way: median seconds of one step's products}}.
    """
    config = case.config()
    chosen(config, case)  # complains about targets
    with Side("gemm", case) as side:
        side.ask("ready")
        shapes = side.ask("shapes", runs)
        gemm = {method: side.ask("turn", runs, method) for method in ("lora", "full")}
    result = asdict(case) | {"runs": runs, "machine": machine(case.backend), "versions": versions(case.backend)}
    result |= {"rows": shapes, "gflop": {m: _gflop(config, case, m) for m in gemm}}
    return result | {"gemm": {m: {way: statistics.median(s) for way, s in ways.items()} for m, ways in gemm.items()}}


def _gflop(config, case, method):
    return sum(p.flops for p in products(config, case, method)) / 1e9


def rows(result):
    """The tidy rows of a `compare`: one a side, its ratios to the side that is compared with."""
    vs, case = result["vs"], {name: result[name] for name in ("what", "model", "batch_size", "seq_len", "r")}
    case["target_modules"] = Case(target_modules=result["target_modules"]).targets
    case |= {name: result[name] for name in ("adapted", "threads", "backend", "tf32")}
    if result.get("decoder"):
        case |= {name: result[name] for name in ("base_dtype", "recompute", "new_tokens")}
    tidy = []
    for name in (name for name in METHODS if name in result):
        own, other = result[name], result.get(vs)
        ratios = {
            "time_ratio": other and (1.0 if name == vs else result["time_ratio"]),
            "memory_ratio": other and own["peak_mb"] / other["peak_mb"],
        }
        tidy.append(case | {"side": name} | own | ratios | {n: result[n] for n in ("machine", "versions")})
    return tidy


class Side:
    """A process that runs one side: a context manager, so that it ends whatever happens here."""

    def __init__(self, name, case):
        self.name, start, threads = name, [], case.threads
        if name == "ranks":  # as many as the other side has threads, with one each
            start, threads = mpiexec(case.threads), 1
        threads = {f"{library}_NUM_THREADS": str(threads) for library in ("OPENBLAS", "OMP", "MKL")}
        self.env = os.environ | threads | {"CUPY_TF32": str(int(case.tf32))}
        self.command = [*start, sys.executable, "-m", __package__, name, json.dumps(asdict(case))]

    def __enter__(self):
        self.errors = tempfile.TemporaryFile(
            "w+", encoding="utf-8", errors="replace"
        )  # a pipe that nobody empties would stop the other end
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(self.command, **pipes, encoding="utf-8", env=self.env)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def ask(self, *question):
        """The answer to [name of a method, arguments]. InputError if the side has refused, RuntimeError if it broke."""
        with contextlib.suppress(BrokenPipeError):  # a side that is gone has no answer either
            print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if answer:
            return json.loads(answer)
        code = self.process.wait()
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or [f"no message, exit code {code}"])[-1]
        if code == 2:
            raise InputError(f"the {self.name} side cannot run: {last}")
        raise RuntimeError(f"the {self.name} side failed: {last}")
