"""A task gives the engine its samples, its loss and its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.inputs import MNIST_MEAN, MNIST_STD
from bench.config import Data, RunConfig
from bench.errors import RunError
from bench.prepared import describe, open_prepared
from bench.registry import TASKS, columns_of
from bench.tasks_qm7 import QM7
from bench.tasks_rooms import Rooms
from data_prep.spherical_mnist import stratified_subset


class SphericalMNIST:
    """Digits on the sphere. Samples are (1, points) in float32, normalised as usual for MNIST.

    Training and validation digits are upright (setting N), rotated (R), or on tangent planes
    (Omni). The test sets are those of the table's columns that share this training: N/N and N/R,
    or R/R, or Omni.
    """

    metric = TASKS["spherical_mnist"].metric
    higher_is_better = TASKS["spherical_mnist"].higher_is_better
    evaluation_batch = 128

    def __init__(self, run: RunConfig, data_root: Path) -> None:
        folder, card = open_prepared(run, data_root)
        self.label_smoothing = run.train.label_smoothing
        split = np.load(folder / "split.npz")
        train_labels = np.load(folder / "train_labels.npy").astype(np.int64)
        test_labels = np.load(folder / "test_labels.npy").astype(np.int64)
        train, validation = split["train"], split["validation"]
        test = chosen_test_digits(run.data, test_labels)
        n_train, seed = run.data.n_train, run.data.seed
        total = len(train) + len(validation)
        if n_train is not None and n_train < total:
            held_out = round(n_train * len(validation) / total)
            validation = stratified_subset(train_labels, validation, held_out, seed)
            train = stratified_subset(train_labels, train, n_train - held_out, seed)

        def signals(name: str) -> np.ndarray:
            return np.load(folder / f"{name}.npy", mmap_mode="r")

        source = signals(f"train_{run.setting}")
        self.sets: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {
            "train": (source, train_labels, train),
            "validation": (source, train_labels, validation),
        }
        self.tests = columns_of(run.task, run.setting)
        for column in self.tests:
            self.sets[column] = (signals(f"test_{column.split('/')[-1]}"), test_labels, test)
        self.facts = describe(card, {name: chosen for name, (_, _, chosen) in self.sets.items()})

    def fit(self, model: nn.Module) -> None:
        """Nothing: these networks take no statistics from the training set before training."""

    def size(self, name: str) -> int:
        """Samples in the set `train`, `validation` or a test column."""
        return len(self.sets[name][2])

    def batch(self, name: str, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        """Samples of a set by position: signals (B, 1, points) float32 and labels (B,).

        Raises:
            RunError: if a signal is not finite.
        """
        signals, labels, indices = self.sets[name]
        chosen = indices[positions]
        x = torch.from_numpy(np.ascontiguousarray(signals[chosen])).float()
        if not torch.isfinite(x).all():
            bad = chosen[~torch.isfinite(x).all(dim=1).numpy()][0]
            raise RunError(f"signal {bad} of set {name} is not finite: prepare the data again")
        return x.div_(255).sub_(MNIST_MEAN).div_(MNIST_STD)[:, None], torch.from_numpy(
            labels[chosen]
        )

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy with label smoothing, mean over the batch."""
        return functional.cross_entropy(output, target, label_smoothing=self.label_smoothing)

    def predict(self, output: Tensor) -> Tensor:
        """The predicted class of each sample."""
        return output.argmax(dim=1)

    @staticmethod
    def score(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Accuracy in percent."""
        return {SphericalMNIST.metric: 100 * float(np.mean(predictions == targets))}


def chosen_test_digits(data: Data, labels: np.ndarray) -> np.ndarray:
    """Return the indices of the test digits that a run sees, from the labels of all, (n,)."""
    every = np.arange(len(labels))
    if data.n_test is None or data.n_test >= len(labels):
        return every
    return stratified_subset(labels, every, data.n_test, data.seed)


TASK_CLASSES: dict[str, Any] = {
    "spherical_mnist": SphericalMNIST,
    "qm7": QM7,
    "stanford_2d3ds": Rooms,
    "synthetic_rooms": Rooms,
}
