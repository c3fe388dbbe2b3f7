"""`lorabook generate`: what a language model answers to prompts, as it comes."""

import sys
import time

from ..backend import get_xp
from ..errors import InputError
from ..files import cut
from .arguments import CAUSAL_LM, add_base_dtype, integer, number

HELP = "let a language model answer a prompt, or several at once; the text comes as it is found"
EXAMPLE = 'lorabook generate smollm2 --adapter runs/mine --prompt "Write a review of a film about bees."'
SHARED = ("seed", "backend")


def add_arguments(parser):
    """Options of the command."""
    model = f"an adapter folder; or {CAUSAL_LM}"
    parser.add_argument("model", metavar="MODEL", help=model)
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter folder, if MODEL is the model under it")
    prompt = "what the user says; several are answered together. Default, and -: all of standard input is one prompt"
    parser.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help=prompt)
    parser.add_argument("--system", metavar="TEXT", help="a system prompt, instead of that of the model's template")
    add_base_dtype(parser)
    how = parser.add_mutually_exclusive_group()
    raw = "continue the prompt as it stands, without the model's chat template"
    how.add_argument("--raw", dest="chat", action="store_false", default=None, help=raw)
    chat = (
        "the prompt is what a user says (default: of a model with a chat template; of an adapter, if it learned chats)"
    )
    how.add_argument("--chat", action="store_true", default=None, help=chat)
    new = "tokens of an answer, at most (default: %(default)s)"
    parser.add_argument("--max-new-tokens", type=integer(1), default=256, metavar="N", help=new)
    heat = "0: the most probable token each time; else logits are divided by it and a token is drawn (default: 0)"
    parser.add_argument("--temperature", type=number(), default=0.0, metavar="X", help=heat)
    parser.add_argument("--top-k", type=integer(0), default=0, metavar="K", help="draw from the K most probable alone")
    top_p = "draw from the fewest tokens that are as probable as this together"
    parser.add_argument("--top-p", type=number(), default=1.0, metavar="P", help=top_p)
    min_p = "draw from tokens alone that have this share of the most probable one's probability"
    parser.add_argument("--min-p", type=number(), default=0.0, metavar="P", help=min_p)
    again = "above 1: tokens that stand there already become less probable (default: 1)"
    parser.add_argument("--repetition-penalty", type=number(), default=1.0, metavar="X", help=again)
    stop = "end an answer where this text comes, which is left out"
    parser.add_argument("--stop", nargs="+", action="extend", default=[], metavar="TEXT", help=stop)


def run(args):
    """Answer: one prompt piece by piece; several, and with --json, when all is found. Speed stands on stderr."""
    from ..adapters import merge, unload
    from ..models import Sampling
    from ..tasks import find, stream

    xp, texts = get_xp(args.backend), _texts(args)
    prompts = _chats(texts, args)
    sampling = Sampling(args.min_p, args.top_p, args.top_k, args.temperature, args.repetition_penalty)
    model = find(args.model, args.adapter, answers="texts").load(base_dtype=args.base_dtype)
    merge(model)
    unload(model)  # the weights without the update are needed no more
    started = time.perf_counter()
    pieces = stream(model.to(xp), prompts, args.max_new_tokens, sampling, args.stop, args.seed, args.chat)
    told = {}
    if args.json or len(prompts) > 1:
        answers, ends, tokens = [""] * len(prompts), [None] * len(prompts), [0] * len(prompts)
        for piece in _timed(pieces, started, told):
            answers[piece.row] += piece.text
            ends[piece.row] = piece.end
            tokens[piece.row] += 1
        _say(told)
        if not args.json:
            return None, "\n\n".join(f"> {cut(text, 78)}\n{own}" for text, own in zip(texts, answers, strict=True))
        rows = zip(texts, answers, ends, tokens, strict=True)
        names = ("prompt", "answer", "end", "tokens")
        return {"answers": [dict(zip(names, row, strict=True)) for row in rows]} | told, ""
    return None, _streamed(_timed(pieces, started, told), told)


def _texts(args):
    """The prompts."""
    from ..data import check_text

    prompts = args.prompt
    if prompts in (None, ["-"]):
        if sys.stdin is None:
            raise InputError("standard input is closed; expected --prompt TEXT")
        if sys.stdin.isatty():
            print("reading the prompt from the terminal, up to Ctrl-D (on Windows Ctrl-Z, Enter)", file=sys.stderr)
        prompts = [sys.stdin.read().removesuffix("\n")]
    for i, prompt in enumerate(prompts, start=1):
        check_text(prompt, f"prompt number {i}")
    return prompts


def _chats(prompts, args):
    """The same, as chats where a system prompt is given."""
    if args.system is None:
        return prompts
    if args.chat is False:
        raise InputError("expected --system or --raw, not both: a system prompt is part of a chat")
    return [[{"role": "system", "content": args.system}, {"role": "user", "content": text}] for text in prompts]


def _timed(pieces, started, told):
    """The same pieces; at the end the speed goes into `told`."""
    n, first = 0, None
    for piece in pieces:
        n += 1
        first = first or time.perf_counter() - started
        yield piece
    rest = time.perf_counter() - started - first
    speed = (n - 1) / rest if n > 1 and rest else None
    told |= {"tokens": n, "first_token_seconds": round(first, 4), "tokens_per_second": speed and round(speed, 2)}


def _say(told):
    n, speed = told["tokens"], told["tokens_per_second"]
    rate = f", then {speed:.1f} tokens a second" if speed else ""
    print(f"{n} token{'s' * (n > 1)}: the first after {told['first_token_seconds']:.2f} s{rate}", file=sys.stderr)


def _streamed(pieces, told):
    for piece in pieces:
        if piece.text:
            yield piece.text
    yield "\n"
    _say(told)
