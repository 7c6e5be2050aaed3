"""The two networks: parameter budgets of the paper, invariance in practice."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pdo.mesh import Icosphere
from pdo.networks import PDOeS2CNN, pdo_es2cnn_large, pdo_es2cnn_small


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("build", "budget"), [(pdo_es2cnn_small, 73_000), (pdo_es2cnn_large, 180_000)]
)
def test_parameter_budget_at_every_level(build, budget):
    counts = {parameters(build(level=level)) for level in (3, 4)}
    assert len(counts) == 1
    assert 0.75 * budget <= counts.pop() <= budget


def blobs(points, rotation):
    """A smooth signal on the sphere, turned: three bumps."""
    centres = np.array([[0, 0.6, -0.8], [0.8, 0, -0.6], [-0.36, -0.48, -0.8]]) @ rotation.T
    return sum(
        w * np.exp(12 * (points @ c - 1)) for w, c in zip((1, 0.7, -0.8), centres, strict=True)
    )


def test_logits_hardly_move_under_rotations():
    """Untrained network, smooth signal, level 4: a turn moves the logits far less than the
    difference between two signals does."""
    torch.manual_seed(0)
    network = pdo_es2cnn_small().eval()
    points = Icosphere(4).vertices
    turns = [np.eye(3), *Rotation.random(3, random_state=0).as_matrix()]
    x = torch.tensor(np.stack([blobs(points, r) for r in turns]), dtype=torch.float32)[:, None]
    with torch.no_grad():
        same = network(x)
        other = network(-x[:1])
    assert (same[1:] - same[0]).abs().max() < 0.1 * (other - same[0]).abs().max()


def test_too_coarse_a_level():
    with pytest.raises(ValueError, match="level 2 is too coarse"):
        PDOeS2CNN(2, ((4,), (4,), (4,), (4,)))


def test_batch_of_one_and_state_dict(tmp_path):
    network = pdo_es2cnn_small(level=3).eval()
    x = torch.randn(2, 1, 642)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    twin = pdo_es2cnn_small(level=3).eval()
    twin.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    torch.testing.assert_close(twin(x), network(x), rtol=0, atol=0)
