"""FFS2CNN, the Clebsch-Gordan net (Kondor, Lin, Trivedi, NeurIPS 2018), for Spherical MNIST.

Activations are fragments: for each degree l, vectors of 2 l + 1 complex numbers that a rotation R
multiplies by D^l(R). Products of two fragments, taken apart by Clebsch-Gordan coefficients, are
fragments again, and so are complex combinations of fragments of one degree. Nothing else happens up
to the invariants, which are the fragments of degree 0: the network never goes back to the sphere.

Layout of the fragments of degree l: (2 l + 1, channels, batch), complex.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from baselines.clebsch_gordan import clebsch_gordan
from baselines.harmonics import as_buffer, s2_analysis
from baselines.inputs import checked
from pdo.sparse import SparseOperator

DEGREES = 11
"""Degrees of all fragments: l = 0..10."""
CHANNELS = [math.ceil(12 / math.sqrt(2 * degree + 1)) for degree in range(DEGREES)]
"""tau_l, fragments of each degree after a layer: 12, 7, 6, 5, 4, 4, 4, 4, 3, 3, 3."""
LAYERS = 5
EPSILON = 1e-5


def couplings(
    degrees: int = DEGREES, degrees_out: int | None = None
) -> list[tuple[int, int, range]]:
    """Unordered pairs (l1, l2), l2 <= l1 < degrees, and the degrees below `degrees_out` (by default
    `degrees`) that they couple to; pairs without any are left out."""
    degrees_out = degrees if degrees_out is None else degrees_out
    pairs = [(l1, l2) for l1 in range(degrees) for l2 in range(l1 + 1) if l1 - l2 < degrees_out]
    return [(l1, l2, range(l1 - l2, min(l1 + l2 + 1, degrees_out))) for l1, l2 in pairs]


def live_products(channels: Sequence[int], degrees_out: int | None = None) -> list[np.ndarray]:
    """For each l < degrees_out a mask (T_l,) of the products of fragments, channels[l] of degree l,
    T_l = sum of tau_l1 tau_l2 over the pairs that couple to l: False where a fragment meets itself
    and l is odd. Coupling is antisymmetric then, and the product 0."""
    pairs = couplings(len(channels), degrees_out)
    live: list[list[np.ndarray]] = [[] for _ in range(degrees_out or len(channels))]
    for l1, l2, degrees in pairs:
        for degree in degrees:
            mask = np.ones((channels[l1], channels[l2]), dtype=bool)
            if l1 == l2 and degree % 2:
                np.fill_diagonal(mask, False)
            live[degree].append(mask.ravel())
    return [np.concatenate(masks) for masks in live]


class CGProduct(nn.Module):
    """Products of all fragments of degree l1 with all of degree l2 <= l1, by their degree l:

    h^l_m = sum over m1 + m2 = m of <l1 m1 l2 m2 | l m> f^l1_m1 f^l2_m2.

    Shapes: for each l < degrees (2 l + 1, tau_l, batch) -> for each l < degrees_out
    (2 l + 1, T_l, batch), see `live_products`.
    """

    def __init__(self, degrees: int = DEGREES, degrees_out: int | None = None) -> None:
        super().__init__()
        self.pairs = couplings(degrees, degrees_out)
        self.operators = nn.ModuleList(_coupling_operator(*pair) for pair in self.pairs)

    def forward(self, fragments: Sequence[Tensor]) -> list[Tensor]:
        products: dict[int, list[Tensor]] = {}
        for (l1, l2, degrees), operator in zip(self.pairs, self.operators, strict=True):
            f, g = fragments[l1], fragments[l2]
            # Channels are paired first, which is cheap: so the large product is broadcast, and its
            # gradient summed, over orders only, in long contiguous stretches.
            pairs = (f.shape[1], g.shape[1])
            f = f[:, :, None].expand(-1, *pairs, -1).flatten(1, 2)
            g = g[:, None].expand(-1, *pairs, -1).flatten(1, 2)
            outer = torch.view_as_real((f[:, None] * g).flatten(0, 1))
            h = operator(outer.flatten(1)).view(-1, *outer.shape[1:])
            parts = torch.view_as_complex(h).split([2 * degree + 1 for degree in degrees])
            for degree, part in zip(degrees, parts, strict=True):
                products.setdefault(degree, []).append(part)
        return [torch.cat(products[degree], dim=1) for degree in sorted(products)]


class FragmentMix(nn.Module):
    """Products divided by their size and mixed by complex weights, degree by degree:

    out^l_mt = sum over products c of W^l_tc h^l_mc / max(std_c, 1e-5),

    where std_c is the standard deviation of |h_c| over batch and m, averaged over all training
    batches so far, this one included; no gradient flows through it. Real and imaginary parts of W
    are drawn from U(0, 0.05).

    Args:
        in_channels: fragments of each degree that the products are made of.
        channels: fragments of each degree that come out; may have fewer degrees.

    Shapes: (2 l + 1, T_l, batch) -> (2 l + 1, channels[l], batch) for each degree given, l = 0, 1,
    ...; there are weights for all of `channels`, and those of degrees not given have no effect.
    """

    def __init__(self, in_channels: Sequence[int], channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        live = live_products(in_channels, len(channels))
        self.products = [len(mask) for mask in live]
        self.weights = [tau * n for tau, n in zip(channels, self.products, strict=True)]
        self.weight = nn.Parameter(torch.empty(sum(self.weights), 2))
        nn.init.uniform_(self.weight, 0, 0.05)
        self.register_buffer("live", as_buffer(np.concatenate(live)), persistent=False)
        self.register_buffer("std", torch.ones(sum(self.products)))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, products: Sequence[Tensor]) -> list[Tensor]:
        if self.training:
            self.batches += 1
            for std, h in zip(self.std.split(self.products), products, strict=False):
                std += (_spread(h) - std) / self.batches
        # Products that are 0 are masked: division would blow up what rounding leaves of them.
        scales = (self.live / self.std.clamp(min=EPSILON)).split(self.products)
        weights = torch.view_as_complex(self.weight).split(self.weights)
        mixed = []
        for h, weight, scale in zip(products, weights, scales, strict=False):
            weight = weight.view(-1, len(scale)) * scale
            mixed.append(torch.bmm(weight.expand(len(h), -1, -1), h))
        return mixed


class FragmentNet(nn.Module):
    """Harmonic coefficients of signals on the sphere, layers of products and mixing, and as
    invariants the fragments of degree 0 of all of them. Only they are read of the last layer, and
    only they are computed.

    Args:
        bandwidth: b, of the signals' grid.
        channels: of the signals.
        layers: fragments of each degree after each layer; all but the last, which may have fewer,
            and the coefficients have as many degrees.

    Shapes: (batch, channels, 4 b^2), points of the grid latlon<b>, -> invariants (batch, I), I =
    twice the number of fragments of degree 0.
    """

    def __init__(self, bandwidth: int, channels: int, layers: Sequence[Sequence[int]]) -> None:
        super().__init__()
        degrees = len(layers[0])
        self.shape = (channels, 4 * bandwidth**2)
        self.sizes = [2 * degree + 1 for degree in range(degrees)]
        analysis = s2_analysis(bandwidth, degrees)
        analysis = as_buffer(np.stack([analysis.real, analysis.imag]))
        self.register_buffer("analysis", analysis, persistent=False)
        self.product = CGProduct(degrees)
        self.last_product = CGProduct(degrees, degrees_out=1)
        inputs = [[channels] * degrees, *layers[:-1]]
        self.mixes = nn.ModuleList(map(FragmentMix, inputs, layers))
        self.n_invariants = 2 * (channels + sum(layer[0] for layer in layers))

    def invariants(self, x: Tensor) -> Tensor:
        """Real and imaginary parts of all fragments of degree 0, (batch, n_invariants); never in
        half precision, for which polynomials of degree 2^layers are too much (and complex numbers
        not made).
        """
        with torch.autocast(x.device.type, enabled=False):
            return self.scalars(self.coefficients(x))

    def coefficients(self, x: Tensor) -> list[Tensor]:
        """a_lm = integral of f conj(Y_lm) over the sphere: for each l (2 l + 1, channels, batch).

        Raises:
            ValueError: if x is not (batch, channels, 4 b^2).
        """
        checked(x, *self.shape, "FFS2CNN")
        parts = torch.einsum("ckp,bip->kibc", self.analysis, x).contiguous()
        return list(torch.view_as_complex(parts).split(self.sizes))

    def scalars(self, fragments: list[Tensor]) -> Tensor:
        """The invariants of a signal given by its coefficients."""
        scalars = [fragments[0][0]]
        for mix in self.mixes:
            product = self.last_product if mix is self.mixes[-1] else self.product
            fragments = mix(product(fragments))
            scalars.append(fragments[0][0])
        return torch.view_as_real(torch.cat(scalars).T.contiguous()).flatten(1)


class FFS2CNN(FragmentNet):
    """Classifier of signals on the sphere: coefficients of degrees 0..10, five layers of products
    and mixing, the fragments of degree 0 of all of them, batch norm, 256 hidden units with dropout.
    285,772 parameters at any level; 53,766 of them, the last layer's weights for degrees above 0,
    have no effect: only its degree 0 is read, and only that is computed.

    Shapes: (batch, 1, 4 b^2), points of the grid latlon<b>, b = round(30 2^(level - 4)),
    -> logits (batch, n_classes).

    Raises:
        ValueError: if `level` is below 3, or an input is not (batch, 1, 4 b^2).
    """

    def __init__(self, level: int = 4, n_classes: int = 10, dropout: float = 0.5) -> None:
        bandwidth = round(30 * 2.0 ** (level - 4))
        if bandwidth < DEGREES:
            raise ValueError(
                f"FFS2CNN needs degrees up to {DEGREES - 1}: level must be at least 3, not {level}"
            )
        super().__init__(bandwidth, 1, [CHANNELS] * LAYERS)
        self.head = nn.Sequential(
            nn.BatchNorm1d(self.n_invariants),
            nn.Linear(self.n_invariants, 256),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(256, n_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.invariants(x))


def _coupling_operator(l1: int, l2: int, degrees: range) -> SparseOperator:
    """Clebsch-Gordan coefficients with a row for each (l, m) and a column for each (m1, m2)."""
    blocks = [clebsch_gordan(l1, l2, degree) for degree in degrees]
    matrix = np.concatenate(blocks).reshape(-1, (2 * l1 + 1) * (2 * l2 + 1))
    return SparseOperator(sparse.csr_array(matrix))


def _spread(h: Tensor) -> Tensor:
    """Standard deviation of |h| over orders and batch, (2 l + 1, T, batch) -> (T,)."""
    with torch.no_grad():
        power = h.real.square() + h.imag.square()
        variance = power.mean(dim=(0, 2)) - power.sqrt().mean(dim=(0, 2)).square()
        return variance.clamp(min=0).sqrt()
