"""The real all-MiniLM-L6-v2 against transformers and PEFT, live: values, gradients, optimizer steps, folders."""

import copy

import numpy as np
import pytest

from lorabook import InputError, LoRAConfig, cli, hub, inject
from lorabook.adapters import load_adapter, save_adapter
from lorabook.data import Texts, load_tokenizer
from lorabook.models import BertForSentenceEmbedding, BertForSequenceClassification, BertForTokenClassification
from lorabook.training import AdamW

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # PEFT calls what is deprecated there

TEXTS = [
    "A gripping, beautifully shot thriller that never lets go.",
    "Dull.",
    "The plot makes no sense whatsoever, and the two leads seem to have met on the set an hour before.",
    "I laughed; I cried; I bought the soundtrack!",
    "It is neither as clever as it thinks it is nor as bad as everybody says: a decent evening, no more than that.",
    "zzyzx qwfp",
]
LABELS = np.array([1, 0, 0, 1, 1, 0])
CONFIGS = {
    "query, value": {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]},
    "all-linear": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": "all-linear",
        "use_rslora": True,
        "rank_pattern": {"intermediate.dense": 2, r"layer\.5\.output\.dense": 7},
    },
}


@pytest.fixture(scope="module")
def folder():
    try:
        return hub.locate("minilm", progress=False)
    except InputError as error:
        pytest.skip(f"all-MiniLM-L6-v2 is not here: {error}")


@pytest.fixture(scope="module")
def batch(folder):
    batch = Texts(list(zip(TEXTS, LABELS, strict=True)), load_tokenizer(folder)).rows(np.arange(len(TEXTS)))
    assert not batch["attention_mask"].all() and batch["input_ids"].shape[1] > 20
    np.testing.assert_array_equal(batch["labels"], LABELS)
    return batch


@pytest.fixture(scope="module")
def their_base(torch, transformers, folder):
    """transformers' model with the classifier that ours draws; torch copies it for each test."""
    model = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    params = plain(folder).named_params()
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(model.classifier, name).copy_(torch.tensor(params[f"classifier.{name}"]))
    return model


def plain(folder):
    return BertForSequenceClassification.from_pretrained(folder, labels=2, rng=5)


def adapted(folder, config, rng):
    """Our model with LoRA whose B is not zero, so that no gradient vanishes."""
    model = plain(folder)
    inject(model, config, rng)
    for name, array in model.trainable_params().items():
        if name.endswith("lora_B"):
            array[...] = 0.05 * rng.standard_normal(array.shape)
    return model


def opened(peft, their_base, path):
    """PEFT's model from a folder, ready to train, without dropout."""
    return peft.PeftModel.from_pretrained(copy.deepcopy(their_base), str(path), is_trainable=True).eval()


def their_logits(torch, model, batch):
    return model(**their_input(torch, batch)).logits


def their_input(torch, batch):
    """The same batch for transformers, without labels."""
    return {name: torch.tensor(array) for name, array in batch.items() if name != "labels"}


def by_our_names(model):
    """{our name: parameter that trains} of a PEFT model."""
    names = {}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            for old in ("base_model.model.", ".default.weight" if ".lora_" in name else ".default", ".modules_to_save"):
                name = name.replace(old, "")
            names[name] = tensor
    return names


def furthest(got, want):
    return np.abs(got - want.detach().numpy()).max()


def test_tokens_are_those_of_transformers(transformers, folder, batch):
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    theirs.backend_tokenizer.no_truncation()
    want = theirs(TEXTS, padding=True, return_tensors="np")
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(batch[name], want[name])


