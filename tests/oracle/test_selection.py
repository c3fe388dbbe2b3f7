"""Which layers get an adapter, with which r, lora_alpha and scaling: here and in PEFT, over a table of configs.

A tiny BERT of three blocks. `inject` chooses what PEFT chooses; a folder that PEFT saved opens here with the layers and
the logits that it has in PEFT.
"""

import copy
import re

import numpy as np
import pytest
from checks import tiny_bert, tiny_config, tiny_ids

from lorabook import InputError, LoRAConfig, inject
from lorabook.adapter_io import load_adapter
from lorabook.adapters import adapters

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),  # PEFT calls what is deprecated there
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning"),  # PEFT's word for our note
    pytest.mark.filterwarnings("ignore:You have passed exclude_modules:UserWarning"),
]
SIZES, IDS = tiny_config(num_hidden_layers=3), tiny_ids()
QUERY = "bert.encoder.layer.1.attention.self.query"
TABLE = {
    # names
    "name": {"target_modules": ["query"]},
    "names": {"target_modules": ["query", "value", "intermediate.dense"]},
    "end of a path": {"target_modules": ["attention.output.dense", "1.output.dense"]},
    "full path": {"target_modules": [QUERY]},
    "full path and name": {"target_modules": [QUERY, "key"]},
    "a name that matches nothing beside": {"target_modules": ["query", "q_proj"]},
    "part of a name": {"target_modules": ["uery", "key"]},
    "pooler and head": {"target_modules": ["pooler.dense", "classifier"], "task_type": None},
    # expressions
    "expression": {"target_modules": r".*\.layer\.[02]\.attention\.self\.(query|value)"},
    "expression of one path": {"target_modules": QUERY},
    "expression with a dot for anything": {"target_modules": r"bert.encoder.layer.\d.attention.self.key"},
    "anchored expression": {"target_modules": r"^bert\.encoder\..*(query|key)$"},
    "lazy expression": {"target_modules": r".*?layer\.(?:0|2)\..*?self\.(?:query|key)"},
    "expression that looks ahead": {"target_modules": r"(?!.*layer\.1).*self\.(query|key|value)"},
    "expression that looks behind": {"target_modules": r".*(?<=0\.)attention\.self\.query"},
    "expression with a named group": {"target_modules": r".*(?P<index>\d)\.attention\.self\.query"},
    "expression with a backreference": {"target_modules": r"b(e)rt\.\1ncoder\..*query"},
    "expression in any case": {"target_modules": r"(?i).*\.SELF\.Query"},
    "nested repeats": {"target_modules": r"(?:[a-z0-9]+\.)+(?:self\.)+value"},
    "counted repeats": {"target_modules": r"(?:\w+\.){3}[01]\.attention\.self\.key"},
    # all-linear
    "all-linear": {"target_modules": "all-linear"},
    "all-linear in capitals": {"target_modules": "ALL-LINEAR"},
    "all-linear but": {"target_modules": "all-linear", "exclude_modules": ["pooler.dense", "query"]},
    "all-linear but an expression": {"target_modules": "all-linear", "exclude_modules": r".*layer\.1\..*"},
    "all-linear and the pooler in full": {"target_modules": "all-linear", "modules_to_save": ["pooler"]},
    # exclusion
    "excluded name": {"target_modules": ["query", "value"], "exclude_modules": ["0.attention.self.query"]},
    "excluded path": {"target_modules": ["query"], "exclude_modules": [QUERY]},
    "excluded expression": {"target_modules": ["query", "value"], "exclude_modules": r".*[12]\..*value"},
    "expression but an expression": {"target_modules": r".*self\.\w+y", "exclude_modules": r".*2.*"},
    "excluded container": {"target_modules": ["query"], "exclude_modules": ["attention", "0.attention.self"]},
    "nothing excluded": {"target_modules": ["query"], "exclude_modules": ["decoder"]},
    "empty exclusion": {"target_modules": ["query"], "exclude_modules": []},
    "exclusion by an empty text": {"target_modules": ["query"], "exclude_modules": ""},
    # blocks
    "block 0": {"target_modules": ["query"], "layers_to_transform": 0},
    "block 2": {"target_modules": ["query", "key"], "layers_to_transform": 2},
    "blocks": {"target_modules": ["query"], "layers_to_transform": [0, 2]},
    "blocks that are not there": {"target_modules": ["query"], "layers_to_transform": [1, 7, -1]},
    "no blocks named": {"target_modules": ["query"], "layers_to_transform": []},
    "blocks, and a layer outside them": {"target_modules": ["dense"], "layers_to_transform": [1]},
    "blocks, and a full path elsewhere": {"target_modules": ["value", QUERY], "layers_to_transform": 0},
    "blocks by pattern": {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": "layer"},
    "blocks by patterns": {"target_modules": ["query"], "layers_to_transform": [0], "layers_pattern": ["h", "layer"]},
    "blocks by expression": {"target_modules": ["query"], "layers_to_transform": 2, "layers_pattern": [r"l.*?r"]},
    "blocks by a longer path": {
        "target_modules": ["query"],
        "layers_to_transform": 2,
        "layers_pattern": r"encoder\.layer",
    },
    "blocks by either, unparenthesised": {
        "target_modules": ["query", QUERY],
        "layers_to_transform": 1,
        "layers_pattern": "h|layer",
    },
    "blocks by an empty pattern": {"target_modules": ["query"], "layers_to_transform": 1, "layers_pattern": []},
    "block and exclusion": {
        "target_modules": ["query", "key"],
        "layers_to_transform": [0, 1],
        "exclude_modules": ["0.attention.self.query"],
    },
    # ranks and scalings
    "rank by name": {"target_modules": ["query", "value"], "rank_pattern": {"query": 1}},
    "rank by path": {"target_modules": ["query", "value"], "rank_pattern": {QUERY: 3}},
    "first pattern counts": {"target_modules": ["query"], "rank_pattern": {"query": 3, r"layer\.1\..*query": 1}},
    "first pattern counts, reversed": {
        "target_modules": ["query"],
        "rank_pattern": {r"layer\.1\..*query": 1, "query": 3},
        "alpha_pattern": {r".*0\..*": 5, "query": 7},
    },
    "part of a name in a pattern": {"target_modules": ["query", "key"], "rank_pattern": {"uery": 1, ".*ey": 3}},
    "pattern from the start": {"target_modules": ["query"], "rank_pattern": {"^bert.*1.*": 3, "^encoder.*": 1}},
    "pattern of alternatives": {"target_modules": ["query", "key", "value"], "alpha_pattern": {"query|key": 3}},
    "pattern that ends early": {"target_modules": ["query"], "rank_pattern": {"self": 1, "quer": 3}},
    "pattern that looks ahead": {"target_modules": ["query", "key"], "rank_pattern": {r"(?!query)\w+": 1}},
    "pattern that matches nothing": {"target_modules": ["query"], "rank_pattern": {"v": 1}, "alpha_pattern": {"v": 1}},
    "pattern of what is not targeted": {"target_modules": ["query"], "rank_pattern": {"value": 1}},
    "rank and alpha by pattern, rsLoRA": {
        "target_modules": ["query", "value"],
        "use_rslora": True,
        "rank_pattern": {"query": 3},
        "alpha_pattern": {"value": 2.5, "1.*": 9},
    },
    "rank above the smaller side": {"target_modules": ["query", "intermediate.dense"], "r": 11},
    "alpha of zero": {"target_modules": ["query"], "lora_alpha": 0},
    "negative alpha": {"target_modules": ["query"], "lora_alpha": -3},
    # saved in full
    "pooler in full": {"target_modules": ["query"], "modules_to_save": ["pooler"]},
    "pooler in full, targeted too": {"target_modules": ["query", "pooler.dense"], "modules_to_save": ["pooler"]},
    "head in full, targeted too": {"target_modules": ["query", "classifier"]},
    "one dense in full": {"target_modules": ["query"], "modules_to_save": ["1.output.dense"]},
    "every dense in full": {"target_modules": ["query", "dense"], "modules_to_save": ["dense"]},
    "by the end of a name": {"target_modules": ["query"], "modules_to_save": ["ooler.dense", "iate.dense"]},
    "one that is not there": {"target_modules": ["query"], "modules_to_save": ["lm_head"]},
    "a block in full": {"target_modules": ["query"], "modules_to_save": ["layer.1"]},
    "biases": {"target_modules": ["query", "pooler.dense"], "bias": "lora_only"},
    "every bias": {"target_modules": ["query"], "bias": "all", "exclude_modules": ["0.attention.self.query"]},
}
REFUSED = {
    "nothing matched": {"target_modules": ["q_proj"]},
    "part of a path": {"target_modules": r"self\.query"},
    "empty expression": {"target_modules": ""},
    "everything excluded": {"target_modules": ["query"], "exclude_modules": ["query"]},
    "everything saved": {"target_modules": ["pooler.dense"], "modules_to_save": ["pooler"]},
    "no such block": {"target_modules": ["query"], "layers_to_transform": 3},
    "a block without a number": {"target_modules": ["pooler.dense"], "layers_to_transform": 0},
    "another pattern": {"target_modules": ["query"], "layers_to_transform": 0, "layers_pattern": "h"},
    "block of an expression": {"target_modules": ".*query", "layers_to_transform": 0},
    "pattern of an expression": {"target_modules": ".*query", "layers_pattern": "layer"},
    "block of all-linear": {"target_modules": "all-linear", "layers_to_transform": 0},
    "pattern without block": {"target_modules": ["query"], "layers_pattern": "layer"},
    "no expression": {"target_modules": "query("},
    "no expression in a pattern": {"target_modules": ["query"], "rank_pattern": {"*": 2}},
    "flags in a pattern": {"target_modules": ["query"], "rank_pattern": {"(?i)QUERY": 2}},
    "a norm": {"target_modules": ["query", "LayerNorm"]},
    "norms by expression": {"target_modules": r".*attention.*output.*"},
    "rank 0": {"target_modules": ["query"], "r": 0},
    "rank 0 in a pattern": {"target_modules": ["query"], "rank_pattern": {"query": 0}},
}


def ours():
    return tiny_bert(np.random.default_rng(0), dtype="float32", config=SIZES)


@pytest.fixture(scope="module")
def theirs(torch, transformers):
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=3)).eval()
    arrays = {n: torch.tensor(a) for n, a in ours().named_params().items()}
    missing, unexpected = net.load_state_dict(arrays, strict=False)
    assert not unexpected and all(name.endswith("_ids") for name in missing)
    return net


