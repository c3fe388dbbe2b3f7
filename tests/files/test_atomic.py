import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from lorabook import FormatError, InputError, LoRAConfig, files, inject
from lorabook.adapters import peft_folder
from lorabook.files import atomic
from lorabook.models import MLP

ARRAYS = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.array([1.5]), "n": np.array([7], "i8")}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    files.write_checkpoint(path, ARRAYS, {"step": 3, "run": {"lr": 0.1}})
    return path


def test_checkpoint_round_trip(checkpoint):
    arrays, state = files.read_checkpoint(checkpoint)
    assert state == {"step": 3, "run": {"lr": 0.1}}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_a_checkpoint_is_a_safetensors_file_that_others_read(checkpoint):
    np.testing.assert_array_equal(safetensors.numpy.load_file(checkpoint)["a"], ARRAYS["a"])


def test_every_flipped_bit_is_detected(checkpoint):
    data = checkpoint.read_bytes()
    for i in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[i] ^= 1 << bit
            checkpoint.write_bytes(damaged)
            with pytest.raises(FormatError, match=r"checkpoint\.safetensors"):
                files.read_checkpoint(checkpoint)


def test_every_truncation_is_detected(checkpoint):
    data = checkpoint.read_bytes()
    for length in range(len(data)):
        checkpoint.write_bytes(data[:length])
        with pytest.raises(FormatError):
            files.read_checkpoint(checkpoint)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError):
        files.read_checkpoint(path)


def test_a_plain_safetensors_file_is_no_checkpoint(tmp_path):
    files.write_safetensors(tmp_path / "x.safetensors", ARRAYS)
    with pytest.raises(FormatError, match="no lorabook checkpoint"):
        files.read_checkpoint(tmp_path / "x.safetensors")


# ---- atomic writing --------------------------------------------------------------------------------------------------


