"""A study of thousands of runs is planned, and its jobs ask for what they need."""

import json
import re

import pytest

from bench.config import load_protocol, planned_runs
from bench.registry import MODELS
from tests.workflow.conftest import ROOT, jobs, with_qm7


def test_runs_ask_for_more_memory_than_recorded_runs_took():
    recorded = list((ROOT / "results/recorded").glob("*/runs/*/*/*/*/provenance.json"))
    for path in recorded:
        facts = json.loads(path.read_text())
        entry = MODELS[facts["config"]["task"], facts["config"]["network"]]
        assert facts["peak_memory_gb"] < entry.memory_gb, path
    assert len(recorded) > 100


@pytest.mark.slow
def test_runs_ask_for_no_more_memory_than_the_machine_has(project):
    """So that one that needs more starts, alone; a machine of 3 GB is what the clone sees."""
    file = project.folder / "bench/machine.py"
    text = file.read_text()
    file.write_text(f"{text}\n\ndef memory_gb():\n    return 3\n")
    for limit, most in (((), 3072), (("--resources", "mem_mb=4000"), 4000)):
        done = project.snakemake("all", "-n", *limit, config=("protocol=default",))
        asked = {int(mb) for mb in re.findall(r"mem_mb=(\d+)", done.stdout)}
        assert (min(asked), max(asked)) == (2048, most), done.stdout
    file.write_text(text)


@pytest.mark.slow
def test_a_graph_of_5000_runs_is_planned(project):
    planned = planned_runs(load_protocol(ROOT / "config/paper.yaml"))
    one_seed = sum(run.seed == 0 for run in planned if run.task != "stanford_2d3ds")
    seeds = -(-5000 // one_seed)
    done = project.snakemake(
        *("all", "-n", "--quiet", "rules"),
        config=("protocol=paper", f"seeds={seeds}"),
        **with_qm7(project.folder),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert jobs(done.stdout)["train"] == seeds * one_seed >= 5000


@pytest.mark.slow
def test_commands_of_the_page_plan(project):
    """Those for Snakemake on this machine; that for SLURM has tests of its own."""
    page = (ROOT / "docs/scaling.md").read_text()
    blocks = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    commands = [line for line in blocks.splitlines() if line.startswith("snakemake --cores")]
    assert commands
    for command in commands:
        done = project.run("bash", "-c", f"{command} -n", **with_qm7(project.folder))
        assert done.returncode == 0 and jobs(done.stdout)["train"] > 0, done.stdout
