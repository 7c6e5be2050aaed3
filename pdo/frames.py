"""Tangent frames on the sphere, and carrying one to another along a geodesic.

A frame at a point P is the matrix [e1 e2 n] with n = P: the rotation R_P of the paper's chart.
"""

from __future__ import annotations

import numpy as np

from pdo.mesh import Icosphere

MARK = (0.62, 0.25, 0.13)
"""A point of the icosahedron's first face, in barycentric coordinates. On no axis or mirror plane
of the icosahedron and at no vertex, it has 60 images and no vertex but those on an axis is equally
near to two of them (checked for all levels)."""


def default_frames(mesh: Icosphere) -> np.ndarray:
    """The frames (V, 3, 3) that all layers use, columns e1, e2, n: `icosahedral_frames`."""
    return icosahedral_frames(mesh)


def icosahedral_frames(mesh: Icosphere) -> np.ndarray:
    """Frames (V, 3, 3) carried round by the icosahedral group: e1 points to the nearest of the 60
    images of a mark (ours).

    A rotation g of the group carries the image nearest to P to the one nearest to gP, so it carries
    the frame at P to the frame at gP. Only at the 12 five-fold vertices and the 30 edge midpoints
    (the vertices of level 1) several images are equally near; the first is taken, and g carries
    frame to frame up to a multiple of 72 or 180 degrees. The frame depends on the point alone: the
    frames of a coarser mesh are the first ones of a finer.
    """
    images = icosahedral_rotations() @ _first_face_point(MARK)
    nearness = mesh.vertices @ images.T
    ties = nearness > nearness.max(axis=1, keepdims=True) - 1e-9
    return _frames_towards(mesh.vertices, images[np.argmax(ties, axis=1)])


def icosahedral_rotations() -> np.ndarray:
    """The 60 rotations that map the icosphere to itself, (60, 3, 3), the identity first: those that
    carry one directed edge of the icosahedron to each of its 60."""
    mesh = Icosphere(0)
    directed = np.vstack([mesh.edges, mesh.edges[:, ::-1]])
    frames = _frames_towards(mesh.vertices[directed[:, 0]], mesh.vertices[directed[:, 1]])
    return frames @ frames[0].T


def east_north_frames(points: np.ndarray) -> np.ndarray:
    """Right-handed frames (east, north, up) at unit vectors (V, 3): columns of (V, 3, 3).

    At the two poles, where east is undefined, e1 is the x axis projected to the tangent plane.
    """
    z = np.array([0.0, 0.0, 1.0])
    east = np.cross(z, points)
    at_pole = np.linalg.norm(east, axis=1) < 1e-9
    east[at_pole] = np.array([1.0, 0.0, 0.0])
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    return np.stack([east, np.cross(points, east), points], axis=-1)


def transport_angles(frames_to: np.ndarray, frames_from: np.ndarray) -> np.ndarray:
    """theta_PQ: the angle of e1(Q), carried along the geodesic from Q to P, in the frame at P.

    The shortest rotation taking q to p moves a tangent vector v at q to
    v - (p.v) / (1 + p.q) (p + q). Frames (E, 3, 3) at P and at Q, angles (E,) in radians.
    """
    p, q, v = frames_to[..., 2], frames_from[..., 2], frames_from[..., 0]
    scale = np.sum(p * v, axis=-1) / (1 + np.sum(p * q, axis=-1))
    carried = v - scale[..., None] * (p + q)
    along_e1 = np.sum(carried * frames_to[..., 0], axis=-1)
    along_e2 = np.sum(carried * frames_to[..., 1], axis=-1)
    return np.arctan2(along_e2, along_e1)


def _frames_towards(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Frames at `points` whose e1 points along the geodesic to `targets`."""
    e1 = targets - np.sum(points * targets, axis=-1, keepdims=True) * points
    e1 /= np.linalg.norm(e1, axis=-1, keepdims=True)
    return np.stack([e1, np.cross(points, e1), points], axis=-1)


def _first_face_point(barycentric: tuple[float, float, float]) -> np.ndarray:
    mesh = Icosphere(0)
    point = np.array(barycentric) @ mesh.vertices[mesh.faces[0]]
    return point / np.linalg.norm(point)
