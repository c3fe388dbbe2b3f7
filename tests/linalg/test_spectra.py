import json
import zipfile

import numpy as np
import pytest

from lorabook import InputError, files
from lorabook.files import read_csv
from lorabook.linalg import find_layers, low_rank, most_compressible, spectrum
from lorabook.tasks import matrices_of, update_between


def test_the_rows_are_the_closed_form_errors_and_the_summary_their_ranks(rng):
    W, X = rng.standard_normal((8, 6)), rng.standard_normal((30, 6)) * np.geomspace(1, 0.01, 6)
    rows, summary = spectrum("W", W.astype("f4"), X)
    truncation, R = low_rank.truncate(W), low_rank.activation_factor([X])
    plain, aware = low_rank.output_errors(W, R), low_rank.truncate_for_inputs(W, R).errors
    assert [row["r"] for row in rows] == list(range(7)) and rows[0]["singular_value"] is None
    for r, row in enumerate(rows):
        assert row["weight_error"] == pytest.approx(truncation.errors[r] / np.linalg.norm(W), abs=1e-6)
        assert row["svd_output_error"] == pytest.approx(plain[r] / plain[0], abs=1e-6)
        assert row["activation_svd_output_error"] == pytest.approx(aware[r] / plain[0], abs=1e-6)
    assert (summary["shape"], summary["rank_99"]) == ([8, 6], low_rank.energy_rank(low_rank.svd(W)[1], 0.99))
    assert summary["half"] is rows[3]


def test_a_matrix_of_zeros_has_a_spectrum_of_zeros():
    rows, summary = spectrum("W", np.zeros((4, 3)), np.ones((5, 3)))
    assert {row["weight_error"] for row in rows} == {row["activation_svd_output_error"] for row in rows} == {0.0}
    assert (summary["stable_rank"], summary["rank_90"]) == (0.0, 0)


@pytest.mark.parametrize("scale", [1e-165, 1e155])
def test_the_units_of_a_matrix_do_not_matter(rng, scale):
    W = rng.standard_normal((5, 4))
    (rows, summary), (scaled, same) = spectrum("W", W), spectrum("W", scale * W)
    assert same["stable_rank"] == pytest.approx(summary["stable_rank"])
    np.testing.assert_allclose(
        [row["weight_error"] for row in scaled], [row["weight_error"] for row in rows], atol=1e-9
    )


def test_tables_and_zeros_are_not_what_a_picture_shows_first(rng):
    matrices = {
        "embeddings.position_embeddings.weight": np.outer(np.ones(9), np.ones(9)),
        "layer.0.query.weight": rng.standard_normal((9, 9)),
        "layer.1.query.weight": np.diag([9.0, 9, 9, 1, 1, 1, 1, 1, 1]),
        "layer.2.query.weight": np.zeros((9, 9)),
    }
    assert most_compressible([spectrum(name, W)[1] for name, W in matrices.items()]) == "layer.1.query.weight"


def test_the_most_compressible_layer_needs_the_least_share_of_its_rank():
    small, large = np.diag([1.0, 1, 0]), np.diag([1.0] * 5 + [0.0] * 15)  # 2 of 3 directions, 5 of 20
    summaries = [spectrum("small", small)[1], spectrum("large", large)[1]]
    assert [row["rank_90"] for row in summaries] == [2, 5]
    assert most_compressible(summaries) == "large"


def test_a_layer_is_found_by_any_end_of_its_printed_name():
    names = ["encoder.layer.0.self.query.weight", "encoder.layer.10.self.query.weight", "fc.weight"]
    for wanted in (names[0], "layer.0.self.query.weight", "layer.0.self.query", "encoder.layer.0.self.query"):
        assert find_layers(names, wanted) == names[:1]
    assert find_layers(names, "query") == names[:2]
    with pytest.raises(InputError, match="no matrix is called '0.self'; expected one of encoder.layer.0"):
        find_layers(names, "0.self")
    with pytest.raises(InputError, match="no matrix is called 'uery'"):
        find_layers(names, "uery")


@pytest.fixture
def W(rng):
    return rng.standard_normal((6, 4))


