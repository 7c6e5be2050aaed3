"""Derivatives of a signal at mesh vertices, by least squares from its values nearby.

In the paper's chart at P (orthographic along the frame: a = e1.Q, b = e2.Q) the Taylor expansion
f(Q) = f + a d1 + b d2 + a^2/2 d11 + ab d12 + b^2/2 d22 + O(rho^3) is fitted to the values at the
vertices within some rings of P. The fit is linear in those values: its coefficients are the
stencil.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import factorial

import numpy as np

from pdo.frames import transport_angles
from pdo.mesh import Icosphere

DERIVATIVES = ("value", "d1", "d2", "d11", "d12", "d22")


@dataclass(frozen=True)
class StencilSpec:
    """How derivatives are estimated.

    rings: neighbours within this many edges enter the fit.
    sigma: width of the Gaussian weights exp(-(rho / sigma h)^2 / 2) of the squared residuals, in
        mean edges h; None weighs all neighbours alike.
    order: degree of the fitted polynomial (2 as in the paper, or more).
    free_value: fit f(P) too, instead of demanding that the polynomial pass through it (the paper).
        The fitted value then replaces the identity operator: it is a smoothed one.
    smoothing_rings: first smooth each signal over so many rings (`smoothing_stencil`); the fit, and
        the identity operator, see the smooth one.

    Raises:
        ValueError: if the degree is below 2, there are no rings, sigma is not above 0, or the
            rings to smooth over are below 0.
    """

    rings: int = 1
    sigma: float | None = None
    order: int = 2
    free_value: bool = False
    smoothing_rings: int = 0

    def __post_init__(self) -> None:
        if self.order < 2 or self.rings < 1:
            raise ValueError(
                "second derivatives need a polynomial of degree 2 and a ring of neighbours at "
                f"least, not degree {self.order} and {self.rings} rings"
            )
        if self.sigma is not None and self.sigma <= 0:
            raise ValueError(f"sigma must be above 0, not {self.sigma}")
        if self.smoothing_rings < 0:
            raise ValueError(f"smoothing_rings must be at least 0, not {self.smoothing_rings}")


PAPER = StencilSpec()
"""The paper's fit: six (five) nearest neighbours, polynomial through the centre."""
GAUSSIAN = StencilSpec(rings=2, sigma=1.0, free_value=True)
"""Two rings, Gaussian weights, free constant term."""
SMOOTHED = StencilSpec(smoothing_rings=2)
"""Two-ring smoothing shared by all operators of a layer, then the paper's fit: least sensitive to
rotations at 0.9 of GAUSSIAN's time (docs/operator.md)."""
STENCILS = {"paper": PAPER, "gaussian": GAUSSIAN, "smoothed": SMOOTHED}


@dataclass(frozen=True)
class Stencil:
    """Linear maps from the values at vertices Q (`cols`) to quantities at vertices P (`rows`).

    rows, cols: (E,) vertex indices, sorted by rows.
    weights: (E, K), one column for each quantity.
    angles: (E,) transport angles theta_PQ: a fibre mode of order n at Q counts e^{i n theta} at P.
    """

    rows: np.ndarray
    cols: np.ndarray
    weights: np.ndarray
    angles: np.ndarray


