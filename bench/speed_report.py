"""`python -m bench speed`: all measurements of `bench.speed` and `bench.speed_peers` in a JSON
file, Markdown tables and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch
from matplotlib import pyplot as plt
from tqdm import tqdm

from bench import speed
from bench.errors import ConfigError
from bench.provenance import git_state, hardware, origin
from bench.speed_peers import PACKAGES, compare_with_peers, environment
from data_prep.files import atomic_path, write_json
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
    with atomic_path(paths[2]) as path:
        _figure(found, path)
    return found, paths


def _markdown(found: dict[str, Any]) -> str:
    settings = "--level {level} --threads {threads} --repeats {repeats}".format(**found)
    settings += " --peers DIR" if "peers" in found else ""
    text = [
        "# Speed, measured",
        f"{origin(f'python -m bench speed {settings}', found)}, {found['cores']} cores, PyTorch "
        f"{found['torch']}. A step is forward and backward; layers have {found['fields']} fields "
        f"in and out and take {found['batch']} samples, networks "
        f"{found['network_batch']}. Medians of {found['repeats']} repeats taken in turn; "
        "definitions in `bench/speed.py` and `bench/speed_peers.py`.",
    ]
    for name, title in TITLES.items():
        if name in found:
            table = pd.DataFrame(found[name]).to_markdown(index=False, floatfmt=".4g")
            text += [f"## {title}", table]
        if name == "scaling":
            fits = (
                f"{over}: {fit['exponent']:.2f} ± {fit['half_width']:.2f}"
                for over, fit in found["exponents"].items()
            )
            text.append(f"Exponents, with 95 % intervals: {', '.join(fits)}.")
    return "\n\n".join(text) + "\n"


def _figure(found: dict[str, Any], path: Path) -> None:
    matplotlib.use("Agg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    scaling, forms = pd.DataFrame(found["scaling"]), pd.DataFrame(found["forms"])
    scaling = scaling[scaling["over"] == "vertices"]
    vertices, ms = scaling["vertices"], scaling["spectral ms"]
    left.loglog(vertices, ms, "o-", label="spectral")
    left.loglog(vertices, ms.iloc[0] * vertices / vertices.iloc[0], "k:", label="linear")
    left.set_xlabel("vertices")
    left.set_title(f"N = {scaling['N'].iloc[0]}")
    for form in ("spectral", "direct"):
        right.semilogy(forms["N"], forms[f"{form} ms"], "o-", label=form)
    right.set_xlabel("N")
    right.set_xticks(forms["N"])
    right.set_title(f"level {found['level']}")
    for axes in (left, right):
        axes.set_ylabel("step, ms per sample")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=80, format="png")
    plt.close(figure)
