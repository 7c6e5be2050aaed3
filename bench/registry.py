"""What there is to run: models and tasks by name. Adding a model is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from baselines.coulomb_mlp import CoulombMLP
from baselines.ffs2cnn import FFS2CNN
from baselines.ffs2cnn_molecules import MoleculeFFS2CNN
from baselines.hexrunet import HexRUNetC
from baselines.hexrunet_unet import HexRUNet
from baselines.icosahedral_cnn import IcosahedralCNN
from baselines.icosahedral_unet import IcosahedralUNet
from baselines.pdo_molecules import MoleculePDOeS2CNN
from baselines.pdo_unet import PDOUNet
from baselines.s2cnn import S2CNN
from baselines.s2cnn_molecules import MoleculeS2CNN
from baselines.spherenet import SphereNet
from baselines.ugscnn import UGSCNN
from baselines.ugscnn_unet import UGSCNNUNet
from baselines.unet import UNet
from bench.errors import unknown
from data_prep.stanford import LABELS
from pdo.networks import pdo_es2cnn_large, pdo_es2cnn_small


@dataclass(frozen=True)
class TaskEntry:
    """A table of the paper.

    table: its number, and the name of its files: table<number>.csv.
    settings: what the training set is; each has its own runs. All models have these.
    columns: the table's settings (what is trained on/tested on, or one name for both), and of each
        the training settings whose runs it is the mean of.
    metrics: what the table shows; validation selects by the first.
    rotated: two columns of the same runs, tested on upright and on rotated samples.
    labels: names of the classes, where they are not their numbers.
    """

    table: str
    settings: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    metrics: tuple[str, ...]
    higher_is_better: bool = True
    rotated: tuple[str, str] | None = None
    labels: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """What validation selects by."""
        return self.metrics[0]


@dataclass(frozen=True)
class ModelEntry:
    """A network of a table.

    build: `build(level=..., **options)` gives the module; its forward takes (batch, channels,
        points), or Molecules, and gives what the task's loss expects.
    grid: name of the grid its signals are sampled on, with `{level}` or `{bandwidth}`; of networks
        that take no signals, "none".
    recipe: its published (or our) way of training, keys of TrainConfig.
    own_settings: training settings that it has besides those of the task.
    memory_gb: what a run of it may take, above the most that any recorded run took.
    """

    build: Callable[..., nn.Module]
    grid: str = "icosphere{level}"
    recipe: dict[str, Any] = field(default_factory=dict)
    own_settings: tuple[str, ...] = ()
    memory_gb: float = 2.0

    def grid_name(self, level: int) -> str:
        """Grid at a resolution: a lat-lon grid of bandwidth 30 goes with level 4, the paper's."""
        return self.grid.format(level=level, bandwidth=round(30 * 2.0 ** (level - 4)))


FOLDS = tuple(f"fold{k}" for k in range(5))
AREA_FOLDS = ("fold1", "fold2", "fold3")


def _segmentation(table: str) -> TaskEntry:
    """Upright training, tested on upright and on rotated panoramas."""
    return TaskEntry(
        table=table,
        settings=AREA_FOLDS,
        columns={"3-fold": AREA_FOLDS, "3-fold rotated": AREA_FOLDS},
        metrics=("mean_iou_percent", "mean_accuracy_percent"),
        rotated=("3-fold", "3-fold rotated"),
        labels=LABELS,
    )


TASKS: dict[str, TaskEntry] = {
    "spherical_mnist": TaskEntry(
        table="1",
        settings=("N", "R"),
        columns={"N/N": ("N",), "N/R": ("N",), "R/R": ("R",), "Omni": ("Omni",)},
        metrics=("accuracy_percent",),
        rotated=("N/N", "N/R"),
    ),
    "qm7": TaskEntry(
        table="3",
        settings=FOLDS,
        columns={"5-fold": FOLDS},
        metrics=("rmse_kcal_per_mol",),
        higher_is_better=False,
    ),
    "stanford_2d3ds": _segmentation("2"),
    "synthetic_rooms": _segmentation("2s"),
}

EQUATOR = "icosphere{level}-equator"
"""Where every network on the icosphere reads its digits: round the middle of an edge. A half turn
about it maps the mesh to itself. Round a pole, where none does, the error of discretisation tells a
6 from a 9 and is learnt, north has no direction, and charts have no pixel (docs/accuracy.md)."""

OURS = {
    "epochs": 20,
    "batch_size": 32,
    "learning_rate": 5e-3,
    "weight_decay": 1e-3,
    "label_smoothing": 0.1,
    "amp": True,
}

