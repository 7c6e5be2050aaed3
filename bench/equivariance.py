"""The equivariance certificate: how far a network's outputs move when its input is rotated.

A signal f is rotated without error, f_R(x) = f(R x) evaluated anew at the sampling points x, so all
that moves is the network's doing, its sampling of the sphere included. Two kinds of signals:

- digits: images on the sphere as in `data_prep.spherical_mnist`, f_R(x) = image(project(R x));
- band-limited: f = sum over 1 <= l <= L, |m| <= l of a_lm Y_lm in real orthonormal spherical
  harmonics, L = BAND_LIMIT, a_lm independent Gaussians of variance 4 pi / (L (2 l + 1)). All
  degrees have the same power, the mean over the sphere is 0 and the mean square 1 on average.

With y_i the output for signal i and y_ik that for signal i under rotation k,

    error_ik = |y_ik - y_i| / spread,    spread^2 = mean_i |y_i - mean_j y_j|^2,

in Euclidean norms: the spread is the standard deviation between signals, so 0 is invariance, and
sqrt 2 what exchanging a signal for another does (root mean square). `mean` and `max` are over i and
k; `mean_of_norm` and `max_of_norm` have norm^2 = mean_i |y_i|^2 in place of spread^2 (this flatters
outputs with a large common mean).

A field, where the network has them (mode n = 0, one value per field and vertex), is an output like
any other once it is pulled back: y_ik(P) is compared with y_i(R_k P), interpolated (see
`interpolation`). What interpolation alone gets wrong is stated in the same units: `floor`, on
band-limited signals as above at the field's vertices, against their closed form; and `round_trip`,
for the field itself, taken to the rotated vertices and back. Coarse meshes do not carry degree L,
and their fields are smoother: there the round trip says more.

Definitions, spectrum and interpolation: ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.special import sph_harm_y_all
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from bench.errors import ConfigError, RunError, unknown
from bench.provenance import git_state
from bench.registry import MODELS, models_of
from bench.seeds import derive
from bench.tasks import MNIST_MEAN, MNIST_STD
from data_prep.grids import grid_points
from data_prep.spherical_mnist import haar_rotations, sampling_matrix, stratified_subset
from data_prep.synthetic_digits import mnist_or_synthetic

TASK = "spherical_mnist"
BAND_LIMIT = 10
"""Highest degree of the band-limited signals: about the width of a digit's stroke."""
NEIGHBOURS = 24
"""Vertices that enter an interpolation."""
BATCH = 32
WARM_UP_STEPS = 60
"""Batches shown to an untrained network: at momentum 0.1, 0.2 % of the initial statistics stay."""

Signals = Callable[[np.ndarray], np.ndarray]
"""A rotation (3, 3) -> the signals under it, (points, signals)."""


def certificate(
    name: str,
    level: int | None = None,
    rotations: int = 8,
    digits: int = 100,
    weights: Path | None = None,
    seed: int = 0,
    data: Path = Path("data"),
) -> dict[str, Any]:
    """Certify a registered model on `digits` test digits and as many band-limited signals, each
    under the same `rotations` Haar rotations; plain values for JSON, defined above.

    Without `weights` the network is untrained: random, its batch-norm statistics taken from the
    unrotated signals, anew for each kind. `weights` is a run's weights.safetensors; the level
    (else 4) and the network's options are then those of config.yaml beside it, if there is one.
    The digits are MNIST's if `data`/raw/mnist is there, else synthetic ones.

    Raises:
        ConfigError: unknown model, level out of range, fewer than 2 digits or 1 rotation.
        RunError: the weights cannot be read or are another network's.
        DataError: the raw MNIST files are damaged.
    """
    if name not in models_of(TASK):
        raise unknown("model", name, models_of(TASK))
    if rotations < 1:
        raise ConfigError(f"--rotations must be at least 1, not {rotations}")
    run = _run_of(weights, name)
    level = run.get("data", {}).get("level", 4) if level is None else level
    entry = MODELS[TASK, name]

    def network() -> nn.Module:
        torch.manual_seed(derive(seed, "initialisation"))
        return entry.build(level=level, **run.get("options", {}))

    try:
        points = grid_points(entry.grid_name(level))
        parameters = sum(p.numel() for p in network().parameters())
    except ValueError as error:
        raise ConfigError(f"{name} at level {level}: {error}") from error
    images, source = _images(data, digits, seed)
    rng = np.random.default_rng(derive(seed, "band-limited"))
    kinds = {
        "digits": digit_signals(images, points),
        "band-limited": band_limited_signals(digits, points, rng),
    }
    turns = haar_rotations(rotations, np.random.default_rng(derive(seed, "rotations")))
    inputs = {}
    for kind, signals in kinds.items():
        model = network()
        if weights is None:
            warm_up(model, signals(np.eye(3)))
        else:
            _load(model, weights)
        inputs[kind] = certify(model, signals, points, turns)
    return {
        "model": name,
        "parameters": parameters,
        "level": level,
        "grid": entry.grid_name(level),
        "weights": None if weights is None else str(weights),
        "digits": source,
        "signals": digits,
        "rotations": rotations,
        "seed": seed,
        "band_limit": BAND_LIMIT,
        "interpolation_neighbours": NEIGHBOURS,
        **git_state(),
        "definitions": __doc__,
        "inputs": inputs,
    }


