"""Raw QM7: two containers, one content; what is wrong is refused in one line."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from data_prep import qm7
from data_prep.__main__ import main
from data_prep.fetch import SourceError
from data_prep.files import DataError
from data_prep.qm7 import decode, fetch_qm7, load_qm7, why_not_available
from data_prep.synthetic_molecules import LEAST_DISTANCE, synthetic_molecules

SMALL = synthetic_molecules(20, seed=3)
ARRAYS = dict(zip(qm7.ARRAYS, SMALL[:4], strict=True))

MIRROR = os.environ.get("PDO_DATA_MIRROR", "")
needs_qm7 = pytest.mark.skipif(
    not any((Path(MIRROR) / name).is_file() for name in ("qm7.npz", "qm7.mat")) or not MIRROR,
    reason="needs QM7: set PDO_DATA_MIRROR to a folder that holds qm7.npz or qm7.mat",
)


@pytest.fixture
def small(monkeypatch):
    """20 synthetic molecules stand for QM7: their shapes and hashes are the expected ones."""
    shapes = {name: (qm7.ARRAYS[name][0], array.shape) for name, array in ARRAYS.items()}
    monkeypatch.setattr(qm7, "ARRAYS", shapes)
    monkeypatch.setattr(qm7, "SHA256", SMALL.sha256)
    monkeypatch.setattr(qm7, "WEB_FOLDERS", ())


def npz(**changes) -> bytes:
    file = io.BytesIO()
    np.savez(file, **(ARRAYS | changes))
    return file.getvalue()


def mat() -> bytes:
    """The types and shapes of the published qm7.mat."""
    file = io.BytesIO()
    r, z, t, p = ARRAYS.values()
    savemat(
        file,
        {
            "R": r,
            "Z": z.astype(np.float32),
            "T": t[None],
            "P": p.astype(np.uint16),
            "X": r[:, :, :1],
        },
    )
    return file.getvalue()


def test_npz_and_mat_give_the_same_arrays(small):
    a, b = decode(npz()), decode(mat())
    for name, array in ARRAYS.items():
        assert a[name].dtype == b[name].dtype == array.dtype
        np.testing.assert_array_equal(a[name], array)
        np.testing.assert_array_equal(b[name], array)


@pytest.mark.parametrize(("name", "content"), [("qm7.npz", npz()), ("qm7.mat", mat())])
def test_fetch_from_a_mirror(small, tmp_path, monkeypatch, name, content):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / name).write_bytes(content)
    monkeypatch.setenv("PDO_DATA_MIRROR", str(tmp_path / "mirror"))
    assert why_not_available(tmp_path / "raw") == []
    fetch_qm7(tmp_path / "raw")
    assert os.listdir(tmp_path / "raw") == ["qm7.npz"]
    molecules = load_qm7(tmp_path / "raw")
    np.testing.assert_array_equal(molecules.positions, SMALL.positions)
    np.testing.assert_array_equal(molecules.folds, SMALL.folds)
    monkeypatch.delenv("PDO_DATA_MIRROR")
    before = (tmp_path / "raw" / "qm7.npz").read_bytes()
    fetch_qm7(tmp_path / "raw")  # asks nobody: there is no source
    assert (tmp_path / "raw" / "qm7.npz").read_bytes() == before


def test_a_mat_put_in_place_by_hand_becomes_npz(small, tmp_path):
    (tmp_path / "qm7.npz").write_bytes(mat())
    fetch_qm7(tmp_path)
    with np.load(tmp_path / "qm7.npz") as file:
        np.testing.assert_array_equal(file["T"], SMALL.energies)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npz()[:-100], "not a readable"),
        (npz()[:200] + b"\0" * 50 + npz()[250:], "not a readable"),
        (mat()[:-100], "not a readable"),
        (b"<html>not found</html>", "not a readable"),
        (npz(T=SMALL.energies + 1), "wrong content, SHA-256 of T"),
        (npz(P=SMALL.folds[:4]), "not a readable"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    small, tmp_path, monkeypatch, capsys, content, reason
):
    (tmp_path / "qm7.npz").write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        load_qm7(tmp_path)
    assert str(tmp_path / "qm7.npz") in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setenv("PDO_DATA_MIRROR", str(tmp_path))
    assert main(["fetch", "qm7", "--out", str(tmp_path / "raw")]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert reason in line and "qm7.mat" in line and "could not get qm7.npz" in line
    assert not (tmp_path / "raw").exists()


def test_pickled_arrays_are_not_loaded(small):
    with pytest.raises(SourceError, match="not a readable"):
        decode(npz(R=np.array([{}, {}], dtype=object)))


def test_why_not_available_names_every_source(small, tmp_path, monkeypatch):
    monkeypatch.setattr(qm7, "WEB_FOLDERS", ("http://127.0.0.1:9/data/",))
    monkeypatch.setenv("PDO_DATA_MIRROR", str(tmp_path))
    mirror, web = why_not_available(tmp_path / "raw")
    assert str(tmp_path) in mirror and "http://127.0.0.1:9/data/qm7.mat: no connection" in web
    monkeypatch.delenv("PDO_DATA_MIRROR")
    assert "PDO_DATA_MIRROR is not set" in why_not_available(tmp_path / "raw")[0]
    with pytest.raises(DataError, match="no connection") as error:
        fetch_qm7(tmp_path / "raw")
    assert "qm7.mat" in str(error.value) and "\n" not in str(error.value)


def test_synthetic_molecules_are_valid_and_seeded():
    again, other = synthetic_molecules(20, seed=3), synthetic_molecules(20, seed=4)
    np.testing.assert_array_equal(again.positions, SMALL.positions)
    assert again.sha256 == SMALL.sha256 != other.sha256
    assert SMALL.source == "synthetic molecules"
    np.testing.assert_array_equal(np.sort(SMALL.folds.ravel()), np.arange(20))
    for positions, charges in zip(SMALL.positions, SMALL.charges, strict=True):
        atoms = np.count_nonzero(charges)
        assert 4 <= atoms <= 23 and set(charges[:atoms]) <= set(qm7.ELEMENTS)
        assert not charges[atoms:].any() and not positions[atoms:].any()
        p = positions[:atoms].astype(float)
        distances = np.linalg.norm(p[:, None] - p, axis=-1) + 9 * np.eye(atoms)
        assert (
            distances.min() > LEAST_DISTANCE - 1e-5 and (distances.min(axis=1) < 2.9 + 1e-5).all()
        )
    with pytest.raises(ValueError, match="multiple of 5"):
        synthetic_molecules(12)


@needs_qm7
def test_the_published_counts(tmp_path):
    fetch_qm7(tmp_path)
    molecules = load_qm7(tmp_path)
    for name, array in zip(qm7.ARRAYS, molecules[:4], strict=True):
        assert hashlib.sha256(array.data).hexdigest() == qm7.SHA256[name]
    kinds, counts = np.unique(molecules.charges, return_counts=True)
    found = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
    assert {z: found[z] for z in qm7.ELEMENTS} == {1: 61959, 6: 35761, 7: 6655, 8: 5978, 16: 297}
    np.testing.assert_array_equal(np.sort(molecules.folds.ravel()), np.arange(7165))
    assert molecules.energies.min() == pytest.approx(-2192.0, abs=0.01)
    assert molecules.energies.std() == pytest.approx(223.92, abs=0.05)
