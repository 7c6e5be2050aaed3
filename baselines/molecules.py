"""Molecules, and what all networks of atomization energies share: they look at each atom, add up
over the atoms of a molecule, and say how far it is from what its composition predicts."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from pdo.precision import full_precision

ELEMENTS = (1, 6, 7, 8, 16)
"""Atomic numbers of H, C, N, O, S, in the order of all axes of elements."""


@dataclass
class Molecules:
    """A batch of molecules, the atoms of one after those of another; nothing is padded.

    signals: (A, 5, P), signal round each atom of what the atoms of each element do there: the sum
        over atoms j of that element of z_i z_j / distance^power. None for networks without any.
    molecule: (A,) int64, ascending: which molecule of the batch an atom belongs to.
    charges: (A,) int64, atomic numbers.
    positions: (A, 3), Bohr.
    counts: (B, 5), atoms of each element.
    """

    signals: Tensor | None
    molecule: Tensor
    charges: Tensor
    positions: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    def to(self, device: torch.device | str) -> Molecules:
        """The same molecules on a device."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return Molecules(*(None if t is None else t.to(device) for t in tensors))


class AtomSum(nn.Module):
    """Atomization energies from spherical signals (DeepSets on the residual of the composition, as
    Cohen et al. 2018):

    energy = weights . counts + constant + scale * psi(sum over atoms i of phi(a_i, e_i)),

    a_i the network's rotation-invariant features of atom i's signal, e_i its element (one of five;
    ours). phi has 160 and 150 units, psi 100 and 50, and both begin with batch norm. Signals are
    divided by the charges in them, z_i and the element's: those of unit charges are left, of order
    1 / Bohr.

    `fit` has to come before training; it sets buffers, which the state dict holds.

    Args:
        atoms: (A, 5, P) -> (A, invariants), each atom by itself.
        invariants: their number.

    Shapes: Molecules of B molecules with signals -> (B,), kcal/mol.
    """

    def __init__(self, atoms: nn.Module, invariants: int) -> None:
        super().__init__()
        self.atoms = atoms
        self.phi = nn.Sequential(
            nn.BatchNorm1d(invariants + len(ELEMENTS)),
            nn.Linear(invariants + len(ELEMENTS), 160),
            nn.ReLU(),
            nn.Linear(160, 150),
            nn.ReLU(),
        )
        self.psi = nn.Sequential(
            nn.BatchNorm1d(150),
            nn.Linear(150, 100),
            nn.ReLU(),
            nn.Linear(100, 50),
            nn.ReLU(),
            nn.Linear(50, 1),
        )
        self.register_buffer("elements", torch.tensor(ELEMENTS), persistent=False)
        self.register_buffer("weights", torch.zeros(len(ELEMENTS)))
        self.register_buffer("constant", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def fit(self, molecules: Molecules, energies: Tensor) -> None:
        """Least squares of the energies (B,) on the numbers of atoms and a constant (the shortest
        solution, where an element is missing), and the standard deviation of what they leave."""
        counts, energies = molecules.counts.double().cpu(), energies.double().cpu()
        design = torch.cat([counts, torch.ones(len(counts), 1, dtype=torch.float64)], dim=1)
        solution = torch.linalg.lstsq(design, energies[:, None], driver="gelsd").solution
        self.weights.copy_(solution[:-1, 0])
        self.constant.copy_(solution[-1, 0])
        self.scale.copy_((energies - design @ solution[:, 0]).square().mean().sqrt())

    def forward(self, molecules: Molecules) -> Tensor:
        features = self.invariants(molecules)
        with full_precision(features):
            composition = molecules.counts.to(features.dtype) @ self.weights + self.constant
            return composition + self.scale * self.psi(features)[:, 0]

    def invariants(self, molecules: Molecules) -> Tensor:
        """Sum of phi over the atoms of each molecule: (B, 150).

        Raises:
            ValueError: if molecules have no signals, or atoms of other elements than `ELEMENTS`.
        """
        own = molecules.charges[:, None]
        if molecules.signals is None:
            raise ValueError("molecules without signals: prepare them on the network's grid")
        known = torch.isin(own, self.elements)
        if not known.all():
            others = own[~known].unique().tolist()
            raise ValueError(f"atoms of the numbers {others}: only H, C, N, O and S are known")
        signals = molecules.signals / (own * self.elements)[:, :, None]
        invariants = self.atoms(signals).to(signals.dtype)
        with full_precision(invariants):
            element = (own == self.elements).to(invariants.dtype)
            features = self.phi(torch.cat([invariants, element], dim=1))
        total = features.new_zeros(len(molecules), features.shape[1])
        return total.index_add(0, molecules.molecule, features)
