"""predict against PEFT on the same adapter folder: whole texts in, probabilities out."""

import csv
import io

import numpy as np
import pytest
from checks import encoder_folder

from lorabook import InputError, LoRAConfig, cli, hub, inject, load_model, predict
from lorabook.adapters import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # PEFT calls what is deprecated there

TEXTS = ["good", "the bad film the plot", "a poor plot", "fine " * 30, "the unheard film"]
REVIEWS = [
    "A gripping, beautifully shot thriller that never lets go.",
    "Dull.",
    "I laughed; I cried; I bought the soundtrack! " * 40,
    "Weder klug noch dumm: äöü 好 🙂, [PAD] zzyzx",
]


def their_base(transformers, folder):
    return transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


def their_probabilities(torch, transformers, model, folder, texts, max_length):
    tokens = ("pad", "unk", "cls", "sep")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), **{f"{name}_token": f"[{name.upper()}]" for name in tokens}
    )
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits.double().softmax(-1).numpy()


def ours(model, texts, **options):
    return np.array([[*answer.probabilities.values()] for answer in predict(model, texts, **options)])


@pytest.fixture(scope="module", params=["tiny", "minilm"])
def base(request, tmp_path_factory):
    """(what lorabook calls the model, its folder, texts, tokens a text)."""
    if request.param == "tiny":
        folder = encoder_folder(tmp_path_factory.mktemp("tiny") / "model")
        return str(folder), folder, TEXTS, 9
    try:
        return "minilm", hub.locate("minilm", progress=False), REVIEWS, 128
    except InputError as error:
        pytest.skip(f"all-MiniLM-L6-v2 is not here: {error}")


def trained_by_us(folder, base, seed=1):
    """An adapter folder with labels, whose factors are not zero."""
    name, _, _, max_length = base
    model = load_model(name, labels=["x", "y", "z"], max_length=max_length, seed=seed)
    config = LoRAConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
    inject(model, config)
    rng = np.random.default_rng(seed)
    for path, array in model.trainable_params().items():
        array[...] = (0.3 if "classifier" in path else 0.1) * rng.standard_normal(array.shape)
    save_adapter(folder, model, name, "SEQ_CLS", ["x", "y", "z"], max_length)
    return folder


@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
def test_peft_answers_the_same_with_our_folder(torch, transformers, peft, base, tmp_path, merged):
    _, folder, texts, max_length = base
    adapter = trained_by_us(tmp_path, base)
    theirs = peft.PeftModel.from_pretrained(their_base(transformers, folder), str(adapter)).eval()
    theirs = theirs.merge_and_unload() if merged else theirs
    model = load_model(adapter)
    want = their_probabilities(torch, transformers, theirs, folder, texts, max_length)
    for batch_size in (1, 8):
        got = ours(model, texts, batch_size=batch_size)
        assert np.ptp(got[:, 0]) > 1e-3  # the texts differ
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_we_answer_the_same_with_peft_s_folder(torch, transformers, peft, base, tmp_path):
    """No lorabook.json: the base model, and the number of labels, follow from what PEFT writes."""
    _, folder, texts, max_length = base
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, r=4, target_modules=["query", "value"])
    theirs = peft.get_peft_model(their_base(transformers, folder), config).eval()
    theirs.save_pretrained(str(tmp_path))
    want = their_probabilities(torch, transformers, theirs, folder, texts, max_length)
    model = load_model(tmp_path, max_length=max_length)
    assert model.about.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    np.testing.assert_allclose(ours(model, texts), want, atol=1e-5)


def test_the_command_line(torch, transformers, peft, base, tmp_path, capsys):
    _, folder, texts, max_length = base
    adapter = trained_by_us(tmp_path, base)
    theirs = peft.PeftModel.from_pretrained(their_base(transformers, folder), str(adapter)).eval()
    want = their_probabilities(torch, transformers, theirs, folder, texts, max_length)
    assert cli.main(["predict", str(adapter), "--text", *texts]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["text"] for row in rows] == texts
    np.testing.assert_allclose([[float(row[f"p({name})"]) for name in "xyz"] for row in rows], want, atol=2e-5)
    assert [row["label"] for row in rows] == ["xyz"[i] for i in want.argmax(axis=1)]
