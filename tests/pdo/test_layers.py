"""Layers: gauge independence, symmetry, gradients, and the analysis behind eth."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from pdo import layers
from pdo.activation import FieldNormReLU
from pdo.direct import DirectPDOConv
from pdo.frames import default_frames, east_north_frames
from pdo.layers import InvariantReadout, PDOConv, Pool, Unpool
from pdo.mesh import Icosphere
from pdo.networks import PDOeS2CNN
from pdo.operators import all_terms, derivative_matrix, terms, transport_matrix
from pdo.sparse import SparseOperator
from pdo.stencils import GAUSSIAN, PAPER, SMOOTHED, StencilSpec, fit_stencil, smoothing_stencil
from tests.pdo.gauges import turn_frames

MESH, COARSE = Icosphere(3), Icosphere(2)


pytestmark = pytest.mark.usefixtures("float64")


def stack(spec, orders=2):
    """Lifting, two group layers, pooling: the linear part of a network."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        PDOConv(MESH, 2, 3, orders, 0, spec),
        PDOConv(MESH, 3, 4, orders, orders, spec),
        PDOConv(MESH, 4, 2, orders, orders, spec),
        Pool(MESH, COARSE, orders),
    )


def signal(seed=0, batch=3):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.standard_normal((len(MESH), 1, 2, batch)))


@pytest.mark.parametrize("spec", [PAPER, GAUSSIAN, SMOOTHED, StencilSpec(rings=3, order=4)])
@pytest.mark.parametrize("orders", [1, 2, 4])
def test_invariants_do_not_depend_on_the_gauge(monkeypatch, spec, orders):
    x = signal()
    plain = stack(spec, orders)(x)
    gauge = np.random.default_rng(1).uniform(-np.pi, np.pi, len(MESH))
    monkeypatch.setattr(
        layers,
        "default_frames",
        lambda mesh: turn_frames(default_frames(mesh), gauge[: len(mesh)]),
    )
    turned = stack(spec, orders)(x)
    scale = plain.detach().abs().max()
    torch.testing.assert_close(plain[:, 0] / scale, turned[:, 0] / scale, atol=1e-10, rtol=0)
    for n in range(1, orders + 1):  # modes turn by a phase, so their modulus is invariant
        a, b = (y[:, 2 * n - 1 : 2 * n + 1].square().sum(1) / scale**2 for y in (plain, turned))
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    phase = np.exp(-1j * gauge[: len(COARSE)])[:, None, None]
    before, after = ((y[:, 1] + 1j * y[:, 2]).detach().numpy() for y in (plain, turned))
    scale = scale.item()
    np.testing.assert_allclose(after / scale, before * phase / scale, atol=1e-10)


@pytest.mark.parametrize("spec", [PAPER, GAUSSIAN, SMOOTHED])
def test_turning_the_icosahedron_turns_the_output(spec):
    """A rotation of the mesh about another 5-fold axis permutes vertices; so it does outputs."""
    axis = MESH.vertices[1]
    rotation = Rotation.from_rotvec(2 * np.pi / 5 * axis).as_matrix()
    _, image = cKDTree(MESH.vertices).query(MESH.vertices @ rotation.T)
    coarse_image = image[: len(COARSE)]
    x = signal()
    turned = torch.empty_like(x)
    turned[image] = x  # (pi f)(R v) = f(v)
    net = stack(spec)
    before, after = net(x)[:, 0], net(turned)[:, 0]
    torch.testing.assert_close(
        after[coarse_image], before, atol=1e-9 * float(before.detach().abs().max()), rtol=0
    )


def test_conj_eth_eth_is_the_laplacian_on_harmonics():
    """conj(eth) eth Y_l = -l (l + 1) Y_l through two group operators; falls with h."""

    def error(level, degree=3, m=2):
        mesh, eigenvalue = Icosphere(level), degree * (degree + 1)
        frames = east_north_frames(mesh.vertices)
        stencil = fit_stencil(mesh, frames, GAUSSIAN)
        x, y, z = mesh.vertices.T
        f = sph_harm_y(degree, m, np.arccos(z), np.arctan2(y, x)).real
        first = derivative_matrix(stencil, 1.0, all_terms(0, 1), 0, len(mesh)) @ f
        eth = first[2 * len(mesh) :].reshape(-1, 2) / np.sqrt(2)  # order 1: eth of mode 0
        assert [t.operator for t in terms(1, 0)] == [2]
        field = np.zeros((len(mesh), 3))
        field[:, 1:] = eth
        second = derivative_matrix(stencil, 1.0, all_terms(1, 0), 1, len(mesh)) @ field.ravel()
        back = second.reshape(len(mesh), -1)[:, 2]  # rows: I f0, L f0, Re and Im of conj(eth) f1
        return np.sqrt(np.mean((back / eigenvalue + f) ** 2) / np.mean(f**2))

    assert error(4) < error(3) / 3 < error(2) / 9


