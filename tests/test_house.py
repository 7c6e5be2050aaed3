"""The files a project is expected to have say what is so."""

import re
import shutil
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_citation_is_complete_and_of_this_version():
    """The fields that CFF 1.2.0 requires, and the paper's own."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(cff)
    assert (cff["type"], cff["license"]) == ("software", PROJECT["license"])
    assert cff["version"] == PROJECT["version"]
    paper = cff["preferred-citation"]
    assert [a["family-names"] for a in paper["authors"]] == ["Shen", "Shen", "Lin", "Ma"]
    assert all(set(a) == {"given-names", "family-names"} for a in paper["authors"])
    assert (paper["type"], paper["year"]) == ("conference-paper", 2021)
    assert paper["conference"]["name"] and paper["url"].endswith("/2104.03584")
    card = ROOT / "baselines/cards/spherical_mnist/PDO-eS2CNN-small.yaml"
    said = yaml.safe_load(card.read_text())["paper"]
    assert (paper["title"], paper["year"]) == (said["title"], said["year"])
    assert paper["identifiers"][0]["value"] == f"arXiv:{said['arxiv']}"


def test_licence_is_the_one_declared():
    assert (ROOT / "LICENSE").read_text().startswith(f"{PROJECT['license']} License")


def test_changelog_keeps_to_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", h) for h in headings[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds


def test_hooks_are_local_and_what_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lint = (ROOT / "Makefile").read_text().split("lint: ")[1].split("\n\n")[0]
    assert [repo["repo"] for repo in hooks] == ["local"]
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].split(" --")[0] in lint
        assert shutil.which(hook["entry"].split()[0])
