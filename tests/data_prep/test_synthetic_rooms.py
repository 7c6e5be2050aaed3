"""SyntheticRooms: closed-form views of single boxes, and what the rooms hold."""

import json
import os
import signal

import numpy as np
import pytest

from data_prep import synthetic_rooms as module
from data_prep.__main__ import main
from data_prep.files import write_json
from data_prep.grids import pixel_directions
from data_prep.ray_caster import Box, cast
from data_prep.room_scenes import camera_positions, draw_room
from data_prep.room_signals import ORIGIN, prepare
from data_prep.stanford import (
    AREAS,
    LABELS,
    MISSING,
    MISSING_DEPTH,
    class_of_index,
    panoramas,
    read_depth,
    read_labels,
    read_rgb,
)
from data_prep.synthetic_rooms import (
    _write_room,
    generate,
    panoramas_by_area,
    semantic_labels,
)

SHELL_SIZE = np.array([4.0, 5.0, 3.0])
GREY = (0.5, 0.5, 0.5)


def shell():
    x, y, z = SHELL_SIZE
    sides = [
        ((-1, -1, -1), (0, y + 1, z + 1)),
        ((x, -1, -1), (x + 1, y + 1, z + 1)),
        ((-1, -1, -1), (x + 1, 0, z + 1)),
        ((-1, y, -1), (x + 1, y + 1, z + 1)),
        ((-1, -1, -1), (x + 1, y + 1, 0)),
        ((-1, -1, z), (x + 1, y + 1, z + 1)),
    ]
    return [Box(low, high, 12, k, GREY) for k, (low, high) in enumerate(sides)]


def turned(yaw, rows):
    directions = pixel_directions(rows)
    c, s = np.cos(yaw), np.sin(yaw)
    return directions @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


@pytest.mark.parametrize("yaw", [0.0, 1.0, 4.0])
def test_an_empty_room_is_seen_at_the_distance_of_its_walls(yaw):
    camera = np.array([1.0, 2.0, 1.5])
    view = cast(shell(), [], np.zeros((0, 3)), camera, yaw, 48)
    directions = turned(yaw, 48)
    wall = np.where(directions > 0, SHELL_SIZE, 0.0)
    exact = ((wall - camera) / directions).min(axis=1)
    np.testing.assert_allclose(view.distance.ravel(), exact, rtol=1e-4)


@pytest.mark.parametrize("yaw", [0.0, 2.0, 3.1, 5.5])
def test_a_box_is_seen_where_it_is(yaw):
    """Against the slab test on all rays, with no windows."""
    camera, low, high = (
        np.array([1.0, 2.0, 1.5]),
        np.array([2.0, 1.0, 0.2]),
        np.array([3.0, 4.0, 1.0]),
    )
    others = [
        Box((0.2, 4.0, 0.0), (0.8, 4.8, 2.9), 7, 10, GREY),
        Box((0, 1.5, 2.7), (4, 2.5, 3), 1, 11, GREY),
    ]
    boxes = [Box(tuple(low), tuple(high), 11, 9, GREY), *others]
    view = cast(shell(), boxes, np.zeros((0, 3)), camera, yaw, 64)
    directions = turned(yaw, 64)
    expected = np.full(len(directions), np.inf)
    for box in (*shell(), *boxes):
        a, b = (np.array(box.low) - camera) / directions, (np.array(box.high) - camera) / directions
        near, far = np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)
        hit = (near > 0) & (near <= far)
        expected = np.where(hit & (near < expected), near, expected)
    difference = np.abs(view.distance.ravel() - expected) / expected
    assert (difference < 1e-3).mean() > 0.999  # but for rays along an edge
    assert {6, 7, 8} <= set(np.unique(view.box))


def test_light_falls_off_as_said():
    camera = np.array([2.0, 2.5, 1.0])
    lamp = np.array([[2.0, 2.5, 2.9]])
    view = cast(shell(), [], lamp, camera, 0.0, 64)
    below = view.colour[-1].mean()  # the floor under the lamp, 2.9 m away
    assert below == pytest.approx(0.5 * (0.35 + 1 / (1 + 2.9**2 / 4)), abs=0.01)


