"""Warnings about a scan that can be processed but may not be what its user thinks."""

import sys
import warnings

PACKAGE = __name__.partition(".")[0]


class PreprocessWarning(UserWarning):
    """A scan was preprocessed, but its modality is a guess or it is unlike what the weights saw."""


def notice(message: str) -> None:
    """Warn at the line that called into this package, however deep the call came from."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, PreprocessWarning, stacklevel=level)
