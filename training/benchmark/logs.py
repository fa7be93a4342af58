"""The logs of jobs lie among the results: warnings in them name no folder of the machine."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


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


def _show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)
