"""What a vertex takes from those near it, as a matrix and as loops over vertices: smoothing,
pooling, interpolation, and the rows of `pdo.derivatives`.

On a CPU the sums over neighbours are loops of `pdo.kernels`, elsewhere products with sparse
matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor, nn

from pdo import kernels
from pdo.kernels import array
from pdo.sparse import SparseOperator

KEPT_BYTES = 2**24
"""A layer that has no more bytes of derivatives makes them at once, and may keep them for the
backward pass."""
CHUNK_BYTES = 2**22
"""Others make so many at a time, which are mixed while they are in a cache."""


class Neighbourhood(nn.Module):
    """A matrix from fields to rows at each vertex, as weights of the vertices near it.

    Tables are buffers outside the state dict, as in `SparseOperator`. `order` lists the vertices
    such that those with common neighbours follow each other: these are in the cache then.

    Args:
        near: (V', J), who is near each vertex.
        dense: (V', R, J, N), what the R rows at a vertex take from each, N numbers of its fibre.
    """

    near: Tensor
    order: Tensor
    pairs: Tensor
    starts: Tensor
    picks: Tensor
    weights: Tensor

    def __init__(self, near: np.ndarray, dense: np.ndarray) -> None:
        super().__init__()
        self.vertices, self.rows, _, self.coordinates = dense.shape
        self.nnz = int(np.count_nonzero(dense))
        reads = np.any(dense != 0, axis=(0, 2))  # (R, N)
        pairs = _pairs(self.rows, lambda a, b: bool((reads[a] == reads[b]).all()))
        nearby = self.coordinates * np.arange(near.shape[1])
        listed = [np.add.outer(np.flatnonzero(reads[a]), nearby).ravel() for a, _ in pairs]
        picks, starts = joined(listed)
        weights = np.zeros((self.vertices, len(picks), 2))
        flat = dense.reshape(self.vertices, self.rows, -1)
        for (a, b), start, end in zip(pairs, starts[:-1], starts[1:], strict=True):
            weights[:, start:end, 0] = flat[:, a, picks[start:end]]
            if b >= 0:
                weights[:, start:end, 1] = flat[:, b, picks[start:end]]
        self._table("near", near)
        self._table("order", _order(near))
        self._table("pairs", np.array(pairs))
        self._table("starts", starts)
        self._table("picks", picks)
        self._table("weights", weights)

    def _table(self, name: str, values: np.ndarray) -> None:
        dtype = torch.get_default_dtype() if values.dtype.kind == "f" else torch.int64
        self.register_buffer(name, torch.from_numpy(values).to(dtype), persistent=False)

    def gather(self, x: Tensor, vertices: Tensor, columns: bool, out: Tensor) -> None:
        """`kernels.gather` of a field (V, N, C, B) on the CPU, into `out`."""
        tables = (self.near, self.pairs, self.starts, self.picks, self.weights)
        parts = kernels.threads()
        kernels.gather(array(x), *map(array, tables), array(vertices), columns, array(out), parts)

    def columns(self, x: Tensor, vertices: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows at n vertices, for a product: (R C, n B)."""
        _, _, c, b = x.shape
        out = torch.empty(self.rows, c, len(vertices), b, dtype=dtype)
        self.gather(x, vertices, True, out)
        return out.view(self.rows * c, len(vertices) * b)

    def chunks(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The vertices whose columns are made at a time, in their order."""
        each = self.rows * x[0, 0].numel() * dtype.itemsize
        if len(self.order) * each <= KEPT_BYTES:
            return (self.order,)
        return self.order.split(max(1, CHUNK_BYTES // each))


class FieldOperator(nn.Module):
    """y = A x of fields (V, N, C, B) -> (V', N, C, B) for a matrix of `operators.transport_matrix`:
    smoothing, pooling, interpolation."""

    def __init__(self, matrix: sparse.csr_array, coordinates: int) -> None:
        super().__init__()
        self.forth = Neighbourhood(*dense_rows(matrix, coordinates, coordinates))
        self.back = Neighbourhood(*dense_rows(matrix.T.tocsr(), coordinates, coordinates))
        self.product = SparseOperator(matrix)

    @property
    def dtype(self) -> torch.dtype:
        return self.forth.weights.dtype

    def forward(self, x: Tensor) -> Tensor:
        if kernels.apply_to(x):
            return _Gathered.apply(x, self.forth, self.back)
        _, n, c, b = x.shape
        return self.product(x.reshape(-1, c * b)).view(-1, n, c, b)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Neighbourhood, back: Neighbourhood) -> Tensor:
        ctx.operators = back, forth
        out = x.new_empty(forth.vertices, *x.shape[1:])
        forth.gather(x.contiguous(), forth.order, False, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Gathered.apply(grad, *ctx.operators), None, None


def dense_rows(
    matrix: sparse.csr_array, rows: int, coordinates: int
) -> tuple[np.ndarray, np.ndarray]:
    """Who is near each vertex, (V', J), filled up with the first of them; and what its rows take
    from each, (V', R, J, N)."""
    vertices = matrix.shape[0] // rows
    entries = matrix.tocoo()
    vertex, row = np.divmod(entries.row.astype(np.int64), rows)
    other, coordinate = np.divmod(entries.col.astype(np.int64), coordinates)
    size = matrix.shape[1] // coordinates
    found, index = np.unique(vertex * size + other, return_inverse=True)
    owner, neighbour = np.divmod(found, size)
    counts = np.bincount(owner, minlength=vertices)
    starts = np.cumsum(counts) - counts
    place = np.arange(len(found)) - starts[owner]
    near = np.repeat(neighbour[np.minimum(starts, len(found) - 1)][:, None], counts.max(), axis=1)
    near[owner, place] = neighbour
    dense = np.zeros((vertices, rows, counts.max(), coordinates))
    dense[vertex, row, place[index], coordinate] = entries.data
    return near, dense


def _order(near: np.ndarray) -> np.ndarray:
    """Reverse Cuthill-McKee, where vertices are connected that have one near them in common."""
    vertices, width = near.shape
    at = (np.repeat(np.arange(vertices), width), near.ravel())
    reads = sparse.csr_array((np.ones(near.size), at))
    found = reverse_cuthill_mckee(reads @ reads.T, symmetric_mode=True)
    return np.ascontiguousarray(found)  # it comes as a reversed view


def _pairs(rows: int, alike: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Rows two by two, neighbours that are alike; -1 where a row stays alone."""
    pairs, row = [], 0
    while row < rows:
        both = row + 1 < rows and alike(row, row + 1)
        pairs.append((row, row + 1 if both else -1))
        row += 2 if both else 1
    return pairs


def joined(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lists one after the other, and where each starts and the last ends."""
    return np.concatenate(lists), np.cumsum([0, *map(len, lists)])