MODELS: dict[tuple[str, str], ModelEntry] = {
    ("spherical_mnist", "S2CNN"): ModelEntry(
        S2CNN,
        grid="latlon{bandwidth}",
        recipe={
            "epochs": 20,
            "batch_size": 32,
            "optimizer": "adam",
            "learning_rate": 5e-3,
            "schedule": "constant",
        },
        memory_gb=4.5,
    ),
    ("spherical_mnist", "UGSCNN"): ModelEntry(
        UGSCNN,
        grid=EQUATOR,
        recipe={
            "epochs": 100,
            "batch_size": 64,
            "optimizer": "adam",
            "learning_rate": 1e-2,
            "schedule": "step",
            "step_epochs": 10,
            "step_factor": 0.5,
        },
        memory_gb=2.5,
    ),
    ("spherical_mnist", "HexRUNet-C"): ModelEntry(
        HexRUNetC,
        grid=EQUATOR,
        recipe={
            "epochs": 30,
            "batch_size": 15,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "schedule": "constant",
        },
        memory_gb=3.5,
    ),
    ("spherical_mnist", "PDO-eS2CNN-small"): ModelEntry(
        pdo_es2cnn_small, grid=EQUATOR, recipe=OURS
    ),
    ("spherical_mnist", "SphereNet"): ModelEntry(
        SphereNet,
        grid="latlon{bandwidth}",
        recipe={
            "epochs": 74,
            "batch_size": 100,
            "optimizer": "adam",
            "learning_rate": 1e-4,
            "schedule": "constant",
            "amp": True,
        },
        own_settings=("Omni",),
        memory_gb=4.0,
    ),
    ("spherical_mnist", "FFS2CNN"): ModelEntry(
        FFS2CNN,
        grid="latlon{bandwidth}",
        recipe={
            "epochs": 30,
            "batch_size": 100,
            "optimizer": "adam",
            "learning_rate": 5e-4,
            "weight_decay": 1e-5,
            "schedule": "constant",
        },
    ),
    ("spherical_mnist", "IcosahedralCNN"): ModelEntry(
        IcosahedralCNN,
        grid=EQUATOR,
        recipe={
            "epochs": 20,
            "batch_size": 32,
            "optimizer": "adam",
            "learning_rate": 5e-3,
            "schedule": "one_cycle",
            "amp": True,
        },
    ),
    ("spherical_mnist", "PDO-eS2CNN-large"): ModelEntry(
        pdo_es2cnn_large, grid=EQUATOR, recipe=OURS
    ),
    ("qm7", "MLP-random-CM"): ModelEntry(
        CoulombMLP,
        grid="none",
        recipe={
            "epochs": 600,
            "batch_size": 25,
            "optimizer": "sgd",
            "learning_rate": 3e-2,
            "schedule": "one_cycle",
        },
        memory_gb=3.0,
    ),
    ("qm7", "S2CNN"): ModelEntry(
        MoleculeS2CNN,
        grid="latlon10",
        recipe={
            "epochs": 30,
            "batch_size": 8,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "schedule": "step",
            "step_epochs": 10,
            "step_factor": 0.1,
        },
        memory_gb=7.0,
    ),
    ("qm7", "FFS2CNN"): ModelEntry(
        MoleculeFFS2CNN,
        grid="latlon10",
        recipe={
            "epochs": 30,
            "batch_size": 32,
            "optimizer": "adam",
            "learning_rate": 5e-4,
            "weight_decay": 1e-5,
            "schedule": "constant",
        },
        memory_gb=4.0,
    ),
    ("qm7", "PDO-eS2CNN"): ModelEntry(
        MoleculePDOeS2CNN,
        recipe={
            "epochs": 30,
            "batch_size": 32,
            "learning_rate": 3e-3,
            "weight_decay": 1e-4,
            "schedule": "one_cycle",
        },
    ),
}


SEGMENTERS: dict[str, ModelEntry] = {
    "UNet": ModelEntry(
        UNet,
        grid="planar{level}",
        recipe={
            "epochs": 200,
            "batch_size": 16,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "schedule": "step",
            "step_epochs": 20,
            "step_factor": 0.9,
        },
    ),
    "UGSCNN": ModelEntry(
        UGSCNNUNet,
        recipe={
            "epochs": 200,
            "batch_size": 16,
            "optimizer": "adam",
            "learning_rate": 1e-2,
            "schedule": "step",
            "step_epochs": 20,
            "step_factor": 0.9,
        },
    ),
    "HexRUNet": ModelEntry(
        HexRUNet,
        recipe={
            "epochs": 200,
            "batch_size": 16,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "schedule": "step",
            "step_epochs": 20,
            "step_factor": 0.9,
        },
    ),
    "IcosahedralCNN": ModelEntry(
        IcosahedralUNet,
        recipe={
            "epochs": 200,
            "batch_size": 16,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "schedule": "step",
            "step_epochs": 20,
            "step_factor": 0.9,
        },
    ),
    "PDO-eS2CNN": ModelEntry(
        PDOUNet,
        recipe={
            "epochs": 100,
            "batch_size": 8,
            "learning_rate": 5e-3,
            "weight_decay": 1e-3,
            "amp": True,
        },
    ),
}
"""Networks of omnidirectional segmentation, the same for 2D-3D-S and for SyntheticRooms."""

# No run on 2D-3D-S has been measured; its meshes are finer and its batches larger.
MODELS |= {("stanford_2d3ds", n): replace(entry, memory_gb=8.0) for n, entry in SEGMENTERS.items()}
MODELS |= {("synthetic_rooms", name): entry for name, entry in SEGMENTERS.items()}


def models_of(task: str) -> list[str]:
    """Names of the models registered for a task, in the table's order.

    Raises:
        ConfigError: if there is no such task.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    return [model for t, model in MODELS if t == task]


def settings_of(task: str, model: str) -> tuple[str, ...]:
    """Training settings of a registered model: the task's, then its own."""
    return TASKS[task].settings + MODELS[task, model].own_settings


def columns_of(task: str, setting: str) -> tuple[str, ...]:
    """Columns of the table that runs of a training setting feed."""
    return tuple(c for c, settings in TASKS[task].columns.items() if setting in settings)
