"""Classify image files with a trained network: put on the sphere, rotated if wanted, predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

import pdo
from bench.errors import ConfigError, RunError, unknown
from data_prep.mnist import SIZE
from data_prep.spherical_mnist import haar_rotations, sample_rotated, to_bytes


def predict_file(name: str, path: Path, seed: int | None = None) -> dict[str, Any]:
    """What a network of `pdo.load` says of the digits in a file, plain values only.

    `rotations` (n, 3, 3) are those of the signals, f_R(x) = image(project(R x)): one of Haar's for
    each image, drawn with `seed`; without it, None.

    Raises:
        ConfigError: if there is no such network, or the seed is negative.
        RunError: if the file cannot be read or holds no 28 x 28 grey images.
    """
    if name not in pdo.pretrained():
        raise unknown("network", name, pdo.pretrained())
    if seed is not None and seed < 0:
        raise ConfigError(f"the seed of the rotation must be >= 0, not {seed}")
    images = read_images(path)
    rotations = np.repeat(np.eye(3)[None], len(images), axis=0)
    if seed is not None:
        rotations = haar_rotations(len(images), np.random.default_rng(seed))
    classifier = pdo.load(name)
    signals = to_bytes(sample_rotated(images, rotations, classifier.points))
    classes, probabilities = classifier.predict(signals)
    return {
        "network": name,
        "file": str(path),
        "seed": seed,
        "rotations": None if seed is None else rotations.tolist(),
        "classes": classes.tolist(),
        "probabilities": probabilities.tolist(),
    }


def read_images(path: Path) -> np.ndarray:
    """Grey images (n, 28, 28) uint8, 0 = background, from one image file or an .npy array of
    (28, 28) or (n, 28, 28) grey levels 0..255.

    Raises:
        RunError: if the file cannot be read or holds something else.
    """
    try:
        if path.suffix == ".npy":
            images = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                images = np.asarray(image.convert("L"))
    except (OSError, EOFError, ValueError, UnidentifiedImageError) as error:
        raise RunError(f"{path} cannot be read as an image or .npy array: {error}") from error
    if images.ndim == 2:
        images = images[None]
    if images.shape[1:] != (SIZE, SIZE) or len(images) == 0:
        raise RunError(f"{path}: images must be {SIZE} x {SIZE}, not of shape {images.shape}")
    if images.dtype.kind not in "uif" or not bool(((images >= 0) & (images <= 255)).all()):
        raise RunError(f"{path}: grey levels must be numbers in 0..255, 0 = background")
    return np.rint(images).astype(np.uint8)


def as_text(found: dict[str, Any]) -> str:
    """One line for each image: its class, and the classes of more than one percent."""
    lines = []
    for label, row in zip(found["classes"], found["probabilities"], strict=True):
        order = sorted(range(len(row)), key=lambda k: -row[k])
        likely = [f"{k}: {100 * row[k]:.1f} %" for k in order if row[k] > 0.01]
        lines.append(f"{label}   ({', '.join(likely)})")
    return "\n".join(lines)
