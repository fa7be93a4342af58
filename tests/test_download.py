"""The downloader against a local server that breaks off, refuses ranges, or sends other bytes."""

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from training.corpora import download as module
from training.corpora.__main__ import main
from training.corpora.download import RemoteFile, download, download_corpus, unpack, zenodo_files
from universal_model_hub.errors import (
    AccessError,
    DownloadError,
    IntegrityError,
    NotFoundError,
)

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Server:
    """Serves files; ``faults`` are used up one a request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/file": CONTENT}
        self.faults: list[str] = []
        self.requests: list[tuple[str, str | None]] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request, with the next fault if one is left."""
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        fault = self.faults.pop(0) if self.faults else ""
        if fault.isdigit():
            handler.send_error(int(fault))
            return
        if handler.path not in self.files:
            handler.send_error(404)
            return
        data = self.files[handler.path]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(data) and wanted:
            handler.send_error(416)
            return
        if start and fault != "no range":
            handler.send_response(206)
            place = start + 7 if fault == "other place" else start
            handler.send_header("Content-Range", f"bytes {place}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
            start = 0
        body = data[start:]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if fault == "drop" else body)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        yield state


@contextmanager
def running(http: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield http
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def remote(server: Server, **changes: Any) -> RemoteFile:
    values = {"name": "f.bin", "url": f"{server.url}/file", "md5": MD5, "size": len(CONTENT)}
    return RemoteFile(**{**values, **changes})


def fetched(server: Server, folder: Path, **changes: Any) -> Path:
    return download(remote(server, **changes), folder, sleep=lambda seconds: None)


def test_file_arrives_whole(server, tmp_path):
    path = fetched(server, tmp_path)

    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["f.bin"]


def test_file_that_is_there_is_not_fetched_again(server, tmp_path):
    fetched(server, tmp_path)
    fetched(server, tmp_path)

    assert len(server.requests) == 1


def test_dropped_connection_is_continued_where_it_broke(server, tmp_path):
    server.faults = ["drop", "drop"]

    assert fetched(server, tmp_path).read_bytes() == CONTENT
    starts = [int((wanted or "bytes=0-")[6:-1]) for _, wanted in server.requests]
    assert starts == sorted(set(starts))
    assert starts[1] > len(CONTENT) // 2 - module.CHUNK


def test_next_run_continues_what_the_last_one_left(server, tmp_path):
    server.faults = ["drop"]
    with pytest.raises(DownloadError, match="same command again"):
        download(remote(server), tmp_path, tries=1)
    assert not (tmp_path / "f.bin").exists()

    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] == f"bytes={len(CONTENT) // 2 // module.CHUNK * module.CHUNK}-"


def test_server_without_ranges_starts_over(server, tmp_path):
    server.faults = ["drop", "no range"]

    assert fetched(server, tmp_path).read_bytes() == CONTENT


def test_server_that_continues_elsewhere_is_not_believed(server, tmp_path):
    server.faults = ["drop", "other place"]

    assert fetched(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] is None


def test_leftover_longer_than_the_file_is_discarded(server, tmp_path):
    (tmp_path / ".f.bin.part").write_bytes(CONTENT + b"more")

    assert fetched(server, tmp_path, size=None).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_changed_content_is_refused_and_deleted(server, tmp_path, size):
    server.files["/file"] = CONTENT[:-1] + b"!"

    with pytest.raises(IntegrityError, match="md5"):
        fetched(server, tmp_path, size=size)
    assert list(tmp_path.iterdir()) == []


def test_wrong_size_is_refused(server, tmp_path):
    server.files["/file"] = CONTENT + b"!"

    with pytest.raises(IntegrityError, match="512,001 bytes instead of 512,000"):
        fetched(server, tmp_path)


def test_damaged_file_on_disk_is_fetched_again(server, tmp_path):
    (tmp_path / "f.bin").write_bytes(b"old")

    assert fetched(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "error"), [("404", NotFoundError), ("403", AccessError), ("401", AccessError)]
)
def test_refusals_are_not_tried_again(server, tmp_path, status, error):
    server.faults = [status]

    with pytest.raises(error):
        fetched(server, tmp_path)
    assert len(server.requests) == 1


def test_busy_server_is_asked_again_with_growing_pauses(server, tmp_path):
    server.faults = ["503", "429", "500"]
    pauses: list[float] = []

    path = download(remote(server), tmp_path, sleep=pauses.append)
    assert path.read_bytes() == CONTENT
    assert pauses == [1.0, 2.0, 4.0]


