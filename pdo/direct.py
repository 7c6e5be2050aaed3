"""The PDO layers in their direct form, to be read beside the paper: fibres sampled on C_N.

A regular field h(P, A) is stored at the orientations A = rotation by phi_a = 2 pi a / N.

    operator       H(d1, d2; w) = w1 + w2 d1 + w3 d2 + w4 d11 + w5 d12 + w6 d22, chi^(A) its copy
                   rotated by A: gradient -> A^-1 gradient, Hessian -> A^-1 Hessian A
    lifting layer  (Psi f)(P, A) = chi^(A)[f](P)
    group layer    (Phi h)(P, A) = sum over B in C_N of chi_B^(A)[h](P, AB)

`pdo.layers.PDOConv` is the same function in fibre modes and is what trains; `to_direct` and
`to_spectral` convert the parameters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from pdo.fields import check_field
from pdo.frames import default_frames
from pdo.layers import PDOConv
from pdo.mesh import Icosphere
from pdo.operators import CONJUGATE, SHIFTS, terms
from pdo.precision import default_dtype, full_precision
from pdo.sparse import SparseOperator
from pdo.stencils import SMOOTHED, Stencil, StencilSpec, layer_stencils

Interpolation = Literal["trigonometric", "linear"]

DEGREES = np.array([0, 1, 1, 2, 2, 2])
"""Degree of each derivative (value, d1, d2, d11, d12, d22)."""

ETH = torch.tensor(
    [
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 1],
        [0, 1, 1j, 0, 0, 0],
        [0, 1, -1j, 0, 0, 0],
        [0, 0, 0, 1, 2j, -1],
        [0, 0, 0, 1, -2j, -1],
    ],
    dtype=torch.complex128,
)
"""The operators of the spectral form (rows, as in `SHIFTS`) from the six derivatives (columns)."""


class DirectPDOConv(nn.Module):
    """Psi (`lifting`) or Phi of the paper, every sum as it is written there.

    Derivatives are taken in units of the mean edge h (h d1, h^2 d11, ...), so that the weights
    (B, 6, C_out, C_in) are pure numbers; a lifting layer has one B. The fibres of neighbours are
    carried to P's frame before they are differentiated.

    For odd N = 2M + 1 and trigonometric interpolation this contains every spectral layer with
    |n| <= M. What it has besides are couplings that wrap: on N samples e^{-i (M+1) phi} looks like
    e^{i M phi}, so a derivative that raises the order beyond M comes out at the other end. They
    depend on the choice of frames; the continuous layer has none.

    Args:
        mesh: where the field lives, V vertices.
        in_fields: C_in.
        out_fields: C_out.
        samples: N, of the fibre.
        lifting: take signals on the sphere, not fields.
        stencil: how derivatives are estimated.
        interpolation: between the samples of a turned fibre, "trigonometric" or "linear". With
            an even N the trigonometric one takes the mode N / 2 as a cosine: no rotation of it.
        transport: carry neighbours' fibres to the frame at P.

    Shapes: (V, N, C_in, B) -> (V, N, C_out, B); lifting: (V, 1, C_in, B) -> (V, N, C_out, B).

    Raises:
        ValueError: if the interpolation has another name, there are no samples, the stencil's
            rings hold too few neighbours for its polynomial, or the input has another shape.
        TypeError: if the input is not in the layer's precision, float32 or float64.

    Source: Shen, Shen, Lin, Ma (AAAI 2021), layers Psi and Phi; the transport of fibres is ours.
    """

    def __init__(
        self,
        mesh: Icosphere,
        in_fields: int,
        out_fields: int,
        samples: int,
        lifting: bool = False,
        stencil: StencilSpec = SMOOTHED,
        interpolation: Interpolation = "trigonometric",
        transport: bool = True,
    ) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"a fibre has one sample at least, not {samples}")
        self.mesh, self.samples, self.lifting, self.stencil = mesh, samples, lifting, stencil
        self.transport = transport
        input_samples = 1 if lifting else samples
        smooth, fit = layer_stencils(mesh, default_frames(mesh), stencil, transport)
        self.smoothing = None
        if smooth is not None:
            self.smoothing = TransportedStencil(smooth, input_samples, interpolation)
        fit = replace(fit, weights=fit.weights * mesh.mean_edge**DEGREES)
        self.derivatives = TransportedStencil(fit, input_samples, interpolation)
        self.register_buffer("chi", chi(samples), persistent=False)
        scale = np.sqrt(2 / (6 * input_samples * in_fields))
        self.weight = nn.Parameter(scale * torch.randn(input_samples, 6, out_fields, in_fields))

    def forward(self, h: Tensor) -> Tensor:
        input_samples, _, _, in_fields = self.weight.shape
        check_field(self, h, len(self.mesh), input_samples, in_fields, self.weight.dtype)
        with full_precision(h):
            if self.smoothing is not None:
                h = self.smoothing(h)[:, 0]
            derivatives = self.derivatives(h)
            # At output A the sample C = AB is differentiated with the weights of B = A^-1 C.
            weight = torch.stack([self.weight.roll(a, 0) for a in range(self.samples)])
            rotated = torch.einsum("acjoi,ajk->aokci", weight, self.chi)
            return torch.einsum("aokci,vkcib->vaob", rotated, derivatives)


class TransportedStencil(nn.Module):
    """Stencil sums over neighbours Q whose fibres are carried to the frame at P:
    out(P, k, phi) = sum over Q of weight_k(P, Q) h(Q, phi - theta_PQ).

    Shapes: (V, N, C, B) -> (V, K, N, C, B) for a stencil of K quantities.
    """

    turns: Tensor
    neighbours: Tensor

    def __init__(self, stencil: Stencil, samples: int, interpolation: Interpolation) -> None:
        super().__init__()
        turns = turn_matrices(stencil.angles, samples, interpolation)
        self.register_buffer("turns", turns, persistent=False)
        self.register_buffer("neighbours", torch.from_numpy(stencil.cols), persistent=False)
        entries, quantities = stencil.weights.shape
        rows = stencil.rows[:, None] * quantities + np.arange(quantities)
        cols = np.repeat(np.arange(entries), quantities)
        shape = ((stencil.rows.max() + 1) * quantities, entries)
        sums = sparse.csr_array((stencil.weights.ravel(), (rows.ravel(), cols)), shape=shape)
        self.sum, self.quantities = SparseOperator(sums), quantities

    def forward(self, h: Tensor) -> Tensor:
        _, n, c, b = h.shape
        carried = self.turns @ h.index_select(0, self.neighbours).flatten(2)
        return self.sum(carried.flatten(1)).view(-1, self.quantities, n, c, b)


def turn_matrices(angles: np.ndarray, samples: int, interpolation: Interpolation) -> Tensor:
    """Matrices (E, N, N) from the samples of a fibre h(phi) to those of h(phi - angle).

    Trigonometric: exact for modes |n| < N / 2 (for even N the mode N / 2 is taken as a cosine).
    Linear between the two nearest samples: O(1/N^2).

    Raises:
        ValueError: if the interpolation has another name.
    """
    step = 2 * np.pi / samples
    index = np.arange(samples)
    # What the sample phi_0 = 0 gives to all others; the other samples give the same, shifted.
    if interpolation == "trigonometric":
        offset = step * index - angles[:, None]
        given = np.ones_like(offset)
        for n in range(1, samples // 2 + 1):
            given += (1 if 2 * n == samples else 2) * np.cos(n * offset)
        given /= samples
    elif interpolation == "linear":
        place = angles / step
        above = np.ceil(place).astype(np.int64)
        part, one = (above - place)[:, None], np.eye(samples)
        given = (1 - part) * one[above % samples] + part * one[(above - 1) % samples]
    else:
        raise ValueError(
            f"unknown fibre interpolation {interpolation!r}: take 'trigonometric' or 'linear'"
        )
    matrices = given[:, (index[:, None] - index[None, :]) % samples]
    return torch.tensor(matrices, dtype=torch.get_default_dtype())


def chi(samples: int) -> Tensor:
    """chi[a] (N, 6, 6) takes the derivatives (value, d1, d2, d11, d12, d22) at P to those along the
    axes turned by A = rotation by phi_a: gradient -> A^-1 gradient, Hessian -> A^-1 Hessian A."""
    matrices = np.empty((samples, 6, 6))
    for a in range(samples):
        c, s = np.cos(2 * np.pi * a / samples), np.sin(2 * np.pi * a / samples)
        rotation = np.array([[c, -s], [s, c]])
        matrices[a] = np.column_stack([_rotate(unit, rotation) for unit in np.eye(6)])
    return torch.tensor(matrices, dtype=torch.get_default_dtype())


def _rotate(derivatives: np.ndarray, rotation: np.ndarray) -> list[float]:
    value, d1, d2, d11, d12, d22 = derivatives
    inverse = rotation.T
    gradient = inverse @ [d1, d2]
    hessian = inverse @ [[d11, d12], [d12, d22]] @ rotation
    return [value, *gradient, hessian[0, 0], hessian[0, 1], hessian[1, 1]]


def to_direct(layer: PDOConv) -> DirectPDOConv:
    """The direct layer, N = 2 orders + 1, of the same function: on samples of the fibre
    (`pdo.activation.fibre_basis`) instead of its modes.

    Raises:
        ValueError: if input and output keep different orders (and the input is no signal on the
            sphere): the paper's form has one C_N.
    """
    if layer.input_orders not in (0, layer.orders):
        raise ValueError(
            f"the direct form has one C_N for input and output, but this layer takes orders up to "
            f"{layer.input_orders} to orders up to {layer.orders}"
        )
    weight = direct_weight(list(layer.weights), layer.input_orders)
    _, _, out_fields, in_fields = weight.shape
    with default_dtype(weight.dtype):
        direct = DirectPDOConv(
            layer.mesh,
            in_fields,
            out_fields,
            2 * layer.orders + 1,
            lifting=layer.input_orders == 0,
            stencil=layer.stencil,
            transport=layer.transport,
        ).to(weight.device)
    with torch.no_grad():
        direct.weight.copy_(weight)
    return direct


def to_spectral(layer: DirectPDOConv, drop_wrapped: bool = False) -> PDOConv:
    """The spectral layer, orders = (N - 1) / 2, of the same function (of its trigonometric twin, if
    it interpolates linearly). Couplings that wrap are left out if `drop_wrapped`: 6 of the 6 N real
    weights of a channel pair in a group layer, N >= 3.

    Raises:
        ValueError: if N is even, or the layer has couplings that wrap and they may not be dropped.
    """
    if layer.samples % 2 == 0:
        raise ValueError(f"the spectral form has an odd number of samples, not {layer.samples}")
    orders = layer.samples // 2
    input_orders = 0 if layer.lifting else orders
    weights, wrapped = spectral_weights(layer.weight, orders)
    largest = layer.weight.abs().max()
    if not drop_wrapped and wrapped > 100 * torch.finfo(layer.weight.dtype).eps * largest:
        raise ValueError(
            f"the layer couples orders that wrap modulo N = {layer.samples} (largest coupling "
            f"{wrapped:.2g}, largest weight {largest:.2g}); the spectral form cannot: "
            "pass drop_wrapped=True to leave them out"
        )
    _, _, out_fields, in_fields = layer.weight.shape
    with default_dtype(layer.weight.dtype):
        spectral = PDOConv(
            layer.mesh,
            in_fields,
            out_fields,
            orders,
            input_orders,
            stencil=layer.stencil,
            transport=layer.transport,
        ).to(layer.weight.device)
    with torch.no_grad():
        for parameter, weight in zip(spectral.weights, weights, strict=True):
            parameter.copy_(weight)
    return spectral


# Between the two parameterisations stand the complex couplings V_s(n), (6, 2M+1, C_out, C_in):
# what operator s of the spectral form counts when applied to the mode n = -M..M of the input. From
# (Phi h)(phi_a) = sum_b sum_s v_{s,b} e^{-i s phi_a} sum_n D_s h_n e^{-i n (phi_a + phi_b)}
# it is V_s(n) = sum_b v_{s,b} e^{-i n phi_b} = W_{n+s,s}, where sum_s v_s D_s = sum_k w_k d_k.


def direct_weight(weights: list[Tensor], input_orders: int) -> Tensor:
    """Weights of `PDOConv` -> weight of `DirectPDOConv`; linear, differentiable."""
    out_fields, in_fields = weights[0].shape[1:]
    dtype = torch.complex(weights[0], weights[0]).dtype
    shape = (6, 2 * input_orders + 1, out_fields, in_fields)
    couplings = torch.zeros(shape, dtype=dtype, device=weights[0].device)
    for m, weight in enumerate(weights):
        rows = iter(weight if m == 0 else torch.complex(*weight))
        for s, n in _couplings_of_order(m, input_orders):
            coupling = next(rows)
            if m == 0 and n > 0:  # out_0 = 2 Re(V_s(n) D_s f_n), from rows sqrt2 (Re, Im) D_s f_n
                coupling = torch.complex(coupling, -next(rows)) / np.sqrt(2)
            couplings[s, input_orders + n] = coupling
            couplings[CONJUGATE[s], input_orders - n] = coupling.conj()
    inverse = _fourier(input_orders).conj().to(couplings) / (2 * input_orders + 1)
    return torch.einsum("sk,nb,snoi->bkoi", ETH.to(couplings), inverse, couplings).real


def spectral_weights(weight: Tensor, orders: int) -> tuple[list[Tensor], float]:
    """Weight of `DirectPDOConv` -> weights of `PDOConv`, and the largest coupling that wraps, which
    those leave out. Linear, differentiable."""
    input_orders = len(weight) // 2
    weight = torch.complex(weight, torch.zeros_like(weight))
    inverse, fourier = torch.linalg.inv(ETH).to(weight), _fourier(input_orders).to(weight)
    couplings = torch.einsum("ks,nb,bkoi->snoi", inverse, fourier, weight)
    weights = []
    for m in range(min(orders, input_orders + 2) + 1):
        rows = []
        for s, n in _couplings_of_order(m, input_orders):
            coupling = couplings[s, input_orders + n]
            if m > 0:
                rows.append(torch.view_as_real(coupling).movedim(-1, 0))
            elif n == 0:
                rows.append(coupling.real)
            else:
                rows += [np.sqrt(2) * coupling.real, -np.sqrt(2) * coupling.imag]
        weights.append(torch.stack(rows, dim=0 if m == 0 else 1))
    reached = torch.arange(-input_orders, input_orders + 1) + torch.tensor(SHIFTS)[:, None]
    wrapped = couplings.detach()[reached.abs() > orders].abs()
    return weights, float(wrapped.max()) if len(wrapped) else 0.0


def _couplings_of_order(m: int, input_orders: int) -> list[tuple[int, int]]:
    """The pairs (operator s, signed input order n) behind `terms(m, input_orders)`."""
    return [
        (CONJUGATE[t.operator], -t.n) if t.conjugate else (t.operator, t.n)
        for t in terms(m, input_orders)
    ]


def _fourier(orders: int) -> Tensor:
    """e^{-i n phi_b}, (n = -orders..orders, b), complex128."""
    samples = 2 * orders + 1
    angle = 2 * np.pi * torch.arange(samples, dtype=torch.float64) / samples
    return torch.exp(-1j * torch.arange(-orders, orders + 1)[:, None] * angle)
