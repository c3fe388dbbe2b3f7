"""Adapter folders between PEFT and here: of old versions, of a bare encoder, of a live model's state; and ours."""

import copy
import json

import numpy as np
import pytest
from checks import WORDS, tiny_bert, tiny_config, tiny_ids, write_bert
from safetensors.numpy import save_file

from lorabook import InputError, LoRAConfig, inject
from lorabook.adapters import adapters, load_adapter, peft_folder, save_adapter
from lorabook.data import text_file
from lorabook.files import read_safetensors
from lorabook.models import BertForSentenceEmbedding

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),  # PEFT calls what is deprecated there
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
BATCH = {name: array[:3] for name, array in tiny_ids().items()}
REAL = BATCH["attention_mask"] == 1


def ours(labels=3, **options):
    return tiny_bert(np.random.default_rng(0), dtype="float32", labels=labels, **options)


def theirs(torch, transformers, labels=3):
    """transformers' model with the weights of ours."""
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**tiny_config(), num_labels=labels)).eval()
    arrays = {n: torch.tensor(a) for n, a in ours(labels).named_params().items()}
    assert not net.load_state_dict(arrays, strict=False).unexpected_keys
    return net


def made(torch, peft, net, **options):
    """PEFT's model with an adapter that does something."""
    torch.manual_seed(0)
    fixed = {"r": 2, "lora_alpha": 3, "target_modules": ["query", "value"], "init_lora_weights": False}
    net = peft.get_peft_model(net, peft.LoraConfig(**fixed | options)).eval()
    with torch.no_grad():
        for tensor in net.parameters():
            if tensor.requires_grad:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return net


def answer(torch, net):
    """Logits, or the hidden states of a bare encoder where a token stands."""
    with torch.no_grad():
        out = net(**{name: torch.tensor(array) for name, array in BATCH.items()})
        return (out.logits if "logits" in out else out.last_hidden_state).numpy()


