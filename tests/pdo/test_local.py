"""The fused pass over vertices, against the sparse matrix it stands for and in half precision."""

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from pdo import kernels, local
from pdo.frames import default_frames
from pdo.kernels import array
from pdo.layers import PDOConv
from pdo.local import Derivatives, FieldOperator
from pdo.mesh import Icosphere
from pdo.networks import PDOeS2CNN, pdo_es2cnn_small
from pdo.operators import derivative_matrix, derivative_rows, terms, transport_matrix
from pdo.stencils import GAUSSIAN, PAPER, fit_stencil, restrict, smoothing_stencil

MESH = Icosphere(2)


@pytest.mark.parametrize("spec", [PAPER, GAUSSIAN], ids=["paper", "gaussian"])
@pytest.mark.parametrize("orders", [0, 1, 2, 3, 5])
def test_kernels_are_the_matrix_and_its_transpose(float64, orders, spec):
    stencil, out = fit_stencil(MESH, default_frames(MESH), spec), min(orders + 2, 5)
    matrix = derivative_matrix(stencil, MESH.mean_edge, orders, out, len(MESH))
    rows = [derivative_rows(m, orders) for m in range(out + 1)]
    derivatives = Derivatives(matrix, rows, 2 * orders + 1)
    x = torch.randn(len(MESH), 2 * orders + 1, 3, 2)
    y = torch.full((sum(rows), 3, len(MESH), 2), torch.nan)
    total, grad = torch.zeros_like(x), torch.randn(y.shape)
    assert torch.equal(derivatives.order.sort().values, torch.arange(len(MESH)))
    for vertices in derivatives.order.split(50):
        part = torch.empty(sum(rows), 3, len(vertices), 2)
        derivatives.gather(x, vertices, True, part)
        y[:, :, vertices] = part
        derivatives.scatter(grad[:, :, vertices].contiguous(), vertices, total)
    starts = np.cumsum([0, *rows])
    of_orders = [y[a:b].permute(2, 0, 1, 3).reshape(-1, 6) for a, b in pairwise(starts)]
    want = matrix @ x.reshape(-1, 6).numpy()
    np.testing.assert_allclose(torch.cat(of_orders).numpy(), want, atol=1e-12 * abs(want).max())
    torch.testing.assert_close((grad * y).sum(), (total * x).sum())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_field_operator_is_its_matrix(float64, threads):
    """A rectangular one: pooling from 162 vertices to 42."""
    coarse = Icosphere(1)
    stencil = restrict(smoothing_stencil(MESH, default_frames(MESH)), len(coarse))
    matrix = transport_matrix(stencil, 2, len(coarse), len(MESH))
    operator, x = FieldOperator(matrix, 5), torch.randn(len(MESH), 5, 3, 4, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    want = torch.tensor(matrix.toarray()) @ x.reshape(-1, 12)
    torch.testing.assert_close(operator(x).reshape(-1, 12), want)
    grad = torch.randn(len(coarse), 5, 3, 4)
    (ours,) = torch.autograd.grad(operator(x), x, grad)
    (theirs,) = torch.autograd.grad(want, x, grad.reshape(-1, 12))
    torch.set_num_threads(before)
    torch.testing.assert_close(ours, theirs)
    assert not operator.state_dict()


def test_the_number_of_threads_changes_no_bit():
    torch.manual_seed(0)
    net, x = pdo_es2cnn_small(level=3), torch.randn(4, 1, len(Icosphere(3)))

    def gradients(threads):
        torch.set_num_threads(threads)
        return torch.autograd.grad(net.features[:3](net._as_field(x)).square().sum(), weights)

    before, weights = torch.get_num_threads(), list(net.features[:3].parameters())
    try:
        one, two = gradients(1), gradients(2)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_torch_keeps_its_number_of_threads():
    """Numba starts its own at the first loop, and tells OpenMP, which is torch's too, how many."""
    script = (
        "import torch; torch.set_num_threads(1);"
        "from pdo.networks import pdo_es2cnn_small;"
        "pdo_es2cnn_small(level=3)(torch.zeros(2, 1, 642));"
        "print(torch.get_num_threads())"
    )
    two = os.environ | {"NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=two, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize("stencil", ["smoothed", "paper"])
def test_kernels_agree_with_the_way_of_a_gpu(float64, stencil, monkeypatch):
    """The same network where the tensors say that they are not on a CPU."""
    torch.manual_seed(0)
    net = PDOeS2CNN(2, ((4,), (8, 8), (8,)), stencil=stencil)
    x = torch.randn(3, 1, len(MESH))

    def step():
        logits = net(x)
        return [logits, *torch.autograd.grad(logits.square().sum(), list(net.parameters()))]

    ours = step()
    monkeypatch.setattr(kernels, "apply_to", lambda x: False)
    for a, b in zip(ours, step(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_bfloat16_rounds_to_the_nearest_even():
    values = torch.tensor([1.0, 1.00390625, 1.01171875, -3.1415927, 1e-3, 65504.0]).repeat(8)
    out, first = torch.empty(1, 48, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int64)
    kernels.to_columns(array(values.view(1, 1, 48)), array(first), array(out.view(1, 1, 48)))
    torch.testing.assert_close(out, values.to(torch.bfloat16)[None], rtol=0, atol=0)


def test_rows_are_those_of_the_terms():
    assert [derivative_rows(m, 2) for m in range(3)] == [6, 10, 8]
    for orders in range(4):
        first = sum(1 if t.n == 0 else 2 for t in terms(0, orders))
        assert derivative_rows(0, orders) == first


@pytest.mark.parametrize("orders", [2, 4])
def test_chunks_do_not_change_the_layer(monkeypatch, orders):
    torch.manual_seed(0)
    conv = PDOConv(MESH, 2, 3, orders).double()
    x = torch.randn(len(MESH), 2 * orders + 1, 2, 3, dtype=torch.float64, requires_grad=True)

    def step():
        y = conv(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *conv.weights])]

    whole = step()
    monkeypatch.setattr(local, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(local, "KEPT_BYTES", 20_000)
    assert len(local.chunks(x, conv.derivatives, x.dtype)) > 5
    for a, b in zip(step(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_mixed_precision_is_close_and_leaves_fields_alone():
    """bfloat16 has 8 significant bits: about 0.4 % a product, less in a sum of many."""
    torch.manual_seed(0)
    conv = PDOConv(MESH, 8, 8, 2)
    x = torch.randn(len(MESH), 5, 8, 4, requires_grad=True)

    def step(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = conv(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *conv.weights])]

    for low, full in zip(step(True), step(False), strict=True):
        assert low.dtype == torch.float32
        error = (low - full).norm() / full.norm()
        assert 1e-4 < error < 1e-2


def test_a_network_in_mixed_precision_gives_nearly_the_same_features():
    torch.manual_seed(0)
    net, x = pdo_es2cnn_small(level=3), torch.randn(4, 1, len(Icosphere(3)))
    full = net.invariants(x)
    with torch.autocast("cpu", torch.bfloat16):
        low, logits = net.invariants(x), net(x)
    assert low.dtype == logits.dtype == torch.float32
    assert 1e-5 < (low - full).norm() / full.norm() < 0.05
