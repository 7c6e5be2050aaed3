"""Panoramas with closed-form content come out right at every point, upright and turned."""

import csv
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import room_signals as module
from data_prep.__main__ import main
from data_prep.files import DataError, sha256_of_file
from data_prep.grids import grid_points, pixel_directions
from data_prep.panorama_sampler import Sampler, bilinear
from data_prep.room_signals import ORIGIN, Quirks, haar_rotation, prepare
from data_prep.stanford import (
    CLUTTER,
    FOLDS,
    LABELS,
    MISSING,
    MISSING_COLOUR,
    MISSING_DEPTH,
    PANORAMAS,
    UNKNOWN,
    Panorama,
    class_of_index,
    depth_signal,
    panoramas,
    read_labels,
    read_rgb,
)
from data_prep.synthetic_rooms import generate, index_of, label_of, semantic_labels
from tests.data_prep.test_atomic_files import run_with_small_files

ROWS = 64
SAMPLE = module._sample


def octant(directions):
    """A label that depends on the direction: 1..8."""
    return 1 + (directions > 0) @ np.array([1, 2, 4])


def write_panorama(root, area, k, rows=ROWS):
    """Colours linear in the direction, depth 2 + z metres, labels by octant; a missing cap."""
    directions = pixel_directions(rows)
    shape = (rows, 2 * rows)
    colour = np.round(255 * (0.5 + 0.4 * directions)).astype(np.uint8).reshape(*shape, 3)
    depth = np.round(512 * (2 + directions[:, 2])).astype(np.uint16).reshape(shape)
    index = np.array([index_of(label, k) for label in octant(directions)]).reshape(shape)
    gone = (directions[:, 2] < -0.9).reshape(shape)
    colour[gone], depth[gone], index[gone] = 0, MISSING_DEPTH, MISSING_COLOUR
    semantic = np.stack([index >> 16, index >> 8 & 255, index & 255], axis=2).astype(np.uint8)
    stem = f"camera_{k:032x}_office_{k}_frame_equirectangular_domain"
    for kind, image in (("rgb", colour), ("depth", depth), ("semantic", semantic)):
        path = root / f"area_{area}" / "pano" / kind / f"{stem}_{kind}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms")
    (root / "assets").mkdir()
    (root / "assets/semantic_labels.json").write_text(json.dumps(semantic_labels()))
    (root / ORIGIN).write_text(json.dumps({"panoramas": 3, "complete": True}))
    for k, area in enumerate(("1", "5a", "5b")):
        write_panorama(root, area, k)
    return root


def signals(folder, name):
    return np.load(folder / f"{name}.npy").astype(np.float64)


@pytest.mark.parametrize("grid", ["icosphere3", "planar3", "icosphere4"])
def test_linear_signals_and_labels_upright_and_turned(raw, tmp_path, grid):
    prepare(raw, grid, tmp_path, seed=5)
    points = grid_points(grid)
    for prefix in ("", "rotated_"):
        rgbd, labels = signals(tmp_path, f"{prefix}rgbd"), np.load(tmp_path / f"{prefix}labels.npy")
        assert rgbd.shape == (3, 4, len(points)) and labels.shape == (3, len(points))
        for k in range(3):
            where = points @ haar_rotation(5, k) if prefix else points
            clear = where[:, 2] > -0.7  # away from the missing cap
            want = 0.5 + 0.4 * where[clear]
            np.testing.assert_allclose(rgbd[k, :3, clear], want, atol=0.02)
            want = 0.512 * (2 + where[clear, 2])
            np.testing.assert_allclose(rgbd[k, 3, clear], want, atol=0.02)
            sure = clear & (np.abs(where).min(axis=1) > np.pi / ROWS)
            np.testing.assert_array_equal(labels[k, sure], octant(where[sure]))
            gone = where[:, 2] < -0.95
            assert (labels[k, gone] == MISSING).all() and gone.any()
            assert (rgbd[k, 3, where[:, 2] < -0.99] == 0).all()
            # What is averaged near the cap is averaged over valid pixels alone.
            near = (where[:, 2] > -0.9) & (where[:, 2] < -0.8)
            np.testing.assert_allclose(rgbd[k, 3, near], 0.512 * (2 + where[near, 2]), atol=0.03)


