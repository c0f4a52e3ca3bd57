"""Fetching DAVIS, tried against a small archive on a local server."""

from __future__ import annotations

import hashlib
import http.server
import io
import shutil
import threading
import zipfile

import pytest

from distracting_envs import download, videos
from distracting_envs.download import DownloadError, download_davis, missing_clips


class Server:
    """Serves one archive, with ranges; may be told to cut the next answers short."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.cuts: list[int] = []
        self.ranges: list[str | None] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                owner.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
                body = owner.content[start:]
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: owner.cuts.pop(0)] if owner.cuts else body)

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/davis.zip"

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def archive(davis_root) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in sorted(davis_root.rglob("*.jpg")):
            file.write(path, path.relative_to(davis_root.parent))
        file.writestr("DAVIS/Annotations/480p/bear/00000.png", b"not needed")
    return buffer.getvalue()


@pytest.fixture
def server(archive, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "DAVIS_BYTES", len(archive))
    server = Server(archive)
    yield server
    server.close()


def fetch(server, folder):
    checksum = hashlib.sha256(server.content).hexdigest()
    return download_davis(folder, url=server.url, sha256=checksum, progress=False)


def test_davis_is_fetched_once_unpacked_and_used_without_being_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DCS_CACHE", str(tmp_path))
    root = fetch(server, None)
    assert root == fetch(server, None)
    assert len(server.ranges) == 1
    assert [clip.name for clip in videos.open_clips(None, "train", 60)] == [
        clip.name for clip in videos.open_clips(root, "train", 60)
    ]
    assert root.is_relative_to(tmp_path)
    assert not (root / "Annotations").exists()
    assert not list((root.parent / "downloads").iterdir())


def test_an_interrupted_download_is_resumed(server, tmp_path):
    server.cuts = [2 * 65536]
    with pytest.raises(DownloadError, match="run the command again"):
        fetch(server, tmp_path)
    assert not (tmp_path / "DAVIS").exists()
    assert missing_clips(fetch(server, tmp_path)) == []
    assert server.ranges == [None, "bytes=131072-"]


def test_missing_clips_are_added_and_all_else_is_left_alone(server, tmp_path):
    root = fetch(server, tmp_path)
    frames = root / "JPEGImages" / "480p"
    shutil.rmtree(frames / "bear")
    kept = [root / "Annotations" / "own.png", frames / "boat" / "own.txt", frames / "own" / "0.jpg"]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"own")
    assert missing_clips(fetch(server, tmp_path)) == []
    assert list((frames / "bear").iterdir())
    assert [path.read_bytes() for path in kept] == [b"own"] * 3
    assert sorted(path.name for path in root.iterdir()) == ["Annotations", "JPEGImages"]


def test_a_wrong_checksum_is_refused_and_nothing_is_left(server, tmp_path):
    with pytest.raises(DownloadError, match="checksum"):
        download_davis(tmp_path, url=server.url, sha256="0" * 64, progress=False)
    assert not (tmp_path / "DAVIS").exists()
    assert missing_clips(fetch(server, tmp_path)) == []


def test_too_little_room_and_no_network_are_said_and_what_to_do(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(download, "DAVIS_BYTES", 10**18)
        with pytest.raises(DownloadError, match="GB free"):
            fetch(server, tmp_path)
    assert server.ranges == []
    server.close()
    with pytest.raises(DownloadError, match=r"cannot fetch .*video_path or DCS_VIDEOS"):
        fetch(server, tmp_path)
