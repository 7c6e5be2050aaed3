r"""Five charts of the icosphere: the atlas of HexRUNet and of the Icosahedral CNN.

The icosahedron is cut into five strips of four triangles. Strip k, opened flat, is a grid of
2 W + 1 rows and W + 1 columns of vertices, W = 2^level; every triangle of the mesh is half a square
of the grid, and a vertex has six neighbours (N, S: poles; U, L: upper and lower ring):

    N ------ U_k+1         up   up-right
    |      / |              |  /
    |    /   |              | /
    U_k ---- L_k   left --- . --- right
    |      / |            / |
    |    /   |           /  |
    L_k-1 -- S    down-left down

What lies across the border of a chart, and how directions are numbered there, is read off the mesh.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from pdo.mesh import Icosphere

CORNERS = 12
"""The icosahedron's vertices, with five neighbours only, are the first ones of every icosphere."""
POLES = (0, 11)

STEPS = ((-1, 0), (0, -1), (1, -1), (1, 0), (0, 1), (-1, 1))
"""(row, column) steps of the six directions, counter-clockwise from up."""
UP, LEFT, DOWN_LEFT, DOWN, RIGHT, UP_RIGHT = range(6)


class Atlas:
    """The five charts of `Icosphere(level)`, and the six neighbours of every vertex but the poles.

    Directions are those of the chart that a vertex is a pixel of. They are the same in the atlas
    of a coarser mesh, whose vertices are the pixels in every second row and column.

    Raises:
        ValueError: if `level` is not an integer in 0..7.
    """

    def __init__(self, level: int) -> None:
        self.mesh = Icosphere(level)
        # The numbers of N, U_k and L_k in the icosahedron are 0, 1 + k and 6 + k, that of S is 11.
        strips = [[[0, 1 + (k + 1) % 5], [1 + k, 6 + k], [6 + (k - 1) % 5, 11]] for k in range(5)]
        points = Icosphere(0).vertices[strips]
        for _ in range(level):
            points = _refine(points)
        self.grid: np.ndarray = cKDTree(self.mesh.vertices).query(points)[1]
        """Vertices of the charts with all their borders, (5, 2 W + 1, W + 1)."""

    @property
    def pixels(self) -> np.ndarray:
        """Vertices of the charts without the first row and the last column, (5, 2 W, W): every
        vertex but the two poles, once."""
        return self.grid[:, 1:, :-1]

    @cached_property
    def neighbours(self) -> np.ndarray:
        """Vertices next to each vertex in the directions of `STEPS`, (V, 6); -1 at the poles.

        The first is read off the chart, the next ones follow counter-clockwise round the vertex.
        Of the five neighbours of a corner, the one to the left is also the one down-left.
        """
        a, b, c = np.concatenate([np.roll(self.mesh.faces, k, axis=1) for k in range(3)]).T
        shape = (len(self.mesh), len(self.mesh))
        next_round = sparse.csr_array((c, (a, b)), shape=shape)  # round a, b is followed by c
        vertex = self.pixels.ravel()
        walk = [self.grid[:, :-1, :-1].ravel()]  # up
        for _ in range(5):
            walk.append(next_round[vertex, walk[-1]])
        around = np.stack(walk, axis=1)
        five = around[:, 5] == around[:, 0]
        around[five, DOWN_LEFT:] = around[five, LEFT:UP_RIGHT]
        neighbours = np.full((len(self.mesh), 6), -1)
        neighbours[vertex] = around
        return neighbours

    @cached_property
    def turns(self) -> np.ndarray:
        """How directions change towards each neighbour, (V, 6): direction m at a vertex goes on as
        direction m + turn (mod 6) at its neighbour. 0 at a corner and towards one, where no
        numbering of six directions goes on.

        At the neighbour, the way back is direction d + 3, if d led there and nothing turned.
        """
        turns = np.zeros_like(self.neighbours)
        inner = np.arange(CORNERS, len(self.mesh))
        ahead = self.neighbours[inner]
        back = np.argmax(self.neighbours[ahead] == inner[:, None, None], axis=-1)
        turns[inner] = np.where(ahead < CORNERS, 0, (back - np.arange(6) - 3) % 6)
        return turns


def _refine(points: np.ndarray) -> np.ndarray:
    """Charts (5, rows, columns, 3) with the midpoints of all edges put in: (5, 2 rows - 1, ...)."""
    charts, rows, columns, _ = points.shape
    fine = np.empty((charts, 2 * rows - 1, 2 * columns - 1, 3))
    fine[:, ::2, ::2] = points
    fine[:, 1::2, ::2] = points[:, :-1] + points[:, 1:]
    fine[:, ::2, 1::2] = points[:, :, :-1] + points[:, :, 1:]
    fine[:, 1::2, 1::2] = points[:, 1:, :-1] + points[:, :-1, 1:]
    return fine / np.linalg.norm(fine, axis=-1, keepdims=True)
