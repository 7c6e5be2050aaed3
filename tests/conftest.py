"""Small prepared data and runs that every test may use."""

from pathlib import Path

import pytest

from bench.config import RunConfig, parse_protocol, planned_runs
from data_prep.spherical_mnist import prepare
from data_prep.synthetic_digits import synthetic_digits

N_TRAIN, N_TEST = 120, 40


def tiny_protocol(**changes) -> dict:
    """A protocol of synthetic digits on a coarse mesh, as a plain tree."""
    tree = {
        "protocol": "tiny",
        "seeds": 1,
        "tracking": False,
        "tasks": {
            "spherical_mnist": {
                "data": {"source": "synthetic", "level": 3, "n_train": N_TRAIN, "n_test": N_TEST},
                "train": {"epochs": 2, "batch_size": 16, "schedule": "one_cycle"},
            }
        },
    }
    return tree | changes


def tiny_run(model: str = "UGSCNN", setting: str = "N", seed: int = 0, **train) -> RunConfig:
    tree = tiny_protocol(seeds=seed + 1)
    tree["tasks"]["spherical_mnist"]["train"] |= train
    runs = planned_runs(parse_protocol(tree))
    return next(r for r in runs if (r.model, r.setting, r.seed) == (model, setting, seed))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Prepared synthetic digits on the grids of all models at level 3."""
    root = tmp_path_factory.mktemp("data")
    digits = synthetic_digits(N_TRAIN, N_TEST, seed=0)
    for grid in ("icosphere3", "icosphere3-equator", "latlon15"):
        folder = root / tiny_run().data.folder(grid)
        prepare(digits, grid, folder, seed=0)
    return root
