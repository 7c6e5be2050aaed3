"""Perceptron on random Coulomb matrices (Montavon et al., NeurIPS 2012; Table 3)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from baselines.molecules import Molecules
from pdo.precision import full_precision

MAX_ATOMS = 23
REALISATIONS = 10
INPUTS = 2_150
"""Room for the binarised features of QM7: their number depends on the training molecules and is
about 2,090; weights of the rest never move."""


def coulomb_matrices(molecules: Molecules) -> Tensor:
    """C_ii = 0.5 Z_i^2.4 and C_ij = Z_i Z_j / |p_i - p_j|, with zeros beyond a molecule's atoms:
    (B, 23, 23), atomic units.

    Raises:
        ValueError: if a molecule has more than 23 atoms.
    """
    atoms = torch.bincount(molecules.molecule, minlength=len(molecules))
    if atoms.max() > MAX_ATOMS:
        raise ValueError(f"{int(atoms.max())} atoms do not fit a matrix of {MAX_ATOMS} rows")
    first = atoms.cumsum(0) - atoms
    place = torch.arange(len(molecules.molecule), device=atoms.device) - first[molecules.molecule]
    charges = molecules.positions.new_zeros(len(molecules), MAX_ATOMS)
    charges[molecules.molecule, place] = molecules.charges.to(charges.dtype)
    positions = molecules.positions.new_zeros(len(molecules), MAX_ATOMS, 3)
    positions[molecules.molecule, place] = molecules.positions
    products = charges[:, :, None] * charges[:, None]
    distances = (positions[:, :, None] - positions[:, None]).square().sum(3).sqrt()
    distances.diagonal(dim1=1, dim2=2).fill_(1)
    matrices = products / distances.masked_fill(products == 0, 1)
    matrices.diagonal(dim1=1, dim2=2).copy_(0.5 * charges**2.4)
    return matrices


def realisation(matrices: Tensor, noise: Tensor) -> Tensor:
    """Rows and columns by descending norm of the row + noise, then the upper triangle:
    (B, n, n), (B, n) -> (B, n (n + 1) / 2)."""
    order = (matrices.norm(dim=2) + noise).argsort(dim=1, descending=True, stable=True)
    row, column = torch.triu_indices(*matrices.shape[1:], device=matrices.device)
    molecule = torch.arange(len(matrices), device=matrices.device)[:, None]
    return matrices[molecule, order[:, row], order[:, column]]


class ScaledTanh(nn.Module):
    """1.5 tanh(x / 1.5)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * torch.tanh(x / 1.5)


class ScaledLinear(nn.Linear):
    """gain (x W^T + b), at first with W of N(0, 1 / in_features) / gain and b = 0.

    A step of SGD at rate r moves the matrix gain W as a step at rate gain^2 r would move it in an
    ordinary layer: so layers have rates of their own under one optimiser.
    """

    def __init__(self, in_features: int, out_features: int, gain: float) -> None:
        super().__init__(in_features, out_features)
        self.gain = gain
        nn.init.normal_(self.weight, std=1 / (gain * math.sqrt(in_features)))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