def test_finer_images_and_meshes_converge(tmp_path):
    """The mean over a cell of a linear function is its value at the point, up to O(spacing^2)."""
    errors = []
    for rows, grid in ((64, "icosphere3"), (128, "icosphere4"), (256, "icosphere5")):
        image = pixel_directions(rows).reshape(rows, 2 * rows, 3).astype(np.float32)
        points = grid_points(grid)
        mean, some = Sampler(points).mean(image, np.ones(image.shape[:2], bool))
        assert some.all()
        errors.append(np.abs(mean - points).max())
    assert errors[0] < 0.03
    assert errors[1] < 0.4 * errors[0] and errors[2] < 0.4 * errors[1]


def test_bilinear_shares_and_seam():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    extreme = np.array([[0, 0, 1.0], [0, 0, -1], [-1, 1e-9, 0], [-1, -1e-9, 0]])
    directions = np.concatenate([directions, extreme])
    pixels, shares = bilinear(directions, 16)
    assert pixels.min() >= 0 and pixels.max() < 512 and shares.min() >= -1e-6
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-6)
    # The pixels are neighbours of the direction, across seam and poles too.
    seen = pixel_directions(16)[pixels]
    angle = np.arccos(np.clip((seen * directions).sum(axis=2), -1, 1))
    assert angle.max() < 1.5 * np.pi / 16
    exact = pixel_directions(16)
    pixels, shares = bilinear(exact, 16)
    np.testing.assert_array_equal(pixels[shares.argmax(axis=0), np.arange(512)], np.arange(512))


def test_rotations_are_haar_and_each_its_own():
    drawn = np.stack([haar_rotation(0, k) for k in range(400)])
    np.testing.assert_allclose(
        drawn @ drawn.transpose(0, 2, 1), np.tile(np.eye(3), (400, 1, 1)), atol=1e-12
    )
    assert np.abs(drawn.mean(axis=0)).max() < 0.15  # E R = 0
    assert np.abs((drawn[:, 0, 0] ** 2).mean() - 1 / 3) < 0.06


def test_quirks(raw, tmp_path):
    points = grid_points("icosphere3")
    gone = points[:, 2] < -0.95
    prepare(raw, "icosphere3", tmp_path / "a", quirks=Quirks(missing_as_clutter=True))
    prepare(raw, "icosphere3", tmp_path / "b", quirks=Quirks(missing_depth_far=True))
    prepare(raw, "icosphere3", tmp_path / "c", quirks=Quirks(black_as_unknown=True))
    prepare(raw, "icosphere3", tmp_path / "d", quirks=Quirks(depth_in_metres=True))
    everything = Quirks(missing_depth_far=True, depth_in_metres=True)
    prepare(raw, "icosphere3", tmp_path / "e", quirks=everything)
    assert (np.load(tmp_path / "a/labels.npy")[:, gone] == CLUTTER).all()
    assert (signals(tmp_path / "b", "rgbd")[:, 3, points[:, 2] < -0.99] == 5).all()
    assert (np.load(tmp_path / "c/labels.npy")[:, gone] == UNKNOWN).all()
    shown = points[:, 2] > -0.8
    metres = signals(tmp_path / "d", "rgbd")[:, 3]
    np.testing.assert_allclose(metres[0, shown], 2 + points[shown, 2], atol=0.03)
    assert (metres[:, points[:, 2] < -0.99] == 0).all()
    assert (signals(tmp_path / "e", "rgbd")[:, 3, points[:, 2] < -0.99] == 4).all()
    np.testing.assert_array_equal(depth_signal(np.array([512, 2048, 9000]), metres=True), [1, 4, 4])
    card = json.loads((tmp_path / "a/card.json").read_text())
    assert card["quirks"]["missing_as_clutter"] and card["dataset"] == "SyntheticRooms"


