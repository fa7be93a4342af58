"""Files: written whole or not at all, hashed, and never outside the folder they belong in."""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from universal_model_hub.errors import ConfigError

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path`` in one step.

    The temporary name ends as ``path`` does, so that writers that go by the extension work.
    After an error, Ctrl-C or SIGTERM-as-exception nothing is left and the old file is unchanged.

    Raises:
        OSError: If the folder is missing or not writable.
    """
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp.{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, atomically; NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def parse_json(data: bytes) -> Any:
    """Parse JSON that came from outside: UTF-8, finite numbers, each key once.

    Raises:
        ConfigError: If it is anything else, or nested too deep.
    """
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_without_duplicates,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise ConfigError(
            "Expected JSON in UTF-8, got something else "
            f"({type(error).__name__}: {str(error)[:200]}). Restore the file."
        ) from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise ConfigError(f"Expected each entry once, got {name[:80]!r} twice. Keep one.")
        entries[name] = value
    return entries


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ConfigError(f"Expected finite numbers, got {text[:80]}. Use a number or null.")
    return number


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def safe_name(name: str, what: str) -> str:
    """Return ``name`` if it is a plain file name, for names that come from outside.

    Raises:
        ConfigError: If it has a separator, starts with a dot, or holds ``..``.
    """
    if not SAFE_NAME.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"Expected {what} to be a plain name of letters, digits, '.', '_' and '-', "
            f"got {name[:80]!r}. Rename it."
        )
    return name


def check_output(path: Path, inputs: list[Path], *, force: bool) -> None:
    """Refuse an output path that could not be written, or that would destroy something.

    Raises:
        ConfigError: If the output is one of the inputs, exists without ``force``, is a folder,
            or lies in a folder that is missing or not writable.
    """
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise ConfigError(f"The output {path} is also an input. Choose another output.")
    if path.is_dir():
        raise ConfigError(f"Expected a file to write, got the folder {path}. Name a file in it.")
    if path.exists() and not force:
        raise ConfigError(f"The output {path} exists. Choose another, or pass force (--force).")
    folder = path.parent
    if not folder.is_dir():
        raise ConfigError(f"The output folder {folder} does not exist. Create it first.")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"The output folder {folder} is not writable. Choose another.")
