"""Every variant that PEFT has, against it, live: folders both ways, output, gradients and merged weights."""

from collections import OrderedDict

import numpy as np
import pytest

from lorabook import inject, load_adapter, merge, save_adapter
from lorabook.adapters import METHODS, adapters, base_params
from lorabook.adapters.fourierft import places
from lorabook.adapters.lokr import factors
from lorabook.adapters.projections import largest
from lorabook.models import MLP

SIZES = (12, 16, 8)
CASES = {
    "dora": ("dora", {"r": 3, "lora_alpha": 5}),
    "loha": ("loha", {"r": 3, "alpha": 5}),
    "loha by patterns": ("loha", {"r": 3, "alpha": 5, "rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc2": 7}}),
    "lokr": ("lokr", {"r": 1, "alpha": 5}),
    "lokr of two products": ("lokr", {"r": 1, "alpha": 5, "decompose_both": True, "decompose_factor": 4}),
    "lokr whole": ("lokr", {"r": 8, "alpha": 5}),
    "hira": ("hira", {"r": 3}),
    "delora": ("delora", {"r": 3, "delora_lambda": 4}),
    "delora by pattern": ("delora", {"r": 3, "delora_lambda": 4, "lambda_pattern": {"fc2": 2}}),
    "gralora": ("gralora", {"r": 4, "alpha": 5, "gralora_k": 2}),
    "gralora in 4 x 4": ("gralora", {"r": 8, "alpha": 5, "gralora_k": 4}),
    "miss": ("miss", {"r": 4}),
    "miss cut off": ("miss", {"r": 5}),
    "miss mini": ("miss", {"r": 4, "mini_r": 2, "init_weights": "mini"}),
    "fourierft": ("fourierft", {"n_frequency": 20, "scaling": 30.0}),
    "vera": ("vera", {"r": 20, "projection_prng_key": 3}),
    "vera drawn again": ("vera", {"r": 5, "save_projection": False}),
    "randlora": ("randlora", {"r": 4, "randlora_alpha": 8}),
    "randlora, r no divisor": ("randlora", {"r": 5, "randlora_alpha": 5}),
    "ia3": ("ia3", {}),
    "ia3 of inputs": ("ia3", {"target_modules": ["fc1", "fc2"], "feedforward_modules": ["fc2"]}),
}

ROUGH = {"fourierft": 3e-6, "loha": 1e-7}  # PEFT's update, or its scaling, is in float32


def torch_mlp(torch, model):
    layers = OrderedDict(
        fc1=torch.nn.Linear(*SIZES[:2], dtype=torch.float64),
        act1=torch.nn.GELU(),
        fc2=torch.nn.Linear(*SIZES[1:], dtype=torch.float64),
    )
    net = torch.nn.Sequential(layers)
    net.load_state_dict({n: torch.tensor(a) for n, a in base_params(model).items()})
    return net


def ours(case, seed=0):
    method, options = CASES[case]
    model = MLP(SIZES, "gelu", rng=np.random.default_rng(seed)).to(np, "float64")
    inject(model, METHODS[method].Config(**{"target_modules": ["fc1", "fc2"]} | options), 1)
    rng = np.random.default_rng(2)
    for layer in adapters(model).values():
        for name, array in layer.params.items():
            layer.params[name] = array + 0.3 * rng.standard_normal(array.shape)
    return model


# PEFT warns of matrices that are not saved, and of those of RandLoRA that are saved but once.
ONCE = pytest.mark.filterwarnings("ignore:Specified to not", "ignore:Found missing adapter keys while.*randlora_A")


@ONCE
@pytest.mark.parametrize("case", CASES)
def test_peft_opens_our_folder_and_agrees(torch, peft, tmp_path, case, rng):
    model = ours(case)
    save_adapter(tmp_path, model)
    opened = peft.PeftModel.from_pretrained(torch_mlp(torch, model), tmp_path, is_trainable=True)
    if CASES[case][0] == "fourierft":
        opened = opened.double()  # PEFT computes the update in float32
    x, labels = rng.standard_normal((6, SIZES[0])), rng.integers(0, SIZES[-1], 6)
    want = opened(torch.tensor(x))
    loss = torch.nn.functional.cross_entropy(want, torch.tensor(labels))
    loss.backward()
    rough = ROUGH.get(CASES[case][0], 1e-9)
    np.testing.assert_allclose(model(x)[0], want.detach().numpy(), rtol=rough, atol=rough)
    _, grads = model.loss_and_grad({"x": x, "labels": labels})
    theirs = {}
    for name, tensor in opened.named_parameters():
        if tensor.requires_grad:
            path, _, own = name.removeprefix("base_model.model.").partition(".")
            theirs[f"{path}.{own.split('.')[0]}"] = tensor.grad.numpy()
    assert theirs.keys() == grads.keys()
    for name, grad in theirs.items():
        np.testing.assert_allclose(grads[name], grad, rtol=10 * rough, atol=rough, err_msg=name)
    merge(model)
    merged = opened.merge_and_unload().state_dict()
    for name, array in base_params(model).items():
        np.testing.assert_allclose(array, merged[name].detach().numpy(), rtol=rough, atol=rough)


@ONCE
@pytest.mark.parametrize("case", CASES)
def test_we_open_pefts_folder(torch, peft, tmp_path, case, rng):
    model = ours(case)
    save_adapter(tmp_path / "ours", model)
    opened = peft.PeftModel.from_pretrained(torch_mlp(torch, model), tmp_path / "ours", is_trainable=True)
    with torch.no_grad():
        for tensor in opened.parameters():
            if tensor.requires_grad:
                tensor += 0.1
    opened.save_pretrained(tmp_path / "theirs")
    plain = MLP(SIZES, "gelu", rng=np.random.default_rng(0)).to(np, "float64")
    config = load_adapter(tmp_path / "theirs", plain)
    assert config.method == CASES[case][0]
    x = rng.standard_normal((6, SIZES[0]))
    rough = ROUGH.get(config.method, 1e-9)
    np.testing.assert_allclose(plain(x)[0], opened(torch.tensor(x)).detach().numpy(), rtol=rough, atol=rough)


@pytest.mark.parametrize(("d_out", "d_in", "n", "seed"), [(3, 4, 12, 777), (384, 384, 500, 777), (1536, 384, 99, 5)])
def test_the_places_of_fourierft_are_pytorchs(torch, d_out, d_in, n, seed):
    want = torch.randperm(d_out * d_in, generator=torch.Generator().manual_seed(seed))[:n]
    assert places(d_out, d_in, n, seed).tolist() == want.tolist()


@pytest.mark.parametrize(("sizes", "r", "key"), [([(12, 6)], 4, 0), ([(384, 1536), (1536, 384)], 16, 7)])
def test_the_matrices_of_vera_are_pefts(torch, peft, sizes, r, key):
    from peft.tuners.vera.model import _kaiming_init

    generator, (d_out, d_in) = torch.Generator().manual_seed(key), largest(sizes)
    want = [_kaiming_init(shape, generator).numpy() for shape in ((r, d_in), (d_out, r))]
    got = METHODS["vera"].draw_shared(sizes, r=r, projection_prng_key=key)
    for array, theirs in zip(got.values(), want, strict=True):
        assert array.dtype == theirs.dtype and np.array_equal(array, theirs)


def test_the_factors_of_lokr_are_pefts(peft):
    from peft.tuners.lokr.layer import factorization

    for d in (*range(1, 130), 384, 576, 1536):
        for factor in (-1, 1, 2, 4, 5, 8, 32):
            assert factors(d, factor) == factorization(d, factor), (d, factor)
