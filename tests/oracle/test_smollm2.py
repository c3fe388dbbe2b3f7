"""The real SmolLM2-135M against transformers and PEFT, live, with the same dequantised weights, in float32."""

import numpy as np
import pytest

from lorabook import LoRAConfig, inject, load_model
from lorabook.models import continuations

pytestmark = [
    pytest.mark.xdist_group("smollm2"),  # one process holds the two models
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "List five fruits.",
    "Explain why the sky is blue.",
    "Who wrote Hamlet, and when?",
    "def fibonacci(n):",
    "Translate to French: good morning.",
    "How do I boil an egg?",
    "Give me three ideas for a birthday present.",
    "What is 12 times 7?",
)


@pytest.fixture(scope="module")
def model():
    return load_model("smollm2")


@pytest.fixture(scope="module")
def net(torch, transformers, model):
    options = {name: value for name, value in model.config.items() if name not in ("rope_theta", "rope_scaling")}
    rope = {"rope_type": "default", "rope_theta": model.config["rope_theta"]}
    config = transformers.AutoConfig.for_model(**options, rope_parameters=rope)
    net = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    report = net.load_state_dict({k: torch.tensor(v) for k, v in model.named_params().items()}, strict=False)
    assert not report.unexpected_keys and not [name for name in report.missing_keys if name != "lm_head.weight"]
    net.tie_weights()
    return net


@pytest.fixture(scope="module")
def prompts(model):
    texts = (f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in PROMPTS)
    return [model.about.tokenizer.encode(text).ids for text in texts]


def test_logits(torch, model, net, prompts):
    for ids in prompts:
        with torch.no_grad():
            want = net(torch.tensor([ids])).logits.numpy()
        got, _ = model({"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), "i8")})
        assert np.abs(got - want).max() < 1e-3 and np.abs(want).max() > 10


def test_fifty_tokens_after_each_of_ten_prompts(torch, model, net, prompts):
    """Greedily, all ten prompts in one batch here, one after another there."""
    ours = [[] for _ in prompts]
    for found in continuations(model, prompts, 50):
        for row, token in found.items():
            ours[row].append(token)
    for ids, came in zip(prompts, ours, strict=True):
        with torch.no_grad():
            options = {"max_new_tokens": 50, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            mask = torch.ones((1, len(ids)), dtype=torch.long)
            out = net.generate(torch.tensor([ids]), attention_mask=mask, **options)[0, len(ids) :]
        assert out.tolist() == came
        assert len(came) == 50


def test_gradients_of_lora(torch, peft, model, net, prompts):
    """Of each factor on all seven linears of the thirty blocks: within 1e-3 of PEFT's."""
    inject(model, LoRAConfig(r=8, lora_alpha=16, target_modules=SEVEN, init_lora_weights=False), 0)
    options = {"r": 8, "lora_alpha": 16, "target_modules": SEVEN, "task_type": "CAUSAL_LM"}
    adapted, theirs = peft.get_peft_model(net, peft.LoraConfig(**options)), {}
    for name, tensor in adapted.named_parameters():
        if tensor.requires_grad:
            theirs[name.removeprefix("base_model.model.").replace(".default.weight", "")] = tensor
    with torch.no_grad():
        for name, array in model.trainable_params().items():
            theirs[name].copy_(torch.tensor(array))
    longest = max(prompts, key=len)
    labels = np.array([longest])
    batch = {"input_ids": labels, "attention_mask": np.ones_like(labels), "labels": labels}
    out = adapted(**{name: torch.tensor(array) for name, array in batch.items()})
    out.loss.backward()
    loss, grads = model.loss_and_grad(batch)
    assert abs(loss - out.loss.item()) < 1e-4 and len(grads) == 2 * 7 * 30 == len(theirs)
    for name, grad in grads.items():
        want = theirs[name].grad.numpy()
        assert np.abs(grad - want).max() < 1e-3 * np.abs(want).max(), name
