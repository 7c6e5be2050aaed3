"""Oracles: scipy's harmonics and rotations, closed forms of Wigner-d, Legendre polynomials."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import eval_legendre, sph_harm_y

from baselines.harmonics import (
    SO3Analysis,
    SO3Synthesis,
    quadrature_weights,
    real_basis,
    real_harmonics,
    real_wigner,
    s2_analysis,
    soft_angles,
    soft_points,
    spherical_harmonics,
    stack_degrees,
    wigner,
    wigner_d,
)
from data_prep.grids import grid_points


def directions(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 2 * np.pi, n), np.arccos(rng.uniform(-1, 1, n))


def euler(rotations: Rotation) -> np.ndarray:
    return rotations.as_euler("ZYZ").T


def unit_vectors(alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(beta) * np.cos(alpha), np.sin(beta) * np.sin(alpha), np.cos(beta)], 1)


def to_angles(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = points.T
    return np.arctan2(y, x), np.arctan2(np.hypot(x, y), z)


def test_harmonics_are_those_of_scipy() -> None:
    alpha, beta = directions(20)
    harmonics = spherical_harmonics(15, alpha, beta)
    assert harmonics.shape == (225, 20)
    for degree in range(15):
        for m in range(-degree, degree + 1):
            expected = sph_harm_y(degree, m, beta, alpha)
            np.testing.assert_allclose(harmonics[degree**2 + degree + m], expected, atol=1e-13)


def test_wigner_d_in_closed_form() -> None:
    """Varshalovich et al., tables 4.4 and 4.5; rows and columns are m, n = -l..l."""
    beta = np.linspace(-1, 4, 7)
    c, s = np.cos(beta), np.sin(beta)
    one = {(1, 1): (1 + c) / 2, (1, 0): -s / np.sqrt(2), (1, -1): (1 - c) / 2, (0, 0): c}
    two = {
        (2, 2): (1 + c) ** 2 / 4,
        (2, 1): -s * (1 + c) / 2,
        (2, 0): np.sqrt(3 / 8) * s**2,
        (2, -1): -s * (1 - c) / 2,
        (2, -2): (1 - c) ** 2 / 4,
        (1, 1): (2 * c**2 + c - 1) / 2,
        (1, 0): -np.sqrt(3 / 2) * s * c,
        (1, -1): (-2 * c**2 + c + 1) / 2,
        (0, 0): (3 * c**2 - 1) / 2,
    }
    np.testing.assert_allclose(wigner_d(0, beta), 1)
    for degree, table in ((1, one), (2, two)):
        d = wigner_d(degree, beta)
        for (m, n), expected in table.items():
            sign = (-1) ** (m - n)
            for row, column, factor in ((m, n, 1), (n, m, sign), (-m, -n, sign), (-n, -m, 1)):
                value = d[:, degree + row, degree + column]
                np.testing.assert_allclose(value, factor * expected, atol=1e-14)


@pytest.mark.parametrize("degree", [0, 1, 4, 29])
def test_wigner_matrices_are_unitary_and_compose_like_rotations(degree: int) -> None:
    first, second = Rotation.random(5, random_state=1), Rotation.random(5, random_state=2)
    for function in (wigner, real_wigner):
        a, b = function(degree, *euler(first)), function(degree, *euler(second))
        product = function(degree, *euler(first * second))
        np.testing.assert_allclose(a @ b, product, atol=1e-11)
        unit = np.broadcast_to(np.eye(2 * degree + 1), a.shape)
        np.testing.assert_allclose(a @ a.conj().swapaxes(1, 2), unit, atol=1e-12)


def test_real_representation_of_degree_1_is_the_rotation_itself() -> None:
    """The harmonics S_1m are proportional to y, z, x."""
    rotations = Rotation.random(6, random_state=3)
    order = [1, 2, 0]
    expected = rotations.as_matrix()[:, order][:, :, order]
    np.testing.assert_allclose(real_wigner(1, *euler(rotations)), expected, atol=1e-14)


def test_coefficients_of_a_turned_signal() -> None:
    """f(R^-1 x), from scipy's harmonics at R^-1 x, has coefficients D(R) a."""
    rng, degree = np.random.default_rng(0), 5
    a = rng.standard_normal(11) + 1j * rng.standard_normal(11)
    rotation, (alpha, beta) = Rotation.random(random_state=4), directions(30)
    before = to_angles(rotation.inv().apply(unit_vectors(alpha, beta)))
    m = np.arange(-degree, degree + 1)
    value = sum(c * sph_harm_y(degree, k, before[1], before[0]) for c, k in zip(a, m, strict=True))
    turned = wigner(degree, *euler(rotation)) @ a
    again = sum(c * sph_harm_y(degree, k, beta, alpha) for c, k in zip(turned, m, strict=True))
    np.testing.assert_allclose(again, value, atol=1e-13)


def test_real_harmonics_are_cosines_and_sines() -> None:
    alpha, beta = directions(10)
    table = real_harmonics(6, alpha, beta)
    assert table.shape == (11, 6, 10)
    for degree in range(6):
        factor = np.sqrt(4 * np.pi / (2 * degree + 1))
        for m in range(-5, 6):
            y = (-1) ** m * sph_harm_y(degree, abs(m), beta, alpha)  # no Condon-Shortley phase
            real = y.real if m == 0 else np.sqrt(2) * (y.real if m > 0 else y.imag)
            expected = factor * real if abs(m) <= degree else np.zeros(10)
            np.testing.assert_allclose(table[5 + m, degree], expected, atol=1e-13)
        basis = real_basis(degree)
        np.testing.assert_allclose(basis @ basis.conj().T, np.eye(2 * degree + 1), atol=1e-15)


