"""Omnidirectional segmentation as the engine sees it: Stanford 2D-3D-S and SyntheticRooms."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.config import RunConfig
from bench.errors import RunError
from bench.prepared import describe, open_prepared
from bench.registry import TASKS, columns_of
from bench.segmentation import CLASSES, confusion, scores
from data_prep.stanford import FOLDS, LABELS, RGBD_MEAN, RGBD_STD

IGNORED = tuple(k for k in range(len(LABELS)) if k not in CLASSES)


class Rooms:
    """Panoramas on the sphere (or as images) and what their points show.

    Samples are (4, points) in float32: red, green, blue and depth, normalised with the published
    mean and standard deviation. The test set of a fold is what the published areas hold, upright
    and each panorama turned at random; every tenth of the other panoramas, in an order drawn from
    the data's seed and the fold, is held out for validation.

    The weights of the loss are those of the training panoramas:
    w_c = 1 / ln(1.02 + share of class c among all points), 0 for unknown and missing.
    """

    evaluation_batch = 8

    def __init__(self, run: RunConfig, data_root: Path) -> None:
        entry = TASKS[run.task]
        self.label_smoothing = run.train.label_smoothing
        self.metric, self.higher_is_better = entry.metric, entry.higher_is_better
        folder, card = open_prepared(run, data_root)
        with (folder / "panoramas.csv").open() as file:
            areas = np.array([row["area"] for row in csv.DictReader(file)])
        tested = np.isin(areas, FOLDS[run.setting])
        rng = np.random.default_rng((run.data.seed, int(run.setting.removeprefix("fold"))))
        order = rng.permutation(np.flatnonzero(~tested))[: run.data.n_train]
        test = np.sort(rng.permutation(np.flatnonzero(tested))[: run.data.n_test])
        held_out = np.arange(len(order)) % 10 == 0

        def arrays(prefix: str) -> tuple[np.ndarray, np.ndarray]:
            names = (f"{prefix}rgbd.npy", f"{prefix}labels.npy")
            return tuple(np.load(folder / name, mmap_mode="r") for name in names)

        upright = arrays("")
        self.sets = {
            "train": (*upright, np.sort(order[~held_out])),
            "validation": (*upright, np.sort(order[held_out])),
        }
        self.tests = columns_of(run.task, run.setting)
        for column in self.tests:
            source = arrays("rotated_") if column.endswith("rotated") else upright
            self.sets[column] = (*source, test)
        self.weights = class_weights(self.sets["train"])
        self.facts = describe(card, {name: chosen for name, (_, _, chosen) in self.sets.items()})
        self.facts["class_weights"] = dict(zip(LABELS, self.weights.tolist(), strict=True))
        self.mean = torch.tensor(RGBD_MEAN)[:, None]
        self.std = torch.tensor(RGBD_STD)[:, None]

    def fit(self, model: nn.Module) -> None:
        """Nothing: these networks take no statistics from the training set before training."""

    def size(self, name: str) -> int:
        """Panoramas in the set `train`, `validation` or a test column."""
        return len(self.sets[name][2])

    def batch(self, name: str, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Panoramas of a set by position: (B, 4, points) float32 and labels (B, points).

        Raises:
            RunError: if a signal is not finite.
        """
        rgbd, labels, indices = self.sets[name]
        chosen = indices[positions]
        x = torch.from_numpy(rgbd[chosen]).float()
        if not torch.isfinite(x).all():
            bad = chosen[~torch.isfinite(x).flatten(1).all(dim=1).numpy()][0]
            raise RunError(f"panorama {bad} of set {name} is not finite: prepare the data again")
        return (x - self.mean) / self.std, torch.from_numpy(labels[chosen]).long()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Weighted cross entropy of (B, 15, points) with label smoothing, mean over the points that
        show a class."""
        weights = self.weights.to(output)
        shown = torch.where(weights[target] > 0, target, -100)  # smoothing would count the others
        return functional.cross_entropy(
            output, shown, weight=weights, label_smoothing=self.label_smoothing
        )

    def predict(self, output: Tensor) -> Tensor:
        """The most likely of the 13 classes at each point; never unknown or missing."""
        output = output.clone()
        output[:, IGNORED] = -torch.inf
        return output.argmax(dim=1)

    @staticmethod
    def score(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Mean IoU and mean accuracy over the classes, and the mean IoU without the points that
        show none, all accumulated over the set, in percent."""
        return scores(confusion(predictions, targets))


def class_weights(train: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Tensor:
    """1 / ln(1.02 + share of a class among all points of the training panoramas); 0 for unknown
    and missing (Jiang et al. 2019, whose shares are of all data). Shape (15,)."""
    _, labels, chosen = train
    counts = np.zeros(len(LABELS), np.int64)
    for k in chosen:
        counts += np.bincount(labels[k].ravel(), minlength=len(LABELS))
    weights = 1 / np.log(1.02 + counts / counts.sum())
    weights[list(IGNORED)] = 0
    return torch.from_numpy(weights).float()
