"""What a protocol's segmentation networks get right: each class, what is taken for what, and a look
at panoramas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from scipy.spatial import cKDTree

from bench import figures
from bench.config import ProtocolConfig, RunConfig
from bench.registry import MODELS, TASKS
from bench.run_checks import finished_runs
from bench.segmentation import CLASSES, confusion, per_class
from bench.tasks_rooms import Rooms
from data_prep.files import atomic_path, write_bytes
from data_prep.grids import grid_points, pixel_directions
from data_prep.stanford import LABELS, RGBD_MEAN, RGBD_STD

PICTURE_ROWS = 96
COLOURS = ListedColormap(
    np.vstack([[0, 0, 0, 1], plt.get_cmap("tab20")(np.arange(13)), [1, 1, 1, 1]])
)
"""Of the 15 labels."""


def confusions(
    protocol: ProtocolConfig, task: str, results: Path
) -> dict[tuple[str, str], np.ndarray]:
    """By model and column: the confusion matrices (15, 15) of its runs, added up."""
    found: dict[tuple[str, str], np.ndarray] = {}
    for run, _ in finished_runs(protocol, task, results):
        with np.load(results / "runs" / run.key / "predictions.npz") as file:
            for column in TASKS[task].columns:
                pair = (file[f"{column}_predictions"], file[f"{column}_targets"])
                key = (run.model, column)
                found[key] = found.get(key, 0) + confusion(*pair)
    return found


def class_table(matrices: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """IoU of each class in percent, one row for each model and column; classes that occur nowhere
    are nan."""
    rows = [
        {"model": model, "setting": column}
        | dict(zip((LABELS[k] for k in CLASSES), 100 * per_class(matrix)[0], strict=True))
        for (model, column), matrix in matrices.items()
    ]
    return pd.DataFrame(rows)


def write_rooms(
    protocol: ProtocolConfig, task: str, results: Path, data: Path, out: Path
) -> list[Path]:
    """Write <task>_classes.csv and .md, <task>_confusion.png and <task>_panoramas.png into `out`;
    returns the paths."""
    runs = [run for run, _ in finished_runs(protocol, task, results)]
    matrices = confusions(protocol, task, results)
    table = class_table(matrices)
    names = ("classes.csv", "classes.md", "confusion.png", "panoramas.png")
    paths = [out / f"{task}_{name}" for name in names]
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(paths[3]) as path:  # first: it needs the data, and nothing is written without
        _panoramas(runs, results, data, path)
    with atomic_path(paths[0]) as path:
        table.to_csv(path, index=False, lineterminator="\n", float_format="%.3f")
    with atomic_path(paths[1]) as path:
        path.write_text(_markdown(protocol, task, table))
    upright = next(iter(TASKS[task].columns))
    shown = {
        model: matrix[np.ix_(CLASSES, CLASSES)]
        for (model, column), matrix in matrices.items()
        if column == upright
    }
    write_bytes(paths[2], figures.confusions(shown, upright, [LABELS[k] for k in CLASSES]).png)
    return paths


def _markdown(protocol: ProtocolConfig, task: str, table: pd.DataFrame) -> str:
    notice = f"**{protocol.notice}**\n\n" if protocol.notice else ""
    return (
        f"# IoU of each class in percent, {task}, protocol {protocol.protocol}\n\n{notice}"
        f"Made by `python -m bench rooms --task {task} --protocol {protocol.protocol}`, of the "
        "points of all test panoramas of the runs there are. Points that show no class count as "
        "false positives.\n\n"
        f"{table.to_markdown(index=False, floatfmt='.1f')}\n"
    )


def _panoramas(runs: list[RunConfig], results: Path, data: Path, path: Path) -> None:
    """Input, truth and prediction of each model for the first test panorama of its first run,
    upright and turned."""
    first = {run.model: run for run in reversed(runs)}
    first = {model: first[model] for model in dict.fromkeys(run.model for run in runs)}
    columns = list(TASKS[runs[0].task].columns)
    figure, axes = plt.subplots(
        len(first),
        3 * len(columns),
        figsize=(3.2 * 3 * len(columns), 1.75 * len(first) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for row, (model, run) in zip(axes, first.items(), strict=True):
        task = Rooms(run, data)
        entry = MODELS[run.task, run.network]
        points = grid_points(entry.grid_name(run.data.level))
        nearest = cKDTree(points).query(pixel_directions(PICTURE_ROWS))[1]
        with np.load(results / "runs" / run.key / "predictions.npz") as file:
            predicted = {column: file[f"{column}_predictions"][0] for column in columns}
        for k, column in enumerate(columns):
            x, truth = task.batch(column, np.array([0]))
            colours = x[0, :3].numpy().T * RGBD_STD[:3] + RGBD_MEAN[:3]
            pictures = (np.clip(colours, 0, 1), truth[0].numpy(), predicted[column])
            for j, (values, what) in enumerate(
                zip(pictures, ("input", "truth", "prediction"), strict=True)
            ):
                axis = row[3 * k + j]
                image = values[nearest].reshape(PICTURE_ROWS, 2 * PICTURE_ROWS, -1).squeeze()
                axis.imshow(image, cmap=COLOURS, vmin=0, vmax=14, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                if axis is axes[0, 3 * k + j]:
                    axis.set_title(f"{what}, {column}")
        row[0].set_ylabel(model)
    patches = [Patch(color=COLOURS(k), label=LABELS[k]) for k in CLASSES]
    figure.legend(handles=patches, loc="outside lower center", ncols=13, fontsize="small")
    figure.savefig(path, dpi=70, format="png")
    plt.close(figure)
