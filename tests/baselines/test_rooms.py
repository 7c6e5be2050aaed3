"""Networks of segmentation: published counts, equivariance, what upsampling keeps."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from baselines.charts import CORNERS, Atlas
from baselines.hexrunet_unet import HexRUNet
from baselines.hexrunet_unet import upsampling as pixel_upsampling
from baselines.icosahedral_unet import IcosahedralUNet, Upsampling, corner_means
from baselines.pdo_unet import PDOUNet, invariants
from baselines.rooms import midpoints
from baselines.ugscnn_unet import UGSCNNUNet, UpConv
from baselines.unet import UNet
from bench.registry import SEGMENTERS
from data_prep.grids import grid_points
from pdo.frames import icosahedral_rotations
from pdo.mesh import Icosphere
from tests.baselines.helpers import count

NETWORKS = (UNet, UGSCNNUNet, HexRUNet, IcosahedralUNet, PDOUNet)


def points_of(network, level):
    return len(grid_points(f"planar{level}" if network is UNet else f"icosphere{level}"))


def warmed(network, level):
    """In evaluation, with statistics that are not those of initialisation."""
    torch.manual_seed(0)
    model = network(level)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(2, 4, points_of(network, level)))
    return model.eval()


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda: UNet(5), 1_944_431),
        (lambda: UGSCNNUNet(5), 5_180_239),
        (lambda: UGSCNNUNet(5, features=16), 1_301_167),
        (lambda: HexRUNet(5), 1_369_119),
    ],
)
def test_parameters_are_the_published_ones(build, parameters):
    """Counts derived from the published code, of the U-Net and UGSCNN; of HexRUNet from its family
    with interpolation and a 1x1 in place of transposed convolutions."""
    assert count(build()) == parameters


def test_pdo_keeps_the_budget():
    assert 800_000 < count(PDOUNet(5)) <= 860_000


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("level", [3, 4])
def test_one_label_a_point_at_every_level(network, level):
    model, x = network(level).eval(), torch.randn(1, 4, points_of(network, level))
    with torch.no_grad():
        assert model(x).shape == (1, 15, x.shape[2])
    with pytest.raises(ValueError, match=r"wants an input of shape \(batch, 4, "):
        model(x[:, :3])
    with pytest.raises(ValueError, match="batch > 0, not"):
        model(x[:0])


@pytest.mark.parametrize("network", [UNet, UGSCNNUNet, HexRUNet, IcosahedralUNet])
def test_levels_with_nothing_to_coarsen_are_refused(network):
    with pytest.raises(ValueError, match="level"):
        network(0)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_one_label_a_point_at_the_published_level(network):
    model, x = network(5).eval(), torch.randn(1, 4, points_of(network, 5))
    with torch.no_grad():
        out = model(x)
    assert out.shape == (1, 15, x.shape[2]) and torch.isfinite(out).all()


def test_a_mesh_that_has_no_coarser_one_is_taken() -> None:
    with torch.no_grad():
        assert PDOUNet(0).eval()(torch.randn(2, 4, 12)).shape == (2, 15, 12)


@pytest.mark.parametrize("network", [IcosahedralUNet, PDOUNet])
def test_labels_turn_with_the_sphere(float64, network):
    """All 60 rotations of the icosahedron, exactly."""
    model, vertices = warmed(network, 3), Icosphere(3).vertices
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, len(vertices), generator=generator)
    with torch.no_grad():
        want = model(x)
        for rotation in icosahedral_rotations()[::3]:
            image = cKDTree(vertices).query(vertices @ rotation.T)[1]
            turned, expected = torch.empty_like(x), torch.empty_like(want)
            turned[:, :, image], expected[:, :, image] = x, want
            assert (model(turned) - expected).abs().max() < 1e-9 * want.abs().max()


@pytest.mark.parametrize("network", [UGSCNNUNet, HexRUNet])
def test_the_others_know_where_north_is(float64, network):
    model, vertices = warmed(network, 3), Icosphere(3).vertices
    x = torch.randn(1, 4, len(vertices))
    rotation = icosahedral_rotations()[7]
    image = cKDTree(vertices).query(vertices @ rotation.T)[1]
    turned, expected = torch.empty_like(x), torch.empty(1, 15, len(vertices))
    with torch.no_grad():
        turned[:, :, image], expected[:, :, image] = x, model(x)
        assert (model(turned) - expected).abs().max() > 1e-2


def test_midpoints_of_an_edge():
    coarse, fine = Icosphere(2), Icosphere(3)
    found = midpoints(coarse) @ coarse.vertices
    np.testing.assert_allclose(found[: len(coarse)], coarse.vertices)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, fine.vertices, atol=1e-12)


def test_pixel_upsampling_is_that_of_the_vertices():
    coarse, fine = Atlas(2), Atlas(3)
    generator = np.random.default_rng(0)
    values = generator.normal(size=len(coarse.mesh))
    values[[0, 11]] = 0.0
    pixels = values[coarse.pixels.ravel()]
    at_vertices = values.copy()
    for pole in (0, 11):  # no pixels: the mean of their neighbours stands in
        at_vertices[pole] = values[coarse.mesh.adjacency[[pole]].indices].mean()
    want = (midpoints(coarse.mesh) @ at_vertices)[fine.pixels.ravel()]
    np.testing.assert_allclose(pixel_upsampling(coarse, fine) @ pixels, want)


def test_field_upsampling_keeps_old_vertices_and_takes_means_of_the_others(float64):
    fine, coarse = Atlas(3), Atlas(2)
    torch.manual_seed(0)
    x = torch.randn(len(coarse.mesh) - CORNERS, 2, 6, 3)
    found = Upsampling(fine)(x)
    assert found.shape == (len(fine.mesh) - CORNERS, 2, 6, 3)
    assert torch.equal(found[: len(x)], x)
    # Summed over directions a field is a signal. Of an edge to a corner the other end counts alone.
    signal = np.zeros((len(coarse.mesh), 6))
    signal[CORNERS:] = x.sum(dim=2).flatten(1)
    weights = midpoints(coarse.mesh)
    known = weights @ (np.arange(len(coarse.mesh)) >= CORNERS)
    want = (weights @ signal)[CORNERS:] / known[CORNERS:, None]
    np.testing.assert_allclose(found.sum(dim=2).flatten(1), want, atol=1e-12)
    assert set(known[CORNERS:]) == {0.5, 1}


def test_corners_get_the_mean_of_their_neighbours():
    mesh = Icosphere(2)
    values = np.random.default_rng(0).normal(size=len(mesh))
    found = corner_means(mesh) @ values[CORNERS:]
    np.testing.assert_array_equal(found[CORNERS:], values[CORNERS:])
    for corner in range(CORNERS):
        neighbours = mesh.adjacency[[corner]].indices
        assert found[corner] == pytest.approx(values[neighbours].mean())


def test_up_convolution_sees_ones_at_new_vertices():
    """As published: the MeshConv of [x, 1]."""
    torch.manual_seed(0)
    coarse, fine = Icosphere(1), Icosphere(2)
    up, batch = UpConv(fine, 3), 2
    x = torch.randn(len(coarse) * batch, 3)
    padded = torch.cat([x, torch.ones((len(fine) - len(coarse)) * batch, 3)])
    torch.testing.assert_close(up(x, batch), up.conv(padded))


def test_invariants_do_not_see_the_frame():
    """Another frame turns mode n by n times its angle."""
    torch.manual_seed(0)
    field, angle = torch.randn(20, 5, 3, 2), 2 * torch.pi * torch.rand(20)
    turned = field.clone()
    for n in (1, 2):
        re, im = field[:, 2 * n - 1], field[:, 2 * n]
        c, s = (f(n * angle)[:, None, None] for f in (torch.cos, torch.sin))
        turned[:, 2 * n - 1], turned[:, 2 * n] = c * re - s * im, s * re + c * im
    torch.testing.assert_close(invariants(turned), invariants(field))
    assert invariants(field).shape == (20, 9, 2)


STEP = """
import resource, sys
import torch
from bench.registry import SEGMENTERS
from data_prep.grids import grid_points

entry = SEGMENTERS[sys.argv[1]]
model, points = entry.build(level=5), len(grid_points(entry.grid_name(5)))
optimizer = torch.optim.Adam(model.parameters())
x, labels = torch.randn(4, 4, points), torch.randint(15, (4, points))
torch.nn.functional.cross_entropy(model(x), labels).backward()
optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize("name", list(SEGMENTERS))
def test_a_training_step_at_level_5_and_batch_4_takes_less_than_6_gb(name):
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", STEP, name], cwd=root, capture_output=True, text=True, check=True
    )
    assert 0.2 < float(run.stdout) < 6
