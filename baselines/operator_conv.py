"""Convolution by fixed sparse operators, of UGSCNN and HexRUNet."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import sparse
from torch import Tensor, nn

from pdo.sparse import SparseOperator


class OperatorConv(nn.Module):
    """out = sum over k of (A_k x) W_k, plus a bias, A_k being fixed, (P', P).

    A field is (point x batch, channel), points first: the operators see a (P, batch x channel)
    matrix, a 1x1 convolution is `nn.Linear`, batch norm `nn.BatchNorm1d`, and one large product
    mixes all channels. Weights and bias are drawn from U(-r, r), r = 1 / sqrt(K C_in),
    which is the default of `nn.Linear`, and of a convolution with K arms.

    Shapes: (P B, C_in) -> (P' B, C_out).
    """

    def __init__(
        self, operators: Sequence[sparse.csr_array], in_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        self.terms = SparseOperator(sparse.vstack(operators, format="csr"))
        self.mix = nn.Linear(len(operators) * in_channels, out_channels)
        self.arms, self.points = len(operators), operators[0].shape[1]

    def forward(self, x: Tensor) -> Tensor:
        # The sparse product is memory-bound and mostly in_channels <= out_channels: it goes first.
        return self.mix(self.terms_of(x))

    def terms_of(self, x: Tensor) -> Tensor:
        """A_k x for every k, side by side, (P B, C_in) -> (P' B, K C_in)."""
        terms = self.terms(x.reshape(self.points, -1)).view(self.arms, -1, x.shape[1])
        return terms.transpose(0, 1).flatten(1)
