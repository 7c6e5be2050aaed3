"""Stencils are exact on polynomials of the chart and converge on harmonics."""

import numpy as np
import pytest

from pdo.frames import east_north_frames
from pdo.mesh import Icosphere
from pdo.stencils import (
    GAUSSIAN,
    PAPER,
    StencilSpec,
    charts,
    fit_stencil,
    restrict,
    smoothing_stencil,
)

MESH = Icosphere(3)
FRAMES = east_north_frames(MESH.vertices)


def apply(stencil, values):
    """sum over neighbours of weight * value, (V, K)."""
    out = np.zeros((stencil.rows.max() + 1, stencil.weights.shape[1]))
    np.add.at(out, stencil.rows, stencil.weights * values[:, None])
    return out


@pytest.mark.parametrize(
    "spec",
    [
        PAPER,
        GAUSSIAN,
        StencilSpec(rings=2),
        StencilSpec(rings=3, sigma=1.5, order=4, free_value=True),
        StencilSpec(rings=2, order=3),
    ],
)
def test_exact_on_quadratics_of_the_chart(spec):
    stencil = fit_stencil(MESH, FRAMES, spec)
    chart = np.einsum("eji,ej->ei", FRAMES[stencil.rows][..., :2], MESH.vertices[stencil.cols])
    a, b = chart.T
    want = np.array([0.7, -1.1, 0.4, 2.0, -0.6, 1.3])
    values = want @ np.stack([np.ones_like(a), a, b, a**2 / 2, a * b, b**2 / 2])
    got = apply(stencil, values)
    np.testing.assert_allclose(got, np.tile(want, (len(MESH), 1)), atol=1e-9)


def test_quartic_fit_is_exact_on_quartics_where_the_quadratic_is_not():
    def error(spec):
        stencil = fit_stencil(MESH, FRAMES, spec)
        chart = np.einsum("eji,ej->ei", FRAMES[stencil.rows][..., :2], MESH.vertices[stencil.cols])
        return np.abs(apply(stencil, chart[:, 0] ** 4 - chart[:, 0] ** 3)).max()

    assert error(StencilSpec(rings=3, order=4)) < 1e-9
    assert error(StencilSpec(rings=3, order=2)) > 1e-3


@pytest.mark.parametrize("spec", [PAPER, GAUSSIAN])
def test_gradient_and_laplacian_of_a_harmonic_converge(spec):
    """f = x y + z: exact gradient and Laplacian -6 x y - 2 z; errors fall at least as h."""

    def errors(level):
        mesh = Icosphere(level)
        frames = east_north_frames(mesh.vertices)
        x, y, z = mesh.vertices.T
        stencil = fit_stencil(mesh, frames, spec)
        got = apply(stencil, (x * y + z)[stencil.cols])
        gradient = np.stack([y, x, np.ones_like(z)], axis=1)
        want = np.einsum("vji,vj->vi", frames[..., :2], gradient)
        laplacian = got[:, 3] + got[:, 5] - (-6 * x * y - 2 * z)
        return np.array(
            [np.sqrt(np.mean((got[:, 1:3] - want) ** 2)), np.sqrt(np.mean(laplacian**2))]
        )

    coarse, fine = errors(3), errors(4)
    assert (fine < coarse / 1.9).all()
    assert (fine < [0.03, 0.1]).all()


def test_through_the_centre_keeps_the_value_and_free_fit_smooths_it():
    noise = np.random.default_rng(0).standard_normal(len(MESH))
    kept = fit_stencil(MESH, FRAMES, PAPER)
    np.testing.assert_allclose(apply(kept, noise[kept.cols])[:, 0], noise, atol=1e-12)
    free = fit_stencil(MESH, FRAMES, GAUSSIAN)
    assert apply(free, noise[free.cols])[:, 0].std() < 0.7