def test_sentence_embeddings(torch, their_base, folder, batch):
    theirs = their_input(torch, batch)
    mask, h = theirs["attention_mask"], their_base.bert(**theirs).last_hidden_state
    want = (h * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    got, _ = BertForSentenceEmbedding.from_pretrained(folder)(batch)
    assert got.dtype == np.float32
    assert furthest(got, want) < 1e-5


def test_names_are_those_of_transformers(their_base, folder):
    theirs = {n: tuple(t.shape) for n, t in their_base.state_dict().items() if not n.endswith("_ids")}
    assert {n: a.shape for n, a in plain(folder).named_params().items()} == theirs


def test_logits(torch, their_base, folder, batch):
    got, _ = plain(folder)(batch)
    assert got.dtype == np.float32
    assert furthest(got, their_logits(torch, their_base, batch)) < 1e-5


def test_a_padding_token_in_a_text(torch, transformers, their_base, folder):
    """The tokenizer's mask says what padding is; the word "[PAD]" in a text is none."""
    texts = ["A [PAD] film.", "[PAD]", "A gripping, beautifully shot thriller."]
    ours = Texts([(text, 0) for text in texts], load_tokenizer(folder)).rows([0, 1, 2])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    theirs.backend_tokenizer.no_truncation()
    batch = theirs(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    want = their_base(**batch).logits
    ids, mask = ours["input_ids"], ours["attention_mask"]
    assert (ids[mask == 1] == 0).sum() == 2 and furthest(plain(folder)(ours)[0], want) < 1e-5
    masked = plain(folder)(ours | {"attention_mask": mask * (ids > 0)})[0]
    assert furthest(masked, want) > 1e-3


def test_pairs_of_texts(torch, transformers, their_base, folder):
    """Two texts in a row, told apart by the types of their tokens."""
    pairs = list(zip(TEXTS[:3], TEXTS[3:], strict=True))
    ours = Texts([(pair, 0) for pair in pairs], load_tokenizer(folder)).rows([0, 1, 2])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    theirs.backend_tokenizer.no_truncation()
    batch = theirs(*zip(*pairs, strict=True), padding=True, return_tensors="np", return_token_type_ids=True)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        np.testing.assert_array_equal(ours[name], batch[name])
    want = their_logits(torch, their_base, ours)
    assert furthest(plain(folder)(ours)[0], want) < 1e-5
    del ours["token_type_ids"]
    assert furthest(plain(folder)(ours)[0], want) > 1e-3


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_and_every_gradient(torch, peft, their_base, folder, batch, rng, tmp_path, options, dtype):
    config = LoRAConfig(modules_to_save=["classifier"], **options)
    model = adapted(folder, config, rng)
    save_adapter(tmp_path, model, "minilm", "SEQ_CLS", ["negative", "positive"])
    theirs = opened(peft, their_base, tmp_path).to(getattr(torch, dtype))
    model.to(np, dtype)
    exact = dtype == "float64"
    logits = their_logits(torch, theirs, batch)
    assert furthest(model(batch)[0], logits) < (1e-10 if exact else 1e-5)
    want = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS))
    want.backward()
    loss, grads = model.loss_and_grad(batch)
    assert abs(loss - want.item()) < (1e-10 if exact else 1e-6)
    tensors = by_our_names(theirs)
    assert grads.keys() == tensors.keys()
    for name, grad in grads.items():
        assert grad.dtype == dtype
        largest = tensors[name].grad.abs().max().item()
        assert largest > 0
        assert furthest(grad, tensors[name].grad) < (1e-10 if exact else 1e-4) * largest, name


def test_gradients_of_full_fine_tuning(torch, their_base, folder, batch):
    theirs, model = copy.deepcopy(their_base).double(), plain(folder).to(np, "float64")
    torch.nn.functional.cross_entropy(their_logits(torch, theirs, batch), torch.tensor(LABELS)).backward()
    _, grads = model.loss_and_grad(batch)
    tensors = dict(theirs.named_parameters())
    assert grads.keys() == tensors.keys()
    everywhere = max(tensor.grad.abs().max().item() for tensor in tensors.values())
    for name, grad in grads.items():
        largest = tensors[name].grad.abs().max().item()
        scale = everywhere if name.endswith("key.bias") else largest  # which has gradient 0
        assert furthest(grad, tensors[name].grad) < 1e-10 * scale, name


def test_token_classification(torch, transformers, folder, batch):
    """transformers' loss over tokens, with -100 where a token does not count, and its gradients."""
    model = BertForTokenClassification.from_pretrained(folder, labels=5, rng=5).to(np, "float64")
    theirs = transformers.BertForTokenClassification.from_pretrained(folder, num_labels=5).double().eval()
    params = model.named_params()
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(theirs.classifier, name).copy_(torch.tensor(params[f"classifier.{name}"]))
    ids = batch["input_ids"]
    labels = np.where(ids > 999, ids % 5, -100)  # padding and special tokens have the lowest ids
    assert 0 < (labels < 0).sum() < labels.size
    want = theirs(**their_input(torch, batch), labels=torch.tensor(labels)).loss
    want.backward()
    model.set_trainable(name for name in params if not name.startswith("bert.embeddings"))
    loss, grads = model.loss_and_grad(batch | {"labels": labels})
    assert abs(loss - want.item()) < 1e-10
    tensors = dict(theirs.named_parameters())
    everywhere = max(tensors[name].grad.abs().max().item() for name in grads)
    for name, grad in grads.items():
        scale = everywhere if name.endswith("key.bias") else tensors[name].grad.abs().max().item()
        assert furthest(grad, tensors[name].grad) < 1e-10 * scale, name


