"""Where LoRA's factors start, against PEFT, live: the factors, what is left of the base, and folders both ways."""

from collections import OrderedDict

import numpy as np
import pytest

from lorabook import LoRAConfig, inject, load_adapter, save_adapter
from lorabook.adapters import STARTS, adapters, base_params
from lorabook.models import MLP
from lorabook.training import AdamW

SIZES = (12, 16, 8)
EVERY = pytest.mark.parametrize("init", STARTS)
MOVING = pytest.mark.parametrize("init", ["pissa", "olora"])
FIXED = {"r": 4, "lora_alpha": 6, "target_modules": ["fc1", "fc2"]}
OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc2": 7}},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
BOTH_OPTIONS = OPTIONS["patterns"] | {"use_rslora": True}  # which PEFT does not convert


def mlp():
    return MLP(SIZES, "gelu", rng=np.random.default_rng(0))


def torch_mlp(torch):
    layers = OrderedDict(fc1=torch.nn.Linear(*SIZES[:2]), act1=torch.nn.GELU(), fc2=torch.nn.Linear(*SIZES[1:]))
    net = torch.nn.Sequential(layers)
    net.load_state_dict({name: torch.tensor(array) for name, array in base_params(mlp()).items()})
    return net


def theirs(torch, peft, init, **options):
    torch.manual_seed(0)
    return peft.get_peft_model(torch_mlp(torch), peft.LoraConfig(init_lora_weights=init, **FIXED | options))


def stirred(torch, net):
    with torch.no_grad():
        for tensor in net.parameters():
            if tensor.requires_grad:
                tensor.add_(0.1 * torch.randn_like(tensor))
    return net


def inputs():
    return np.random.default_rng(6).standard_normal((5, SIZES[0])).astype("f4")


def answer(torch, net):
    return net(torch.tensor(inputs())).detach().numpy()


def assert_same(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@EVERY
@EVERY_OPTION
def test_factors_and_base_are_pefts(torch, peft, init, options):
    """Up to signs, which cancel: of a pair of singular vectors, or of a column of Q and a row of R."""
    model, net = mlp(), theirs(torch, peft, init, **options)
    inject(model, LoRAConfig(init_lora_weights=init, **FIXED | options), 1)
    for path, layer in adapters(model).items():
        module = net.base_model.model.get_submodule(path)
        A, B = (getattr(module, name)["default"].weight.detach().numpy() for name in ("lora_A", "lora_B"))
        assert_same(layer.weight, module.base_layer.weight.detach().numpy())
        assert layer.scaling == module.scaling["default"]
        trains = {name for name in ("lora_A", "lora_B") if getattr(module, name)["default"].weight.requires_grad}
        assert layer.trainable == trains
        if init == "orthogonal":  # random
            assert layer.params["lora_A"].shape == A.shape and layer.params["lora_B"].shape == B.shape
            assert np.abs(B @ A).max() < 1e-6
            continue
        signs = np.sign(np.sum(layer.params["lora_B"] * B, axis=0))
        assert_same(layer.params["lora_B"] * signs, B)
        assert_same(layer.params["lora_A"] * signs[:, None], A)
    assert_same(model(inputs())[0], answer(torch, net))


def test_orthogonal_has_pefts_distribution(torch, peft):
    from scipy.stats import ks_2samp

    rng, net = np.random.default_rng(0), torch.nn.Sequential(OrderedDict(fc1=torch.nn.Linear(300, 200)))
    torch.manual_seed(0)
    config = peft.LoraConfig(r=16, target_modules=["fc1"], init_lora_weights="orthogonal")
    module = peft.get_peft_model(net, config).base_model.model.fc1
    model = MLP((300, 200), rng=rng)
    inject(model, LoRAConfig(r=16, target_modules=["fc1"], init_lora_weights="orthogonal"), rng)
    for name, array in model.children["fc1"].params.items():
        want = getattr(module, name)["default"].weight.detach().numpy()
        assert ks_2samp(array.ravel(), want.ravel()).pvalue > 0.01


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA:UserWarning")
@MOVING
@pytest.mark.parametrize("options", [*OPTIONS.values(), BOTH_OPTIONS], ids=[*OPTIONS, "both"])
def test_we_open_what_peft_did_not_convert(torch, peft, tmp_path, init, options):
    net = stirred(torch, theirs(torch, peft, init, **options))
    net.save_pretrained(tmp_path)
    model = mlp()
    assert load_adapter(tmp_path, model).init_lora_weights == init
    assert_same(model(inputs())[0], answer(torch, net))
    again = peft.PeftModel.from_pretrained(torch_mlp(torch), tmp_path)
    assert_same(model(inputs())[0], answer(torch, again))


@pytest.mark.filterwarnings("ignore:.* changes the base weights of the model:UserWarning")
@MOVING
@EVERY_OPTION
def test_we_open_what_peft_converted(torch, peft, tmp_path, init, options):
    net = theirs(torch, peft, init, **options)
    net.peft_config["default"].init_lora_weights = True  # or PEFT would take the factors out once more
    net.save_pretrained(tmp_path / "start")
    net.peft_config["default"].init_lora_weights = init
    stirred(torch, net).save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    model = mlp()
    config = load_adapter(tmp_path / "plain", model)
    assert (config.init_lora_weights, config.r) == (True, 8)
    assert_same(model(inputs())[0], answer(torch, net))


@EVERY
@pytest.mark.parametrize("options", [*OPTIONS.values(), BOTH_OPTIONS], ids=[*OPTIONS, "both"])
def test_peft_opens_what_we_saved(torch, peft, tmp_path, init, options):
    model = mlp()
    inject(model, LoRAConfig(init_lora_weights=init, **FIXED | options), 1)
    optimizer, labels = AdamW(0.02), np.arange(5)
    for _ in range(3):
        optimizer.step(model.trainable_params(), model.loss_and_grad({"x": inputs(), "labels": labels})[1])
    save_adapter(tmp_path, model)
    opened = peft.PeftModel.from_pretrained(torch_mlp(torch), tmp_path)
    assert_same(answer(torch, opened), model(inputs())[0])
    assert np.abs(model(inputs())[0] - mlp()(inputs())[0]).max() > 0.01
