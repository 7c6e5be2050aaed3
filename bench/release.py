"""Trained networks for the package: copied from recorded runs into pdo/pretrained/."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from scipy.spatial.transform import Rotation

from baselines.inputs import MNIST_MEAN, MNIST_STD
from bench.config import RunConfig, validated
from bench.errors import RunError
from bench.record import recorded_folder
from bench.registry import MODELS
from data_prep.files import write_bytes, write_json
from data_prep.grids import grid_points
from pdo.mesh import Icosphere
from pdo.pretrained import FOLDER

RELEASED = {
    "pdo-es2cnn-small-mnist": "corrected/spherical_mnist/PDO-eS2CNN-small/N/seed0",
}
"""Name in the package -> the recorded run it comes from. Another network is one line here."""

TRAINED_ON = {"N": "upright digits", "R": "randomly rotated digits"}


def release(results: Path, out: Path = FOLDER) -> list[Path]:
    """Write the weights of all released networks and index.json; returns the paths.

    Raises:
        RunError: if a run is not recorded, or not from a clean commit.
    """
    index, paths = {}, []
    for name, key in RELEASED.items():
        index[name], weights = entry(results, name, key)
        paths.append(out / index[name]["weights"])
        write_bytes(paths[-1], weights)
    paths.append(out / "index.json")
    write_json(paths[-1], index)
    return paths


def entry(results: Path, name: str, key: str) -> tuple[dict[str, Any], bytes]:
    """What the index says of one network, and its weights.

    Raises:
        RunError: if the run is not recorded, or not from a clean commit.
    """
    folder = recorded_folder(results, key)
    if not (folder / "weights.safetensors").is_file():
        protocol, _, _ = key.partition("/")
        raise RunError(f"{folder} holds no weights: `python -m bench record --protocol {protocol}`")
    run = validated(RunConfig, yaml.safe_load((folder / "config.yaml").read_text()), "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    provenance = json.loads((folder / "provenance.json").read_text())
    if provenance["git_dirty"] is not False:
        raise RunError(f"{folder} does not come from a clean commit")
    points = grid_points(provenance["data"]["card"]["grid"])
    pose = Rotation.align_vectors(points, Icosphere(run.data.level).vertices)[0].as_matrix()
    weights = (folder / "weights.safetensors").read_bytes()
    build = MODELS[run.task, run.network].build
    return {
        "weights": f"{name}.safetensors",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "parameters": metrics["parameters"],
        "trained_on": f"{TRAINED_ON[run.setting]}, spherical MNIST",
        "network": {**getattr(build, "keywords", {}), "level": run.data.level, **run.options},
        "input": {
            "values": "grey levels 0..255, 0 = background, 255 = ink",
            "points": f"vertices of icosphere level {run.data.level}, turned by the pose",
            "pose": (pose.round(12) + 0).tolist(),
            "projection": provenance["data"]["card"]["projection"],
            "edition": provenance["data"]["card"]["edition"],
            "scale": 255,
            "mean": MNIST_MEAN,
            "std": MNIST_STD,
        },
        "training_samples": provenance["data"]["counts"]["train"],
        "measured": {
            column: {**scores, "test_samples": provenance["data"]["counts"][column]}
            for column, scores in metrics["test"].items()
        },
        "run": run.key,
        "config_sha256": run.hash,
        "commit": provenance["git_commit"],
    }, weights
