"""PDO-eS2CNN for atomization energies (Table 3): at most 400,000 parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from baselines.molecules import ELEMENTS, AtomSum
from pdo.networks import PDOeS2CNN

WIDTHS = ((12, 24), (48, 64), (100,))


class MoleculePDOeS2CNN(AtomSum):
    """`AtomSum` of the invariants of a PDO-eS2CNN on the signal round each atom.

    Exactly invariant to the 60 rotations of the icosahedron, to others up to the discretisation.

    Args:
        level: icosphere level of the signals.
        widths: fields of its layers, see `PDOeS2CNN`.

    Shapes: Molecules with signals (A, 5, 10 * 4^level + 2) -> (B,), kcal/mol.

    Raises:
        ValueError: if the level is too coarse for the widths.
    """

    def __init__(self, level: int = 2, widths: Sequence[Sequence[int]] = WIDTHS) -> None:
        trunk = PDOeS2CNN(level, widths, channels=len(ELEMENTS))
        trunk.head = nn.Identity()  # the invariants themselves
        super().__init__(trunk, widths[-1][-1])
