"""Which edition of Spherical MNIST a file holds, from its signals alone: `bench edition FILE`.

Digits of every array are tested one by one (`bench.edition_votes`). The verdict on an array needs
three quarters of the examined digits and more than coins would give (chance below 0.001). The
confidence is the share of the examined digits, of all arrays of the file, that vote for the
verdict.
"""

from __future__ import annotations

import gzip
import json
import math
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.edition_votes import HalfTurn, half_turn_test, spread_test, upright
from bench.errors import RunError
from data_prep.fetch import SourceError
from data_prep.mnist import SIZE, unpickle_arrays

GRIDS: dict[int, tuple[str, ...]] = {
    900: ("latlon15-dh", "latlon15"),
    3600: ("latlon30-dh", "latlon30"),
    14400: ("latlon60-dh", "latlon60"),
    642: ("icosphere3", "icosphere3-equator"),
    2562: ("icosphere4", "icosphere4-equator"),
    10242: ("icosphere5", "icosphere5-equator"),
}
"""Grids by their number of points."""
KNOWN = (
    "lat-lon 30 x 30, 60 x 60 and 120 x 120, icospheres of 642, 2562 and 10242 vertices in the "
    "order of pdo.mesh.Icosphere"
)
EXAMINED = 200
"""Digits of an array, spread evenly over it."""
SHARE, CHANCE = 0.75, 0.001


def edition_of(file: Path) -> dict[str, Any]:
    """Return the verdict on a file or a prepared folder as plain values for JSON.

    Keys: `file`; `verdict`, one of "published", "corrected", "cannot tell"; `confidence`, the share
    of the examined digits that vote for it, or None; `reason`, why none can be told, or None;
    `arrays`, a list with what was found of each; `card_edition`, what the card of a prepared folder
    says, which plays no part in the verdict, or None.

    Raises:
        RunError: there is no such file, it cannot be read, or it holds no signals on a known grid.
    """
    found, others = [], []
    for name, array in _arrays(file):
        signals = _as_signals(array)
        if signals is None:
            others.append(f"{name} {array.shape}")
        else:
            found.append(examine(name, signals))
    if not found:
        there = f"its arrays are {', '.join(others)}" if others else "it holds no arrays"
        raise RunError(f"{file} holds no signals on a known grid: {there}; known are {KNOWN}")
    verdicts = sorted({array["verdict"] for array in found} - {"cannot tell"})
    digits = sum(array["digits"] for array in found)
    verdict, confidence, reason = "cannot tell", None, None
    if len(verdicts) == 1:
        (verdict,) = verdicts
        confidence = sum(array[verdict] for array in found) / digits
    elif verdicts:
        reason = "its arrays are of different editions"
    else:
        reason = "; ".join(dict.fromkeys(array["reason"] for array in found))
    return {
        "file": str(file),
        "verdict": verdict,
        "confidence": confidence,
        "reason": reason,
        "arrays": found,
        "card_edition": _card_edition(file),
    }


def as_text(found: dict[str, Any]) -> str:
    """Return the verdict as lines for the terminal."""
    votes = {
        edition: sum(array[edition] for array in found["arrays"])
        for edition in ("published", "corrected")
    }
    digits = sum(array["digits"] for array in found["arrays"])
    verdict = found["verdict"]
    if verdict == "cannot tell":
        lines = [f"{found['file']}: cannot tell the edition: {found['reason']}"]
    else:
        lines = [
            f"{found['file']}: {verdict} edition, confidence {100 * found['confidence']:.1f} % "
            f"({votes[verdict]} of {digits} examined digits)"
        ]
    for array in found["arrays"]:
        lines.append(
            f"  {array['name']}: {array['verdict']}; {array['digits']} digits on "
            f"{' or '.join(array['grids'])}, {array['test']} test: {array['published']} published, "
            f"{array['corrected']} corrected"
        )
        if "residuals" in array:
            parts = [f"{name} {100 * value:.2f} %" for name, value in array["residuals"].items()]
            lines.append(f"    left unexplained (median): {'; '.join(parts)}")
    card = found["card_edition"]
    if card is not None and verdict not in ("cannot tell", card):
        lines.append(f"  THE CARD DISAGREES: it says {card}; prepare these data again")
    return "\n".join(lines)


