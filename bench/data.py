"""The `data` section of each task in a protocol: which prepared data a run sees.

Each class gives the name of the folder that holds its prepared data (`folder`), and all that the
card in that folder must say (`card`). A run opens no data whose card says otherwise.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_prep import mnist, qm7
from data_prep.synthetic_molecules import synthetic_molecules
from pdo.mesh import MAX_LEVEL

MNIST_TRAIN, MNIST_TEST = 60_000, 10_000
QM7_MOLECULES = 7_165
"""A fifth of them is tested on."""
QUIRKS = ("missing_as_clutter", "black_as_unknown", "missing_depth_far")
"""Published ways of preparing 2D-3D-S that a protocol may choose."""


class Strict(BaseModel):
    """No unknown keys, no changes, and defaults are checked as well."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _at_most(data: Strict, **there: int) -> None:
    """Raises ValueError where more samples are asked for than there are: a run of all of them would
    go by another number."""
    for name, number in there.items():
        if (getattr(data, name) or 0) > number:
            raise ValueError(f"{name}: there are {number:,} at most")


class DigitData(Strict):
    """Which digits on the sphere a run sees."""

    source: Literal["mnist", "synthetic"] = Field(
        "mnist", description="real MNIST, or generated stroke digits that need no download"
    )
    level: int = Field(
        4, ge=3, le=MAX_LEVEL, description="icosphere level; lat-lon grids follow it"
    )
    n_train: int | None = Field(
        None, ge=50, description="training digits, validation included; null: all of them"
    )
    n_test: int | None = Field(None, ge=10, description="test digits; null: all of them")
    rotation_chunk: int = Field(
        1, ge=1, description="images that share one random rotation (the published sets: 500)"
    )
    edition: Literal["published", "corrected"] = Field(
        "corrected",
        description="sampling of the digits: as the sets published before November 2024, whose "
        "faulty weights reveal which way up a digit was, or with correct bilinear weights",
    )
    seed: int = Field(0, ge=0, description="of rotations, validation split and subsets")

    @model_validator(mode="after")
    def _as_many_as_there_are(self) -> DigitData:
        if self.source == "synthetic" and None in (self.n_train, self.n_test):
            raise ValueError("source synthetic needs n_train and n_test: digits to be generated")
        if self.source == "mnist":
            _at_most(self, n_train=MNIST_TRAIN, n_test=MNIST_TEST)
        return self

    def folder(self, grid: str) -> str:
        """Return the folder of the prepared signals, below the data folder."""
        source: str = self.source
        if source == "synthetic":
            source = f"synthetic-{self.n_train}-{self.n_test}"
        chunk = f"-chunk{self.rotation_chunk}" if self.rotation_chunk > 1 else ""
        return f"spherical_mnist/{source}-{self.edition}{chunk}-seed{self.seed}/{grid}"

    def card(self, grid: str) -> dict[str, Any]:
        """Return the entries that the card of the prepared signals must have."""
        real = self.source == "mnist"
        n_train = MNIST_TRAIN if real else self.n_train
        assert n_train is not None  # a synthetic source has a number
        held_out = max(1, n_train // 10)
        test = MNIST_TEST if real else self.n_test
        return {
            "source": "MNIST" if real else "synthetic digits",
            "edition": self.edition,
            "grid": grid,
            "rotations": {"kind": "Haar", "images_per_rotation": self.rotation_chunk},
            "seed": self.seed,
            "samples": {"train": n_train - held_out, "validation": held_out, "test": test},
            **({"raw_sha256": mnist.SHA256} if real else {}),
        }


class MoleculeData(Strict):
    """Which molecules a run sees, and which potentials round their atoms."""

    source: Literal["qm7", "synthetic"] = Field(
        "qm7", description="real QM7, or random geometries that need no download"
    )
    level: int = Field(2, ge=1, le=MAX_LEVEL, description="icosphere level")
    n_synthetic: int = Field(
        100, ge=50, multiple_of=5, description="molecules of the synthetic source, all folds"
    )
    n_train: int | None = Field(
        None,
        ge=10,
        description="molecules of the training folds, validation included; null: all of them",
    )
    n_test: int | None = Field(None, ge=10, description="molecules of the test fold; null: all")
    power: Literal[1, 2] = Field(
        1, description="of the distance in the potentials (the paper: 1, its released code: 2)"
    )
    radius: Literal["half", "whole"] = Field(
        "half",
        description="of the spheres, in least interatomic distances: half, so that no two "
        "intersect, or whole (released code)",
    )
    self_exclusion: Literal["index", "nearest"] = Field(
        "index", description="leave an atom out of its own sphere, or of the nearest (released)"
    )
    seed: int = Field(0, ge=0, description="of validation split, subsets and synthetic molecules")

    @model_validator(mode="after")
    def _as_many_as_there_are(self) -> MoleculeData:
        if self.source == "qm7":
            _at_most(self, n_train=QM7_MOLECULES * 4 // 5, n_test=QM7_MOLECULES // 5)
        return self

    def folder(self, grid: str) -> str:
        """Return the folder of the prepared signals, below the data folder."""
        source: str = self.source
        if source == "synthetic":
            source = f"synthetic-{self.n_synthetic}-seed{self.seed}"
        return f"qm7/{source}-power{self.power}-{self.radius}-{self.self_exclusion}/{grid}"

    def card(self, grid: str) -> dict[str, Any]:
        """Return the entries that the card of the prepared signals must have."""
        real = self.source == "qm7"
        raw = qm7.SHA256 if real else synthetic_molecules(self.n_synthetic, self.seed).sha256
        signals = {
            "power": self.power,
            "radius": self.radius,
            "self_exclusion": self.self_exclusion,
        }
        return {
            "dataset": "QM7" if real else "synthetic molecules",
            "raw_sha256": raw,
            "grid": grid,
            **({} if grid == "none" else {"signals": signals}),
        }


class RoomData(Strict):
    """What both tasks of omnidirectional segmentation have in common."""

    level: int = Field(
        5, ge=3, le=6, description="icosphere level; planar images of 8 * 2^level rows follow it"
    )
    n_test: int | None = Field(None, ge=1, description="test panoramas of a fold; null: all")
    n_train: int | None = Field(
        None, ge=10, description="training panoramas of a fold, validation included; null: all"
    )
    seed: int = Field(0, ge=0, description="of rotations, validation split and synthetic rooms")

    def card(self, grid: str) -> dict[str, Any]:
        """Return the entries that the card of the prepared signals must have."""
        quirks = dict.fromkeys(QUIRKS, False)
        return {"grid": grid, "seed": self.seed, "quirks": {**quirks, "depth_in_metres": False}}


class StanfordData(RoomData):
    """Which panoramas of 2D-3D-S a run sees."""

    accept_terms: bool = Field(
        False, description="the data set's terms of use have been read and accepted"
    )
    missing_as_clutter: bool = Field(
        False, description="points that show nothing count as clutter (the published planar U-Net)"
    )
    black_as_unknown: bool = Field(
        False, description="points where a colour is 0 count as unknown (Eder et al. 2020)"
    )
    missing_depth_far: bool = Field(
        False, description="points without depth are far away (published), not at depth 0"
    )

    def folder(self, grid: str) -> str:
        """Return the folder of the prepared signals, below the data folder."""
        variant = "".join(f"-{quirk}" for quirk in QUIRKS if getattr(self, quirk))
        return f"stanford_2d3ds/seed{self.seed}{variant}/{grid}"

    def card(self, grid: str) -> dict[str, Any]:
        """Return the entries that the card of the prepared signals must have."""
        common = super().card(grid)
        chosen = {quirk: getattr(self, quirk) for quirk in QUIRKS}
        return {**common, "dataset": "Stanford 2D-3D-S", "quirks": common["quirks"] | chosen}


class SyntheticRoomsData(RoomData):
    """Which panoramas of SyntheticRooms a run sees."""

    n_panoramas: int = Field(600, ge=14, description="panoramas in all areas")
    height: int = Field(256, ge=32, description="rows of a panorama; it has twice as many columns")

    def folder(self, grid: str) -> str:
        """Return the folder of the prepared signals, below the data folder."""
        return f"synthetic_rooms/{self.n_panoramas}-{self.height}-seed{self.seed}/{grid}"

    def card(self, grid: str) -> dict[str, Any]:
        """Return the entries that the card of the prepared signals must have."""
        generated = {"panoramas": self.n_panoramas, "height": self.height, "seed": self.seed}
        return {**super().card(grid), "dataset": "SyntheticRooms", "generated": generated}
