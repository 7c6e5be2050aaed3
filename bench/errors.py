"""Errors a user can mend: one line that says what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """The configuration or the command line is wrong."""


class RunError(RuntimeError):
    """A run cannot start or go on."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> ConfigError:
    """`unknown <kind> 'x': did you mean 'y'? (valid: ...)`."""
    names = [str(v) for v in valid]
    near = get_close_matches(str(name), names, n=1, cutoff=0.5) or [
        n for n in names if n.lower().startswith(str(name).lower()[:3])
    ]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(f"unknown {kind} {name!r}: {hint}(valid: {', '.join(names)})")
