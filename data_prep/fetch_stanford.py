"""Fetch Stanford 2D-3D-S: seven archives, of which only the panoramas are kept."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import requests
from tqdm import tqdm

from data_prep.fetch import (
    ATTEMPTS,
    FIRST_WAIT,
    MIRROR_VARIABLE,
    TIMEOUT,
    SourceError,
    gunzip,
    mirror,
    obtain,
    web,
)
from data_prep.files import DataError, sha256_of_file
from data_prep.stanford import AREAS, CLUTTER, LABELS

logger = logging.getLogger(__name__)

TERMS = "https://github.com/alexsax/2D-3D-Semantics"
"""Where the terms of use are."""
ARCHIVES = "https://cvg-data.inf.ethz.ch/2d3ds/no_xyz/"
LABEL_FILE = (
    "https://raw.githubusercontent.com/alexsax/2D-3D-Semantics/"
    "54a532959b20203ea4c3fcc26f5c8bf678d6fdb4/assets/"
)
SHA256 = {
    "1": "b02d3b12198a419bfecb0aebb7c0ad13e2f4d017bbc6e93606e9316248a8d374",
    "2": "4b23df4e987ffbac7a1e3943bb0cf14ad9e136a5a050c64d7485af01937111f1",
    "3": "6ddb3c2742dc870ef361e542d5075c846f9dc464b7b27d01c7aac3eedc32e36c",
    "4": "741824ebf7085273410d73e65a3a6e6e293359fb63d1ba5f0ae447be70cd0b58",
    "5a": "4541dcff9cc7121c76d72bffff88226361c653d8de43bc1b7815ef3de2fc897e",
    "5b": "feec8f709f750ea7a38303b353fdb6cd08f902ec82511b2c17f95d3109204f10",
    "6": "ff7dda619a555f0031860ba42c963b3c65487a4db55e90fce4ddd54428e190ed",
}
"""Of area_<k>_no_xyz.tar."""
ENTRIES, CLUTTER_ENTRY = 9816, 3341
"""What semantic_labels.json is known by."""
CHUNK = 1 << 16


def fetch_stanford(
    folder: str | Path, accept_terms: bool = False, areas: Sequence[str] = AREAS
) -> None:
    """Put the panoramas of `areas` and the labels into `folder`.

    Of each area that is not there yet: a link to `stanford/area_<k>` in the mirror folder
    (environment variable PDO_DATA_MIRROR); else the panoramas out of `area_<k>_no_xyz.tar` in
    `folder` or in `stanford` of the mirror; else out of the archive on the web, which is kept in
    `folder`/download until it is extracted. A download that was interrupted goes on where it
    stopped.

    Raises:
        DataError: the terms are not accepted and folder and mirror have not all areas, the disk is
            too small, an archive cannot be had or is not the published one, or what is at an area's
            place is none.
    """
    folder = Path(folder)
    for area in areas:
        target, source = folder / f"area_{area}", _at_hand(area, folder)
        if source == target:
            continue
        if target.is_symlink() and not target.exists():  # the mirror has moved
            target.unlink()
        if target.exists():
            raise DataError(f"{target} is there but has no pano: delete it and fetch again")
        if source is None and not accept_terms:
            raise DataError(terms_not_accepted())
        folder.mkdir(parents=True, exist_ok=True)
        if source is None:
            _from_the_web(area, folder)
        elif source.is_dir():
            os.symlink(source.resolve(), target)
        else:
            _verify(source, area)
            extract(source, area, folder)
    _fetch_labels(folder)


def why_not_available(folder: str | Path, accept_terms: bool) -> list[str]:
    """Why 2D-3D-S cannot be had, one line for each source tried; empty where it is in `folder` or
    where a source seems to have it. Nothing is downloaded."""
    if all(_at_hand(area, Path(folder)) for area in AREAS):
        return []
    mirrored = _mirror()
    failures = [
        f"mirror folder {mirrored}: not all of area_1 to area_6"
        if mirrored
        else f"{MIRROR_VARIABLE} is not set"
    ]
    if not accept_terms:
        return [*failures, terms_not_accepted()]
    url = ARCHIVES + _archive_name(AREAS[0])
    try:
        answer = requests.head(url, timeout=5, allow_redirects=True)
        return [] if answer.ok else [*failures, f"{url}: HTTP status {answer.status_code}"]
    except requests.RequestException as error:
        return [*failures, f"{url}: no connection ({type(error).__name__})"]


def terms_not_accepted() -> str:
    """What to do, in one line."""
    return (
        f"2D-3D-S has terms of use: read them at {TERMS}, then set tasks.stanford_2d3ds.data."
        "accept_terms: true (or give `--accept-terms`), or put the areas into the folder "
        f"stanford of {MIRROR_VARIABLE}"
    )


def download(url: str, path: Path) -> None:
    """Download to `path`, through `path`.part, from which an interrupted download goes on.

    Raises:
        DataError: the server fails again and again, or the disk has less room than the archive and
            what is extracted from it need (at most as much again).
    """
    part = path.with_name(path.name + ".part")
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
        have = part.stat().st_size if part.exists() else 0
        try:
            with requests.get(
                url, stream=True, timeout=TIMEOUT, headers={"Range": f"bytes={have}-"}
            ) as answer:
                if answer.status_code == 416:  # nothing is left to send
                    break
                answer.raise_for_status()
                if answer.status_code != 206:
                    have = 0
                left = int(answer.headers.get("Content-Length", 0))
                _need_room(path, left + have + left, part)
                with (
                    part.open("ab" if have else "wb") as file,
                    tqdm(
                        total=have + left, initial=have, unit="B", unit_scale=True, desc=path.name
                    ) as bar,
                ):
                    for block in answer.iter_content(CHUNK):
                        file.write(block)
                        bar.update(len(block))
            if part.stat().st_size >= have + left:
                break
            reason = "the connection was cut"
        except requests.RequestException as error:
            reason = f"{type(error).__name__}"
    else:
        raise DataError(
            f"could not download {url} ({reason}, {ATTEMPTS} attempts): run the same command "
            f"again, it goes on from {part}"
        )
    os.replace(part, path)


def extract(archive: Path, area: str, folder: Path) -> None:
    """Take area_<k>/pano/{rgb,depth,semantic}/*.png out of an archive, nothing else; the area
    appears only when it is complete.

    Raises:
        DataError: the archive is damaged or has no panoramas.
    """
    wanted = re.compile(rf"(?:\./)?(area_{area}/pano/(?:rgb|depth|semantic)/[^/]+\.png)")
    partial = folder / f".area_{area}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    count = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                match = wanted.fullmatch(member.name)
                if match and member.isfile():
                    path = partial / match[1]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with tar.extractfile(member) as source, path.open("wb") as file:
                        shutil.copyfileobj(source, file)
                    count += 1
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive} is damaged ({error}): delete it and fetch again") from error
    if not count:
        raise DataError(f"{archive} has no panoramas of area {area}: delete it and fetch again")
    os.replace(partial / f"area_{area}", folder / f"area_{area}")
    partial.rmdir()
    logger.info("area %s: %d images", area, count)


def _at_hand(area: str, folder: Path) -> Path | None:
    """The area or its archive, in `folder` or in the mirror, whichever takes the least to use; None
    if only the web may have it."""
    mirrored = _mirror()
    places = [folder, mirrored] if mirrored else [folder]
    areas = [place / f"area_{area}" for place in places]
    archives = [place / _archive_name(area) for place in places]
    there = [path for path in areas if (path / "pano").is_dir()]
    there += [path for path in archives if path.is_file()]
    return there[0] if there else None


def _from_the_web(area: str, folder: Path) -> None:
    """An archive is deleted once its area is there, but only one that was downloaded here."""
    archive = folder / "download" / _archive_name(area)
    archive.parent.mkdir(exist_ok=True)
    if not archive.exists():
        download(ARCHIVES + archive.name, archive)
    _verify(archive, area)
    extract(archive, area, folder)
    archive.unlink()
    if not any(archive.parent.iterdir()):
        archive.parent.rmdir()


def _fetch_labels(folder: Path) -> None:
    path = folder / "assets" / "semantic_labels.json"
    sources = [*mirror("stanford/assets"), web(LABEL_FILE)]
    obtain(path, sources, _right_labels, f"put {path.name} at {path}")


def _right_labels(content: bytes) -> bytes:
    content = gunzip(content)
    try:
        names = json.loads(content)
        right = len(names) == ENTRIES and names[CLUTTER_ENTRY].startswith(LABELS[CLUTTER])
    except (ValueError, TypeError, AttributeError):
        right = False
    if not right:
        raise SourceError(f"not the list of {ENTRIES} labels")
    return content


def _verify(archive: Path, area: str) -> None:
    found = sha256_of_file(archive)
    if found != SHA256[area]:
        raise DataError(
            f"{archive} has the SHA-256 {found[:12]}... instead of {SHA256[area][:12]}...: delete "
            "it and fetch again"
        )


def _need_room(path: Path, needed: int, part: Path) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DataError(
            f"{path.parent} has {free / 1e9:.1f} GB free, {path.name} needs {needed / 1e9:.1f} GB "
            f"more to download and extract: make room and run again, it goes on from {part}"
        )


def _archive_name(area: str) -> str:
    return f"area_{area}_no_xyz.tar"


def _mirror() -> Path | None:
    root = os.environ.get(MIRROR_VARIABLE)
    return Path(root) / "stanford" if root and (Path(root) / "stanford").is_dir() else None
