"""The direct form: against the spectral form, against loops over the paper's sums, closed forms."""

import itertools

import numpy as np
import pytest
import sympy
import torch
from torch.func import functional_call

from pdo import direct as direct_module
from pdo.activation import fibre_basis
from pdo.direct import (
    DirectPDOConv,
    TransportedStencil,
    chi,
    direct_weight,
    to_direct,
    to_spectral,
    turn_matrices,
)
from pdo.frames import default_frames
from pdo.layers import PDOConv
from pdo.mesh import Icosphere
from pdo.stencils import GAUSSIAN, PAPER, SMOOTHED, fit_stencil
from tests.pdo.gauges import turn_frames

STENCILS = {"paper": PAPER, "gaussian": GAUSSIAN, "smoothed": SMOOTHED}


pytestmark = pytest.mark.usefixtures("float64")


def random_field(mesh, samples, fields=2, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(mesh), samples, fields, batch, generator=generator)


def relative_error(got, want):
    return float((got - want).detach().abs().max() / want.detach().abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("lifting", [True, False])
@pytest.mark.parametrize("stencil", STENCILS)
@pytest.mark.parametrize(
    ("samples", "level"), [*itertools.product([3, 5, 7, 15], [0, 1, 2, 3]), (5, 4)]
)
def test_equals_the_spectral_form(samples, level, stencil, lifting, dtype, tolerance):
    """Outputs, and gradients to the input and to the spectral weights."""
    torch.manual_seed(samples)
    mesh, orders = Icosphere(level), samples // 2
    input_orders = 0 if lifting else orders
    spectral = PDOConv(mesh, 2, 3, orders, input_orders, STENCILS[stencil]).to(dtype)
    direct = to_direct(spectral)
    basis_in = fibre_basis(input_orders, 2 * input_orders + 1).to(dtype)
    basis = fibre_basis(orders, samples).to(dtype)

    x = random_field(mesh, len(basis_in)).to(dtype).requires_grad_()
    y = x.detach().clone().requires_grad_()
    modes = torch.einsum("sn,vncb->vscb", basis, spectral(x))
    weight = direct_weight(list(spectral.weights), input_orders)
    samples_in = torch.einsum("sn,vncb->vscb", basis_in, y)
    sampled = functional_call(direct, {"weight": weight}, samples_in)
    assert relative_error(sampled, modes) < tolerance
    assert relative_error(direct(samples_in), sampled) < tolerance

    probe = torch.randn_like(modes)
    want = torch.autograd.grad((modes * probe).sum(), [x, *spectral.weights])
    got = torch.autograd.grad((sampled * probe).sum(), [y, *spectral.weights])
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < tolerance


def test_converted_layers_are_as_exact_as_the_layer():
    """Whatever torch's default is by then."""
    torch.manual_seed(0)
    spectral, basis = PDOConv(Icosphere(2), 2, 3, 2), fibre_basis(2, 5)
    x = random_field(spectral.mesh, 5)
    torch.set_default_dtype(torch.float32)  # the fixture sets it back
    direct = to_direct(spectral)
    again = to_spectral(direct)
    assert torch.get_default_dtype() == torch.float32
    want = spectral(x)
    modes = torch.einsum("sn,vncb->vscb", basis, want)
    assert relative_error(direct(torch.einsum("sn,vncb->vscb", basis, x)), modes) < 1e-12
    assert relative_error(again(x), want) < 1e-12


@pytest.mark.parametrize("samples", [1, 3, 5, 7, 15])
@pytest.mark.parametrize("lifting", [True, False])
def test_parameters_survive_the_round_trip(samples, lifting):
    mesh, orders = Icosphere(0), samples // 2
    spectral = PDOConv(mesh, 2, 3, orders, 0 if lifting else orders, PAPER)
    again = to_spectral(to_direct(spectral))
    for a, b in zip(spectral.weights, again.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert again.stencil is PAPER and again.input_orders == spectral.input_orders


@pytest.mark.parametrize("stencil", STENCILS)
def test_layers_without_transport_convert_to_layers_without_it(stencil):
    torch.manual_seed(0)
    mesh = Icosphere(2)
    spectral = PDOConv(mesh, 2, 3, 2, stencil=STENCILS[stencil], transport=False)
    x, basis = random_field(mesh, 5), fibre_basis(2, 5)
    direct = to_direct(spectral)
    want = torch.einsum("sn,vncb->vscb", basis, spectral(x))
    assert relative_error(direct(torch.einsum("sn,vncb->vscb", basis, x)), want) < 1e-10
    assert relative_error(to_spectral(direct, drop_wrapped=True)(x), spectral(x)) < 1e-10
    with_it = PDOConv(mesh, 2, 3, 2, stencil=STENCILS[stencil])
    with_it.load_state_dict(spectral.state_dict())
    assert relative_error(with_it(x), spectral(x)) > 0.1


def test_lifting_converts_both_ways_without_loss():
    direct = DirectPDOConv(Icosphere(1), 2, 3, 5, lifting=True)
    again = to_direct(to_spectral(direct))
    torch.testing.assert_close(again.weight, direct.weight, rtol=0, atol=1e-13)


def test_dropping_wrapped_couplings_projects():
    """6 N real weights for each channel pair, of which 6 wrap; dropping twice = dropping once."""
    direct = DirectPDOConv(Icosphere(0), 1, 1, 5, stencil=PAPER)
    with pytest.raises(ValueError, match=r"orders that wrap modulo N = 5 .*drop_wrapped=True"):
        to_spectral(direct)
    spectral = to_spectral(direct, drop_wrapped=True)
    assert sum(w.numel() for w in spectral.weights) == 6 * 5 - 6
    projected = to_direct(spectral)
    assert not torch.allclose(projected.weight, direct.weight, atol=1e-3)
    torch.testing.assert_close(
        to_direct(to_spectral(projected)).weight, projected.weight, rtol=0, atol=1e-13
    )
    constant = torch.randn(12, 1, 1, 1).expand(-1, 5, -1, -1)  # order 0 never reaches beyond M = 2
    torch.testing.assert_close(direct(constant), projected(constant))
    x = random_field(Icosphere(0), 5, fields=1)
    assert relative_error(projected(x), direct(x)) > 1e-2


def test_conversions_that_cannot_be():
    with pytest.raises(ValueError, match="odd number of samples, not 4"):
        to_spectral(DirectPDOConv(Icosphere(0), 1, 1, 4))
    with pytest.raises(ValueError, match="takes orders up to 1 to orders up to 3"):
        to_direct(PDOConv(Icosphere(0), 1, 1, 3, input_orders=1))
    with pytest.raises(ValueError, match="unknown fibre interpolation 'cubic'"):
        turn_matrices(np.zeros(1), 5, "cubic")


def test_wrapped_couplings_depend_on_the_frames_and_no_others(monkeypatch):
    """Why the spectral form does without them: fields turned with the frames go to turned fields,
    unless a coupling wraps."""
    mesh, samples = Icosphere(2), 5
    gauge = np.random.default_rng(0).uniform(-np.pi, np.pi, len(mesh))
    turn = turn_matrices(-gauge, samples, "trigonometric")  # phi' = phi - gauge in the new frame
    x = random_field(mesh, samples)

    def deviation(weight):
        layer = DirectPDOConv(mesh, 2, 3, samples)
        with monkeypatch.context() as patch:
            patch.setattr(
                direct_module, "default_frames", lambda m: turn_frames(default_frames(m), gauge)
            )
            turned = DirectPDOConv(mesh, 2, 3, samples)
        got = functional_call(turned, {"weight": weight}, (turn @ x.flatten(2)).view_as(x))
        want = functional_call(layer, {"weight": weight}, x)
        return relative_error(got, (turn @ want.flatten(2)).view_as(want))

    wrapping = DirectPDOConv(mesh, 2, 3, samples)
    plain = to_direct(to_spectral(wrapping, drop_wrapped=True))
    assert deviation(plain.weight.detach()) < 1e-10
    assert deviation(wrapping.weight.detach()) > 1e-2


@pytest.mark.parametrize("samples", [3, 4, 5])
@pytest.mark.parametrize("lifting", [True, False])
def test_is_the_sum_written_in_the_paper(samples, lifting):
    """Loops over P, A, B, with derivatives by numpy's least squares, and transport by rotating
    vectors: nothing shared with the layer but the mesh and the frames."""
    mesh = Icosphere(1)
    layer = DirectPDOConv(mesh, 2, 3, samples, lifting, PAPER)
    h = random_field(mesh, 1 if lifting else samples, batch=1)
    got = layer(h)[..., 0].detach().numpy()
    frames, edge, w = default_frames(mesh), mesh.mean_edge, layer.weight.detach().numpy()
    h = h[..., 0].numpy()

    def fibre_value(q, phi):
        """Trigonometric interpolation: the coefficients by a discrete Fourier transform."""
        if lifting:
            return h[q, 0]
        modes = np.fft.rfft(h[q], axis=0) / samples
        value = modes[0].real.copy()
        for n in range(1, len(modes)):
            weight = 1 if 2 * n == samples else 2
            value += weight * (modes[n] * np.exp(1j * n * phi)).real
        return value

    def carried_angle(p, q):
        """Angle of e1(Q), turned with the sphere from Q to P, in the frame at P."""
        axis = np.cross(mesh.vertices[q], mesh.vertices[p])
        sine, cosine = np.linalg.norm(axis), mesh.vertices[q] @ mesh.vertices[p]
        axis /= sine
        e1 = frames[q][:, 0]
        e1 = cosine * e1 + sine * np.cross(axis, e1) + (1 - cosine) * (axis @ e1) * axis
        return np.arctan2(e1 @ frames[p][:, 1], e1 @ frames[p][:, 0])

    want = np.zeros_like(got)
    for p in (0, 3, 11, 12, 30, 41):
        ring = np.flatnonzero(mesh.adjacency.toarray()[p])
        a, b, _ = (mesh.vertices[ring] @ frames[p]).T
        design = np.column_stack([a, b, a**2 / 2, a * b, b**2 / 2])
        angles = [carried_angle(p, q) for q in ring]
        for i in range(samples):
            phi_a = 2 * np.pi * i / samples
            c, s = np.cos(phi_a), np.sin(phi_a)
            inverse = np.array([[c, s], [-s, c]])
            for j in range(len(w)):
                phi_ab = phi_a + 2 * np.pi * j / samples
                centre = fibre_value(p, phi_ab)
                rise = [fibre_value(q, phi_ab - t) - centre for q, t in zip(ring, angles, strict=1)]
                d1, d2, d11, d12, d22 = np.linalg.lstsq(design, np.array(rise), rcond=None)[0]
                (g1, g2) = edge * inverse @ [d1, d2]
                hessian = np.array([[d11, d12], [d12, d22]])
                hessian = edge**2 * np.einsum("ij,jkc,lk->ilc", inverse, hessian, inverse)
                terms = (centre, g1, g2, hessian[0, 0], hessian[0, 1], hessian[1, 1])
                want[p, i] += sum(w[j, k] @ term for k, term in enumerate(terms))
        np.testing.assert_allclose(got[p], want[p], atol=1e-11)


def test_chi_differentiates_the_turned_function():
    """chi^(A)[f](0) are the derivatives of x -> f(A x) at 0, by sympy."""
    x, y = sympy.symbols("x y")
    coefficients = np.random.default_rng(0).standard_normal(6)

    def derivatives(f):
        listed = [f, *(f.diff(*v) for v in ([x], [y], [x, x], [x, y], [y, y]))]
        return np.array([float(d.subs({x: 0, y: 0})) for d in listed])

    f = sum(c * m for c, m in zip(coefficients, (1, x, y, x**2, x * y, y**2), strict=True))
    rotated = chi(7).numpy() @ derivatives(f)
    for a in range(7):
        c, s = np.cos(2 * np.pi * a / 7), np.sin(2 * np.pi * a / 7)
        turned = f.subs({x: c * x - s * y, y: s * x + c * y}, simultaneous=True)
        np.testing.assert_allclose(rotated[a], derivatives(turned), atol=1e-12)


def test_chi_is_a_representation_of_the_rotations():
    matrices = chi(6)
    torch.testing.assert_close(matrices[2] @ matrices[3], matrices[5])
    torch.testing.assert_close(matrices[0], torch.eye(6))


@pytest.mark.parametrize("samples", [4, 5])
@pytest.mark.parametrize("interpolation", ["trigonometric", "linear"])
def test_turning_by_a_sample_shifts(samples, interpolation):
    step = 2 * np.pi / samples
    h = torch.randn(samples)
    for k in (-2, 0, 1):
        turned = turn_matrices(np.array([k * step]), samples, interpolation)[0] @ h
        torch.testing.assert_close(turned, h.roll(k))


def test_linear_interpolation_converges_to_trigonometric():
    """A band-limited field on N samples; derivatives of its carried fibres: O(1/N^2)."""
    mesh = Icosphere(1)
    gauge = np.random.default_rng(0).uniform(-np.pi, np.pi, len(mesh))  # many transport angles
    stencil = fit_stencil(mesh, turn_frames(default_frames(mesh), gauge), PAPER)
    modes = random_field(mesh, 5)
    counts, errors = np.array([20, 40, 80, 160]), []
    for samples in counts:
        h = torch.einsum("sn,vncb->vscb", fibre_basis(2, samples), modes)
        linear, exact = (
            TransportedStencil(stencil, samples, kind)(h) for kind in ("linear", "trigonometric")
        )
        errors.append(float((linear - exact).norm() / exact.norm()))
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order == pytest.approx(2, abs=0.1)


def test_a_linear_layer_is_the_trigonometric_one_up_to_the_interpolation():
    """Fields that vary slowly along the fibre: |n| <= 1 on 15 samples."""
    mesh = Icosphere(2)
    exact = to_direct(PDOConv(mesh, 2, 2, 7, 7, SMOOTHED))
    linear = DirectPDOConv(mesh, 2, 2, 15, stencil=exact.stencil, interpolation="linear")
    linear.load_state_dict(exact.state_dict())
    x = torch.einsum("sn,vncb->vscb", fibre_basis(1, 15), random_field(mesh, 3))
    assert 1e-4 < relative_error(linear(x), exact(x)) < 0.1
