"""torch.hub entry points: the functions of ``universal_model_hub``, nothing else.

Nothing heavy is imported here, so that torch.hub can say which package is missing.
"""

import re as _re
import warnings as _warnings
from pathlib import Path as _Path
from typing import Any as _Any

dependencies = ["torch", "numpy", "safetensors", "huggingface_hub", "nibabel", "tqdm"]


def load_encoder(name: str = "unet3d-compact", **options: _Any) -> _Any:
    """Pretrained 3D encoder for CT and MRI: features at 1, 1/2, 1/4 and 1/8 of the input grid.

    Input: (N, C, X, Y, Z) of any size, C = 1; axes right, anterior, superior; 1 mm voxels; in
    [0, 1]. `universal_model_hub.preprocess` brings a scan there.
    Output: list of feature maps, finest first; `encoder.embed(x)` gives (N, F).

    Args:
        name: A catalog name, hf-hub:org/name@revision, local-dir:folder, or a path to a folder.
        options: in_channels, out_indices, pretrained, revision, cache_dir, local_files_only,
            token, endpoint, verify, device, normalization ("running", "batch"), checkpointing.

    Example:
        encoder = torch.hub.load("org/universal_model_hub:v0.1.0", "load_encoder",
                                 trust_repo=True, name="unet3d-compact", pretrained=False)
        features = encoder(torch.rand(1, 1, 64, 64, 32))

    With org the owner of the repository and v0.1.0 a tag: a branch may change under you. For a
    clone on disk: torch.hub.load("path/to/clone", "load_encoder", source="local").
    License: Apache-2.0 for the code; each model's config.json names that of its weights.
    Not a medical device.
    """
    return _loading().load_encoder(name, **options)


def load_unet(name: str = "unet3d-compact", **options: _Any) -> _Any:
    """Pretrained 3D U-Net for CT and MRI: restoration, or with a new head anything per voxel.

    Input: as for load_encoder. Output: (N, out_channels, X, Y, Z).

    Args:
        name: As for load_encoder.
        options: out_channels (None: the restoration head with its sigmoid, output in [0, 1]; any
            number: a new head, logits), and those of load_encoder but out_indices.

    Example:
        unet = torch.hub.load("org/universal_model_hub:v0.1.0", "load_unet",
                              trust_repo=True, out_channels=3)

    License: Apache-2.0 for the code; each model's config.json names that of its weights.
    """
    return _loading().load_unet(name, **options)


def load_segmenter(
    name: str = "unet3d-compact", num_classes: int | None = None, **options: _Any
) -> _Any:
    """Segmentation network for CT and MRI: logits (N, num_classes, X, Y, Z).

    Input: as for load_encoder.

    Args:
        name: As for load_encoder.
        num_classes: Background included; None takes the saved head, a number that differs makes
            a new one, to be trained.
        options: Those of load_encoder but out_indices.

    Example:
        segmenter = torch.hub.load("org/universal_model_hub:v0.1.0", "load_segmenter",
                                   trust_repo=True, name="local-dir:my-model")

    License: Apache-2.0 for the code; each model's config.json names that of its weights.
    Not a medical device.
    """
    return _loading().load_segmenter(name, num_classes, **options)


def load_classifier(
    name: str = "unet3d-compact", num_classes: int | None = None, **options: _Any
) -> _Any:
    """Encoder with a classification head for CT and MRI: logits (N, num_classes).

    Input: as for load_encoder.

    Args:
        name: As for load_encoder.
        num_classes: None takes the saved head, a number that differs makes a new one, to be
            trained.
        options: Those of load_encoder but out_indices.

    Example:
        classifier = torch.hub.load("org/universal_model_hub:v0.1.0", "load_classifier",
                                    trust_repo=True, num_classes=2)

    License: Apache-2.0 for the code; each model's config.json names that of its weights.
    Not a medical device.
    """
    return _loading().load_classifier(name, num_classes, **options)


def _loading() -> _Any:
    """Import the loading functions; a copy of the package that is in use already wins."""
    import universal_model_hub
    from universal_model_hub import loading

    here = _Path(__file__).resolve().parent
    used = _Path(universal_model_hub.__file__).resolve().parent
    source = (here / "universal_model_hub" / "__init__.py").read_text()
    version = _re.search(r'__version__ = "(.+)"', source)
    if used.parent != here and version and version[1] != universal_model_hub.__version__:
        _warnings.warn(
            f"Expected universal_model_hub {version[1]} of {here}, but version "
            f"{universal_model_hub.__version__} of {used.parent} is imported already and is used. "
            "Restart Python, or install the version you want.",
            stacklevel=3,
        )
    return loading