def certify(
    model: nn.Module, signals: Signals, points: np.ndarray, rotations: np.ndarray
) -> dict[str, Any]:
    """Errors of one network, in evaluation mode, on signals sampled at points (P, 3) under
    rotations (K, 3, 3).

    Returns `invariants` and `logits` (errors as defined above), `invariants_are` ("features" of the
    model's method `invariants`, or "logits" if it has none), `agreement` (the share of rotated
    signals whose predicted class is that of the signal itself) and `agreement_by_chance` (of two
    signals drawn at random), `fields` (one entry for each field that the model exposes).
    """
    model.eval()
    still, still_fields = _outputs(model, signals(np.eye(3)))
    classes = still["logits"].argmax(axis=0)
    moves, field_moves, trips = (defaultdict(list) for _ in range(3))
    agreement = []
    for rotation in tqdm(rotations, desc="rotations", disable=None, leave=False):
        turned, turned_fields = _outputs(model, signals(rotation))
        agreement.append(np.mean(turned["logits"].argmax(axis=0) == classes))
        for key, value in turned.items():
            moves[key].append(_norms(value - still[key]))
        for i, (field, moved) in enumerate(zip(still_fields, turned_fields, strict=True)):
            vertices = points[: len(field)]
            pulled = _apply(interpolation(vertices, vertices @ rotation.T), field)
            back = _apply(interpolation(vertices, vertices @ rotation), pulled)
            field_moves[i].append(_norms(moved - pulled))
            trips[i].append(_norms(back - field))
    fields = [
        {
            "vertices": len(field),
            "fields": field.shape[1],
            **_relative(field_moves[i], field),
            "floor": interpolation_floor(points[: len(field)], rotations),
            "round_trip": _relative(trips[i], field)["mean"],
        }
        for i, field in enumerate(still_fields)
    ]
    shares = np.bincount(classes) / len(classes)
    return {
        **{key: _relative(moves[key], value) for key, value in still.items()},
        "invariants_are": "features" if hasattr(model, "invariants") else "logits",
        "agreement": float(np.mean(agreement)),
        "agreement_by_chance": float(np.sum(shares**2)),
        "fields": fields,
    }


def digit_signals(images: np.ndarray, points: np.ndarray) -> Signals:
    """Images (n, 28, 28) round the south pole, normalised as the task's; not rounded to bytes."""
    flat = images.reshape(len(images), -1).T.astype(np.float64)

    def signals(rotation: np.ndarray) -> np.ndarray:
        return (sampling_matrix(points @ rotation.T) @ flat / 255 - MNIST_MEAN) / MNIST_STD

    return signals


def band_limited_signals(n: int, points: np.ndarray, rng: np.random.Generator) -> Signals:
    """Random signals of degree 1..BAND_LIMIT with the spectrum above."""
    degrees = np.arange(1, BAND_LIMIT + 1)
    scale = np.repeat(np.sqrt(4 * np.pi / (BAND_LIMIT * (2 * degrees + 1))), 2 * degrees + 1)
    coefficients = scale[:, None] * rng.standard_normal((len(scale), n))
    return lambda rotation: harmonics(points @ rotation.T, BAND_LIMIT)[:, 1:] @ coefficients