def charts(
    mesh: Icosphere, frames: np.ndarray, rings: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a vertex P and one Q within `rings` of it (P itself included), sorted by P: the
    indices of P and of Q, (E,) each, and Q in the chart at P, (E, 2). The chart folds at the
    horizon, a quarter of a turn from P: vertices beyond, which only the coarsest meshes have so
    near, are left out."""
    near = mesh.neighbourhood(rings)
    rows = np.repeat(np.arange(len(mesh)), np.diff(near.indptr))
    cols = near.indices.astype(np.int64)
    seen = np.einsum("ei,ei->e", mesh.vertices[rows], mesh.vertices[cols]) > 1e-9
    rows, cols = rows[seen], cols[seen]
    return rows, cols, np.einsum("eji,ej->ei", frames[rows][..., :2], mesh.vertices[cols])


def fit_stencil(mesh: Icosphere, frames: np.ndarray, spec: StencilSpec) -> Stencil:
    """Stencil of the six quantities value, d1, d2, d11, d12, d22 at every vertex: weights (E, 6),
    derivatives per radian along the axes of the frames (V, 3, 3). Smoothing is left to others.

    Source: Shen, Shen, Lin, Ma (AAAI 2021) for `PAPER`; the other fits are ours.

    Raises:
        ValueError: if the neighbours are too few for the polynomial.
    """
    rows, cols, chart = charts(mesh, frames, spec.rings)
    weights = np.zeros((len(rows), len(DERIVATIVES)))
    counts = np.bincount(rows)
    starts = np.cumsum(counts) - counts
    for count in np.unique(counts):  # vertices with equally many neighbours are solved together
        entries = starts[counts == count, None] + np.arange(count)
        is_centre = cols[entries] == rows[entries]
        solve = _fit_free if spec.free_value else _fit_through_centre
        weights[entries] = solve(chart[entries], is_centre, mesh.mean_edge, spec)
    angles = transport_angles(frames[rows], frames[cols])
    return Stencil(rows, cols, weights, angles)


def smoothing_stencil(mesh: Icosphere, frames: np.ndarray, rings: int = 2) -> Stencil:
    """Smooth values (one quantity, weights (E, 1)): those at P of a linear least-squares fit over
    `rings`, with weights exp(-(rho / h)^2 / 2) times the areas of the vertices, h the mean edge.

    The fit keeps linear functions of the chart as they are. A plain average does not on this mesh,
    whose kinks shift its centre from vertex to vertex by O(h^2): a second derivative of that does
    not converge (ours; docs/operator.md).

    Raises:
        ValueError: if there are no rings.
    """
    if rings < 1:
        raise ValueError(f"smoothing takes one ring at least, not {rings}")
    rows, cols, chart = charts(mesh, frames, rings)
    chart = chart / mesh.mean_edge
    design = np.column_stack([np.ones(len(rows)), chart])
    weights = np.exp(-np.sum(chart**2, axis=1) / 2) * mesh.vertex_areas[cols]
    moments = np.zeros((len(mesh), 3, 3))
    np.add.at(moments, rows, weights[:, None, None] * design[:, :, None] * design[:, None, :])
    value = np.linalg.inv(moments)[rows, 0]  # the fit's constant term from its right-hand side
    weights = weights * np.einsum("ei,ei->e", value, design)
    return Stencil(rows, cols, weights[:, None], transport_angles(frames[rows], frames[cols]))


def layer_stencils(
    mesh: Icosphere, frames: np.ndarray, spec: StencilSpec, transport: bool
) -> tuple[Stencil | None, Stencil]:
    """What a layer applies, one after the other: the smoother, if there is one, and the fit.

    Raises:
        ValueError: if the neighbours are too few for the polynomial.
    """
    rings = spec.smoothing_rings
    smooth = smoothing_stencil(mesh, frames, rings) if rings > 0 else None
    fit = fit_stencil(mesh, frames, spec)
    if transport:
        return smooth, fit
    return smooth and without_transport(smooth), without_transport(fit)


def midpoint_stencil(coarse: Icosphere, frames: np.ndarray) -> Stencil:
    """Values (one quantity) at the vertices of the next finer mesh, whose frames are given, from
    those of `coarse`: the value itself, and at the new vertices, one on each edge, the mean of
    the two ends."""
    ends = coarse.edges.ravel()
    new = len(coarse) + np.repeat(np.arange(len(coarse.edges)), 2)
    rows, cols = np.concatenate([np.arange(len(coarse)), new]), np.r_[np.arange(len(coarse)), ends]
    weights = np.where(rows == cols, 1.0, 0.5)[:, None]
    return Stencil(rows, cols, weights, transport_angles(frames[rows], frames[cols]))


def without_transport(stencil: Stencil) -> Stencil:
    """The stencil with all transport angles 0: it takes neighbouring frames as if they agreed."""
    return replace(stencil, angles=np.zeros_like(stencil.angles))


def restrict(stencil: Stencil, n_rows: int) -> Stencil:
    """The stencil at the first `n_rows` vertices only: those of a coarser mesh."""
    keep = stencil.rows < n_rows
    return replace(
        stencil,
        rows=stencil.rows[keep],
        cols=stencil.cols[keep],
        weights=stencil.weights[keep],
        angles=stencil.angles[keep],
    )


def _monomials(chart: np.ndarray, order: int) -> np.ndarray:
    """a^p b^q / (p! q!) up to degree `order`, so that coefficients are derivatives; by degree."""
    a, b = chart[..., 0], chart[..., 1]
    powers = [(degree - q, q) for degree in range(order + 1) for q in range(degree + 1)]
    return np.stack([a**p * b**q / (factorial(p) * factorial(q)) for p, q in powers], axis=-1)


def _residual_weights(chart: np.ndarray, edge: float, spec: StencilSpec) -> np.ndarray:
    """Square roots of the weights of the squared residuals."""
    if spec.sigma is None:
        return np.ones(chart.shape[:-1])
    rho = np.linalg.norm(chart, axis=-1) / (spec.sigma * edge)
    return np.exp(-(rho**2) / 4)


def _solve(design: np.ndarray, weights: np.ndarray, neighbours: int) -> np.ndarray:
    """Rows of the weighted pseudo-inverse for the six quantities, (G, neighbours, n)."""
    if design.shape[-2] < design.shape[-1]:
        raise ValueError(
            f"{neighbours} neighbours are too few to fit {design.shape[-1]} coefficients: "
            "take more rings or a lower order"
        )
    scale = np.abs(design).max(axis=(0, 1))  # columns of h^0..h^order: balance before inverting
    weighted = design / scale * weights[..., None]
    if np.linalg.matrix_rank(weighted).min() < design.shape[-1]:
        raise ValueError(
            f"the neighbours do not determine {design.shape[-1]} coefficients, most count next to "
            "nothing: take a larger sigma"
        )
    inverse = np.linalg.pinv(weighted) / scale[:, None]
    return np.swapaxes(inverse * weights[:, None, :], -1, -2)


def _fit_free(
    chart: np.ndarray, is_centre: np.ndarray, edge: float, spec: StencilSpec
) -> np.ndarray:
    design = _monomials(chart, spec.order)
    return _solve(design, _residual_weights(chart, edge, spec), chart.shape[1])[..., :6]


def _fit_through_centre(
    chart: np.ndarray, is_centre: np.ndarray, edge: float, spec: StencilSpec
) -> np.ndarray:
    """Fit f(Q) - f(P) without a constant term; the value itself is f(P)."""
    groups, count = is_centre.shape
    ring = chart[~is_centre].reshape(groups, count - 1, 2)
    design = _monomials(ring, spec.order)[..., 1:]
    solution = _solve(design, _residual_weights(ring, edge, spec), count - 1)[..., :5]
    weights = np.zeros((groups, count, 6))
    weights[~is_centre, 1:] = solution.reshape(-1, 5)
    weights[is_centre, 1:] = -solution.sum(axis=1)
    weights[is_centre, 0] = 1
    return weights