class CoulombMLP(nn.Module):
    """energy = mean + scale * network(binarised, randomly sorted Coulomb matrix).

    Rows of the matrix are sorted by norm + noise of N(0, 1), drawn anew at each training step; in
    evaluation the predictions for 10 fixed draws are averaged. An entry x becomes tanh(x - k),
    k = 0, 1, ..., up to the first one that is not below its largest value in 10 realisations of the
    training molecules; less its mean over these, divided by the standard deviation of all. 400 and
    100 hidden units. As published, the rate of a layer is over the root of its inputs m, and the
    signal it passes back is times sqrt(m / n), n its outputs: `ScaledLinear` stands for both.

    In evaluation the draws belong to atoms in descending order of norm, so that the order of the
    atoms has no effect (but for atoms of equal norm).

    `fit` has to come before training; it sets buffers, which the state dict holds.

    Args:
        level: of the task's meshes; without effect, there are no signals.
        inputs: room for the features; other molecules than those of QM7 may need more.

    Shapes: Molecules of B molecules -> (B,), kcal/mol.
    """

    def __init__(self, level: int = 2, inputs: int = INPUTS) -> None:
        super().__init__()
        self.inputs = inputs
        sizes = (inputs, 400, 100, 1)
        linear: list[ScaledLinear] = []
        passed = 1.0
        for m, n in reversed(list(itertools.pairwise(sizes))):
            linear.insert(0, ScaledLinear(m, n, gain=math.sqrt(passed / math.sqrt(m))))
            passed *= math.sqrt(m / n)
        nn.init.zeros_(linear[-1].weight)
        self.network = nn.Sequential(linear[0], ScaledTanh(), linear[1], ScaledTanh(), linear[2])
        self.register_buffer("draws", _draws(), persistent=False)
        self.register_buffer("entry", torch.zeros(inputs, dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(inputs))
        self.register_buffer("center", torch.zeros(inputs))
        self.register_buffer("gain", torch.ones(inputs))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def fit(self, molecules: Molecules, energies: Tensor) -> None:
        """Features, their mean and spread, and mean and standard deviation of the energies (B,).

        Raises:
            ValueError: if there are more features than inputs, or over 23 atoms in a molecule.
        """
        molecules = molecules.to(self.threshold.device)
        self.mean.copy_(energies.double().mean())
        self.scale.copy_(energies.double().std(correction=0))
        matrices = coulomb_matrices(molecules).to(self.threshold.dtype)
        generator = torch.Generator().manual_seed(0)  # runs that resume shall find the same
        noise = torch.randn(REALISATIONS, *matrices.shape[:2], generator=generator)
        noise = noise.to(matrices)
        entries = [realisation(matrices, draw) for draw in noise]
        highest = torch.stack([e.amax(dim=0) for e in entries]).amax(dim=0)
        steps = highest.ceil().long() + 1
        used = int(steps.sum())
        if used > self.inputs:
            raise ValueError(f"{used} features do not fit {self.inputs} inputs: give it more")
        entry = torch.arange(len(steps), device=steps.device).repeat_interleave(steps)
        first = (steps.cumsum(0) - steps)[entry]
        self.entry[:used] = entry
        self.threshold[:used] = (torch.arange(used, device=steps.device) - first).to(matrices.dtype)

        self.center.zero_()
        self.gain.copy_(torch.arange(self.inputs, device=steps.device) < used)
        moments = [self.features(e).double() for e in entries]
        center = sum(f.mean(dim=0) for f in moments) / REALISATIONS
        power = sum((f - center).square().sum() for f in moments)
        count = REALISATIONS * len(matrices) * used
        self.center.copy_(center)
        self.gain.div_((power / count).sqrt())

    def features(self, entries: Tensor) -> Tensor:
        """(B, 276) -> (B, inputs)."""
        binary = torch.tanh(entries[:, self.entry] - self.threshold)
        return (binary - self.center) * self.gain

    def forward(self, molecules: Molecules) -> Tensor:
        matrices = coulomb_matrices(molecules).to(self.threshold.dtype)
        if self.training:
            noise = torch.randn(matrices.shape[:2], device=matrices.device, dtype=matrices.dtype)
            return self._energies(realisation(matrices, noise))
        order = matrices.norm(dim=2).argsort(dim=1, descending=True, stable=True)
        molecule = torch.arange(len(matrices), device=matrices.device)[:, None, None]
        matrices = matrices[molecule, order[:, :, None], order[:, None]]
        return sum(self._energies(realisation(matrices, draw)) for draw in self.draws) / len(
            self.draws
        )

    def _energies(self, entries: Tensor) -> Tensor:
        with full_precision(entries):
            return self.mean + self.scale * self.network(self.features(entries))[:, 0]


def _draws() -> Tensor:
    """The noise of the realisations that are averaged in evaluation: (10, 23)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(REALISATIONS, MAX_ATOMS, generator=generator)
