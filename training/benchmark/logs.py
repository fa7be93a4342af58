"""The logs of jobs lie among the results: they name no folder of the machine that code lies in."""

import contextlib
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[2]  # of the checkout


@contextlib.contextmanager
def logged(path: Path) -> Iterator[TextIO]:
    """Append to a log what goes to stderr; warnings come without the file and line that gave them.

    Args:
        path: Log file; its folder is made.

    Yields:
        The open log.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream, contextlib.redirect_stderr(stream), warnings.catch_warnings():
        warnings.showwarning = _show
        yield stream


def log_traceback() -> None:
    """Print the exception at hand to stderr; files of the checkout are named from its root."""
    print(traceback.format_exc().replace(f"{ROOT}/", ""), end="", file=sys.stderr)


def _show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)
