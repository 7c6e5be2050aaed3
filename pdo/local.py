"""Derivatives and channel mixing of a layer in one pass over the vertices, some at a time.

The derivatives of a field are about five times as large as the field. Made for a few vertices,
mixed at once and forgotten, they stay in the cache; the backward pass makes them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

CHUNK_BYTES = 2**20
"""So many bytes of derivatives are worked on at a time: about a core's second-level cache."""

ONE_BLOCK = 7
"""Up to so many fibre coordinates, one dense block for all modes is faster than one for each."""


class Derivatives(nn.Module):
    """The matrix of `operators.derivative_matrix`, as small dense blocks: for every vertex and
    group of fibre modes, what the rows that read these modes take from the vertices near it.

    Blocks are buffers outside the state dict, as in `SparseOperator`.

    Args:
        matrix: (V * (R_0 + R_1 + ...), V * N), the rows of each output order below the last's.
        rows: R_m, the rows at a vertex of every output order m.
        coordinates: N, of the input's fibre.
    """

    neighbours: Tensor
    order: Tensor

    def __init__(self, matrix: sparse.csr_array, rows: Sequence[int], coordinates: int) -> None:
        super().__init__()
        vertices = matrix.shape[1] // coordinates
        entries = matrix.tocoo()
        vertex, row = _by_vertex(entries.row, rows, vertices)
        near, coordinate = np.divmod(entries.col, coordinates)
        neighbours, place = _neighbours(vertex, near, vertices)
        dense = np.zeros((vertices, sum(rows), neighbours.shape[1], coordinates))
        dense[vertex, row, place, coordinate] = entries.data

        self.rows, self.coordinates, self.nnz = tuple(rows), coordinates, matrix.nnz
        self.register_buffer("neighbours", torch.from_numpy(neighbours), persistent=False)
        self.groups = _groups(dense)
        for i, (group_rows, columns) in enumerate(self.groups):
            block = dense[:, group_rows][..., columns].reshape(vertices, len(group_rows), -1)
            values = torch.from_numpy(block).to(torch.get_default_dtype())
            self.register_buffer(f"block{i}", values, persistent=False)
        order = np.argsort(np.concatenate([group_rows for group_rows, _ in self.groups]))
        self.register_buffer("order", torch.from_numpy(order), persistent=False)

    def of(self, x: Tensor, chunk: slice) -> Tensor:
        """All derivatives at a chunk of vertices: (V, N, K) -> (chunk, sum of R_m, K)."""
        near = self.neighbours[chunk]
        parts = []
        for block, (_, columns) in zip(self._blocks(x, chunk), self.groups, strict=True):
            around = x[:, columns].index_select(0, near.flatten())
            parts.append(torch.bmm(block, around.view(len(near), -1, x.shape[2])))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1).index_select(1, self.order)

    def add_transposed(self, grad: Tensor, chunk: slice, total: Tensor) -> None:
        """The transpose of `of`: adds what a chunk of gradients (chunk, sum of R_m, K) gives the
        vertices near it to `total` (V, N, K)."""
        near = self.neighbours[chunk].flatten()
        parts = []
        for block, (rows, _) in zip(self._blocks(grad, chunk), self.groups, strict=True):
            part = grad if len(self.groups) == 1 else grad[:, rows]
            around = torch.bmm(block.transpose(1, 2), part)
            parts.append(around.view(len(near), -1, total.shape[2]))
        around = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        total.index_add_(0, near, around.to(total.dtype))

    def _blocks(self, x: Tensor, chunk: slice) -> list[Tensor]:
        blocks = (getattr(self, f"block{i}") for i in range(len(self.groups)))
        return [block[chunk].to(x.dtype) for block in blocks]


