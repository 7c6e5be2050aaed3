"""QM7 as the engine sees it: atomization energies, five-fold cross-validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.molecules import Molecules
from bench.config import RunConfig
from bench.errors import RunError
from bench.prepared import describe, open_prepared
from bench.registry import TASKS, columns_of
from data_prep.qm7 import ELEMENTS


class QM7:
    """Molecules and their atomization energies in kcal/mol.

    The test set of setting fold<k> is the published fold k. Of the other four, in an order drawn
    from the data's seed and k, every tenth molecule is held out for validation; with fewer training
    molecules (`n_train`) the first ones of that order are taken, so that smaller sets are parts of
    larger ones. So do the first of an order of the test fold make a smaller test set (`n_test`).
    """

    metric = TASKS["qm7"].metric
    higher_is_better = TASKS["qm7"].higher_is_better
    evaluation_batch = 32

    def __init__(self, run: RunConfig, data_root: Path) -> None:
        folder, card = open_prepared(run, data_root)
        with np.load(folder / "molecules.npz") as file:
            self.first, self.energies = file["first"], file["energies"]
            self.charges, self.positions = file["charges"].astype(np.int64), file["positions"]
            fold_of = file["fold"]
        signals = folder / "signals.npy"
        self.signals = None if card["grid"] == "none" else np.load(signals, mmap_mode="r")
        self.tests = columns_of(run.task, run.setting)
        train, validation, test = split(run, fold_of)
        self.sets = {"train": train, "validation": validation, **dict.fromkeys(self.tests, test)}
        self.facts = describe(card, self.sets)
        self.scale = 1.0

    def fit(self, model: Any) -> None:
        """Show the network the training molecules, without signals, and their energies, from which
        it takes its statistics; the loss is in units of its `scale`.

        Raises:
            RunError: if the network cannot take these molecules.
        """
        chosen = self.sets["train"]
        molecules, energies = self._molecules(chosen, None), self.energies[chosen]
        try:
            model.fit(molecules, torch.from_numpy(energies))
        except ValueError as error:
            raise RunError(f"the network cannot take these molecules: {error}") from error
        self.scale = float(model.scale)

    def size(self, name: str) -> int:
        """Molecules in the set `train`, `validation` or the test column."""
        return len(self.sets[name])

    def batch(self, name: str, positions: np.ndarray) -> tuple[Molecules, Tensor]:
        """Molecules of a set by position, and their energies (B,).

        Raises:
            RunError: if a signal is not finite.
        """
        chosen = self.sets[name][positions]
        molecules = self._molecules(chosen, self.signals)
        if molecules.signals is not None and not torch.isfinite(molecules.signals).all():
            raise RunError(f"a signal of set {name} is not finite: prepare the data again")
        return molecules, torch.from_numpy(self.energies[chosen])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error in units of the network's scale."""
        return ((output.float() - target) / self.scale).square().mean()

    def predict(self, output: Tensor) -> Tensor:
        """The energies, kcal/mol."""
        return output

    @staticmethod
    def score(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Root mean square and mean absolute error, kcal/mol."""
        error = predictions.astype(float) - targets
        return {
            QM7.metric: float(np.sqrt(np.mean(error**2))),
            "mae_kcal_per_mol": float(np.mean(np.abs(error))),
        }

    def _molecules(self, chosen: np.ndarray, signals: np.ndarray | None) -> Molecules:
        sizes = self.first[chosen + 1] - self.first[chosen]
        atoms = np.concatenate([np.arange(self.first[k], self.first[k + 1]) for k in chosen])
        signals = None if signals is None else signals[atoms]
        return in_one_batch(sizes, self.charges[atoms], self.positions[atoms], signals)


def split(run: RunConfig, fold_of: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sorted indices of a run's training, validation and test molecules, from the fold
    of every molecule, (n,)."""
    fold = int(run.setting.removeprefix("fold"))
    rng = np.random.default_rng((run.data.seed, fold))
    order = rng.permutation(np.flatnonzero(fold_of != fold))[: run.data.n_train]
    test = rng.permutation(np.flatnonzero(fold_of == fold))[: run.data.n_test]
    held_out = np.arange(len(order)) % 10 == 0
    return np.sort(order[~held_out]), np.sort(order[held_out]), np.sort(test)


def in_one_batch(
    sizes: np.ndarray, charges: np.ndarray, positions: np.ndarray, signals: np.ndarray | None
) -> Molecules:
    """Molecules of so many atoms each (B,), from charges (A,), positions (A, 3) in Bohr and signals
    (A, 5, P) of all their atoms, one molecule after the other; in the default precision."""
    molecule = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    numbers = torch.from_numpy(charges)
    real = torch.get_default_dtype()
    of_element = (numbers[:, None] == torch.tensor(ELEMENTS)).to(real)
    return Molecules(
        signals=None if signals is None else torch.from_numpy(signals).to(real),
        molecule=molecule,
        charges=numbers,
        positions=torch.from_numpy(positions).to(real),
        counts=torch.zeros(len(sizes), len(ELEMENTS)).index_add_(0, molecule, of_element),
    )
