"""No malformed file makes a command do anything but work, or say no in one line and soon; what was there stays."""

import contextlib
import os
import sys
from pathlib import Path

import fuzz
import fuzz_commands
import pytest

from lorabook import InputError

A_FEW, MANY = 24, 5000


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return fuzz_commands.make_world(tmp_path_factory.mktemp("commands"))


@pytest.mark.parametrize("name", fuzz_commands.PLACES)
def test_a_few_malformed_files(name, world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    codes = [fuzz_commands.answer(name, seed, capsys.readouterr) for seed in range(A_FEW)]
    assert any(codes)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", fuzz_commands.PLACES)
def test_many_malformed_files(name, world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    first = int(os.environ.get("LORABOOK_FUZZ_SEED", A_FEW))
    for seed in range(first, first + MANY // len(fuzz_commands.PLACES)):
        try:
            fuzz_commands.answer(name, seed, capsys.readouterr)
        except BaseException as error:
            error.add_note(f"file {seed} of {name}: fuzz_commands.answer({name!r}, {seed}, said)")
            raise


def refuses(args):
    raise InputError("mine.csv is none")


def prints(args):
    print("a note of no kind", file=sys.stderr)
    refuses(args)


def half_writes(args):
    Path("out/spectrum.csv").write_text("half")
    refuses(args)


def leaves(args):
    Path("out/.lorabook-0123456789abcdef.tmp").write_text("")
    return {}, "done"


def fails(args):
    raise RuntimeError("something broke")


def overwrites(args):
    Path("W.npy").write_text("")
    return {}, "done"


def hangs(args):
    while True:
        pass


def waits(args):
    """Of no processor time, and it takes every exception for its own."""
    reading, _ = os.pipe()
    while True:
        with contextlib.suppress(Exception):
            os.read(reading, 1)


@pytest.mark.parametrize(
    ("does", "caught"),
    [
        (prints, "a note of no kind"),
        (half_writes, "changed .*spectrum.csv"),
        (leaves, "left .*.tmp"),
        (fails, "exit code 1: lorabook spectrum: something broke"),
        (overwrites, "changed .*W.npy"),
        (hangs, "took .* s"),
        (waits, "spectrum mine.csv --out out has not ended after 0.5 s by the clock"),
        (lambda args: 1 / 0, "division by zero"),
        (lambda args: ({}, "done"), "took what its reader refuses: mine.csv is none"),
    ],
)
def test_a_command_that_is_wrong_is_caught(does, caught, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("W.npy").write_text("as it was")
    place = fuzz_commands.Place(lambda rng: b"", "mine.csv", ("spectrum {} --out out",), refuses)
    monkeypatch.setitem(fuzz_commands.PLACES, "mine", place)
    monkeypatch.setattr("lorabook.commands.spectrum.run", refuses)
    assert fuzz_commands.answer("mine", 0, capsys.readouterr) == 2
    monkeypatch.setattr("lorabook.commands.spectrum.run", does)
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    if does is waits:
        monkeypatch.setattr(fuzz_commands, "WALL", 0.5)
    with pytest.raises((AssertionError, ZeroDivisionError, fuzz_commands.Waited), match=caught):
        fuzz_commands.answer("mine", 0, capsys.readouterr)