def harmonics(points: np.ndarray, degree: int) -> np.ndarray:
    """Real orthonormal spherical harmonics of degrees 0..degree at unit vectors (P, 3), one column
    each: by degree l, then Y_l0, sqrt2 Re Y_l1, sqrt2 Im Y_l1, ..., sqrt2 Im Y_ll."""
    x, y, z = points.T
    values = sph_harm_y_all(degree, degree, np.arctan2(np.hypot(x, y), z), np.arctan2(y, x))
    columns = []
    for at_degree, orders in zip(values, range(1, degree + 2), strict=True):
        columns.append(at_degree[0].real)
        for value in at_degree[1:orders]:
            columns += [np.sqrt(2) * value.real, np.sqrt(2) * value.imag]
    return np.stack(columns, axis=1)


def interpolation(points: np.ndarray, targets: np.ndarray) -> sparse.csr_array:
    """Matrix (T, P) that interpolates values at unit vectors `points` (P, 3) to `targets` (T, 3).

    At each target, the cubic spline s(x) = sum_q w_q |x - q|^3 + a + b.x through the NEIGHBOURS
    nearest points (distances in space, sum_q w_q = 0, sum_q w_q q = 0), evaluated there.
    """
    count = min(NEIGHBOURS, len(points))
    _, near = cKDTree(points).query(targets, count)
    offsets = points[near] - targets[:, None]
    offsets /= np.abs(offsets).max(axis=(1, 2), keepdims=True)  # for the condition number
    distances = np.linalg.norm(offsets[:, :, None] - offsets[:, None], axis=-1)
    linear = np.concatenate([np.ones_like(offsets[..., :1]), offsets], axis=-1)
    system = np.zeros((len(targets), count + 4, count + 4))
    system[:, :count, :count] = distances**3
    system[:, :count, count:] = linear
    system[:, count:, :count] = linear.swapaxes(1, 2)
    at_target = np.zeros((len(targets), count + 4, 1))
    at_target[:, :count, 0] = np.linalg.norm(offsets, axis=-1) ** 3
    at_target[:, count] = 1
    weights = np.linalg.solve(system, at_target)[:, :count, 0]
    starts = count * np.arange(len(targets) + 1)
    return sparse.csr_array(
        (weights.ravel(), near.ravel(), starts), shape=(len(targets), len(points))
    )


def interpolation_floor(vertices: np.ndarray, rotations: np.ndarray) -> float:
    """Mean error of interpolating 20 fixed band-limited signals from the vertices to the rotated
    vertices, relative to their spread."""
    signals = band_limited_signals(20, vertices, np.random.default_rng(0))
    still = signals(np.eye(3))
    errors = [
        _norms(interpolation(vertices, vertices @ rotation.T) @ still - signals(rotation))
        for rotation in rotations
    ]
    mean = _relative(errors, still)["mean"]
    assert mean is not None  # the signals differ
    return mean


def warm_up(model: nn.Module, signals: np.ndarray) -> None:
    """Let batch-norm statistics settle on signals (P, n): WARM_UP_STEPS batches in training mode,
    going round the signals, with no change of weights."""
    model.train()
    batch = min(BATCH, signals.shape[1])
    with torch.no_grad():
        for step in range(WARM_UP_STEPS):
            chosen = (step * batch + np.arange(batch)) % signals.shape[1]
            model(_tensor(signals[:, chosen]))


def as_text(result: dict[str, Any]) -> str:
    """A certificate as a small table."""
    rows = []
    for kind, found in result["inputs"].items():
        lines: list[tuple[str, Any, tuple[float, ...]]]
        lines = [(key, found[key], ()) for key in ("invariants", "logits")]
        lines += [
            (f"{f['fields']} fields, {f['vertices']} vertices", f, (f["floor"], f["round_trip"]))
            for f in found["fields"]
        ]
        if found["invariants_are"] == "logits":
            lines = lines[1:]
        for what, errors, extra in lines:
            keys = ("mean", "max", "mean_of_norm", "max_of_norm")
            rows.append([kind, what, *(errors[key] for key in keys), *extra])
    columns = ["signals", "output", "mean", "max", "mean/norm", "max/norm", "floor", "round trip"]
    state = result["weights"] or "untrained"
    head = (
        f"{result['model']} at level {result['level']} ({result['grid']}), {state}\n"
        f"{result['signals']} signals x {result['rotations']} rotations, seed {result['seed']}; "
        f"digits: {result['digits']}"
    )
    agreement = [
        f"{kind}: {100 * found['agreement']:.1f} % of predictions agree "
        f"(of unrelated signals: {100 * found['agreement_by_chance']:.1f} %)"
        for kind, found in result["inputs"].items()
    ]
    note = (
        "Errors under rotation in units of the standard deviation between signals; /norm: of their "
        "norm.\nFields are pulled back by interpolation; floor: its own error at degree "
        f"{result['band_limit']}; round trip: of this\nfield there and back. Definitions: --json, "
        "or bench/equivariance.py."
    )
    body = tabulate(rows, columns, tablefmt="simple", floatfmt=".4f", missingval="")
    return "\n".join([head, "", body, "", *agreement, "", note])


