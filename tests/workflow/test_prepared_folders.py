"""The name of a folder of prepared data decides all that is in it, whatever the protocol says."""

import json
import re

import pytest

from bench.config import RunConfig, parse_protocol, planned_runs
from bench.prepared import disagreements, prepared_folder

pytestmark = pytest.mark.slow

DIGITS = {"source": "synthetic", "level": 3, "n_train": 60, "n_test": 30}
MOLECULES = {"source": "synthetic", "level": 1, "n_synthetic": 50}
ROOMS = {"level": 3, "n_panoramas": 14, "height": 32}
NETWORKS = {"spherical_mnist": "UGSCNN", "qm7": "PDO-eS2CNN", "synthetic_rooms": "UGSCNN"}


def run_on(task: str, data: dict) -> RunConfig:
    tree = {"tasks": {task: {"data": data, "models": [NETWORKS[task]]}}}
    return planned_runs(parse_protocol(tree))[0]


@pytest.mark.parametrize(
    ("task", "data", "changes"),
    [
        ("spherical_mnist", DIGITS, {"edition": "published", "rotation_chunk": 500, "seed": 7}),
        ("spherical_mnist", DIGITS, {"n_train": 70, "n_test": 20, "seed": 11}),
        (
            "qm7",
            MOLECULES,
            {
                **{"power": 2, "radius": "whole", "self_exclusion": "nearest"},
                **{"n_synthetic": 55, "seed": 3},
            },
        ),
        ("synthetic_rooms", ROOMS, {"n_panoramas": 15, "height": 40, "seed": 5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_holds_what_its_name_says(project, task, data, changes):
    """Prepared while the protocol (`test`) has other data in every key."""
    run = run_on(task, data | changes)
    target = f"data/{prepared_folder(run)}/card.json"
    done = project.snakemake(target)
    assert done.returncode == 0, done.stdout
    card = json.loads((project.folder / target).read_text())
    assert disagreements(run, card) == []
    for key in changes:  # of each of them the card tells
        other = {name: value for name, value in changes.items() if name != key}
        assert disagreements(run_on(task, data | other), card), key


def test_options_of_2d3ds_are_in_its_name(project):
    chosen = [(), ("black_as_unknown",), ("missing_as_clutter", "missing_depth_far")]
    names = ["-".join(["data/stanford_2d3ds/seed9", *quirks]) for quirks in chosen]
    done = project.snakemake("-n", "-p", *(f"{name}/icosphere3/card.json" for name in names))
    assert done.returncode == 0, done.stdout
    commands = re.findall(r"python -m data_prep rooms .*", done.stdout)
    assert len(commands) == len(names)
    for name, quirks in zip(names, chosen, strict=True):
        (command,) = (line for line in commands if f"/{name.split('/')[-1]}/" in line)
        options = {"--raw", "--grid", "--seed", "--workers", "--out"}
        options |= {f"--{quirk.replace('_', '-')}" for quirk in quirks}
        assert set(re.findall(r"--[a-z-]+", command)) == options
        assert "--seed 9 " in command and "--grid icosphere3 " in command


@pytest.mark.parametrize(
    "name",
    [
        "spherical_mnist/synthetic-60-30-legacy-seed7",  # names of earlier releases
        "spherical_mnist/synthetic-60-30-seed7",
        "spherical_mnist/synthetic-60-30-published-chunk1-seed7",  # it has a shorter name
        "stanford_2d3ds/seed0-black_as_clutter",
    ],
)
def test_other_names_are_not_made(project, name):
    done = project.snakemake("-n", f"data/{name}/icosphere3/card.json")
    assert done.returncode != 0 and "MissingRuleException" in done.stdout, done.stdout
