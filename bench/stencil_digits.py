"""Stencil families on digits: what rotations do to random networks, and what these keep.

A network of random weights stands in for a trained one, which would take hours for each family. It
reads digits where networks do, round the middle of an edge (`data_prep.grids.equator_pose`):

- movement: rms change of the pooled features when a digit is rotated / their standard deviation
  between upright digits (median over features);
- N/N, N/R: a linear classifier of the pooled features, fitted by ridge regression to upright
  digits, on other upright and rotated ones (%). A stencil may not get steady by seeing little.

All are training digits of MNIST: what is chosen here is not chosen on the test set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from bench import speed
from bench.errors import ConfigError
from bench.stencil_families import SMOOTH, Family, Smoother, smoother_stencil
from data_prep.grids import equator_pose
from data_prep.mnist import Digits
from data_prep.spherical_mnist import haar_rotations, sample_rotated
from data_prep.synthetic_digits import mnist_or_synthetic
from pdo.activation import FieldNormReLU
from pdo.derivatives import Derivatives, derive_and_mix
from pdo.frames import default_frames
from pdo.layers import InvariantReadout, PDOConv
from pdo.local import FieldOperator
from pdo.mesh import Icosphere
from pdo.operators import Terms, all_terms, transport_matrix
from pdo.sparse import SparseOperator
from pdo.stencils import PAPER, Stencil, fit_stencil, restrict

WIDTHS = ((8,), (16, 16), (28, 28, 256))
"""Of three levels, with more fields at the end for the linear classifier."""
ORDERS, SAMPLES, BATCH = 2, 10, 50
RIDGE = 0.01
"""Of the mean square of the (standardised) features."""
REPEATS = 15
"""Of the timed steps."""


def digits_of(data: Path, n_train: int, n_test: int) -> Digits:
    """The first training digits of MNIST, or synthetic ones where `data`/raw/mnist is missing: so
    many for the classifier, and the next ones to test it.

    Raises:
        ConfigError: there are not so many.
    """
    found = mnist_or_synthetic(data, n_train + n_test, 1)
    if n_train + n_test > len(found.train_images):
        raise ConfigError(
            f"--digits {n_test} needs {n_train + n_test} training digits of MNIST, which has "
            f"{len(found.train_images)}"
        )
    train, test = slice(n_train), slice(n_train, n_train + n_test)
    return found._replace(
        train_images=found.train_images[train],
        train_labels=found.train_labels[train],
        test_images=found.train_images[test],
        test_labels=found.train_labels[test],
    )


def compare_on_digits(
    family: Family, digits: Digits, level: int, seed: int, pool: Smoother = SMOOTH
) -> dict[str, float]:
    """movement, N/N and N/R (defined above) of one random network."""
    torch.manual_seed(seed)
    finest = family.mesh(level)
    network = random_network(family, finest, pool)
    points = equator_pose(finest.vertices)

    def features(images: np.ndarray, rotations: np.ndarray | None = None) -> np.ndarray:
        if rotations is None:
            rotations = np.tile(np.eye(3), (len(images), 1, 1))
        parts = []
        for i in range(0, len(images), BATCH):
            part = slice(i, i + BATCH)
            samples = sample_rotated(images[part], rotations[part], points)
            x = torch.tensor(samples.T[:, None, None] / 50, dtype=torch.get_default_dtype())
            parts.append(network(x.contiguous()).double().numpy())
        return np.concatenate(parts)

    with torch.no_grad():
        features(digits.train_images[:BATCH])  # momentum 1: the batch's statistics stay
        network.eval()
        train, test = features(digits.train_images), features(digits.test_images)
        rotations = haar_rotations(len(test), np.random.default_rng(0))
        turned = features(digits.test_images, rotations)
    change = np.sqrt(np.mean((turned - test) ** 2, axis=0))
    classify = _ridge(train, digits.train_labels)
    return {
        "movement": float(np.median(change / test.std(axis=0))),
        "N/N": 100 * float(np.mean(classify(test) == digits.test_labels)),
        "N/R": 100 * float(np.mean(classify(turned) == digits.test_labels)),
    }


class FamilyConv(PDOConv):
    """`pdo.layers.PDOConv` with the operators of a family: its smoothers, one after the other, then
    the fit. For `raw_identity` the identity is a part of its own, mixed from the signal as it was;
    its rows are the first ones of every order."""

    def __init__(
        self, mesh: Icosphere, in_fields: int, out_fields: int, input_orders: int, family: Family
    ) -> None:
        super().__init__(mesh, in_fields, out_fields, ORDERS, input_orders, PAPER)
        frames, n = default_frames(mesh), 2 * input_orders + 1
        smoothers = [smoother_stencil(mesh, frames, s) for s in family.smoothers]
        self.smoothers = nn.Sequential(
            *(FieldOperator(_average(s, mesh, input_orders), n) for s in smoothers)
        )
        fit = fit_stencil(mesh, frames, family.fit)

        def derivatives(listed: Terms) -> Derivatives:
            return Derivatives(fit, mesh.mean_edge, listed, input_orders, len(mesh))

        listed, self.identity = all_terms(input_orders, ORDERS), None
        if family.raw_identity:
            fit.weights[:, 0] = fit.rows == fit.cols
            alone = [[t for t in found if t.operator == 0] for found in listed]
            self.identity = derivatives(alone[: input_orders + 1])  # no terms of higher orders
            listed = [[t for t in found if t.operator != 0] for found in listed]
        self.derivatives = derivatives(listed)

    def forward(self, x: Tensor) -> Tensor:
        weights, smooth = list(self.weights), self.smoothers(x)
        if self.identity is None:
            return derive_and_mix(smooth, self.derivatives, weights, x.dtype)
        with_identity = self.input_orders + 1  # so many orders, with one weight for it, the first
        first = [w.narrow(-3, 0, 1) for w in weights[:with_identity]]
        others = [w.narrow(-3, 1, w.shape[-3] - 1) for w in weights[:with_identity]]
        others += weights[with_identity:]
        alone = derive_and_mix(x, self.identity, first, x.dtype)
        mixed = derive_and_mix(smooth, self.derivatives, others, x.dtype)
        return mixed + nn.functional.pad(alone, (0, 0, 0, 0, 0, mixed.shape[1] - alone.shape[1]))


class FamilyPool(nn.Module):
    """A smoother taken at the vertices of the next coarser mesh."""

    def __init__(self, mesh: Icosphere, coarse: Icosphere, smoother: Smoother) -> None:
        super().__init__()
        stencil = smoother_stencil(mesh, default_frames(mesh), smoother)
        matrix = _average(restrict(stencil, len(coarse)), mesh, ORDERS)
        self.operator = FieldOperator(matrix, 2 * ORDERS + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x)


def random_network(family: Family, mesh: Icosphere, pool: Smoother) -> nn.Sequential:
    """Features of `pdo.networks.PDOeS2CNN` with WIDTHS in a family: (V, 1, 1, B) -> (B, 256).
    Coarser meshes are the first vertices of the finest, relaxed or not."""
    layers: list[nn.Module] = []
    fields, input_orders = 1, 0
    for i, group in enumerate(WIDTHS):
        if i > 0:
            coarse = Icosphere(mesh.level - 1)
            coarse.vertices = mesh.vertices[: len(coarse)]
            layers.append(FamilyPool(mesh, coarse, pool))
            mesh = coarse
        for width in group:
            layers.append(FamilyConv(mesh, fields, width, input_orders, family))
            layers.append(FieldNormReLU(width, ORDERS, SAMPLES, momentum=1.0))
            fields, input_orders = width, ORDERS
    return nn.Sequential(*layers, InvariantReadout(mesh))


def cost(family: Family, level: int) -> dict[str, float]:
    """Of a group layer: nonzeros per vertex of its sparse matrices (smoothers and derivatives); and
    the time of its step, forward and backward in float32 (`bench.speed`), relative to the nearest
    ring's on the same mesh, which takes its turns with it: the median of REPEATS ratios."""
    mesh, fields = family.mesh(level), speed.FIELDS
    layer, nearest = (FamilyConv(mesh, fields, fields, ORDERS, f) for f in (family, Family()))
    x = speed.random_field(mesh, 2 * ORDERS + 1, fields, speed.BATCH)
    steps = {"own": speed.layer_step(layer, x), "nearest": speed.layer_step(nearest, x)}
    seconds = speed.run_in_turn(steps, REPEATS)
    products = [m for m in layer.modules() if isinstance(m, SparseOperator)]
    return {
        "nonzeros": round(sum(m.a_values.numel() for m in products) / len(mesh), 1),
        "relative time": round(float(np.median(seconds["own"] / seconds["nearest"])), 2),
    }


def _average(stencil: Stencil, mesh: Icosphere, orders: int) -> sparse.csr_array:
    rows = int(stencil.rows[-1]) + 1
    return transport_matrix(stencil, orders, rows, len(mesh))


def _ridge(features: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Classifier by ridge regression of the one-hot labels on standardised features."""
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-12
    x = (features - mean) / deviation
    targets = np.eye(10)[labels]
    offset = targets.mean(axis=0)
    gram = x.T @ x + RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (targets - offset))
    return lambda new: np.argmax((new - mean) / deviation @ weights + offset, axis=1)
