"""Lines on stderr: each message one line, without secrets and control characters."""

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from universal_model_hub.errors import UniversalModelError

PACKAGE = Path(__file__).parent.parent
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
SECRETS = re.compile(r"hf_[A-Za-z0-9]{4,}|(?<=Bearer )\S+|(?<=://)[^/@\s]+(?=@)")


def say(text: str) -> None:
    """Write one line for the user."""
    write(f"umh: {one_line(redacted(text))}\n")


def error(text: str) -> None:
    """Write the one line of an error."""
    say(f"error: {text}")


def describe(error: BaseException, *, debug: bool) -> str:
    """Return what to tell about an error; the package's own already say what to do."""
    if isinstance(error, UniversalModelError):
        return str(error)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{where}. Check the place, its rights and space."
    if isinstance(error, MemoryError):
        return "Out of memory. Free some, or pass a lower --memory-limit."
    hint = "" if debug else " Run again with --debug and report what it shows."
    return f"Unexpected {type(error).__name__}: {error}.{hint}"


def write(text: str) -> None:
    """Write to stderr, if there is one; text that cannot be shown is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()


def one_line(text: str) -> str:
    """Join lines, and replace what a file's name could use to drive the terminal."""
    joined = re.sub(r"\s*[\r\n]+\s*", " ", text.strip())
    return "".join(c if c.isprintable() else "?" for c in joined)


def redacted(text: str) -> str:
    """Return the text without access tokens."""
    for name in TOKEN_VARIABLES:
        text = text.replace(os.environ.get(name) or "\0", "***")
    return SECRETS.sub("***", text)


@contextlib.contextmanager
def warnings_as_lines(*, quiet: bool, debug: bool) -> Iterator[None]:
    """Show this package's warnings as lines, and other libraries' only with ``debug``."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        ours = category.__module__.startswith("universal_model_hub")
        if debug or (not quiet and (ours or Path(filename).is_relative_to(PACKAGE))):
            say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield
