"""Which layers get an adapter, with which r, lora_alpha and scaling: here and in PEFT, over a table of configs.

A tiny BERT of three blocks. `inject` chooses what PEFT chooses; a folder that PEFT saved opens here with the layers and
the logits that it has in PEFT.
"""

import copy
import json
import re

import numpy as np
import pytest
from checks import tiny_bert, tiny_config, tiny_ids

from lorabook import InputError, LoRAConfig, inject
from lorabook.adapters import adapters, load_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),  # PEFT calls what is deprecated there
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning"),  # PEFT's word for our note
    pytest.mark.filterwarnings("ignore:You have passed exclude_modules:UserWarning"),
]
SIZES, BATCH = tiny_config(num_hidden_layers=3), tiny_ids()
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
    "expression that a beginning fits": {"target_modules": r"bert\.encoder\.layer\.\d\.attention\.self\.(query|k|val)"},
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
    "excluded expression that a beginning fits": {"target_modules": ["query"], "exclude_modules": r"bert\..*\.1"},
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
    "saved in the middle of a target": {"target_modules": ["dense"], "modules_to_save": ["ense"]},
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
    with torch.no_grad():
        return net(**{name: torch.tensor(array) for name, array in BATCH.items()}).logits.numpy()


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
    np.testing.assert_allclose(model(BATCH)[0], logits(torch, net), rtol=1e-4, atol=1e-5)


# ---- paths of other models: PEFT's own function, without a model ----------------------------------------------------

PATHS = [
    *(
        "query",
        "0.query",
        "0.1.query",
        "0.1.2.query",
        "1.x.query",
        "a.1.query",
        "a.b.1.query",
        "a.b.1",
        "a.b.1.0.query",
    ),
    *(
        "model.layers.1.experts.0.query",
        "model.layers.12.experts.1.query",
        "model.layers.2.mlp.query",
        "model.h.1.query",
    ),
    *("layers.1.query", "layers.12.query", "x.sublayers.1.query", "x.layers.1.y.layers.2.query", "h.2.layers.1.query"),
    *("a.xh.1.query", "a.xh.1.layers.2.query", "a.layers.1.dense", "a.layers.1.xquery", "a.layers.1.query.value"),
    *(
        "a.layers.x1.query",
        "a.layers.query",
        "a.layers.1x.query",
        "a.b.10.c.1.query",
        "b.query.dense",
        "c.xquery.dense",
    ),
]
PICKED = {
    **{f"block {n}": {"layers_to_transform": n} for n in (0, 1, 2, 12)},
    "blocks": {"layers_to_transform": [1, 12]},
    **{f"{p} {n}": {"layers_to_transform": n, "layers_pattern": p} for p in ("layers", "h", "b") for n in (1, 2, 12)},
    "several patterns": {"layers_to_transform": 1, "layers_pattern": ["h", "layers"]},
    "several patterns, reversed": {"layers_to_transform": 1, "layers_pattern": ["layers", "h"]},
    "pattern of a group": {"layers_to_transform": 1, "layers_pattern": ["(?:x|sub)layers"]},
    "alternatives": {"layers_to_transform": 1, "layers_pattern": ["layers|h"]},
    "alternatives of one block": {"layers_to_transform": 2, "layers_pattern": ["h|layers"]},
    "a name": {},
    "a path": {"target_modules": ["a.b.1.0.query", "1.query"]},
    "a path and blocks": {"target_modules": ["query", "a.b.1.0.query"], "layers_to_transform": 12},
    "excluded by a name": {"exclude_modules": ["query"], "target_modules": ["query", "dense", "xquery"]},
    "excluded by the end of a name": {"exclude_modules": ["uery", "1.query"]},
    "excluded by an expression": {"exclude_modules": r".*\.\d\.query"},
    "excluded by one that looks ahead": {"exclude_modules": r"(?!.*\.1\.).*ery"},
    "excluded by one in capitals": {"exclude_modules": r".*QUERY"},
    "saved around": {"modules_to_save": ["a.layers", "model"]},
    "expression": {"target_modules": r"(model\.)?layers\.\d+\.query"},
    "expression of a beginning": {"target_modules": r"a\.b\.1|a\.layers\.1\.(?!d).*"},
    "expression in capitals": {"target_modules": r".*Query"},
}


@pytest.mark.parametrize("options", PICKED.values(), ids=PICKED)
def test_of_any_paths_peft_means_the_same(peft, options):
    """Numbers, and names that hold other names, in every place. As they come: the factors are drawn in this order."""
    options = {"target_modules": ["query"]} | options
    theirs = peft.LoraConfig(**copy.deepcopy(options))
    meant = [path for path in PATHS if peft.tuners.tuners_utils.check_target_module_exists(theirs, path)]
    if meant:
        assert LoRAConfig(**options).select(PATHS) == meant
    else:
        with pytest.raises(InputError):
            LoRAConfig(**options).select(PATHS)


KEYS = [
    *(["query"], ["1.query", "query"], ["query", "1.query"], ["layers"], [".*1.*", "query"], ["uery"], [".*uery"]),
    *(["a|query"], ["query|b"], ["a.b.1.0.query"], ["query", "a.b.1.0.query"], ["a.b.1.0.query", "query"], ["a.b.1"]),
    *(["(?=query)query", "(?!query).*"], ["(?!query)\\w+", "(?:x|y)query"], ["QUERY"], ["1$"], ["^a.*"], [r"\d", "b"]),
    *(["[ab].+?y"], ["query", "(?:lay)+ers.*"], ["(?:lay)+ers.*", "(?:query)+"], ["(?:que)+", "que"]),
]


@pytest.mark.parametrize("keys", KEYS, ids=" ".join)
def test_of_any_patterns_peft_means_the_same(peft, keys):
    """Of several keys, plain ones and others, the first that the end of a path matches; r and lora_alpha apart."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = {key: 2 + i for i, key in enumerate(keys)}, {key: 20 + i for i, key in enumerate(reversed(keys))}
    found = LoRAConfig(r=1, lora_alpha=10, rank_pattern=ranks, alpha_pattern=alphas).for_layers(PATHS)
    assert found == {
        path: (ranks.get(get_pattern_key(ranks, path), 1), alphas.get(get_pattern_key(alphas, path), 10))
        for path in PATHS
    }


# ---- "all-linear" in a file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("options", [{}, {"exclude_modules": ["query"]}, {"modules_to_save": ["pooler"]}], ids=str)
def test_all_linear_in_a_file_means_what_it_means_in_peft(torch, peft, net, tmp_path, task_type, options):
    """The head is spared by the type of the task alone, so without one it is adapted. (PEFT itself writes names.)"""
    options = {"task_type": task_type, "target_modules": "all-linear"} | options
    base = copy.deepcopy(net)
    made = peft.get_peft_model(net, config_of(peft, options))
    made.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text())
    assert len(content["target_modules"]) > 3
    file.write_text(json.dumps(content | {"target_modules": "all-linear"}))
    want = chosen_by_peft(made)
    assert ("classifier" in want) == (task_type != "SEQ_CLS")
    model = ours()
    load_adapter(tmp_path, model)
    opened = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    assert chosen_here(model) == chosen_by_peft(opened) == want
    np.testing.assert_allclose(model(BATCH)[0], logits(torch, opened), rtol=1e-4, atol=1e-5)


def test_all_linear_of_a_model_is_that_of_its_task(peft, net):
    """`inject` reads no task_type from a file: the model's own counts, and spares its head, in full or frozen."""
    made = peft.get_peft_model(net, config_of(peft, {"target_modules": "all-linear"}))
    for saved in ([], ["classifier"]):
        model = ours()
        inject(model, LoRAConfig(r=2, lora_alpha=3, modules_to_save=saved))
        assert model.task_type == "SEQ_CLS" and chosen_here(model) == chosen_by_peft(made)


def _plain(name):
    for part in ("base_model.model.", ".modules_to_save.default"):
        name = name.replace(part, "")
    return name


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_both_refuse(peft, net, options):
    with pytest.raises((ValueError, TypeError, re.error)):
        peft.get_peft_model(net, config_of(peft, options))
    saved = [*options.get("modules_to_save", []), "classifier"]
    with pytest.raises(InputError):
        inject(ours(), LoRAConfig(**{"r": 2} | options | {"modules_to_save": saved}))
