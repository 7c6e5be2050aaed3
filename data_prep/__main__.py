"""Command line: `python -m data_prep fetch mnist`, `python -m data_prep spherical-mnist`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys

from data_prep.files import DataError
from data_prep.mnist import fetch_mnist
from data_prep.spherical_mnist import prepare
from data_prep.synthetic_digits import synthetic_digits


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
    command.add_argument("dataset", choices=["mnist"])
    command.add_argument("--out", default="data/raw/mnist", help="folder (default %(default)s)")
    command.set_defaults(run=lambda options: fetch_mnist(options.out))

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
        "--legacy-bilinear", action="store_true", help="the faulty sampling of the published data"
    )
    command.set_defaults(run=_spherical_mnist)
    return parser


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
        options.legacy_bilinear,
    )


if __name__ == "__main__":
    # A terminated run leaves through the `finally` blocks, which remove temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