def test_rooms_have_their_things_inside_and_cameras_outside_of_them():
    for seed in range(20):
        room = draw_room(np.random.default_rng(seed), np.random.default_rng(1000 + seed))
        for box in room.boxes:
            low, high = np.array(box.low), np.array(box.high)
            assert (low < high).all() and (low > -1e-9).all()
            assert (high < np.array(room.size) + 0.5).all()
        for camera in camera_positions(room, 2, np.random.default_rng(seed)):
            inside = [(camera > b.low).all() and (camera < b.high).all() for b in room.boxes]
            assert not any(inside)


def test_layout_classes_and_missing_pixels(tmp_path):
    generate(tmp_path, n=28, height=64, seed=3, workers=2)
    found, classes = panoramas(tmp_path), class_of_index(tmp_path)
    assert len(found) == 28 and {p.area for p in found} == set(AREAS)
    counts, gone = np.zeros(15, int), []
    for panorama in found:
        rgb, depth = read_rgb(panorama.rgb), read_depth(panorama.depth)
        labels = read_labels(panorama.semantic, classes)
        assert rgb.shape == (64, 128, 3) and depth.shape == labels.shape == (64, 128)
        counts += np.bincount(labels.ravel(), minlength=15)
        missing = labels == MISSING
        assert (rgb[missing] == 0).all() and (rgb[~missing] > 0).all()
        assert (depth[missing] == MISSING_DEPTH).all()
        gone.append(missing.any())
        assert 0.1 < depth[depth < MISSING_DEPTH].min() / 512 < 3
    assert (counts[1:14] > 0).all(), dict(zip(LABELS, counts, strict=True))
    assert 0 < sum(gone) < 28
    prepare(tmp_path, "icosphere3", tmp_path / "out")
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["dataset"] == "SyntheticRooms"


