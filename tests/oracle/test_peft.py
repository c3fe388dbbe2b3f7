"""The LoRA layer, its configuration and its files against PEFT, live."""

from collections import OrderedDict

import numpy as np
import pytest

from lorabook import InputError, LoRAConfig, inject, merge
from lorabook.adapters import adapters, base_params, peft_folder
from lorabook.models import MLP
from lorabook.training import AdamW

SIZES = (7, 9, 8, 5)
CONFIGS = [
    {"r": 2, "lora_alpha": 8},
    {"r": 4, "lora_alpha": 6, "use_rslora": True},
    {"r": 2, "lora_alpha": 8, "rank_pattern": {"fc2": 4}},
    {"r": 2, "lora_alpha": 8, "rank_pattern": {"fc[12]": 3, "fc2": 5}, "alpha_pattern": {"fc3": 1}, "use_rslora": True},
    {"r": 3, "lora_alpha": 8, "target_modules": ["fc1", "fc3"]},
]


def torch_mlp(torch, model):
    """The same MLP in torch, with the same names and weights, float64."""
    layers = OrderedDict()
    for i in range(1, len(SIZES)):
        layers[f"fc{i}"] = torch.nn.Linear(SIZES[i - 1], SIZES[i], dtype=torch.float64)
        if i < len(SIZES) - 1:
            layers[f"act{i}"] = torch.nn.GELU()
    net = torch.nn.Sequential(layers)
    net.load_state_dict({n: torch.tensor(a) for n, a in base_params(model).items()})
    return net


def pair(torch, peft, options, rng, folder):
    """(our adapted model, PEFT's model read from the folder that we wrote)."""
    model = MLP(SIZES, "gelu", rng=rng).to(np, "float64")
    config = LoRAConfig(init_lora_weights=False, **({"target_modules": ["fc1", "fc2", "fc3"]} | options))
    inject(model, config, rng)
    peft_folder.save_adapter(folder, model, "mlp")
    opened = peft.PeftModel.from_pretrained(torch_mlp(torch, model), folder, is_trainable=True)
    return model, opened


def lora_tensors(model):
    """{our name: torch parameter} of PEFT's factors."""
    tensors = {}
    for name, tensor in model.named_parameters():
        if ".lora_" in name:
            tensors[name.removeprefix("base_model.model.").replace(".default.weight", "")] = tensor
    return tensors


@pytest.mark.parametrize("options", CONFIGS)
def test_peft_opens_our_folder_and_agrees(torch, peft, rng, tmp_path, options):
    model, opened = pair(torch, peft, options, rng, tmp_path)
    theirs = lora_tensors(opened)
    assert theirs.keys() == model.trainable_params().keys()
    modules = dict(opened.named_modules())
    for path, layer in adapters(model).items():
        other = modules[f"base_model.model.{path}"]
        assert layer.scaling == other.scaling["default"]
        assert (layer.r, layer.lora_alpha) == (other.r["default"], other.lora_alpha["default"])
        np.testing.assert_allclose(layer.delta_weight(), other.get_delta_weight("default").detach().numpy(), rtol=1e-12)

    x, labels = rng.standard_normal((6, SIZES[0])), rng.integers(0, SIZES[-1], 6)
    want = opened(torch.tensor(x))
    loss = torch.nn.functional.cross_entropy(want, torch.tensor(labels))
    loss.backward()
    for order in ("factored", "merged"):
        for layer in adapters(model).values():
            layer.order = order
        np.testing.assert_allclose(model(x)[0], want.detach().numpy(), rtol=1e-11)
        got, grads = model.loss_and_grad({"x": x, "labels": labels})
        assert got == pytest.approx(loss.item(), rel=1e-12)
        for name, tensor in theirs.items():
            np.testing.assert_allclose(grads[name], tensor.grad.numpy(), rtol=1e-10, atol=1e-13)

    merged = opened.merge_and_unload()
    merge(model)
    for name, array in base_params(model).items():
        if name.endswith("weight"):
            np.testing.assert_allclose(array, merged.state_dict()[name].numpy(), rtol=1e-11, atol=1e-14)


