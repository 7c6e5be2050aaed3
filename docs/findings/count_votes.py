"""Print the table of votes in sampling-leak.md: `python docs/findings/count_votes.py FOLDER`.

FOLDER holds the raw files of MNIST (`python -m data_prep fetch mnist --out FOLDER`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.edition import EXAMINED, examine
from data_prep.grids import grid_points
from data_prep.mnist import load_mnist
from data_prep.spherical_mnist import (
    EDITIONS,
    Edition,
    haar_rotations,
    sample_rotated,
    to_bytes,
)

GRIDS = ("latlon15", "latlon30-dh", "latlon60-dh", "icosphere3", "icosphere4", "icosphere5")


def votes(images: np.ndarray, grid: str, edition: Edition, rotated: bool) -> str:
    """Return the share of right / wrong votes of images (n, 28, 28), in per cent."""
    points, counts = grid_points(grid), dict.fromkeys(EDITIONS, 0)
    rng = np.random.default_rng(0)
    for start in range(0, len(images), EXAMINED):  # so many at once are all examined
        block = images[start : start + EXAMINED]
        rotations = np.broadcast_to(np.eye(3), (len(block), 3, 3))
        if rotated:
            rotations = haar_rotations(len(block), rng)
        samples = sample_rotated(block, rotations, points, edition)
        found = examine(grid, to_bytes(samples, edition))
        counts = {name: counts[name] + found[name] for name in EDITIONS}
    right = counts.pop(edition)
    (wrong,) = counts.values()
    return f"{100 * right / len(images):.1f} / {100 * wrong / len(images):.1f}"


def main(folder: str) -> None:
    """Print a row of votes for each grid."""
    images = load_mnist(folder).test_images
    for grid in GRIDS:
        kinds = [(rotated, edition) for rotated in (False, True) for edition in EDITIONS]
        cells = [votes(images, grid, edition, rotated) for rotated, edition in kinds]
        print(f"| {grid} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
