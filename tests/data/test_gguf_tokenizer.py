import numpy as np
import pytest
from fuzz_gguf import HONEST, TOKENS

from lorabook import FormatError
from lorabook.data import chat_template, gguf_tokenizer

KEY = "tokenizer.ggml."


def metadata(without=(), **changes):
    """As `read_gguf` gives it."""
    found = HONEST | {KEY + "token_type": np.array([3, 3, 1, 1, 1, 1, 1], "i4")}
    return {k: v for k, v in (found | {KEY + k: v for k, v in changes.items()}).items() if k not in without}


def ids(text, **changes):
    return gguf_tokenizer("a.gguf", metadata(**changes)).encode(text).ids


def test_merges_special_tokens_and_digits():
    assert ids("ab") == [4] and ids("ba") == [3, 2]
    assert ids("<s>ab</s>") == [0, 4, 1]  # found before the text is cut
    assert ids("ab", add_bos_token=True, bos_token_id=1) == [1, 4]
    tokens = [*TOKENS, "11"]
    changes = {"tokens": tokens, "token_type": np.array([3, 3, *[1] * 6]), "merges": ["a b", "1 1"]}
    assert ids("11", **changes) == [6, 6] and ids("11", pre="gpt-2", **changes) == [7]
    tokens = [*TOKENS, "\u0120"]  # a blank
    assert ids("ab a", tokens=tokens, token_type=np.array([3, 3, *[1] * 6])) == [4, 7, 2]


def test_user_defined_tokens_stay_in_a_decoded_text():
    kinds = np.array([3, 4, *[1] * 5])
    tokenizer = gguf_tokenizer("a.gguf", metadata(token_type=kinds))
    assert tokenizer.decode(tokenizer.encode("<s>ab</s>").ids) == "ab</s>"


def test_chat_template():
    assert chat_template({"tokenizer.chat_template": "{{ x }}"}) == "{{ x }}"
    assert chat_template({}) is chat_template({"tokenizer.chat_template": 3}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama', pre 'smollm'; only 'gpt2' (byte-level BPE)"),
        ({"pre": "qwen2"}, "pre 'qwen2'; only 'gpt2' (byte-level BPE) with 'gpt-2' or 'smollm' is read here"),
        ({"without": [KEY + "pre"]}, "pre None"),
        ({"tokens": "a"}, "tokenizer.ggml.tokens must be a list of texts; got 'a'"),
        ({"without": [KEY + "merges"]}, "tokenizer.ggml.merges must be a list of texts; got None"),
        ({"tokens": [*TOKENS[:-1], "a"]}, "holds a token twice, or an empty one"),
        ({"token_type": np.array([1])}, "must have a number for each of 7 tokens"),
        ({"merges": ["a b", "a x"]}, "the merge 'a x' is not of two tokens into one"),
        ({"merges": ["b a"]}, "the merge 'b a' is not of two tokens into one"),
        ({"merges": ["a b c"]}, "the merge 'a b c'"),
        ({"eos_token_id": 7}, "tokenizer.ggml.eos_token_id is 7; expected 0 to 6"),
        (
            {"add_bos_token": True, "without": [KEY + "bos_token_id"]},
            "add_bos_token is true, but there is no bos_token_id",
        ),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(FormatError) as caught:
        gguf_tokenizer("a.gguf", metadata(**changes))
    assert message in str(caught.value) and "a.gguf" in str(caught.value)
