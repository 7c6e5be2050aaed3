"""Figures of atomization energies are made of the runs' files, and of those alone."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from bench.__main__ import main
from bench.config import parse_protocol, planned_runs
from bench.energies import errors, learning_curve, predictions
from bench.engine import train
from bench.errors import RunError
from data_prep.spherical_qm7 import prepare
from data_prep.synthetic_molecules import synthetic_molecules

N = 60


def protocol():
    task = {
        "data": {"source": "synthetic", "n_synthetic": N},
        "settings": ["fold0", "fold3"],
        "train": {"epochs": 1, "batch_size": 8},
        "models": ["few", "MLP-random-CM"],
        "model": {
            "few": {"network": "MLP-random-CM", "n_train": 20, "options": {"inputs": 6000}},
            "MLP-random-CM": {"options": {"inputs": 6000}},
        },
    }
    return parse_protocol(
        {"protocol": "tiny", "seeds": 1, "tracking": False, "tasks": {"qm7": task}}
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("energies")
    folder = root / f"data/qm7/synthetic-{N}-seed0-power1-half-index/none"
    prepare(synthetic_molecules(N), "none", folder)
    for run in planned_runs(protocol()):
        train(run, root / "results", root / "data", torch.device("cpu"), track=False)
    return root / "results"


def test_errors_are_those_of_the_runs(results):
    found = errors(protocol(), results)
    assert list(found.model) == ["few", "few", "MLP-random-CM", "MLP-random-CM"]
    assert set(found.network) == {"MLP-random-CM"} and list(found.trained_on) == [18, 18, 43, 43]
    for row in found.itertuples():
        path = results / f"runs/tiny/qm7/{row.model}/{row.setting}/seed0/metrics.json"
        assert json.loads(path.read_text())["test"]["5-fold"] == {
            "rmse_kcal_per_mol": row.rmse_kcal_per_mol,
            "mae_kcal_per_mol": row.mae_kcal_per_mol,
        }


def test_predictions_give_the_errors_of_the_table(results):
    found, pairs = errors(protocol(), results), predictions(protocol(), results)
    assert list(pairs) == ["few", "MLP-random-CM"]
    for model, values in pairs.items():
        assert values.shape == (2 * N // 5, 2)
        squares = found[found.model == model].rmse_kcal_per_mol ** 2
        mean = np.mean((values[:, 0] - values[:, 1]) ** 2)
        assert mean == pytest.approx(squares.mean(), rel=1e-5)


def test_a_learning_curve_is_of_the_folds_that_all_sizes_have():
    """Of the second size fold 1 alone is hard; the first was measured on fold 0 alone."""
    rows = [("a", "fold0", 50, 4.0), ("a", "fold0", 90, 3.0), ("a", "fold0", 90, 5.0)]
    rows += [("a", "fold1", 90, 100.0), ("b", "fold2", 70, 7.0)]
    found = pd.DataFrame(rows, columns=["network", "setting", "trained_on", "rmse_kcal_per_mol"])
    assert learning_curve(found).to_numpy().tolist() == [
        ["a", 50, 4, 4, 4],
        ["a", 90, 4, 3, 5],
        ["b", 70, 7, 7, 7],
    ]


def test_command_writes_table_and_figures(results, tmp_path):
    plain = protocol().model_dump_json()
    options = ["--protocol", plain, "--results", str(results), "--out", str(tmp_path / "out")]
    assert main(["energies", *options]) == 0
    assert len(pd.read_csv(tmp_path / "out/energies.csv")) == 4
    for name in ("learning_curve.png", "parity.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_molecules_that_a_network_cannot_take_are_one_line(results):
    run = planned_runs(protocol())[0].model_copy(update={"options": {"inputs": 100}})
    with pytest.raises(RunError, match=r"cannot take these molecules: .* do not fit 100 inputs"):
        train(run, results, results.parent / "data", torch.device("cpu"), track=False)


def test_nothing_finished_is_one_line(tmp_path):
    with pytest.raises(RunError, match="no finished run of qm7 in protocol tiny: run"):
        errors(protocol(), tmp_path)