@pytest.fixture
def net(theirs):
    """transformers' model with our weights."""
    return copy.deepcopy(theirs)


def config_of(peft, options):
    fixed = {"task_type": "SEQ_CLS", "r": 2, "lora_alpha": 3, "init_lora_weights": False}
    return peft.LoraConfig(**fixed | copy.deepcopy(options))  # PEFT writes into lists that it is given


def chosen_by_peft(model):
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    return {n: (m.r["default"], m.lora_alpha["default"], m.scaling["default"]) for n, m in layers.items()}


def chosen_here(model):
    return {n: (a.r, a.lora_alpha, a.scaling) for n, a in adapters(model).items()}


def logits(torch, net):
    ids, mask = torch.tensor(np.maximum(IDS, 0)), torch.tensor(IDS >= 0).long()
    with torch.no_grad():
        return net(input_ids=ids, attention_mask=mask).logits.numpy()


@pytest.mark.parametrize("options", TABLE.values(), ids=TABLE)
def test_inject_chooses_what_peft_chooses(torch, peft, net, options):
    net = peft.get_peft_model(net, config_of(peft, options))
    assert (want := chosen_by_peft(net))
    task_type, own = options.get("task_type", "SEQ_CLS"), {n: v for n, v in options.items() if n != "task_type"}
    saved = [m for m in own.pop("modules_to_save", []) if m != "lm_head"] + (["classifier"] if task_type else [])
    if isinstance(own["target_modules"], list):  # a name that matches nothing is a slip here
        own["target_modules"] = [n for n in own["target_modules"] if n not in ("q_proj", "uery")]
    model = ours()
    inject(model, LoRAConfig(**{"r": 2, "lora_alpha": 3} | own, modules_to_save=saved))
    assert chosen_here(model) == want
    in_full = {_plain(n) for n, p in net.named_parameters() if p.requires_grad and "lora_" not in n}
    assert {n for n in model.trainable_params() if "lora_" not in n} == in_full


