"""Synthetic molecules: seeded random geometries in QM7's format, for runs with no download.

They exercise the same code as QM7; results on them are named 'synthetic molecules' and are never
compared with published numbers. Their energies are no chemistry.
"""

from __future__ import annotations

import hashlib

import numpy as np

from data_prep.qm7 import ARRAYS, ELEMENTS, FOLDS, MoleculeSet

MOST_ATOMS = 23
FEWEST_ATOMS = 4
LEAST_DISTANCE, BOND = 1.9, (1.9, 2.9)
"""Bohr: no two atoms are nearer; each atom is bound to an earlier one at a distance in BOND."""
SHARES = (0.56, 0.32, 0.06, 0.05, 0.01)
"""How often each of ELEMENTS occurs, about as in QM7."""
ATOM_ENERGIES = (-60.0, -150.0, -110.0, -100.0, -90.0)
"""Of each of ELEMENTS, kcal/mol."""


def synthetic_molecules(n: int, seed: int = 0) -> MoleculeSet:
    """Draw `n` molecules of 4 to 23 atoms: chains and trees of random elements.

    The energy is a sum over atoms plus one over pairs of -20 exp(-(d - 1.9)) sqrt(z z'), d in Bohr:
    what a network can learn of it beyond the composition is in the geometry. As in QM7, the folds
    are stratified: of every five molecules next in energy each goes to another fold.

    Raises:
        ValueError: n is not a positive multiple of 5.
    """
    if n < 1 or n % FOLDS:
        raise ValueError(f"the number of molecules must be a positive multiple of 5, not {n}")
    rng = np.random.default_rng(seed)
    positions = np.zeros((n, MOST_ATOMS, 3), np.float32)
    charges = np.zeros((n, MOST_ATOMS), np.uint8)
    energies = np.empty(n, np.float32)
    for k in range(n):
        atoms = rng.integers(FEWEST_ATOMS, MOST_ATOMS + 1)
        kinds = rng.choice(len(ELEMENTS), atoms, p=SHARES)
        z, p = np.take(ELEMENTS, kinds), _grow(atoms, rng)
        charges[k, :atoms], positions[k, :atoms] = z, p
        distances = np.linalg.norm(p[:, None] - p, axis=-1)[np.triu_indices(atoms, 1)]
        weights = np.sqrt(np.outer(z, z))[np.triu_indices(atoms, 1)]
        pairs = -20 * (np.exp(LEAST_DISTANCE - distances) * weights).sum()
        energies[k] = np.take(ATOM_ENERGIES, kinds).sum() + pairs
    groups = np.argsort(energies).reshape(-1, FOLDS)
    folds = np.sort(rng.permuted(groups, axis=1).T, axis=1).astype(np.int64)
    arrays = (positions, charges, energies, folds)
    sha256 = {
        name: hashlib.sha256(array.data).hexdigest()
        for name, array in zip(ARRAYS, map(np.ascontiguousarray, arrays), strict=True)
    }
    return MoleculeSet(*arrays, source="synthetic molecules", sha256=sha256)


def _grow(atoms: int, rng: np.random.Generator) -> np.ndarray:
    """Positions (atoms, 3): one atom after the other, each beside an earlier one, none too near."""
    placed = np.zeros((1, 3))
    while len(placed) < atoms:
        direction = rng.standard_normal(3)
        step = rng.uniform(*BOND) * direction / np.linalg.norm(direction)
        candidate = placed[rng.integers(len(placed))] + step
        if np.linalg.norm(placed - candidate, axis=1).min() >= LEAST_DISTANCE:
            placed = np.vstack([placed, candidate])
    return placed
