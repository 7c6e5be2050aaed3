"""`python -m bench speed`: all measurements of `bench.speed` and `bench.speed_peers` in a JSON
file, Markdown tables and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from bench import speed
from bench.errors import ConfigError
from bench.figures_method import time_and_memory
from bench.hardware import hardware
from bench.provenance import origin
from bench.source_tree import git_state
from bench.speed_peers import PACKAGES, compare_with_peers, environment
from data_prep.files import atomic_path, write_bytes, write_json
from pdo.mesh import MAX_LEVEL

COARSEST, FINEST = 3, MAX_LEVEL - 2

TITLES = {
    "forms": "Spectral against direct form, ms per sample",
    "floors": "Against the machine's floors",
    "scaling": "Time over vertices and fields, ms per sample",
    "networks": "Training steps of the networks",
    "peers": "Beside other libraries, ms per sample",
}


def measure(level: int, repeats: int, peers: Path | None) -> dict[str, Any]:
    """All numbers: settings, machine, `exponents` and a list of rows for each of TITLES.

    Raises:
        ConfigError: unless 3 <= level <= 5 (networks need 3, scaling takes levels level - 1 ..
            level + 2) and repeats >= 1.
        RunError: if a peer cannot be installed or run.
    """
    if not COARSEST <= level <= FINEST:
        raise ConfigError(f"--level must be one of {COARSEST}..{FINEST}, not {level}")
    if repeats < 1:
        raise ConfigError(f"--repeats must be at least 1, not {repeats}")
    pythons = {}
    if peers is not None:  # before anything is measured: the index may not be reached
        pythons = {peer: environment(peer, peers) for peer in PACKAGES}
    torch.manual_seed(0)
    found: dict[str, Any] = {"level": level, "repeats": repeats}
    found |= {"fields": speed.FIELDS, "batch": speed.BATCH, "network_batch": speed.NETWORK_BATCH}
    found |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    found |= {**git_state(), **hardware(torch.device("cpu"))}
    measurements = {
        "forms": lambda: speed.compare_forms(level, repeats),
        "floors": lambda: speed.compare_with_floors(level, repeats),
        "scaling": lambda: speed.measure_scaling(level, repeats),
        "networks": lambda: speed.measure_networks(level, repeats),
    }
    if pythons:
        measurements["peers"] = lambda: compare_with_peers(level, repeats, pythons)
    for name, measured in tqdm(measurements.items(), "measuring"):
        found[name] = measured()
    found["exponents"] = {
        over: {"exponent": exponent, "half_width": half_width}
        for over, (exponent, half_width) in speed.fit_exponents(found["scaling"]).items()
    }
    return found


def write_report(
    level: int, repeats: int, peers: Path | None, out: Path
) -> tuple[dict[str, Any], list[Path]]:
    """Measure and write speed.json, speed.md and speed.png into `out`."""
    found = measure(level, repeats, peers)
    paths = [out / f"speed.{kind}" for kind in ("json", "md", "png")]
    write_json(paths[0], found)
    with atomic_path(paths[1]) as path:
        path.write_text(_markdown(found))
    write_bytes(paths[2], time_and_memory(found).png)
    return found, paths


def _markdown(found: dict[str, Any]) -> str:
    settings = "--level {level} --threads {threads} --repeats {repeats}".format(**found)
    settings += " --peers DIR" if "peers" in found else ""
    text = [
        "# Speed, measured",
        f"{origin(f'python -m bench speed {settings}', found)}, {found['cores']} cores, PyTorch "
        f"{found['torch']}. A step is forward and backward; layers have {found['fields']} fields "
        f"in and out and take {found['batch']} samples, networks "
        f"{found['network_batch']}. Medians of {found['repeats']} repeats taken in turn (smallest "
        "to largest), ratios of each repeat; definitions in `bench/speed.py` and "
        "`bench/speed_peers.py`.",
    ]
    for name, title in TITLES.items():
        if name in found:
            rows = [_cells(row) for row in found[name]]
            text += [f"## {title}", pd.DataFrame(rows).to_markdown(index=False, floatfmt=".4g")]
        if name == "scaling":
            fits = (
                f"{over}: {fit['exponent']:.2f} ± {fit['half_width']:.2f}"
                for over, fit in found["exponents"].items()
            )
            text.append(f"Exponents, with 95 % intervals: {', '.join(fits)}.")
    return "\n\n".join(text) + "\n"


def _cells(row: speed.Row) -> speed.Row:
    """A row as it is printed: a median and its range in one cell."""
    cells = {key: value for key, value in row.items() if not key.endswith(speed.RANGE)}
    for key in cells:
        if key + speed.RANGE in row:
            low, high = row[key + speed.RANGE]
            cells[key] = f"{row[key]:.3g} ({low:.3g} to {high:.3g})"
    return cells
