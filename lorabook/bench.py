"""Time and peak memory of one training step, ours and PEFT's, side by side in one run.

Each side is a process of its own, so that its peak memory is its own; the two take turns, step by step, so that a
change of the machine's speed meets both. A step is forward, backward and AdamW, without dropout, in float32, on random
token ids of one length. Only ratios of one run mean anything: these are the medians that the command prints.
"""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from .errors import InputError

SIX = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


def compare_steps(options, runs=15, warmup=3, vs=None):
    """Seconds a step and peak MB of our side and, with vs="peft", of PEFT's; the share of matrix products in our time.

    options: model, batch_size, seq_len, r, target_modules, threads. Raises InputError if PEFT is asked for and missing.
    """
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(_Side(name, options)) for name in ("lorabook", *([vs] if vs else []))}
        for side in sides.values():
            side.ask("start")
        for _ in range(warmup):
            for side in sides.values():
                side.ask("step")
        seconds = {name: [] for name in sides}
        for _ in range(runs):
            for name, side in sides.items():
                seconds[name].append(side.ask("step"))
        gemm = statistics.median(sides["lorabook"].ask("gemm") for _ in range(5))
        peak = {name: side.ask("peak") for name, side in sides.items()}
    result = dict(options) | {"runs": runs, "gemm_seconds": gemm}
    for name in sides:
        result[name] = {"median": statistics.median(seconds[name]), "min": min(seconds[name]), "peak_mb": peak[name]}
    result["gemm_share"] = gemm / result["lorabook"]["median"]
    if vs:
        result["time_ratio"] = result["lorabook"]["median"] / result[vs]["median"]
        result["memory_ratio"] = result["lorabook"]["peak_mb"] / result[vs]["peak_mb"]
    return result


class _Side:
    """A process that answers "start", "step", "gemm" and "peak" with a number each."""

    def __init__(self, name, options):
        self.name, threads = name, str(options["threads"])
        self.env = os.environ | {f"{library}_NUM_THREADS": threads for library in ("OPENBLAS", "OMP", "MKL")}
        self.command = [sys.executable, "-m", "lorabook.bench", name, json.dumps(options)]

    def __enter__(self):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(self.command, **pipes, text=True, env=self.env)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def ask(self, what):
        with contextlib.suppress(BrokenPipeError):  # a side that is gone has no answer either
            print(what, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            lines = self.process.stderr.read().strip().splitlines() or ["no message"]
            raise InputError(f"the {self.name} side of the comparison cannot run: {lines[-1]}")
        return float(answer)


# ---- inside the processes --------------------------------------------------------------------------------------------


def _batch(options, vocabulary):
    rng = np.random.default_rng(0)
    shape = options["batch_size"], options["seq_len"]
    return rng.integers(min(1000, vocabulary // 2), vocabulary, shape), rng.integers(0, 2, options["batch_size"])


def _lorabook(options):
    """(step, gemm) of our side."""
    from .adapters import LoRAConfig, inject
    from .hub import locate
    from .layers import Linear
    from .models.bert import BertForSequenceClassification
    from .optim import AdamW
    from .parallel import Workers

    model = BertForSequenceClassification.from_pretrained(locate(options["model"]), labels=2)
    config = {"r": options["r"], "target_modules": options["target_modules"], "modules_to_save": ["classifier"]}
    shapes = [layer.params["weight"].shape for path, layer in model.named_layers() if isinstance(layer, Linear)]
    inject(model, LoRAConfig(**config))
    optimizer, params = AdamW(1e-3), model.trainable_params()
    ids, labels = _batch(options, model.children["bert"].config["vocab_size"])

    workers = Workers(options["threads"]).__enter__()

    def step():
        _, grads = workers.loss_and_grad(model, ids, labels)
        optimizer.step(params, grads)

    products = [(np.ones((ids.size, d_in), "f4"), np.ones((d_out, d_in), "f4")) for d_out, d_in in shapes[:-2]]

    def gemm():
        for x, W in products:  # forward, and the gradient of the input: what any method has to compute
            (x @ W.T) @ W

    return step, gemm


def _peft(options):
    """(step, None) of PEFT's side."""
    import peft
    import torch
    import transformers

    from .hub import locate

    torch.set_num_threads(options["threads"])
    transformers.logging.set_verbosity_error()
    nothing = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = transformers.BertForSequenceClassification.from_pretrained(
        locate(options["model"]), num_labels=2, **nothing
    )
    targets = options["target_modules"]
    config = peft.LoraConfig(task_type="SEQ_CLS", r=options["r"], lora_alpha=16, target_modules=targets)
    model = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3, weight_decay=0.0)
    ids, labels = map(torch.tensor, _batch(options, model.config.vocab_size))
    mask = torch.ones_like(ids)

    def step():
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()

    return step, None


def _serve(name, options):
    """Print one number for each line read."""
    step, gemm = {"lorabook": _lorabook, "peft": _peft}[name](options)
    answer = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        what = line.strip()
        if what == "peak":
            value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
        else:
            start = time.perf_counter()
            {"start": int, "step": step, "gemm": gemm}[what]()
            value = time.perf_counter() - start
        print(value, file=answer, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
