"""Panoramas of axis-aligned boxes, by casting one ray a pixel; vectorised with numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.grids import pixel_directions

TEXTURES = ("plain", "stripes", "checks", "grain")


@dataclass(frozen=True)
class Box:
    """An axis-aligned box: lowest and highest corner (metres), what it is, how it looks.

    texture: of TEXTURES, `period` metres wide, `contrast` between its two tones.
    glow: light of its own, for windows and lamps.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    label: int
    instance: int
    colour: tuple[float, float, float]
    texture: str = "plain"
    period: float = 0.3
    contrast: float = 0.3
    glow: float = 0.0


@dataclass(frozen=True)
class View:
    """What a camera sees: (H, W) each, (H, W, 3) the colours in [0, 1].

    box: number of the box that a pixel shows. distance: along the ray, metres.
    """

    colour: np.ndarray
    distance: np.ndarray
    box: np.ndarray


def cast(
    shell: list[Box],
    boxes: list[Box],
    lights: np.ndarray,
    camera: np.ndarray,
    yaw: float,
    rows: int,
) -> View:
    """The panorama (rows x 2 rows) from `camera`, turned by `yaw` about the vertical.

    shell: the six sides of the room (x low, x high, y low, y high, floor, ceiling), boxes that the
        camera is outside of and that close it in; boxes: all else, none with the camera in it.
    lights: (K, 3) point lights. A surface with normal n at distance d to a light that is in
        direction l adds max(n . l, 0) / (1 + d^2 / 4); there are no shadows.
    """
    columns = 2 * rows
    directions = pixel_directions(rows).astype(np.float32)
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]], np.float32)
    directions[:, :2] = directions[:, :2] @ turn.T
    directions = np.where(np.abs(directions) < 1e-6, np.float32(1e-6), directions)
    rays = directions.reshape(rows, columns, 3)
    inverse = 1 / rays
    distance = np.full((rows, columns), np.inf, np.float32)
    number = np.zeros((rows, columns), np.int32)
    axis = np.zeros((rows, columns), np.int8)
    everything = [*shell, *boxes]
    for k, box in enumerate(everything):
        low = np.asarray(box.low, np.float32) - camera.astype(np.float32)
        high = np.asarray(box.high, np.float32) - camera.astype(np.float32)
        for window in _windows(low, high, yaw, rows):
            inv = inverse[window]
            near_corner = np.where(inv > 0, low, high) * inv
            far_corner = np.where(inv > 0, high, low) * inv
            near = near_corner.max(axis=2)
            hit = (near > 0) & (near <= far_corner.min(axis=2)) & (near < distance[window])
            distance[window][hit] = near[hit]
            number[window][hit] = k
            axis[window][hit] = near_corner.argmax(axis=2)[hit]
    points = camera.astype(np.float32) + distance[..., None] * rays
    return View(_shade(everything, lights, rays, points, number, axis), distance, number)


def _windows(low: np.ndarray, high: np.ndarray, yaw: float, rows: int) -> list[tuple[slice, slice]]:
    """Parts of the panorama outside of which a box, relative to the camera, cannot be seen."""
    x = np.array([low[0], high[0], high[0], low[0]])
    y = np.array([low[1], low[1], high[1], high[1]])
    nearest = np.hypot(max(low[0], -high[0], 0.0), max(low[1], -high[1], 0.0))
    farthest = np.hypot(x, y).max()
    top = np.arctan2(high[2], nearest if high[2] > 0 else farthest)
    bottom = np.arctan2(low[2], nearest if low[2] < 0 else farthest)
    first = max(0, int((np.pi / 2 - top) * rows / np.pi) - 1)
    last = min(rows, int((np.pi / 2 - bottom) * rows / np.pi) + 2)
    band = slice(first, last)
    columns = 2 * rows
    if nearest == 0:
        return [(band, slice(0, columns))]
    azimuth = np.arctan2(y, x) - yaw
    middle = np.arctan2(y.mean(), x.mean()) - yaw
    spread = (azimuth - middle + np.pi) % (2 * np.pi) - np.pi
    # Columns run against the azimuth and begin at pi.
    start = int(np.floor((np.pi - middle - spread.max()) * rows / np.pi)) - 1
    stop = int(np.ceil((np.pi - middle - spread.min()) * rows / np.pi)) + 1
    start, stop = start % columns, start % columns + min(stop - start, columns)
    parts = [slice(start, min(stop, columns))]
    if stop > columns:
        parts.append(slice(0, stop - columns))
    return [(band, part) for part in parts]


def _shade(
    boxes: list[Box],
    lights: np.ndarray,
    rays: np.ndarray,
    points: np.ndarray,
    number: np.ndarray,
    axis: np.ndarray,
) -> np.ndarray:
    colours = np.array([box.colour for box in boxes], np.float32)[number]
    kinds = np.array([TEXTURES.index(box.texture) for box in boxes])[number]
    period = np.array([box.period for box in boxes], np.float32)[number]
    contrast = np.array([box.contrast for box in boxes], np.float32)[number]
    glow = np.array([box.glow for box in boxes], np.float32)[number]
    # The two coordinates that lie in the surface.
    first = np.where(axis == 0, points[..., 1], points[..., 0]) / period
    second = np.where(axis == 2, points[..., 1], points[..., 2]) / period
    stripes = np.floor(first) % 2
    checks = (np.floor(first) + np.floor(second)) % 2
    cell = np.floor(first * 8) * 12.9898 + np.floor(second * 8) * 78.233
    grain = np.abs(np.sin(cell) * 43758.5453) % 1
    tone = np.choose(kinds, [np.zeros_like(grain), stripes, checks, grain])
    normal = -np.sign(np.take_along_axis(rays, axis[..., None].astype(np.int64), 2)[..., 0])
    light = np.full(number.shape, 0.35, np.float32)
    for lamp in lights.astype(np.float32):
        to_lamp = lamp - points
        square = np.square(to_lamp).sum(axis=2)
        along = np.take_along_axis(to_lamp, axis[..., None].astype(np.int64), 2)[..., 0] * normal
        light += np.maximum(along, 0) / np.sqrt(square + 1e-6) / (1 + square / 4)
    shaded = colours * (1 - contrast * tone)[..., None] * np.minimum(light, 1.4)[..., None]
    return np.clip(shaded + glow[..., None], 0, 1)
