"""What a layer takes from the vertices near each vertex: derivatives and their channel mixing in
one pass, and smoothing.

On a CPU the sums over neighbours are loops of `pdo.kernels`. The derivatives of a field are about
five times as large as the field: they are made for some vertices at a time, laid out as one matrix
for the mixing, and if they are many forgotten; the backward pass makes them again. Elsewhere the
same is written in torch's own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pdo import kernels
from pdo.kernels import array
from pdo.sparse import SparseOperator

KEPT_BYTES = 2**24
"""A layer that has no more bytes of derivatives makes them at once, and keeps them for the backward
pass."""
CHUNK_BYTES = 2**21
"""Others make so many at a time, which are mixed while they are in a cache: of a core, if it has
one as large."""


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
        picks, starts = _joined(listed)
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


class Derivatives(Neighbourhood):
    """The matrix of `operators.derivative_matrix`, made for `derive_and_mix`.

    Args:
        matrix: (V * (R_0 + R_1 + ...), V * N), the rows of each output order below the last's.
        rows: R_m, the rows at a vertex of every output order m.
        coordinates: N, of the input's fibre.
    """

    places: Tensor
    back_starts: Tensor
    back_picks: Tensor
    back_weights: Tensor

    def __init__(self, matrix: sparse.csr_array, rows: Sequence[int], coordinates: int) -> None:
        vertices = matrix.shape[1] // coordinates
        matrix = matrix[_by_vertex(rows, vertices)]
        near, dense = _dense(matrix, sum(rows), coordinates)
        super().__init__(near, dense)
        self.rows_of_order, self.product = tuple(rows), SparseOperator(matrix)
        reads = np.any(dense != 0, axis=(0, 2))
        places = [(0, 0), *((q, q + 1) for q in range(1, coordinates, 2))]
        rows_of = [np.flatnonzero(reads[:, list(p)].any(axis=1)) for p in places]
        picks, starts = _joined(rows_of)
        weights = np.zeros((vertices, dense.shape[2], len(picks), 2))
        for place, start, end in zip(places, starts[:-1], starts[1:], strict=True):
            part = dense[:, picks[start:end]].swapaxes(1, 2)
            for k, q in enumerate(dict.fromkeys(place)):
                weights[:, :, start:end, k] = part[..., q]
        self._table("places", np.array(places))
        self._table("back_starts", starts)
        self._table("back_picks", picks)
        self._table("back_weights", weights)

    def scatter(self, grad: Tensor, vertices: Tensor, total: Tensor) -> None:
        """The transpose of `gather` with columns: adds what gradients (R, C, n, B) of the
        derivatives give the vertices near by to `total` (V, N, C, B)."""
        tables = (self.places, self.back_starts, self.back_picks, self.back_weights)
        parts, near = kernels.threads(), array(self.near)
        kernels.scatter(
            array(grad), near, *map(array, tables), array(vertices), array(total), parts
        )


class FieldOperator(nn.Module):
    """y = A x of fields (V, N, C, B) -> (V', N, C, B) for a matrix of `operators.transport_matrix`:
    smoothing, pooling, interpolation."""

    def __init__(self, matrix: sparse.csr_array, coordinates: int) -> None:
        super().__init__()
        self.forth = Neighbourhood(*_dense(matrix, coordinates, coordinates))
        self.back = Neighbourhood(*_dense(matrix.T.tocsr(), coordinates, coordinates))
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


def _dense(matrix: sparse.csr_array, rows: int, coordinates: int) -> tuple[np.ndarray, np.ndarray]:
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


def _by_vertex(rows: Sequence[int], vertices: int) -> np.ndarray:
    """Row numbers of an order-by-order matrix, vertex by vertex."""
    starts = vertices * (np.cumsum(rows) - rows)
    at = [
        start + count * np.arange(vertices)[:, None] + np.arange(count)
        for start, count in zip(starts, rows, strict=True)
    ]
    return np.concatenate(at, axis=1).ravel()


def _pairs(rows: int, alike: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Rows two by two, neighbours that are alike; -1 where a row stays alone."""
    pairs, row = [], 0
    while row < rows:
        both = row + 1 < rows and alike(row, row + 1)
        pairs.append((row, row + 1 if both else -1))
        row += 2 if both else 1
    return pairs


def _joined(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lists one after the other, and where each starts and the last ends."""
    return np.concatenate(lists), np.cumsum([0, *map(len, lists)])


def derive_and_mix(
    x: Tensor, derivatives: Derivatives, weights: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """For every vertex and output order m, weights[m] times the derivatives of that order.

    Args:
        x: field (V, N, C, B).
        weights: real matrices (rows out of order m, R_m * C).
        dtype: of the products; bfloat16 halves the traffic and is several times as fast where the
            hardware multiplies it natively.

    Shape: (V, N, C, B) -> (V, all rows out, B).
    """
    if kernels.apply_to(x):
        return _DeriveAndMix.apply(x, derivatives, dtype, *weights)
    v, n, c, b = x.shape
    derived = derivatives.product(x.reshape(v * n, c * b)).view(v, -1, b)
    return torch.cat(
        [w.to(dtype) @ derived[:, columns].to(dtype) for w, columns, _ in _orders(weights)], dim=1
    ).to(x.dtype)


class _DeriveAndMix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, derivatives: Derivatives, dtype: torch.dtype, *weights: Tensor
    ) -> Tensor:
        x, matrices = x.contiguous(), [w.to(dtype) for w in weights]
        ctx.derivatives, ctx.dtype = derivatives, dtype
        out = x.new_empty(len(x), sum(len(w) for w in weights), x.shape[3])
        parts = chunks(x, derivatives, dtype)
        for vertices in parts:
            derived = _derived(x, derivatives, vertices, dtype)
            mixed = mix(derived.flatten(0, 1).flatten(1), matrices)
            columns = mixed.view(len(mixed), -1, x.shape[3])
            kernels.from_columns(array(columns), array(vertices), array(out))
        ctx.save_for_backward(x, derived if len(parts) == 1 else None, *matrices)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, *matrices = ctx.saved_tensors
        derivatives, grad = ctx.derivatives, grad.contiguous()
        transposed = [w.t().contiguous() for w in matrices]  # faster in bfloat16
        totals = [torch.zeros_like(w, dtype=grad.dtype) for w in transposed]
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        for vertices in chunks(x, derivatives, ctx.dtype):
            derived = _derived(x, derivatives, vertices, ctx.dtype) if kept is None else kept
            columns = derived.flatten(0, 1).flatten(1)
            above = torch.empty(grad.shape[1], *derived.shape[2:], dtype=ctx.dtype)
            kernels.to_columns(array(grad), array(vertices), array(above))
            add_weight_gradients(columns, above.flatten(1), totals)
            if grad_x is not None:
                below = torch.empty_like(derived)
                mix_transposed(above.flatten(1), transposed, out=below.view(columns.shape))
                derivatives.scatter(below, vertices, grad_x)
        return grad_x, None, None, *(total.t() for total in totals)


def _derived(x: Tensor, derivatives: Derivatives, vertices: Tensor, dtype: torch.dtype) -> Tensor:
    """Derivatives at the n vertices, for the products: (R, C, n, B)."""
    _, _, c, b = x.shape
    out = torch.empty(derivatives.rows, c, len(vertices), b, dtype=dtype)
    derivatives.gather(x, vertices, True, out)
    return out


def mix(derived: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Each order's matrix times its derivatives: (R C, K) -> (all rows out, K)."""
    out = derived.new_empty(sum(len(w) for w in weights), derived.shape[1])
    for w, columns, rows in _orders(weights):
        torch.mm(w, derived[columns], out=out[rows])
    return out


def mix_transposed(grad: Tensor, transposed: Sequence[Tensor], out: Tensor) -> None:
    """The transpose of `mix`: gradients of the derivatives, into `out` (R C, K)."""
    for w, columns, rows in _orders_of_transposed(transposed):
        torch.mm(w, grad[rows], out=out[columns])


def add_weight_gradients(derived: Tensor, grad: Tensor, totals: Sequence[Tensor]) -> None:
    """Adds to each order's total, transposed, the products of derivatives and gradients, summed
    over vertices and batch. (With the wide matrix first up to 1.3 times as fast.)"""
    for total, columns, rows in _orders_of_transposed(totals):
        total += derived[columns] @ grad[rows].t()


def _orders(weights: Sequence[Tensor]) -> Iterator[tuple[Tensor, slice, slice]]:
    """Each order's matrix, its columns among the derivatives, and its rows in the output."""
    column = row = 0
    for w in weights:
        yield w, slice(column, column + w.shape[1]), slice(row, row + len(w))
        column, row = column + w.shape[1], row + len(w)


def _orders_of_transposed(matrices: Sequence[Tensor]) -> Iterator[tuple[Tensor, slice, slice]]:
    """The same of transposed matrices."""
    for w, columns, rows in _orders([w.t() for w in matrices]):
        yield w.t(), columns, rows


def chunks(x: Tensor, derivatives: Derivatives, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The vertices whose derivatives are made at a time, in their order."""
    each = derivatives.rows * x[0, 0].numel() * dtype.itemsize
    if len(x) * each <= KEPT_BYTES:
        return (derivatives.order,)
    return derivatives.order.split(max(1, CHUNK_BYTES // each))
