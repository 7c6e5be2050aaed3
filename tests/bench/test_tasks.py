"""Spherical MNIST as the engine sees it."""

import numpy as np
import torch

from bench.config import parse_protocol, planned_runs
from bench.seeds import derive
from bench.tasks import MNIST_MEAN, MNIST_STD, SphericalMNIST
from tests.conftest import tiny_protocol, tiny_run


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


def test_subsets_are_drawn_once_for_all_models_and_seeds(tiny_data):
    """Fewer digits than the prepared set has: the same for every run, stratified, disjoint."""
    prepared = tiny_run().data
    tree = tiny_protocol(seeds=2)
    runs = planned_runs(parse_protocol(tree))
    tasks = [SphericalMNIST(run, tiny_data) for run in runs if run.setting == "N"]
    assert all(t.facts["split_sha256"] == tasks[0].facts["split_sha256"] for t in tasks)
    assert tasks[0].size("train") + tasks[0].size("validation") == prepared.n_train


def test_seeds_differ_by_purpose_and_are_stable():
    seeds = {derive(0, "shuffling", k, e) for k in range(3) for e in range(3)}
    assert len(seeds) == 9 and derive(0, "initialisation", 0) not in seeds
    assert derive(0, "shuffling", 1, 2) == derive(0, "shuffling", 1, 2) < 2**63
