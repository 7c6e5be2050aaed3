"""Trained networks by name: `pdo.load("pdo-es2cnn-small-mnist")`.

The weights and `index.json` beside this file are made by `python -m bench release` from recorded
runs; the index says of each network how it is built, what it was trained on, by which run and
commit, and what it was measured to do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pdo.mesh import Icosphere
from pdo.networks import PDOeS2CNN

FOLDER = Path(__file__).parent
BATCH = 64
"""Signals that `predict` works on at a time: bounds memory."""


class Prediction(NamedTuple):
    """What a classifier says of B signals.

    classes: (B,) int64, the most probable class of each.
    probabilities: (B, classes), softmax of the logits; rows sum to 1. They are the network's own
        and were not calibrated.
    """

    classes: Tensor
    probabilities: Tensor


class Classifier(nn.Module):
    """A network together with the normalisation of its input: logits of (x / scale - mean) / std.

    Args:
        network: from (B, 1, V) normalised signals to (B, classes) logits.
        scale: the greatest value of a raw signal; raw signals are in 0..scale.
        mean: of x / scale over the training set.
        std: of x / scale over the training set.
        pose: rotation (3, 3) from the mesh's vertices to the points of the training set.
        facts: entry of the index, for the reader: `facts["measured"]`, `facts["run"]` and so on.

    Shapes: (B, V) -> (B, classes), raw signals to logits.
    """

    def __init__(
        self,
        network: PDOeS2CNN,
        scale: float,
        mean: float,
        std: float,
        pose: np.ndarray,
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.facts = network, facts or {}
        self.scale, self.mean, self.std, self.pose = scale, mean, std, pose

    @property
    def mesh(self) -> Icosphere:
        """The icosphere of the network."""
        return self.network.mesh

    @property
    def points(self) -> np.ndarray:
        """Where signals are sampled, (V, 3) unit vectors, where upright digits lie round the south
        pole: the vertices of `mesh`, turned by `pose`."""
        return self.mesh.vertices @ self.pose.T

    def forward(self, signals: Tensor) -> Tensor:
        return self.network(((signals / self.scale - self.mean) / self.std)[:, None])

    @torch.no_grad()
    def predict(self, signals: Any) -> Prediction:
        """Classes and their probabilities, in evaluation mode and in the precision of the
        parameters, some signals at a time.

        Args:
            signals: (B, V) tensor or array, the value of each signal at each of `points`, in
                the units of the training set: grey levels 0..255, 0 = background, for the digits.

        Raises:
            ValueError: if the shape is not (B, V), a value is not finite or not in 0..scale.
        """
        x = torch.as_tensor(signals)
        vertices = len(self.mesh)
        if x.dim() != 2 or x.shape[1] != vertices:
            raise ValueError(
                f"signals must be (batch, {vertices}), the vertices of icosphere level "
                f"{self.mesh.level}, not {tuple(x.shape)}"
            )
        parameter = next(self.parameters())
        x = x.to(parameter.dtype)
        if not bool(((x >= 0) & (x <= self.scale)).all()):  # a NaN fails as well
            raise ValueError(f"signals must be finite and in 0..{self.scale:g}")
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            logits = [self(part.to(parameter.device)) for part in x.split(BATCH)]
        finally:
            for module, mode in modes.items():
                module.training = mode
        probabilities = torch.cat(logits).softmax(dim=1)
        return Prediction(probabilities.argmax(dim=1), probabilities)


def pretrained() -> dict[str, dict[str, Any]]:
    """The networks that `load` knows: name -> what the index says of it (`network`: arguments of
    its constructor, `input`: its normalisation and units, `measured`, `run`, `commit`)."""
    index: dict[str, dict[str, Any]] = json.loads((FOLDER / "index.json").read_text())
    return index


def load(name: str) -> Classifier:
    """A trained network in evaluation mode on the CPU; `.to(device)` moves it.

    Nothing is downloaded: the weights are part of the package.

    Args:
        name: one of `pretrained()`, for example "pdo-es2cnn-small-mnist".

    Raises:
        ValueError: if there is no network of this name.
    """
    index = pretrained()
    if name not in index:
        near: Sequence[str] = get_close_matches(name, index, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown network {name!r}: {hint}(valid: {', '.join(index)})")
    entry = index[name]
    network = PDOeS2CNN(**entry["network"])
    network.load_state_dict(load_file(FOLDER / entry["weights"]))
    scale, mean, std, pose = (entry["input"][key] for key in ("scale", "mean", "std", "pose"))
    return Classifier(network, scale, mean, std, np.array(pose), entry).eval()
