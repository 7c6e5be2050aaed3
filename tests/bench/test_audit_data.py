"""Targets and arrays of runs against the data set that they name."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench.audit_data import array_faults, target_faults
from bench.run_folder import RunFolder, read_run
from data_prep import qm7

RECORDED = Path(__file__).parents[2] / "results/recorded"
FULL = "corrected/runs/spherical_mnist/HexRUNet-C/N/seed0"  # all test digits
PART = "default/runs/spherical_mnist/UGSCNN/R/seed0"  # some of them
ENERGIES = "learning_curve/runs/qm7/MLP-500/fold0/seed0"


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch):
    monkeypatch.delenv("PDO_DATA_MIRROR", raising=False)


def copied(tmp_path: Path, place: str) -> RunFolder:
    shutil.copytree(RECORDED / place, tmp_path / place)
    return read_run(tmp_path / place)


def change(run: RunFolder, **targets: np.ndarray) -> None:
    """Give a run other targets."""
    with np.load(run.path / "predictions.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(run.path / "predictions.npz", **arrays | targets)


def targets(run: RunFolder, column: str) -> np.ndarray:
    with np.load(run.path / "predictions.npz") as file:
        return file[f"{column}_targets"]


def test_labels_of_a_part_follow_from_those_of_all_digits(tmp_path):
    """No raw data are here: of all digits the labels are known by their SHA-256."""
    whole, part = copied(tmp_path, FULL), copied(tmp_path, PART)
    assert target_faults([part, whole], tmp_path) == ([], [])
    change(part, R_R_targets=np.roll(targets(part, "R_R"), 1))
    found, notes = target_faults([part, whole], tmp_path)
    where = f"{part.path}/predictions.npz: targets of R/R"
    assert (found, notes) == ([f"{where} are not those of the data set"], [])


def test_labels_that_cannot_be_known_are_compared_among_runs(tmp_path):
    one = copied(tmp_path, PART)
    two = copied(tmp_path, PART.replace("seed0", "seed1"))
    told = "targets of spherical_mnist were compared among runs alone: no raw data at hand"
    assert target_faults([one, two], tmp_path) == ([], [told])
    change(two, R_R_targets=np.roll(targets(two, "R_R"), 1))
    where = f"{two.path}/predictions.npz: targets of R/R"
    assert target_faults([one, two], tmp_path)[0] == [f"{where} are not those of {one.path}"]


def test_energies_are_compared_with_raw_data(tmp_path, monkeypatch):
    """With a stand-in of QM7: molecule k has the energy k, fold f every fifth molecule from f."""
    n = len(np.zeros(qm7.ARRAYS["T"][1]))
    arrays = {name: np.zeros(shape, kind) for name, (kind, shape) in qm7.ARRAYS.items()}
    arrays["T"] = np.arange(n, dtype=np.float32)
    arrays["P"] = np.arange(n).reshape(-1, qm7.FOLDS).T.copy()
    (tmp_path / "raw/qm7").mkdir(parents=True)
    np.savez(tmp_path / "raw/qm7" / qm7.FILE, **arrays)
    hashes = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    monkeypatch.setattr(qm7, "SHA256", hashes)
    run = copied(tmp_path, ENERGIES)
    where = f"{run.path}/predictions.npz: targets of 5-fold"
    assert target_faults([run], tmp_path)[0] == [f"{where} are not those of the data set"]
    change(run, **{"5-fold_targets": np.arange(0, n, 5, dtype=np.float32)})
    assert target_faults([run], tmp_path) == ([], [])


def test_one_name_stands_for_one_set_of_arrays(tmp_path):
    """Of the runs on one grid the second is on other digits, unless its card calls them so."""
    one = copied(tmp_path, FULL)
    two = copied(tmp_path, FULL.replace("HexRUNet-C", "PDO-eS2CNN-small"))
    assert list(array_faults([one, two])) == []
    card = two.provenance["data"]["card"]
    card["sha256"]["test_R.npy"] = "another"
    (found,) = array_faults([one, two])
    name = "spherical_mnist/mnist-corrected-seed0/icosphere4-equator"
    assert found == (
        f"{two.path}/provenance.json: test_R.npy of {name} is not what {one.path} read"
    )
    card["approximation"] = "of the edition"
    assert list(array_faults([one, two])) == []
