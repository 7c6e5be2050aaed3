"""A batch of molecules, as networks of atomization energies take it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

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
