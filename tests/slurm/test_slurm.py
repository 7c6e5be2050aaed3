"""The SLURM profile on a real SLURM of this machine alone (slurm.sh)."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.workflow.conftest import Project

HERE = Path(__file__).parent
MISSING = [
    name
    for name in ("slurmctld", "slurmd", "sbatch", "munged")
    if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
]
if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
    MISSING.append("snakemake-executor-plugin-slurm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"SLURM is not installed ({', '.join(MISSING)} missing): as root, make slurm",
    ),
]
SNAKEMAKE = (
    *("snakemake", "--profile", "profiles/slurm", "--configfile", "tests/slurm/protocol.yaml"),
    # this SLURM has no accounting for sacct to ask
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3"),
)
EPOCHS = 30
PATIENCE = 1800  # seconds: minutes on a free machine, more on a busy one


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Environment variables of a running SLURM."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        started = subprocess.run(
            [HERE / "slurm.sh", "start", folder], capture_output=True, text=True, timeout=120
        )
        assert started.returncode == 0, started.stdout + started.stderr
        yield {
            "SLURM_CONF": f"{folder}/slurm.conf",
            "PATH": f"{folder}/bin{os.pathsep}{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}",
        }
    finally:
        subprocess.run([HERE / "slurm.sh", "stop", folder], check=True, timeout=120)
    left = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(_words(p))]
    assert not left, left


def _words(process: psutil.Process) -> list[str]:
    return process.info["cmdline"] or []


def _jobs(environment) -> dict[int, dict[str, str]]:
    """Of the training jobs, the last of each seed: id, partition, state."""
    command = ["squeue", "--noheader", "--states=all", "--sort=i", "--format=%k|%i|%P|%T"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows = [line.split("|") for line in listed.stdout.splitlines() if "rule_train" in line]
    keys = ("id", "partition", "state")
    return {int(row[0][-1]): dict(zip(keys, row[1:], strict=True)) for row in rows}


def _details(environment, job: str) -> str:
    command = ["scontrol", "show", "job", job]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def _training(folder: Path, seed: int) -> psutil.Process:
    """The process that trains, and nothing that merely started it."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = _words(process)
        mine = process.info["cwd"] == str(folder) and words[1:4] == ["-m", "bench", "train"]
        if mine and json.loads(words[words.index("--run") + 1])["seed"] == seed:
            return process
    raise AssertionError(f"no process trains seed {seed}")


def _wait(condition, process: subprocess.Popen, output: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)


def test_runs_side_by_side_survive_a_kill_and_a_requeue(cluster, tmp_path):
    (tmp_path / "clone").mkdir()
    project = Project(tmp_path / "clone")
    environment = project.environment | cluster
    runs = project.folder / "results/runs/slurm/spherical_mnist/UGSCNN/N"
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*SNAKEMAKE, "--set-resources", "train:gpu=1", "--", "all"],
            cwd=project.folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(lambda: len(list(runs.glob("*/history.csv"))) == 2, process, output)
        before = _jobs(environment)
        for seed in (0, 1):
            assert before[seed]["state"] == "RUNNING"
            assert before[seed]["partition"] == "gpu"
            assert "TresPerJob=gres:gpu:1" in _details(environment, before[seed]["id"])
        assert "Auto-selected partition 'cpu' for job prepare_spherical_mnist" in output.read_text()

        _training(project.folder, 0).kill()  # SIGKILL: nothing is saved any more
        subprocess.run(["scontrol", "requeue", before[1]["id"]], env=environment, check=True)
        assert process.wait(timeout=PATIENCE) == 0, output.read_text()
    finally:
        process.kill()
        process.wait()
    after = _jobs(environment)
    assert after[0]["id"] != before[0]["id"]  # Snakemake submitted it anew,
    assert after[1]["id"] == before[1]["id"]  # SLURM started it again
    assert "Restarts=1" in _details(environment, after[1]["id"])
    for seed in (0, 1):
        log = project.folder / f"results/logs/train/slurm/spherical_mnist/UGSCNN/N/seed{seed}.log"
        assert "goes on at epoch" in log.read_text()
        history = (runs / f"seed{seed}/history.csv").read_text().splitlines()
        assert len(history) == 1 + EPOCHS
        metrics = json.loads((runs / f"seed{seed}/metrics.json").read_text())
        assert metrics["status"] == "finished"
    assert "2/2" in (project.folder / "results/tables/slurm/table1.md").read_text()
