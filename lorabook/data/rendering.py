"""A chat template at work, in a process of its own: one JSON object comes in, one for each chat goes out, a line each.

A template comes with a model, from strangers, and is a program: it may go round for ever, or double a text until the
memory is full. jinja2's sandbox keeps it from files and from Python; time and memory are bounded by whoever starts this
process (`chat.ChatTemplate`), and here by the operating system. So this file imports nothing of lorabook.
"""

import contextlib
import datetime
import json
import sys

LONGEST = 1 << 22  # characters of a rendered chat
TOTAL = 1 << 28  # of all chats together
MEMORY = 1 << 30  # bytes of the process, where the system has such a limit
FEW = 200  # characters of a message of the template's, or of an error


def limit(memory=MEMORY):
    """Let the operating system refuse more memory than this."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows; a lower limit holds already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def compiled(source):
    """The template, in a sandbox with what transformers gives to chat templates. Raises jinja2's errors."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what the assistant says; here its turns are found otherwise."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    class Names(jinja2.utils.Namespace):
        """Without the names by which Python's own objects would be reached."""

        def __init__(*args, **kwargs):
            self, *args = args
            for name in (attributes := dict(*args, **kwargs)):
                check(name)
            jinja2.utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name, value):
            check(name)
            super().__setitem__(name, value)

    def check(name):
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name}")

    environment.filters["tojson"] = tojson
    environment.globals["namespace"] = Names
    environment.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def rendered(template, messages, names, prompt=False):
    """The text of messages. prompt: with the beginning of the assistant's next turn. names: special tokens."""
    facts = {"tools": None, "documents": None, **names, "messages": messages, "add_generation_prompt": prompt}
    pieces, length = [], 0
    for piece in template.generate(facts):
        pieces.append(piece)
        length += len(piece)
        if length > LONGEST:
            raise ValueError(f"it writes more than {LONGEST:,} characters")
    return "".join(pieces)


def turns(template, messages, names):
    """{text, spans, unstable}: the whole chat, and of which characters [start, end) the assistant's turns are made.

    A turn begins where the prompt for it ends, and ends with the chat up to it: each must be the beginning of the
    next, and of the whole. unstable: how many turns are rendered otherwise once more follows, and have no span.
    """
    whole = rendered(template, messages, names)
    spans, unstable, refusal = [], 0, None
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            before = rendered(template, messages[:i], names, prompt=True)
            after = whole if i == len(messages) - 1 else rendered(template, messages[: i + 1], names)
        except Exception as error:  # the template takes the whole, and not its beginning
            refusal, before, after = refusal or reason(error), None, ""
        if before is None or not (after.startswith(before) and whole.startswith(after)):
            unstable += 1
        elif (end := learned_end(before, after, message["content"])) > len(before):
            spans.append([len(before), end])
    return {"text": whole, "spans": spans, "unstable": unstable, "refusal": refusal}


def learned_end(before, after, content):
    """Where a turn ends: with its end mark. Blanks behind that are the template's, and nobody waits for them."""
    kept = after.rstrip()
    return len(kept) if not kept.endswith(content.rstrip()) and len(kept) > len(before) else len(after)


def reason(error):
    """An error in a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= FEW else text[: FEW - 1] + "…"


def answers(job):
    """Yield the answer to each chat: {text, ...}, or {error}; {failure}, of the template itself, is the only one."""
    try:
        template = compiled(job["template"])
    except (Exception, RecursionError, MemoryError) as error:
        yield {"failure": reason(error)}
        return
    written = 0
    for messages in job["chats"]:
        try:
            if job["turns"]:
                answer = turns(template, messages, job["names"])
            else:
                answer = {"text": rendered(template, messages, job["names"], job["prompt"])}
            written += len(answer["text"])
            if written > TOTAL:
                answer = {"error": f"it writes more than {TOTAL:,} characters for all chats together"}
        except MemoryError:
            answer = {"error": f"it takes more than {MEMORY >> 20:,} MiB of memory"}
        except (Exception, RecursionError) as error:
            answer = {"error": reason(error)}
        yield answer
        if written > TOTAL:
            return


if __name__ == "__main__":
    sys.path[:] = sys.argv[1:]
    limit()
    for answer in answers(json.loads(sys.stdin.buffer.read())):
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
