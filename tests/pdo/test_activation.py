"""Normalisation and ReLU on the fibre, against plain torch on fibre samples."""

import numpy as np
import pytest
import torch

from pdo.activation import FieldNormReLU, fibre_basis

ORDERS, SAMPLES, FIELDS = 2, 8, 3


pytestmark = pytest.mark.usefixtures("float64")


def layer(samples=SAMPLES, **options):
    module = FieldNormReLU(FIELDS, ORDERS, samples, **options)
    with torch.no_grad():
        module.gain.copy_(torch.tensor([0.5, 1.0, -2.0]))
        module.bias.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return module


def field(vertices=50, batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(vertices, 2 * ORDERS + 1, FIELDS, batch, generator=generator) + 2


def plain(module, x):
    """The same by torch's own batch norm over all fibre samples; in evaluation by the running
    statistics."""
    values = torch.einsum("sn,vncb->vscb", module.basis, x)
    flat = values.permute(0, 1, 3, 2).reshape(-1, FIELDS)
    flat = torch.nn.functional.batch_norm(
        flat,
        module.mean.clone(),
        module.variance.clone(),
        module.gain,
        module.bias,
        training=module.training,
        eps=module.eps,
    )
    values = flat.view(len(x), -1, x.shape[3], FIELDS).permute(0, 1, 3, 2).relu()
    return torch.einsum("sn,vscb->vncb", module.basis / len(module.basis), values)


def assert_equal(ours, theirs):
    largest = float(theirs.detach().abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * largest)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("samples", [5, 8])
def test_equals_batch_norm_and_relu_on_samples(samples, training):
    module = layer(samples)
    module(field(seed=2))  # running statistics
    module.train(training)
    x, y = field().requires_grad_(), field().requires_grad_()
    ours, theirs = module(x), plain(module, y)
    assert_equal(ours, theirs)
    weight = torch.randn_like(ours)
    ours.backward(weight)
    gradients = module.gain.grad.clone(), module.bias.grad.clone()
    module.zero_grad()
    theirs.backward(weight)
    assert_equal(x.grad, y.grad)
    for own, other in zip(gradients, (module.gain.grad, module.bias.grad), strict=True):
        assert_equal(own, other)


def test_evaluation_uses_running_statistics():
    module, x = layer(momentum=1.0), field()
    trained = module(x)
    torch.testing.assert_close(module.eval()(x), trained)
    assert (module(field(seed=1)) - trained).abs().max() > 0.1


def test_basis_is_orthogonal():
    basis = fibre_basis(3, 11)
    torch.testing.assert_close(basis.t() @ basis, 11 * torch.eye(7))


@pytest.mark.parametrize("samples", [5, 8])
def test_commutes_with_turns_of_the_fibre_by_a_sample(samples):
    module, turn = layer(samples), 2 * np.pi / samples

    def turned(x):
        out = x.clone()
        for n in range(1, ORDERS + 1):
            re, im = x[:, 2 * n - 1], x[:, 2 * n]
            c, s = np.cos(n * turn), np.sin(n * turn)
            out[:, 2 * n - 1], out[:, 2 * n] = c * re - s * im, s * re + c * im
        return out

    torch.testing.assert_close(module(turned(field())), turned(module(field())))


def test_positive_fields_pass_and_negative_ones_vanish():
    module = FieldNormReLU(FIELDS, ORDERS, SAMPLES, eps=0.0).eval()
    x = torch.randn(7, 2 * ORDERS + 1, FIELDS, 2)
    x[:, 0] = 20
    torch.testing.assert_close(module(x), x)
    x[:, 0] = -20
    torch.testing.assert_close(module(x), torch.zeros_like(x))


def test_too_few_samples():
    with pytest.raises(ValueError, match="4 samples cannot hold 5 fibre coordinates"):
        FieldNormReLU(FIELDS, ORDERS, 4)


@pytest.mark.parametrize("value", [0.0, 2.8, 1000.0])
@pytest.mark.parametrize("kernels", [True, False])
def test_constant_fields_stay_finite_in_float32(value, kernels, monkeypatch):
    """Rounding leaves a negative variance of some of them."""
    monkeypatch.setattr("pdo.activation.kernels.apply_to", lambda x: kernels)
    noise = torch.randn(642, 2 * ORDERS + 1, FIELDS, 32, generator=torch.Generator().manual_seed(0))
    for spread in (0.0, 1e-6, 0.3):
        module = layer().float().train()
        x = spread * noise.float()
        x[:, 0] += value
        x.requires_grad_()
        y = module(x)
        y.square().mean().backward()
        for result in (y, x.grad, module.gain.grad, module.mean, module.variance):
            assert torch.isfinite(result).all()
        assert (module.variance >= 0).all()
