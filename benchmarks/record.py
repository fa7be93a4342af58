"""What every result file says about how it came about: date, commit, hardware, versions."""

import datetime
import importlib.metadata
import os
import platform
from typing import Any

from training.metrics import commit
from universal_model_hub.fit.training.hardware import processor_name

NAMED = ("torch", "numpy", "scipy", "SimpleITK", "nibabel", "monai", "torchio", "huggingface_hub")


def stamp() -> dict[str, Any]:
    """Return the facts of this run, without the machine's name or paths."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": {"processor": processor_name(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **versions()},
    }


def versions() -> dict[str, str]:
    """Return the versions of the libraries that results depend on, where they are installed."""
    found = {}
    for name in NAMED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
