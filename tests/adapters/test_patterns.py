"""Regular expressions of configs: what `re` finds, in bounded time, and one line for what takes too long."""

import re
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabook import InputError, LoRAConfig
from lorabook.adapters import SUFFIX, matches, patterns

LONG = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.a.a.a.a.a.a.a.a.a!"
PATHS = ["bert.encoder.layer.0.attention.self.query", "bert.pooler.dense", "fc1", "a.b.c", LONG]
EXPLOSIVE = [
    r"(a+)+$",
    r"(a|a)*$",
    r"(a|aa)+$",
    r"(a*)*b",
    r"(?:a?){40}a{40}$",
    r"([a.]+)*\d",
    r"(.*a){25}b",
    r"(?=(a+)+b)",
    r"(?<!x)(a+a+)+b",
    r"(?P<n>a+)*(?P=n){30}b",
    r"^(([a-z])+.)+[A-Z]([a-z])+$",
]


@pytest.fixture
def short_time(monkeypatch):
    patterns._matches.cache_clear()
    monkeypatch.setattr(patterns, "SECONDS", 1.0)


@pytest.mark.parametrize("pattern", ["FC1", "(?:FC|x)1", "F(C1|x)+"])
def test_capitals_count(short_time, pattern):
    assert matches([("target_modules", pattern, pattern, "fullmatch")], ["fc1", "FC1"]) == [{"fc1": False, "FC1": True}]


@pytest.mark.parametrize("pattern", EXPLOSIVE)
def test_an_explosive_expression_ends_in_one_line(short_time, pattern):
    start = time.perf_counter()
    with pytest.raises(InputError) as error:
        matches([("target_modules", pattern, pattern, "fullmatch")], ["fc1", LONG])
    assert f"target_modules {pattern!r} is not matched within 1 seconds" in str(error.value)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - start < 5


def test_the_one_that_takes_too_long_is_named(short_time):
    given = [("rank_pattern key", p, SUFFIX.format(p), "match") for p in ("query", "(?:query)", "(a+)+b", "(?:fc.)")]
    with pytest.raises(InputError, match=r"rank_pattern key '\(a\+\)\+b' is not matched"):
        matches(given, PATHS)


def test_an_expression_that_takes_too_long_to_compile(short_time):
    huge = "(?i)" + "[\0-\U0010ffff]" * 300
    with pytest.raises(InputError, match="is not matched within"):
        LoRAConfig(target_modules=huge)


@pytest.mark.parametrize("option", ["target_modules", "exclude_modules", "layers_pattern"])
def test_every_option_is_bounded(short_time, option):
    options = {"target_modules": ["b"], "layers_to_transform": 0} if option == "layers_pattern" else {}
    config = LoRAConfig(**options | {option: "(a+)+"})
    with pytest.raises(InputError, match=rf"{option} '\(a\+\)\+' is not matched within"):
        config.select([LONG + ".0.b"])


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_every_pattern_is_bounded(short_time, option):
    config = LoRAConfig(**{option: {"fc1": 1, "(a+)+": 2}})
    assert config.for_layer("fc1")
    with pytest.raises(InputError, match=rf"{option} key '\(a\+\)\+' is not matched within"):
        config.for_layers(["fc1", LONG])


def test_many_plain_patterns_are_bounded(monkeypatch):
    patterns._matches.cache_clear()
    monkeypatch.setattr(patterns, "SECONDS", 0.0)
    with pytest.raises(InputError, match="rank_pattern key 'fc1' is not matched within"):
        LoRAConfig(rank_pattern={"fc1": 1})


ORDINARY = [
    *("query", "output.dense", r".*\.layer\.\d\..*", ".*(query|key)", "^bert.*dense$", r"[abf]\.?\w*", "fc[1-3]"),
    *(
        r"(?!fc).*",
        r".*(?<=self\.)query",
        r"(?i)FC1",
        r"(?:\w+\.)+dense",
        r"(?:\w+\.)+DENSE",
        r"(.)\1*",
        r"(?P<index>\w)\.b\.c",
        ".*?c",
        "",
    ),
    *("(fc1|bert)(.pooler.dense)?", "a.b.c|fc1", r"\Afc\d\Z", "fc1{1}", "[^.]+", "(?>fc)1", "fc++1", "fc1$|x"),
]


