"""The equivariance certificate: how far a network's outputs move when its input is rotated.

A signal f is rotated without error, f_R(x) = f(R x) evaluated anew at the sampling points x, so all
that moves is the network's doing, its sampling of the sphere included. Which signals:
`bench.rotated_signals`.

With y_i the output for signal i and y_ik that for signal i under rotation k,

    error_ik = |y_ik - y_i| / spread,    spread^2 = mean_i |y_i - mean_j y_j|^2,

in Euclidean norms: the spread is the standard deviation between signals, so 0 is invariance, and
sqrt 2 what exchanging a signal for another does (root mean square). `mean` and `max` are over i and
k; `mean_of_norm` and `max_of_norm` have norm^2 = mean_i |y_i|^2 in place of spread^2 (this flatters
outputs with a large common mean).

Energies of molecules differ by composition first of all, and so do invariants summed over atoms;
that part stays what it is under rotation, whatever the network does. So both are certified without
it: not the mean is subtracted from y_i, but c_i, the least-squares fit of the network's own y_i to
a constant and the numbers of atoms of each element,

    spread^2 = sum_i |y_i - c_i|^2 / (n - r),

n the number of molecules and r <= 5 the rank of those numbers less their means, which is what the
fit takes beside the constant. (How the network splits the two, by its `fit`, is not asked.) The
`spread` of energies is in kcal/mol; so is their `norm`, which is that of the whole.

A field (mode n = 0 of the networks that have fibres, one value per field and vertex; the scores of
labels at each point, in segmentation) is an output like any other once it is pulled back: y_ik(P)
is compared with y_i(R_k P), interpolated, in L2 norms over the sphere. What interpolation alone
gets wrong is stated in the same units: `floor`, on band-limited signals at the field's vertices,
against their closed form; and `round_trip`, for the field itself, taken to the rotated vertices and
back. Coarse meshes do not carry degree L, and their fields are smoother: there the round trip says
more.

Definitions: ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.spatial import SphericalVoronoi
from torch import nn
from tqdm import tqdm

from baselines.molecules import Molecules
from bench.interpolation import Interpolation, interpolation
from bench.rotated_signals import Batches, band_limited_signals


def certify(
    model: nn.Module,
    batches: Batches,
    points: np.ndarray,
    rotations: np.ndarray,
    interpolate: Interpolation = interpolation,
    never: Sequence[int] = (),
) -> dict[str, Any]:
    """Errors of one network, in evaluation mode, on signals sampled at points (P, 3) under
    rotations (K, 3, 3). `never` lists classes that are not predicted, whatever their scores.

    Returns `output` and `invariants` (errors as defined above), `invariants_are` ("features" of the
    model's method `invariants`, or "output" if it has none), `fields` (one entry for each field
    that the model exposes), and of outputs that are scores of classes or labels `agreement` (the
    share of rotated signals, or of the sphere, whose predicted class is that of the signal itself)
    and `agreement_by_chance` (of two signals drawn at random), else None.
    """
    model.eval()
    unrotated = batches(np.eye(3))
    still, atoms = _outputs(model, unrotated), _atoms(unrotated)
    sizes = {len(value) for value in still.values() if value.ndim == 3}
    areas = {size: SphericalVoronoi(points[:size]).calculate_areas() for size in sizes}
    moves, trips, agreement = defaultdict(list), defaultdict(list), []
    for rotation in tqdm(rotations, desc="rotations", disable=None, leave=False):
        there, back = (
            {size: interpolate(points[:size], points[:size] @ r) for size in sizes}
            for r in (rotation.T, rotation)
        )
        for key, moved in _outputs(model, batches(rotation)).items():
            expected, area = still[key], None
            if expected.ndim == 3:
                size = len(expected)
                area, expected = areas[size], _apply(there[size], expected)
                trips[key].append(_norms(_apply(back[size], expected) - still[key], area))
            moves[key].append(_norms(moved - expected, area))
            if key == "output":
                same = _classes(moved, never) == _classes(expected, never)
                agreement.append(np.average(same.mean(axis=-1), weights=area))

    def errors(key: str) -> dict[str, Any]:
        value = still[key]
        if value.ndim == 2:
            return _relative(moves[key], value, atoms=atoms)
        area, vertices = areas[len(value)], points[: len(value)]
        return {
            "vertices": len(vertices),
            "fields": value.shape[1],
            **_relative(moves[key], value, area),
            "floor": interpolation_floor(vertices, rotations, interpolate),
            "round_trip": _relative(trips[key], value, area)["mean"],
        }

    output = still["output"]
    scores = output.shape[-2] > 1
    of_output = errors("output")
    return {
        "output": of_output,
        "invariants": errors("invariants") if "invariants" in still else of_output,
        "invariants_are": "features" if "invariants" in still else "output",
        "agreement": float(np.mean(agreement)) if scores else None,
        "agreement_by_chance": _by_chance(_classes(output, never), areas) if scores else None,
        "fields": [errors(key) for key in still if key.startswith("field")],
    }


def interpolation_floor(
    vertices: np.ndarray, rotations: np.ndarray, interpolate: Interpolation = interpolation
) -> float:
    """Mean error of interpolating 20 fixed band-limited signals from the vertices to the rotated
    vertices, relative to their spread."""
    signals = band_limited_signals(20, vertices, np.random.default_rng(0))
    still = signals(np.eye(3))[:, 0].T
    errors = [
        _norms(interpolate(vertices, vertices @ rotation.T) @ still - signals(rotation)[:, 0].T)
        for rotation in rotations
    ]
    mean = _relative(errors, still)["mean"]
    assert mean is not None  # the signals differ
    return mean


def _outputs(model: Any, batches: list[Any]) -> dict[str, np.ndarray]:
    """By name "output", "invariants" and "field 0", ..., where the model has them: values
    (channels, signals), or (vertices, channels, signals)."""
    parts = defaultdict(list)
    with torch.no_grad():
        for x in batches:
            output = model(x)
            output = output[:, None] if output.ndim == 1 else output
            parts["output"].append(output.T if output.ndim == 2 else output.permute(2, 1, 0))
            if hasattr(model, "invariants"):
                parts["invariants"].append(model.invariants(x).T)
            for i, field in enumerate(model.fields(x) if hasattr(model, "fields") else ()):
                parts[f"field {i}"].append(field[:, 0])
    return {key: torch.cat(part, dim=-1).double().numpy() for key, part in parts.items()}


def _atoms(batches: list[Any]) -> np.ndarray | None:
    """Of molecules, the atoms of each element, (signals, 5); None of other signals."""
    if not isinstance(batches[0], Molecules):
        return None
    return torch.cat([batch.counts for batch in batches]).double().numpy()


def _apply(matrix: sparse.csr_array, field: np.ndarray) -> np.ndarray:
    return (matrix @ field.reshape(len(field), -1)).reshape(len(field), *field.shape[1:])


def _norms(values: np.ndarray, areas: np.ndarray | None = None) -> np.ndarray:
    """Euclidean norms over all axes but the last, the signals; of fields, root mean squares over
    the sphere."""
    squares = values**2 if areas is None else values**2 * (areas / areas.sum())[:, None, None]
    return np.sqrt(np.sum(squares, axis=tuple(range(values.ndim - 1))))


def _relative(
    distances: list[np.ndarray],
    reference: np.ndarray,
    areas: np.ndarray | None = None,
    atoms: np.ndarray | None = None,
) -> dict[str, float | None]:
    """The errors defined above, from |y_ik - y_i| and the y_i, of molecules with so many `atoms` of
    each element; None in place of x / 0."""
    deviations, free = reference - reference.mean(-1, keepdims=True), reference.shape[-1]
    if atoms is not None:
        centred = atoms - atoms.mean(axis=0)
        slopes, _, rank, _ = np.linalg.lstsq(centred, deviations.T)
        deviations, free = deviations - (centred @ slopes).T, free - rank
    spread = float(np.sqrt(np.sum(_norms(deviations, areas) ** 2) / free))
    norm = float(np.sqrt(np.mean(_norms(reference, areas) ** 2)))
    found: dict[str, float | None] = {}
    for suffix, unit in (("", spread), ("_of_norm", norm)):
        for key, value in (("mean", np.mean(distances)), ("max", np.max(distances))):
            found[key + suffix] = float(value / unit) if unit else 0.0 if value == 0 else None
    return found | {"spread": spread, "norm": norm}


def _classes(scores: np.ndarray, never: Sequence[int]) -> np.ndarray:
    """The class of the highest score, of those that are predicted at all (numbered anew)."""
    return np.delete(scores, list(never), axis=-2).argmax(axis=-2)


def _by_chance(classes: np.ndarray, areas: dict[int, np.ndarray]) -> float:
    """How often two signals drawn at random agree: the sum of the squared shares of the classes."""
    weights = np.ones(classes.shape)
    if classes.ndim == 2:
        weights *= areas[len(classes)][:, None]
    shares = np.bincount(classes.ravel(), weights.ravel()) / weights.sum()
    return float(np.sum(shares**2))
