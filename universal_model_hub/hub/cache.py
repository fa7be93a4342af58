"""The Hub client's cache on disk, and what this package has hashed in it.

The layout is the client's (``models--org--name`` with ``blobs``, ``snapshots`` and ``refs``), so
that its other users share the files. Beside them ``.umh/<commit>.json`` keeps the hashes of files
that were read once, with size, mtime and inode: a file is hashed again when one of these differs.

A cache may be read-only: whatever cannot be noted is worked out again next time.
"""

import contextlib
import hashlib
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json, write_bytes, write_json

COMMIT = re.compile("[0-9a-f]{40}")
ORPHAN_AGE = 24 * 3600.0  # seconds; no download takes a day


@dataclass(frozen=True)
class Stamp:
    """A file that was hashed: what the Hub calls its content, and what it looked like on disk."""

    etag: str  # as the Hub says: sha256 of an LFS file, git blob id of a small one
    sha256: str
    size: int  # bytes
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path, etag: str, sha256: str) -> "Stamp":
        """Stamp a file as it is now."""
        stat = path.stat()
        return cls(etag, sha256, stat.st_size, stat.st_mtime_ns, stat.st_ino)

    def fits(self, path: Path) -> bool:
        """Whether the file looks as it did when it was hashed."""
        return Stamp.of(path, self.etag, self.sha256) == self


@dataclass(frozen=True)
class RepoCache:
    """Where one repository lies in the cache.

    Every part of a path comes from names that were checked, never from an answer of a server.
    """

    root: Path
    repo_id: str

    @property
    def folder(self) -> Path:
        """The repository's folder."""
        return self.root / f"models--{self.repo_id.replace('/', '--')}"

    @property
    def blobs(self) -> Path:
        """Contents, each named by its hash."""
        return self.folder / "blobs"

    def file(self, commit: str, filename: str) -> Path:
        """Where a file of a commit lies: a link to a blob, or the file itself."""
        return self.folder / "snapshots" / commit / filename

    def lock(self, etag: str) -> Path:
        """The client's lock file for one content."""
        return self.root / ".locks" / self.folder.name / f"{etag}.lock"

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch or tag had when it was last asked for."""
        if COMMIT.fullmatch(revision):
            return revision
        with contextlib.suppress(OSError, UnicodeDecodeError):
            commit = (self.folder / "refs" / revision).read_text().strip()
            return commit if COMMIT.fullmatch(commit) else None
        return None

    def remember_commit(self, revision: str, commit: str) -> None:
        """Note which commit a branch or tag has."""
        if commit in (revision, self.commit_of(revision)):
            return
        with contextlib.suppress(OSError):
            path = self.folder / "refs" / revision
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, commit.encode())

    def stamp(self, commit: str, filename: str) -> Stamp | None:
        """The stamp of a file, if one was written and can be read."""
        with contextlib.suppress(OSError, ConfigError, KeyError, TypeError):
            return Stamp(**parse_json(self._stamps(commit).read_bytes())[filename])
        return None

    def write_stamp(self, commit: str, filename: str, stamp: Stamp | None) -> None:
        """Note the stamp of a file, or forget it."""
        path = self._stamps(commit)
        stamps = {}
        with contextlib.suppress(OSError, ConfigError, TypeError, ValueError):
            stamps = dict(parse_json(path.read_bytes()))
        stamps.pop(filename, None)
        if stamp is not None:
            stamps[filename] = asdict(stamp)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, stamps)

    def remove(self, commit: str, filename: str) -> None:
        """Take a file out of the cache, its content included."""
        path = self.file(commit, filename)
        self.write_stamp(commit, filename, None)
        with contextlib.suppress(OSError):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def contains(self, path: Path) -> bool:
        """Whether a file, links followed, lies inside this cache."""
        resolved = path.resolve()
        return any(resolved.is_relative_to(place.resolve()) for place in (self.folder, self.root))

    def remove_orphans(self) -> None:
        """Remove what downloads that were killed left behind, once it is a day old."""
        for path in self.blobs.glob("*.incomplete"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ORPHAN_AGE:
                    path.unlink()

    def _stamps(self, commit: str) -> Path:
        return self.folder / ".umh" / f"{commit}.json"


def default_cache() -> Path:
    """Return the client's cache folder, as its environment variables say."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def hashes_of(path: Path) -> tuple[str, str]:
    """Return a file's sha256 and its git blob id, in hex, from one reading."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            git.update(chunk)
    return sha256.hexdigest(), git.hexdigest()
