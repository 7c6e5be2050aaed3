"""QM7 as the engine and the tables see it, on synthetic molecules; composition on the real ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from baselines.molecules import Molecules
from bench.config import RunConfig, parse_protocol, planned_runs
from bench.engine import Interrupted, train
from bench.frames import by_setting
from bench.registry import FOLDS, MODELS, ModelEntry
from bench.tables import build_table
from bench.tasks_qm7 import QM7
from bench.typesetting import write_tables
from data_prep.qm7 import ELEMENTS, fetch_qm7
from data_prep.spherical_qm7 import prepare
from data_prep.synthetic_molecules import synthetic_molecules
from tests.data_prep.test_qm7 import needs_qm7

N = 60
CPU = torch.device("cpu")


class Composition(nn.Module):
    """Least squares on the composition, and a residual linear in the mean of the signals."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.residual = nn.Linear(len(ELEMENTS), 1)
        self.register_buffer("weights", torch.zeros(len(ELEMENTS) + 1))
        self.register_buffer("scale", torch.ones(()))

    def fit(self, molecules: Molecules, energies: torch.Tensor) -> None:
        assert molecules.signals is None
        design = nn.functional.pad(molecules.counts, (0, 1), value=1.0).double()
        solution = torch.linalg.lstsq(design, energies.double()[:, None], driver="gelsd").solution
        self.weights.copy_(solution[:, 0])
        self.scale.copy_((energies - design @ solution[:, 0]).square().mean().sqrt())

    def forward(self, molecules: Molecules) -> torch.Tensor:
        design = nn.functional.pad(molecules.counts, (0, 1), value=1.0)
        atoms = self.residual(molecules.signals.mean(dim=2))[:, 0]
        total = atoms.new_zeros(len(molecules)).index_add(0, molecules.molecule, atoms)
        return design @ self.weights + 1e-3 * self.scale * total


class CompositionAlone(Composition):
    """The same without signals."""

    def forward(self, molecules: Molecules) -> torch.Tensor:
        counts = nn.functional.pad(molecules.counts, (0, 1), value=1.0)
        return counts @ self.weights + self.scale * self.residual(molecules.counts / 100)[:, 0]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for key in [key for key in MODELS if key[0] == "qm7"]:
        monkeypatch.delitem(MODELS, key)
    recipe = {"learning_rate": 1e-3}
    monkeypatch.setitem(MODELS, ("qm7", "linear"), ModelEntry(Composition, recipe=recipe))
    monkeypatch.setitem(MODELS, ("qm7", "PDO-eS2CNN"), ModelEntry(CompositionAlone, grid="none"))


def protocol(source: str = "synthetic", **data):
    if source == "synthetic":
        data["n_synthetic"] = N
    task = {"data": {"source": source, "level": 1} | data, "train": {"epochs": 2, "batch_size": 8}}
    tree = {"protocol": "tiny", "seeds": 2, "tracking": False, "tasks": {"qm7": task}}
    return parse_protocol(tree)


def run_of(setting="fold0", model="linear", seed=0, **data) -> RunConfig:
    runs = planned_runs(protocol(**data))
    return next(r for r in runs if (r.model, r.setting, r.seed) == (model, setting, seed))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for grid in ("icosphere1", "none"):
        prepare(
            synthetic_molecules(N), grid, root / f"qm7/synthetic-{N}-seed0-power1-half-index/{grid}"
        )
    return root


def test_folds_are_a_partition(data):
    tasks = [QM7(run_of(fold), data) for fold in FOLDS]
    tests = np.concatenate([task.sets["5-fold"] for task in tasks])
    np.testing.assert_array_equal(np.sort(tests), np.arange(N))
    for task, members in zip(tasks, synthetic_molecules(N).folds, strict=True):
        assert task.tests == ("5-fold",)
        np.testing.assert_array_equal(task.sets["5-fold"], members)
        np.testing.assert_array_equal(
            np.sort(np.concatenate(list(task.sets.values()))), np.arange(N)
        )
        assert task.size("validation") == 5 and task.size("train") == 43  # of 48


