"""Differential operators of linear finite elements on a mesh of the sphere, as sparse matrices.

A signal has one value per vertex and is linear on every flat face. North and east are carried by
the face fields of UGSCNN (Jiang et al., ICLR 2019), which are singular at the two poles.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from pdo.mesh import Icosphere


def face_areas(mesh: Icosphere) -> np.ndarray:
    """Areas of the flat faces, |(b - a) x (c - a)| / 2, (F,)."""
    return np.linalg.norm(_face_cross(mesh), axis=1) / 2


def face_normals(mesh: Icosphere) -> np.ndarray:
    """Outward unit normals of the flat faces, (F, 3)."""
    cross = _face_cross(mesh)
    return cross / np.linalg.norm(cross, axis=1, keepdims=True)


def face_gradients(mesh: Icosphere) -> sparse.csr_array:
    """Gradient on every face, (3 F, V); row 3 f + d is component d on face f.

    grad f = sum over corners i of f_i n x e_i / (2 A), with e_i the side opposite corner i, run
    through counter-clockwise, n the normal and A the area of the face.
    """
    corners = mesh.vertices[mesh.faces]
    sides = np.roll(corners, -2, axis=1) - np.roll(corners, -1, axis=1)
    areas = face_areas(mesh)[:, None, None]
    values = np.cross(face_normals(mesh)[:, None], sides) / (2 * areas)  # (F, corner, 3)
    rows = 3 * np.arange(len(mesh.faces))[:, None, None] + np.arange(3)
    rows, columns = np.broadcast_arrays(rows, mesh.faces[:, :, None])
    shape = (3 * len(mesh.faces), len(mesh))
    return sparse.csr_array((values.ravel(), (rows.ravel(), columns.ravel())), shape=shape)


def face_average(mesh: Icosphere) -> sparse.csr_array:
    """Average of face values round a vertex, weighted by face area, (V, F); rows sum to 1."""
    corners, faces = mesh.faces.ravel(), np.repeat(np.arange(len(mesh.faces)), 3)
    areas = np.repeat(face_areas(mesh), 3)
    round_vertex = np.bincount(corners, weights=areas)
    shape = (len(mesh), len(mesh.faces))
    return sparse.csr_array((areas / round_vertex[corners], (corners, faces)), shape=shape)


def face_fields(mesh: Icosphere) -> tuple[np.ndarray, np.ndarray]:
    """Fields (east, north) on the faces, each (F, 3), as UGSCNN has them.

    north = face gradient of the latitude arcsin z, not normalised: its length is 1 + O(h) away
    from the poles, and 1.24 on the five faces at a pole; east = north x outward normal.
    """
    latitude = np.arcsin(np.clip(mesh.vertices[:, 2], -1, 1))
    north = (face_gradients(mesh) @ latitude).reshape(-1, 3)
    return np.cross(north, face_normals(mesh)), north


def east_north_derivatives(mesh: Icosphere) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Derivatives (1 / cos lat) d/dlon and d/dlat at the vertices, each (V, V).

    On every face the gradient dotted with the east or north field, then the face average.
    """
    gradients, average = face_gradients(mesh), face_average(mesh)
    return tuple(average @ _dot(field) @ gradients for field in face_fields(mesh))


def cotangent_laplacian(mesh: Icosphere) -> sparse.csr_array:
    """L_ij = (cot a_ij + cot b_ij) / 2, L_ii = -sum of the row, (V, V), not divided by areas.

    a_ij and b_ij are the angles that face edge ij in its two faces. L is symmetric and negative
    semi-definite, and -f.Lf is the Dirichlet energy of f; L f = (area of the vertex) x Laplacian.
    """
    corners = mesh.vertices[mesh.faces]
    u, v = (np.roll(corners, -k, axis=1) - corners for k in (1, 2))
    cotangents = np.sum(u * v, axis=-1) / np.linalg.norm(np.cross(u, v), axis=-1)  # (F, corner)
    i, j = (np.roll(mesh.faces, -k, axis=1).ravel() for k in (1, 2))
    shape = (len(mesh), len(mesh))
    weights = sparse.csr_array((cotangents.ravel() / 2, (i, j)), shape=shape)
    weights = weights + weights.T
    return (weights - sparse.diags_array(weights.sum(axis=1))).tocsr()


def _dot(field: np.ndarray) -> sparse.csr_array:
    """Matrix (F, 3 F) that dots a face vector field, laid out as in `face_gradients`."""
    faces = len(field)
    start = 3 * np.arange(faces + 1)
    return sparse.csr_array((field.ravel(), np.arange(3 * faces), start), shape=(faces, 3 * faces))


def _face_cross(mesh: Icosphere) -> np.ndarray:
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return np.cross(b - a, c - a)