@pytest.mark.parametrize(("level", "rings"), [(0, 2), (0, 3), (1, 3), (1, 4)])
def test_no_chart_reaches_beyond_the_horizon(level, rings):
    """There another vertex, on the near side, has the same place in it."""
    mesh = Icosphere(level)
    frames = east_north_frames(mesh.vertices)
    assert (mesh.neighbourhood(rings) != 0).sum() > len(charts(mesh, frames, rings)[0])
    smooth = smoothing_stencil(mesh, frames, rings)
    for stencil in (fit_stencil(mesh, frames, StencilSpec(rings=rings)), smooth):
        cosines = np.sum(mesh.vertices[stencil.rows] * mesh.vertices[stencil.cols], axis=1)
        assert cosines.min() > 1e-9
        assert np.isfinite(stencil.weights).all()
        assert np.isfinite(stencil.angles).all()


def test_smoothing_on_the_icosahedron_is_that_of_its_ring():
    """Harmonics of degree 1 and 2 there: P and its ring, sum of weights times P_l(cosine)."""
    mesh = Icosphere(0)
    stencil = smoothing_stencil(mesh, east_north_frames(mesh.vertices))
    ring = 1 / np.sqrt(5)
    rho2 = (1 - ring**2) / mesh.mean_edge**2
    weight = np.exp(-rho2 / 2)
    for values, legendre in (
        (mesh.vertices[:, 2], ring),
        (mesh.vertices[:, 2] ** 2 - 1 / 3, (3 * ring**2 - 1) / 2),
    ):
        factor = (1 + 5 * weight * legendre) / (1 + 5 * weight)
        got = apply(stencil, values[stencil.cols])[:, 0]
        np.testing.assert_allclose(got, factor * values, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"order": 1}, {"rings": 0}])
def test_a_fit_needs_a_quadratic_and_neighbours(wrong):
    with pytest.raises(ValueError, match="second derivatives need"):
        StencilSpec(**wrong)


def test_too_few_neighbours():
    with pytest.raises(ValueError, match=r"do not determine 6 coefficients.* larger sigma"):
        fit_stencil(MESH, FRAMES, StencilSpec(rings=2, sigma=0.05, free_value=True))
    with pytest.raises(ValueError, match="too few to fit 14 coefficients"):
        fit_stencil(MESH, FRAMES, StencilSpec(rings=1, order=4))


@pytest.mark.parametrize("rings", [1, 2])
def test_smoothing_keeps_linear_functions_of_the_chart(rings):
    stencil = smoothing_stencil(MESH, FRAMES, rings)
    a, b = np.einsum("eji,ej->ei", FRAMES[stencil.rows][..., :2], MESH.vertices[stencil.cols]).T
    np.testing.assert_allclose(apply(stencil, 2 + 3 * a - b), 2, atol=1e-12)
    noise = np.random.default_rng(0).standard_normal(len(MESH))
    assert apply(stencil, noise[stencil.cols]).std() < 0.5


def test_laplacian_of_the_smoothed_signal_converges():
    """Where a plain average's would not: z^2 - 1/3 has eigenvalue 6."""

    def error(level):
        mesh = Icosphere(level)
        frames = east_north_frames(mesh.vertices)
        z = mesh.vertices[:, 2]
        smooth = smoothing_stencil(mesh, frames)
        fit = fit_stencil(mesh, frames, PAPER)
        signal = apply(smooth, (z**2 - 1 / 3)[smooth.cols])[:, 0]
        derivatives = apply(fit, signal[fit.cols])
        laplacian = derivatives[:, 3] + derivatives[:, 5] + 6 * (z**2 - 1 / 3)
        return np.sqrt(np.mean(laplacian**2))

    assert error(5) < error(4) / 1.8 < error(3) / 3.6
    assert error(5) < 0.02


def test_restriction():
    stencil = smoothing_stencil(MESH, FRAMES)
    coarse = restrict(stencil, len(Icosphere(2)))
    x = np.random.default_rng(0).standard_normal(len(MESH))
    np.testing.assert_array_equal(
        apply(coarse, x[coarse.cols]), apply(stencil, x[stencil.cols])[: len(Icosphere(2))]
    )