def test_smaller_training_sets_are_parts_of_larger_ones(data):
    small, large = (QM7(run_of(n_train=n), data) for n in (20, 40))
    for name in ("train", "validation"):
        assert set(small.sets[name]) < set(large.sets[name])
    np.testing.assert_array_equal(small.sets["5-fold"], large.sets["5-fold"])
    assert (small.size("train"), small.size("validation")) == (18, 2)
    other = QM7(run_of(n_train=20, seed=1), data)  # the split belongs to the data
    assert other.facts["split_sha256"] == small.facts["split_sha256"]
    assert other.facts["split_sha256"] != large.facts["split_sha256"]


def test_smaller_test_sets_are_parts_of_the_fold(data):
    small, whole = QM7(run_of(n_test=10), data), QM7(run_of(), data)
    assert small.size("5-fold") == 10 and whole.size("5-fold") == 12
    assert set(small.sets["5-fold"]) < set(whole.sets["5-fold"])
    np.testing.assert_array_equal(small.sets["train"], whole.sets["train"])


def test_a_batch_holds_the_atoms_of_its_molecules(data):
    task, raw = QM7(run_of("fold2"), data), synthetic_molecules(N)
    molecules, energies = task.batch("train", np.array([7, 3]))
    chosen = task.sets["train"][[7, 3]]
    np.testing.assert_array_equal(energies, raw.energies[chosen])
    assert len(molecules) == 2 and molecules.signals.dtype == torch.float32
    assert molecules.signals.shape == (len(molecules.charges), 5, 42)
    for b, k in enumerate(chosen):
        mine, present = molecules.molecule == b, raw.charges[k] > 0
        np.testing.assert_array_equal(molecules.charges[mine], raw.charges[k][present])
        np.testing.assert_array_equal(molecules.positions[mine], raw.positions[k][present])
        want = [(raw.charges[k] == z).sum() for z in ELEMENTS]
        np.testing.assert_array_equal(molecules.counts[b], want)
    alone, _ = task.batch("train", np.array([3]))
    torch.testing.assert_close(alone.signals, molecules.signals[molecules.molecule == 1])
    blind, _ = QM7(run_of(model="PDO-eS2CNN"), data).batch("train", np.array([0]))
    assert blind.signals is None


def test_loss_and_score(data):
    task = QM7(run_of(), data)
    model = Composition(level=1)
    task.fit(model)
    assert task.scale == float(model.scale) > 1
    output, target = torch.tensor([1.0, 5.0]), torch.tensor([4.0, 1.0])
    assert task.loss(output, target).item() == pytest.approx(12.5 / task.scale**2)
    scores = task.score(output.numpy(), target.numpy())
    assert scores == {"rmse_kcal_per_mol": 12.5**0.5, "mae_kcal_per_mol": 3.5}


def composition_rmse(task: QM7) -> float:
    """Test error of least squares on atom counts and a constant, from all of the other folds."""
    parts = [task.batch(name, np.arange(task.size(name))) for name in ("train", "validation")]
    counts = torch.cat([molecules.counts for molecules, _ in parts]).double().numpy()
    energies = torch.cat([e for _, e in parts]).double().numpy()
    test, target = task.batch("5-fold", np.arange(task.size("5-fold")))
    solution = np.linalg.lstsq(np.column_stack([counts, np.ones(len(counts))]), energies)[0]
    predicted = test.counts.double().numpy() @ solution[:-1] + solution[-1]
    return task.score(predicted, target.numpy())["rmse_kcal_per_mol"]


def test_composition_regression_is_exact_where_energies_are_the_composition(tmp_path):
    molecules = synthetic_molecules(N)
    counts = np.stack([(molecules.charges == z).sum(axis=1) for z in ELEMENTS], axis=1)
    energies = (counts @ [-50, -150, -100, -90, -80] - 7).astype(np.float32)
    run = run_of(model="PDO-eS2CNN")
    prepare(molecules._replace(energies=energies), "none", tmp_path / run.data.folder("none"))
    assert composition_rmse(QM7(run, tmp_path)) < 1e-3
    energies[molecules.folds[0][0]] += 100  # one wrong energy of the 12 tested
    prepare(molecules._replace(energies=energies), "none", tmp_path / run.data.folder("none"))
    assert composition_rmse(QM7(run, tmp_path)) == pytest.approx(100 / 12**0.5, rel=1e-3)