def _outputs(model: Any, signals: np.ndarray) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Invariants and logits, each (channels, signals), and the fields, each (V, C, signals)."""
    flat, fields = defaultdict(list), defaultdict(list)
    with torch.no_grad():
        for start in range(0, signals.shape[1], BATCH):
            x = _tensor(signals[:, start : start + BATCH])
            logits = model(x)
            features = model.invariants(x) if hasattr(model, "invariants") else logits
            flat["invariants"].append(features.T)
            flat["logits"].append(logits.T)
            for i, field in enumerate(model.fields(x) if hasattr(model, "fields") else ()):
                fields[i].append(field[:, 0])

    def join(parts: list[torch.Tensor]) -> np.ndarray:
        return torch.cat(parts, dim=-1).double().numpy()

    return {key: join(value) for key, value in flat.items()}, [*map(join, fields.values())]


def _tensor(signals: np.ndarray) -> torch.Tensor:
    """(P, n) -> (n, 1, P), in the default precision."""
    return torch.tensor(signals.T[:, None], dtype=torch.get_default_dtype())


def _apply(matrix: sparse.csr_array, field: np.ndarray) -> np.ndarray:
    return (matrix @ field.reshape(len(field), -1)).reshape(field.shape)


def _norms(values: np.ndarray) -> np.ndarray:
    """Euclidean norms over all axes but the last, the signals."""
    return np.sqrt(np.sum(values**2, axis=tuple(range(values.ndim - 1))))


def _relative(distances: list[np.ndarray], reference: np.ndarray) -> dict[str, float | None]:
    """The errors defined above, from |y_ik - y_i| and the y_i; None in place of x / 0."""
    spread = float(np.sqrt(np.mean(_norms(reference - reference.mean(-1, keepdims=True)) ** 2)))
    norm = float(np.sqrt(np.mean(_norms(reference) ** 2)))
    found: dict[str, float | None] = {}
    for suffix, unit in (("", spread), ("_of_norm", norm)):
        for key, value in (("mean", np.mean(distances)), ("max", np.max(distances))):
            found[key + suffix] = float(value / unit) if unit else 0.0 if value == 0 else None
    return found | {"spread": spread, "norm": norm}


def _images(data: Path, n: int, seed: int) -> tuple[np.ndarray, str]:
    """Test images (n, 28, 28), all classes alike, and where they come from."""
    if n < 2:
        raise ConfigError(f"--digits must be at least 2 (errors are relative to spread), not {n}")
    found = mnist_or_synthetic(data, 1, n, seed)
    size = len(found.test_labels)
    if n > size:
        raise ConfigError(f"--digits must be at most the {size} test digits, not {n}")
    chosen = stratified_subset(found.test_labels, np.arange(size), n, derive(seed, "digits"))
    return found.test_images[chosen], found.source


def _run_of(weights: Path | None, name: str) -> dict[str, Any]:
    """The configuration beside a run's weights; {} if there is none."""
    if weights is None:
        return {}
    file = weights.with_name("config.yaml")
    run = yaml.safe_load(file.read_text()) if file.is_file() else {}
    if run and (network := run.get("network", run["model"])) != name:
        raise ConfigError(f"{weights} are weights of {network}, not of {name}")
    return run


def _load(model: nn.Module, weights: Path) -> None:
    try:
        model.load_state_dict(load_file(weights))
    except FileNotFoundError as error:
        raise RunError(f"{weights} is missing: name a run's weights.safetensors") from error
    except SafetensorError as error:
        raise RunError(f"{weights} is not a readable safetensors file ({error})") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{weights} do not fit the network (other options, or an older version): {reason}"
        ) from error