def assert_same(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def change(folder, **options):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def test_a_folder_of_peft_0_10(torch, transformers, peft, tmp_path, capsys):
    """Of the options it knew, modules_to_save is null; the classifier is in the file all the same."""
    net = made(torch, peft, theirs(torch, transformers), task_type="SEQ_CLS")
    net.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    known = ("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
             "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
             "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "r", "rank_pattern",
             "revision", "target_modules", "task_type", "use_dora", "use_rslora")  # fmt: skip
    options = json.loads(path.read_text())
    path.write_text(json.dumps({name: options[name] for name in known} | {"modules_to_save": None}))
    assert "base_model.model.classifier.weight" in read_safetensors(tmp_path / "adapter_model.safetensors")[0]
    model = ours()
    model.named_params()["classifier.weight"][...] = 0  # which starts at random in a new model
    assert load_adapter(tmp_path, model).modules_to_save == ("classifier",)
    assert_same(model(BATCH)[0], answer(torch, net))
    assert capsys.readouterr().err == ""


def test_names_that_match_nothing(torch, transformers, peft, tmp_path, capsys):
    net = made(torch, peft, theirs(torch, transformers), task_type="SEQ_CLS")
    net.save_pretrained(str(tmp_path))
    names = ["query", "value", "q_proj", "v_proj"]
    change(tmp_path, target_modules=names, rank_pattern={"q_proj": 4}, alpha_pattern={"layer.9.*": 7})
    model = ours()
    load_adapter(tmp_path, model)
    assert_same(model(BATCH)[0], answer(torch, net))
    notes = capsys.readouterr().err
    assert "target module 'q_proj' (and 1 more) matches no linear layer" in notes
    assert "rank_pattern key 'q_proj' matches no layer" in notes and "alpha_pattern key 'layer.9.*'" in notes
    assert all(line.startswith("note: ") for line in notes.splitlines())


@pytest.mark.parametrize(
    "targets", [["query", "value"], r"encoder\.layer\.\d\.attention\.self\.(query|key)", ["1.output.dense"]]
)
def test_an_adapter_of_a_bare_encoder(torch, transformers, peft, tmp_path, targets):
    """Its names lack `bert.`, and its expressions mean paths without it."""
    net = made(torch, peft, theirs(torch, transformers).bert, task_type="FEATURE_EXTRACTION", target_modules=targets)
    net.save_pretrained(str(tmp_path))
    want = answer(torch, net)
    model = ours()
    load_adapter(tmp_path, model)
    assert all(path.startswith("bert.") for path in adapters(model)) and not model.trainable_params()
    assert_same(model.children["bert"](BATCH)[0][REAL], want[REAL])
    plain = ours()
    load_adapter(tmp_path, plain.children["bert"])
    assert_same(plain.children["bert"](BATCH)[0][REAL], want[REAL])
    sentences = ours(cls=BertForSentenceEmbedding, labels=0)
    load_adapter(tmp_path, sentences)
    assert_same(sentences.children["bert"](BATCH)[0][REAL], want[REAL])


@pytest.mark.parametrize("adapter", ["default", "mine"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_live_models_state_dict(torch, transformers, peft, tmp_path, capsys, adapter, whole):
    """Saved by hand, the keys hold the adapter's name; a whole one holds the base too, and the head twice."""
    base = theirs(torch, transformers)
    net = made(torch, peft, copy.deepcopy(base), task_type="SEQ_CLS", modules_to_save=["pooler"], bias="lora_only")
    net.save_pretrained(str(tmp_path))
    if adapter != "default":
        net = peft.PeftModel.from_pretrained(base, str(tmp_path), adapter_name=adapter).eval()
    state = {n: t.contiguous().numpy() for n, t in net.state_dict().items()}
    assert any(f".lora_A.{adapter}.weight" in name for name in state)
    trained = (f".{adapter}.", ".base_layer.bias")
    save_file(
        {n: t for n, t in state.items() if whole or any(p in n for p in trained)},
        tmp_path / "adapter_model.safetensors",
    )
    model = ours()
    load_adapter(tmp_path, model)
    assert_same(model(BATCH)[0], answer(torch, net))
    assert f"has the adapter's name '{adapter}' in its keys" in capsys.readouterr().err
    if whole:
        other = ours()
        other.named_params()["bert.embeddings.word_embeddings.weight"][0, 0] += 1
        with pytest.raises(InputError, match="unexpected base_model.model.bert.embeddings.word_embeddings.weight"):
            load_adapter(tmp_path, other)


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
@pytest.mark.parametrize(
    "options", [{}, {"target_modules": "all-linear"}, {"target_modules": r".*attention\.self\..*"}]
)
def test_peft_opens_an_adapter_saved_without_its_head(torch, transformers, peft, rng, tmp_path, options, task_type):
    """For SEQ_CLS it looks for a classifier, which here stayed as it was; and in torch, Dropout is a module."""
    model = ours()
    config = LoRAConfig(**{"r": 2, "target_modules": ["query"], "init_lora_weights": False} | options)
    inject(model, config, rng)
    save_adapter(tmp_path, model, task_type=task_type)
    net = peft.PeftModel.from_pretrained(theirs(torch, transformers), str(tmp_path)).eval()
    assert_same(answer(torch, net), model(BATCH)[0])
    again = ours()
    load_adapter(tmp_path, again)
    assert_same(again(BATCH)[0], model(BATCH)[0])


def test_an_adapted_head_opens_in_peft_without_a_task(torch, transformers, peft, rng, tmp_path):
    model = ours()
    config = LoRAConfig(r=2, target_modules=["query", "classifier"], init_lora_weights=False)
    inject(model, config, rng)
    with pytest.raises(InputError, match="classifier has an adapter, but PEFT saves the head of SEQ_CLS in full"):
        save_adapter(tmp_path / "a", model, task_type="SEQ_CLS")
    assert not (tmp_path / "a").exists()
    save_adapter(tmp_path / "a", model)
    net = peft.PeftModel.from_pretrained(theirs(torch, transformers), str(tmp_path / "a")).eval()
    assert_same(answer(torch, net), model(BATCH)[0])


def test_names_of_classes_in_peft(torch, transformers, peft, rng, tmp_path):
    """Labels 0 to 11 in a file are the classes 0 to 11 there too, and lorabook.json gives their names."""
    rows = [{"text": f"{WORDS[4 + i % 8]} film", "label": i} for i in (11, 2, 0, 10, 1, 3, 9, 4, 8, 5, 7, 6)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    names = text_file(tmp_path / "mine.jsonl", split=False).names
    assert names == [str(i) for i in range(12)]
    model = ours(labels=12)
    write_bert(tmp_path / "base", ours(labels=12), tensors={"classifier.weight": None, "classifier.bias": None})
    config = LoRAConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], init_lora_weights=False)
    inject(model, config, rng)
    save_adapter(tmp_path / "run", model, tmp_path / "base", "SEQ_CLS", names, 9)
    id2label = dict(enumerate(peft_folder.about(tmp_path / "run")["labels"]))
    auto = peft.AutoPeftModelForSequenceClassification
    net = auto.from_pretrained(str(tmp_path / "run"), id2label=id2label).eval()
    assert net.config.id2label == {i: str(i) for i in range(12)}
    got = answer(torch, net)
    assert_same(got, model(BATCH)[0])
    assert [net.config.id2label[int(i)] for i in got.argmax(1)] == [names[i] for i in model(BATCH)[0].argmax(1)]
    same = transformers.AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "run"), id2label=id2label)
    assert_same(answer(torch, same.eval()), got)  # which a config.json in the folder would prevent
