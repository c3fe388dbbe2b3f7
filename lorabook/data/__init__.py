"""Data: rows in, batches out, seeded and drawn on the host.

`tabular`, `images`, `planted` and `text` make tasks, `batches` deals them out; `tokenizer` and `gguf_tokenizer` cut
texts, `windows` reads them as they come, `labels` says which labels are the same, `metrics` how good answers are. For
language models: `corpora` makes rows of `completions` and of chats, which `chat` makes texts of; `sequences` and
`packing` number them.
"""

from .batches import Batches
from .chat import ChatTemplate, check_chat, no_template
from .completions import Chat, Completion, Plain, language_file
from .corpora import DOMAINS, LANGUAGES, Corpus, corpus_file, messages, shakespeare, snippets
from .gguf_tokenizer import chat_template, gguf_tokenizer, gguf_tokenizer_files
from .images import SHIFTS, digits
from .labels import placeholders
from .metrics import report
from .packing import Packed, pack
from .pairs import PAIR, columns_of
from .planted import planted
from .sequences import IGNORED, Sequences
from .splits import held_out
from .tabular import NumberTask, csv_task
from .text import Texts, TextTask, check_text, movie_reviews, text_file
from .tokenizer import encode, load_tokenizer
from .translations import chrf
from .windows import file_windows, input_windows

__all__ = [
    "DOMAINS",
    "IGNORED",
    "LANGUAGES",
    "PAIR",
    "SHIFTS",
    "Batches",
    "Chat",
    "ChatTemplate",
    "Completion",
    "Corpus",
    "NumberTask",
    "Packed",
    "Plain",
    "Sequences",
    "TextTask",
    "Texts",
    "chat_template",
    "check_chat",
    "check_text",
    "chrf",
    "columns_of",
    "corpus_file",
    "csv_task",
    "digits",
    "encode",
    "file_windows",
    "gguf_tokenizer",
    "gguf_tokenizer_files",
    "held_out",
    "input_windows",
    "language_file",
    "load_tokenizer",
    "messages",
    "movie_reviews",
    "no_template",
    "pack",
    "placeholders",
    "planted",
    "report",
    "shakespeare",
    "snippets",
    "text_file",
]