def test_a_seed_gives_the_same_panoramas_however_many_workers(tmp_path):
    for name, workers, seed in (("a", 1, 0), ("b", 2, 0), ("c", 1, 1)):
        generate(tmp_path / name, n=14, height=32, seed=seed, workers=workers)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 42
    same = [(tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files]
    other = [(tmp_path / "a" / f).read_bytes() == (tmp_path / "c" / f).read_bytes() for f in files]
    assert all(same) and not any(o for f, o in zip(files, other, strict=True) if "_rgb" in f.name)


def contents(root):
    """All files but the temporary ones that a killed process leaves."""
    files = [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {p.relative_to(root): p.read_bytes() for p in files}


def test_an_interrupted_generation_says_so_and_goes_on(tmp_path, monkeypatch):
    generate(tmp_path / "whole", n=14, height=32, seed=2)
    write, written = module._write_view, []

    def stopping(out, area, k, *rest):
        if len(written) == 5:  # in the middle of the third room
            raise KeyboardInterrupt
        written.append((area, k))
        write(out, area, k, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_view", stopping)
        with pytest.raises(KeyboardInterrupt):
            generate(tmp_path / "stopped", n=14, height=32, seed=2)
    assert json.loads((tmp_path / "stopped" / ORIGIN).read_text())["complete"] is False
    images = sorted((tmp_path / "stopped").rglob("*.png"))
    kept = {path: path.stat().st_mtime_ns for path in images}
    assert len(kept) == 15
    generate(tmp_path / "stopped", n=14, height=32, seed=2)
    assert sum(path.stat().st_mtime_ns == time for path, time in kept.items()) == 12
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def killed_in_area_3(out, height, seed, job):
    if job[0] == "3":
        os.kill(os.getpid(), signal.SIGKILL)
    _write_room(out, height, seed, job)


def test_a_killed_worker_is_one_line_and_the_next_start_goes_on(tmp_path, monkeypatch, capsys):
    command = ["synthetic-rooms", "--panoramas", "14", "--height", "32", "--workers", "2", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_room", killed_in_area_3)
        assert main([*command, str(tmp_path / "killed")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a worker process was killed") and "fewer --workers" in line
    for out in ("killed", "whole"):
        assert main([*command, str(tmp_path / out)]) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_rooms_of_two_plans_do_not_mix(tmp_path, capsys):
    generate(tmp_path, n=14, height=32)
    before = contents(tmp_path)
    command = ["synthetic-rooms", "--out", str(tmp_path), "--panoramas"]
    for other in (["15", "--height", "32"], ["14", "--height", "32", "--seed", "1"], ["14"]):
        assert main([*command, *other]) == 1
        (line,) = [t for t in capsys.readouterr().err.splitlines() if t.startswith("error")]
        assert "'seed': 0}" in line and "delete its area_1 to area_6" in line
        assert contents(tmp_path) == before
    (tmp_path / ORIGIN).unlink()  # whose they are is not known: they might be the real ones
    assert main([*command, "14", "--height", "32"]) == 1
    assert "no synthetic_rooms.json says which" in capsys.readouterr().err
    assert not (tmp_path / ORIGIN).exists()


@pytest.mark.parametrize(
    "option", [["--seed", "-1"], ["--workers", "0"], ["--height", "31"], ["--panoramas", "13"]]
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(tmp_path, capsys, option):
    assert main(["synthetic-rooms", "--out", str(tmp_path), *option]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: at least" if int(option[1]) > 0 else "error: seed must be")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_panoramas_of_the_real_size(tmp_path):
    """4096 x 2048, with missing pixels and depths: the second has a missing cap."""
    write_json(tmp_path / "assets/semantic_labels.json", semantic_labels())
    _write_room(tmp_path, 2048, 0, ("5a", 0, 2))
    write_json(tmp_path / ORIGIN, {"panoramas": 2, "complete": True})
    found, classes = panoramas(tmp_path), class_of_index(tmp_path)
    assert [p.area for p in found] == ["5a", "5a"]
    prepare(tmp_path, "icosphere5", tmp_path / "out")
    rgbd = np.load(tmp_path / "out/rgbd.npy").astype(float)
    labels = np.load(tmp_path / "out/labels.npy")
    assert rgbd.shape == (2, 4, 10_242) and np.isfinite(rgbd).all()
    gone = []
    for k, panorama in enumerate(found):
        image = read_rgb(panorama.rgb)
        assert image.shape == (2048, 4096, 3)
        truth = read_labels(panorama.semantic, classes)
        gone.append((truth == MISSING).any())
        # Points lie on pixels in proportion to solid angle, so the shares of the labels agree.
        weight = np.repeat(np.sin((np.arange(2048) + 0.5) * np.pi / 2048), 4096)
        share = np.bincount(truth.ravel(), weights=weight, minlength=15) / weight.sum()
        np.testing.assert_allclose(np.bincount(labels[k], minlength=15) / 10_242, share, atol=0.01)
        shown = truth != MISSING
        mean = (image[shown] * weight.reshape(shown.shape)[shown][:, None]).sum(axis=0)
        mean /= 255 * weight.reshape(shown.shape)[shown].sum()
        np.testing.assert_allclose(
            rgbd[k, :3][:, labels[k] != MISSING].mean(axis=1), mean, atol=0.01
        )
        if gone[k]:  # the cap has no depth either
            assert (read_depth(panorama.depth)[~shown] == MISSING_DEPTH).all()
            assert (rgbd[k, 3] == 0).any()
    assert sorted(gone) == [False, True]


def test_areas_have_their_shares():
    counts = panoramas_by_area(1413)
    assert counts == [190, 299, 85, 258, 143, 230, 208]
    assert sum(panoramas_by_area(600)) == 600 and min(panoramas_by_area(14)) == 2
    with pytest.raises(ValueError, match="at least 14 panoramas"):
        generate("nowhere", n=5)