@pytest.mark.parametrize("options", TABLE.values(), ids=TABLE)
def test_a_folder_opens_as_in_peft(torch, peft, net, tmp_path, options):
    """PEFT sorts patterns as it saves them: where they overlap, its folder means something else, there as here."""
    base = copy.deepcopy(net)
    made = peft.get_peft_model(net, config_of(peft, options))
    with torch.no_grad():
        for tensor in made.parameters():
            if tensor.requires_grad:
                tensor.add_(0.1 * torch.randn_like(tensor))
    made.save_pretrained(str(tmp_path))
    model = ours()
    try:
        net = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    except RuntimeError as error:
        assert "size mismatch" in str(error) and len(options["rank_pattern"]) == 2
        with pytest.raises(InputError, match="has shape"):
            load_adapter(tmp_path, model)
        return
    load_adapter(tmp_path, model)
    assert chosen_here(model) == chosen_by_peft(net)
    np.testing.assert_allclose(model.forward(IDS)[0], logits(torch, net), rtol=1e-4, atol=1e-5)


def _plain(name):
    for part in ("base_model.model.", ".modules_to_save.default", ".base_layer"):
        name = name.replace(part, "")
    return name


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_both_refuse(peft, net, options):
    with pytest.raises((ValueError, TypeError, re.error)):
        peft.get_peft_model(net, config_of(peft, options))
    saved = [*options.get("modules_to_save", []), "classifier"]
    with pytest.raises(InputError):
        inject(ours(), LoRAConfig(**{"r": 2} | options | {"modules_to_save": saved}))
