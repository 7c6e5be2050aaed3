"""The 60 rotations of the icosahedron map the mesh to itself: what they must carry exactly."""

import pytest
import torch
from scipy.spatial import cKDTree

from pdo.activation import FieldNormReLU, fibre_basis
from pdo.direct import DirectPDOConv, to_direct
from pdo.frames import default_frames, icosahedral_rotations, transport_angles
from pdo.layers import InvariantReadout, PDOConv, Pool, Unpool
from pdo.mesh import Icosphere
from pdo.networks import pdo_es2cnn_small
from pdo.stencils import GAUSSIAN, PAPER, SMOOTHED

FINE, COARSE, ORDERS, FIELDS = Icosphere(3), Icosphere(2), 2, 3
STENCILS = {"paper": PAPER, "gaussian": GAUSSIAN, "smoothed": SMOOTHED}
ON_AXES = 42
"""The vertices on five- and two-fold axes, whose frames the group does not keep, come first."""


pytestmark = pytest.mark.usefixtures("float64")


class Turn:
    """pi_R on fields: (pi_R f)(R P) = f(P), modes turned from the frame R F(P) to the frame F(R P).

    Fields (V, 2 orders + 1, C, B).
    """

    def __init__(self, mesh, rotation):
        frames = default_frames(mesh)
        _, self.image = cKDTree(mesh.vertices).query(mesh.vertices @ rotation.T)
        self.angle = torch.tensor(transport_angles(frames[self.image], rotation @ frames))

    def __call__(self, field):
        moved = torch.empty_like(field)
        carried = [field[:, :1]]
        for n in range(1, field.shape[1] // 2 + 1):
            re, im = field[:, 2 * n - 1], field[:, 2 * n]
            c, s = (f(n * self.angle)[:, None, None] for f in (torch.cos, torch.sin))
            carried += [(c * re - s * im)[:, None], (s * re + c * im)[:, None]]
        moved[self.image] = torch.cat(carried, dim=1)
        return moved


@pytest.fixture(scope="module")
def turns():
    return [(Turn(FINE, r), Turn(COARSE, r)) for r in icosahedral_rotations()]


def random_field(orders, mesh=FINE):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(mesh), 2 * orders + 1, FIELDS, 2, generator=generator)


def assert_same(got, want):
    assert (got - want).detach().abs().max() < 1e-9 * want.detach().abs().max()


@pytest.mark.parametrize("stencil", STENCILS)
@pytest.mark.parametrize("input_orders", [0, ORDERS])
def test_linear_layers(turns, stencil, input_orders):
    torch.manual_seed(0)
    layer = PDOConv(FINE, FIELDS, FIELDS, ORDERS, input_orders, STENCILS[stencil])
    x = random_field(input_orders)
    out = layer(x)
    for turn, _ in turns:
        assert_same(layer(turn(x)), turn(out))


def test_the_direct_form(turns):
    """As the spectral one it is made from; its own weights couple orders that wrap, which no choice
    of frames leaves as they are."""
    torch.manual_seed(0)
    n, x = 2 * ORDERS + 1, random_field(ORDERS)
    basis = fibre_basis(ORDERS, n)

    def in_modes(layer, field):
        samples = layer(torch.einsum("sn,vncb->vscb", basis, field))
        return torch.einsum("sn,vscb->vncb", basis / n, samples)

    exact = to_direct(PDOConv(FINE, FIELDS, FIELDS, ORDERS))
    wraps = DirectPDOConv(FINE, FIELDS, FIELDS, n)
    out, wrapped = in_modes(exact, x), in_modes(wraps, x)
    worst = 0.0
    for turn, _ in turns[::6]:
        assert_same(in_modes(exact, turn(x)), turn(out))
        worst = max(worst, float((in_modes(wraps, turn(x)) - turn(wrapped)).detach().abs().max()))
    assert worst > 1e-2 * float(wrapped.detach().abs().max())


def test_unpooling(turns):
    unpool, x = Unpool(COARSE, FINE, ORDERS), random_field(ORDERS, COARSE)
    want = unpool(x)
    for fine, coarse in turns:
        assert_same(unpool(coarse(x)), fine(want))


def test_pooling(turns):
    pool, x = Pool(FINE, COARSE, ORDERS), random_field(ORDERS)
    out = pool(x)
    for turn, coarse_turn in turns:
        assert_same(pool(turn(x)), coarse_turn(out))


def test_readout(turns):
    readout, x = InvariantReadout(FINE), random_field(ORDERS)
    for turn, _ in turns:
        assert_same(readout(turn(x)), readout(x))


def norm_relu(samples):
    module = FieldNormReLU(FIELDS, ORDERS, samples)
    with torch.no_grad():
        module.bias.normal_()
    return module


def test_nonlinearity_but_on_the_axes(turns):
    module, x = norm_relu(8), random_field(ORDERS)
    out, worst = module(x), 0.0
    for turn, _ in turns:
        got, want = module(turn(x)), turn(out)
        kept = turn.image >= ON_AXES  # rotations permute the vertices on axes
        assert_same(got[kept], want[kept])
        worst = max(worst, float((got - want)[~kept].detach().abs().max()))
    assert worst > 1e-3


@pytest.mark.parametrize("samples", [10, 20])
def test_nonlinearity_everywhere_if_ten_divides_the_samples(turns, samples):
    module, x = norm_relu(samples), random_field(ORDERS)
    out = module(x)
    for turn, _ in turns:
        assert_same(module(turn(x)), turn(out))


def logit_deviations(samples, level=3):
    """Largest change of a logit of the small network (random weights) under the 60 rotations, for
    each of some rough signals, in units of the logits' spread over the signals."""
    torch.manual_seed(0)
    network = pdo_es2cnn_small(level, samples=samples).train()
    mesh = Icosphere(level)
    x = torch.randn(16, 1, len(mesh), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for _ in range(30):
            network(x)  # running statistics
        network.eval()
        plain = network(x)
        worst = torch.zeros(len(x))
        for rotation in icosahedral_rotations()[1:]:
            turned = Turn(mesh, rotation)(x.permute(2, 1, 0)[:, None])[:, 0].permute(2, 1, 0)
            worst = torch.maximum(worst, (network(turned) - plain).abs().amax(1))
    return worst / plain.std(0).mean()


@pytest.mark.slow
def test_a_network_is_exact_if_ten_divides_the_samples():
    for samples in (10, 20):
        assert logit_deviations(samples).max() < 1e-9


@pytest.mark.slow
def test_what_remains_falls_with_the_samples():
    """Means over the signals. At 5 the frames on two-fold axes tell, at the others those on
    five-fold axes."""
    means = {samples: logit_deviations(samples).mean() for samples in (5, 8, 16, 32)}
    assert means[5] > means[8] > 3 * means[16] > 3**2 * means[32] > 0
