"""Derivatives at the vertices and their channel mixing, in one pass.

Derivatives are about five times as large as the field. On a CPU they are made for some vertices at
a time, laid out as one matrix for the mixing, and forgotten. Elsewhere the same is written in
torch's own operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.autograd.function import once_differentiable

from pdo import kernels
from pdo.kernels import array
from pdo.local import Neighbourhood, dense_rows, joined
from pdo.mixing import (
    AdjointWeights,
    add_weight_gradients,
    mix,
    real_weights,
    stacked,
    unstacked,
)
from pdo.operators import (
    Terms,
    adjoint_matrix,
    derivative_matrix,
    derivative_rows,
    term_rows,
    terms_of_input,
)
from pdo.sparse import SparseOperator
from pdo.stencils import Stencil


class Derivatives(Neighbourhood):
    """What `derive_and_mix` takes from the vertices near by, all as in `pdo.operators`: the rows of
    `derivative_matrix`, those of every output order m below the last's, and their transpose.

    back: the rows of `adjoint_matrix`, those of every input mode n below the last's.
    adjoint: the matrices that mix these.
    product: the derivatives as one sparse matrix, where the kernels cannot work.

    Args:
        stencil: of the derivatives.
        h: the mesh size.
        listed: the terms of each output order.
        input_orders: of the field.
        n_vertices: V.
    """

    places: Tensor
    scatter_starts: Tensor
    scatter_picks: Tensor
    scatter_weights: Tensor

    def __init__(
        self, stencil: Stencil, h: float, listed: Terms, input_orders: int, n_vertices: int
    ) -> None:
        forth = [derivative_rows(m, found) for m, found in enumerate(listed)]
        modes = [terms_of_input(listed, n) for n in range(input_orders + 1)]
        back = [sum(term_rows(m, t) for m, _, t in found) for found in modes]
        matrix = _by_vertex(derivative_matrix(stencil, h, listed, input_orders, n_vertices), forth)
        adjoint = _by_vertex(adjoint_matrix(stencil, h, listed, input_orders, n_vertices), back)
        near, dense = dense_rows(matrix, sum(forth), 2 * input_orders + 1)
        super().__init__(near, dense)
        self.back = Neighbourhood(*dense_rows(adjoint, sum(back), 2 * len(listed) - 1))
        self.adjoint = AdjointWeights(listed, input_orders)
        self.product = SparseOperator(matrix)
        reads = np.any(dense != 0, axis=(0, 2))
        places = [(0, 0), *((q, q + 1) for q in range(1, self.coordinates, 2))]
        rows_of = [np.flatnonzero(reads[:, list(p)].any(axis=1)) for p in places]
        picks, starts = joined(rows_of)
        weights = np.zeros((n_vertices, dense.shape[2], len(picks), 2))
        for place, start, end in zip(places, starts[:-1], starts[1:], strict=True):
            part = dense[:, picks[start:end]].swapaxes(1, 2)
            for k, q in enumerate(dict.fromkeys(place)):
                weights[:, :, start:end, k] = part[..., q]
        self._table("places", np.array(places))
        self._table("scatter_starts", starts)
        self._table("scatter_picks", picks)
        self._table("scatter_weights", weights)

    def scatter(self, grad: Tensor, vertices: Tensor, total: Tensor) -> None:
        """The transpose of `gather` with columns: adds what gradients (R, C, n, B) of the
        derivatives give the vertices near by to `total` (V, N, C, B)."""
        tables = (self.places, self.scatter_starts, self.scatter_picks, self.scatter_weights)
        parts, near = kernels.threads(), array(self.near)
        kernels.scatter(
            array(grad), near, *map(array, tables), array(vertices), array(total), parts
        )


def _by_vertex(matrix: sparse.csr_array, counts: Sequence[int]) -> sparse.csr_array:
    """The rows of a matrix that has so many of one kind at each vertex, then of the next, ordered
    vertex by vertex."""
    vertices = matrix.shape[0] // sum(counts)
    starts = vertices * (np.cumsum(counts) - counts)
    at = [
        start + count * np.arange(vertices)[:, None] + np.arange(count)
        for start, count in zip(starts, counts, strict=True)
    ]
    return matrix[np.concatenate(at, axis=1).ravel()]


def derive_and_mix(
    x: Tensor, derivatives: Derivatives, weights: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """For every vertex and output order m, the weights of that order times its derivatives.

    Args:
        x: field (V, N, C, B).
        weights: of each order, as in `pdo.mixing`.
        dtype: of the products; bfloat16 halves the traffic and is several times as fast where the
            hardware multiplies it natively.

    Shape: (V, N, C, B) -> (V, N', C', B), N' the coordinates of the output orders.
    """
    matrices = [real_weights(w) for w in weights]
    v, n, c, b = x.shape
    if kernels.apply_to(x):
        widens = weights[0].shape[1] > c
        adjoint = torch.is_grad_enabled() and not widens
        learned = derivatives.adjoint(weights) if adjoint else matrices
        fixed = [w.detach() for w in matrices]
        y = _DeriveAndMix.apply(x, derivatives, fixed, widens, dtype, *learned)
    else:
        derived = derivatives.product(x.reshape(v * n, c * b)).view(v, -1, b)
        parts = derived.split([w.shape[1] for w in matrices], dim=1)
        mixed = [w.to(dtype) @ d.to(dtype) for w, d in zip(matrices, parts, strict=True)]
        y = torch.cat(mixed, dim=1).to(x.dtype)
    return y.view(v, 2 * len(weights) - 1, -1, b)


class _DeriveAndMix(torch.autograd.Function):
    """The gradients are made on the side of fewer channels. A layer that widens the field takes
    the derivatives again (if they were too many to keep); others take the adjoints of the gradient,
    once, for both gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        derivatives: Derivatives,
        matrices: Sequence[Tensor],
        widens: bool,
        dtype: torch.dtype,
        *learned: Tensor,
    ) -> Tensor:
        x, v, b = x.contiguous(), len(x), x.shape[3]
        ctx.derivatives, ctx.widens, ctx.dtype = derivatives, widens, dtype
        low = [w.to(dtype) for w in stacked(matrices)]
        out = x.new_empty(v, sum(len(w) for w in matrices), b)
        parts = derivatives.chunks(x, dtype)
        for vertices in parts:
            columns = derivatives.columns(x, vertices, dtype)
            mixed = mix(columns, low)
            kernels.from_columns(_by_column(mixed, b), array(vertices), array(out))
        ctx.save_for_backward(x, columns if widens and len(parts) == 1 else None, *learned)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, *learned = ctx.saved_tensors
        derivatives, dtype, (v, _, c, b) = ctx.derivatives, ctx.dtype, x.shape
        grad = grad.contiguous().view(v, derivatives.back.coordinates, -1, b)
        near, source, other = (derivatives, x, grad) if ctx.widens else (derivatives.back, grad, x)
        other = other.view(v, -1, b)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x) if ctx.widens else torch.empty_like(x)
        matrices = stacked(learned)
        totals = [torch.zeros_like(w.mT, memory_format=torch.contiguous_format) for w in matrices]
        low = [(w.mT if ctx.widens else w).to(dtype).contiguous() for w in matrices]
        for vertices in near.chunks(source, dtype):
            columns = near.columns(source, vertices, dtype) if kept is None else kept
            beside = columns.new_empty(other.shape[1], len(vertices) * b)
            kernels.to_columns(array(other), array(vertices), _by_column(beside, b))
            add_weight_gradients(columns, beside, totals)
            if grad_x is None:
                continue
            if ctx.widens:
                below = mix(beside, low).view(near.rows, c, len(vertices), b)
                derivatives.scatter(below, vertices, grad_x)
            else:
                mixed = _by_column(mix(columns, low), b)
                kernels.from_columns(mixed, array(vertices), array(grad_x.view(v, -1, b)))
        return grad_x, None, None, None, None, *unstacked([t.mT for t in totals])


def _by_column(matrix: Tensor, batch: int) -> np.ndarray:
    """Columns (R, n B) as (R, n, B)."""
    return array(matrix.unflatten(1, (-1, batch)))
