"""A study of thousands of runs is planned in seconds, and its jobs ask for what they need."""

import json
import re
import resource

import pytest

from bench.config import load_protocol, planned_runs
from bench.registry import MODELS
from tests.workflow.conftest import ROOT, jobs, with_data

SECONDS = 60


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
def test_a_graph_of_5000_runs_builds_in_a_minute(project):
    """Processor seconds: those of the clock on a machine that does nothing else."""
    one_seed = len(with_data(planned_runs(load_protocol(ROOT / "config/paper.yaml")))) // 5
    seeds = -(-5000 // one_seed)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = project.snakemake(
        "all", "-n", "--quiet", "rules", config=("protocol=paper", f"seeds={seeds}")
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout[-3000:]
    assert jobs(done.stdout)["train"] == seeds * one_seed >= 5000
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < SECONDS