def test_eth_squared_of_a_harmonic_has_the_known_norm():
    """int |eth^2 Y_l|^2 = (l+2)! / (l-2)! int |Y_l|^2."""
    mesh = Icosphere(5)
    frames = east_north_frames(mesh.vertices)
    stencil = fit_stencil(mesh, frames, PAPER)
    x, y, z = mesh.vertices.T
    f = sph_harm_y(2, 1, np.arccos(z), np.arctan2(y, x)).real
    out = derivative_matrix(stencil, 1.0, all_terms(0, 2), 0, len(mesh)) @ f
    eth2 = out[-2 * len(mesh) :].reshape(-1, 2) / np.sqrt(2)
    ratio = (mesh.vertex_areas @ np.sum(eth2**2, axis=1)) / (mesh.vertex_areas @ f**2)
    assert ratio == pytest.approx(24, rel=5e-3)


def test_smoothing_keeps_constants_and_no_modulus_grows():
    """Its weights are positive and sum to 1, and transport is a phase."""
    frames = east_north_frames(MESH.vertices)
    ring = smoothing_stencil(MESH, frames)
    matrix = transport_matrix(ring, 2, len(MESH))
    rng = np.random.default_rng(0)
    field = rng.standard_normal((len(MESH), 5))
    out = (matrix @ field.ravel()).reshape(-1, 5)
    for n in (1, 2):
        modulus = np.hypot(*field[:, 2 * n - 1 : 2 * n + 1].T)
        assert (np.hypot(*out[:, 2 * n - 1 : 2 * n + 1].T) <= modulus.max() + 1e-12).all()
    np.testing.assert_allclose(
        matrix @ np.tile([1.0, 0, 0, 0, 0], len(MESH)),
        np.tile([1.0, 0, 0, 0, 0], len(MESH)),
        atol=1e-12,
    )


