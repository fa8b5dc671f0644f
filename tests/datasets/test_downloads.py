"""Downloads, from a server of this machine only: resumed, checked, from the next mirror, and refused."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers.command_line import call, refused
from helpers.own_data import idx_bytes, own_arrays

from supermask.core.errors import SystemFailure, UserError
from supermask.datasets import DATASETS, downloads
from supermask.datasets.downloads import SOURCES, RemoteFile, Source, download
from supermask.datasets.progress import progress_listener

CONTENT = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `files`; `mode` says which fault it has."""

    files: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[tuple[str, str | None]]] = []
    mode: ClassVar[str] = ""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append((self.path, wanted))
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        if self.mode == "busy" and len(self.requests) < 2:
            self.send_error(503)
            return
        start = int(wanted[6:-1]) if wanted and self.mode != "no ranges" else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) - start
        if self.mode == "cut" and len(self.requests) < 2:
            end //= 3
        self.wfile.write(content[start : start + end])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("SUPERMASK_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Handler, "files", {})
    monkeypatch.setattr(Handler, "requests", [])
    monkeypatch.setattr(Handler, "mode", "")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture
def one_file(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make `kmnist` a dataset of one file, served at /kmnist/file.gz."""
    file = RemoteFile("file.gz", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(SOURCES, "kmnist", Source(("http://127.0.0.1:1/",), (file,), "kmnist"))
    Handler.files["/kmnist/file.gz"] = CONTENT
    return server


def test_a_file_is_downloaded_checked_and_kept(one_file: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with progress_listener(lambda *report: seen.append(report)):
        (path,) = download("kmnist", tmp_path, one_file)
    assert path == tmp_path / "kmnist" / "file.gz" and path.read_bytes() == CONTENT
    assert seen[-1] == ("downloading file.gz", len(CONTENT), len(CONTENT))
    assert list(path.parent.iterdir()) == [path]
    assert download("kmnist", tmp_path, one_file) == [path]
    assert len(Handler.requests) == 1, "a file that is there is not downloaded again"


def test_the_mirror_may_be_set_by_a_variable(one_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMASK_MIRROR", one_file + "/")
    assert download("kmnist", tmp_path)[0].read_bytes() == CONTENT


def test_an_interrupted_download_resumes(one_file: str, tmp_path: Path) -> None:
    part = tmp_path / "kmnist" / "file.gz.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT[:1000])
    assert download("kmnist", tmp_path, one_file)[0].read_bytes() == CONTENT
    assert Handler.requests == [("/kmnist/file.gz", "bytes=1000-")]
    assert not part.exists()


def test_a_cut_connection_is_resumed_at_once(one_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "mode", "cut")
    assert download("kmnist", tmp_path, one_file)[0].read_bytes() == CONTENT
    assert Handler.requests == [("/kmnist/file.gz", None), ("/kmnist/file.gz", f"bytes={len(CONTENT) // 3}-")]


def test_a_busy_server_is_asked_again(one_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "mode", "busy")
    assert download("kmnist", tmp_path, one_file)[0].read_bytes() == CONTENT


@pytest.mark.parametrize("present", [CONTENT[:1000], b"wrong" * 100, CONTENT, CONTENT + b"x"], ids=len)
@pytest.mark.parametrize("mode", ["", "no ranges"])
def test_whatever_is_there_the_published_bytes_result(
    one_file: str, tmp_path: Path, present: bytes, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "mode", mode)
    part = tmp_path / "kmnist" / "file.gz.part"
    part.parent.mkdir()
    part.write_bytes(present)
    assert download("kmnist", tmp_path, one_file)[0].read_bytes() == CONTENT


def test_other_bytes_than_the_published_ones_never_get_the_name(one_file: str, tmp_path: Path) -> None:
    Handler.files["/kmnist/file.gz"] = CONTENT[:-1] + b"x"
    with pytest.raises(SystemFailure) as caught:
        download("kmnist", tmp_path, one_file)
    digest = hashlib.sha256(CONTENT).hexdigest()[:12]
    assert f", not {digest}" in str(caught.value) and "another mirror (--mirror or SUPERMASK_MIRROR)" in str(
        caught.value
    )
    assert list((tmp_path / "kmnist").iterdir()) == []


def test_the_next_mirror_is_used(one_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrors = (f"{one_file}/absent/", f"{one_file}/kmnist/")
    monkeypatch.setitem(SOURCES, "kmnist", replace(SOURCES["kmnist"], mirrors=mirrors))
    assert download("kmnist", tmp_path)[0].read_bytes() == CONTENT
    assert [path for path, _ in Handler.requests] == ["/absent/file.gz", "/kmnist/file.gz"]


def test_a_server_that_does_not_answer_is_one_message(tmp_path: Path, one_file: str) -> None:
    ended = call("data", "get", "kmnist", "--out", tmp_path, "--mirror", "http://127.0.0.1:1")
    error = refused(ended, status=1)
    assert "file.gz could not be downloaded: http://127.0.0.1:1/kmnist/: " in error and error.count("\n") == 1


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://host/", "host", "http://", "http://a\nb"])
def test_other_addresses_are_refused(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a mirror: give an address that begins with http"):
        download("mnist", tmp_path, mirror)


def test_a_file_of_another_content_is_not_replaced(one_file: str, tmp_path: Path) -> None:
    path = tmp_path / "kmnist" / "file.gz"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="is there and is not the published file"):
        download("kmnist", tmp_path, one_file)
    assert path.read_bytes() == b"mine"


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    for name in ("digits", "mnits", "../mnist", ""):
        assert "is not a dataset to download" in refused(call("data", "get", name, "--out", tmp_path))


def test_a_file_that_is_too_large_is_refused(one_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_BYTES", 1000)
    with pytest.raises(SystemFailure, match="more than the 1,000"):
        download("kmnist", tmp_path, one_file)


def test_a_part_that_cannot_be_written_is_named(one_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kmnist" / "file.gz.part").mkdir(parents=True)
    with pytest.raises((SystemFailure, UserError), match=r"file\.gz\.part"):
        download("kmnist", tmp_path, one_file)


def test_emnist_is_unpacked_and_read(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SUPERMASK_DATA", str(tmp_path / "data"))
    arrays = own_arrays(20, 8, (4, 4), 3)
    stems = ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for stem, key in zip(stems, ("x_train", "y_train", "x_test", "y_test"), strict=True):
            archive.writestr(f"gzip/emnist-balanced-{stem}-ubyte.gz", gzip.compress(idx_bytes(arrays[key])))
        archive.writestr("../../outside", "x")
    source = SOURCES["emnist-balanced"]
    file = RemoteFile("gzip.zip", hashlib.sha256(buffer.getvalue()).hexdigest())
    monkeypatch.setitem(SOURCES, "emnist-balanced", replace(source, files=(file,)))
    monkeypatch.setitem(SOURCES, "emnist-letters", replace(SOURCES["emnist-letters"], files=(file,)))
    Handler.files["/emnist-balanced/gzip.zip"] = buffer.getvalue()
    ended = call("data", "get", "emnist-balanced", "--mirror", server)
    assert ended.status == 0 and ended.out.count(" bytes\n") == 4
    assert not list(tmp_path.rglob("outside"))
    spec = replace(DATASETS["emnist-balanced"], image_shape=(1, 4, 4), training_images=20, test_images=8)
    from supermask.datasets.loading import load_with_spec

    images = load_with_spec(replace(spec, validation_images=2))
    assert images.train_images[:, 0].tolist() == arrays["x_train"].transpose(0, 2, 1).tolist()
    Handler.files["/emnist-letters/gzip.zip"] = buffer.getvalue()
    with pytest.raises(SystemFailure, match=r"does not hold emnist-letters-train-images-idx3-ubyte\.gz"):
        download("emnist-letters", tmp_path / "data", server)


def test_every_source_is_complete() -> None:
    assert set(SOURCES) == set(DATASETS) - {"digits"}
    for source in SOURCES.values():
        assert all(mirror.startswith(("https://", "http://")) and mirror.endswith("/") for mirror in source.mirrors)
        assert all(len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef") for file in source.files)
        assert len(source.files) in (1, 2, 4)
        assert all("/" not in name for name in [*source.members, source.folder, *(file.name for file in source.files)])
