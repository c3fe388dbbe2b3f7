"""The text of a chapter: it opens with a drawing, its mathematics is typeset, each exercise is solved."""

import re

import pytest

from lorabook.book import chapters

SOURCES = chapters.sources(("01", "02", "03", "04", "05", "06", "08", "09", "14", "15", "16"))  # written by these rules
CHAPTERS = [source for source in SOURCES if source.parent.name == "src"]


def name(source):
    return source.stem if source.parent.name == "src" else f"{source.stem}-solutions"


def cells(source, kind):
    return [cell.source for cell in chapters.read_source(source).cells if cell.cell_type == kind]


def faults(markdown):
    """Lines of mathematics that a Markdown reader takes for something else."""
    found = []
    for block in re.findall(r"\$\$(.*?)\$\$", markdown, re.DOTALL):
        found += [line for line in block.split("\n") if re.match(r"\s*([-+*>#]|\d+\.)\s", line)]
        found += ["an empty line inside $$"] * ("\n\n" in block)
    rest = re.sub(r"\$\$.*?\$\$|```.*?```|`[^`]*`", "", markdown, flags=re.DOTALL)
    return found + [line for line in rest.split("\n") if line.count("$") % 2]


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_mathematics_is_typeset_and_no_reader_takes_it_for_markdown(source):
    text = "\n\n".join(cells(source, "markdown"))
    assert "$$" in text
    assert not faults(text)


@pytest.mark.parametrize("slip", ["$$ a\n- b $$", "$$ a\n\nb $$", "one $x +\ny$ two"])
def test_slips_of_mathematics_are_found(slip):
    assert faults(slip) and not faults("$$ a\n{} - b $$ and $x$, `$`")


@pytest.mark.parametrize("source", CHAPTERS, ids=name)
def test_a_chapter_opens_with_what_it_is_good_for_and_a_drawing(source):
    opening = cells(source, "markdown")[0]
    assert "At the end of this chapter" in opening
    drawings = re.findall(r"!\[[^\]]{40,}\]\(\.\./(figures/\w+\.svg)\)", opening)
    assert drawings and all((chapters.ROOT.parent / drawing).exists() for drawing in drawings)


@pytest.mark.parametrize("source", CHAPTERS, ids=name)
def test_each_exercise_is_solved_with_the_same_check(source):
    call = rf"ch{source.stem[:2]}\.(\w+)\(answer\)"
    asked = re.findall(call, "\n".join(cells(source, "code")))
    assert asked == re.findall(call, "\n".join(cells(source.parent / "solutions" / source.name, "code")))
    assert len(asked) == len(set(asked)) >= 4
