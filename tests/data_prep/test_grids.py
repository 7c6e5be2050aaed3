from __future__ import annotations

import numpy as np
import pytest

from data_prep.grids import grid_points
from pdo.mesh import Icosphere

NAMES = ["icosphere0", "icosphere3", "icosphere3-equator", "latlon6", "latlon6-dh"]


@pytest.mark.parametrize("name", NAMES)
def test_unit_vectors(name):
    points = grid_points(name)
    assert points.dtype == np.float64 and points.shape[1] == 3
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-14)


def test_icosphere_is_the_mesh():
    np.testing.assert_array_equal(grid_points("icosphere3"), Icosphere(3).vertices)
    assert len(grid_points("icosphere4")) == 2562


def test_equator_pose_is_a_rotation_that_brings_the_south_pole_to_the_equator():
    vertices, points = Icosphere(3).vertices, grid_points("icosphere3-equator")
    rotation = np.linalg.lstsq(vertices, points, rcond=None)[0].T
    np.testing.assert_allclose(rotation, [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation @ [0, -1, 0], [0, 0, -1], atol=1e-12)


@pytest.mark.parametrize(("name", "kept"), [("icosphere3", False), ("icosphere3-equator", True)])
def test_a_half_turn_of_upright_signals_permutes_the_points_of_the_equator_pose(name, kept):
    points = grid_points(name)
    distances = np.linalg.norm(points[:, None] - points * [-1, -1, 1], axis=2).min(axis=0)
    assert (distances.max() < 1e-12) == kept


@pytest.mark.parametrize(("name", "first"), [("latlon6", np.pi / 24), ("latlon6-dh", 0.0)])
def test_latlon_angles(name, first):
    points = grid_points(name).reshape(12, 12, 3)
    beta = np.arccos(np.clip(points[..., 2], -1, 1))
    np.testing.assert_allclose(beta, (first + np.arange(12) * np.pi / 12)[:, None] + np.zeros(12))
    alpha = np.arctan2(points[5, :, 1], points[5, :, 0]) % (2 * np.pi)
    np.testing.assert_allclose(alpha, np.arange(12) * np.pi / 6, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("icospere4", "did you mean 'icosphere4'"),
        ("icosphere", "did you mean 'icosphere4'"),
        ("icosphere4-equater", "did you mean 'icosphere4-equator'"),
        ("latlong30", "did you mean 'latlon30'"),
        ("latlon30-equator", "did you mean 'latlon30"),
        ("icosphere4-dh", "did you mean 'icosphere4'"),
        ("healpix", "grids are icosphere<L>, "),
        ("", "grids are icosphere<L>, "),
        ("icosphere4\n", "did you mean 'icosphere4'"),
    ],
)
def test_unknown_name(name, hint):
    with pytest.raises(ValueError, match="unknown grid") as error:
        grid_points(name)
    assert hint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["icosphere8", "icosphere99-equator", "latlon0", "latlon9999-dh"])
def test_out_of_range(name):
    with pytest.raises(ValueError, match=rf"grid '{name}': the \w+ must be in [01]\.\.\d+"):
        grid_points(name)
