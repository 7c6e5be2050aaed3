"""Command line of the data: `python -m data_prep fetch`, and a command for each data set."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from dataclasses import fields

from data_prep.fetch_stanford import fetch_stanford
from data_prep.files import DataError
from data_prep.mnist import fetch_mnist
from data_prep.qm7 import fetch_qm7
from data_prep.room_signals import Quirks
from data_prep.room_signals import prepare as prepare_rooms
from data_prep.spherical_mnist import EDITIONS, prepare
from data_prep.spherical_qm7 import RADII
from data_prep.spherical_qm7 import prepare as prepare_qm7
from data_prep.stanford import AREAS
from data_prep.synthetic_digits import synthetic_digits
from data_prep.synthetic_molecules import synthetic_molecules
from data_prep.synthetic_rooms import generate

FETCH = {"mnist": fetch_mnist, "qm7": fetch_qm7}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status is 1, with one line on stderr, if it could not be done."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (DataError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("fetch", help="download and verify raw data")
    command.add_argument("dataset", choices=[*FETCH, "stanford"])
    command.add_argument("--out", help="folder (default data/raw/<dataset>)")
    command.add_argument(
        "--accept-terms", action="store_true", help="of 2D-3D-S; without it the command says where"
    )
    command.add_argument(
        "--areas", nargs="+", choices=AREAS, default=AREAS, help="of 2D-3D-S (default all)"
    )
    command.set_defaults(run=_fetch)

    command = commands.add_parser("spherical-mnist", help="project digits onto the sphere")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--raw", help="folder of the raw MNIST files")
    source.add_argument(
        "--synthetic",
        nargs=2,
        type=int,
        metavar=("N_TRAIN", "N_TEST"),
        help="use so many synthetic digits in place of MNIST",
    )
    command.add_argument("--grid", required=True, help="for example icosphere4 or latlon30")
    command.add_argument("--out", required=True, help="folder")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--rotation-chunk", type=int, default=1, help="consecutive images that share a rotation"
    )
    command.add_argument(
        "--edition",
        choices=EDITIONS,
        default="corrected",
        help="sampling of the sets published before November 2024, or correct bilinear sampling",
    )
    command.set_defaults(run=_spherical_mnist)

    command = commands.add_parser("qm7", help="spherical potentials round the atoms of molecules")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--raw", help="folder of the raw qm7.npz")
    source.add_argument(
        "--synthetic", type=int, metavar="N", help="use so many synthetic molecules in place of QM7"
    )
    command.add_argument("--grid", required=True, help="for example icosphere2; none: no signals")
    command.add_argument("--out", required=True, help="folder")
    command.add_argument("--seed", type=int, default=0, help="of synthetic molecules")
    command.add_argument("--power", type=int, choices=[1, 2], default=1, help="of the distance")
    command.add_argument(
        "--radius", choices=list(RADII), default="half", help="of the least interatomic distance"
    )
    command.add_argument("--self-exclusion", choices=["index", "nearest"], default="index")
    command.set_defaults(run=_qm7)

    command = commands.add_parser("synthetic-rooms", help="generate panoramas of furnished rooms")
    command.add_argument("--out", required=True, help="folder")
    command.add_argument("--panoramas", type=int, default=600)
    command.add_argument("--height", type=int, default=256, help="rows; twice as many columns")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--workers", type=int, default=1, help="processes")
    command.set_defaults(run=_synthetic_rooms)

    command = commands.add_parser("rooms", help="sample panoramas, of 2D-3D-S or generated")
    command.add_argument("--raw", required=True, help="folder that holds area_1 and so on")
    command.add_argument("--grid", required=True, help="for example icosphere5 or planar5")
    command.add_argument("--out", required=True, help="folder")
    command.add_argument("--seed", type=int, default=0, help="of the random rotations")
    command.add_argument("--workers", type=int, default=1, help="processes")
    for quirk in fields(Quirks):
        command.add_argument(
            f"--{quirk.name.replace('_', '-')}", action="store_true", help="see `Quirks`"
        )
    command.set_defaults(run=_rooms)
    return parser


def _fetch(options: argparse.Namespace) -> None:
    folder = options.out or f"data/raw/{options.dataset}"
    if options.dataset == "stanford":
        fetch_stanford(folder, options.accept_terms, options.areas)
    else:
        FETCH[options.dataset](folder)


def _spherical_mnist(options: argparse.Namespace) -> None:
    raw = options.raw
    if options.synthetic:
        raw = synthetic_digits(*options.synthetic, seed=options.seed)
    prepare(
        raw,
        options.grid,
        options.out,
        options.seed,
        options.rotation_chunk,
        options.edition,
    )


def _qm7(options: argparse.Namespace) -> None:
    raw = options.raw
    if options.synthetic is not None:
        raw = synthetic_molecules(options.synthetic, options.seed)
    prepare_qm7(
        raw, options.grid, options.out, options.power, options.radius, options.self_exclusion
    )


def _synthetic_rooms(options: argparse.Namespace) -> None:
    generate(options.out, options.panoramas, options.height, options.seed, options.workers)


def _rooms(options: argparse.Namespace) -> None:
    quirks = Quirks(**{field.name: getattr(options, field.name) for field in fields(Quirks)})
    prepare_rooms(options.raw, options.grid, options.out, options.seed, quirks, options.workers)


if __name__ == "__main__":
    # A terminated run leaves through the `finally` blocks, which remove temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
