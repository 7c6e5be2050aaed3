"""Checking that README.md and docs/ quote recorded results correctly.

Two forms are checked: blocks copied from a recorded page, between `<!-- from PATH -->` and
`<!-- /from -->`, and numbers that link a file below results/recorded, as in
`[98.31 ± 0.10](../results/recorded/corrected/table1.md)`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"<!-- from (\S+) -->\n(.*?)<!-- /from -->", re.DOTALL)
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^()\s]+)\)")


def document_faults(root: Path) -> tuple[int, list[str]]:
    """Return how many quotes README.md and docs/ hold, and one line for each that is wrong."""
    count, faults = 0, []
    for page in sorted([*root.glob("README.md"), *root.glob("docs/**/*.md")]):
        name, text = page.relative_to(root), page.read_text(encoding="utf-8")
        for path, block in BLOCK.findall(text):
            count += 1
            faults += [f"{name}: {fault}" for fault in _block(root / path, path, block)]
        for shown, target in LINK.findall(text):
            file = (page.parent / target.split("#")[0]).resolve()
            if file.is_relative_to(root.resolve() / "results/recorded"):
                if not file.exists():
                    faults.append(f"{name}: [{shown}] links {target}, which does not exist")
                elif re.fullmatch(r"[-−]?[\d.,]+( ± [\d.,]+)?", shown):
                    count += 1
                    if not _quoted(file, shown):
                        faults.append(f"{name}: {shown} does not stand in {target}")
    return count, faults


def _block(file: Path, path: str, block: str) -> Iterator[str]:
    """Yield a line for each line of a copied block that does not stand in its file."""
    if not file.is_file():
        yield f"a block is copied from {path}, which does not exist"
        return
    lines = set(file.read_text(encoding="utf-8").splitlines())
    for line in block.strip().splitlines():
        if line not in lines:
            yield f"a line copied from {path} does not stand there: {line[:80]}"


def _quoted(file: Path, shown: str) -> bool:
    """Return whether a number stands in a file: as written, or in JSON as a value to be rounded."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if file.suffix == ".json":
        places = len(shown.partition(".")[2])
        return any(f"{value:.{places}f}" == shown for value in _values(json.loads(text)))
    return re.search(rf"(?<![\d.,]){re.escape(shown)}(?![\d,]|\.\d)", text) is not None


def _values(tree: Any) -> Iterator[float]:
    """Yield all numbers of a JSON tree."""
    if isinstance(tree, dict | list):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _values(branch)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree
