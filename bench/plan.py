"""What a protocol asks for before it is started: runs, hours, disk and downloads.

Hours are measured seconds per training sample times the samples of all epochs. The measurements are
those in results/recorded: the histories of finished runs (median over their epochs) and, where a
network has none at its resolution, the training steps of `python -m bench speed`. Nothing else is
assumed: what was not measured is None. Validation, test and preparation come on top.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import yaml
from tabulate import tabulate

from bench.config import ProtocolConfig, RunConfig, planned_runs
from bench.data import (
    MNIST_TEST,
    MNIST_TRAIN,
    QM7_MOLECULES,
    DigitData,
    MoleculeData,
    RoomData,
    StanfordData,
    SyntheticRoomsData,
)
from bench.errors import ConfigError
from bench.provenance import stretches
from bench.registry import MODELS, columns_of
from data_prep.grids import grid_points
from data_prep.stanford import AREAS, FOLDS, PANORAMAS
from data_prep.synthetic_rooms import panoramas_by_area

QM7_ATOMS, MOST_ATOMS = 110_650, 23
DOWNLOADS_MB = {"mnist": 11.594722, "qm7": None, "stanford": None}
"""The four published .gz files; the sizes of qm7.mat and of 2D-3D-S were never measured."""
RAW_MB = {"mnist": 784 * (MNIST_TRAIN + MNIST_TEST) / 1e6, "qm7": 1.3, "stanford": None}


class Speed(NamedTuple):
    """Wall-clock seconds of training a sample, the threads they took, and where."""

    seconds: float
    threads: int
    measured: str


def plan(protocol: ProtocolConfig, recorded: Path) -> dict[str, Any]:
    """Runs, CPU and GPU hours by task and model, and megabytes on disk and of downloads; None where
    nothing was measured. Raises what reading `recorded` raises.

    Raises:
        ConfigError: if the data of a task are none of those whose sizes are known here.
    """
    speeds, sizes = measured_speeds(recorded), measured_megabytes(recorded)
    runs = planned_runs(protocol)
    for run in runs:
        if not isinstance(run.data, DigitData | MoleculeData | RoomData):
            raise ConfigError(f"bench/plan.py does not know the sizes of the data of {run.task}")
    by_model: dict[tuple[str, str], list[RunConfig]] = defaultdict(list)
    for run in runs:
        by_model[run.task, run.model].append(run)
    arrays = {}
    for group in by_model.values():
        folder, megabytes = _arrays(group[0])
        arrays[folder] = megabytes
    sources = sorted({_source(group[0]) for group in by_model.values()} - {"synthetic"})
    return {
        "protocol": protocol.protocol,
        "runs": len(runs),
        "models": [_row(group, speeds, sizes) for group in by_model.values()],
        "data_mb": arrays | {f"raw/{name}": RAW_MB[name] for name in sources},
        "downloads_mb": {name: DOWNLOADS_MB[name] for name in sources},
    }


def _source(run: RunConfig) -> str:
    """What is downloaded: mnist, qm7, stanford, or synthetic for nothing."""
    if isinstance(run.data, StanfordData):
        return "stanford"
    return "synthetic" if isinstance(run.data, SyntheticRoomsData) else run.data.source


def _row(
    runs: list[RunConfig], speeds: dict[tuple, Speed], sizes: dict[tuple, float]
) -> dict[str, Any]:
    run = runs[0]
    samples = sum(_training_samples(r) * r.train.epochs for r in runs)
    cpu, gpu = (speeds.get((*_key(run), run.data.level, on_gpu)) for on_gpu in (False, True))
    files = sizes.get(_key(run))
    return {
        "task": run.task,
        "model": run.model,
        "runs": len(runs),
        "epochs": run.train.epochs,
        "training_samples": _training_samples(run),
        "cpu_ms_a_sample": cpu and 1e3 * cpu.seconds * cpu.threads,
        "cpu_hours": cpu and samples * cpu.seconds * cpu.threads / 3600,
        "cpu_measured": cpu and cpu.measured,
        "gpu_hours": gpu and samples * gpu.seconds / 3600,
        "gpu_measured": gpu and gpu.measured,
        "files_mb": files and sum(files + _predictions_mb(r) for r in runs),
    }


def measured_speeds(recorded: Path) -> dict[tuple, Speed]:
    """Seconds a sample by (task, network, options, level, on a GPU?). Where several machines
    measured, the one with the most epochs. Runs resumed elsewhere or with other threads are left
    out: which epochs took which is not recorded."""
    seconds: dict[tuple, dict[tuple, list[float]]] = defaultdict(lambda: defaultdict(list))
    for folder, config, facts in _recorded_runs(recorded):
        if len({(part["gpu"] or part["cpu"], part["threads"]) for part in stretches(facts)}) > 1:
            continue
        with (folder / "history.csv").open() as file:
            epochs = [float(row["seconds"]) for row in csv.DictReader(file)]
        machine = (facts["gpu"] or f"{facts['cpu']}, {facts['cores']} cores", facts["threads"])
        samples = facts["data"]["counts"]["train"]
        key = (*_recorded_key(config), config["data"]["level"], facts["gpu"] is not None)
        seconds[key][machine] += [s / samples for s in epochs]
    speeds = {}
    for key, machines in seconds.items():
        (name, threads), values = max(machines.items(), key=lambda item: len(item[1]))
        where = f"{len(values)} epochs, {name}, {threads} threads"
        speeds[key] = Speed(median(values), threads, where)
    steps = recorded / "speed" / "speed.json"
    found = json.loads(steps.read_text()) if steps.exists() else {"networks": []}
    for row in found["networks"]:
        key = ("spherical_mnist", row["network"], "{}", found["level"], found["gpu"] is not None)
        name = found["gpu"] or f"{found['cpu']}, {found['cores']} cores"
        where = f"steps alone, {name}, {found['threads']} threads"
        speeds.setdefault(key, Speed(row["ms a digit"] / 1e3, found["threads"], where))
    return speeds


def measured_megabytes(recorded: Path) -> dict[tuple, float]:
    """Size of a finished run's folder without its predictions, by (task, network, options). Where
    weights were not recorded: 4 bytes a parameter."""
    sizes = defaultdict(list)
    for folder, config, _ in _recorded_runs(recorded):
        files = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != "predictions.npz"}
        parameters = json.loads((folder / "metrics.json").read_text())["parameters"]
        files.setdefault("weights.safetensors", 4 * parameters)
        sizes[_recorded_key(config)].append(sum(files.values()) / 1e6)
    return {key: mean(values) for key, values in sizes.items()}


def _recorded_runs(recorded: Path) -> Iterable[tuple[Path, dict[str, Any], dict[str, Any]]]:
    for history in sorted(recorded.glob("*/runs/*/*/*/*/history.csv")):
        folder = history.parent
        config = yaml.safe_load((folder / "config.yaml").read_text())
        yield folder, config, json.loads((folder / "provenance.json").read_text())


def _recorded_key(config: dict[str, Any]) -> tuple[str, str, str]:
    options = json.dumps(config.get("options", {}), sort_keys=True)
    return config["task"], config.get("network", config["model"]), options


def _key(run: RunConfig) -> tuple[str, str, str]:
    return run.task, run.network, json.dumps(run.options, sort_keys=True)


def _samples(run: RunConfig) -> tuple[int, int]:
    """Samples for training, validation included, and for one test."""
    data = run.data
    if isinstance(data, DigitData):
        train, test = MNIST_TRAIN, MNIST_TEST
    elif isinstance(data, MoleculeData):
        molecules = QM7_MOLECULES if data.source == "qm7" else data.n_synthetic
        train, test = molecules * 4 // 5, molecules // 5
    else:
        by_area = dict(zip(AREAS, _panoramas(run), strict=True))
        test = sum(by_area[area] for area in FOLDS[run.setting])
        train = sum(by_area.values()) - test
    return min(data.n_train or train, train), min(data.n_test or test, test)


def _panoramas(run: RunConfig) -> list[int]:
    """Of each area."""
    if isinstance(run.data, SyntheticRoomsData):
        return panoramas_by_area(run.data.n_panoramas)
    return list(PANORAMAS.values())


def _training_samples(run: RunConfig) -> int:
    """A tenth is held out for validation."""
    return _samples(run)[0] * 9 // 10


def _predictions_mb(run: RunConfig) -> float:
    """Predictions and targets of all tests, before compression: bytes (of panoramas one for each
    point), or float32 energies."""
    if isinstance(run.data, DigitData):
        width = 1
    elif isinstance(run.data, MoleculeData):
        width = 4
    else:
        width = len(grid_points(MODELS[run.task, run.network].grid_name(run.data.level)))
    return len(columns_of(run.task, run.setting)) * _samples(run)[1] * 2 * width / 1e6


def _arrays(run: RunConfig) -> tuple[str, float]:
    """Folder of a run's prepared signals and their size: `data_prep` says the formats. Of synthetic
    molecules the number of atoms is not known before: at most 23 each."""
    data, grid = run.data, MODELS[run.task, run.network].grid_name(run.data.level)
    folder = data.folder(grid)
    if grid == "none":
        return folder, 0.0
    points = len(grid_points(grid))
    if isinstance(data, DigitData):
        synthetic = data.source == "synthetic"
        digits = sum(_samples(run)) if synthetic else MNIST_TRAIN + MNIST_TEST
        sets = 3 if grid.startswith("latlon") else 2  # N, R and there Omni, one byte a point
        return folder, digits * sets * points / 1e6
    if not isinstance(data, MoleculeData):
        each = 4 * 2 + 1  # float16 red, green, blue, depth, and a label; upright and turned
        return folder, 2 * sum(_panoramas(run)) * points * each / 1e6
    atoms = QM7_ATOMS if data.source == "qm7" else MOST_ATOMS * data.n_synthetic
    return folder, atoms * 5 * points * (2 if data.radius == "half" else 4) / 1e6


def as_text(found: dict[str, Any]) -> str:
    """The plan as a table, totals, disk and downloads."""
    rows = [
        {
            "task": row["task"],
            "model": row["model"],
            "runs": row["runs"],
            "epochs": row["epochs"],
            "samples": row["training_samples"],
            "CPU ms a sample": _number(row["cpu_ms_a_sample"], 2),
            "CPU hours": _number(row["cpu_hours"], 1),
            "GPU hours": _number(row["gpu_hours"], 1),
            "files MB": _number(row["files_mb"], 1),
            "CPU measured": row["cpu_measured"] or "",
        }
        for row in found["models"]
    ]
    models, disk = found["models"], found["data_mb"]
    return "\n".join(
        [
            f"protocol {found['protocol']}: {found['runs']} runs",
            tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True),
            "",
            f"CPU hours: {_total(r['cpu_hours'] for r in models)} (training alone, times threads)",
            f"GPU hours: {_total(r['gpu_hours'] for r in models)}",
            f"files of runs, MB: {_total(r['files_mb'] for r in models)}",
            f"data, MB: {_total(disk.values())}",
            *(f"  data/{folder}: {_number(size, 1)}" for folder, size in disk.items()),
            *(
                f"download of {name}, MB: {_number(size, 1)}"
                for name, size in found["downloads_mb"].items()
            ),
        ]
    )


def _number(value: float | None, digits: int) -> str:
    return "not measured" if value is None else f"{value:,.{digits}f}"


def _total(values: Iterable[float | None]) -> str:
    """The sum of what is known; says how many are not."""
    values = list(values)
    known = [v for v in values if v is not None]
    if not known:
        return _number(None, 1)
    missing = len(values) - len(known)
    return _number(sum(known), 1) + (f", {missing} models not measured" if missing else "")
