"""Layers on fields, in the spectral form: equivariant up to the discretisation.

Layout of a field: (vertex, fibre coordinate, channel, batch), see `pdo.operators` for the fibre.
On a CPU sums over neighbours are compiled loops that lay derivatives out as one matrix for the
mixing (`pdo.derivatives`); elsewhere CSR products and products batched over vertices.
Under `torch.autocast` derivatives and mixing are computed in its dtype; everything else, and what
layers pass on, stays in the field's own.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from pdo.derivatives import Derivatives, derive_and_mix
from pdo.fields import check_field
from pdo.frames import default_frames
from pdo.local import FieldOperator
from pdo.mesh import Icosphere
from pdo.operators import all_terms, derivative_rows, transport_matrix
from pdo.precision import compute_dtype, full_precision
from pdo.stencils import (
    SMOOTHED,
    StencilSpec,
    layer_stencils,
    midpoint_stencil,
    restrict,
    smoothing_stencil,
    without_transport,
)


class PDOConv(nn.Module):
    """Group layer: out_m = sum over s, k of W_{m,s,k} D_{s,k} f_{m-s}.

    D are the identity, h^2 Laplacian, h eth, h^2 eth^2 and conjugates, W complex and shared by all
    vertices, W_{-m,-s,k} = conj W_{m,s,k}. With `input_orders = 0` the input is a signal on the
    sphere and this is the lifting layer Psi. h is the mesh's mean edge in radians, so that the
    weights are pure numbers.

    Args:
        mesh: where the field lives, V vertices.
        in_fields: C_in.
        out_fields: C_out.
        orders: fibre modes |n| <= orders of the output.
        input_orders: of the input; `orders` unless given, 0 for signals on the sphere.
        stencil: how derivatives are estimated.
        transport: carry neighbours' fibres to the frame at P; without it (for comparison) the
            layer is equivariant only where frames happen to agree.

    Shapes: (V, 2 input_orders + 1, C_in, B) -> (V, 2 orders + 1, C_out, B).

    Second derivatives raise the order by two: modes of the output above input_orders + 2 are zero.

    Raises:
        ValueError: if the stencil's rings hold too few neighbours for its polynomial, orders are
            below 0, or the input has another shape.
        TypeError: if the input is not in the layer's precision, float32 or float64; or under
            autocast in float16 on a CPU.

    Source: Shen, Shen, Lin, Ma (AAAI 2021), layers Psi and Phi; their form in fibre modes is ours.
    """

    def __init__(
        self,
        mesh: Icosphere,
        in_fields: int,
        out_fields: int,
        orders: int,
        input_orders: int | None = None,
        stencil: StencilSpec = SMOOTHED,
        transport: bool = True,
    ) -> None:
        super().__init__()
        input_orders = orders if input_orders is None else input_orders
        for name, value in (("orders", orders), ("input_orders", input_orders)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        self.mesh, self.stencil, self.transport = mesh, stencil, transport
        self.orders, self.input_orders = orders, input_orders
        reached = min(orders, input_orders + 2)  # second derivatives raise the order by two
        self.in_fields, self.out_fields = in_fields, out_fields
        self.unreached = 2 * (orders - reached)
        frames = default_frames(mesh)
        smooth, fit = layer_stencils(mesh, frames, stencil, transport)
        self.smoothing = None
        if smooth is not None:
            self.smoothing = FieldOperator(
                transport_matrix(smooth, input_orders, len(mesh)), 2 * input_orders + 1
            )
        listed = all_terms(input_orders, reached)
        self.derivatives = Derivatives(fit, mesh.mean_edge, listed, input_orders, len(mesh))
        self.weights = nn.ParameterList()
        for m, found in enumerate(listed):
            # order 0: real weights, one for each real row
            count = derivative_rows(0, found) if m == 0 else len(found)
            fan_in = (1 if m == 0 else 2) * count * in_fields
            shape = (count, out_fields, in_fields) if m == 0 else (2, count, out_fields, in_fields)
            self.weights.append(nn.Parameter(torch.randn(shape) * math.sqrt(2 / fan_in)))

    def forward(self, x: Tensor) -> Tensor:
        n = 2 * self.input_orders + 1
        check_field(self, x, len(self.mesh), n, self.in_fields, self.weights[0].dtype)
        if self.smoothing is not None:
            x = self.smoothing(x)
        out = derive_and_mix(x, self.derivatives, list(self.weights), compute_dtype(x))
        return nn.functional.pad(out, (0, 0, 0, 0, 0, self.unreached)) if self.unreached else out


class Pool(nn.Module):
    """Two-ring smoothing, taken at the vertices of the next coarser mesh (anti-aliased); without
    `smooth`, the values there (ours).

    Args:
        mesh: of the input, V vertices.
        coarse: of the output, one level below, V' vertices.
        orders: of the field, N = 2 orders + 1.
        transport: carry neighbours' fibres to the frame at P.
        smooth: smooth before subsampling.

    Shapes: (V, N, C, B) -> (V', N, C, B), V' about V / 4.

    Raises:
        ValueError: if `coarse` is not one level below `mesh`, or the input has another shape.
        TypeError: if the input is not in the layer's precision, float32 or float64.
    """

    def __init__(
        self,
        mesh: Icosphere,
        coarse: Icosphere,
        orders: int,
        transport: bool = True,
        smooth: bool = True,
    ) -> None:
        super().__init__()
        if coarse.level != mesh.level - 1:
            raise ValueError(f"level {coarse.level} is not one below level {mesh.level}")
        self.mesh, self.coarse, self.orders, self.operator = mesh, coarse, orders, None
        if smooth:
            stencil = restrict(smoothing_stencil(mesh, default_frames(mesh)), len(coarse))
            stencil = stencil if transport else without_transport(stencil)
            self.operator = FieldOperator(
                transport_matrix(stencil, orders, len(coarse), len(mesh)), 2 * orders + 1
            )

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype if self.operator is None else self.operator.dtype
        check_field(self, x, len(self.mesh), 2 * self.orders + 1, "C", dtype)
        if self.operator is None:
            return x[: len(self.coarse)].contiguous()
        return self.operator(x)


class Unpool(nn.Module):
    """Linear interpolation on the next finer mesh (ours): a vertex keeps its fibre, the new one on
    an edge has the mean of the two fibres at its ends, carried to it.

    Args:
        coarse: of the input, V vertices.
        mesh: of the output, one level above.
        orders: of the field, N = 2 orders + 1.

    Shapes: (V, N, C, B) -> (4 V - 6, N, C, B).

    Raises:
        ValueError: if `mesh` is not one level above `coarse`, or the input has another shape.
        TypeError: if the input is not in the layer's precision, float32 or float64.
    """

    def __init__(self, coarse: Icosphere, mesh: Icosphere, orders: int) -> None:
        super().__init__()
        if mesh.level != coarse.level + 1:
            raise ValueError(f"level {mesh.level} is not one above level {coarse.level}")
        self.coarse, self.orders = coarse, orders
        stencil = midpoint_stencil(coarse, default_frames(mesh))
        matrix = transport_matrix(stencil, orders, len(mesh), len(coarse))
        self.operator = FieldOperator(matrix, 2 * orders + 1)

    def forward(self, x: Tensor) -> Tensor:
        check_field(self, x, len(self.coarse), 2 * self.orders + 1, "C", self.operator.dtype)
        return self.operator(x)


class InvariantReadout(nn.Module):
    """Mean over the fibre (mode 0) and area-weighted over the sphere, which rotations leave as it
    is: (1 / 4 pi) sum over P of area(P) f_0(P) (ours).

    Shapes: (V, N, C, B) -> (B, C).

    Raises:
        ValueError: if the input has another shape.
        TypeError: if the input is not in the layer's precision, float32 or float64.
    """

    areas: Tensor

    def __init__(self, mesh: Icosphere) -> None:
        super().__init__()
        areas = torch.tensor(mesh.vertex_areas / (4 * np.pi), dtype=torch.get_default_dtype())
        self.register_buffer("areas", areas, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        check_field(self, x, len(self.areas), "N", "C", self.areas.dtype)
        with full_precision(x):
            return torch.einsum("v,vcb->bc", self.areas, x[:, 0])