def test_a_header_as_python_2_wrote_it_is_read_without_a_word(tmp_path):
    """NumPy reads it too, with a warning of two lines, which is an error here."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 2L), }".ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + np.arange(6.0).tobytes()
    (tmp_path / "m.npy").write_bytes(array)
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("m.npy", array)
    for name in ("m.npy", "m.npz"):
        np.testing.assert_array_equal(matrices_of(tmp_path / name)[0]["m"], np.arange(6.0).reshape(3, 2))


def test_a_matrix_from_every_kind_of_file(tmp_path, W):
    np.save(tmp_path / "m.npy", W)
    np.savez(tmp_path / "m.npz", W=W, ids=np.arange(3), half=W.astype("f2"))
    np.savez_compressed(tmp_path / "c.npz", W=W)
    np.savetxt(tmp_path / "m.csv", W, delimiter=",")
    np.savetxt(tmp_path / "h.CSV", W, delimiter=",", header="a,b,c,d", comments="")
    np.savetxt(tmp_path / "m.tsv", W, delimiter="\t")
    files.write_safetensors(tmp_path / "m.safetensors", {"W": W, "bias": W[0]})
    for name, found in {
        "m.npy": "m",
        "m.npz": "W",
        "c.npz": "W",
        "m.csv": "m",
        "h.CSV": "h",
        "m.tsv": "m",
        "m.safetensors": "W",
    }.items():
        matrices, inputs = matrices_of(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(matrices[found]), W)
        assert not inputs
    assert set(matrices_of(tmp_path / "m.npz")[0]) == {"W", "half"}


def test_rows_that_a_spreadsheet_cleared_are_passed_over(tmp_path, capsys):
    (tmp_path / "m.csv").write_text("a,b\n1,2\n , \n3,4\n,,\n,\n")
    (tmp_path / "m.tsv").write_text("\t\n1\t2\n3\t4\n\t\n")
    for name in ("m.csv", "m.tsv"):
        np.testing.assert_array_equal(matrices_of(tmp_path / name)[0]["m"], [[1, 2], [3, 4]])
    assert capsys.readouterr().err == ""


def test_names_that_are_numbers_are_pointed_out(tmp_path, capsys):
    """As pandas names columns and rows."""
    for text, places in {
        "0,1,2\n.5,1,2\n": ["row"],
        "0,.5,1\n1,3,1\n2,3,4\n": ["column"],
        "0,1,2\n1,.5,3\n2,0,0\n": ["row", "column"],
        "0,1,2\n3,4,5\n6,7,8\n": [],  # integers throughout
        "0,1,2.5\n1,4,5\n3,7,8\n": [],
        "0,1\n.5,1\n": [],
    }.items():
        (tmp_path / "m.csv").write_text(text)
        assert matrices_of(tmp_path / "m.csv")[0]["m"].shape == (text.count("\n"), text.split()[0].count(",") + 1)
        notes = capsys.readouterr().err.splitlines()
        assert [line.partition("m.csv: the first ")[2].split()[0] for line in notes] == places


BAD = {
    "nothing.npy": (None, "nothing.npy is neither a file nor a folder"),
    "m.txt": (b"1 2", "expected mlp-digits, minilm"),
    "ragged.csv": (b"1,2\n3\n", "ragged.csv, line 2: 1 cells; the rows above have 2"),
    "text.csv": (b"a,b\n1,2\n3,x\n", "text.csv, line 3: expected a number such as 0.5; got 'x'"),
    "inf.csv": (b"1,2\n3,nan\n", "inf.csv, line 2: expected a number such as 0.5; got 'nan'"),
    "empty.csv": (b"", "empty.csv holds no rows of numbers"),
    "header.csv": (b"a,b\n", "header.csv holds no rows of numbers"),
    "not_finite.csv": (b"nan,inf\n1,2\n", "not_finite.csv, line 1: expected a number such as 0.5; got 'nan'"),
    "semicolons.csv": (b"1;2\n3;4\n", "line 2: expected a number such as 0.5; got '3;4': separate"),
    "decimal_commas.csv": (b"1,5;2,5\n", "line 1: expected a number such as 0.5; got '5;2': separate"),
    "m.npz": (b"PK\x03\x04 nothing", "cannot read"),
    "m.npy": (b"\x93NUMPY\x01\x00", "cannot read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_matrix_is_refused_in_one_line(run, tmp_path, name):
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = run("spectrum", tmp_path / name, "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err and name in err
    assert not (tmp_path / "out").exists()


def test_an_archive_that_promises_more_than_it_holds_or_holds_objects_is_refused(run, tmp_path):
    np.savez(tmp_path / "m.npz", W=np.zeros((2, 2)))
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        data = archive.read("W.npy")
    with zipfile.ZipFile(tmp_path / "big.npz", "w") as archive:
        archive.writestr("W.npy", data.replace(b"(2, 2), }      ", b"(65536, 65536)}"))
    np.savez(tmp_path / "objects.npz", W=np.array([[{}]], dtype=object))
    for name in ("big.npz", "objects.npz"):
        code, _, err = run("spectrum", tmp_path / name, "--out", tmp_path / "out")
        assert code == 2 and "a member does not hold" in err and name in err


def test_the_difference_of_two_checkpoints(run, tmp_path, rng, W):
    delta = np.outer(rng.standard_normal(6), rng.standard_normal(4))
    files.write_safetensors(tmp_path / "base.safetensors", {"fc.weight": W, "same.weight": W, "old.weight": W})
    files.write_safetensors(tmp_path / "tuned.safetensors", {"bert.fc.weight": W + delta, "bert.same.weight": W})
    update, notes = update_between(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    np.testing.assert_allclose(update["fc.weight"], delta, atol=1e-12)
    assert list(update) == ["fc.weight", "same.weight"] and "old.weight" in notes[0]

    paths = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    code, out, _ = run("spectrum", *paths, "--out", tmp_path / "out", "--json")
    result = json.loads(out)
    assert code == 0 and result["shown"] == "fc.weight"
    assert [layer["rank_99"] for layer in result["layers"]] == [1, 0]
    code, out, _ = run("spectrum", *paths, "--out", tmp_path / "out")
    assert "zero everywhere: same.weight." in " ".join(out.split())

    files.write_safetensors(tmp_path / "other.safetensors", {"fc.weight": W[:3]})
    code, _, err = run("spectrum", paths[0], tmp_path / "other.safetensors", "--out", tmp_path / "out")
    assert code == 2 and "fc.weight is (6, 4)" in err and "(3, 4)" in err


def test_an_adapter_folder_shows_its_updates(run, tmp_path, rng):
    from lorabook import LoRAConfig, inject
    from lorabook.adapters import save_adapter
    from lorabook.models import MLP

    model, config = (
        MLP((6, 8, 7), rng=rng),
        LoRAConfig(r=2, lora_alpha=6, target_modules=["fc1", "fc2"], use_rslora=True, alpha_pattern={"fc2": 3}),
    )
    inject(model, config)
    layers = {}
    for name, layer in dict(model.named_layers()).items():
        if hasattr(layer, "delta_weight"):
            layer.params["lora_B"][...] = rng.standard_normal(layer.params["lora_B"].shape)
            layers[name] = layer.delta_weight()
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", model)
    found, _ = matrices_of(tmp_path / "adapter")
    assert list(found) == list(layers) == ["fc1", "fc2"]
    for name, delta in layers.items():
        np.testing.assert_allclose(found[name], delta, rtol=1e-6)
    code, out, _ = run("spectrum", tmp_path / "adapter", "--layer", "fc2", "--out", tmp_path / "out", "--json")
    assert code == 0 and [layer["rank_99"] for layer in json.loads(out)["layers"]] == [2]
    rows = read_csv(tmp_path / "out" / "spectrum.csv")
    assert {row["layer"] for row in rows} == {"fc1", "fc2"}  # every matrix is drawn, one is listed

    path = tmp_path / "adapter" / "adapter_config.json"
    options = json.loads(path.read_text())
    for changes, message in (
        ({"r": 3}, "needs lora_A (r, d_in) and lora_B (d_out, r) with r = 3"),  # another rank, another scaling
        ({"r": 10**400}, "with r = 1000"),
        ({"lora_alpha": 1.7e308, "use_rslora": False, "r": 2}, "NaN or Inf"),
    ):
        path.write_text(json.dumps(options | {"alpha_pattern": {}} | changes))
        code, out, err = run("spectrum", tmp_path / "adapter", "--out", tmp_path / "no")
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err
