"""The wheel: builds, carries the networks, and needs nothing but what it declares."""

import json
import re
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest

ALONE = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"not among the dependencies: {name}", name=name)

folder, FORBIDDEN = sys.argv[1], set(json.loads(sys.argv[2]))
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, folder)
import torch
import pdo
assert pdo.__file__.startswith(folder), pdo.__file__
classes, probabilities = pdo.load("pdo-es2cnn-small-mnist").predict(torch.zeros(2, 2562))
network = pdo.PDOeS2CNN(level=3)
network(torch.randn(3, 1, 642)).sum().backward()
for name in ("bench", "data_prep", "baselines", "pydantic"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported")
print(json.dumps(classes.tolist()))
"""


def requirements(lines: list[str]) -> set[str]:
    """Names of installed distributions that these requirements (no extras) need, all the way."""
    found: set[str] = set()
    waiting = list(lines)
    while waiting:
        line = waiting.pop()
        name = re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-")
        if "extra ==" in line or name in found:
            continue
        try:
            waiting += metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(name)
    return found


@pytest.mark.slow
def test_wheel_installs_and_works_with_its_own_dependencies_only(project, tmp_path):
    pip = (sys.executable, "-m", "pip")
    built = project.run(
        *pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path)
    )
    assert built.returncode == 0, built.stdout
    (wheel,) = tmp_path.glob("pdo_sphere-*.whl")
    assert wheel.stat().st_size < 3e6
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        declared = re.findall(r"^Requires-Dist: (.+)$", archive.read(about).decode(), re.MULTILINE)
    assert {n.split("/")[0].split("-")[0] for n in names} == {"pdo", "pdo_sphere"}
    assert any(n.endswith("licenses/LICENSE") for n in names) and "pdo/py.typed" in names

    site = tmp_path / "site"
    installed = project.run(
        *pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)
    )
    assert installed.returncode == 0, installed.stdout
    allowed = requirements(declared)
    assert {"torch", "numpy", "scipy", "safetensors"} <= allowed and "pydantic" not in allowed
    forbidden = [
        module
        for module, owners in metadata.packages_distributions().items()
        if not allowed & {owner.lower().replace("_", "-") for owner in owners}
    ]
    assert "pandas" in forbidden and "snakemake" in forbidden
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, site, json.dumps(forbidden)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 2
