"""Oracles: trimesh's angles and areas, calculus on the sphere, and the rotations of the mesh."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import trimesh
from scipy import sparse

from baselines.mesh_operators import (
    cotangent_laplacian,
    east_north_derivatives,
    face_areas,
    face_average,
    face_fields,
    face_gradients,
    face_normals,
)
from pdo.mesh import Icosphere

LEVELS = (2, 3, 4)

# name: (degree l, value, derivative to the east, derivative to the north) in x, y, z, r = cos lat
HARMONICS = {
    "x": (1, lambda x, y, z, r: x, lambda x, y, z, r: -y / r, lambda x, y, z, r: -z * x / r),
    "y": (1, lambda x, y, z, r: y, lambda x, y, z, r: x / r, lambda x, y, z, r: -z * y / r),
    "z": (1, lambda x, y, z, r: z, lambda x, y, z, r: 0 * x, lambda x, y, z, r: r),
    "xy": (
        2,
        lambda x, y, z, r: x * y,
        lambda x, y, z, r: (x**2 - y**2) / r,
        lambda x, y, z, r: -2 * z * x * y / r,
    ),
    "xyz": (
        3,
        lambda x, y, z, r: x * y * z,
        lambda x, y, z, r: z * (x**2 - y**2) / r,
        lambda x, y, z, r: x * y * (r**2 - 2 * z**2) / r,
    ),
    "5z3-3z": (
        3,
        lambda x, y, z, r: 5 * z**3 - 3 * z,
        lambda x, y, z, r: 0 * x,
        lambda x, y, z, r: (15 * z**2 - 3) * r,
    ),
}


def coordinates(mesh: Icosphere) -> tuple[np.ndarray, ...]:
    """x, y, z and the distance from the axis, kept off zero at the poles."""
    x, y, z = mesh.vertices.T
    return x, y, z, np.maximum(np.hypot(x, y), 1e-300)


def as_trimesh(mesh: Icosphere) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def test_faces_agree_with_trimesh() -> None:
    mesh = Icosphere(3)
    other = as_trimesh(mesh)
    np.testing.assert_allclose(face_areas(mesh), other.area_faces, rtol=1e-12)
    np.testing.assert_allclose(face_normals(mesh), other.face_normals, atol=1e-12)


def test_cotangent_laplacian_agrees_with_a_loop_over_the_angles_of_trimesh() -> None:
    mesh = Icosphere(2)
    expected = np.zeros((len(mesh), len(mesh)))
    for face, angles in zip(mesh.faces, as_trimesh(mesh).face_angles, strict=True):
        for k in range(3):
            i, j = face[(k + 1) % 3], face[(k + 2) % 3]
            weight = 0.5 / np.tan(angles[k])
            expected[[i, j], [j, i]] += weight
            expected[[i, j], [i, j]] -= weight
    np.testing.assert_allclose(cotangent_laplacian(mesh).toarray(), expected, atol=1e-12)


@pytest.mark.parametrize("level", [0, 3])
def test_laplacian_is_minus_the_dirichlet_energy_of_the_face_gradient(level: int) -> None:
    mesh = Icosphere(level)
    gradients = face_gradients(mesh)
    energy = gradients.T @ sparse.diags_array(np.repeat(face_areas(mesh), 3)) @ gradients
    assert abs(cotangent_laplacian(mesh) + energy).max() < 1e-13


def test_laplacian_is_symmetric_and_negative_with_the_constants_as_kernel() -> None:
    laplacian = cotangent_laplacian(Icosphere(2))
    assert abs(laplacian - laplacian.T).max() == 0
    eigenvalues = np.linalg.eigvalsh(laplacian.toarray())
    assert abs(eigenvalues[-1]) < 1e-13
    assert eigenvalues[-2] < -0.1


@pytest.mark.parametrize("level", [0, 2, 5])
def test_constants_are_annihilated(level: int) -> None:
    mesh = Icosphere(level)
    operators = [cotangent_laplacian(mesh), face_gradients(mesh), *east_north_derivatives(mesh)]
    for operator in operators:
        assert abs(operator.sum(axis=1)).max() < 1e-14 * abs(operator).max()
    np.testing.assert_allclose(face_average(mesh).sum(axis=1), 1, rtol=1e-14)


def test_face_average_is_weighted_by_area() -> None:
    """So it keeps the integral of any face values: faces by area, vertices by a third of theirs."""
    mesh = Icosphere(3)
    areas, values = face_areas(mesh), np.random.default_rng(0).standard_normal(len(mesh.faces))
    round_vertex = np.bincount(mesh.faces.ravel(), np.repeat(areas, 3)) / 3
    total = round_vertex @ (face_average(mesh) @ values)
    assert total == pytest.approx(areas @ values, rel=1e-11)
    assert face_average(mesh).data.min() > 0


def test_face_gradient_of_a_linear_function_is_its_tangential_part() -> None:
    """On a flat face the gradient of p -> a.p is exactly a - (a.n) n."""
    mesh = Icosphere(2)
    a, n = np.array([0.3, -1.1, 0.7]), face_normals(mesh)
    gradient = (face_gradients(mesh) @ (mesh.vertices @ a)).reshape(-1, 3)
    np.testing.assert_allclose(gradient, a - np.outer(n @ a, np.ones(3)) * n, atol=1e-13)


def test_face_fields_are_tangent_orthogonal_and_point_east_and_north() -> None:
    mesh = Icosphere(4)
    east, north = face_fields(mesh)
    for field in (east, north):
        assert abs(np.sum(field * face_normals(mesh), axis=1)).max() < 1e-13
    assert abs(np.sum(east * north, axis=1)).max() < 1e-13

    x, y, z = mesh.vertices[mesh.faces].mean(axis=1).T
    keep = abs(z) < 0.87
    true_east = np.column_stack([-y, x, 0 * z]) / np.hypot(x, y)[:, None]
    assert abs(east - true_east)[keep].max() < 0.05  # nowhere near the wrong sign or length
    assert north[keep][:, 2].min() > 0


@pytest.mark.parametrize("name", HARMONICS)
def test_derivatives_of_harmonics_converge(name: str) -> None:
    """Largest error between 60 degrees south and north is O(h): about halved at each level."""
    _, value, to_east, to_north = HARMONICS[name]
    errors = []
    for level in LEVELS:
        mesh = Icosphere(level)
        at = coordinates(mesh)
        keep = at[3] > 0.5
        east, north = east_north_derivatives(mesh)
        error_east = abs(east @ value(*at) - to_east(*at))[keep].max()
        error_north = abs(north @ value(*at) - to_north(*at))[keep].max()
        errors.append(max(error_east, error_north) / abs(value(*at)).max())
    assert all(fine < 0.7 * coarse for coarse, fine in pairwise(errors))
    assert errors[-1] < 0.06


@pytest.mark.parametrize("name", HARMONICS)
def test_laplacian_of_harmonics_converges(name: str) -> None:
    """L f / area -> -l (l + 1) f in the mean square (at the 12 five-fold vertices it stays off)."""
    degree, value, *_ = HARMONICS[name]
    errors = []
    for level in LEVELS:
        mesh = Icosphere(level)
        f, area = value(*coordinates(mesh)), mesh.vertex_areas
        eigenvalue = degree * (degree + 1)
        residual = cotangent_laplacian(mesh) @ f / area + eigenvalue * f
        errors.append(np.sqrt(area @ residual**2 / (area @ f**2)) / eigenvalue)
    assert all(fine < 0.6 * coarse for coarse, fine in pairwise(errors))
    assert errors[-1] < 0.02


def test_totals_converge_to_integrals_over_the_sphere() -> None:
    """Area 4 pi; |grad z|^2 -> 8 pi / 3; dz/dlat -> pi^2; dz/deast = 0 by symmetry. O(h^2) all."""
    errors = []
    for level in LEVELS:
        mesh = Icosphere(level)
        z = mesh.vertices[:, 2]
        round_vertex = np.bincount(mesh.faces.ravel(), np.repeat(face_areas(mesh), 3)) / 3
        east, north = east_north_derivatives(mesh)
        assert abs(round_vertex @ (east @ z)) < 1e-13
        totals = round_vertex.sum(), -z @ cotangent_laplacian(mesh) @ z, round_vertex @ (north @ z)
        errors.append(np.array(totals) / [4 * np.pi, 8 * np.pi / 3, np.pi**2] - 1)
    ratios = np.array(errors[:-1]) / errors[1:]
    assert ((ratios > 3.5) & (ratios < 4.5)).all()
    assert abs(errors[-1]).max() < 2e-3


def test_operators_commute_with_the_rotations_of_the_mesh_about_the_axis() -> None:
    """Turned by 72 degrees the upright icosphere falls on itself, and so does each operator."""
    mesh = Icosphere(3)
    angle = 2 * np.pi / 5
    c, s = np.cos(angle), np.sin(angle)
    turned = mesh.vertices @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    to = np.argmax(turned @ mesh.vertices.T, axis=1)
    np.testing.assert_allclose(mesh.vertices[to], turned, atol=1e-12)
    for operator in (cotangent_laplacian(mesh), *east_north_derivatives(mesh)):
        dense = operator.toarray()
        np.testing.assert_allclose(dense[np.ix_(to, to)], dense, atol=1e-11)
