"""A text is a str, or a pair of them that a model reads together: entailment, paraphrase, relevance."""

PAIR = "text_pair"  # the column of the second, beside `text`


def text_of(row):
    """The text of a row {column: cell}, or with a `text_pair` the pair."""
    return row["text"] if row.get(PAIR) is None else (row["text"], row[PAIR])


def columns_of(text):
    """{column: cell} of a text as `text_of` gives it."""
    return {"text": text} if isinstance(text, str) else dict(zip(("text", PAIR), text, strict=True))
