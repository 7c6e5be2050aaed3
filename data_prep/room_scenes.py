"""Furnished rooms, drawn at random: what SyntheticRooms show."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np

from data_prep.ray_caster import TEXTURES, Box
from data_prep.stanford import LABELS

Corner = tuple[float, float, float]
Colour = tuple[float, float, float]
THICK = 0.2
"""Of the walls, metres."""


@dataclass
class Room:
    """size: along x, y, z in metres, one corner at the origin. shell: walls, floor and ceiling.
    boxes: all else. lights: (K, 3). instances: how many things there are."""

    size: Corner
    shell: list[Box] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    lights: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    instances: int = 0


def draw_room(rng: np.random.Generator, style: np.random.Generator) -> Room:
    """A room with furniture. `style` is that of the building: how bright and colourful it is, and
    how high its ceilings are."""
    hall = rng.uniform() < 0.25
    side = (5.0, 10.0) if hall else (3.0, 6.5)
    size = (rng.uniform(*side), rng.uniform(*side), style.uniform(2.4, 3.4) + rng.uniform(0, 0.5))
    room, paint = Room(size), _Paint(rng, style.uniform(0.1, 0.5), style.uniform(0.5, 0.9))
    _build_shell(room, paint)
    _hang_on_walls(room, paint, rng)
    for _ in range(8):  # most find no free wall
        _add_bookcase(room, paint, rng)
    for _ in range(rng.integers(0, 3)):
        _add_column(room, paint, rng)
    for _ in range(rng.integers(0, 3)):
        _add_beam(room, paint, rng)
    makers = (_add_table, _add_table, _add_table, _add_sofa, _add_clutter)
    for _ in range(int(size[0] * size[1] / 4) + 2):
        makers[rng.integers(len(makers))](room, paint, rng)
    lamps = int(rng.integers(1, 5))
    room.lights = np.column_stack(
        [
            rng.uniform(0.2, 0.8, lamps) * size[0],
            rng.uniform(0.2, 0.8, lamps) * size[1],
            np.full(lamps, size[2] - 0.1),
        ]
    )
    return room


def camera_positions(room: Room, n: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `n` free places at heights between 1 and 2 metres, 0.3 m off everything: (n, 3)."""
    low = np.array([box.low for box in room.boxes]).reshape(-1, 3) - 0.3
    high = np.array([box.high for box in room.boxes]).reshape(-1, 3) + 0.3
    found: list[np.ndarray] = []
    while len(found) < n:
        share = rng.uniform(0.1, 0.9, 2) * room.size[:2]
        place = np.array([*share, rng.uniform(1.0, min(2.0, room.size[2] - 0.5))])
        if not ((place > low) & (place < high)).all(axis=1).any():
            found.append(place)
    return np.array(found)


class _Paint:
    """Colours and textures that go together. What a thing is cannot be told from its colour."""

    def __init__(self, rng: np.random.Generator, saturation: float, value: float) -> None:
        self.rng, self.saturation, self.value = rng, saturation, value

    def __call__(self, texture: str | None = None, period: float = 0.3) -> dict[str, object]:
        saturation = np.clip(self.rng.normal(self.saturation, 0.15), 0, 1)
        value = np.clip(self.rng.normal(self.value, 0.2), 0.15, 1)
        colour = colorsys.hsv_to_rgb(self.rng.uniform(), saturation, value)
        texture = texture or TEXTURES[self.rng.integers(len(TEXTURES))]
        return {
            "colour": colour,
            "texture": texture,
            "period": period * self.rng.uniform(0.5, 1.5),
            "contrast": self.rng.uniform(0.05, 0.4),
        }


def _thing(room: Room, name: str, parts: list[tuple[Corner, Corner]], look: dict) -> None:
    """Boxes of one instance."""
    room.instances += 1
    label = LABELS.index(name)
    room.boxes += [Box(low, high, label, room.instances, **look) for low, high in parts]


