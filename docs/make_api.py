"""Write docs/api.md from the docstrings of what `pdo` exports: `python docs/make_api.py`."""

from __future__ import annotations

import inspect
import re
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import pdo  # noqa: E402  (of this source tree, installed or not)

MODULES = ("pretrained", "mesh", "frames", "stencils", "layers", "activation", "networks", "direct")


def page() -> str:
    """The whole page, names grouped by module in the order in which one reads them."""
    text = [
        "# `pdo`: the public surface",
        "Made by `python docs/make_api.py` from the docstrings; a test keeps it current. V is the "
        "number of vertices, B the batch, C channels (fields), N fibre coordinates, E entries of a "
        "stencil. Angles and lengths on the sphere are in radians.",
        inspect.getdoc(pdo) or "",
    ]
    listed = []
    for module in MODULES:
        names = [name for name in pdo.__all__ if _module(name) == module]
        listed += names
        text += [f"## `pdo.{module}`", *(_entry(name) for name in names)]
    missing = set(pdo.__all__) - set(listed)
    if missing:
        raise SystemExit(f"no section of the page has {', '.join(sorted(missing))}")
    return "\n\n".join(text) + "\n"


def _module(name: str) -> str:
    thing = getattr(pdo, name)
    if isinstance(thing, partial):
        return "networks"
    return (type(thing) if isinstance(thing, pdo.StencilSpec) else thing).__module__.split(".")[1]


def _entry(name: str) -> str:
    thing = getattr(pdo, name)
    if isinstance(thing, pdo.StencilSpec):
        return f"### `{name}`\n\n`{thing}`"
    if isinstance(thing, partial):
        changed = ", ".join(f"{key}={value!r}" for key, value in thing.keywords.items())
        return f"### `{name}`\n\n`{thing.func.__name__}` with `{changed}`."
    text = [f"### `{name}{_signature(thing)}`", _code(thing)]
    members = vars(thing).items() if inspect.isclass(thing) else ()
    for key, member in members:
        kind = getattr(member, "fget", None) or getattr(member, "func", None) or member
        if key.startswith("_") or key == "forward" or not inspect.isfunction(kind):
            continue
        title = f"`.{key}{_signature(kind)}`" if kind is member else f"`.{key}`"
        text += [f"**{title}**", _code(kind)]
    return "\n\n".join(text)


def _signature(thing: object) -> str:
    signature = inspect.signature(thing)  # type: ignore[arg-type]
    kept = [p for p in signature.parameters.values() if p.name != "self"]
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(signature.replace(parameters=kept)))
    text = text.removesuffix(" -> None")
    return re.sub(r"ForwardRef\((\w+)\)", r"\1", text)


def _code(thing: object) -> str:
    return f"```text\n{inspect.getdoc(thing)}\n```"


if __name__ == "__main__":
    (HERE / "api.md").write_text(page())
