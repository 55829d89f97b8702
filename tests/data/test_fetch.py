"""Data sets fetched from a server, which may break off, know no ranges, or send something else."""

import gzip
import hashlib
import json
import logging
import struct
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import numpy as np
import pytest
import requests

from scoremle import data
from scoremle.cli import main as cli
from scoremle.cli.commands.data import FETCHED
from scoremle.data.fetch import ORIGINS, Download
from scoremle.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 28, 28), np.uint8)


def idx(images: np.ndarray) -> bytes:
    return gzip.compress(struct.pack(">4I", 0x803, *images.shape) + images.tobytes(), mtime=0)


FILES = {
    "train-images-idx3-ubyte.gz": idx(IMAGES[:200]),
    "t10k-images-idx3-ubyte.gz": idx(IMAGES[200:]),
}
FIRST = FILES["train-images-idx3-ubyte.gz"]


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``sends`` is how many bytes an answer has before it breaks off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.ranges, self.lengths = dict(FILES), True, True
        self.sends: int | None = None
        self.left = threading.Event()  # by a client that had enough
        self.asked: list[tuple[str, str]] = []


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, asked = self.path.rsplit("/", 1)[-1], self.headers["Range"]
        self.server.asked.append((name, asked))
        if name not in self.server.files:
            return self.send_error(404)
        content = self.server.files[name]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if self.server.ranges else 0
        if start > len(content):
            return self.send_error(416)
        self.send_response(206 if self.server.ranges else 200)
        if self.server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        try:
            self.wfile.write(content[start:][: self.server.sends])
        except ConnectionError:
            self.server.left.set()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREMLE_DATA", str(tmp_path / "cache"))
    logging.getLogger("urllib3").setLevel("ERROR")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        listed = {name: (len(f), hashlib.sha256(f).hexdigest()) for name, f in FILES.items()}
        origin = Download(f"http://127.0.0.1:{server.server_port}/sets", listed)
        monkeypatch.setitem(ORIGINS, "mnist", origin)
        yield server
        server.shutdown()
        thread.join()


def test_the_command_brings_what_load_then_finds(server, capsys):
    assert cli.main(["data", "fetch", "mnist", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"] == sorted(FILES)
    images = data.load("mnist")
    np.testing.assert_array_equal(images.train[..., 0], IMAGES[:200])
    np.testing.assert_array_equal(images.test[..., 0], IMAGES[200:])
    asked = len(server.asked)
    data.fetch("MNIST")
    assert len(server.asked) == asked == 2  # what is there is not fetched again


@pytest.mark.parametrize("ranges", [True, False])
def test_it_goes_on_where_it_broke_off(server, ranges):
    server.ranges, server.sends = ranges, 50_000
    with pytest.raises(UserError, match=f"{len(FIRST)} bytes"):
        data.fetch("mnist")
    server.sends = None
    folder = data.fetch("mnist")
    assert server.asked[1] == ("train-images-idx3-ubyte.gz", "bytes=50000-")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize(
    "wrong", [FIRST[:-1] + b"x", FIRST + b"more", FIRST[:-1]], ids=["other", "longer", "shorter"]
)
def test_what_is_not_the_published_file_is_not_kept(server, wrong, lengths):
    """A server need not state the length of what it sends."""
    server.files["train-images-idx3-ubyte.gz"], server.lengths = wrong, lengths
    words = "broke off" if len(wrong) < len(FIRST) else "SHA-256 differs"
    if lengths and len(wrong) != len(FIRST):
        words = "published file, which"
    with pytest.raises(UserError, match=words):
        data.fetch("mnist")
    with pytest.raises(UserError, match="no default place"):
        data.load("mnist")
    server.files = dict(FILES)
    folder = data.fetch("mnist")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES


def test_a_page_of_a_portal_is_not_the_head_of_a_file(server):
    server.sends = 50_000
    with pytest.raises(UserError, match="broke off"):
        data.fetch("mnist")
    server.files["train-images-idx3-ubyte.gz"] = b"<html>Sign in</html>"
    for server.ranges in (False, True):
        with pytest.raises(UserError, match="published file, which"):
            data.fetch("mnist")
    server.files, server.sends = dict(FILES), None
    assert data.fetch("mnist") and server.asked[-2][1] == "bytes=50000-"


def test_no_more_is_read_than_the_file_has(server):
    server.files["train-images-idx3-ubyte.gz"], server.lengths = FIRST + bytes(1 << 26), False
    with pytest.raises(UserError, match="SHA-256 differs"):
        data.fetch("mnist")
    assert server.left.wait(20)


def test_each_failure_is_a_line(server, capfd, monkeypatch):
    def line() -> str:
        assert cli.main(["data", "fetch", "mnist"]) == 2
        text = capfd.readouterr().err
        assert text.startswith("scoremle: ") and text.count("\n") == 1
        return text

    del server.files["t10k-images-idx3-ubyte.gz"]
    assert "404" in line()
    server.files["t10k-images-idx3-ubyte.gz"] = FIRST  # longer, and another
    assert "--path=PLACE" in line()
    with monkeypatch.context() as patch:
        patch.setattr("requests.get", Mock(side_effect=requests.TooManyRedirects("in a circle")))
        assert "TooManyRedirects: in a circle" in line()
    server.server_close()
    assert "no connection" in line()


def test_two_do_not_write_to_one_file(server):
    """The second is refused while the first waits for its server."""
    asked, comes = threading.Event(), threading.Event()

    class Slow(dict):
        def __getitem__(self, name):
            asked.set()
            comes.wait(20)
            return FILES[name]

    server.files = Slow(FILES)
    first = threading.Thread(target=data.fetch, args=("mnist",))
    first.start()
    assert asked.wait(20)
    with pytest.raises(UserError, match="another process"):
        data.fetch("mnist")
    comes.set()
    first.join()
    assert {file.name: file.read_bytes() for file in data.fetch("mnist").iterdir()} == FILES


def test_a_training_without_its_data_names_the_command(server, monkeypatch):
    assert tuple(ORIGINS) == FETCHED
    for name in FETCHED:
        monkeypatch.setitem(data.DATASETS, name, replace(data.DATASETS[name], place=""))
        with pytest.raises(UserError, match=f"data fetch {name}"):
            data.load(name)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UserError, match=r"scoremle\[fetch\]"):
        data.fetch("mnist")
