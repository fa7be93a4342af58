"""One file of one commit, from the Hub into the cache, with its content proven.

Downloads go through the Hub client's session into its cache layout, but not through
``hf_hub_download``: that one checks sizes only, and names files after an ETag that it does not
check, so that a hostile mirror could write outside the cache (seen with huggingface_hub 2.4.0).
"""

import contextlib
import os
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from universal_model_hub.errors import (
    ConfigError,
    DownloadError,
    IntegrityError,
    OfflineError,
    UniversalModelError,
)
from universal_model_hub.hub.cache import RepoCache, Stamp, hashes_of
from universal_model_hub.hub.client import (
    RemoteFile,
    Repo,
    as_our_error,
    ask,
    is_hash,
)
from universal_model_hub.hub.stream import stream

LIMITS = {"config.json": 1 << 20}  # bytes


@dataclass(frozen=True)
class Fetched:
    """A file in the cache, and what is known of its content."""

    path: Path
    sha256: str
    proven: bool  # compared with what the Hub, or the catalog, says of it


def fetch(
    repo: Repo,
    commit: str,
    filename: str,
    *,
    offline: str = "",
    verify: bool = False,
    pin: str | None = None,
) -> Fetched:
    """Return a file of a commit from the cache, downloaded first if need be.

    A cached file that was hashed before and looks the same is taken without any request. One that
    differs from what the Hub said of it is downloaded again.

    Args:
        repo: The repository.
        commit: Full commit id.
        filename: A file at the top of the repository.
        offline: Why no request may be made; empty: they may.
        verify: Hash the file even if it looks unchanged.
        pin: sha256 that the file must have, besides what the Hub says.

    Raises:
        DownloadError: If the file is not in the cache and cannot be downloaded.
        IntegrityError: If the content differs from what the Hub or the pin says: twice when
            downloaded, at once when offline.
    """
    path = repo.cache.file(commit, filename)
    cached = _cached(repo, commit, filename, verify=verify, pin=pin) if path.is_file() else None
    if cached is not None and (cached.proven or offline):
        return cached
    if offline and path.is_file():
        raise IntegrityError(
            f"Expected {path} as published, its content differs, and {offline}. Remove it, or "
            "repair it with a network: umh download NAME."
        )
    if offline:
        raise OfflineError(
            f"Expected {filename} of {repo.repo_id} at {commit[:12]} in the cache "
            f"{repo.cache.root}, it is not there and {offline}. Download it once with a "
            "network: umh download NAME."
        )
    return _download(repo, commit, filename, pin)


def _cached(
    repo: Repo, commit: str, filename: str, *, verify: bool, pin: str | None
) -> Fetched | None:
    """Return the cached file if nothing speaks against it."""
    path, stamp = repo.cache.file(commit, filename), repo.cache.stamp(commit, filename)
    _check_inside(repo.cache, path)
    if stamp is not None and stamp.fits(path) and not verify and pin in (None, stamp.sha256):
        return Fetched(path, stamp.sha256, proven=True)
    # Another user of the cache may have downloaded it: there the blob's name is its hash.
    name = path.resolve().name if path.is_symlink() else ""
    etag = stamp.etag if stamp is not None else name if is_hash(name) else None
    before = Stamp.of(path, etag or "", "")  # so that a change while hashing shows later
    hashes = hashes_of(path)
    if (etag is not None and etag not in hashes) or pin not in (None, hashes[0]):
        return None
    if etag is not None:
        repo.cache.write_stamp(commit, filename, replace(before, sha256=hashes[0]))
    return Fetched(path, hashes[0], proven=etag is not None or pin is not None)


def _download(repo: Repo, commit: str, filename: str, pin: str | None) -> Fetched:
    """Download a file, once more if its content is wrong, and put it into the cache."""
    remote = ask(repo, filename, commit)
    if remote.size > LIMITS.get(filename, remote.size):
        raise ConfigError(
            f"Expected {filename} of {repo.repo_id} to have at most {LIMITS[filename]} bytes, "
            f"got {remote.size}. Is it a model of this package?"
        )
    if len(remote.etag) == 64 and pin not in (None, remote.etag):
        raise _differs(repo, filename, commit, remote.etag, pin)
    try:
        with _locked(repo.cache.lock(remote.etag)):
            there = _already_there(repo, remote, filename, pin)
            return there or _download_twice(repo, remote, filename, pin)
    except UniversalModelError:
        raise
    except OSError as error:
        raise as_our_error(error, repo, f"{filename} at {commit}") from error


def _already_there(
    repo: Repo, remote: RemoteFile, filename: str, pin: str | None
) -> Fetched | None:
    """Return the file if its content is in the cache: by another process, or another commit."""
    for place in (repo.cache.blobs / remote.etag, repo.cache.file(remote.commit, filename)):
        if place.is_file():
            sha256, git = hashes_of(place)
            if remote.etag in (sha256, git) and pin in (None, sha256):
                return _placed(repo, remote, filename, sha256)
    return None


def _download_twice(repo: Repo, remote: RemoteFile, filename: str, pin: str | None) -> Fetched:
    repo.cache.blobs.mkdir(parents=True, exist_ok=True)
    repo.cache.remove_orphans()
    free = shutil.disk_usage(repo.cache.blobs).free
    if free < remote.size:
        raise DownloadError(
            f"Expected {remote.size} bytes free in {repo.cache.root} for {filename}, there are "
            f"{free}. Free some, or choose another place with cache_dir= or HF_HOME."
        )
    got = ""
    for _ in range(2):
        temporary = repo.cache.blobs / f"{remote.etag}.{secrets.token_hex(4)}.incomplete"
        try:
            stream(repo, filename, remote, temporary)
            got, git = hashes_of(temporary)
            if remote.etag in (got, git) and pin in (None, got):
                temporary.replace(repo.cache.blobs / remote.etag)
                return _placed(repo, remote, filename, got)
        except IntegrityError:
            if got:
                raise
            got = "more bytes than announced"
        finally:
            temporary.unlink(missing_ok=True)
    repo.cache.remove(remote.commit, filename)
    raise _differs(repo, filename, remote.commit, got, pin or remote.etag)


def _placed(repo: Repo, remote: RemoteFile, filename: str, sha256: str) -> Fetched:
    """Give a blob its place in the commit: a link, or the file itself where links fail."""
    path, blob = repo.cache.file(remote.commit, filename), repo.cache.blobs / remote.etag
    if blob.is_file() and not (path.exists() and path.samefile(blob)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            blob.replace(path)
    _check_inside(repo.cache, path)
    repo.cache.write_stamp(remote.commit, filename, Stamp.of(path, remote.etag, sha256))
    return Fetched(path, sha256, proven=True)


def _locked(path: Path) -> contextlib.AbstractContextManager[object]:
    from huggingface_hub.utils import WeakFileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return WeakFileLock(path)


def _check_inside(cache: RepoCache, path: Path) -> None:
    if not cache.contains(path):
        raise IntegrityError(
            f"Expected {path} to lie in the cache {cache.root}, it leads to {path.resolve()}. "
            "Remove the link."
        )


def _differs(
    repo: Repo, filename: str, commit: str, got: str, expected: str | None
) -> IntegrityError:
    return IntegrityError(
        f"Expected {filename} of {repo.repo_id} at {commit[:12]} to hash to {expected}, got {got}. "
        f"It was not kept. Try another network; if it stays, {repo.host} serves a changed file."
    )