def test_ten_adamw_steps_stay_together(torch, peft, rng, tmp_path):
    model, opened = pair(torch, peft, {"r": 2, "lora_alpha": 8}, rng, tmp_path)
    ours, theirs = model.trainable_params(), lora_tensors(opened)
    optimizer, reference = AdamW(1e-2), torch.optim.AdamW(theirs.values(), 1e-2, weight_decay=0.0)
    for _ in range(10):
        x, labels = rng.standard_normal((6, SIZES[0])), rng.integers(0, SIZES[-1], 6)
        reference.zero_grad()
        torch.nn.functional.cross_entropy(opened(torch.tensor(x)), torch.tensor(labels)).backward()
        reference.step()
        optimizer.step(ours, model.loss_and_grad({"x": x, "labels": labels})[1])
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor.detach().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("init", [True, "gaussian", False])
def test_initialisation_has_pefts_distribution(torch, peft, init):
    from scipy.stats import ks_2samp

    d_in, d_out, r = 300, 200, 16
    net = torch.nn.Sequential(OrderedDict(fc1=torch.nn.Linear(d_in, d_out)))
    torch.manual_seed(0)
    config = peft.LoraConfig(r=r, target_modules=["fc1"], init_lora_weights=init)
    theirs = {n: t.detach().numpy() for n, t in lora_tensors(peft.get_peft_model(net, config)).items()}
    model = MLP((d_in, d_out), rng=np.random.default_rng(0))
    inject(model, LoRAConfig(r=r, init_lora_weights=init), np.random.default_rng(1))
    for name, array in model.trainable_params().items():
        if theirs[name].any():
            assert ks_2samp(array.ravel(), theirs[name].ravel()).pvalue > 0.01
        else:
            assert not array.any()


STARTS = {"eva": False, "orthogonal": False, "mica": False, "pissa": True, "pissa_niter_4": True, "olora": True}
LOST = ("pissa_niter_4",)  # its approximate SVD begins with random numbers, which are in no file


@pytest.mark.filterwarnings("ignore:lora with eva initialization:UserWarning")  # about memory
@pytest.mark.parametrize("init", STARTS)
def test_which_initialisations_change_the_base(torch, peft, rng, tmp_path, init):
    """PEFT's adapter of one that does not is plain LoRA; over one that does, W alone tells the rest, or it is lost."""
    model = MLP(SIZES, "gelu", rng=rng)
    net, targets = torch_mlp(torch, model).float(), ["fc1", "fc2"]
    eva = {"eva_config": peft.EvaConfig()} if init == "eva" else {}
    theirs = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=init, **eva))
    weights = {n: m.base_layer.weight.detach().numpy() for n, m in net.named_modules() if hasattr(m, "base_layer")}
    changed = [not np.allclose(weight, model.children[n].weight) for n, weight in weights.items()]
    assert changed == [STARTS[init]] * 2
    with torch.no_grad():
        for tensor in lora_tensors(theirs).values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    theirs.save_pretrained(str(tmp_path))
    if init in LOST:
        with pytest.raises(InputError, match=f"init_lora_weights='{init}' changed the base weights"):
            peft_folder.load_adapter(tmp_path, model)
        return
    peft_folder.load_adapter(tmp_path, model)
    x = rng.standard_normal((6, SIZES[0])).astype("f4")
    want = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(model(x)[0], want, rtol=1e-5, atol=1e-6)


PATHS = [
    "encoder.layer.0.attention.self.query",
    "encoder.layer.0.attention.output.dense",
    "encoder.layer.10.output.dense",
    "encoder.layer.1.intermediate.dense_extra",
    "pooler.dense",
    "query",
]


@pytest.mark.parametrize(
    "targets",
    [
        ["query"],
        ["dense"],
        ["output.dense"],
        ["attention.output.dense", "query"],
        r".*\.layer\.\d\..*dense",
        r"query",
        "all-linear",
    ],
)
def test_the_same_modules_are_targeted(torch, peft, targets):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for path in PATHS:
                module, *parts = self, *path.split(".")
                for part in parts[:-1]:
                    if not hasattr(module, part):
                        module.add_module(part, torch.nn.Module())
                    module = getattr(module, part)
                module.add_module(parts[-1], torch.nn.Linear(3, 3))

        def forward(self, x):
            return x

    adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=targets), Net())
    theirs = {name for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert set(LoRAConfig(r=2, target_modules=targets).select(PATHS)) == theirs


def test_a_target_that_peft_ignores_is_an_error_here(torch, peft):
    net = torch.nn.Sequential(OrderedDict(fc1=torch.nn.Linear(3, 3)))
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["fc1", "fc_typo"]), net)
    with pytest.raises(InputError, match="fc_typo"):
        LoRAConfig(target_modules=["fc1", "fc_typo"]).select(["fc1"])
