"""A study of thousands of runs is planned in seconds, and its jobs ask for what they need."""

import json
import resource

import pytest
import yaml

from bench.config import load_protocol, planned_runs
from tests.workflow.conftest import ROOT, jobs, with_data

SECONDS = 60


def test_jobs_of_a_cluster_ask_for_the_memory_that_runs_took():
    profile = ROOT / "profiles/slurm/profile.yaml"
    asked = yaml.safe_load(profile.read_text())["default-resources"]["mem_mb"]
    taken = [
        json.loads(path.read_text())["peak_memory_gb"]
        for path in (ROOT / "results/recorded").glob("*/runs/*/*/*/*/provenance.json")
    ]
    assert len(taken) > 100 and 1024 * max(taken) < asked


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
