"""A clean copy of the project, as a new user's clone, sharing this environment."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEST = ("protocol=test",)
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
OFFLINE = {"PDO_DATA_MIRROR": "", **dict.fromkeys(PROXIES, "http://127.0.0.1:9")}
"""No mirror, and a proxy at which nobody listens for a network."""


class Project:
    """A committed copy of the source tree and how to run commands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = self._git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        # The loops that Numba has compiled: it knows them by the time of the source, which is kept.
        (folder / "pdo/__pycache__").mkdir()
        for path in (ROOT / "pdo/__pycache__").glob("kernels.*.nb*"):
            shutil.copy2(path, folder / "pdo/__pycache__")
        (folder / ".venv").symlink_to(sys.prefix)
        self._git(folder, "init", "--quiet")
        self.commit()

    def commit(self) -> None:
        self._git(self.folder, "add", "--all")
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        self._git(self.folder, *who, "commit", "--quiet", "--message", "test")

    def restore(self) -> None:
        """Undo what was changed in committed files."""
        self._git(self.folder, "checkout", "--quiet", "--", ".")

    @staticmethod
    def _git(folder: Path, *arguments: str) -> str:
        command = ["git", "-C", folder, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    @property
    def environment(self) -> dict[str, str]:
        path = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"
        # A make that calls the tests would make every make in them announce its folder.
        ours = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return {**ours, "PATH": path, "MLFLOW_TRACKING_URI": ""}

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess:
        """Output and errors together in `stdout`."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def snakemake(
        self, *arguments: str, config: tuple[str, ...] = TEST, **more: str
    ) -> subprocess.CompletedProcess:
        """The test protocol, unless `config` (key=value pairs) says otherwise."""
        return self.run("snakemake", "--cores", "2", *arguments, "--config", *config, **more)


def jobs(output: str) -> dict[str, int]:
    """Snakemake's job counts, by rule; empty where there is nothing to do."""
    table = output.rsplit("Job stats:", 1)[-1] if "Job stats:" in output else ""
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def with_qm7(folder: Path) -> dict[str, str]:
    """The environment where nothing but QM7 can be had, from a mirror in `folder`."""
    mirror = folder / "mirror"
    mirror.mkdir(exist_ok=True)
    (mirror / "qm7.npz").write_bytes(b"there")
    return OFFLINE | {"PDO_DATA_MIRROR": str(mirror)}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    return Project(tmp_path_factory.mktemp("clone"))
