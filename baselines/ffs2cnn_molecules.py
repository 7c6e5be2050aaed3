"""FFS2CNN, the Clebsch-Gordan net, for atomization energies (Kondor, Lin, Trivedi, NeurIPS 2018;
Table 3). Degrees and channels of the published network are not known to us: those here are ours."""

from __future__ import annotations

from torch import Tensor

from baselines.ffs2cnn import FragmentNet
from baselines.molecules import ELEMENTS, AtomSum

BANDWIDTH = 10
LAYERS = [[20] * 5, [20] * 5, [64]]
"""Fragments of degrees 0..4 after each of three layers; of the last, of degree 0 only."""


class AtomFragments(FragmentNet):
    """`FragmentNet` that gives its invariants."""

    def forward(self, x: Tensor) -> Tensor:
        return self.invariants(x)


class MoleculeFFS2CNN(AtomSum):
    """`AtomSum` of the invariants of a Clebsch-Gordan net on the signal round each atom.

    Args:
        level: of the task's meshes; without effect, the grid is latlon10 at any.

    Shapes: Molecules with signals (A, 5, 400) -> (B,), kcal/mol.
    """

    def __init__(self, level: int = 2) -> None:
        atoms = AtomFragments(BANDWIDTH, len(ELEMENTS), LAYERS)
        super().__init__(atoms, atoms.n_invariants)
