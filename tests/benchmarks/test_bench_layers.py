"""Times of the method's parts: `pytest tests/benchmarks --benchmark-enable`. Without that option
each runs once, as a smoke test. `python -m bench speed` compares and records."""

import pytest
import torch

from bench import speed
from pdo.activation import FieldNormReLU
from pdo.direct import to_direct
from pdo.layers import PDOConv
from pdo.mesh import Icosphere

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def level(request):
    """The paper's level when times are taken, a small one when they are not."""
    return 4 if request.config.getoption("benchmark_enable") else 2


@pytest.fixture(params=speed.SAMPLES, ids="N={}".format)
def layer_and_field(request, level):
    mesh, n = Icosphere(level), request.param
    layer = PDOConv(mesh, speed.FIELDS, speed.FIELDS, n // 2)
    return layer, speed.random_field(mesh, n, speed.FIELDS, speed.BATCH)


@pytest.mark.parametrize("form", ["spectral", "direct"])
def test_layer_step(benchmark, layer_and_field, form):
    layer, x = layer_and_field
    gradients = benchmark(speed.layer_step(layer if form == "spectral" else to_direct(layer), x))
    assert gradients[0].shape == x.shape


def test_derivatives(benchmark, layer_and_field):
    layer, x = layer_and_field
    out = torch.empty(layer.derivatives.rows, x.shape[2], len(x), x.shape[3])
    benchmark(lambda: layer.derivatives.gather(x, layer.derivatives.order, True, out))
    assert out.isfinite().all()


def test_mixing(benchmark, layer_and_field):
    benchmark(speed.mixing_step(*layer_and_field))


def test_field_norm_relu(benchmark, layer_and_field):
    _, x = layer_and_field
    activation = FieldNormReLU(speed.FIELDS, x.shape[1] // 2, 2 * x.shape[1])
    gradients = benchmark(speed.layer_step(activation, x))
    assert gradients[0].shape == x.shape


def test_small_network_step(benchmark, level):
    benchmark(speed.network_step("PDO-eS2CNN-small", max(level, 3)))  # it has four levels