def test_order_is_write_sync_rename_sync_folder(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def recorded(*args, name=name, real=real):
            folder = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            calls.append(f"{name} folder" if folder else name)
            return real(*args)

        monkeypatch.setattr(os, name, recorded)
    atomic.write_atomic(tmp_path / "x", b"new")
    assert calls == ["fsync", "replace", "fsync folder"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_at_any_point_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    (tmp_path / "x").write_bytes(b"old")

    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fails)
    with pytest.raises(OSError, match="No space left on device: '.*/x'"):
        atomic.write_atomic(tmp_path / "x", b"new")
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_several_files_are_written_together(tmp_path, monkeypatch):
    """The last is away while the others change, and comes last."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("old")
    seen, real = [], os.replace

    def recorded(source, target):
        real(source, target)
        seen.append({n: (tmp_path / n).read_text() for n in ("a", "b", "c") if (tmp_path / n).exists()})

    monkeypatch.setattr(os, "replace", recorded)
    atomic.write_together(tmp_path, {"a": "new", "b": b"new", "c": "new"})
    old, new = dict.fromkeys("ab", "old"), dict.fromkeys("abc", "new")
    assert seen == [old, old | {"a": "new"}, {"a": "new", "b": "new"}, new]
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


KILLED = """
import os, sys
from lorabook.files import write_together

real, calls = os.replace, []

def replace(source, target):
    real(source, target)
    calls.append(target)
    if len(calls) == int(sys.argv[2]):
        os._exit(9)

os.replace = replace
write_together(sys.argv[1], {"tensors": "new", "about": "new", "config": "new"})
"""


def test_killed_between_two_renames_no_reader_takes_a_mixture(tmp_path):
    """One that begins with the config, as PEFT does, and we: it is there with all that belongs to it, or not at all."""
    for at in range(1, 6):
        folder = tmp_path / str(at)
        folder.mkdir()
        for name in ("tensors", "about", "config"):
            (folder / name).write_text("old")
        killed = subprocess.run([sys.executable, "-c", KILLED, folder, str(at)]).returncode == 9
        found = {
            name: (folder / name).read_text() for name in ("tensors", "about", "config") if (folder / name).exists()
        }
        assert killed == (at < 5)
        assert "config" not in found or set(found.values()) == {"new"}, (at, found)
        assert ("config" in found) == (at > 3)
        atomic.sweep_temporaries(folder)
        assert {*os.listdir(folder)} == {*found}


def test_folders_of_a_file_are_created(tmp_path):
    atomic.write_atomic(tmp_path / "a" / "b" / "text", "whole")
    files.write_safetensors(tmp_path / "c" / "d" / "x.safetensors", {"x": np.ones(2)})
    assert (tmp_path / "a" / "b" / "text").read_text() == "whole"
    assert os.listdir(tmp_path / "c" / "d") == ["x.safetensors"]


@pytest.mark.parametrize(("failing", "at"), [("fsync", 1), ("fsync", 2), ("replace", 1), ("replace", 2)])
def test_several_files_or_none(tmp_path, monkeypatch, failing, at):
    """At the first of the replacements, which is the second rename: the first puts the last file away."""
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    calls, real = [], getattr(os, failing)

    def fails(*args):
        calls.append(args)
        if len(calls) == at:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, failing, fails)
    with pytest.raises(OSError, match="No space left on device: '.*/[ab]'"):
        atomic.write_together(tmp_path, {"a": "new", "b": "new"})
    monkeypatch.undo()
    assert {n: (tmp_path / n).read_text() for n in os.listdir(tmp_path)} == {"a": "old", "b": "old"}


@pytest.mark.skipif(os.name != "posix", reason="files have no such modes here")
def test_a_new_file_has_the_mode_that_the_user_gives_files(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    atomic.write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_output_folder_is_created_with_its_parents(tmp_path):
    assert atomic.prepare_folder(tmp_path / "a" / "b" / "c") == tmp_path / "a" / "b" / "c"
    assert os.listdir(tmp_path / "a" / "b") == ["c"] and os.listdir(tmp_path / "a" / "b" / "c") == []


def test_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write to the output folder .*file.*--out"):
        atomic.prepare_folder(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_output_folder_that_refuses_writing_is_refused(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", denied)  # a mode of 0o500 would not stop root
    with pytest.raises(InputError, match="Permission denied"):
        atomic.prepare_folder(tmp_path)


# ---- adapters --------------------------------------------------------------------------------------------------------


def test_adapter_folder_holds_exactly_what_peft_reads(tmp_path, rng):
    model = MLP((7, 6, 5), rng=rng)
    config = LoRAConfig(
        r=2, lora_alpha=4, target_modules=["fc2", "fc1"], rank_pattern={"fc1": 3}, init_lora_weights=False
    )
    inject(model, config, rng)
    peft_folder.save_adapter(tmp_path, model, "mlp")
    assert sorted(os.listdir(tmp_path)) == ["adapter_config.json", "adapter_model.safetensors", "lorabook.json"]
    arrays, metadata = files.read_safetensors(tmp_path / "adapter_model.safetensors")
    assert metadata == {"format": "pt"}
    assert {name: a.shape for name, a in arrays.items()} == {
        "base_model.model.fc1.lora_A.weight": (3, 7),
        "base_model.model.fc1.lora_B.weight": (6, 3),
        "base_model.model.fc2.lora_A.weight": (2, 6),
        "base_model.model.fc2.lora_B.weight": (5, 2),
    }
    np.testing.assert_array_equal(arrays["base_model.model.fc2.lora_B.weight"], model.named_params()["fc2.lora_B"])
    options = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["fc1", "fc2"],
        "rank_pattern": {"fc1": 3},
    }
    assert expected.items() <= options.items()
    first = (tmp_path / "adapter_config.json").read_bytes(), (tmp_path / "adapter_model.safetensors").read_bytes()
    peft_folder.save_adapter(tmp_path, model, "mlp")
    assert first == (
        (tmp_path / "adapter_config.json").read_bytes(),
        (tmp_path / "adapter_model.safetensors").read_bytes(),
    )


def test_fingerprint_sees_names_shapes_types_and_bits():
    base = files.fingerprint(ARRAYS)
    assert base == files.fingerprint(dict(reversed(ARRAYS.items())))
    a = ARRAYS["a"]
    for other in ({"c": a}, {"a": a.T}, {"a": a.reshape(3, 2)}, {"a": a.astype("f8")}, {"a": -a}):
        assert files.fingerprint(ARRAYS | other) != base
    assert files.fingerprint(ARRAYS, "text") != base