def test_gradients():
    mesh = Icosphere(1)
    conv = PDOConv(mesh, 2, 3, 2, 2, SMOOTHED)
    x = torch.randn(len(mesh), 5, 2, 2, requires_grad=True)
    assert torch.autograd.gradcheck(conv, (x,), fast_mode=True)
    for weight in conv.weights:
        direction, step = torch.randn_like(weight), 1e-6
        loss = (conv(x) ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight += step * direction
            above = (conv(x) ** 2).sum()
            weight -= 2 * step * direction
            below = (conv(x) ** 2).sum()
            weight += step * direction
        torch.testing.assert_close(
            (gradient * direction).sum(), (above - below) / (2 * step), rtol=1e-5, atol=1e-5
        )


def test_sparse_operator_is_the_matrix_and_follows_dtype():
    ring = smoothing_stencil(COARSE, east_north_frames(COARSE.vertices))
    matrix = transport_matrix(ring, 1, len(COARSE))
    operator = SparseOperator(matrix)
    x = torch.randn(matrix.shape[1], 4, requires_grad=True)
    torch.testing.assert_close(operator(x), torch.tensor(matrix.toarray()) @ x)
    assert torch.autograd.gradcheck(operator, (x,), fast_mode=True)
    assert operator.float()(x.float()).dtype == torch.float32
    assert not operator.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_product_is_no_wiser_for_what_its_memory_held(dtype, monkeypatch):
    matrix = sparse.csr_array([[2.0, 0, 1], [0, 0, 0], [0, 0, 3]])  # a row without entries
    operator, x = SparseOperator(matrix).to(dtype), torch.ones(3, 2, dtype=dtype)

    def of_rubbish(self, *shape):
        return self.new_full(shape, torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", of_rubbish)
    assert operator(x).tolist() == [[3, 3], [0, 0], [3, 3]]


def test_readout_integrates_over_the_sphere():
    x = torch.zeros(len(MESH), 5, 1, 1)
    z = torch.tensor(MESH.vertices[:, 2])
    x[:, 0, 0, 0] = z**2
    assert InvariantReadout(MESH)(x).item() == pytest.approx(1 / 3, abs=1e-3)
    x[:, 0, 0, 0] = 1
    assert InvariantReadout(MESH)(x).item() == pytest.approx(1, abs=1e-12)


FIELD = (len(MESH), 5, 3, 2)
TAKERS = {
    "PDOConv": (lambda: PDOConv(MESH, 3, 4, 2), (0, 1, 2)),
    "lifting": (lambda: PDOConv(MESH, 3, 4, 2, 0), (0, 1, 2)),
    "DirectPDOConv": (lambda: DirectPDOConv(MESH, 3, 4, 5), (0, 1, 2)),
    "Pool": (lambda: Pool(MESH, COARSE, 2), (0, 1)),
    "subsampling": (lambda: Pool(MESH, COARSE, 2, smooth=False), (0, 1)),
    "Unpool": (lambda: Unpool(MESH, Icosphere(4), 2), (0, 1)),
    "FieldNormReLU": (lambda: FieldNormReLU(3, 2, 10), (1, 2)),
    "InvariantReadout": (lambda: InvariantReadout(MESH), (0,)),
}
"""Layers, and the dimensions of a field that are theirs to say."""


def size_for(name):
    """Of a field that the layer takes."""
    return (FIELD[0], 1, *FIELD[2:]) if name == "lifting" else FIELD


@pytest.mark.parametrize("name", TAKERS)
def test_what_is_no_field_of_the_layer_is_refused(name):
    """The loops below would read and write beyond the field's end."""
    make, fixed = TAKERS[name]
    layer = make()
    size = size_for(name)
    assert len(layer(torch.randn(size)))
    for dimension in fixed:
        for change in (-1, 1):
            wrong = [s + change * (k == dimension) for k, s in enumerate(size)]
            with pytest.raises(ValueError, match=rf"takes fields \(.*not \({wrong[0]}, {wrong[1]}"):
                layer(torch.randn(wrong))
    for wrong in (size[:3], (*size[:3], 0)):
        with pytest.raises(ValueError, match="takes fields"):
            layer(torch.randn(wrong))


@pytest.mark.parametrize("name", [k for k in TAKERS if k != "subsampling"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_what_is_not_in_the_layers_precision_is_refused(name, dtype):
    layer = TAKERS[name][0]()
    size = size_for(name)
    with pytest.raises(TypeError, match=r"is in torch\.float64, its field in"):
        layer(torch.ones(size, dtype=dtype))
    if dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match=r"use torch\.autocast"):
            layer.to(dtype)(torch.ones(size, dtype=dtype))


@pytest.mark.parametrize("name", TAKERS)
def test_autocast_leaves_float64_alone(name):
    layer = TAKERS[name][0]()
    size = size_for(name)
    inputs = [torch.randn(size).requires_grad_(), *layer.parameters()]
    want = layer(inputs[0])
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(inputs[0])
    torch.testing.assert_close(found, want, rtol=0, atol=0)
    grad = torch.randn_like(want)
    gradients = (torch.autograd.grad(out, inputs, grad) for out in (found, want))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", TAKERS)
def test_what_a_layer_passes_on_under_autocast_is_in_the_fields_precision(name):
    torch.set_default_dtype(torch.float32)  # the fixture sets it back
    layer = TAKERS[name][0]()
    x = torch.randn(size_for(name))
    want = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.float32
    error = (found - want).abs().max() / want.abs().max()
    assert 0 < error < 0.02 if name in ("PDOConv", "lifting") else error == 0


def test_float16_is_refused_on_a_cpu():
    torch.set_default_dtype(torch.float32)
    layer, x = PDOConv(COARSE, 3, 3, 2), torch.randn(len(COARSE), 5, 3, 2)
    with torch.autocast("cpu", torch.float16), pytest.raises(TypeError, match="bfloat16"):
        layer(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PDOConv(COARSE, 3, 3, -1), "orders must be at least 0, not -1"),
        (lambda: PDOConv(COARSE, 3, 3, 2, -1), "input_orders must be at least 0, not -1"),
        (lambda: PDOeS2CNN(3, orders=-1), "orders must be at least 0, not -1"),
        (lambda: DirectPDOConv(COARSE, 3, 3, 0), "one sample at least, not 0"),
        (lambda: smoothing_stencil(COARSE, default_frames(COARSE), 0), "one ring at least, not 0"),
        (lambda: StencilSpec(sigma=0.0), "sigma must be above 0, not 0.0"),
        (lambda: StencilSpec(smoothing_rings=-1), "smoothing_rings must be at least 0, not -1"),
    ],
)
def test_numbers_without_a_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_meshes_of_pooling_are_a_level_apart():
    for coarse in (MESH, Icosphere(1), Icosphere(4)):
        with pytest.raises(ValueError, match="not one below level 3"):
            Pool(MESH, coarse, 2)
        with pytest.raises(ValueError, match="not one above level"):
            Unpool(coarse, MESH, 2)


@pytest.mark.parametrize(
    "make", [lambda: PDOConv(COARSE, 3, 3, 2), lambda: FieldNormReLU(3, 2, 10)]
)
def test_second_derivatives_are_refused_rather_than_left_out(make):
    """Of a gradient penalty, say: the backward passes are loops that keep no graph."""
    x = torch.randn(len(COARSE), 5, 3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(make()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()