@pytest.mark.parametrize("method", ["match", "fullmatch"])
def test_ordinary_expressions_find_what_re_finds(method):
    found = matches([("target_modules", p, p, method) for p in ORDINARY], PATHS)
    assert [{p: bool(f[p]) for p in PATHS} for f in found] == [
        {path: bool(getattr(re, method)(p, path)) for path in PATHS} for p in ORDINARY
    ]


def test_a_group_called_index_is_told():
    for pattern in (r"b\w*.e\w*.l\w*.(?P<index>\d).", r"(?:bert|x).e\w*.layer.(?P<index>\d)."):
        (found,) = matches([("layers_pattern", pattern, pattern, "match")], PATHS[:2])
        assert list(found.values()) == ["0", False]


def test_plain_expressions_start_no_process(monkeypatch):
    """What nearly every config has is matched here, in microseconds; the rest by the same `re` elsewhere."""
    patterns._matches.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    for pattern in ORDINARY[:7]:
        matches([("target_modules", pattern, pattern, "fullmatch")], PATHS)
    for pattern in EXPLOSIVE:
        with pytest.raises(pytest.fail.Exception):
            matches([("target_modules", pattern, pattern, "fullmatch")], PATHS)


@pytest.mark.parametrize(
    ("pattern", "plain"),
    [
        (r".*.*.*x", True),
        (r".*.*.*x*", False),
        ("a" * 200, True),
        ("a" * 201, False),
        (r"(?:a|b).*", True),
        (r"(?=a|b).*", False),
        (r"(?!a).*", False),
        (r"(a|b)*", False),
    ],
)
def test_what_is_plain(pattern, plain):
    assert patterns._is_plain(pattern) is plain


def test_without_processes_other_expressions_are_refused(monkeypatch):
    """In a browser, for one."""

    def cannot(*_, **__):
        raise OSError(52, "emscripten does not support processes")

    monkeypatch.setattr(subprocess, "run", cannot)
    with pytest.raises(InputError, match=r"'\(\?:fc1\)\+x' is matched in a process .*emscripten does not support"):
        LoRAConfig(target_modules="(?:fc1)+x")


@pytest.mark.parametrize("pattern", ["(", "*", "[", "a{99999999999}", "(?P<a", r"\p", "(?<=a*)b", "(" * 5000])
def test_what_is_no_expression(pattern):
    with pytest.raises(InputError) as error:
        LoRAConfig(exclude_modules=pattern)
    assert "is not a regular expression: " in str(error.value) and "\n" not in str(error.value)


def test_an_expression_that_will_mean_something_else_is_quiet(recwarn):
    """Python warns of a possible nested set; PEFT takes it as it is, and so do we."""
    LoRAConfig(target_modules="[[a]fc1")
    assert not recwarn.list


@settings(max_examples=200, deadline=None)
@given(st.text("ab.*+?()[]|\\dw-^${}1,:", max_size=12), st.text("ab.1", max_size=6))
def test_what_counts_as_plain_is_quick(pattern, path):
    """Whatever the plain class lets in is an expression of bounded work, or is refused as none."""
    if patterns._is_plain(pattern):
        try:
            (found,) = matches([("target_modules", pattern, pattern, "fullmatch")], [path])
        except InputError:
            with pytest.raises(re.error):
                re.compile(pattern)
        else:
            assert found[path] is (re.fullmatch(pattern, path) is not None)


@pytest.mark.parametrize(
    "pattern", [r".*.*.*(a|b|aa|ab|b)", r".*\w*.*", r"[a-z]+[ab]*.*", r"\w*\d*\w*(?:b|ab|aab)", r".+.+.+(x|y|z)"]
)
def test_the_worst_plain_expressions_are_quick(pattern):
    path = ("a" * 30 + ".") * 6
    assert patterns._is_plain(pattern)
    start = time.process_time()
    matches([("rank_pattern key", pattern, SUFFIX.format(pattern), "match")], [path])
    assert time.process_time() - start < 2
