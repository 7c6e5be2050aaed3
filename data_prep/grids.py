"""The sets of points at which a spherical signal is sampled, by name."""

from __future__ import annotations

import difflib
import re

import numpy as np

from pdo.mesh import MAX_LEVEL, Icosphere

MAX_BANDWIDTH = 512
PATTERNS = ("icosphere<L>", "icosphere<L>-equator", "latlon<b>", "latlon<b>-dh", "planar<L>")


def grid_points(name: str) -> np.ndarray:
    """Sampling points of the grid `name`, (P, 3) float64 unit vectors.

    - `icosphere<L>`: vertices of `pdo.mesh.Icosphere(L)`, P = 10 * 4^L + 2.
    - `icosphere<L>-equator`: the same vertices in `equator_pose`.
    - `latlon<b>`: the 2b x 2b grid of Kostelec & Rockmore's SOFT, beta_j = (2j + 1) pi / (4b),
      alpha_k = k pi / b, point j * 2b + k = (sin beta cos alpha, sin beta sin alpha, cos beta).
    - `latlon<b>-dh`: Driscoll & Healy's, beta_j = j pi / (2b): the north pole 2b times.
    - `planar<L>`: pixels of a panorama of H = 8 * 2^L rows and 2H columns, see `pixel_directions`.

    Raises:
        ValueError: unknown name (says the nearest one), level or bandwidth out of range.
    """
    match = re.fullmatch(r"(icosphere|latlon|planar)(\d+)(-equator|-dh)?", name)
    forbidden = ("icosphere-dh", "latlon-equator", "planar-equator", "planar-dh")
    if not match or f"{match[1]}{match[3]}" in forbidden:
        known = [re.sub(r"<.>", "30" if p.startswith("lat") else "4", p) for p in PATTERNS]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"unknown grid {name!r}: {hint}grids are {', '.join(PATTERNS)}")
    number = int(match[2])
    if match[1] == "latlon":
        if not 1 <= number <= MAX_BANDWIDTH:
            raise ValueError(f"grid {name!r}: the bandwidth must be in 1..{MAX_BANDWIDTH}")
        return _latlon(number, offset=0.0 if match[3] else 0.5)
    if number > MAX_LEVEL:
        raise ValueError(f"grid {name!r}: the level must be in 0..{MAX_LEVEL}")
    if match[1] == "planar":
        return pixel_directions(8 * 2**number)
    points = Icosphere(number).vertices
    if match[3]:
        points = equator_pose(points)
    return points


def equator_pose(vertices: np.ndarray) -> np.ndarray:
    """Where the vertices (V, 3) of a mesh read a signal that is to lie on the equator: turned by 90
    degrees about x, (x, y, z) -> (x, -z, y). What lies at the south pole of the signal thus appears
    at (0, -1, 0), the middle of an edge of the icosahedron: for operators that are singular at the
    poles, and for meshes that a half turn about that point maps to themselves."""
    x, y, z = vertices.T
    return np.column_stack([x, -z, y])


def pixel_directions(rows: int) -> np.ndarray:
    """Where the pixels of an equirectangular panorama of H = `rows` rows and 2H columns look, row
    by row: (2 H^2, 3) float64 unit vectors.

    Row i has the polar angle (i + 1/2) pi / H. Columns go to the right as seen from inside:
    column j has the azimuth pi - (j + 1/2) pi / H, so that the middle looks along x.
    """
    beta = (np.arange(rows) + 0.5) * np.pi / rows
    alpha = np.pi - (np.arange(2 * rows) + 0.5) * np.pi / rows
    beta, alpha = (angle.ravel() for angle in np.meshgrid(beta, alpha, indexing="ij"))
    return np.column_stack(
        [np.sin(beta) * np.cos(alpha), np.sin(beta) * np.sin(alpha), np.cos(beta)]
    )


def _latlon(bandwidth: int, offset: float) -> np.ndarray:
    steps = np.arange(2 * bandwidth)
    beta = np.pi * (steps + offset) / (2 * bandwidth)
    alpha = np.pi * steps / bandwidth
    beta, alpha = (angle.ravel() for angle in np.meshgrid(beta, alpha, indexing="ij"))
    return np.column_stack(
        [np.sin(beta) * np.cos(alpha), np.sin(beta) * np.sin(alpha), np.cos(beta)]
    )
