# Helpers of the rules; no rules here.
import json
import os
from pathlib import Path

import torch

from bench import machine
from bench.config import parse_protocol, planned_runs
from bench.data import QUIRKS
from bench.errors import RunError
from bench.outdated import is_made_of, is_outdated, made_of
from bench.prepared import prepared_folder
from bench.registry import MODELS, TASKS
from data_prep import fetch_stanford, qm7

try:
    PROTOCOL = parse_protocol(config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

# `--config` leaves numbers as text; from here on they are what they should be.
config.update(PROTOCOL.model_dump())

RUNS = {run.key: run for run in planned_runs(PROTOCOL)}

# Runs that have ended under another configuration.
try:
    OUTDATED = {key for key, run in RUNS.items() if is_outdated(Path("results"), run)}
except RunError as error:
    raise WorkflowError(str(error)) from None

# All that is made of a protocol's runs, apart from that of other protocols.
FOLDER = f"results/tables/{PROTOCOL.protocol}"
TABLES = [
    f"{FOLDER}/table{TASKS[task].table}.{suffix}"
    for task in PROTOCOL.tasks
    for suffix in ("csv", "md", "tex", "html")
]
PAGE, FIGURES = f"{FOLDER}/report.html", f"{FOLDER}/figures"
# What is asked for so that the database is complete.
TRACKED = [f"{FOLDER}/tracking.txt"] if PROTOCOL.tracking else []


def in_report(path):
    """`snakemake --report` shows the page of each table."""
    if not path.endswith(".html"):
        return path
    label = path.removeprefix(f"{FOLDER}/table").removesuffix(".html")
    shown = {"caption": "../report/table.rst", "category": "Tables"}
    return report(path, labels={"table": label}, **shown)


# One GPU a run where there are GPUs; a profile says how many there are (`resources: gpu=...`).
GPUS = min(1, torch.cuda.device_count())

# Runs are single-threaded and independent. `--cores 8` on 2 processors starts 2 at a time, not 8:
# a run takes its share of the cores it was promised. Jobs of a cluster are promised none.
CORES = workflow.resource_settings.cores or 1
THREADS = max(1, CORES // machine.processors())


# Runs that together take more memory than the machine has would be killed. One that takes more by
# itself starts alone: Snakemake lowers what it asks for to the limit. Nodes of a cluster have theirs.
if workflow.local_exec and "mem_mb" not in workflow.global_resources:
    workflow.register_resource("mem_mb", int(1024 * machine.memory_gb()))


# Data that cannot be had must not stop the other tables, so the sources are asked before planning,
# at every start anew; nothing is downloaded here. By task: each source, and why it failed.
UNAVAILABLE = {}
if "qm7" in PROTOCOL.tasks and PROTOCOL.tasks["qm7"].data.source == "qm7":
    UNAVAILABLE["qm7"] = qm7.why_not_available("data/raw/qm7")
STANFORD_ACCEPTED = False
if "stanford_2d3ds" in PROTOCOL.tasks:
    STANFORD_ACCEPTED = PROTOCOL.tasks["stanford_2d3ds"].data.accept_terms
    UNAVAILABLE["stanford_2d3ds"] = fetch_stanford.why_not_available(
        "data/raw/stanford", STANFORD_ACCEPTED
    )
UNAVAILABLE = {task: failures for task, failures in UNAVAILABLE.items() if failures}

METRICS = [
    f"results/runs/{key}/metrics.json"
    for key, run in RUNS.items()
    if run.task not in UNAVAILABLE
]
REQUIRED = (
    [f"{FOLDER}/all_data_were_there"] if UNAVAILABLE and PROTOCOL.require_data else []
)


def run_of(wildcards):
    key = "{protocol}/{task}/{model}/{setting}/seed{seed}".format(**wildcards)
    if key not in RUNS:
        raise WorkflowError(f"{key} is not a run of protocol {PROTOCOL.protocol}")
    return RUNS[key]


def make_again(path):
    """As `--forcerun` does, but only if the job that makes the file is part of what is asked for:
    the job's input function calls this, before it is decided which jobs must run. Snakemake itself
    cannot tell where it has no record: results were copied here, or made by hand."""
    workflow.dag.forcefiles.add(path)


def tables_metrics(wildcards):
    there = any(os.path.exists(path) for path in TABLES)
    whole = all(os.path.exists(path) for path in METRICS)
    current = made_of(PROTOCOL, Path("results"), UNAVAILABLE)
    if there and not (whole and is_made_of(Path(FOLDER), current)):
        make_again(TABLES[0])
    return METRICS


def memory_mb(wildcards):
    run = run_of(wildcards)
    return round(1024 * MODELS[run.task, run.network].memory_gb)


def run_json(wildcards):
    return run_of(wildcards).canonical_json()


def tracking_option(wildcards, output):
    # Snakemake does not compare a parameter that is made from `output` with that of before: switching
    # tracking must not retrain what has finished.
    return "" if PROTOCOL.tracking else "--no-tracking"


def prepared_data(wildcards):
    run = run_of(wildcards)
    if run.key in OUTDATED:
        make_again(f"results/runs/{run.key}/metrics.json")
    return f"data/{prepared_folder(run)}/card.json"


def print_tables():
    for path in [*TABLES, PAGE]:
        if os.path.exists(path):  # another target than `all` may not have made it
            print(os.path.abspath(path))
    print("runs: results/runs")
    if PROTOCOL.tracking:
        print("tracking:", os.environ.get("MLFLOW_TRACKING_URI", "results/mlflow.db"))


def raw_digits(wildcards):
    return rules.fetch_mnist.output if wildcards.source == "mnist" else []


def raw_molecules(wildcards):
    return rules.fetch_qm7.output if wildcards.molecules == "qm7" else []


# Options of a preparation. The name of a folder decides all that is in it, never the protocol.
def digit_options(wildcards):
    chunk = wildcards.chunk.removeprefix("-chunk") or "1"
    options = f"--edition {wildcards.edition} --rotation-chunk {chunk} --seed {wildcards.seed}"
    if wildcards.source == "mnist":
        return f"--raw data/raw/mnist {options}"
    _, n_train, n_test = wildcards.source.split("-")
    return f"--synthetic {n_train} {n_test} {options}"


def molecule_source(wildcards):
    if wildcards.molecules == "qm7":
        return "--raw data/raw/qm7"
    _, n, seed = wildcards.molecules.split("-")
    return f"--synthetic {n} --seed {seed.removeprefix('seed')}"


def quirk_options(wildcards):
    quirks = wildcards.quirks.split("-")[1:]
    return " ".join(f"--{quirk.replace('_', '-')}" for quirk in quirks)
