from __future__ import annotations

import gzip
import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_prep import fetch as fetching
from data_prep.fetch import Source, SourceError, fetch, gunzip, mirror, web
from data_prep.files import DataError

CONTENT = bytes(range(256)) * 500
SHA256 = {"digits": hashlib.sha256(CONTENT).hexdigest()}


class Server:
    """A web server on the loopback interface with scripted answers: path -> list of answers, used
    up in order, the last one for ever. An answer is (status, body, announced length)."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, bytes, int]]] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                left = server.answers.get(self.path, [(404, b"", 0)])
                status, body, length = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, path: str, *answers: bytes | int | tuple[int, bytes, int]) -> None:
        self.answers[path] = [
            (200, a, len(a)) if isinstance(a, bytes) else (a, b"", 0) if isinstance(a, int) else a
            for a in answers
        ]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.001)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def dead_address():
    """An address at which nobody listens."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = http.server_address[1]
    http.server_close()
    return f"http://127.0.0.1:{port}/"


def good(name: str = "good") -> Source:
    return Source(name, lambda _: CONTENT)


def test_plain_file(server, tmp_path):
    server.answer("/digits", CONTENT)
    fetch(tmp_path / "a" / "b", SHA256, [web(server.address)])
    assert (tmp_path / "a" / "b" / "digits").read_bytes() == CONTENT
    assert os.listdir(tmp_path / "a" / "b") == ["digits"]


def test_gzipped_file_is_unpacked(server, tmp_path):
    server.answer("/digits.gz", gzip.compress(CONTENT))
    fetch(tmp_path, SHA256, [web(server.address, ".gz")])
    assert (tmp_path / "digits").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (404, "HTTP status 404"),
        (503, "HTTP status 503"),
        (b"not what was asked for", "wrong content, SHA-256"),
        (gzip.compress(CONTENT)[:-50], "truncated or damaged gzip"),
        (gzip.compress(CONTENT)[:99] + b"\xff" * 99, "truncated or damaged gzip"),
        ((200, CONTENT[:1000], len(CONTENT)), "broken download"),
    ],
)
def test_bad_answer_is_reported_and_the_next_source_used(server, tmp_path, caplog, answer, reason):
    server.answer("/digits", answer)
    fetch(tmp_path, SHA256, [web(server.address), good()])
    assert (tmp_path / "digits").read_bytes() == CONTENT
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert server.address in record.message and reason in record.message
    assert "\n" not in record.message


def test_first_source_down_second_used_and_the_dead_one_not_asked_twice(
    server, dead_address, tmp_path, monkeypatch
):
    waits = []
    monkeypatch.setattr(fetching.time, "sleep", waits.append)
    server.answer("/digits", CONTENT)
    server.answer("/copy", CONTENT)
    wanted = {**SHA256, "copy": SHA256["digits"]}
    fetch(tmp_path, wanted, [web(dead_address), web(server.address)])
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert len(waits) == fetching.ATTEMPTS - 1


@pytest.mark.parametrize("first", [503, 429, 500, (200, CONTENT[:1000], len(CONTENT))])
def test_passing_trouble_is_tried_again(server, tmp_path, caplog, first):
    server.answer("/digits", first, CONTENT)
    fetch(tmp_path, SHA256, [web(server.address)])
    assert (tmp_path / "digits").read_bytes() == CONTENT
    assert server.asked == ["/digits"] * 2
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_missing_file_is_not_tried_again(server, tmp_path):
    with pytest.raises(DataError):
        fetch(tmp_path, SHA256, [web(server.address)])
    assert server.asked == ["/digits"]


def test_all_fail_names_every_source_in_one_line(server, dead_address, tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    monkeypatch.setenv("PDO_DATA_MIRROR", str(folder))
    server.answer("/digits", b"wrong")
    sources = [*mirror("set"), web(dead_address), web(server.address)]
    with pytest.raises(DataError) as error:
        fetch(tmp_path / "out", SHA256, sources)
    message = str(error.value)
    for part in (folder / "set", dead_address, server.address, "digits", "PDO_DATA_MIRROR"):
        assert str(part) in message
    assert "no connection" in message and "wrong content" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_no_source_at_all(tmp_path):
    with pytest.raises(DataError, match="no source to try"):
        fetch(tmp_path, SHA256, [])


def test_right_file_in_the_folder_needs_no_source(tmp_path):
    (tmp_path / "digits").write_bytes(CONTENT)
    fetch(tmp_path, SHA256, [Source("never", lambda _: pytest.fail("asked"))])


def test_wrong_file_in_the_folder_is_replaced_with_a_warning(tmp_path, caplog):
    (tmp_path / "digits").write_bytes(b"wrong")
    fetch(tmp_path, SHA256, [good()])
    assert (tmp_path / "digits").read_bytes() == CONTENT
    assert f"{tmp_path / 'digits'} has the wrong content" in caplog.text


def test_wrong_file_in_the_folder_and_no_source(tmp_path):
    path = tmp_path / "digits"
    path.write_bytes(b"wrong")
    with pytest.raises(DataError) as error:
        fetch(tmp_path, SHA256, [])
    assert f"the file {path} already there has the wrong content: delete it" in str(error.value)
    assert path.read_bytes() == b"wrong"
    assert os.listdir(tmp_path) == ["digits"]


def test_mirror_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PDO_DATA_MIRROR", raising=False)
    assert mirror("set") == []
    monkeypatch.setenv("PDO_DATA_MIRROR", str(tmp_path))
    (tmp_path / "set").mkdir()
    (source,) = mirror("set")
    with pytest.raises(SourceError):
        source.read("digits")
    (tmp_path / "set" / "digits").write_bytes(CONTENT)
    assert source.read("digits") == CONTENT
    (tmp_path / "set" / "digits.gz").write_bytes(gzip.compress(CONTENT))
    fetch(tmp_path / "out", SHA256, [source])
    assert (tmp_path / "out" / "digits").read_bytes() == CONTENT


def test_files_fetched_before_a_failure_stay(tmp_path):
    def read(name: str) -> bytes:
        if name == "digits":
            return CONTENT
        raise SourceError("no such file")

    with pytest.raises(DataError, match="no such file"):
        fetch(tmp_path, {**SHA256, "other": "0" * 64}, [Source("half", read)])
    assert os.listdir(tmp_path) == ["digits"]


def test_gunzip():
    assert gunzip(CONTENT) == CONTENT
    assert gunzip(gzip.compress(CONTENT)) == CONTENT
    assert gunzip(b"") == b""


def test_wheel_that_does_not_exist_is_a_reason_not_a_crash(monkeypatch, tmp_path):
    for variable in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", tmp_path.as_uri())
    with pytest.raises(SourceError, match=r"pip: .*no-such-wheel") as error:
        fetching.wheel_member("no-such-wheel==1.0", "a.txt")
    assert "\n" not in str(error.value)
