"""Tangent frames on the sphere, and carrying one to another along a geodesic.

A frame at a point P is the matrix [e1 e2 n] with n = P: the rotation R_P of the paper's chart.
"""

from __future__ import annotations

import numpy as np


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


def turn_frames(frames: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turn the frame at each vertex by angles (V,) in its tangent plane (a change of gauge):
    e1' = cos(a) e1 + sin(a) e2."""
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    e1, e2, n = frames[..., 0], frames[..., 1], frames[..., 2]
    return np.stack([c * e1 + s * e2, c * e2 - s * e1, n], axis=-1)


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