def _build_shell(room: Room, paint: _Paint) -> None:
    x, y, z = room.size
    t, walls = THICK, paint(period=0.8)
    sides = [
        ("wall", (-t, -t, -t), (0, y + t, z + t)),
        ("wall", (x, -t, -t), (x + t, y + t, z + t)),
        ("wall", (-t, -t, -t), (x + t, 0, z + t)),
        ("wall", (-t, y, -t), (x + t, y + t, z + t)),
        ("floor", (-t, -t, -t), (x + t, y + t, 0)),
        ("ceiling", (-t, -t, z), (x + t, y + t, z + t)),
    ]
    looks = {"wall": walls, "floor": paint(period=0.5), "ceiling": paint(period=0.6)}
    for name, low, high in sides:
        room.instances += 1
        room.shell.append(Box(low, high, LABELS.index(name), room.instances, **looks[name]))


def _on_wall(
    room: Room, side: int, along: float, width: float, bottom: float, top: float, depth: float
) -> tuple[Corner, Corner]:
    """A flat box on wall 0..3 (x low, x high, y low, y high), `along` metres from its corner."""
    x, y, _ = room.size
    if side < 2:
        start = 0.0 if side == 0 else x - depth
        return (start, along, bottom), (start + depth, along + width, top)
    start = 0.0 if side == 2 else y - depth
    return (along, start, bottom), (along + width, start + depth, top)


def _hang_on_walls(room: Room, paint: _Paint, rng: np.random.Generator) -> None:
    """Doors, windows and boards, side by side along each wall."""
    z = room.size[2]
    for side in range(4):
        length, along = room.size[1 if side < 2 else 0], rng.uniform(0.2, 1.0)
        while along < length - 1.2:
            kind = rng.choice(["door", "window", "board", "nothing"], p=[0.25, 0.3, 0.2, 0.25])
            width = {"door": 0.9, "window": 1.4, "board": 1.6, "nothing": 0.8}[kind]
            width = min(width * rng.uniform(0.8, 1.3), length - along - 0.1)
            if kind == "door":
                place = _on_wall(room, side, along, width, 0, min(2.1, z - 0.2), 0.06)
                _thing(room, "door", [place], paint())
            elif kind == "window":
                place = _on_wall(room, side, along, width, 0.9, min(2.2, z - 0.2), 0.04)
                _thing(room, "window", [place], paint("checks", 0.5) | {"glow": 0.4})
            elif kind == "board":
                place = _on_wall(room, side, along, width, 0.9, min(1.9, z - 0.3), 0.04)
                _thing(room, "board", [place], paint("plain"))
            along += width + rng.uniform(0.2, 1.2)


def _floor_place(
    room: Room, rng: np.random.Generator, width: float, depth: float
) -> tuple[float, float] | None:
    """A free corner for a thing on the floor, or None after some tries."""
    for _ in range(20):
        x = rng.uniform(0.1, max(0.11, room.size[0] - width - 0.1))
        y = rng.uniform(0.1, max(0.11, room.size[1] - depth - 0.1))
        if x + width > room.size[0] or y + depth > room.size[1]:
            continue
        if not any(
            x < box.high[0] + 0.1
            and x + width > box.low[0] - 0.1
            and y < box.high[1] + 0.1
            and y + depth > box.low[1] - 0.1
            and box.low[2] < 1.5
            for box in room.boxes
        ):
            return x, y
    return None


def _add_column(room: Room, paint: _Paint, rng: np.random.Generator) -> None:
    width = rng.uniform(0.25, 0.6)
    if place := _floor_place(room, rng, width, width):
        x, y = place
        _thing(room, "column", [((x, y, 0), (x + width, y + width, room.size[2]))], paint())


def _add_beam(room: Room, paint: _Paint, rng: np.random.Generator) -> None:
    """Under the ceiling, from wall to wall."""
    x, y, z = room.size
    width, height, at = rng.uniform(0.15, 0.4), rng.uniform(0.15, 0.35), rng.uniform(0.1, 0.8)
    low, high = (at * x, 0.0), (at * x + width, y)
    if rng.uniform() < 0.5:
        low, high = (0.0, at * y), (x, at * y + width)
    _thing(room, "beam", [((*low, z - height), (*high, z))], paint())


