"""Packages that only an extra brings: imported when something needs them."""

import importlib
from types import ModuleType

from universal_model_hub.errors import ConfigError


def needed(module: str, package: str = "scikit-learn") -> ModuleType:
    """Import a module that the ``[finetune]`` extra brings.

    Args:
        module: Such as ``"sklearn.metrics"``.
        package: What brings it, as the message names it.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"Expected {package} to be installed, got no such package. "
            "Install it: pip install 'universal_model_hub[finetune]'"
        ) from error
