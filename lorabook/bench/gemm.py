"""The ceiling: how fast this machine multiplies float32 matrices of the shapes that a step has.

On a CPU in these ways: "blas", each product on `threads` BLAS threads, one after another; "shards", each of `threads`
Python threads does its share of the rows of every product on one BLAS thread, and they meet only at the end; "one", a
single thread, which wins where the products are tiny. Weights are as many as the model's, so that a small batch waits
for them as a step does; entries are random, outputs allocated beforehand.
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from ..backend import get_xp
from .devices import CupyDevice, Host
from .step_products import products

PAUSE = 0.05  # seconds in which BLAS and OpenMP threads stop spinning for work that does not come
MEASURED = 0.02  # seconds that one timing of a shape takes at least


class Gemm:
    """The products of a case, ready to be timed: those of full fine-tuning, of which LoRA's are a part."""

    def __init__(self, case):
        config, xp = case.config(), get_xp(case.backend)
        self.matmul = xp.matmul
        self.lists = {method: products(config, case, method) for method in ("lora", "full")}
        self.threads, self.pool = case.threads, ThreadPoolExecutor(case.threads)
        self.device = Host() if xp is np else CupyDevice(xp)
        self.ways = ("device",) if xp is not np else ("one", "blas", "shards") if self.threads > 1 else ("one",)
        self.operands = self._operands(xp, np.random.default_rng(case.seed))

    def _operands(self, xp, rng):
        """{product: (a, b, out)} with out = a b. One weight a layer; inputs and outputs of one shape are shared."""
        arrays = {}

        def array(*key):
            if key not in arrays:
                arrays[key] = xp.asarray(rng.standard_normal(key[-2:], dtype="float32"))
            return arrays[key]

        operands = {}
        for p in self.lists["full"]:
            x, dout, W = array("x", p.N, p.d_in), array("dout", p.N, p.d_out), array(p.layer, p.d_out, p.d_in)
            operands[p] = {
                "forward": lambda x=x, W=W, p=p: (x, W.T, array("y", p.N, p.d_out)),
                "dx": lambda dout=dout, W=W, p=p: (dout, W, array("dx", p.N, p.d_in)),
                "dW": lambda dout=dout, x=x, p=p: (dout.T, x, array("dW", p.d_out, p.d_in)),
            }[p.kind]()
        return operands

    def turn(self, n, method):
        """{way: n times the seconds of the products of one step}; of several, an untimed one goes before."""
        triples = [self.operands[p] for p in self.lists[method]]
        seconds = {}
        for way in self.ways:
            time.sleep(PAUSE)
            seconds[way] = self._time(triples, way, 1, n, warm=n > 1)
        return seconds

    def shapes(self, n):
        """[{kind, N, d_in, d_out, lora, full, gflops: {way: median of n}}]: lora, full: how often a step has it."""
        groups = {}
        for p in self.operands:
            groups.setdefault(p.shape, []).append(p)
        rows = []
        for (kind, N, d_in, d_out), group in groups.items():
            triples = [self.operands[p] for p in group]
            rows.append({"kind": kind, "N": N, "d_in": d_in, "d_out": d_out})
            rows[-1] |= {method: sum(p in group for p in self.lists[method]) for method in self.lists}
            work, rates = sum(p.flops for p in group) / 1e9, {}
            for way in self.ways:
                if way == "shards":
                    time.sleep(PAUSE)  # after the threads of BLAS
                once = self._time(triples, way, 1, 1, warm=True)[0]
                repeats = min(10_000, math.ceil(MEASURED / once))
                rates[way] = repeats * work / float(np.median(self._time(triples, way, repeats, n)))
            rows[-1]["gflops"] = rates
        return rows

    def _time(self, triples, way, repeats, n, warm=False):
        """n times the seconds that all the products take, `repeats` times over."""
        seconds = []
        with threadpool_limits(self.threads if way == "blas" else 1, user_api="blas"):
            for timed in [False] * warm + [True] * n:
                shards = _shards(triples, self.threads) if way == "shards" else [triples]
                run = self.pool.map if way == "shards" else map
                self.device.synchronize()
                start = time.perf_counter()
                for _ in run(lambda shard: self._multiply(shard, repeats), shards):
                    pass
                self.device.synchronize()
                if timed:
                    seconds.append(time.perf_counter() - start)
        return seconds

    def _multiply(self, triples, repeats):
        for _ in range(repeats):
            for a, b, out in triples:
                self.matmul(a, b, out=out)


def _shards(triples, n):
    """n lists of the same products, each on its part of the rows of a and out."""

    def part(a, i):
        return a[len(a) * i // n : len(a) * (i + 1) // n]

    return [[(part(a, i), b, part(out, i)) for a, b, out in triples if len(part(out, i))] for i in range(n)]