def _legs(x: float, y: float, width: float, depth: float, top: float) -> list:
    t = 0.05
    corners = [(x, y), (x + width - t, y), (x, y + depth - t), (x + width - t, y + depth - t)]
    return [((a, b, 0.0), (a + t, b + t, top)) for a, b in corners]


def _add_table(room: Room, paint: _Paint, rng: np.random.Generator) -> None:
    """With chairs on some of its sides, and clutter on it."""
    width, depth, top = rng.uniform(0.8, 2.0), rng.uniform(0.6, 1.1), rng.uniform(0.65, 0.8)
    place = _floor_place(room, rng, width + 1.2, depth + 1.2)
    if not place:
        return
    x, y = place[0] + 0.6, place[1] + 0.6
    slab = ((x, y, top - 0.05), (x + width, y + depth, top))
    _thing(room, "table", [slab, *_legs(x, y, width, depth, top - 0.05)], paint())
    for _ in range(rng.integers(0, 4)):
        w, d, h = rng.uniform(0.1, 0.4, 3)
        a, b = x + rng.uniform(0, width - w), y + rng.uniform(0, max(depth - d, 0.01))
        _thing(room, "clutter", [((a, b, top), (a + w, b + d, top + h))], paint())
    look = paint()
    middle = x + width / 2 - 0.22
    for seat, back in ((y - 0.5, y - 0.5), (y + depth + 0.06, y + depth + 0.44)):
        if rng.uniform() < 0.7:
            _add_chair(room, middle + rng.uniform(-0.2, 0.2), seat, back, look)


def _add_chair(room: Room, x: float, y: float, back: float, look: dict) -> None:
    seat = ((x, y, 0.42), (x + 0.44, y + 0.44, 0.47))
    rest = ((x, back, 0.47), (x + 0.44, back + 0.05, 0.95))
    _thing(room, "chair", [seat, rest, *_legs(x, y, 0.44, 0.44, 0.42)], look)


def _add_sofa(room: Room, paint: _Paint, rng: np.random.Generator) -> None:
    width, depth = rng.uniform(1.4, 2.4), rng.uniform(0.8, 1.0)
    if place := _floor_place(room, rng, width, depth):
        x, y = place
        parts = [
            ((x, y, 0.0), (x + width, y + depth, 0.42)),
            ((x, y, 0.42), (x + width, y + 0.22, 0.85)),
            ((x, y, 0.42), (x + 0.18, y + depth, 0.6)),
            ((x + width - 0.18, y, 0.42), (x + width, y + depth, 0.6)),
        ]
        _thing(room, "sofa", parts, paint())


def _add_bookcase(room: Room, paint: _Paint, rng: np.random.Generator) -> None:
    """Against a wall: a back, two sides, and shelves with books between."""
    width, height, depth = rng.uniform(0.8, 2.0), rng.uniform(1.4, 2.2), 0.32
    side = int(rng.integers(4))
    length = room.size[1 if side < 2 else 0]
    if width + 0.4 > length:
        return
    along = rng.uniform(0.1, length - width - 0.1)
    low, high = _on_wall(room, side, along, width, 0, height, depth)
    blocked = any(
        low[0] < box.high[0] + 0.05
        and high[0] > box.low[0] - 0.05
        and low[1] < box.high[1] + 0.05
        and high[1] > box.low[1] - 0.05
        and box.low[2] < height
        for box in room.boxes
    )
    if blocked:
        return
    parts = [_on_wall(room, side, along, width, 0, height, depth * 0.6)]
    for bottom in np.arange(0.0, height, 0.38):
        parts.append(_on_wall(room, side, along, width, bottom, bottom + 0.04, depth))
    _thing(room, "bookcase", parts, paint("stripes", 0.08) | {"contrast": 0.6})


def _add_clutter(room: Room, paint: _Paint, rng: np.random.Generator) -> None:
    width, depth, height = rng.uniform(0.2, 0.7), rng.uniform(0.2, 0.7), rng.uniform(0.2, 1.0)
    if place := _floor_place(room, rng, width, depth):
        x, y = place
        _thing(room, "clutter", [((x, y, 0.0), (x + width, y + depth, height))], paint())
