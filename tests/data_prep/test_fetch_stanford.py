"""Fetching 2D-3D-S from a loopback server or a mirror: resumed, verified, safely unpacked."""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from data_prep import fetch_stanford as module
from data_prep.__main__ import main
from data_prep.fetch_stanford import download, extract, fetch_stanford, why_not_available
from data_prep.files import DataError
from data_prep.stanford import AREAS, panoramas
from data_prep.synthetic_rooms import semantic_labels

STEM = "camera_x_office_1_frame_equirectangular_domain"


def archive(area, extra=()):
    """A tar as published: panoramas among other things; `extra`: more members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        names = [f"area_{area}/pano/{k}/{STEM}_{k}.png" for k in ("rgb", "depth", "semantic")]
        names += [f"area_{area}/data/rgb/camera_y_rgb.png", f"area_{area}/pano/rgb/readme.txt"]
        for member in (*names, *extra):
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = 5000 if info.isfile() else 0
            tar.addfile(info, io.BytesIO(bytes(5000)) if info.isfile() else None)
    return content.getvalue()


class Server:
    """Serves files, with byte `ranges`; the first answers to a file in `cut` stop half-way."""

    def __init__(self):
        self.files, self.cut, self.asked, self.ranges = {}, {}, [], True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                content = server.files.get(self.path)
                wanted = self.headers.get("Range")
                server.asked.append((self.command, self.path, wanted))
                if content is None:
                    self.send_error(404)
                    return
                wanted = wanted if server.ranges else None
                start = int(wanted[6:-1]) if wanted else 0
                if start >= len(content) and start:
                    self.send_error(416)
                    return
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                if self.command == "HEAD":
                    return
                stop = len(content)
                if server.cut.get(self.path, 0):
                    server.cut[self.path] -= 1
                    stop = start + (len(content) - start) // 2
                self.wfile.write(content[start:stop])

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    server = Server()
    for area in AREAS:
        server.files[f"/area_{area}_no_xyz.tar"] = archive(area)
    server.files["/semantic_labels.json"] = json.dumps(semantic_labels()).encode()
    digests = {
        area: hashlib.sha256(server.files[f"/area_{area}_no_xyz.tar"]).hexdigest() for area in AREAS
    }
    monkeypatch.delenv("PDO_DATA_MIRROR", raising=False)
    monkeypatch.setattr(module, "ARCHIVES", server.address)
    monkeypatch.setattr(module, "LABEL_FILE", server.address)
    monkeypatch.setattr(module, "SHA256", digests)
    monkeypatch.setattr(module, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(module, "CHUNK", 512)
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_all_areas_and_nothing_but_panoramas(server, tmp_path):
    fetch_stanford(tmp_path, accept_terms=True)
    assert [p.area for p in panoramas(tmp_path)] == list(AREAS)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert len(files) == 3 * 7 + 1 and "assets/semantic_labels.json" in files
    asked = len(server.asked)
    fetch_stanford(tmp_path)  # all there: neither terms nor server are needed
    assert len(server.asked) == asked


def test_a_cut_download_goes_on_where_it_stopped(server, tmp_path):
    name = "area_1_no_xyz.tar"
    content = server.files[f"/{name}"]
    server.cut[f"/{name}"] = 1
    download(server.address + name, tmp_path / name)
    assert (tmp_path / name).read_bytes() == content
    ranges = [wanted for _, _, wanted in server.asked]
    assert ranges == ["bytes=0-", f"bytes={len(content) // 2}-"]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    name = "area_1_no_xyz.tar"
    server.cut[f"/{name}"], server.ranges = 1, False
    download(server.address + name, tmp_path / name)
    assert (tmp_path / name).read_bytes() == server.files[f"/{name}"]


def test_an_archive_is_not_downloaded_again_if_its_extraction_was_stopped(
    server, tmp_path, monkeypatch
):
    def stopping(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "extract", stopping)
        with pytest.raises(KeyboardInterrupt):
            fetch_stanford(tmp_path, accept_terms=True)
    fetch_stanford(tmp_path, accept_terms=True)
    assert [path for _, path, _ in server.asked].count("/area_1_no_xyz.tar") == 1
    assert len(panoramas(tmp_path)) == 7 and not (tmp_path / "download").exists()


def test_archives_that_the_user_put_there_are_used_and_kept(server, tmp_path):
    for area in AREAS:
        name = f"area_{area}_no_xyz.tar"
        (tmp_path / name).write_bytes(server.files[f"/{name}"])
    assert why_not_available(tmp_path, accept_terms=False) == []
    fetch_stanford(tmp_path)
    assert len(panoramas(tmp_path)) == 7 and len(list(tmp_path.glob("*.tar"))) == 7
    assert [path for _, path, _ in server.asked] == ["/semantic_labels.json"]


def test_some_areas_alone(server, tmp_path, capsys):
    command = ["fetch", "stanford", "--accept-terms", "--out", str(tmp_path), "--areas"]
    assert main([*command, "3", "5a"]) == 0
    assert [p.area for p in panoramas(tmp_path)] == ["3", "5a"]
    assert len(server.asked) == 3
    with pytest.raises(SystemExit):
        main([*command, "7"])
    assert "invalid choice: '7'" in capsys.readouterr().err


def test_a_download_that_keeps_failing_is_kept_for_the_next_start(server, tmp_path):
    name = "area_1_no_xyz.tar"
    server.cut[f"/{name}"] = 3
    with pytest.raises(DataError, match=r"could not download .* run the same command again"):
        download(server.address + name, tmp_path / name)
    part = tmp_path / f"{name}.part"
    had = part.stat().st_size
    assert had > 0 and not (tmp_path / name).exists()
    download(server.address + name, tmp_path / name)
    assert server.asked[-1][2] == f"bytes={had}-"
    assert (tmp_path / name).read_bytes() == server.files[f"/{name}"]


def test_wrong_content_is_refused(server, tmp_path):
    server.files["/area_2_no_xyz.tar"] = archive("2", extra=["area_2/pano/rgb/more_rgb.png"])
    with pytest.raises(DataError, match=r"area_2_no_xyz.tar has the SHA-256 .* delete it"):
        fetch_stanford(tmp_path, accept_terms=True)
    assert (tmp_path / "area_1").is_dir() and not (tmp_path / "area_2").exists()
    server.files["/semantic_labels.json"] = b"[]"
    with pytest.raises(DataError, match="not the list of 9816 labels"):
        module._fetch_labels(tmp_path)


def test_nothing_is_unpacked_outside(tmp_path):
    evil = tarfile.TarInfo(f"area_1/pano/rgb/{STEM}_evil.png")
    evil.type, evil.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo(f"area_1/pano/rgb/{STEM}_hard.png")
    hard.type, hard.linkname = tarfile.LNKTYPE, "../../../../etc/passwd"
    device = tarfile.TarInfo(f"area_1/pano/rgb/{STEM}_device.png")
    device.type = tarfile.CHRTYPE
    way_out = tarfile.TarInfo("area_1/pano/semantic")
    way_out.type, way_out.linkname = tarfile.SYMTYPE, str(tmp_path)
    members = ["../outside.png", "area_1/pano/rgb/../../../../outside.png", "/abs.png"]
    members += [evil, hard, device, way_out, "area_1/pano/semantic/late.png"]
    path = tmp_path / "in" / "area_1.tar"
    path.parent.mkdir()
    path.write_bytes(archive("1", extra=members))
    extract(path, "1", tmp_path / "in")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    found = [p.name for p in (tmp_path / "in/area_1").rglob("*") if not p.is_dir()]
    good = [f"{STEM}_{k}.png" for k in ("rgb", "depth", "semantic")]
    assert sorted(found) == sorted([*good, "late.png"])


def test_a_damaged_archive_leaves_no_area(tmp_path):
    (tmp_path / "a.tar").write_bytes(archive("1")[:7000])
    with pytest.raises(DataError, match=r"a.tar is damaged"):
        extract(tmp_path / "a.tar", "1", tmp_path)
    assert not (tmp_path / "area_1").exists()
    (tmp_path / "b.tar").write_bytes(archive("2"))
    with pytest.raises(DataError, match="has no panoramas of area 1"):
        extract(tmp_path / "b.tar", "1", tmp_path)


def test_terms_come_first(server, tmp_path, capsys):
    assert main(["fetch", "stanford", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "terms of use" in error and "--accept-terms" in error and error.count("\n") == 1
    assert not server.asked


def test_a_small_disk_is_said_with_numbers(server, tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"has 0.0 GB free, area_1_no_xyz.tar needs"):
        fetch_stanford(tmp_path, accept_terms=True)


def test_mirror_folder_with_areas_or_archives(server, tmp_path, monkeypatch):
    mirror = tmp_path / "mirror" / "stanford"
    monkeypatch.setenv("PDO_DATA_MIRROR", str(mirror.parent))
    mirror.mkdir(parents=True)
    for area in AREAS[:3]:
        (mirror / f"area_{area}_no_xyz.tar").write_bytes(server.files[f"/area_{area}_no_xyz.tar"])
    for area in AREAS[3:]:
        path = mirror / f"{area}.tar"
        path.write_bytes(server.files[f"/area_{area}_no_xyz.tar"])
        extract(path, area, mirror)
    (mirror / "assets").mkdir()
    (mirror / "assets/semantic_labels.json").write_text(json.dumps(semantic_labels()))
    assert why_not_available(tmp_path / "raw", accept_terms=False) == []
    fetch_stanford(tmp_path / "raw")
    assert len(panoramas(tmp_path / "raw")) == 7 and not server.asked
    assert (tmp_path / "raw/area_6").is_symlink() and not (tmp_path / "raw/area_1").is_symlink()


def test_a_mirror_that_moved_and_an_area_that_is_none(server, tmp_path, monkeypatch):
    """Links into the old place are replaced; folders without panoramas are nobody's area."""
    raw = tmp_path / "raw"
    for place in ("old", "new"):
        monkeypatch.setenv("PDO_DATA_MIRROR", str(tmp_path / place))
        for area in AREAS:
            (tmp_path / place / f"stanford/area_{area}/pano/rgb").mkdir(parents=True)
        fetch_stanford(raw)
        assert os.readlink(raw / "area_6") == str(tmp_path / place / "stanford/area_6")
        shutil.rmtree(tmp_path / "old", ignore_errors=True)
        assert (why_not_available(raw, accept_terms=False) == []) == (place == "new")
    (tmp_path / "new/stanford/area_6/pano/rgb").rmdir()
    (tmp_path / "new/stanford/area_6/pano").rmdir()
    assert "not all of area_1 to area_6" in why_not_available(raw, accept_terms=False)[0]
    with pytest.raises(DataError, match="area_6 is there but has no pano: delete it"):
        fetch_stanford(raw, accept_terms=True)


