"""The fused pass over vertices, against the sparse matrix it stands for and in half precision."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import sparse

from pdo import kernels, local
from pdo.derivatives import Derivatives, derive_and_mix
from pdo.frames import default_frames
from pdo.kernels import array
from pdo.layers import PDOConv
from pdo.local import FieldOperator
from pdo.mesh import Icosphere
from pdo.networks import PDOeS2CNN, pdo_es2cnn_small
from pdo.operators import (
    all_terms,
    complex_operators,
    coordinates,
    derivative_matrix,
    derivative_rows,
    terms,
    terms_of_input,
    transport_matrix,
)
from pdo.stencils import GAUSSIAN, PAPER, fit_stencil, restrict, smoothing_stencil

MESH = Icosphere(2)


def derivatives_of(spec, orders, out):
    stencil, listed = fit_stencil(MESH, default_frames(MESH), spec), all_terms(orders, out)
    arguments = stencil, MESH.mean_edge, listed, orders, len(MESH)
    return Derivatives(*arguments), arguments


def rows_at_vertices(near, x):
    """What the kernel gathers, (V, R, C B), made in parts."""
    y = torch.full((near.rows, x.shape[2], len(x), x.shape[3]), torch.nan)
    assert torch.equal(near.order.sort().values, torch.arange(len(x)))
    for vertices in near.order.split(50):
        part = torch.empty(near.rows, x.shape[2], len(vertices), x.shape[3])
        near.gather(x, vertices, True, part)
        y[:, :, vertices] = part
    return y.permute(2, 0, 1, 3).flatten(2)


@pytest.mark.parametrize("spec", [PAPER, GAUSSIAN], ids=["paper", "gaussian"])
@pytest.mark.parametrize("orders", [0, 1, 2, 3, 5])
def test_kernels_are_the_matrix_and_its_transpose(float64, orders, spec):
    derivatives, arguments = derivatives_of(spec, orders, min(orders + 2, 5))
    listed, v = arguments[2], len(MESH)
    x = torch.randn(v, 2 * orders + 1, 3, 2)
    y = rows_at_vertices(derivatives, x).numpy()
    want = derivative_matrix(*arguments) @ x.reshape(-1, 6).numpy()
    counts = np.cumsum([derivative_rows(m, found) for m, found in enumerate(listed)])
    found = np.concatenate([part.reshape(-1, 6) for part in np.split(y, counts[:-1], axis=1)])
    np.testing.assert_allclose(found, want, atol=1e-12 * abs(want).max())

    total, grad = torch.zeros_like(x), torch.randn(derivatives.rows, 3, v, 2)
    for vertices in derivatives.order.split(50):
        derivatives.scatter(grad[:, :, vertices].contiguous(), vertices, total)
    same = (grad.permute(2, 0, 1, 3).flatten(2) * torch.from_numpy(y)).sum()
    torch.testing.assert_close((total * x).sum(), same, rtol=1e-11, atol=0)


@pytest.mark.parametrize("orders, out", [(0, 0), (0, 2), (1, 3), (2, 2), (3, 1), (5, 5)])
def test_adjoints_are_those_of_the_complex_operators(float64, orders, out):
    """D^H g_m of every term, D a complex matrix of its own; of conj g_m where it reads conj f_n."""
    derivatives, (stencil, h, listed, _, v) = derivatives_of(GAUSSIAN, orders, out)
    grad = torch.randn(v, 2 * out + 1, 1, 1)
    found = iter(rows_at_vertices(derivatives.back, grad)[..., 0].numpy().T)
    for n in range(orders + 1):
        for m, _, term in terms_of_input(listed, n):
            weights = complex_operators(stencil, h)[term.operator]
            weights = weights * np.exp(1j * n * stencil.angles)
            matrix = sparse.coo_array((weights, (stencil.rows, stencil.cols)), shape=(v, v))
            parts = grad[:, coordinates(m), 0, 0].numpy()
            g = parts @ [1, 1j] if m else parts[:, 0]
            want = matrix.conj().T @ (g.conj() if term.conjugate else g)
            want = want * (np.sqrt(2) if n == 0 < m else 1)
            np.testing.assert_allclose(next(found), want.real, atol=1e-12)
            if m or n:
                np.testing.assert_allclose(next(found), want.imag, atol=1e-12)
    assert next(found, None) is None


@pytest.mark.parametrize("fields", [(2, 3), (3, 2), (1, 1)], ids="{0[0]} to {0[1]}".format)
@pytest.mark.parametrize("orders", [(0, 0), (0, 3), (1, 3), (2, 2), (3, 1)])
def test_gradients_are_finite_differences(float64, orders, fields):
    """Both ways back: the derivatives again, or the adjoints of the gradient."""
    torch.manual_seed(0)
    mesh, (inputs, outputs) = Icosphere(0), orders
    conv = PDOConv(mesh, *fields, outputs, inputs, stencil=PAPER)
    x = torch.randn(len(mesh), 2 * inputs + 1, fields[0], 1, requires_grad=True)

    def layer(x, *weights):
        return derive_and_mix(x, conv.derivatives, weights, x.dtype)

    assert torch.autograd.gradcheck(layer, (x, *conv.weights))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_field_operator_is_its_matrix(float64, threads):
    """A rectangular one: pooling from 162 vertices to 42."""
    coarse = Icosphere(1)
    stencil = restrict(smoothing_stencil(MESH, default_frames(MESH)), len(coarse))
    matrix = transport_matrix(stencil, 2, len(coarse), len(MESH))
    operator, x = FieldOperator(matrix, 5), torch.randn(len(MESH), 5, 3, 4, requires_grad=True)
    torch.set_num_threads(threads)
    want = torch.tensor(matrix.toarray()) @ x.reshape(-1, 12)
    torch.testing.assert_close(operator(x).reshape(-1, 12), want)
    grad = torch.randn(len(coarse), 5, 3, 4)
    (ours,) = torch.autograd.grad(operator(x), x, grad)
    (theirs,) = torch.autograd.grad(want, x, grad.reshape(-1, 12))
    torch.testing.assert_close(ours, theirs)
    assert not operator.state_dict()


def test_the_number_of_threads_changes_no_bit():
    torch.manual_seed(0)
    net, x = pdo_es2cnn_small(level=3), torch.randn(4, 1, len(Icosphere(3)))
    part = net.features[:9]  # layers that widen the field, and one that does not

    def gradients(threads):
        torch.set_num_threads(threads)
        return torch.autograd.grad(part(net._as_field(x)).square().sum(), weights)

    weights = list(part.parameters())
    one, two = gradients(1), gradients(2)
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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stencil", ["smoothed", "paper"])
def test_kernels_agree_with_the_way_of_a_gpu(float64, stencil, training, monkeypatch):
    """The same network where the tensors say that they are not on a CPU."""
    torch.manual_seed(0)
    net = PDOeS2CNN(2, ((4,), (8, 8), (8,)), stencil=stencil).train(training)
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
    """Counted by hand: orders 0, 1, 2 of a field with modes up to 2, and order 0 of others."""
    counted = [derivative_rows(m, found) for m, found in enumerate(all_terms(2, 2))]
    assert counted == [6, 10, 8]
    assert [derivative_rows(0, terms(0, orders)) for orders in range(4)] == [2, 4, 6, 6]


@pytest.mark.parametrize("fields", [(2, 3), (3, 2)], ids=["wider", "narrower"])
@pytest.mark.parametrize("orders", [2, 7])
def test_chunks_do_not_change_the_layer(float64, monkeypatch, orders, fields):
    torch.manual_seed(0)
    conv = PDOConv(MESH, *fields, orders)
    x = torch.randn(len(MESH), 2 * orders + 1, fields[0], 3, requires_grad=True)

    def step():
        y = conv(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *conv.weights])]

    whole = step()
    monkeypatch.setattr(local, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(local, "KEPT_BYTES", 20_000)
    assert len(conv.derivatives.chunks(x, x.dtype)) > 5
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
