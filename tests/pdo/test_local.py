"""The fused pass over vertices, against the sparse matrix it stands for and in half precision."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from pdo import local
from pdo.frames import default_frames
from pdo.layers import PDOConv
from pdo.local import Derivatives
from pdo.mesh import Icosphere
from pdo.networks import pdo_es2cnn_small
from pdo.operators import derivative_matrix, derivative_rows, terms
from pdo.stencils import GAUSSIAN, PAPER, fit_stencil

MESH = Icosphere(2)


@pytest.mark.parametrize("spec", [PAPER, GAUSSIAN], ids=["paper", "gaussian"])
@pytest.mark.parametrize("orders", [0, 1, 2, 3, 5])  # N <= 7: one block; above: one for each mode
def test_blocks_are_the_matrix_and_its_transpose(orders, spec):
    stencil, out = fit_stencil(MESH, default_frames(MESH), spec), min(orders + 2, 5)
    matrix = derivative_matrix(stencil, MESH.mean_edge, orders, out, len(MESH))
    rows = [derivative_rows(m, orders) for m in range(out + 1)]
    torch.set_default_dtype(torch.float64)
    derivatives = Derivatives(matrix, rows, 2 * orders + 1)
    torch.set_default_dtype(torch.float32)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((len(MESH), 2 * orders + 1, 3))
    y = torch.cat([derivatives.of(torch.tensor(x), slice(a, a + 50)) for a in range(0, 162, 50)])
    starts = np.cumsum([0, *rows])
    of_orders = [y[:, a:b].reshape(-1, 3) for a, b in pairwise(starts)]
    want = matrix @ x.reshape(-1, 3)
    np.testing.assert_allclose(torch.cat(of_orders).numpy(), want, atol=1e-12 * abs(want).max())
    total = torch.zeros_like(torch.tensor(x))
    grad = torch.tensor(rng.standard_normal(y.shape))
    for a in range(0, 162, 50):
        derivatives.add_transposed(grad[a : a + 50], slice(a, a + 50), total)
    torch.testing.assert_close((grad * y).sum(), (total * torch.tensor(x)).sum())


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
    assert len(local.chunks(x, sum(conv.derivatives.rows))) > 5
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
