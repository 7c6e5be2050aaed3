"""Signals of each task, rotated without error: f_R(x) = f(R x) is evaluated anew at the points x of
a grid, for the certificate (`bench.equivariance`).

- digits: images on the sphere as in `data_prep.spherical_mnist`, f_R(x) = image(project(R x));
- molecules: potentials round the atoms of the molecule that is turned by R^-1;
- rooms: generated panoramas, some without depth in places as the real ones, sampled as in
  `data_prep.room_signals` at R x;
- band-limited: f = sum over 1 <= l <= L, |m| <= l of a_lm Y_lm in real orthonormal spherical
  harmonics, L = BAND_LIMIT, a_lm independent Gaussians of variance 4 pi / (L (2 l + 1)). All
  degrees have the same power, the mean over the sphere is 0 and the mean square 1 on average.

Spectrum: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.special import sph_harm_y_all
from torch import Tensor

from baselines.inputs import MNIST_MEAN, MNIST_STD
from baselines.molecules import Molecules
from baselines.rooms import CHANNELS
from bench.errors import ConfigError, RunError
from bench.seeds import derive
from bench.tasks_qm7 import in_one_batch
from data_prep.qm7 import FILE, FOLDS, load_qm7
from data_prep.room_signals import Quirks, rgbd_signal
from data_prep.spherical_mnist import Edition, sampling_matrix, stratified_subset, to_bytes
from data_prep.spherical_qm7 import RADII, least_distance, potentials
from data_prep.stanford import (
    AREAS,
    MISSING,
    RGBD_MEAN,
    RGBD_STD,
    class_of_index,
    panoramas,
    read_depth,
    read_labels,
    read_rgb,
)
from data_prep.synthetic_digits import mnist_or_synthetic, synthetic_digits
from data_prep.synthetic_molecules import synthetic_molecules
from data_prep.synthetic_rooms import generate

BAND_LIMIT = 10
"""Highest degree of the band-limited signals: about the width of a digit's stroke."""

Batches = Callable[[np.ndarray], list[Any]]
"""A rotation (3, 3) -> all signals of a kind under it, in batches as a network takes them."""
Values = Callable[[np.ndarray], np.ndarray]
"""A rotation (3, 3) -> the signals under it, (n, channels, points)."""


class Kinds(NamedTuple):
    """The signals of a task, by kind, and where they come from."""

    batches: dict[str, Batches]
    source: str
    energies: Tensor | None = None
    """Of the molecules, kcal/mol."""


def digits(
    points: np.ndarray,
    n: int,
    seed: int,
    data: Path,
    source: str | None = None,
    edition: Edition = "corrected",
) -> Kinds:
    """Return test digits of an edition, all classes alike, and as many band-limited signals.

    `source` is "mnist" or "synthetic"; None: MNIST if `data`/raw/mnist is there, else synthetic.

    Raises:
        ConfigError: there are not so many.
        DataError: the raw MNIST files are damaged.
        RunError: they are missing, and `source` asks for them.
    """
    raw = data / "raw" / "mnist"
    if source == "mnist" and not raw.is_dir():
        raise _missing(raw, raw)
    if source == "synthetic":
        found = synthetic_digits(1, n, seed)
    else:
        found = mnist_or_synthetic(data, 1, n, seed)
    size = len(found.test_labels)
    if n > size:
        raise ConfigError(f"--signals must be at most the {size} test digits, not {n}")
    chosen = stratified_subset(found.test_labels, np.arange(size), n, derive(seed, "digits"))
    rng = np.random.default_rng(derive(seed, "band-limited"))
    kinds = {
        "digits": in_batches(digit_signals(found.test_images[chosen], points, edition), 32),
        "band-limited": in_batches(band_limited_signals(n, points, rng), 32),
    }
    return Kinds(kinds, found.source + ", published edition" * (edition == "published"))


def _missing(raw: Path, path: Path) -> RunError:
    """Of the data, in their folder `raw`, that a network was trained on."""
    return RunError(
        f"the network was trained on {raw.name.upper()}, and {path} is missing: fetch it with "
        f"`python -m data_prep fetch {raw.name} --out {raw}`, or name its folder with --data"
    )


