"""Frames and parallel transport against the geometry of the sphere."""

import numpy as np

from pdo.frames import east_north_frames, transport_angles, turn_frames
from pdo.mesh import Icosphere, spherical_triangle_areas


def wrap(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi


def random_frames(mesh, seed=0):
    angles = np.random.default_rng(seed).uniform(-np.pi, np.pi, len(mesh))
    return turn_frames(east_north_frames(mesh.vertices), angles)


def test_frames_are_rotations_with_the_vertex_as_normal():
    mesh = Icosphere(3)
    for frames in (east_north_frames(mesh.vertices), random_frames(mesh)):
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
