"""Packages that only an extra brings: imported when something needs them."""

import importlib
import importlib.util
from collections.abc import Mapping
from types import ModuleType

from universal_model_hub.errors import ConfigError

FINETUNE = {"monai": "monai", "scikit-learn": "sklearn", "matplotlib": "matplotlib"}


def refuse_missing(packages: Mapping[str, str] = FINETUNE) -> None:
    """Refuse long work before it starts, if what its end needs is not installed.

    Args:
        packages: Modules by the package that brings each.

    Raises:
        ConfigError: If one is not there; it names all of them.
    """
    missing = [name for name, module in packages.items() if not importlib.util.find_spec(module)]
    if missing:
        raise ConfigError(
            f"Expected {', '.join(packages)} to be installed, got no {', '.join(missing)}. "
            "Install them: pip install 'universal_model_hub[finetune]'"
        )


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
