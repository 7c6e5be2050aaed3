"""Comparing the code that runs with the commit that provenance names.

The working files are compared with the commit's own blobs. Git's index is not asked: its bits
`assume-unchanged` and `skip-worktree`, filters and file monitors can hide a change.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("baselines", "bench", "data_prep", "pdo")
"""The packages whose code makes the numbers."""
WITHOUT_EFFECT = re.compile(r"(docs|results|tests)/|.*\.md$")
"""Tracked files that decide no number: a run may be recorded when they differ from the commit."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages, whose versions provenance lists."""
NAMED = 3
"""A problem names as many files; it counts the others."""


class NoCommit(Exception):
    """Why the commit of the source tree cannot be known, in one line."""


def git_state() -> dict[str, Any]:
    """Return which commit the code that runs is, and whether it is exactly that commit's.

    `git_commit` is the full hash, None where there is none. `git_dirty` is False if code,
    configuration and lock files are those of the commit and no other module can take the place of
    one of them or of a library; it is None where there is no commit. `git_problem` says in one line
    why `git_dirty` is not False, and is None if it is.
    """
    try:
        commit = _commit()
        tracked = _blobs(commit)
    except NoCommit as reason:
        return {"git_commit": None, "git_dirty": None, "git_problem": str(reason)}
    problems = {
        f"the working tree differs from commit {commit[:7]} in": _changed(tracked),
        f"commit {commit[:7]} does not have the modules": sorted(_modules() - tracked.keys()),
        "modules come from neither the project nor an installed package:": _modules_elsewhere(),
    }
    found = [f"{what} {_listed(names)}" for what, names in problems.items() if names]
    return {
        "git_commit": commit,
        "git_dirty": bool(found),
        "git_problem": "; ".join(found) or None,
    }


def ancestors() -> set[str]:
    """Return the hashes of the commit that is checked out and of all commits before it.

    Raises:
        NoCommit: there is no commit, or the clone is shallow and does not have those before.
    """
    _commit()
    if _git("rev-parse", "--is-shallow-repository").strip() == "true":
        raise NoCommit("the clone is shallow (run `git fetch --unshallow`)")
    return set(_git("rev-list", "HEAD").split())


def _commit() -> str:
    """Return the commit of the repository whose top is `ROOT`, or raise `NoCommit`."""
    if not (ROOT / ".git").exists():  # git itself would look for one in the folders above
        raise NoCommit(f"{ROOT} is no git repository (an unpacked archive?)")
    top = Path(_git("rev-parse", "--show-toplevel").removesuffix("\n"))
    if top.resolve() != ROOT:
        raise NoCommit(f"git takes {ROOT} for a part of {top}, another repository")
    return _git("rev-parse", "--verify", "HEAD^{commit}").strip()


def _blobs(commit: str) -> dict[str, tuple[str, str]]:
    """Return mode and hash of each file of a commit, by its path, or raise `NoCommit`."""
    blobs = {}
    for entry in _git("ls-tree", "-r", "-z", commit).split("\0")[:-1]:
        facts, name = entry.split("\t", 1)
        mode, _, blob = facts.split()
        blobs[name] = mode, blob
    return blobs


def _git(*arguments: str) -> str:
    """Return what git prints in `ROOT`, of the repository there whatever the environment says.

    Of git's own variables only those of its configuration are kept, where `safe.directory` may be.

    Raises:
        NoCommit: git is missing, refuses the folder, or fails.
    """
    kept = {k: v for k, v in os.environ.items() if re.match("GIT_CONFIG_|(?!GIT_)", k)}
    kept |= {"LC_ALL": "C", "GIT_NO_REPLACE_OBJECTS": "1"}
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, env=kept)
    except FileNotFoundError:
        raise NoCommit("git is not installed") from None
    if done.returncode:
        lines = os.fsdecode(done.stderr).strip().splitlines() or ["no reason given"]
        if "safe.directory" in lines[-1]:  # the command that git advises
            raise NoCommit(f"git refuses {ROOT} (dubious ownership): run `{lines[-1].strip()}`")
        raise NoCommit(f"git finds no commit in {ROOT} ({lines[0]})")
    return os.fsdecode(done.stdout)


def _changed(blobs: dict[str, tuple[str, str]]) -> list[str]:
    """Return the paths of the files that may decide a number and are not what the commit has."""
    deciding = {name: blob for name, blob in blobs.items() if not WITHOUT_EFFECT.match(name)}
    return [name for name, blob in deciding.items() if not _is_unchanged(name, *blob)]


def _is_unchanged(name: str, mode: str, blob: str) -> bool:
    """Return whether a working file has the content of a blob (for a link: its target)."""
    path = ROOT / name
    try:
        content = os.fsencode(os.readlink(path)) if mode == "120000" else path.read_bytes()
    except OSError:
        return False
    kind = "sha1" if len(blob) == 40 else "sha256"
    return hashlib.new(kind, b"blob %d\0" % len(content) + content).hexdigest() == blob


def _modules() -> set[str]:
    """Return the paths of all modules that can be imported from `ROOT` or its packages.

    Of a folder at the top its `__init__` counts. What git ignores is not left out: Python does not.
    """
    folders = [ROOT]
    for package in PACKAGES:
        folders += [Path(folder) for folder, _, _ in os.walk(ROOT / package)]
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        if folder.name != "__pycache__"
        for path in _modules_in(folder)
    }


def _modules_in(folder: Path) -> Iterator[Path]:
    """Yield the modules in a folder and the `__init__` modules of the packages in it."""
    for entry in os.scandir(folder):
        for suffix in all_suffixes():
            if entry.name.removesuffix(suffix).isidentifier() and entry.name.endswith(suffix):
                yield Path(entry)
            elif entry.name.isidentifier() and os.path.isfile(f"{entry.path}/__init__{suffix}"):
                yield Path(entry, f"__init__{suffix}")


def _modules_elsewhere() -> list[str]:
    """Return name and file of each imported package or module whose place is not known.

    Known are the project, for its own packages the project alone, Python's library, and folders of
    installed packages.
    """
    library = Path(os.__file__).parent
    found = []
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or "." in name or name in ("__main__", "__mp_main__"):
            continue
        path = Path(file)
        ours = path.resolve() in (ROOT / f"{name}.py", ROOT / name / "__init__.py")
        installed = path.is_relative_to(library) or bool(INSTALLED & set(path.parts))
        if not (ours or (installed and name not in PACKAGES)):
            found.append(f"{name} ({file})")
    return found


def _listed(names: list[str]) -> str:
    """Return `a, b, c (and 2 more)`."""
    more = f" (and {len(names) - NAMED} more)" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