def test_server_that_is_not_there(tmp_path):
    file = RemoteFile(name="f", url="http://127.0.0.1:9/f", md5=MD5)

    with pytest.raises(DownloadError, match="3 broken connections"):
        download(file, tmp_path, tries=3, sleep=lambda seconds: None)


def record(server: Server, files: dict[str, bytes]) -> bytes:
    """A Zenodo record with these files, and the files on the server."""
    entries = []
    for name, data in files.items():
        server.files[f"/content/{name}"] = data
        entries.append(
            {
                "key": name,
                "size": len(data),
                "checksum": f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}",
                "links": {"self": f"{server.url}/content/{name}"},
            }
        )
    return json.dumps({"files": entries}).encode()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        for name, data in files.items():
            bundle.writestr(name, data)
    return stream.getvalue()


def tarred(files: dict[str, bytes], link: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        if link:
            entry = tarfile.TarInfo("link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            tar.addfile(entry)
    return stream.getvalue()


def test_zenodo_record_names_size_and_md5(server):
    server.files["/api/1"] = record(server, {"a.zip": b"abc"})

    (file,) = zenodo_files("1", api=f"{server.url}/api")
    assert (file.name, file.size) == ("a.zip", 3)
    assert file.md5 == "900150983cd24fb0d6963f7d28e17f72"


@pytest.mark.parametrize("text", [b"<html>", b"{}", b'{"files": [{"key": "a"}]}'])
def test_zenodo_that_answers_with_something_else(server, text):
    server.files["/api/1"] = text

    with pytest.raises(DownloadError, match=r"zenodo\.org/records/1"):
        zenodo_files("1", api=f"{server.url}/api")


def test_zenodo_name_that_leads_elsewhere(server):
    server.files["/api/1"] = record(server, {"../a": b"abc"})

    with pytest.raises(DownloadError, match="plain name"):
        zenodo_files("1", api=f"{server.url}/api")


def test_luna16_is_fetched_from_both_records_and_unpacked(server, tmp_path, monkeypatch):
    first = {"subset0.zip": zipped({"subset0/1.2.mhd": b"header"}), "candidates.csv": b"old"}
    second = {"subset7.zip": zipped({"subset7/1.3.mhd": b"header"})}
    for number, files in zip(module.LUNA16_RECORDS, (first, second), strict=True):
        server.files[f"/api/{number}"] = record(server, files)
    monkeypatch.setattr(module, "zenodo_files", lambda n: zenodo_files(n, api=f"{server.url}/api"))

    download_corpus("luna16", tmp_path)
    there = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("[!.]*") if p.is_file()}
    assert there == {"subset0/1.2.mhd", "subset7/1.3.mhd", "candidates.csv"}
    num = len(server.requests)
    download_corpus("luna16", tmp_path)
    assert len(server.requests) == num + 2  # the two lists; no file again


def test_msd_heart_is_fetched_and_unpacked(server, tmp_path, monkeypatch):
    data = tarred({"Task02_Heart/dataset.json": b"{}"})
    server.files["/file"] = data
    file = remote(server, name="Task02_Heart.tar", size=None)
    file = RemoteFile(file.name, file.url, hashlib.md5(data, usedforsecurity=False).hexdigest())
    monkeypatch.setattr(module, "MSD_HEART", file)

    assert main(["download", "msd_heart", str(tmp_path), "--keep-archives"]) == 0
    assert (tmp_path / "Task02_Heart" / "dataset.json").read_bytes() == b"{}"
    assert (tmp_path / "Task02_Heart.tar").exists()


@pytest.mark.parametrize("name", ["lits2017", "brats2018", "mmwhs", "adni"])
def test_gated_sets_say_where_to_register(name, tmp_path, capsys):
    assert main(["download", name, str(tmp_path)]) == 2
    assert "https://" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archive_that_leads_out_of_the_folder(tmp_path, kind, name):
    folder = tmp_path / "in"
    folder.mkdir()
    archive = tmp_path / f"a.{kind}"
    archive.write_bytes({"zip": zipped, "tar": tarred}[kind]({name: b"x"}))

    with pytest.raises(IntegrityError, match="Do not use"):
        unpack(archive, folder)
    assert not (tmp_path / "out.txt").exists()


def test_archive_with_a_link(tmp_path):
    archive = tmp_path / "a.tar"
    archive.write_bytes(tarred({}, link="/etc"))

    with pytest.raises(IntegrityError, match="link"):
        unpack(archive, tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archive(tmp_path, kind):
    archive = tmp_path / f"a.{kind}"
    archive.write_bytes(b"<html>" * 200)

    with pytest.raises(IntegrityError, match="fetch it again"):
        unpack(archive, tmp_path)