def test_stacked_degrees_are_centred() -> None:
    stacked = stack_degrees([np.full((k, k, 2), k) for k in (1, 3, 5)], 2)
    assert stacked.shape == (5, 5, 3, 2)
    for degree in range(3):
        expected = np.pad(np.full((2 * degree + 1,) * 2, 2 * degree + 1), 2 - degree)
        np.testing.assert_array_equal(stacked[:, :, degree, 1], expected)


@pytest.mark.parametrize("bandwidth", [1, 2, 5, 30])
def test_quadrature_is_exact_below_degree_2b_and_not_at_2b(bandwidth: int) -> None:
    """The mean over the sphere of a Legendre polynomial of cos beta is 0, but for degree 0."""
    weights, (_, beta) = quadrature_weights(bandwidth), soft_angles(bandwidth)
    assert weights.min() > 0
    for degree in range(2 * bandwidth):
        mean = weights @ eval_legendre(degree, np.cos(beta))
        assert mean == pytest.approx(int(degree == 0), abs=1e-14)
    assert abs(weights @ eval_legendre(2 * bandwidth, np.cos(beta))) > 1e-3 / bandwidth


@pytest.mark.parametrize("bandwidth", [3, 30])
def test_grid_is_that_of_the_data(bandwidth: int) -> None:
    points = unit_vectors(*soft_points(bandwidth))
    np.testing.assert_allclose(points, grid_points(f"latlon{bandwidth}"), atol=1e-15)


@pytest.mark.parametrize(("bandwidth", "degrees"), [(4, 4), (6, 4), (15, 11)])
def test_analysis_on_the_sphere_recovers_coefficients(bandwidth: int, degrees: int) -> None:
    """Exact for all signals of degree 2 b - degrees, degrees of the signal above `degrees` too."""
    rng, top = np.random.default_rng(0), 2 * bandwidth - degrees
    a = rng.standard_normal((top + 1) ** 2) + 1j * rng.standard_normal((top + 1) ** 2)
    alpha, beta = soft_points(bandwidth)
    index = [(degree, m) for degree in range(top + 1) for m in range(-degree, degree + 1)]
    f = sum(c * sph_harm_y(*lm, beta, alpha) for c, lm in zip(a, index, strict=True))
    found = s2_analysis(bandwidth, degrees) @ f
    np.testing.assert_allclose(found, a[: degrees**2], atol=1e-11)


def random_coefficients(degrees: int, signals: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    blocks = [rng.standard_normal((k, k, signals)) for k in range(1, 2 * degrees, 2)]
    return torch.from_numpy(stack_degrees(blocks, 2))


@pytest.mark.usefixtures("float64")
def test_synthesis_is_the_sum_over_representations() -> None:
    """Against R^l at every rotation of the grid, from the complex Wigner matrices."""
    b, x = 3, random_coefficients(3, 2)
    angle, beta = soft_angles(b)
    grid = np.meshgrid(angle, angle, beta, indexing="ij")
    alpha, gamma, beta = (part.ravel() for part in grid)
    expected = 0
    for degree in range(b):
        part = slice(b - 1 - degree, b + degree)
        r = (2 * degree + 1) * real_wigner(degree, alpha, beta, gamma)
        expected = expected + np.einsum("pmn,mns->ps", r, x[part, part, degree])
    f = SO3Synthesis(b)(x)
    assert f.shape == (2 * b, 2 * b, 2 * b, 2)
    np.testing.assert_allclose(f.reshape(-1, 2), expected, atol=1e-13)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("bandwidth", "degrees"), [(1, 1), (2, 2), (6, 6), (6, 3), (10, 6)])
def test_analysis_on_so3_inverts_synthesis(bandwidth: int, degrees: int) -> None:
    x = random_coefficients(bandwidth, 3)
    kept = slice(bandwidth - degrees, bandwidth + degrees - 1)
    found = SO3Analysis(bandwidth, degrees)(SO3Synthesis(bandwidth)(x))
    torch.testing.assert_close(found, x[kept, kept, :degrees], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_what_lies_outside_a_degree_has_no_effect() -> None:
    x = random_coefficients(4, 1)
    noise = torch.randn_like(x) * (random_coefficients(4, 1) == 0)
    assert noise.abs().max() > 0.1
    torch.testing.assert_close(SO3Synthesis(4)(x + noise), SO3Synthesis(4)(x))
    assert SO3Analysis(4, 4)(torch.randn(8, 8, 8, 1))[x == 0].abs().max() < 1e-15


@pytest.mark.usefixtures("float64")
def test_parseval_on_so3() -> None:
    """mean of f^2 = sum of (2 l + 1) |X^l|^2: the R^l_mn have mean square 1 / (2 l + 1)."""
    b, x = 4, random_coefficients(4, 1)
    f = SO3Synthesis(2 * b)(torch.nn.functional.pad(x, (0, 0, 0, b) + (b, b) * 2))
    mean = f.square().mean(dim=(0, 1))[:, 0] @ torch.from_numpy(quadrature_weights(2 * b))
    power = (x.square().sum(dim=(0, 1, 3)) * (2 * torch.arange(b) + 1)).sum()
    torch.testing.assert_close(mean, power)
