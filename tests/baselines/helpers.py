"""What the tests of several networks need."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdo.mesh import Icosphere

Model = TypeVar("Model", bound=nn.Module)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def signals(batch: int, level: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, 10 * 4**level + 2, generator=generator)


def trained_statistics(build: Callable[[int], Model], level: int) -> Model:
    """A model in eval mode, its batch norms neither fresh nor trivial."""
    torch.manual_seed(1)
    model = build(level)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = 1  # the statistics of the one batch that follows
    model(signals(8, level, seed=3))
    return model.eval()


def moved_by_symmetries(model: nn.Module, level: int) -> tuple[float, float]:
    """How far outputs move when signals are turned about the axis by 72 degrees, and by 180 degrees
    about a horizontal axis: both map the mesh to itself, but the second not north to north."""
    vertices = Icosphere(level).vertices
    c, s = np.cos(2 * np.pi / 5), np.sin(2 * np.pi / 5)
    about_axis = vertices @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    c, s = np.cos(np.pi / 5), np.sin(np.pi / 5)
    upside_down = vertices @ np.array([[c, s, 0], [s, -c, 0], [0, 0, -1]])
    x = signals(2, level)
    moved = []
    for turned in (about_axis, upside_down):
        to = np.argmax(turned @ vertices.T, axis=1)
        np.testing.assert_allclose(vertices[to], turned, atol=1e-12)
        moved.append((model(x[:, :, to]) - model(x)).abs().max().item())
    return moved[0], moved[1]


def assert_every_parameter_learns(model: nn.Module, level: int) -> None:
    F.cross_entropy(model(signals(4, level)), torch.arange(4)).backward()
    assert_gradients(model, above=1e-6)


def assert_gradients(model: nn.Module, above: float = 0) -> None:
    """Every parameter has a finite gradient, and one with an effect: larger than `above`. Biases
    before a batch norm have none by nature, so biases may be without."""
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if not name.endswith("bias"):
            assert parameter.grad.abs().max() > above, name
