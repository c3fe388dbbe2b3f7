"""Llama, Mistral and Qwen2 against transformers and PEFT, live: logits, loss and every gradient, folders both ways."""

import importlib
import json

import numpy as np
import pytest
from tiny_llamas import CONFIGS, batch_of, made

from lorabook import LoRAConfig, inject, load_adapter
from lorabook.adapters import adapters
from lorabook.models import LlamaForCausalLM

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
EVERY_KIND = pytest.mark.parametrize("kind", CONFIGS)
IN_FLOAT64 = pytest.mark.usefixtures("in_float64")
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def in_float64(torch, transformers, peft, monkeypatch):
    """transformers computes norms, angles, softmax and loss in float32, whatever the model's dtype: not here.

    All modules that keep a table by dtype are imported before.
    """
    importlib.import_module("safetensors.torch")
    for kind in ("llama", "mistral", "qwen2"):
        importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    for name in ("float", "float32"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def theirs(torch, transformers, model):
    """transformers' model with the weights of ours, in float64."""
    options = {k: v for k, v in model.config.items() if k not in ("rope_theta", "rope_scaling")}
    rope = {"rope_type": "default", "rope_theta": model.config.get("rope_theta", 10000.0)}
    scaling = dict(model.config.get("rope_scaling") or {})
    scaling |= {"rope_type": scaling.pop("type")} if "type" in scaling else {}
    config = transformers.AutoConfig.for_model(**options, rope_parameters=rope | scaling)
    config._attn_implementation = "eager"
    net = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    arrays = {name: torch.tensor(array) for name, array in model.named_params().items()}
    report = net.load_state_dict(arrays, strict=False)
    assert not report.unexpected_keys and not report.missing_keys
    return net


def answer(torch, net, batch):
    return net(**{name: torch.tensor(array) for name, array in batch.items()})


def furthest(got, want):
    want = want.detach().numpy()
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def assert_gradients(grads, tensors):
    """As far from each other as rounding makes them; a key's bias has the gradient 0 but for rounding."""
    assert grads.keys() == tensors.keys()
    everywhere = max(tensor.grad.abs().max().item() for tensor in tensors.values())
    for name, grad in grads.items():
        want = tensors[name].grad.numpy()
        largest = everywhere if name.endswith("k_proj.bias") else np.abs(want).max()
        assert largest > 0 and np.abs(grad - want).max() < 1e-10 * largest, name


@IN_FLOAT64
@EVERY_KIND
@pytest.mark.parametrize("recompute", [False, True])
def test_logits_loss_and_every_gradient(torch, transformers, rng, kind, recompute):
    model, batch = made(kind, rng, recompute=recompute), batch_of(rng)
    net = theirs(torch, transformers, model)
    assert net.model.rotary_emb.inv_freq.dtype == torch.float64
    out = answer(torch, net, batch)
    real = batch["attention_mask"] > 0
    assert furthest(model(batch)[0][real], out.logits[torch.tensor(real)]) < 1e-10
    out.loss.backward()
    loss, grads = model.loss_and_grad(batch)
    assert abs(loss - out.loss.item()) < 1e-10
    assert model.evaluate(batch) == (pytest.approx(loss, abs=1e-12), pytest.approx(np.exp(loss), rel=1e-12))
    assert_gradients(grads, {name: tensor for name, tensor in net.named_parameters() if name in grads})
    assert grads.keys() == model.trainable_params().keys()


@IN_FLOAT64
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_padding_on_the_left(torch, transformers, rng, kind):
    model, batch = made(kind, rng), batch_of(rng, side="left")
    begins = np.argmax(batch["attention_mask"], axis=1)
    batch["labels"][np.arange(3), begins] = -100  # predicted from padding, that of transformers from all alike
    net = theirs(torch, transformers, model)
    out = answer(torch, net, batch)
    real = batch["attention_mask"] > 0
    assert furthest(model(batch)[0][real], out.logits[torch.tensor(real)]) < 1e-10
    out.loss.backward()
    loss, grads = model.loss_and_grad(batch)
    assert abs(loss - out.loss.item()) < 1e-10
    assert_gradients(grads, {name: tensor for name, tensor in net.named_parameters() if name in grads})


@IN_FLOAT64
@EVERY_KIND
def test_lora_on_all_seven(torch, transformers, peft, rng, kind):
    """The gradients of PEFT's LoRA, with the factors of ours."""
    model, batch = made(kind, rng), batch_of(rng)
    net = theirs(torch, transformers, model)
    config = LoRAConfig(r=3, lora_alpha=5, target_modules=SEVEN, init_lora_weights=False)
    assert len(inject(model, config, rng)) == 7 * 2
    options = {"r": 3, "lora_alpha": 5, "target_modules": SEVEN, "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(net, peft.LoraConfig(**options)).double()
    tensors = {}
    for name, tensor in adapted.named_parameters():
        if tensor.requires_grad:
            tensors[name.removeprefix("base_model.model.").replace(".default.weight", "")] = tensor
    with torch.no_grad():
        for name, array in model.trainable_params().items():
            tensors[name].copy_(torch.tensor(array))
    out = answer(torch, adapted, batch)
    out.loss.backward()
    loss, grads = model.loss_and_grad(batch)
    assert abs(loss - out.loss.item()) < 1e-10
    assert_gradients(grads, tensors)


@EVERY_KIND
@pytest.mark.parametrize("in_file", [False, True])
def test_all_linear_leaves_out_the_output_layer(torch, transformers, peft, rng, tmp_path, kind, in_file):
    """In PEFT and here, tied or not, also where a folder says so; with weights in the factors, the same logits."""
    model, batch = made(kind, rng, "float32"), batch_of(rng)
    net = theirs(torch, transformers, made(kind, np.random.default_rng(0))).float()
    net.load_state_dict({name: torch.tensor(array) for name, array in model.named_params().items()}, strict=False)
    options = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False}
    adapted = peft.get_peft_model(net, peft.LoraConfig(**options))
    want = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    want = [name.removeprefix("base_model.model.") for name in want]
    if not in_file:
        assert inject(model, LoRAConfig(r=2)) == want
        return
    adapted.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": "all-linear"}))
    load_adapter(tmp_path, model)
    assert [*adapters(model)] == want
    real = batch["attention_mask"] > 0
    ours = model(batch)[0][real]
    assert furthest(ours, answer(torch, adapted, batch).logits[torch.tensor(real)]) < 1e-5 * abs(ours).max()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "tied", "mistral", "qwen2", "llama3"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_theirs(torch, transformers, tmp_path, rng, kind, dtype, shards):
    net = theirs(torch, transformers, made(kind, rng))
    net = net.to(getattr(torch, dtype))
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    net.save_pretrained(tmp_path, max_shard_size=size // shards + 1)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards > 1)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    arrays = dict(net.state_dict())
    assert model.named_params().keys() == arrays.keys()
    for name, array in model.named_params().items():
        assert array.dtype == np.float32 and np.array_equal(array, arrays[name].float().numpy()), name
    batch = batch_of(rng)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    want = answer(torch, again, batch).loss.item()
    assert abs(model.evaluate(batch)[0] - want) < 2e-5
    assert model.sizes == made(kind, rng).sizes
