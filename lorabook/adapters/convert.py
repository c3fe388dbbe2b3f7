"""Any adapter as plain LoRA of a stated rank: the closest there is, and how far from it that is."""

import copy
from dataclasses import fields, replace

import numpy as np

from ..backend import asarray_like, to_numpy
from ..errors import InputError
from ..linalg import truncate
from .config import AdapterConfig
from .inject import config_of, inject, unload
from .lora import LoRALinear
from .lora_config import LoRAConfig
from .rank_config import check_r
from .starts import original
from .whole_model import adapters


def to_lora(model, r):
    """Put plain LoRA of rank r in the place of every adapter. Returns {path: |D - s B A|_F / |D|_F}, D the update.

    The update of a layer is D = W_eff - W, whatever the variant makes it of, and W the weight that was there before
    `inject`. The closest matrix of rank r is its truncated SVD (Eckart and Young 1936), whose singular values go to
    both factors alike:

        D = U diag(S) Vt,    B = U_r diag(sqrt(S_r)),    A = diag(sqrt(S_r)) Vt_r,    s = 1

    So the error is 0, but for rounding, where the update has rank r or less: r of LoRA, MiSS or VeRA, the square of it
    of LoHa, 2 r after a start that moved the base weight. DoRA, HiRA, RandLoRA and (IA)3 have updates of full rank: the
    error says what is lost. A bias that the variant changes is kept as a bias that was trained.

    Raises InputError, with the model unchanged, where there is no adapter, one is merged, or its update is no number.

    >>> import lorabook as lb
    >>> from lorabook.adapters import LoHaConfig, to_lora
    >>> model = lb.MLP((64, 32, 10))
    >>> _ = lb.inject(model, LoHaConfig(r=2, target_modules=["fc1"], init_weights=False))
    >>> [f"{to_lora(model, r)['fc1']:.2f}" for r in (4, 2)]  # at 4 = 2 * 2 nothing is lost
    ['0.00', '0.45']
    """
    r, config, layers = check_r(r), config_of(model), adapters(model)
    model.refuse_merged(before="converting its adapters")
    plain = LoRAConfig(r=r, lora_alpha=r, **{f.name: getattr(config, f.name) for f in fields(AdapterConfig)})
    factors, biases, errors = {}, {}, {}
    for path, layer in layers.items():
        LoRALinear.shapes(*layer.shape, where=path, r=r)
        D, bias = _update(layer)
        if not np.isfinite(D).all():
            raise InputError(f"the update of {path} holds NaN or Inf, of which there is no SVD; train it again")
        best = truncate(D)
        factors[path] = _factors(best, r)
        errors[path] = float(best.errors[min(r, len(best.errors) - 1)] / (best.errors[0] or 1.0))
        if bias is not None:
            biases[path] = bias
    if biases and plain.bias == "none":
        plain = replace(plain, bias="lora_only")
    unload(model)
    inject(model, plain)
    for path, layer in adapters(model).items():
        layer.start(**factors[path])
        if path in biases:
            layer.base_layer.params["bias"] = asarray_like(biases[path], layer.base_layer.params["bias"])
    return errors


def _update(layer):
    """(W_eff - W (d_out, d_in), the bias or None if it stays), in float64: in float32 the difference would cancel."""
    layer = copy.deepcopy(layer).to(np, "float64")
    D = layer.effective(layer.weight)[0] - original(layer.base_layer).weight
    return D, layer.effective_bias if layer.changes_bias and layer.bias is not None else None


def _factors(best, r):
    """{"lora_A": (r, d_in), "lora_B": (d_out, r)} of a Truncation; zeros beyond the rank that the matrix can have."""
    B, A = to_numpy(best.B)[:, :r], to_numpy(best.A)[:r]
    root = np.sqrt(np.linalg.norm(B, axis=0))  # of B's columns U S: sqrt(S)
    more = r - len(root)
    with np.errstate(divide="ignore", invalid="ignore"):
        B = np.where(root > 0, B / root, 0.0)
    return {"lora_A": np.pad(A * root[:, None], ((0, more), (0, 0))), "lora_B": np.pad(B, ((0, 0), (0, more)))}