def examine(name: str, signals: np.ndarray) -> dict[str, Any]:
    """Return the verdict on one array (n, P) and what was found, an entry of `arrays`."""
    grids = GRIDS[signals.shape[1]]
    rows = np.unique(np.linspace(0, len(signals) - 1, EXAMINED).astype(int))
    chosen = signals[rows]
    digits = _digits(chosen)
    found: dict[str, Any] = {"name": name, "signals": len(signals), "digits": len(digits)}
    if len(digits) == 0:
        reason = f"{name} holds no digits on an empty background"
        found |= {"grids": grids, "test": "no", "published": 0, "corrected": 0}
        return found | {"verdict": "cannot tell", "reason": reason}
    half_turns = _half_turn_tests(digits, grids)
    if half_turns:
        grid, test = max(half_turns.items(), key=lambda item: item[1].explained.mean())
        votes = test.votes
        found |= {"grids": (grid,), "test": "half-turn"}
        medians = {key: float(np.median(value)) for key, value in test.residuals.items()}
        found["residuals"] = medians
    else:
        votes = spread_test(digits, grids[0])
        found |= {"grids": grids, "test": "spread"}
    found |= {"published": int((votes == 1).sum()), "corrected": int((votes == -1).sum())}
    return found | _verdict(name, found, len(chosen))


def _half_turn_tests(digits: np.ndarray, grids: tuple[str, ...]) -> dict[str, HalfTurn]:
    """Outcome for each grid on which the digits are upright and most are explained."""
    if digits.shape[1] <= 2 * SIZE**2:  # too few points to tell an image from a wrong one
        return {}
    there = [grid for grid in grids if upright(digits, grid).mean() > 0.9]
    tests = {grid: half_turn_test(digits, grid) for grid in there}
    return {grid: test for grid, test in tests.items() if test.explained.mean() > 0.5}


def _verdict(name: str, votes: dict[str, Any], examined: int) -> dict[str, Any]:
    """Return verdict and, where it is "cannot tell", the reason."""
    digits = votes["digits"]
    edition = "published" if votes["published"] > votes["corrected"] else "corrected"
    most = votes[edition]
    tail = sum(math.comb(digits, k) for k in range(most, digits + 1)) / 2**digits
    if digits < examined / 2:
        reason = f"{name} holds few digits on an empty background ({digits} of {examined})"
    elif most < SHARE * digits:
        reason = f"at most {most} of {digits} digits of {name} vote for one edition"
    elif tail >= CHANCE:
        reason = f"{name} has too few digits ({digits})"
    else:
        return {"verdict": edition, "reason": None}
    return {"verdict": "cannot tell", "reason": reason}


def _digits(signals: np.ndarray) -> np.ndarray:
    """Return those signals (n, P) that have ink on an empty background, brought to 0..1."""
    values = signals.astype(np.float64)
    values = values[np.isfinite(values).all(axis=1)]
    values = values - np.median(values, axis=1, keepdims=True)
    most = values.max(axis=1, keepdims=True, initial=0)
    values = values[most[:, 0] > 0] / most[most[:, 0] > 0]
    return values[(np.abs(values) < 0.004).mean(axis=1) > 0.5]  # one grey level of 255


def _as_signals(array: np.ndarray) -> np.ndarray | None:
    """Return numbers (n, ..., points or rows and columns) as (n, P) if P is that of a known grid;
    axes of length 1 do not count."""
    if array.dtype.kind not in "uif" or array.size == 0:
        return None
    shape = [length for length in array.shape[1:] if length > 1]
    square = len(shape) == 2 and shape[0] == shape[1]
    if (len(shape) == 1 or square) and math.prod(shape) in GRIDS:
        return array.reshape(len(array), -1)
    return None


def _arrays(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a prepared folder, `.npy`, `.npz`, or a pickle, gzipped or not."""
    if file.is_dir():
        names = [f"{part}_{kind}.npy" for part in ("train", "test") for kind in "NR"]
        for name in names:
            if (file / name).exists():
                yield from _arrays(file / name)
        return
    try:
        with open(file, "rb") as stream:
            start = stream.read(6)
        if start == b"\x93NUMPY":
            yield file.stem, np.load(file, mmap_mode="r", allow_pickle=False)
        elif start.startswith(b"PK"):
            with np.load(file, allow_pickle=False) as members:
                for name in members.files:
                    yield name, members[name]
        elif start.startswith(b"\x1f\x8b"):
            with gzip.open(file) as stream:
                yield from _leaves(unpickle_arrays(stream))
        elif start.startswith(pickle.PROTO):
            with open(file, "rb") as stream:
                yield from _leaves(unpickle_arrays(stream))
        else:
            raise RunError(
                f"{file} is no .npy, .npz, pickle or gzipped pickle: convert the signals to one"
            )
    except FileNotFoundError as error:
        raise RunError(f"{file} does not exist") from error
    except (SourceError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{file} cannot be read: {' '.join(str(error).split())}") from error


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of nested dictionaries, lists and tuples."""
    if isinstance(tree, np.ndarray):
        yield name or "array", tree
    elif isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _card_edition(file: Path) -> str | None:
    """What the card of a prepared folder says, if there is one that can be read."""
    try:
        card = json.loads((file / "card.json").read_text())
    except (OSError, ValueError):
        return None
    return card.get("edition") if isinstance(card, dict) else None