@needs_qm7
def test_composition_regression_of_qm7(tmp_path):
    """The published data, folds and units: per fold as computed independently."""
    fetch_qm7(tmp_path / "raw")
    runs = [run_of(fold, "PDO-eS2CNN", source="qm7") for fold in FOLDS]
    prepare(tmp_path / "raw", "none", tmp_path / runs[0].data.folder("none"))
    errors = [composition_rmse(QM7(run, tmp_path)) for run in runs]
    assert np.round(errors, 2).tolist() == [20.66, 20.10, 19.97, 20.29, 19.87]
    task = QM7(runs[0], tmp_path)
    assert task.facts["counts"] == {"train": 5158, "validation": 574, "5-fold": 1433}


def test_from_runs_to_table_3(data, tmp_path):
    """Five folds and two seeds in one column, each fold by itself below; the file's MAE as well."""
    plan = protocol()
    runs = planned_runs(plan)
    assert len(runs) == 2 * 5 * 2
    metrics = {r.key: train(r, tmp_path, data, CPU, track=False) for r in runs if r.seed == 0}
    for run in runs[:10]:
        scores = metrics[run.key]["test"]["5-fold"]
        assert 0 < scores["mae_kcal_per_mol"] < scores["rmse_kcal_per_mol"]
        with np.load(tmp_path / "runs" / run.key / "predictions.npz") as file:
            error = file["5-fold_predictions"].astype(float) - file["5-fold_targets"]
        assert scores["rmse_kcal_per_mol"] == pytest.approx(np.sqrt((error**2).mean()), abs=1e-5)
    table = build_table(plan, "qm7", tmp_path).set_index("model")
    values = [metrics[r.key]["test"]["5-fold"]["rmse_kcal_per_mol"] for r in runs[:5]]
    assert table.loc["linear", "reproduced_mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert table.loc["linear", "reproduced_std"] == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert (table.n_seeds == 5).all() and (table.n_planned == 10).all()
    assert table.loc["PDO-eS2CNN", "reported_mean"] == 3.78
    folds = by_setting(plan, "qm7", tmp_path)
    assert folds[folds.model == "linear"].setting.tolist() == list(FOLDS)
    assert folds[folds.model == "linear"].rmse_kcal_per_mol.tolist() == [f"{v:.2f}" for v in values]
    paths = write_tables(plan, tmp_path)
    assert [p.name for p in paths] == [f"table3.{s}" for s in ("csv", "md", "tex", "html")]
    text = paths[1].read_text()
    assert "lower is better" in text and "(5/10)" in text and "mae_kcal_per_mol" in text
    assert pd.read_csv(paths[0]).setting.tolist() == ["5-fold"] * 2


def test_stopped_and_resumed_equals_never_stopped(data, tmp_path, monkeypatch):
    """The loss after a resume is in the same units as before."""
    run, batch, seen = run_of(), QM7.batch, []
    straight = train(run, tmp_path / "a", data, CPU, track=False)

    def counting(self, name, positions):
        seen.append(name)
        if seen.count("train") == 7:  # in the second of two epochs of 5 steps
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, name, positions)

    with monkeypatch.context() as patch:
        patch.setattr(QM7, "batch", counting)
        with pytest.raises(Interrupted):
            train(run, tmp_path / "b", data, CPU, track=False)
    assert train(run, tmp_path / "b", data, CPU, track=False) == straight
    histories = [
        pd.read_csv(tmp_path / name / "runs" / run.key / "history.csv").drop(columns="seconds")
        for name in "ab"
    ]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def test_where_the_data_cannot_be_had_the_table_says_so(tmp_path):
    tried = ["PDO_DATA_MIRROR is not set", "https://example.org/qm7.mat: no connection"]
    for path in write_tables(protocol(), tmp_path, {"qm7": tried}):
        text = path.read_text().replace(r"\_", "_")
        if path.suffix != ".csv":
            assert all(source in text for source in tried) and "DATA NOT AVAILABLE" in text
            assert "data not available" in text and "no result" not in text
            assert "3.78" in text


def test_a_task_without_registered_models_has_an_empty_table(tmp_path, monkeypatch):
    monkeypatch.delitem(MODELS, ("qm7", "linear"))
    monkeypatch.delitem(MODELS, ("qm7", "PDO-eS2CNN"))
    paths = write_tables(protocol(), tmp_path)
    assert len(paths) == 4 and pd.read_csv(paths[0]).empty
