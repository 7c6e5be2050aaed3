"""Renaming runs of earlier releases: new names of protocols, rows and keys, the same runs.

A migrated run differs from the old one in names alone. Its provenance keeps the old key and the old
hash of the configuration (`renamed`), so that `old_hash` can be compared with it at any time.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from bench.config import RunConfig, validated
from bench.errors import RunError
from bench.provenance import command
from data_prep.files import write_bytes, write_json

EDITIONS = {False: "corrected", True: "published"}
"""Edition of Spherical MNIST, by the old key `legacy_bilinear`."""
PROTOCOLS = {"paper": "corrected", "nearest_ring": "corrected", "published_sampling": "paper"}
"""New name of a protocol's Table 1 runs, by the old one; others keep their names."""
ROWS = {
    "nearest-ring": "PDO-eS2CNN-small-nearest-ring",
    "nearest-ring-subsampled": "PDO-eS2CNN-small-nearest-ring-subsampled",
}
"""New name of a row of these protocols, by the old one."""


def migrate(results: Path) -> list[tuple[str, str]]:
    """Rename all runs below `results` that have old names; return their old and new keys.

    Runs in `runs/` and `recorded/` are renamed, finished or not. A run is written completely under
    its new name before the old folder is removed, so a migration that was stopped can be repeated.

    Raises:
        RunError: a file cannot be read, files of two runs are mixed, or another run stands under
            the new name.
    """
    renamed = []
    for root, folder in list(_old_runs(results)):
        old = yaml.safe_load((folder / "config.yaml").read_text())
        tree = renamed_config(old)
        run = validated(RunConfig, tree, f"run in {folder}")
        protocol, rest = run.key.split("/", 1)
        target = root / protocol / ("runs" if root.name == "recorded" else "") / rest
        _migrate_run(folder, target, old, run)
        renamed.append((_key(old), run.key))
    for path in sorted((results / "recorded").glob("*/runs")):
        if not any(path.rglob("metrics.json")):  # a protocol that has gone, with its tables
            shutil.rmtree(path.parent)
    return renamed


def renamed_config(old: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of an old run under the new names."""
    tree = dict(old)
    if "legacy_bilinear" in tree["data"]:
        data = dict(tree["data"])
        data["edition"] = EDITIONS[data.pop("legacy_bilinear")]
        tree["data"] = data
        if tree["protocol"] in PROTOCOLS:
            tree["protocol"] = PROTOCOLS[tree["protocol"]]
            tree["model"] = ROWS.get(tree["model"], tree["model"])
    return tree


def old_hash(run: RunConfig, old_key: str) -> str:
    """Return the SHA-256 that the configuration of a run had under its old key.

    The inverse of `renamed_config`, then the hash of the canonical JSON form as it was then.
    """
    tree = json.loads(run.canonical_json())
    data = tree["data"]
    data["legacy_bilinear"] = data.pop("edition") == "published"
    tree["protocol"], _, tree["model"], _, _ = old_key.split("/")
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _old_runs(results: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the root (`runs` or `recorded`) and the folder of each run that has old names."""
    for root in (results / "runs", results / "recorded"):
        for path in sorted(root.rglob("config.yaml")):
            tree = yaml.safe_load(path.read_text())
            if not isinstance(tree, dict) or not isinstance(tree.get("data"), dict):
                raise RunError(f"{path} holds no configuration of a run: delete {path.parent}")
            provenance = path.with_name("provenance.json")
            card = _card(provenance) if provenance.exists() else {}
            if "legacy_bilinear" in tree["data"] or _renamed_card(card) != card:
                yield root, path.parent


def _card(provenance: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads(provenance.read_text())["data"]["card"]
    return card


def _key(tree: dict[str, Any]) -> str:
    names = (str(tree[part]) for part in ("protocol", "task", "model", "setting"))
    return "/".join([*names, f"seed{tree['seed']}"])


def _migrate_run(folder: Path, target: Path, old: dict[str, Any], run: RunConfig) -> None:
    """Write the run in `folder` to `target` under its new names, and remove `folder`."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    former = {"run": _key(old), "config_sha256": _former_hash(old)}
    for name, entry in (("metrics.json", "config_hash"), ("provenance.json", "config_sha256")):
        if name in files and json.loads(files[name])[entry] != former["config_sha256"]:
            raise RunError(f"{folder / name} is not of the configuration in config.yaml beside it")
    if target != folder and (target / "config.yaml").exists():
        there = yaml.safe_load((target / "config.yaml").read_text())
        if there != run.model_dump():
            raise RunError(f"{target} holds another run: move it away, then migrate again")
    for name, content in files.items():
        if name == "metrics.json":
            continue  # last: only a whole folder is a finished run
        if name == "config.yaml":
            content = yaml.safe_dump(run.model_dump(), sort_keys=False).encode()
        elif name == "provenance.json":
            content = _as_json(_renamed_provenance(json.loads(content), run, former))
        elif name == "checkpoint.pt":
            content = _renamed_checkpoint(content, run, folder / name)
        write_bytes(target / name, content)
    if "metrics.json" in files:
        metrics = json.loads(files["metrics.json"])
        changes = {"run": run.key, "config_hash": run.hash}
        write_json(target / "metrics.json", metrics | changes)
    if target != folder:
        shutil.rmtree(folder)
        for parent in folder.parents:
            if parent.name in ("runs", "recorded") or any(parent.iterdir()):
                break
            parent.rmdir()


def _former_hash(old: dict[str, Any]) -> str:
    """Return the hash of an old configuration: of its canonical JSON form."""
    tree = {key: value for key, value in old.items() if key != "data"}
    tree["data"] = {k: v for k, v in old["data"].items() if k != "accept_terms"}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _renamed_provenance(
    facts: dict[str, Any], run: RunConfig, former: dict[str, str]
) -> dict[str, Any]:
    """Return the provenance of a run under its new names; the command line stays as it was."""
    names: dict[str, Any] = {}
    if former != {"run": run.key, "config_sha256": run.hash}:
        names = {"renamed": [*facts.get("renamed", []), former]}
    return facts | {
        "command": command(run),
        "config": run.model_dump(),
        "config_sha256": run.hash,
        "data": facts["data"] | {"card": _renamed_card(facts["data"]["card"])},
        **names,
    }


def _renamed_card(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card under the new names: `edition`, and files in place of arrays."""
    card = dict(card)
    if "legacy_bilinear" in card.get("projection", {}):
        projection = dict(card["projection"])
        edition = EDITIONS[projection.pop("legacy_bilinear")]
        first = {key: card[key] for key in ("dataset", "source", "raw_sha256")}
        card = first | {"edition": edition} | card | {"projection": projection}
    if "sha256" in card:
        hashes = card["sha256"].items()
        card["sha256"] = {name if "." in name else f"{name}.npy": h for name, h in hashes}
    return card


def _renamed_checkpoint(content: bytes, run: RunConfig, path: Path) -> bytes:
    try:
        state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        state["progress"] |= {"config_hash": run.hash, "config": run.canonical_json()}
    except Exception as error:
        raise RunError(f"{path} is not a readable checkpoint ({error}): delete it") from error
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _as_json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
