"""BERT, DistilBERT and RoBERTa against transformers and PEFT, live: values and gradients, folders both ways."""

import json

import numpy as np
import pytest
from tiny_encoders import HEAD_LAYERS, HEADS, config_of, made

from lorabook import InputError, LoRAConfig, cli, inject
from lorabook.adapters import adapters, load_adapter, save_adapter
from lorabook.models import MODELS, BertForSequenceClassification, load_classifier, save_pretrained

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),  # PEFT calls what is deprecated there
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
EVERY_KIND = pytest.mark.parametrize("kind", MODELS)
PAD = {"bert": 0, "distilbert": 0, "roberta": 1}
LABELS = np.array([0, 2, 1, 2])
LAYERS = {"bert": ("bert.pooler.dense", "classifier"), **HEAD_LAYERS}


def batch_of(kind):
    """Ids and mask; in the second text stands a padding token that is none, as if it had been spelt out."""
    ids = np.array([[2, 5, 4, 5, 3], [2, 6, PAD[kind], 3, 0], [2, 9, 8, 3, 0], [2, 3, 0, 0, 0]])
    mask = np.arange(5) < np.array([5, 4, 4, 2])[:, None]
    return {"input_ids": np.where(mask, ids, PAD[kind]), "attention_mask": mask.astype(int)}


def theirs(torch, transformers, model, task="SequenceClassification", labels=3):
    """transformers' model with the weights of ours, in their dtype."""
    config = transformers.AutoConfig.for_model(**model.config, num_labels=labels)
    net = getattr(transformers, f"AutoModelFor{task}").from_config(config).eval()
    arrays = {name: torch.tensor(array) for name, array in model.named_params().items()}
    report = net.to(next(iter(arrays.values())).dtype).load_state_dict(arrays, strict=False)
    assert not report.unexpected_keys and not report.missing_keys
    return net


def logits_of(torch, net, batch):
    return net(**{name: torch.tensor(array) for name, array in batch.items()}).logits


def furthest(got, want):
    want = want.detach().numpy()
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def by_our_names(model):
    """{our name: parameter that trains} of a PEFT model."""
    names = {}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            for old in ("base_model.model.", ".default.weight" if ".lora_" in name else ".default", ".modules_to_save"):
                name = name.replace(old, "")
            names[name] = tensor
    return names


def assert_gradients(grads, tensors):
    """As far from each other as rounding makes them."""
    assert grads.keys() == tensors.keys()
    everywhere = max(tensor.grad.abs().max().item() for tensor in tensors.values())
    for name, grad in grads.items():
        want = tensors[name].grad.numpy()
        largest = np.abs(want).max()
        zero = name.endswith(("key.bias", "k_lin.bias"))  # but for rounding
        assert np.abs(grad - want).max() < 1e-10 * (everywhere if zero else largest), name


# ---- values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(  # BERT's labels of tokens are in test_minilm
    ("kind", "task"),
    [*((kind, "SequenceClassification") for kind in MODELS), *((kind, "TokenClassification") for kind in HEADS)],
)
def test_logits_and_every_gradient(torch, transformers, rng, kind, task):
    head = {"SequenceClassification": "classification", "TokenClassification": "tokens"}[task]
    model, batch = made(rng, kind, head), batch_of(kind)
    net = theirs(torch, transformers, model, task)
    logits = logits_of(torch, net, batch)
    assert furthest(model(batch)[0], logits) < 1e-10
    labels = LABELS if head == "classification" else np.where(batch["input_ids"] > 3, batch["input_ids"] % 3, -100)
    want = torch.nn.functional.cross_entropy(logits.reshape(-1, 3), torch.tensor(labels).reshape(-1))
    want.backward()
    loss, grads = model.loss_and_grad(batch | {"labels": labels})
    assert abs(loss - want.item()) < 1e-12
    padding = f"{kind}.embeddings.word_embeddings.weight"  # where torch has no gradient for the padding token's row
    grads[padding][PAD[kind]] = 0
    if kind == "roberta":
        grads["roberta.embeddings.position_embeddings.weight"][PAD[kind]] = 0
    assert_gradients(grads, {n: t for n, t in net.named_parameters() if t.grad is not None})


@EVERY_KIND
@pytest.mark.parametrize("targets", ["the default", "all-linear"])
def test_gradients_and_folders_through_peft(torch, transformers, peft, rng, tmp_path, kind, targets):
    """An adapter saved here opens there: the same logits, and the same gradients of all that trains."""
    model, batch = made(rng, kind, dtype="float32"), batch_of(kind)
    net = theirs(torch, transformers, model)
    chosen = list(model.default_targets) if targets == "the default" else targets
    config = LoRAConfig(r=2, lora_alpha=3, target_modules=chosen, modules_to_save=model.head_modules)
    inject(model, config, rng)
    for array in model.trainable_params().values():
        array += 0.3 * rng.standard_normal(array.shape).astype("f4")
    save_adapter(tmp_path, model, task_type=model.task_type)
    opened = peft.PeftModel.from_pretrained(net, str(tmp_path), is_trainable=True).eval().double()
    model.to(np, "float64")
    logits = logits_of(torch, opened, batch)
    assert furthest(model(batch)[0], logits) < 1e-10
    torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS)).backward()
    assert_gradients(model.loss_and_grad(batch | {"labels": LABELS})[1], by_our_names(opened))


