"""Pretrained 3D encoders and U-Nets for CT and MRI.

Importing this package loads neither torch nor nibabel: public names resolve on first use.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME_OF = {
    "Volume": "volume",
    "load_volume": "volume",
    "save_volume": "volume",
    "Preprocessing": "preprocess",
    "VolumeDataset": "preprocess",
    "PreprocessTransform": "preprocess",
    "preprocess": "preprocess",
    "get_weights": "catalog",
    "list_models": "catalog",
    "push_to_hub": "publish",
    "load_classifier": "loading",
    "load_encoder": "loading",
    "load_segmenter": "loading",
    "load_unet": "loading",
    "save_pretrained": "loading",
    "finetune": "fit.finetuning",
    "embed": "predict",
    "predict": "predict",
    "probe": "probe",
    "UniversalModelError": "errors",
}

__all__ = [
    "PreprocessTransform",
    "Preprocessing",
    "UniversalModelError",
    "Volume",
    "VolumeDataset",
    "__version__",
    "embed",
    "finetune",
    "get_weights",
    "list_models",
    "load_classifier",
    "load_encoder",
    "load_segmenter",
    "load_unet",
    "load_volume",
    "predict",
    "preprocess",
    "probe",
    "push_to_hub",
    "save_pretrained",
    "save_volume",
]

if TYPE_CHECKING:
    from universal_model_hub.catalog import get_weights, list_models
    from universal_model_hub.errors import UniversalModelError
    from universal_model_hub.fit.finetuning import finetune
    from universal_model_hub.loading import (
        load_classifier,
        load_encoder,
        load_segmenter,
        load_unet,
        save_pretrained,
    )
    from universal_model_hub.predict import embed, predict
    from universal_model_hub.preprocess import (
        Preprocessing,
        PreprocessTransform,
        VolumeDataset,
        preprocess,
    )
    from universal_model_hub.probe import probe
    from universal_model_hub.publish import push_to_hub
    from universal_model_hub.volume import Volume, load_volume, save_volume


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This package: a function of it is not hidden by the module that it lives in.

    ``predict``, ``preprocess`` and ``probe`` are both a function and a module. Importing the module
    would set it as the package's attribute, and ``universal_model_hub.predict(...)`` would stop
    working.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
