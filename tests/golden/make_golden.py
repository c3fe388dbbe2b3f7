"""Make the golden files with torch, transformers and PEFT: what we must reproduce where none of them is installed.

Run:  python tests/golden/make_golden.py    (needs torch, transformers, peft; see the `oracle` extra)
lora_mlp.safetensors: an MLP 7-9-8-5 with erf GELU in float64, LoRA on its three layers, and inputs x.
lora_bert.safetensors: a BERT of two blocks (d = 12, three heads) in float64 with a head for three classes, LoRA on four
of its linear layers, the head trained in full, and a padded batch x of token ids.
Both hold PEFT's factors, labels, and PEFT's logits, loss, gradients of what trains, merged weights, and what trains
after ten AdamW steps (lr 0.01, no decay).
variants.safetensors: in float32, an MLP 12-16-8, and for each method of PEFT's the folder that PEFT saved (its tensors,
and adapter_config.json in the metadata) with the logits, the gradients of what trains and the merged weights.
"""

import copy
import json
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file, save_file

SIZES = (7, 9, 8, 5)
CONFIG = {
    "r": 2,
    "lora_alpha": 8,
    "use_rslora": True,
    "rank_pattern": {"fc2": 4},
    "alpha_pattern": {"fc3": 3},
    "target_modules": ["fc1", "fc2", "fc3"],
}


BERT = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 14,
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
BERT_CONFIG = {
    "r": 2,
    "lora_alpha": 5,
    "use_rslora": True,
    "rank_pattern": {"value": 3, r"layer\.1\..*\.query": 1},
    "target_modules": ["query", "value", "attention.output.dense", "intermediate.dense"],
    "modules_to_save": ["classifier"],
}
WIDE = (12, 16, 8)
VARIANTS = {
    "dora": peft.LoraConfig(r=3, lora_alpha=5, use_dora=True),
    "loha": peft.LoHaConfig(r=3, alpha=5),
    "lokr": peft.LoKrConfig(r=1, alpha=5),
    "hira": peft.HiraConfig(r=3),
    "delora": peft.DeloraConfig(r=3, delora_lambda=4),
    "gralora": peft.GraloraConfig(r=4, alpha=5, gralora_k=2),
    "miss": peft.MissConfig(r=4),
    "fourierft": peft.FourierFTConfig(n_frequency=20, scaling=30.0),
    "ia3": peft.IA3Config(feedforward_modules=["fc2"]),
    "vera": peft.VeraConfig(r=20, projection_prng_key=3),
    "randlora": peft.RandLoraConfig(r=5, randlora_alpha=5, projection_prng_key=3),
    "pissa": peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights="pissa"),
    "olora": peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights="olora"),
}
IDS = [[2, 5, 9, 17, 9, 4, 3], [2, 19, 3, 0, 0, 0, 0], [2, 7, 1, 6, 3, 0, 0], [2, 8, 12, 5, 11, 3, 0]]


def trained(model):
    """{our name: tensor} of what trains in a PEFT model."""
    names = {}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            for old in ("base_model.model.", ".modules_to_save.default", ".default.weight"):
                name = name.replace(old, "")
            names[name] = tensor
    return names


def results(model, forward, x, labels):
    """What PEFT computes, under our names."""
    params, cross_entropy = trained(model), torch.nn.functional.cross_entropy
    out = {f"factor:{n}": p.detach().clone() for n, p in params.items()}
    logits = forward(x)
    loss = cross_entropy(logits, labels)
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
        cross_entropy(forward(x), labels).backward()
        optimizer.step()
    return out | {f"after:{n}": p.detach() for n, p in params.items()}


def write(name, tensors, config, **more):
    """Write one file beside this script."""
    arrays = {n: np.ascontiguousarray(t.detach().numpy()) for n, t in tensors.items()}
    made_with = f"peft {peft.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    metadata = {"config": json.dumps(config), "made_with": made_with, **{n: json.dumps(v) for n, v in more.items()}}
    save_file(arrays, Path(__file__).with_name(name), metadata)


def mlp():
    """lora_mlp.safetensors."""
    torch.manual_seed(0)
    layers = OrderedDict()
    for i in range(1, len(SIZES)):
        layers[f"fc{i}"] = torch.nn.Linear(SIZES[i - 1], SIZES[i], dtype=torch.float64)
        if i < len(SIZES) - 1:
            layers[f"act{i}"] = torch.nn.GELU()
    net = torch.nn.Sequential(layers)
    base = {f"base:{n}": t.clone() for n, t in net.state_dict().items()}
    model = peft.get_peft_model(net, peft.LoraConfig(init_lora_weights=False, **CONFIG)).double()
    x, labels = torch.randn(6, SIZES[0], dtype=torch.float64), torch.randint(0, SIZES[-1], (6,))
    write("lora_mlp.safetensors", base | results(model, model, x, labels), CONFIG)


def bert():
    """lora_bert.safetensors."""
    torch.manual_seed(1)
    config = transformers.BertConfig(**BERT, num_labels=3)
    net = transformers.BertForSequenceClassification(config).double().eval()
    with torch.no_grad():  # away from the resting point, where every bias is 0 and every norm's weight 1
        for tensor in net.parameters():
            tensor.add_(0.3 * torch.randn_like(tensor))
    base = {f"base:{n}": t.clone() for n, t in net.state_dict().items() if not n.endswith("_ids")}
    options = peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **copy.deepcopy(BERT_CONFIG))
    model = peft.get_peft_model(net, options).double().eval()
    x, labels = torch.tensor(IDS), torch.tensor([2, 0, 1, 2])
    out = results(model, lambda x: model(input_ids=x, attention_mask=(x != 0).long()).logits, x, labels)
    write("lora_bert.safetensors", base | out, BERT_CONFIG, bert=BERT)


def variants():
    """variants.safetensors."""
    torch.manual_seed(2)
    parts = {"fc1": torch.nn.Linear(*WIDE[:2]), "act1": torch.nn.GELU(), "fc2": torch.nn.Linear(*WIDE[1:])}
    net = torch.nn.Sequential(OrderedDict(parts))
    x, labels = torch.randn(6, WIDE[0]), torch.randint(0, WIDE[-1], (6,))
    tensors, configs = {f"base:{n}": t.clone() for n, t in net.state_dict().items()} | {"x": x, "labels": labels}, {}
    for case, config in VARIANTS.items():
        config.target_modules = {"fc1", "fc2"}
        model = peft.get_peft_model(copy.deepcopy(net), config)
        with torch.no_grad():
            for tensor in trained(model).values():
                tensor.add_(0.3 * torch.randn_like(tensor))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            configs[case] = json.loads(Path(folder, "adapter_config.json").read_text())
            saved = load_file(Path(folder, "adapter_model.safetensors"))
        logits = model(x)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        found = {f"file:{n}": torch.tensor(a) for n, a in saved.items()} | {"logits": logits}
        found |= {f"grad:{n.removesuffix('.default')}": p.grad for n, p in trained(model).items()}
        found |= {f"merged:{n}": t for n, t in model.merge_and_unload().state_dict().items()}
        tensors |= {f"{case}:{n}": t for n, t in found.items()}
    write("variants.safetensors", tensors, configs)


if __name__ == "__main__":
    mlp()
    bert()
    variants()