@EVERY_KIND
@pytest.mark.parametrize("targets", ["the default", "all-linear"])
def test_we_open_what_peft_saves(torch, transformers, peft, rng, tmp_path, kind, targets):
    model, batch = made(rng, kind, dtype="float32"), batch_of(kind)
    torch.manual_seed(0)
    chosen = list(model.default_targets) if targets == "the default" else targets
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=chosen, init_lora_weights=False)
    net = theirs(torch, transformers, model)
    if (kind, targets) == ("distilbert", "all-linear"):  # it adapts pre_classifier, and then cannot save it in full
        with pytest.raises(TypeError, match="modules_to_save cannot be applied to modules of type"):
            peft.get_peft_model(net, config)
        return
    net = peft.get_peft_model(net, config).eval()
    with torch.no_grad():
        for tensor in net.parameters():
            if tensor.requires_grad:
                tensor.add_(0.3 * torch.randn_like(tensor))
    net.save_pretrained(str(tmp_path))
    before = model(batch)[0]
    load_adapter(tmp_path, model)
    want = logits_of(torch, net, batch)
    assert furthest(model(batch)[0], want) < 1e-5 < 1e-2 < furthest(before, want)
    own = made(rng, kind, dtype="float32")
    assert [*adapters(model)] == inject(own, LoRAConfig(target_modules=chosen, modules_to_save=own.head_modules))


# ---- folders ---------------------------------------------------------------------------------------------------------


@EVERY_KIND
def test_parts_of_transformers_and_parts_for_it(torch, transformers, rng, tmp_path, kind):
    """As a folder of bert-base has them at a shard size of its own; and ours, opened there."""
    model, batch = made(rng, kind, dtype="float32"), batch_of(kind)
    net = theirs(torch, transformers, model)
    net.save_pretrained(tmp_path / "a", max_shard_size="1KB")
    assert len(list((tmp_path / "a").glob("model-*-of-*.safetensors"))) > 2
    again = load_classifier(tmp_path / "a", 3)
    assert again.config["architectures"] == [type(model).__name__] and type(again) is type(model)
    assert furthest(again(batch)[0], logits_of(torch, net, batch)) < 1e-5
    (tmp_path / "b").mkdir()
    save_pretrained(tmp_path / "b", again, tmp_path / "a", ["x", "y", "z"], max_shard_size=1000)
    assert len(list((tmp_path / "b").glob("model-*-of-*.safetensors"))) > 2
    auto = transformers.AutoModelForSequenceClassification
    opened, report = auto.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(opened).__name__ == type(model).__name__ and opened.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert furthest(again(batch)[0], logits_of(torch, opened.eval(), batch)) < 1e-5


@EVERY_KIND
def test_a_checkpoint_of_pretraining(torch, transformers, tmp_path, kind, capsys):
    """As the public checkpoints are: with the heads of pretraining."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**config_of(kind))
    net = transformers.AutoModelForPreTraining.from_config(config).eval()
    net.save_pretrained(tmp_path)
    model, batch = load_classifier(tmp_path, 3), batch_of(kind)
    h, _ = model.children[kind](batch)
    with torch.no_grad():
        want = net.base_model(**{n: torch.tensor(a) for n, a in batch.items()}).last_hidden_state
    real = batch["attention_mask"] > 0
    assert furthest(h[real], want[real]) < 1e-5
    assert "heads for other tasks are passed over" in capsys.readouterr().err


@EVERY_KIND
def test_base_sized_folders_in_parts(torch, transformers, tmp_path, kind):
    """The sizes of bert-base, distilbert-base and roberta-base, with few words: 100 MB parts, read without torch."""
    torch.manual_seed(0)
    small = {"vocab_size": 100, "num_labels": 2} | ({"pad_token_id": 1} if kind == "roberta" else {})
    more = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5} if kind == "roberta" else {}
    config = transformers.AutoConfig.for_model(kind, **small | more)
    net = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    net.save_pretrained(tmp_path, max_shard_size="100MB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    model, batch = load_classifier(tmp_path, 2), batch_of(kind)
    assert model.sizes.hidden_size == 768 and model.sizes.longest == 512
    with torch.no_grad():
        assert furthest(model(batch)[0], logits_of(torch, net, batch)) < 1e-4


@pytest.mark.parametrize("kind", HEADS)
def test_a_merged_folder_opens_in_transformers(torch, transformers, rng, tmp_path, kind):
    model, batch = made(rng, kind, dtype="float32"), batch_of(kind)
    theirs(torch, transformers, model).save_pretrained(tmp_path / "base")
    inject(model, LoRAConfig(r=2, target_modules="all-linear", modules_to_save=model.head_modules), rng)
    for array in model.trainable_params().values():
        array += 0.1 * rng.standard_normal(array.shape).astype("f4")
    save_adapter(tmp_path / "run", model, tmp_path / "base", model.task_type, ["x", "y", "z"])
    argv = ["merge", tmp_path / "base", "--adapter", tmp_path / "run", "--out", tmp_path / "merged"]
    assert cli.main([str(word) for word in argv]) == 0
    net = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert furthest(model(batch)[0], logits_of(torch, net, batch)) < 1e-5


def test_what_is_refused_is_what_transformers_calls_so(transformers, tmp_path):
    transformers.AutoConfig.for_model("modernbert").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "modernbert"
    with pytest.raises(InputError, match="model_type must be one of 'bert', 'distilbert', 'roberta'; got 'modernbert'"):
        load_classifier(tmp_path, 2)
    with pytest.raises(InputError, match="model_type must be 'bert'; got 'modernbert'"):
        BertForSequenceClassification.from_pretrained(tmp_path, labels=2)
    assert all(LAYERS[kind] == cls.architecture.head_layers for kind, cls in MODELS.items())