def _by_vertex(
    rows: np.ndarray, counts: Sequence[int], vertices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of an order-by-order matrix as (vertex, row at the vertex)."""
    vertex, at = np.empty_like(rows), np.empty_like(rows)
    start = first = 0
    for count in counts:
        here = (rows >= start) & (rows < start + vertices * count)
        vertex[here], at[here] = np.divmod(rows[here] - start, count)
        at[here] += first
        start, first = start + vertices * count, first + count
    return vertex, at


def _neighbours(
    vertex: np.ndarray, near: np.ndarray, vertices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Who is near each vertex, (V, most neighbours), filled up with the vertex itself; and where
    each of the pairs (vertex, near) stands in it."""
    pairs, index = np.unique(vertex.astype(np.int64) * vertices + near, return_inverse=True)
    owner, other = np.divmod(pairs, vertices)
    counts = np.bincount(owner, minlength=vertices)
    place = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.repeat(np.arange(vertices)[:, None], counts.max(), axis=1)
    table[owner, place] = other
    return table, place[index]


def _groups(dense: np.ndarray) -> list[tuple[np.ndarray, slice]]:
    """Rows that read the same fibre modes, with the coordinates of these modes."""
    n = dense.shape[-1]
    if n <= ONE_BLOCK:
        columns = [slice(0, n)]
    else:
        columns = [slice(0, 1), *(slice(i, i + 2) for i in range(1, n, 2))]
    reads = np.any(dense != 0, axis=(0, 2))
    return [(np.flatnonzero(reads[:, part].any(axis=1)), part) for part in columns]


def derive_and_mix(
    x: Tensor, derivatives: Derivatives, weights: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """For every vertex and output order m, weights[m] times the derivatives of that order.

    Args:
        x: field (V, N, C, B).
        weights: real matrices (rows out of order m, R_m * C).
        dtype: of the products; bfloat16 halves the traffic and is several times as fast where the
            hardware has it.

    Shape: (V, N, C, B) -> (V, all rows out, B).
    """
    return _DeriveAndMix.apply(x, derivatives, dtype, *weights)


class _DeriveAndMix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, derivatives: Derivatives, dtype: torch.dtype, *weights: Tensor
    ) -> Tensor:
        low, matrices = x.to(dtype), [w.to(dtype) for w in weights]
        ctx.derivatives = derivatives
        ctx.save_for_backward(low, *matrices)
        out = x.new_empty(len(x), sum(len(w) for w in weights), x.shape[3])
        for chunk in chunks(low, sum(derivatives.rows)):
            mix(_derived(low, derivatives, chunk), matrices, out[chunk])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        low, *matrices = ctx.saved_tensors
        derivatives = ctx.derivatives
        grad_weights = [torch.zeros_like(w, dtype=grad.dtype) for w in matrices]
        transposed = [w.t().contiguous() for w in matrices]  # twice as fast in bfloat16
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad.new_zeros(*low.shape[:2], low[0, 0].numel())
        for chunk in chunks(low, sum(derivatives.rows)):
            derived = _derived(low, derivatives, chunk)
            above = grad[chunk].to(low.dtype)
            add_weight_gradients(derived, above, grad_weights)
            if grad_x is not None:
                below = mix_transposed(above, transposed, out=derived)  # no longer needed
                derivatives.add_transposed(
                    below.view(len(below), sum(derivatives.rows), -1), chunk, grad_x
                )
        return grad_x if grad_x is None else grad_x.view(low.shape), None, None, *grad_weights


def _derived(x: Tensor, derivatives: Derivatives, chunk: slice) -> Tensor:
    """Derivatives at a chunk of vertices, as the columns of the weights count: (chunk, R C, B)."""
    derived = derivatives.of(x.flatten(2), chunk)
    return derived.view(len(derived), -1, x.shape[3])


def mix(derived: Tensor, weights: Sequence[Tensor], out: Tensor) -> None:
    """out = each order's matrix times its derivatives: (V, R C, B) -> (V, all rows out, B)."""
    for w, columns, rows in _orders(weights):
        out[:, rows] = torch.bmm(w.expand(len(out), -1, -1), derived[:, columns])


def mix_transposed(grad: Tensor, transposed: Sequence[Tensor], out: Tensor) -> Tensor:
    """The transpose of `mix`: gradients of the derivatives, into `out` (V, R C, B)."""
    for w, (_, columns, rows) in zip(transposed, _orders([w.t() for w in transposed]), strict=True):
        out[:, columns] = torch.bmm(w.expand(len(grad), -1, -1), grad[:, rows])
    return out


def add_weight_gradients(derived: Tensor, grad: Tensor, totals: Sequence[Tensor]) -> None:
    """Adds to each order's total the products of gradients and derivatives, summed over vertices
    and batch."""
    for total, columns, rows in _orders(totals):
        total += _flat(grad[:, rows]) @ _flat(derived[:, columns]).t()


def _flat(x: Tensor) -> Tensor:
    """(V, K, B) -> (K, V B)."""
    return x.transpose(0, 1).flatten(1)


def _orders(weights: Sequence[Tensor]) -> Iterator[tuple[Tensor, slice, slice]]:
    """Each order's matrix, its columns among the derivatives, and its rows in the output."""
    column = row = 0
    for w in weights:
        yield w, slice(column, column + w.shape[1]), slice(row, row + len(w))
        column, row = column + w.shape[1], row + len(w)


def chunks(x: Tensor, rows: int) -> list[slice]:
    """Slices of vertices whose derivatives, `rows` for each of x, fit the cache; all on a GPU."""
    if x.device.type != "cpu":
        return [slice(None)]
    step = max(1, CHUNK_BYTES // max(1, rows * x[0, 0].numel() * x.element_size()))
    return [slice(start, start + step) for start in range(0, len(x), step)]