def test_card_counts_and_list(raw, tmp_path):
    prepare(raw, "icosphere3", tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    labels = np.load(tmp_path / "labels.npy")
    with (tmp_path / "panoramas.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["area"] for row in rows] == ["1", "5a", "5b"] and card["panoramas"] == 3
    digests = [
        hashlib.sha256("".join(map(sha256_of_file, (p.rgb, p.depth, p.semantic))).encode()).digest()
        for p in panoramas(raw)
    ]
    assert card["images_sha256"] == hashlib.sha256(b"".join(digests)).hexdigest()
    for k, area in enumerate(("1", "5a", "5b")):
        assert card["class_counts"][area] == np.bincount(labels[k], minlength=15).tolist()
    assert not list(tmp_path.glob("digests.npy")) and not list(tmp_path.glob("plan.json"))


def test_interrupted_preparation_goes_on_and_workers_change_nothing(raw, tmp_path, monkeypatch):
    prepare(raw, "icosphere3", tmp_path / "whole", workers=2)
    sample, seen = module._sample, []

    def failing(k, *rest):
        seen.append(k)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return sample(k, *rest)

    monkeypatch.setattr(module, "_sample", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, "icosphere3", tmp_path / "stopped")
    assert not (tmp_path / "stopped/card.json").exists()
    # No file has holes: whoever fills one on a full disk is killed.
    for path in (tmp_path / "stopped").glob("*.npy"):
        assert 512 * path.stat().st_blocks >= path.stat().st_size
    prepare(raw, "icosphere3", tmp_path / "stopped")
    assert seen == [0, 1, 1, 2], "the first panorama was not sampled twice"
    cards = [json.loads((tmp_path / d / "card.json").read_text()) for d in ("whole", "stopped")]
    assert cards[0] == cards[1]


def killed_at_the_third(k, *rest):
    if k == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return SAMPLE(k, *rest)


def test_a_killed_worker_is_one_line_and_the_next_start_goes_on(raw, tmp_path, monkeypatch, capsys):
    command = ["rooms", "--raw", str(raw), "--grid", "icosphere2", "--workers", "2", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_sample", killed_at_the_third)
        assert main([*command, str(tmp_path / "killed")]) == 1
    (line,) = [t for t in capsys.readouterr().err.splitlines() if not t.startswith("INFO")]
    assert line.startswith("error: a worker process was killed") and "fewer --workers" in line
    assert not (tmp_path / "killed/card.json").exists()
    for out in ("killed", "whole"):
        assert main([*command, str(tmp_path / out)]) == 0
    cards = [json.loads((tmp_path / d / "card.json").read_text()) for d in ("killed", "whole")]
    assert cards[0] == cards[1]


def test_a_full_disk_is_one_line(raw, tmp_path):
    """642 points: rgbd.npy of three panoramas has 15,536 bytes; images are smaller."""
    code = "from data_prep.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = ("rooms", "--raw", str(raw), "--grid", "icosphere3", "--out", str(tmp_path))
    done = run_with_small_files(code, 15_000, *command)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1
    prepare(raw, "icosphere3", tmp_path)
    assert (tmp_path / "card.json").exists()


def test_a_preparation_stopped_while_it_ends_can_be_run_again(raw, tmp_path, monkeypatch):
    unlink = Path.unlink

    def stopping(path, *rest, **options):
        unlink(path, *rest, **options)
        if path.name == stopper and (path.parent / "card.json").exists():
            raise KeyboardInterrupt

    for stopper in ("plan.json", "digests.npy"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", stopping)
            with pytest.raises(KeyboardInterrupt):
                prepare(raw, "icosphere2", tmp_path / stopper)
        before = json.loads((tmp_path / stopper / "card.json").read_text())
        prepare(raw, "icosphere2", tmp_path / stopper)
        assert json.loads((tmp_path / stopper / "card.json").read_text()) == before


def test_a_preparation_does_not_go_on_with_the_rooms_of_another_seed(tmp_path, monkeypatch):
    for seed in (0, 1):
        generate(tmp_path / f"raw{seed}", n=14, height=32, seed=seed)
    sample = module._sample

    def failing(k, *rest):
        if k == 7:
            raise KeyboardInterrupt
        return sample(k, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_sample", failing)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "raw0", "icosphere2", tmp_path / "out")
    for out in ("out", "fresh"):
        prepare(tmp_path / "raw1", "icosphere2", tmp_path / out)
    cards = [json.loads((tmp_path / d / "card.json").read_text()) for d in ("out", "fresh")]
    assert cards[0] == cards[1]
    assert cards[0]["generated"] == {"panoramas": 14, "height": 32, "seed": 1}


def test_generated_panoramas_that_are_not_all_there_are_refused(tmp_path):
    """Whatever is missing; folders made before there was the key "complete" are whole."""
    raw = tmp_path / "raw"
    plan = {"panoramas": 14, "height": 32, "seed": 0}
    generate(raw, n=14, height=32)
    assert json.loads((raw / ORIGIN).read_text()) == plan | {"complete": True}
    (raw / ORIGIN).write_text(json.dumps(plan | {"complete": False}))
    with pytest.raises(DataError, match="are not all generated"):
        prepare(raw, "icosphere2", tmp_path / "out")
    (raw / ORIGIN).write_text(json.dumps(plan))
    prepare(raw, "icosphere2", tmp_path / "out")
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["dataset"] == "SyntheticRooms" and card["generated"] == plan
    panoramas(raw)[3].rgb.unlink()
    with pytest.raises(DataError, match="has 13 panoramas of 14"):
        prepare(raw, "icosphere2", tmp_path / "out")
    assert json.loads((tmp_path / "out/card.json").read_text()) == card
    generate(raw, n=14, height=32)
    prepare(raw, "icosphere2", tmp_path / "out")
    assert json.loads((tmp_path / "out/card.json").read_text()) == card


def test_2d3ds_is_whole_or_refused(raw, tmp_path):
    """The published numbers: 1,413 panoramas; folds 1 to 3 test 373, 557 and 483 of them."""
    assert [sum(PANORAMAS[a] for a in FOLDS[fold]) for fold in FOLDS] == [373, 557, 483]
    nowhere = Path("nowhere")
    found = [
        Panorama(f"camera_{k}", area, nowhere, nowhere, nowhere)
        for area, count in PANORAMAS.items()
        for k in range(count)
    ]
    module._check_all_there(nowhere, found, None)
    with pytest.raises(DataError, match="area_1 in nowhere has 189 panoramas, not the 190"):
        module._check_all_there(nowhere, found[1:], None)
    with pytest.raises(DataError, match="area_6 in nowhere has 209 panoramas, not the 208"):
        module._check_all_there(nowhere, [*found, found[-1]], None)
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "raw" / ORIGIN).unlink()
    with pytest.raises(DataError, match=r"area_1 in .* has 1 panoramas, not the 190 of 2D-3D-S"):
        prepare(tmp_path / "raw", "icosphere2", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_decode_by_all_three_bytes(raw):
    classes = class_of_index(raw)
    assert classes[0] == UNKNOWN and classes[3341] == CLUTTER
    assert [label_of(k) for k in range(1, len(classes))] == classes[1:].tolist()
    for label in range(1, 14):
        for instance in (0, 1, 700, 5000):
            assert classes[index_of(label, instance)] == label
    assert index_of(3, 700) > 255, "one byte would not do"
    first = panoramas(raw)[0]
    labels = read_labels(first.semantic, classes)
    assert set(np.unique(labels)) == {*range(1, 9), MISSING}
    # The published planar loader drops the red byte: missing pixels become clutter.
    assert classes[MISSING_COLOUR & 0xFFFF] == CLUTTER


def test_folds_are_a_partition_of_the_areas():
    assert sorted(a for areas in FOLDS.values() for a in areas) == [
        "1",
        "2",
        "3",
        "4",
        "5a",
        "5b",
        "6",
    ]
    assert len(LABELS) == 15


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seed", "-1"], "not -1 and 1"),
        (["--workers", "0"], "not 0 and 0"),
        (["--grid", "cube3"], "cube3"),
    ],
)
def test_a_wrong_option_is_one_line_and_old_data_stay(raw, tmp_path, capsys, option, message):
    prepare(raw, "icosphere2", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = ["rooms", "--raw", str(raw), "--grid", "icosphere2", "--out", str(tmp_path)]
    capsys.readouterr()
    assert main([*command, *option]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_errors_are_one_line(raw, tmp_path, capsys):
    assert main(["rooms", "--raw", str(tmp_path), "--grid", "planar3", "--out", "x"]) == 1
    assert "no panoramas in" in capsys.readouterr().err
    first = panoramas(raw)[0]
    with pytest.raises(DataError, match="beyond the 5 labels"):
        read_labels(first.semantic, class_of_index(raw)[:5])
    good = first.rgb.read_bytes()
    for damaged in (good[: len(good) // 2], good[:60] + bytes(40) + good[100:]):
        (tmp_path / "damaged.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged\.png cannot be read"):
            read_rgb(tmp_path / "damaged.png")
    (tmp_path / "area_1/pano/rgb").mkdir(parents=True)
    (tmp_path / "area_1/pano/rgb/camera_x_rgb.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"camera_x_depth\.png is missing"):
        panoramas(tmp_path)