def test_truncated_labels_are_replaced_from_the_mirror(server, tmp_path, monkeypatch):
    right = json.dumps(semantic_labels()).encode()
    path = tmp_path / "raw/assets/semantic_labels.json"
    mirror = tmp_path / "mirror/stanford/assets"
    mirror.mkdir(parents=True)
    monkeypatch.setenv("PDO_DATA_MIRROR", str(tmp_path / "mirror"))
    for name, content in (("json", right), ("json.gz", gzip.compress(right))):
        (mirror / f"semantic_labels.{name}").write_bytes(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(right[:1000])
        module._fetch_labels(tmp_path / "raw")
        assert path.read_bytes() == right and not server.asked
    for source in mirror.iterdir():  # a truncated mirror is no reason to give up
        source.write_bytes(right[:1000])
    path.unlink()
    module._fetch_labels(tmp_path / "raw")
    assert path.read_bytes() == right and len(server.asked) == 1


def test_why_not_available_names_every_source(server, tmp_path, monkeypatch):
    reasons = why_not_available(tmp_path, accept_terms=False)
    assert reasons[0] == "PDO_DATA_MIRROR is not set" and "terms of use" in reasons[1]
    assert why_not_available(tmp_path, accept_terms=True) == []  # the server has it
    server.files.pop("/area_1_no_xyz.tar")
    assert "HTTP status 404" in why_not_available(tmp_path, accept_terms=True)[1]

    def offline(*_, **__):
        raise requests.ConnectionError

    monkeypatch.setattr(module.requests, "head", offline)
    assert "no connection (ConnectionError)" in why_not_available(tmp_path, accept_terms=True)[1]
