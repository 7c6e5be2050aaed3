"""The icosphere: a nearly uniform mesh of the unit sphere, refined level by level."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy import sparse

MAX_LEVEL = 7


class Icosphere:
    """Icosahedron with a vertex at each pole, every face split in four `level` times.

    Vertices of level l are the first ones of level l + 1, so restriction to a coarser mesh is a
    slice. A new vertex is the normalised midpoint of an edge of the level below.

    Shapes: V = 10 * 4**level + 2 vertices, 2 V - 4 faces, 3 V - 6 edges.

    Raises:
        ValueError: if `level` is not an integer in 0..7.
    """

    def __init__(self, level: int) -> None:
        is_integer = isinstance(level, int | np.integer) and not isinstance(level, bool)
        if not is_integer or not 0 <= level <= MAX_LEVEL:
            raise ValueError(f"icosphere level must be an integer in 0..{MAX_LEVEL}, not {level!r}")
        self.level = int(level)
        vertices, faces = _icosahedron()
        for _ in range(self.level):
            vertices, faces = _subdivide(vertices, faces)
        self.vertices: np.ndarray = vertices
        """Unit vectors, (V, 3) float64."""
        self.faces: np.ndarray = faces
        """Vertex indices, counter-clockwise seen from outside, (F, 3) int64."""

    def __len__(self) -> int:
        return len(self.vertices)

    @cached_property
    def edges(self) -> np.ndarray:
        """Vertex pairs (i < j), sorted, (E, 2) int64."""
        return _edges(self.faces)

    @cached_property
    def mean_edge(self) -> float:
        """Mean geodesic length of an edge, in radians: the mesh size h."""
        a, b = self.vertices[self.edges[:, 0]], self.vertices[self.edges[:, 1]]
        return float(np.mean(_angle(a, b)))

    @cached_property
    def vertex_areas(self) -> np.ndarray:
        """A third of the spherical area of the faces round each vertex, (V,); sums to 4 pi."""
        areas = np.zeros(len(self))
        np.add.at(
            areas, self.faces, spherical_triangle_areas(self.vertices[self.faces])[:, None] / 3
        )
        return areas

    @cached_property
    def adjacency(self) -> sparse.csr_array:
        """Boolean (V, V) matrix, true where two different vertices share an edge."""
        i, j = self.edges.T
        data = np.ones(2 * len(i), dtype=bool)
        shape = (len(self), len(self))
        return sparse.csr_array((data, (np.r_[i, j], np.r_[j, i])), shape=shape)

    def neighbourhood(self, rings: int) -> sparse.csr_array:
        """Boolean (V, V) matrix, true within `rings` edges, the vertex itself included."""
        step = self.adjacency + sparse.eye_array(len(self), dtype=bool, format="csr")
        reached = sparse.eye_array(len(self), dtype=bool, format="csr")
        for _ in range(rings):
            reached = (reached @ step).astype(bool)
        reached.sort_indices()
        return reached


def spherical_triangle_areas(corners: np.ndarray) -> np.ndarray:
    """Area of spherical triangles with unit corners (..., 3, 3), in steradians (L'Huilier-free
    form of van Oosterom & Strackee 1983: tan(area/2) = |a.(b x c)| / (1 + a.b + b.c + c.a))."""
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    triple = np.abs(np.sum(a * np.cross(b, c), axis=-1))
    dots = np.sum(a * b, -1) + np.sum(b * c, -1) + np.sum(c * a, -1)
    return 2 * np.arctan2(triple, 1 + dots)


def _icosahedron() -> tuple[np.ndarray, np.ndarray]:
    """North pole, upper ring of 5, lower ring of 5, south pole."""
    z, rho = 1 / np.sqrt(5), 2 / np.sqrt(5)
    upper = 2 * np.pi * np.arange(5) / 5
    lower = upper + np.pi / 5
    vertices = np.vstack(
        [
            [0.0, 0.0, 1.0],
            np.column_stack([rho * np.cos(upper), rho * np.sin(upper), np.full(5, z)]),
            np.column_stack([rho * np.cos(lower), rho * np.sin(lower), np.full(5, -z)]),
            [0.0, 0.0, -1.0],
        ]
    )
    faces = []
    for k in range(5):
        here, there = k, (k + 1) % 5
        up, up_next, low, low_next = 1 + here, 1 + there, 6 + here, 6 + there
        faces += [
            [0, up, up_next],
            [up, low, up_next],
            [up_next, low, low_next],
            [low, 11, low_next],
        ]
    return vertices, np.array(faces, dtype=np.int64)


def _edges(faces: np.ndarray) -> np.ndarray:
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(sides, axis=1), axis=0)


def _subdivide(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    edges = _edges(faces)
    middle = vertices[edges].sum(axis=1)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    n = len(vertices)
    number = sparse.csr_array((n + np.arange(len(edges)), edges.T), shape=(n, n))

    def midpoint(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return number[np.minimum(i, j), np.maximum(i, j)]

    a, b, c = faces.T
    ab, bc, ca = midpoint(a, b), midpoint(b, c), midpoint(c, a)
    split = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.vstack([vertices, middle]), np.concatenate([np.column_stack(f) for f in split])


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), np.sum(a * b, axis=-1))
