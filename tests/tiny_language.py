"""A tokenizer of bytes and a chat template for the tests of language data, and a stand-in for a language model."""

import math

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from lorabook.layers import Layer
from lorabook.models.classifier import Model

START, END = "<|im_start|>", "<|im_end|>"
SMOLLM2 = (  # of SmolLM2-135M-Instruct: ChatML with a system prompt of its own
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHORT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>\n{% endfor %}"
SHORT += "{% if add_generation_prompt %}<assistant>{% endif %}"


def byte_tokenizer():
    """Each byte is a token, and so are START and END."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def words(tokenizer, ids):
    """The text of the ids that are not below 0."""
    return tokenizer.decode([i for i in ids if i >= 0], skip_special_tokens=False)


def turns(*contents, system=None):
    """A chat of user and assistant in turn."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


class Bigrams(Model, Layer):
    """The next token from the one before: a table of logits, with the protocol of a language model."""

    task_type, metrics, default_targets = "CAUSAL_LM", ("loss", "perplexity"), ("weight",)

    def __init__(self, vocabulary, seed=0):
        super().__init__({"weight": 0.5 * np.random.default_rng(seed).standard_normal((vocabulary, vocabulary))})

    def inputs(self, batch):
        return batch

    def check_input(self, x):
        pass

    def tokens(self, batch):
        return math.prod(batch["input_ids"].shape)

    def _pairs(self, batch):
        before, after = batch["input_ids"][:, :-1], batch["labels"][:, 1:]
        return before[after >= 0], after[after >= 0]

    def count(self, batch):
        return len(self._pairs(batch)[0])

    def _loss(self, batch):
        before, after = self._pairs(batch)
        logits = self.params["weight"][before]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return -np.log(p[np.arange(len(after)), after]).mean(), p, before, after

    def loss_and_grad(self, batch, run=None, share=1.0):
        loss, p, before, after = self._loss(batch)
        p[np.arange(len(after)), after] -= 1
        grad = np.zeros_like(self.params["weight"])
        np.add.at(grad, before, p * share / len(after))
        return loss, {"weight": grad}

    def evaluate(self, batch, run=None):
        loss = float(self._loss(batch)[0])
        return loss, math.exp(loss)
