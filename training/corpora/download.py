"""Fetch the open data sets: resumed after a break, checked by size and md5, unpacked safely.

LUNA16 comes from Zenodo, MSD heart from the mirror that MONAI uses. Neither address could be
reached from the machine this was written on: the code is tested against a local server only.
The other sets need a registration, and nothing but their address is given.
"""

import hashlib
import shutil
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import requests
from tqdm import tqdm

from training.corpora import get_corpus
from universal_model_hub.errors import (
    AccessError,
    ConfigError,
    DownloadError,
    IntegrityError,
    NotFoundError,
)
from universal_model_hub.files import safe_name

ZENODO_API = "https://zenodo.org/api/records"
# Source: LUNA16 download page; record 1 holds subsets 0-6 and the tables, record 2 subsets 7-9.
LUNA16_RECORDS = ("3723295", "4121926")
TIMEOUT_S = (10.0, 60.0)  # to connect, between two reads
CHUNK = 1 << 16  # bytes; the last, broken chunk of an interrupted answer is lost

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch and what it must be."""

    name: str
    url: str
    md5: str
    size: int | None = None  # bytes


# Source: md5 and address as in MONAI's DecathlonDataset.
MSD_HEART = RemoteFile(
    name="Task02_Heart.tar",
    url="https://msd-for-monai.s3-us-west-2.amazonaws.com/Task02_Heart.tar",
    md5="06ee59366e1e5124267b774dbd654057",
)


def download_corpus(name: str, folder: Path, *, keep_archives: bool = False) -> None:
    """Fetch and unpack an open data set into ``folder``, but for files that are there already.

    Raises:
        ConfigError: If the set is not open; the message says where to register.
        DownloadError: If it cannot be fetched.
        IntegrityError: If a file is not what its publisher lists.
    """
    corpus = get_corpus(name)
    if name == "luna16":
        files = [file for record in LUNA16_RECORDS for file in zenodo_files(record)]
    elif name == "msd_heart":
        files = [MSD_HEART]
    else:
        raise ConfigError(
            f"{corpus.title} cannot be fetched by a program. Get it here: {corpus.access}. "
            f"Then run 'python -m training.corpora check {name} FOLDER'."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        done = folder / f".{file.name}.{file.md5[:8]}.done"
        if done.exists():
            continue
        path = download(file, folder)
        if path.suffix in (".zip", ".tar"):
            unpack(path, folder)
            if not keep_archives:
                path.unlink()
        done.touch()


def zenodo_files(record: str, *, api: str = ZENODO_API) -> list[RemoteFile]:
    """Ask Zenodo which files a record holds, with size and md5.

    Raises:
        DownloadError: If Zenodo cannot be reached or answers with something else.
    """
    response = _retried(lambda: _get(f"{api}/{record}", {}), api)
    try:
        entries = cast("list[dict[str, Any]]", response.json()["files"])
        return [
            RemoteFile(
                name=safe_name(entry["key"], "a file on Zenodo"),
                url=entry["links"]["self"],
                md5=entry["checksum"].removeprefix("md5:"),
                size=int(entry["size"]),
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError) as cause:
        raise DownloadError(
            f"Expected the files of Zenodo record {record} as JSON, got another answer "
            f"({cause!r}). Fetch them by hand from https://zenodo.org/records/{record}."
        ) from cause


def download(
    file: RemoteFile,
    folder: Path,
    *,
    tries: int = 5,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetch one file: continued from an earlier try, and there whole or not at all.

    Args:
        file: What to fetch.
        folder: Where to.
        tries: How often to connect before giving up.
        sleep: Waits between tries, in s.

    Raises:
        DownloadError: If the server cannot be reached, refuses, or breaks off every time.
        IntegrityError: If size or md5 differ; nothing of the file is left then.
    """
    path, part = folder / file.name, folder / f".{file.name}.part"
    if path.exists() and _md5(path) == file.md5:
        return path
    _retried(lambda: _fetch(file, part), file.url, tries, sleep)
    _verify(file, part)
    part.replace(path)
    return path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip or .tar into ``folder``: plain files and folders that stay inside it.

    Raises:
        IntegrityError: If the archive is damaged, or an entry leads outside or is a link.
    """
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as bundle:
                for entry in bundle.infolist():
                    if not entry.is_dir():
                        with bundle.open(entry) as stream:
                            _write_entry(stream, folder, entry.filename)
            return
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                content = tar.extractfile(member) if member.isfile() else None
                if content is None:
                    raise IntegrityError(
                        f"Expected plain files in {archive.name}, got the link {member.name!r}. "
                        f"Do not use this archive."
                    )
                _write_entry(content, folder, member.name)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as cause:
        raise IntegrityError(
            f"Expected a readable archive {archive.name}, got: {cause}. Delete and fetch it again."
        ) from cause


class _Interrupted(Exception):
    """The server broke off; trying again continues."""


def _retried(
    action: Callable[[], T], url: str, tries: int = 5, sleep: Callable[[float], None] = time.sleep
) -> T:
    for attempt in range(tries):
        try:
            return action()
        except _Interrupted as cause:
            last = cause
            if attempt < tries - 1:
                sleep(min(2.0**attempt, 30.0))
    raise DownloadError(
        f"Expected a whole answer from {url}, got {tries} broken connections, the last: "
        f"{str(last)[:200]}. Run the same command again to continue."
    ) from last


def _fetch(file: RemoteFile, part: Path) -> None:
    """Append what is missing to ``part``, or start over if the server cannot continue."""
    have = part.stat().st_size if part.exists() else 0
    if file.size is not None and have == file.size:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    response = _get(file.url, headers, stream=True)
    if response.status_code == 416:  # more is there than the server has: not this file
        part.unlink()
        raise _Interrupted("the server has no more to continue with")
    continued = response.status_code == 206
    if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        part.unlink()
        raise _Interrupted("the server continued at another place")
    announced = response.headers.get("Content-Length")
    start = have if continued else 0
    end = start + int(announced) if announced else None
    with (
        part.open("ab" if continued else "wb") as stream,
        tqdm(
            desc=file.name, initial=start, total=file.size or end, unit="B", unit_scale=True,
            disable=not sys.stderr.isatty(),
        ) as bar,
    ):  # fmt: skip
        try:
            for chunk in response.iter_content(CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
        except requests.RequestException as cause:
            raise _Interrupted(str(cause)) from cause
    got = part.stat().st_size
    if end is not None and got < end:
        raise _Interrupted(f"{got} of {end} bytes came")


def _get(url: str, headers: dict[str, str], *, stream: bool = False) -> requests.Response:
    # Compressed answers would make Range and Content-Length count something else.
    headers = {"Accept-Encoding": "identity", **headers}
    try:
        response = requests.get(url, headers=headers, stream=stream, timeout=TIMEOUT_S)
    except requests.RequestException as cause:
        raise _Interrupted(str(cause)) from cause
    if response.status_code == 404:
        raise NotFoundError(f"Expected a file at {url}, got 404. It has moved; see its home page.")
    if response.status_code in (401, 403):
        raise AccessError(
            f"Expected an open file at {url}, got {response.status_code}. See its home page."
        )
    if response.status_code >= 500 or response.status_code == 429:
        raise _Interrupted(f"the server answered {response.status_code}")
    if response.status_code not in (200, 206, 416):
        raise DownloadError(f"Expected a file at {url}, got {response.status_code}. Try later.")
    return response


def _verify(file: RemoteFile, part: Path) -> None:
    size = part.stat().st_size
    if file.size is not None and size != file.size:
        found = f"{size:,} bytes instead of {file.size:,}"
    elif (md5 := _md5(part)) != file.md5:
        found = f"md5 {md5} instead of {file.md5}"
    else:
        return
    part.unlink()
    raise IntegrityError(
        f"Expected {file.name} as its publisher lists it, got {found}. It was deleted; fetch it "
        f"again, and if that does not help, the publisher has changed the file."
    )


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # what Zenodo and MONAI publish
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _write_entry(stream: Any, folder: Path, name: str) -> None:
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise IntegrityError(
            f"Expected files inside {folder.name}, got {name!r}. Do not use this archive."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        shutil.copyfileobj(stream, out, CHUNK)
