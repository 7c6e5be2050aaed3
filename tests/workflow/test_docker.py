"""The Dockerfile against what it names; building it needs Docker and is not tested."""

import json
import re
import subprocess
from fnmatch import fnmatch

import pytest

from tests.workflow.conftest import ROOT

LINES = [
    line
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
TRACKED = subprocess.run(
    ["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True
).stdout.splitlines()


def said(instruction: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in LINES if line.split()[0] == instruction]


@pytest.mark.parametrize("copied", said("COPY"))
def test_copied_files_are_tracked(copied):
    sources = [word for word in copied.split()[:-1] if not word.startswith("--")]
    assert sources
    for source in sources:
        assert source == "." or source in TRACKED


def test_nothing_tracked_is_ignored():
    """The last pattern that matches a path, or a folder above it, decides."""
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in "#"
    ]

    def ignored(path: str) -> bool:
        parts = path.split("/")
        above = ["/".join(parts[:k]) for k in range(1, len(parts) + 1)]
        verdict = False
        for pattern in patterns:
            wanted = pattern.removeprefix("!")
            names = parts if wanted.startswith("**/") else above
            if any(_matches(name, wanted.removeprefix("**/")) for name in names):
                verdict = not pattern.startswith("!")
        return verdict

    assert [path for path in TRACKED if ignored(path)] == []
    for path in ("data/raw/x", "results/runs/x", ".venv/bin/x", "pdo/__pycache__/x.pyc"):
        assert ignored(path)


def _matches(name: str, pattern: str) -> bool:
    """A star does not reach over a slash."""
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


def test_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (entry,), (default,) = said("ENTRYPOINT"), said("CMD")
    assert json.loads(entry) == ["make"]
    assert json.loads(default) == ["all"]
    made = [word for run in said("RUN") for word in re.findall(r"\bmake (\w+)$", run)]
    assert made == ["env"]
    assert {*made, *json.loads(default)} <= set(targets)


def test_it_is_the_image_of_the_snakefile_and_not_root():
    (image,) = said("FROM")
    assert f'container: "docker://{image}"' in (ROOT / "Snakefile").read_text()
    instructions = [line.split()[0] for line in LINES]
    assert said("USER") == ["pdo"]
    assert instructions.index("USER") < instructions.index("ENTRYPOINT")
    assert "useradd" in said("RUN")[0]
