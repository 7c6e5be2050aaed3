"""Ways to estimate derivatives on the icosphere, to be compared by `bench.convergence`.

A family is a fit (`pdo.stencils.StencilSpec`), linear smoothers that every signal passes before the
fit, and a mesh: more combinations than a network offers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from pdo.frames import default_frames, transport_angles
from pdo.mesh import Icosphere
from pdo.operators import complex_operators
from pdo.stencils import GAUSSIAN, PAPER, Stencil, StencilSpec, charts, fit_stencil


@dataclass(frozen=True)
class Smoother:
    """A weighted average over `rings`, with weights that keep polynomials of the chart up to degree
    `exact` as they are at P: the value of a least-squares fit of that degree.

    sigma: width of the Gaussian weights of that fit in mean edges; None weighs all alike.
    area: weigh each vertex by its area too, so that sums come near integrals.
    """

    rings: int = 1
    sigma: float | None = None
    exact: int = 0
    area: bool = False


EQUAL = Smoother()
LINEAR = Smoother(exact=1)
SMOOTH = Smoother(rings=2, sigma=1.0, exact=1, area=True)
"""`pdo.stencils.smoothing_stencil`."""


@dataclass(frozen=True)
class Family:
    """smoothers: applied in turn before the fit. raw_identity: the identity operator sees the
    signal as it was before them. relaxed: on `relaxed_icosphere`."""

    fit: StencilSpec = PAPER
    smoothers: tuple[Smoother, ...] = ()
    raw_identity: bool = False
    relaxed: bool = False

    def mesh(self, level: int) -> Icosphere:
        return relaxed_icosphere(level) if self.relaxed else Icosphere(level)


FAMILIES = {
    "nearest ring (paper)": Family(),
    "2 rings": Family(StencilSpec(2, free_value=True)),
    "3 rings": Family(StencilSpec(3, free_value=True)),
    "2 rings, Gaussian 0.7": Family(StencilSpec(2, 0.7, free_value=True)),
    "2 rings, Gaussian 1": Family(GAUSSIAN),
    "2 rings, Gaussian 1.5": Family(StencilSpec(2, 1.5, free_value=True)),
    "3 rings, Gaussian 1": Family(StencilSpec(3, 1.0, free_value=True)),
    "3 rings, Gaussian 1.5": Family(StencilSpec(3, 1.5, free_value=True)),
    "order 3, 2 rings, Gaussian 1": Family(StencilSpec(2, 1.0, 3, True)),
    "order 3, 3 rings, Gaussian 1.5": Family(StencilSpec(3, 1.5, 3, True)),
    "order 4, 3 rings, Gaussian 1.5": Family(StencilSpec(3, 1.5, 4, True)),
    "equal average": Family(smoothers=(EQUAL,)),
    "equal average, raw identity": Family(smoothers=(EQUAL,), raw_identity=True),
    "equal average twice": Family(smoothers=(EQUAL, EQUAL)),
    "Gaussian 0.6 average": Family(smoothers=(Smoother(sigma=0.6),)),
    "linear average": Family(smoothers=(LINEAR,)),
    "linear average twice": Family(smoothers=(LINEAR, LINEAR)),
    "smoothed (default)": Family(smoothers=(SMOOTH,)),
    "smoothed, raw identity": Family(smoothers=(SMOOTH,), raw_identity=True),
    "smoothed, without areas": Family(smoothers=(Smoother(2, 1.0, exact=1),)),
    "smoothed, Gaussian 0.8": Family(smoothers=(Smoother(2, 0.8, 1, True),)),
    "smoothed, 3 rings, Gaussian 1.25": Family(smoothers=(Smoother(3, 1.25, 1, True),)),
    "quadratic average, 3 rings": Family(smoothers=(Smoother(3, 1.5, exact=2),)),
    "nearest ring, relaxed mesh": Family(relaxed=True),
    "equal average, relaxed mesh": Family(smoothers=(EQUAL,), relaxed=True),
    "smoothed, relaxed mesh": Family(smoothers=(SMOOTH,), relaxed=True),
}


class ModeOperators:
    """The six operators of `pdo.operators.SHIFTS` in a family, unscaled (h = 1), on complex fields
    (V, ...) of one fibre order."""

    def __init__(self, mesh: Icosphere, family: Family) -> None:
        frames = default_frames(mesh)
        self.frames, self.family = frames, family
        self.fit = fit_stencil(mesh, frames, family.fit)
        self.weights = complex_operators(self.fit, 1.0)
        self.smoothers = [smoother_stencil(mesh, frames, s) for s in family.smoothers]

    def smooth(self, field: np.ndarray, n: int) -> np.ndarray:
        for stencil in self.smoothers:
            field = transported(stencil, stencil.weights[:, 0], n) @ field
        return field

    def __call__(self, operators: list[int], field: np.ndarray, n: int) -> list[np.ndarray]:
        """Each operator applied to a field of order n."""
        smooth = self.smooth(field, n)
        return [
            field
            if operator == 0 and self.family.raw_identity
            else transported(self.fit, self.weights[operator], n) @ smooth
            for operator in operators
        ]


def transported(stencil: Stencil, weights: np.ndarray, n: int) -> sparse.csr_array:
    """Matrix (V, V) of one quantity of a stencil on modes of order n."""
    size = stencil.rows[-1] + 1
    entries = weights * np.exp(1j * n * stencil.angles)
    return sparse.csr_array((entries, (stencil.rows, stencil.cols)), shape=(size, size))


def smoother_stencil(mesh: Icosphere, frames: np.ndarray, smoother: Smoother) -> Stencil:
    """w_Q = g_Q p(Q)^T G^-1 e_0 with p = (1, a, b, a^2, ab, b^2) up to degree `exact` in the chart
    at P, G = sum over Q of g p p^T: the value at P of the least-squares fit with weights g."""
    rows, cols, chart = charts(mesh, frames, smoother.rings)
    chart = chart / mesh.mean_edge
    g = np.ones(len(rows))
    if smoother.sigma is not None:
        g = np.exp(-np.sum(chart**2, axis=1) / (2 * smoother.sigma**2))
    if smoother.area:
        g = g * mesh.vertex_areas[cols]
    a, b = chart.T
    powers = [(i, degree - i) for degree in range(smoother.exact + 1) for i in range(degree + 1)]
    p = np.stack([a**i * b**j for i, j in powers], axis=1)
    gram = np.add.reduceat(
        g[:, None, None] * p[:, :, None] * p[:, None, :],
        np.searchsorted(rows, np.arange(len(mesh))),
    )
    first = np.linalg.inv(gram)[:, 0]
    weights = g * np.sum(p * first[rows], axis=1)
    return Stencil(rows, cols, weights[:, None], transport_angles(frames[rows], frames[cols]))


def relaxed_icosphere(level: int, steps: int = 20) -> Icosphere:
    """The icosphere with its kinks ironed out: after each subdivision every vertex moves, `steps`
    times, to the centroid of the faces round it. Keeps the icosahedral symmetry; coarser relaxed
    meshes are no subsets."""
    mesh = Icosphere(0)
    for finer in range(1, level + 1):
        middle = mesh.vertices[mesh.edges].sum(axis=1)
        points = np.vstack([mesh.vertices, _unit(middle)])
        mesh = Icosphere(finer)
        for _ in range(steps):
            corners = points[mesh.faces]
            sides = corners[:, 1:] - corners[:, :1]
            area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
            points = np.zeros_like(points)
            np.add.at(points, mesh.faces, (area[:, None] * corners.mean(axis=1))[:, None])
            points = _unit(points)
        mesh.vertices = points
    return mesh


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=1, keepdims=True)