def molecules(
    points: np.ndarray,
    n: int,
    seed: int,
    data: Path,
    power: int = 1,
    radius: str = "half",
    self_exclusion: Literal["index", "nearest"] = "index",
    source: str | None = None,
) -> Kinds:
    """Molecules; `source` is "qm7" or "synthetic", None: QM7 if `data`/raw/qm7 is there, else
    synthetic ones. The other arguments are those of `data_prep.spherical_qm7`.

    Raises:
        ConfigError: there are not so many.
        DataError: the raw file of QM7 is damaged.
        RunError: it is missing, and `source` asks for it.
    """
    raw = data / "raw" / "qm7"
    real = (raw / FILE).is_file() and source != "synthetic"
    if source == "qm7" and not real:
        raise _missing(raw, raw / FILE)
    found = load_qm7(raw) if real else synthetic_molecules(FOLDS * -(-n // FOLDS), seed)
    if n > len(found.charges):
        raise ConfigError(f"--signals must be at most the {len(found.charges)} molecules, not {n}")
    rng = np.random.default_rng(derive(seed, "molecules"))
    chosen = np.sort(rng.permutation(len(found.charges))[:n])
    length = RADII[radius] * least_distance(found)
    atoms = [found.charges[k] > 0 for k in chosen]
    charges = [found.charges[k][a].astype(np.int64) for k, a in zip(chosen, atoms, strict=True)]
    positions = [found.positions[k][a] for k, a in zip(chosen, atoms, strict=True)]

    def batches(rotation: np.ndarray) -> list[Molecules]:
        turned = [p @ rotation for p in positions]  # R^-1 p, as rows
        result = []
        for start in range(0, n, 8):
            z, p = charges[start : start + 8], turned[start : start + 8]
            signals = [
                potentials(at, of, points, length, power, self_exclusion)
                for at, of in zip(p, z, strict=True)
            ]
            sizes = np.array([len(of) for of in z])
            result.append(in_one_batch(sizes, *map(np.concatenate, (z, p, signals))))
        return result

    return Kinds({"molecules": batches}, found.source, torch.from_numpy(found.energies[chosen]))


def rooms(points: np.ndarray, n: int, seed: int, missing_depth_far: bool = False) -> Kinds:
    """Panoramas of SyntheticRooms, made for the purpose, and as many band-limited signals.
    `missing_depth_far` is that of `data_prep.room_signals`; a run's other quirks change labels."""
    values = room_signals(n, points, seed, Quirks(missing_depth_far=missing_depth_far))
    rng = np.random.default_rng(derive(seed, "band-limited"))
    smooth = band_limited_signals(n, points, rng, CHANNELS)
    kinds = {"rooms": in_batches(values, 2), "band-limited": in_batches(smooth, 2)}
    return Kinds(kinds, "SyntheticRooms" + ", missing depth far away" * missing_depth_far)


def in_batches(values: Values, size: int) -> Batches:
    """Signals as tensors (at most `size`, channels, points) in the default precision."""

    def batches(rotation: np.ndarray) -> list[Tensor]:
        x = torch.tensor(values(rotation), dtype=torch.get_default_dtype())
        return list(x.split(size))

    return batches


def digit_signals(images: np.ndarray, points: np.ndarray, edition: Edition = "corrected") -> Values:
    """Return images (n, 28, 28) around the south pole as signals, normalised as the task's.

    Signals of the corrected edition are not rounded to bytes; those of the published edition are
    stretched to bytes, as in its files.
    """
    flat = images.reshape(len(images), -1).T.astype(np.float64)

    def values(rotation: np.ndarray) -> np.ndarray:
        grey = (sampling_matrix(points @ rotation.T, edition) @ flat).T
        grey = to_bytes(grey, edition) if edition == "published" else grey
        return (grey[:, None] / 255 - MNIST_MEAN) / MNIST_STD

    return values


def room_signals(n: int, points: np.ndarray, seed: int, quirks: Quirks) -> Values:
    """The first panoramas of a generated set, normalised as the task's; not rounded to float16."""
    with TemporaryDirectory() as folder:
        generate(folder, max(n, 2 * len(AREAS)), 128, derive(seed, "rooms") % 2**32)
        classes = class_of_index(folder)
        images = [
            (read_rgb(p.rgb), read_depth(p.depth), read_labels(p.semantic, classes) != MISSING)
            for p in panoramas(folder)[:n]
        ]
    mean, std = np.array(RGBD_MEAN)[:, None], np.array(RGBD_STD)[:, None]

    def values(rotation: np.ndarray) -> np.ndarray:
        directions = points @ rotation.T
        return np.stack(
            [(rgbd_signal(*image, directions, quirks) - mean) / std for image in images]
        )

    return values


def band_limited_signals(
    n: int, points: np.ndarray, rng: np.random.Generator, channels: int = 1
) -> Values:
    """Random signals of degree 1..BAND_LIMIT with the spectrum above."""
    degrees = np.arange(1, BAND_LIMIT + 1)
    scale = np.repeat(np.sqrt(4 * np.pi / (BAND_LIMIT * (2 * degrees + 1))), 2 * degrees + 1)
    coefficients = scale[:, None] * rng.standard_normal((len(scale), n * channels))

    def values(rotation: np.ndarray) -> np.ndarray:
        smooth = harmonics(points @ rotation.T, BAND_LIMIT)[:, 1:] @ coefficients
        return smooth.T.reshape(n, channels, -1)

    return values


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
