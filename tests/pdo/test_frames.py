"""Frames and parallel transport against the geometry of the sphere."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from pdo.frames import (
    default_frames,
    east_north_frames,
    icosahedral_frames,
    icosahedral_rotations,
    transport_angles,
)
from pdo.mesh import Icosphere, spherical_triangle_areas
from tests.pdo.gauges import turn_frames


def wrap(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi


def random_frames(mesh, seed=0):
    angles = np.random.default_rng(seed).uniform(-np.pi, np.pi, len(mesh))
    return turn_frames(east_north_frames(mesh.vertices), angles)


def test_frames_are_rotations_with_the_vertex_as_normal():
    mesh = Icosphere(3)
    for frames in (
        east_north_frames(mesh.vertices),
        random_frames(mesh),
        icosahedral_frames(mesh),
    ):
        np.testing.assert_allclose(
            frames @ frames.transpose(0, 2, 1), np.tile(np.eye(3), (len(mesh), 1, 1)), atol=1e-12
        )
        np.testing.assert_allclose(np.linalg.det(frames), 1)
        np.testing.assert_array_equal(frames[..., 2], mesh.vertices)


def test_transport_is_antisymmetric():
    mesh = Icosphere(3)
    frames, (i, j) = random_frames(mesh), mesh.edges.T
    there, back = transport_angles(frames[i], frames[j]), transport_angles(frames[j], frames[i])
    np.testing.assert_allclose(wrap(there + back), 0, atol=1e-12)


def test_transport_along_the_equator_and_a_meridian_keeps_east():
    t = np.linspace(0.1, 1.2, 5)
    for points in (
        np.stack([np.cos(t), np.sin(t), 0 * t], axis=1),
        np.stack([np.cos(t), 0 * t, np.sin(t)], axis=1),
    ):
        frames = east_north_frames(points)
        np.testing.assert_allclose(transport_angles(frames[1:], frames[:-1]), 0, atol=1e-12)


def test_holonomy_round_a_face_is_its_area():
    """Carrying a vector counter-clockwise round a triangle turns it by the enclosed area."""
    for level in (0, 2, 4):
        mesh = Icosphere(level)
        f = random_frames(mesh, seed=level)[mesh.faces.T]
        turn = (
            transport_angles(f[1], f[0])
            + transport_angles(f[2], f[1])
            + transport_angles(f[0], f[2])
        )
        area = spherical_triangle_areas(mesh.vertices[mesh.faces])
        np.testing.assert_allclose(wrap(turn - area), 0, atol=1e-12)


def test_icosahedral_rotations_are_a_group_of_sixty():
    """Proper rotations, closed under products and inverses, all different, with the traces of the
    classes: 1 identity, 15 half turns, 20 thirds, 12 fifths, 12 twice fifths."""
    rotations = icosahedral_rotations()
    np.testing.assert_allclose(rotations[0], np.eye(3), atol=1e-15)
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    flat = cKDTree(rotations.reshape(60, 9))
    products = np.einsum("gij,hjk->ghik", rotations, rotations).reshape(60, 60, 9)
    distance, which = flat.query(products)
    assert distance.max() < 1e-14
    for table in (which, which.T):  # every row and column a permutation
        np.testing.assert_array_equal(np.sort(table, axis=1), np.tile(np.arange(60), (60, 1)))
    distance, _ = flat.query(rotations.transpose(0, 2, 1).reshape(60, 9))
    assert distance.max() < 1e-14
    golden = (1 + np.sqrt(5)) / 2
    traces = np.trace(rotations, axis1=1, axis2=2)
    for trace, count in [(3, 1), (-1, 15), (0, 20), (golden, 12), (1 - golden, 12)]:
        assert np.isclose(traces, trace).sum() == count


@pytest.mark.parametrize("level", [0, 1, 3, 5])
def test_the_group_carries_the_frames_but_at_the_vertices_on_its_axes(level):
    """At these, the vertices of level 1, frames agree up to multiples of 72 or 180 degrees."""
    mesh = Icosphere(level)
    frames, tree = icosahedral_frames(mesh), cKDTree(mesh.vertices)
    ambiguous = np.zeros(len(mesh), dtype=bool)
    for rotation in icosahedral_rotations():
        distance, image = tree.query(mesh.vertices @ rotation.T)
        assert distance.max() < 1e-13
        turn = transport_angles(frames[image], rotation @ frames)
        ambiguous |= np.abs(turn) > 1e-9
        np.testing.assert_allclose(wrap(5 * turn[:12]), 0, atol=1e-9)
        np.testing.assert_allclose(wrap(2 * turn[12:42]), 0, atol=1e-9)
    np.testing.assert_array_equal(np.flatnonzero(ambiguous), np.arange(min(42, len(mesh))))


def test_frames_of_a_coarser_mesh_come_first():
    """Bit for bit: pooling takes its rows from the finer mesh."""
    fine = default_frames(Icosphere(5))
    for level in range(5):
        coarse = default_frames(Icosphere(level))
        np.testing.assert_array_equal(coarse, fine[: len(coarse)])
