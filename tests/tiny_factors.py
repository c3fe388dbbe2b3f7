"""Pairs of LoRA's factors, a layer to fit with them, and what an optimizer over factors has to do whatever its rule."""

import numpy as np

from lorabook.backend import to_numpy

SHAPES = {"fc1": (3, 7, 6), "fc2": (3, 4, 9), "deep.fc3": (2, 5, 5)}  # r, d_out, d_in


def drawn(put, rng, dtype="float64", shapes=SHAPES):
    """{name: array} of all pairs and of a bias, and gradients of them: (s B^T G, s G A^T) with s = 1.5."""
    params, grads = {"head.bias": rng.standard_normal(4)}, {"head.bias": rng.standard_normal(4)}
    for path, (r, d_out, d_in) in shapes.items():
        A, B, G = (rng.standard_normal(shape) for shape in ((r, d_in), (d_out, r), (d_out, d_in)))
        params |= {f"{path}.lora_A": A, f"{path}.lora_B": B}
        grads |= {f"{path}.lora_A": 1.5 * B.T @ G, f"{path}.lora_B": 1.5 * G @ A.T}
    return tuple({name: put(array, dtype) for name, array in arrays.items()} for arrays in (params, grads))


def copied(put, arrays):
    return {name: put(to_numpy(array)) for name, array in arrays.items()}


def products(params):
    """{path: B A} of the pairs."""
    host = {name: to_numpy(array) for name, array in params.items()}
    return {name[:-7]: host[f"{name[:-7]}.lora_B"] @ host[name] for name in host if name.endswith(".lora_A")}


def refactored(params, rng):
    """({name: array} with (M^-1 A, B M) for each (A, B), {path: M}); M is well conditioned. Host arrays."""
    new, maps = {name: np.array(array) for name, array in params.items()}, {}
    for name in params:
        if name.endswith(".lora_A"):
            path, r = name[:-7], len(params[name])
            M = np.eye(r) + 0.3 * rng.standard_normal((r, r))
            maps[path] = M
            new[name], new[f"{path}.lora_B"] = np.linalg.solve(M, params[name]), params[f"{path}.lora_B"] @ M
    return new, maps


def regression(rng, rank=3, d_out=8, d_in=10):
    """(target of that rank, {name: A and B as LoRA starts})."""
    target = rng.standard_normal((d_out, rank)) @ rng.standard_normal((rank, d_in))
    A = rng.standard_normal((rank, d_in)) / np.sqrt(d_in)
    return target, {"fc.lora_A": A, "fc.lora_B": np.zeros((d_out, rank))}


def fit(optimizer, target, params, steps, s=1.0):
    """|s B A - target| over |target| after so many steps down half its square; the rate falls linearly."""
    A, B = params["fc.lora_A"], params["fc.lora_B"]
    for i in range(steps):
        G = s * B @ A - target
        optimizer.step(params, {"fc.lora_A": s * B.T @ G, "fc.lora_B": s * G @ A.T}, 1 - i / steps)
    return np.linalg.norm(s * B @ A - target) / np.linalg.norm(target)
