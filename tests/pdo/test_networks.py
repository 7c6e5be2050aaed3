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


def blobs(points, rotation, weights):
    """A smooth signal on the sphere, turned: three bumps."""
    centres = np.array([[0, 0.6, -0.8], [0.8, 0, -0.6], [-0.36, -0.48, -0.8]]) @ rotation.T
    return sum(w * np.exp(12 * (points @ c - 1)) for w, c in zip(weights, centres, strict=True))


def test_logits_hardly_move_under_rotations():
    """Untrained network, smooth signals, level 4: turning a signal moves the logits far less than
    exchanging it for another does."""
    torch.manual_seed(0)
    network = pdo_es2cnn_small().train()
    points, rng = Icosphere(4).vertices, np.random.default_rng(0)
    turns = [np.eye(3), *Rotation.random(7, random_state=0).as_matrix()]
    weights = rng.standard_normal((4, 3))
    x = np.stack([blobs(points, turn, w) for w in weights for turn in turns])
    with torch.no_grad():
        for _ in range(30):
            network(torch.tensor(x, dtype=torch.float32)[:, None])  # running statistics
        logits = network.eval()(torch.tensor(x, dtype=torch.float32)[:, None])
    logits = logits.view(len(weights), len(turns), -1)
    within = logits.std(dim=1).mean()
    between = logits.mean(dim=1).std(dim=0).mean()
    assert within < 0.1 * between


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


def test_variants_for_comparison():
    """Other stencils, no transport, plain subsampling: same parameters, another function."""
    x = torch.randn(2, 1, 642, generator=torch.Generator().manual_seed(0))
    outputs = []
    for options in (
        {},
        {"stencil": "paper"},
        {"stencil": "gaussian"},
        {"transport": False},
        {"smooth_pooling": False},
    ):
        torch.manual_seed(0)
        network = pdo_es2cnn_small(level=3, **options)
        assert parameters(network) == 72_370
        with torch.no_grad():
            outputs.append(network(x))
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert (a - b).abs().max() > 1e-3


def test_unknown_stencil():
    with pytest.raises(ValueError, match=r"unknown stencil 'papr' \(valid: paper, gaussian, smoo"):
        pdo_es2cnn_small(stencil="papr")


@pytest.mark.parametrize("size", [(2, 1, 162), (2, 1, 2562), (2, 3, 642), (1, 642), (0, 1, 642)])
def test_signals_of_another_mesh_are_refused(size):
    with pytest.raises(ValueError, match=r"takes (signals|fields) "):
        PDOeS2CNN(level=3)(torch.randn(size))
