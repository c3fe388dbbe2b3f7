"""Make lora_mlp.safetensors with torch and PEFT: what our LoRA must reproduce where neither is installed.

Run:  python tests/golden/make_golden.py    (needs torch, peft; see the `oracle` extra)
Holds an MLP 7-9-8-5 with erf GELU in float64, PEFT's LoRA factors on its three layers, inputs x and labels, and PEFT's
logits, loss, gradients of the factors, merged weights, and factors after ten AdamW steps (lr 0.01, no decay).
"""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import peft
import torch
from safetensors.numpy import save_file

SIZES = (7, 9, 8, 5)
CONFIG = {
    "r": 2,
    "lora_alpha": 8,
    "use_rslora": True,
    "rank_pattern": {"fc2": 4},
    "alpha_pattern": {"fc3": 3},
    "target_modules": ["fc1", "fc2", "fc3"],
}


def factors(model):
    """{our name: tensor} of PEFT's factors."""
    named = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    return {n.removeprefix("base_model.model.").replace(".default.weight", ""): p for n, p in named.items()}


def main():
    """Write the file beside this script."""
    torch.manual_seed(0)
    layers = OrderedDict()
    for i in range(1, len(SIZES)):
        layers[f"fc{i}"] = torch.nn.Linear(SIZES[i - 1], SIZES[i], dtype=torch.float64)
        if i < len(SIZES) - 1:
            layers[f"act{i}"] = torch.nn.GELU()
    net = torch.nn.Sequential(layers)
    out = {f"base:{n}": t.clone() for n, t in net.state_dict().items()}
    model = peft.get_peft_model(net, peft.LoraConfig(init_lora_weights=False, **CONFIG)).double()
    params = factors(model)
    out |= {f"factor:{n}": p.detach().clone() for n, p in params.items()}
    x, labels = torch.randn(6, SIZES[0], dtype=torch.float64), torch.randint(0, SIZES[-1], (6,))
    logits = model(x)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    out |= {"x": x, "labels": labels, "logits": logits, "loss": loss}
    out |= {f"grad:{n}": p.grad.clone() for n, p in params.items()}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            path = name.removeprefix("base_model.model.")
            out[f"merged:{path}.weight"] = module.get_base_layer().weight + module.get_delta_weight("default")
    optimizer = torch.optim.AdamW(params.values(), 0.01, weight_decay=0.0)
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    out |= {f"after:{n}": p.detach() for n, p in params.items()}
    arrays = {n: np.ascontiguousarray(t.detach().numpy()) for n, t in out.items()}
    metadata = {"config": json.dumps(CONFIG), "made_with": f"peft {peft.__version__}, torch {torch.__version__}"}
    save_file(arrays, Path(__file__).with_name("lora_mlp.safetensors"), metadata)


if __name__ == "__main__":
    main()