def test_ten_adamw_steps_stay_together(torch, peft, their_base, folder, batch, rng, tmp_path):
    few = [0, 1, 5]
    batch = {name: array[few] for name, array in batch.items()}
    longest = batch["attention_mask"].sum(1).max()
    batch = {name: array[:, :longest] if array.ndim == 2 else array for name, array in batch.items()}
    config = LoRAConfig(modules_to_save=["classifier"], **CONFIGS["query, value"])
    model = adapted(folder, config, rng)
    save_adapter(tmp_path, model, "minilm", "SEQ_CLS")
    theirs = opened(peft, their_base, tmp_path).double()
    params, tensors = model.to(np, "float64").trainable_params(), by_our_names(theirs)
    optimizer, reference = AdamW(1e-3), torch.optim.AdamW(tensors.values(), 1e-3, weight_decay=0.0)
    losses = []
    for _ in range(10):
        reference.zero_grad()
        want = torch.nn.functional.cross_entropy(their_logits(torch, theirs, batch), torch.tensor(LABELS[few]))
        want.backward()
        reference.step()
        loss, grads = model.loss_and_grad(batch)
        optimizer.step(params, grads)
        losses.append(loss)
        assert abs(loss - want.item()) < 1e-9
    assert losses[-1] < losses[0]
    for name, tensor in tensors.items():
        assert furthest(params[name], tensor) < 1e-8 * np.abs(params[name]).max(), name


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_peft_opens_what_we_save(torch, peft, their_base, folder, batch, rng, tmp_path, bias):
    config = LoRAConfig(bias=bias, modules_to_save=["classifier"], **CONFIGS["query, value"])
    model = adapted(folder, config, rng)
    for name, array in model.trainable_params().items():
        if name.endswith("bias"):
            array += 0.1 * rng.standard_normal(array.shape).astype("f4")
    save_adapter(tmp_path, model, "minilm", "SEQ_CLS")
    got, _ = model(batch)
    assert furthest(got, their_logits(torch, opened(peft, their_base, tmp_path), batch)) < 1e-5
    assert furthest(plain(folder)(batch)[0], torch.tensor(got)) > 1e-2


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_we_open_what_peft_saves(torch, peft, their_base, folder, batch, tmp_path, bias, options):
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", bias=bias, init_lora_weights=False, **options)
    theirs = peft.get_peft_model(copy.deepcopy(their_base), config).eval()
    with torch.no_grad():
        for tensor in theirs.parameters():
            if tensor.requires_grad:
                tensor.mul_(0.5).add_(0.01 * torch.randn_like(tensor))
    theirs.save_pretrained(str(tmp_path))
    model = plain(folder)
    read = load_adapter(tmp_path, model)
    assert read.bias == bias
    want = their_logits(torch, theirs, batch)
    assert furthest(model(batch)[0], want) < 1e-5
    assert furthest(plain(folder)(batch)[0], want) > 1e-2


@pytest.mark.parametrize("bias", ["none", "all"])
def test_merged_folder_opens_in_transformers(
    torch, transformers, peft, their_base, folder, batch, rng, tmp_path, capsys, bias
):
    config = LoRAConfig(bias=bias, modules_to_save=["classifier"], **CONFIGS["all-linear"])
    model = adapted(folder, config, rng)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", model, "minilm", "SEQ_CLS", ["negative", "positive"])
    argv = ["merge", str(folder), "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]
    assert cli.main(argv) == 0
    assert "merged" in capsys.readouterr().out
    merged = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.id2label == {0: "negative", 1: "positive"}
    got = their_logits(torch, merged, batch)
    want = their_logits(torch, opened(peft, their_base, tmp_path / "adapter"), batch)
    assert furthest(got.detach().numpy(), want) < 1e-5
    theirs = opened(peft, their_base, tmp_path / "adapter").merge_and_unload()
    assert furthest(got.detach().numpy(), their_logits(torch, theirs, batch)) < 1e-5
    weights, wanted = merged.state_dict(), theirs.state_dict()
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert furthest(weights[name].numpy(), tensor) < 1e-6, name


def test_merge_of_what_peft_saves(torch, transformers, peft, folder, batch, tmp_path, capsys):
    """Three classes, and no lorabook.json to say so."""
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=3)
    config = peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **CONFIGS["query, value"])
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(str(tmp_path / "adapter"))
    argv = ["merge", str(folder), "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]
    assert cli.main(argv) == 0, capsys.readouterr().err
    merged = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.id2label == theirs.config.id2label == {i: f"LABEL_{i}" for i in range(3)}
    assert furthest(their_logits(torch, merged, batch).detach().numpy(), their_logits(torch, theirs, batch)) < 1e-5
