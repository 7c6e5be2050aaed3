"""Spherical MNIST as the engine sees it."""

import json

import numpy as np
import pytest
import torch

from baselines.inputs import MNIST_MEAN, MNIST_STD
from bench.config import parse_protocol, planned_runs
from bench.prepared import prepared_folder
from bench.registry import MODELS
from bench.seeds import derive
from bench.tasks import SphericalMNIST
from tests.conftest import N_TRAIN, tiny_protocol, tiny_run


def test_settings_differ_in_the_signals_not_in_the_split(tiny_data):
    upright = SphericalMNIST(tiny_run(setting="N"), tiny_data)
    rotated = SphericalMNIST(tiny_run(setting="R"), tiny_data)
    assert upright.tests == ("N/N", "N/R") and rotated.tests == ("R/R",)
    for name in ("train", "validation"):
        np.testing.assert_array_equal(upright.sets[name][2], rotated.sets[name][2])
        x, labels = upright.batch(name, np.arange(5))
        y, same = rotated.batch(name, np.arange(5))
        assert torch.equal(labels, same) and not torch.equal(x, y)
    a, b = upright.batch("N/R", np.arange(40)), rotated.batch("R/R", np.arange(40))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not set(upright.sets["train"][2]) & set(upright.sets["validation"][2])


def test_omni_is_trained_and_tested_on_the_same_projection(tiny_data):
    omni = SphericalMNIST(tiny_run("SphereNet", "Omni"), tiny_data)
    rotated = SphericalMNIST(tiny_run("SphereNet", "R"), tiny_data)
    assert omni.tests == ("Omni",)
    folder = tiny_data / tiny_run().data.folder("latlon15")
    for name, part in (("train", "train"), ("validation", "train"), ("Omni", "test")):
        signals = np.load(folder / f"{part}_Omni.npy")
        x, labels = omni.batch(name, np.arange(9))
        want = (signals[omni.sets[name][2][:9]] / 255 - MNIST_MEAN) / MNIST_STD
        np.testing.assert_allclose(x[:, 0].numpy(), want, atol=1e-6)
        other, same = rotated.batch("R/R" if name == "Omni" else name, np.arange(9))
        assert torch.equal(labels, same) and not torch.equal(x, other)


def test_signals_are_normalised_grey_levels(tiny_data):
    task = SphericalMNIST(tiny_run(), tiny_data)
    x, labels = task.batch("train", np.array([3, 1]))
    assert x.shape[:2] == (2, 1) and x.dtype == torch.float32
    indices = task.sets["train"][2][[3, 1]]
    raw = np.load(tiny_data / tiny_run().data.folder("icosphere3-equator") / "train_N.npy")
    want = (raw[indices] / 255 - MNIST_MEAN) / MNIST_STD
    np.testing.assert_allclose(x[:, 0].numpy(), want, atol=1e-6)
    np.testing.assert_array_equal(labels, task.sets["train"][1][indices])


def test_score_is_accuracy(tiny_data):
    task = SphericalMNIST(tiny_run(), tiny_data)
    assert task.score(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == {"accuracy_percent": 75.0}


@pytest.mark.parametrize("n_train", [N_TRAIN, N_TRAIN // 2])
def test_subsets_are_drawn_once_for_all_models_and_seeds(tiny_data, tmp_path, n_train, monkeypatch):
    """Of all digits that are prepared, or of half of them: the same for every run, stratified,
    disjoint."""
    tree = tiny_protocol(seeds=2)
    data = tree["tasks"]["spherical_mnist"]["data"]
    data["n_train"] = n_train
    grids = ("icosphere3-equator", "latlon15")
    runs = [
        run
        for run in planned_runs(parse_protocol(tree))
        if run.setting in ("N", "R") and MODELS[run.task, run.network].grid_name(3) in grids
    ]
    for grid in grids:
        folder = tmp_path / runs[0].data.folder(grid)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(tiny_data / tiny_run().data.folder(grid))

    def unchecked(run, root):
        folder = root / prepared_folder(run)
        return folder, json.loads((folder / "card.json").read_text())

    # Synthetic digits are all used; only of MNIST a part is taken, which takes long to prepare.
    monkeypatch.setattr("bench.tasks.open_prepared", unchecked)
    tasks = [SphericalMNIST(run, tmp_path) for run in runs]
    assert len({run.model for run in runs}) >= 8 and len({run.seed for run in runs}) == 2
    for name in ("train", "validation"):
        assert len({task.sets[name][2].tobytes() for task in tasks}) == 1
    train, validation = (tasks[0].sets[name] for name in ("train", "validation"))
    assert len(validation[2]) == n_train // 10 and len(train[2]) == n_train - n_train // 10
    assert not set(train[2]) & set(validation[2])
    split = np.load(folder / "split.npz")
    for name, (_, labels, chosen) in (("train", train), ("validation", validation)):
        prepared = split[name]
        assert set(chosen) <= set(prepared)
        share = np.bincount(labels[prepared], minlength=10) / len(prepared)
        counts = np.bincount(labels[chosen], minlength=10)
        assert np.abs(counts - share * len(chosen)).max() < 1


def test_seeds_differ_by_purpose_and_are_stable():
    seeds = {derive(0, "shuffling", k, e) for k in range(3) for e in range(3)}
    assert len(seeds) == 9 and derive(0, "initialisation", 0) not in seeds
    # The same in every process, on every machine.
    assert derive(0, "shuffling", 1, 2) == 3343931501966950786 < 2**63
