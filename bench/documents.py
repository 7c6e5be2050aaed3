"""Checking that README.md and docs/ quote recorded results correctly.

Two forms are checked: blocks copied from a recorded page, between `<!-- from PATH -->` and
`<!-- /from -->`, and links to a file below results/recorded whose text holds a number, as in
`[98.31 ± 0.10](../results/recorded/corrected/table1.md)`. Such a link must lead somewhere, and its
text must stand there; in JSON, each of its numbers must be a value rounded to as many places.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"<!-- from (\S+) -->\n(.*?)<!-- /from -->", re.DOTALL)
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def document_faults(root: Path) -> tuple[int, list[str]]:
    """Return how many quotes README.md and docs/ hold, and one line for each that is wrong."""
    count, faults = 0, []
    recorded = Path(os.path.abspath(root / "results/recorded"))  # links are kept as they are
    for page in sorted([*root.glob("README.md"), *root.glob("docs/**/*.md")]):
        name, text = page.relative_to(root), page.read_text(encoding="utf-8")
        blocks = BLOCK.findall(text)
        count += len(blocks)
        if not len(blocks) == text.count("<!-- from ") == text.count("<!-- /from -->"):
            faults.append(f"{name}: a copied block has no beginning or no end")
        for path, block in blocks:
            faults += [f"{name}: {fault}" for fault in _block(root / path, path, block)]
        for image, shown, target in LINK.findall(text):
            file = Path(os.path.abspath(page.parent / target.split("#")[0]))
            if not file.is_relative_to(recorded):
                continue
            if not file.exists():
                faults.append(f"{name}: [{shown}] links {target}, which does not exist")
            elif not image and re.search(r"\d", shown) and not target.endswith(shown):
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
    """Return whether the text of a link stands in a file; in JSON, whether its numbers do."""
    if not file.is_file():
        return False
    text, shown = file.read_text(encoding="utf-8"), re.sub(r"\s+", " ", shown.strip("*_` "))
    if file.suffix == ".json":
        values = list(_values(json.loads(text)))
        return all(_rounded(number, values) for number in NUMBER.findall(shown))
    return re.search(rf"(?<![\d.,]){re.escape(shown)}(?![\d,]|\.\d)", text) is not None


def _rounded(number: str, values: list[float]) -> bool:
    """Return whether a number is one of the values, rounded to its places, without its sign."""
    places = len(number.partition(".")[2])
    return any(f"{abs(value):.{places}f}" == number.replace(",", "") for value in values)


def _values(tree: Any) -> Iterator[float]:
    """Yield all numbers of a JSON tree."""
    if isinstance(tree, dict | list):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _values(branch)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree
