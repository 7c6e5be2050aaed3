"""Independent seeds for each purpose, from one base seed."""

from __future__ import annotations

import hashlib


def derive(base_seed: int, *purpose: object) -> int:
    """A 63-bit seed that depends on the base seed and the purpose and on nothing else, say
    ("shuffling", run seed, epoch)."""
    text = repr((base_seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
