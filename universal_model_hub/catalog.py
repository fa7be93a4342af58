"""The table of published weights: what can be loaded by name, and what its file must hash to."""

import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from universal_model_hub.errors import ConfigError

BUNDLED = Path(__file__).parent / "weights"  # a model folder per bundled row, inside the wheel


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One row of the catalog."""

    name: str
    source: Literal["bundled", "hub"]
    kind: Literal["unet", "encoder", "segmenter", "classifier"]
    architecture: str
    summary: str  # one line
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the architecture
    repo_id: str | None = None  # "org/name" on the Hub; None: not published
    revision: str | None = None  # full commit id; None: not published
    sha256: str | None = None  # of model.safetensors; None: not trained
    size: int | None = None  # of model.safetensors, bytes
    license: str = "apache-2.0"

    @property
    def folder(self) -> Path | None:
        """The model folder inside the package, of a bundled row."""
        return BUNDLED / self.name if self.source == "bundled" else None

    @property
    def available(self) -> bool:
        """Whether there are weights to load: a bundled file, or a published commit."""
        if self.folder is not None:
            return (self.folder / "model.safetensors").is_file()
        return self.repo_id is not None and self.revision is not None


# The first row is the default model. Rows get repo_id, revision and sha256 from
# `python -m training.publish`, which prints them.
_ROWS = (
    Weights(
        name="unet3d-compact",
        source="bundled",
        kind="unet",
        architecture="unet3d",
        arguments={"width": 8},
        summary="3D U-Net at a quarter of the paper's width, pre-trained by the paper's method",
        sha256="59dc46b906a53ac32ca169fa8d675d8207bc5614871f55ea2ccf684307a719bd",
        size=2407060,
    ),
    Weights(
        name="unet3d-compact-anatomy",
        source="bundled",
        kind="unet",
        architecture="unet3d",
        arguments={"width": 8},
        summary="The same network; segmentation of synthetic anatomy beside the paper's method",
        sha256="bb6878a1ab0d5d4851739d204deea282be9976ae507b7e15500c62bbf91bd916",
        size=2407068,
    ),
    Weights(
        name="unet3d-compact-chest",
        source="bundled",
        kind="segmenter",
        architecture="unet3d",
        arguments={"width": 8, "out_channels": 12, "activation": None},
        summary="Organs of the chest in CT; fine-tuned on a model's labels of one scan",
        sha256="c7bcb0a05a5ca869d705b8112c4b13233360e094a4ab0068379b312de906d272",
        size=2407576,
    ),
    Weights(
        name="unet3d",
        source="hub",
        kind="unet",
        architecture="unet3d",
        summary="3D U-Net at the paper's width (32), pre-trained by the paper's method",
    ),
)

WEIGHTS: dict[str, Weights] = {row.name: row for row in _ROWS}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names in the catalog: the default model first, then sorted.

    Args:
        pattern: Shell wildcards, such as ``"*compact*"``; case counts.
    """
    default, *others = WEIGHTS
    return [name for name in (default, *sorted(others)) if fnmatch.fnmatchcase(name, pattern)]


def get_weights(name: str) -> Weights:
    """Return the catalog row of a name.

    Raises:
        ConfigError: If the catalog has no such name; the message lists the nearest.
    """
    if name in WEIGHTS:
        return WEIGHTS[name]
    near = difflib.get_close_matches(name, WEIGHTS, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(list_models())}."
    raise ConfigError(
        f"Expected a model name of the catalog, got {name[:80]!r}. {hint} For other models write "
        f"hf-hub:org/name@revision or local-dir:folder."
    )
