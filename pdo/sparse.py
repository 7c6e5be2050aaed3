"""A fixed sparse matrix as a module: y = A x, with the transpose kept for the backward pass."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from pdo.precision import full_precision

# Said once a process and of no use to a user.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support")


class _Product(torch.autograd.Function):
    """torch would transpose a CSR matrix anew in every backward pass; we hand it over."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.matrices = matrix, transpose
        # matrix @ x would write its result three times: zeros, a copy of them, the product.
        return x.new_empty(matrix.shape[0], x.shape[1]).addmm_(matrix, x, beta=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        matrix, transpose = ctx.matrices
        return _Product.apply(grad.contiguous(), transpose, matrix), None, None


class SparseOperator(nn.Module):
    """y = A x for a fixed A (m, n) and dense x (n, K), as a CSR product.

    Indices and values are buffers outside the state dict: they follow `.to()` and `.double()`,
    and are made anew from the geometry when a network is built.
    """

    a_rows: Tensor
    a_cols: Tensor
    a_values: Tensor
    t_rows: Tensor
    t_cols: Tensor
    t_values: Tensor

    def __init__(self, matrix: sparse.csr_array) -> None:
        super().__init__()
        self.shape = matrix.shape
        for name, part in (("a", matrix.tocsr()), ("t", matrix.T.tocsr())):
            part.sort_indices()
            self.register_buffer(f"{name}_rows", _index(part.indptr), persistent=False)
            self.register_buffer(f"{name}_cols", _index(part.indices), persistent=False)
            values = torch.from_numpy(part.data.astype(np.float64)).to(torch.get_default_dtype())
            self.register_buffer(f"{name}_values", values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        m, n = self.shape
        matrix = torch.sparse_csr_tensor(
            self.a_rows, self.a_cols, self.a_values, (m, n), check_invariants=False
        )
        transpose = torch.sparse_csr_tensor(
            self.t_rows, self.t_cols, self.t_values, (n, m), check_invariants=False
        )
        with full_precision(x):  # there are no sparse products in half precision on a CPU
            return _Product.apply(x.to(self.a_values.dtype), matrix, transpose)


def _index(indices: np.ndarray) -> Tensor:
    return torch.from_numpy(indices.astype(np.int32))
