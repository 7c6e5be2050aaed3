"""Spherical QM7: for each atom, Coulomb-type potentials of the other atoms on a sphere round it.

The representation is that of Cohen et al., Spherical CNNs (2018). The signal of atom i and element
z in the direction x (a grid point, a unit vector) is

    U_{i,z}(x) = sum over atoms j != i with z_j = z of  z_i z / |p_i + r x - p_j|^power,

positions p and radius r in Bohr. Rotating molecule and grid together changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from data_prep.files import atomic_path, sha256_of_file, write_array, write_json
from data_prep.grids import grid_points
from data_prep.qm7 import ELEMENTS, MoleculeSet, load_qm7

RADII = {"half": 0.5, "whole": 1.0}
"""Radius of the spheres, in least interatomic distances of the data set."""
REASONS = {
    "power": "1 is the Coulomb potential, the paper's formula; 2 is that of the released code",
    "radius": "half the least interatomic distance of the data set is the largest at which no two "
    "spheres intersect, which is the paper's rule: every sphere stays that far from every other "
    "atom, so the signals are bounded. The whole distance is what the released code uses; its "
    "spheres overlap and come arbitrarily near to other atoms",
    "self_exclusion": "index leaves out j = i, as the formula says; nearest is the released code's "
    "trick, which at each grid point leaves atom j out of the sphere that is nearest to it there. "
    "At radius half they agree",
}
BLOCK = 64  # molecules computed at a time: bounds memory


def potentials(
    positions: np.ndarray,
    charges: np.ndarray,
    points: np.ndarray,
    radius: float,
    power: int = 1,
    self_exclusion: Literal["index", "nearest"] = "index",
) -> np.ndarray:
    """Signals of one molecule, (atoms, 5, P) float64, elements in the order of ELEMENTS.

    Args:
        positions: (atoms, 3), Bohr.
        charges: (atoms,) atomic numbers.
        points: (P, 3) unit vectors.
        radius: of the spheres, Bohr.
        power: of the distance in the denominator, 1 or 2.
        self_exclusion: `index`: atom i is left out of its own sphere. `nearest`: at each grid point
            atom j is left out of the sphere i whose point p_i + r x is nearest to p_j, which is its
            own unless spheres overlap.
    """
    positions, charges = positions.astype(float), charges.astype(float)
    between = positions[:, None] - positions  # p_i - p_j
    squared = (between**2).sum(-1)[..., None] + radius**2 + 2 * radius * between @ points.T
    n = len(positions)
    if self_exclusion == "index":
        squared[np.arange(n), np.arange(n)] = np.inf
    else:
        np.put_along_axis(squared, squared.argmin(axis=0, keepdims=True), np.inf, axis=0)
    inverse = 1 / (squared if power == 2 else np.sqrt(squared))
    elements = charges * (charges == np.array(ELEMENTS)[:, None])  # (5, atoms): z_j, or 0
    return charges[:, None, None] * (elements @ inverse)


def least_distance(molecules: MoleculeSet) -> float:
    """The least distance of two atoms of one molecule, Bohr."""
    least = np.inf
    for positions, charges in zip(molecules.positions, molecules.charges, strict=True):
        p = positions[charges > 0].astype(float)
        distances = np.linalg.norm(p[:, None] - p, axis=-1)
        least = min(least, distances[np.triu_indices(len(p), 1)].min())
    return float(least)


def prepare(
    raw: str | Path | MoleculeSet,
    grid: str,
    out_dir: str | Path,
    power: int = 1,
    radius: Literal["half", "whole"] = "half",
    self_exclusion: Literal["index", "nearest"] = "index",
) -> dict[str, Any]:
    """Write the molecules, and their signals on `grid`, to `out_dir`; returns the card.

    Files: `molecules.npz` with `first` (n + 1,) int64, `charges` (A,) uint8, `positions` (A, 3)
    float32, `energies` (n,) float32 and `fold` (n,) uint8: the atoms of all molecules one after
    the other, those of molecule k at first[k]..first[k + 1], no padding; `signals.npy` (A, 5, P),
    not if `grid` is "none"; and, last of all, `card.json`: where it is, the data are complete.

    Signals are not normalised. With radius half they are float16: every atom is at least that
    radius away, so they are far from its largest number, and its relative rounding error is 2^-11.
    With radius whole nothing bounds them, and they are float32.

    Args:
        raw: folder of the raw QM7 file, or the arrays themselves.
        grid: as in `grids.grid_points`, or "none".

    Raises:
        DataError: raw file missing or damaged, disk full.
        ValueError: unknown grid, power, radius or self-exclusion.
    """
    if power not in (1, 2) or radius not in RADII or self_exclusion not in ("index", "nearest"):
        raise ValueError(
            "power must be 1 or 2, radius half or whole, self-exclusion index or nearest, not "
            f"{power}, {radius} and {self_exclusion}"
        )
    points = None if grid == "none" else grid_points(grid)
    molecules = raw if isinstance(raw, MoleculeSet) else load_qm7(raw)
    out_dir = Path(out_dir)
    (out_dir / "card.json").unlink(missing_ok=True)  # from now on the old data are incomplete
    present = molecules.charges > 0
    charges, positions = molecules.charges[present], molecules.positions[present]
    first = np.concatenate([[0], present.sum(axis=1).cumsum()])
    fold = np.empty(len(present), np.uint8)
    for k, members in enumerate(molecules.folds):
        fold[members] = k
    with atomic_path(out_dir / "molecules.npz") as path:
        np.savez(
            path,
            first=first,
            charges=charges,
            positions=positions,
            energies=molecules.energies,
            fold=fold,
        )
    files, signals = ["molecules.npz"], {}
    if points is not None:
        files.append("signals.npy")
        length = RADII[radius] * least_distance(molecules)
        dtype = np.float16 if radius == "half" else np.float32
        extremes = [np.inf, -np.inf]

        def blocks() -> Iterator[np.ndarray]:
            starts = range(0, len(present), BLOCK)
            for start in tqdm(starts, desc=grid, disable=None, leave=False):
                ends = first[start : start + BLOCK + 1]
                atoms = [slice(a, b) for a, b in pairwise(ends)]
                block = np.concatenate(
                    [
                        potentials(positions[a], charges[a], points, length, power, self_exclusion)
                        for a in atoms
                    ]
                )
                extremes[0] = min(extremes[0], float(block[block > 0].min()))
                extremes[1] = max(extremes[1], float(block.max()))
                yield block

        shape = (len(charges), len(ELEMENTS), len(points))
        write_array(out_dir / "signals.npy", shape, dtype, blocks())
        signals = {
            "formula": "sum over atoms j != i with z_j = z of z_i z / |p_i + r x - p_j|^power",
            "power": power,
            "radius": radius,
            "radius_bohr": length,
            "self_exclusion": self_exclusion,
            "reasons": REASONS,
            "elements": list(ELEMENTS),
            "dtype": np.dtype(dtype).name,
            "least_positive": extremes[0],
            "largest": extremes[1],
            "values": "e^2 / Bohr^power, not normalised",
        }
    card = {
        "dataset": molecules.source,
        "raw_sha256": molecules.sha256,
        "grid": grid,
        "points": 0 if points is None else len(points),
        "molecules": len(present),
        "atoms": len(charges),
        "atoms_by_element": {str(z): int((charges == z).sum()) for z in ELEMENTS},
        "folds": [len(members) for members in molecules.folds],
        "units": "Bohr, kcal/mol",
        "signals": signals,
        "sha256": {name: sha256_of_file(out_dir / name) for name in files},
    }
    write_json(out_dir / "card.json", card)
    return card
