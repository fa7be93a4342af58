"""The settings of preprocessing: they belong to the weights and travel in config.json."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from universal_model_hub.errors import ConfigError
from universal_model_hub.preprocess.orientation import check_codes
from universal_model_hub.resample import ORDERS

MODALITIES = ("CT", "MR")
RESCALES = ("window", "volume")
NATIVE = "native"  # JSON and TOML: the scan's own spacing

Rescale = Literal["window", "volume"]


@dataclass(frozen=True)
class Preprocessing:
    """How a scan becomes what a network reads.

    Source: Zhang et al., Sec. IV-B.1, but ``ct_rescale``. Source: ours, for that one: scaling CT by
    the window and not by each volume's own extremes keeps Hounsfield units absolute.

    Attributes:
        orientation: Where the axes point to, such as "RAS"; no axis is interpolated for it.
        spacing: (x, y, z) of the model grid in mm; None keeps the scan's own grid.
        order: Of the spline: 0, 1 or 3.
        ct_clip: Lowest and highest intensity of CT, in HU.
        mr_clip: Lowest and highest intensity of MR, in the scan's own unit.
        ct_rescale: What becomes 0 and 1: the ends of the "window", or the extremes of the "volume".
        mr_rescale: Likewise for MR.

    Raises:
        ConfigError: If a setting cannot be used.
    """

    orientation: str = "RAS"
    spacing: tuple[float, float, float] | None = (1.0, 1.0, 1.0)
    order: int = 3
    ct_clip: tuple[float, float] = (-1000.0, 1000.0)
    mr_clip: tuple[float, float] = (0.0, 4000.0)
    ct_rescale: Rescale = "window"
    mr_rescale: Rescale = "volume"

    def __post_init__(self) -> None:
        check_codes(self.orientation)
        if self.spacing is not None:
            object.__setattr__(self, "spacing", _numbers("spacing", self.spacing, 3))
            if min(self.spacing) <= 0:
                raise ConfigError(f"Expected a spacing above 0 mm, got {self.spacing}.")
        if isinstance(self.order, bool) or self.order not in ORDERS:
            raise ConfigError(f"Expected order to be one of {ORDERS}, got {self.order!r:.80}.")
        for modality in MODALITIES:
            name = f"{modality.lower()}_clip"
            low, high = _numbers(f"{modality} clip", getattr(self, name), 2)
            if not low < high:
                raise ConfigError(f"Expected {modality} clip as (low, high), got ({low}, {high}).")
            object.__setattr__(self, name, (low, high))
            if self.rescale(modality) not in RESCALES:
                raise ConfigError(
                    f"Expected {modality} rescale to be one of {RESCALES}, got "
                    f"{self.rescale(modality)!r:.80}."
                )

    def clip(self, modality: str) -> tuple[float, float]:
        """Return the lowest and highest intensity kept of "CT" or "MR"."""
        return self.ct_clip if modality == "CT" else self.mr_clip

    def rescale(self, modality: str) -> Rescale:
        """Return what is scaled to [0, 1] in "CT" or "MR"."""
        return self.ct_rescale if modality == "CT" else self.mr_rescale

    def to_json(self) -> dict[str, Any]:
        """Return the entry ``preprocessing`` of config.json."""
        entries: dict[str, Any] = {
            "orientation": self.orientation,
            "spacing": NATIVE if self.spacing is None else [_short(s) for s in self.spacing],
            "order": self.order,
        }
        for modality in MODALITIES:
            entries[modality] = {"clip": [_short(c) for c in self.clip(modality)]}
            if self.rescale(modality) != getattr(Preprocessing, f"{modality.lower()}_rescale"):
                entries[modality]["rescale"] = self.rescale(modality)
        return entries

    @classmethod
    def from_json(cls, value: Any) -> "Preprocessing":
        """Check and read the entry ``preprocessing`` of config.json or of a recipe.

        Raises:
            ConfigError: If an entry is unknown or cannot be used.
        """
        entries = _entries("preprocessing", value, ("orientation", "spacing", "order", *MODALITIES))
        fields: dict[str, Any] = {k: v for k, v in entries.items() if k not in MODALITIES}
        if "spacing" in fields and fields["spacing"] in (None, NATIVE):
            fields["spacing"] = None
        for modality in MODALITIES:
            part = _entries(modality, entries.get(modality, {}), ("clip", "rescale"))
            fields |= {f"{modality.lower()}_{key}": item for key, item in part.items()}
        return cls(**fields)


def _entries(name: str, value: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"Expected {name} to hold {', '.join(known)}, got {value!r:.80}.")
    unknown = [str(key)[:40] for key in value if key not in known]
    if unknown:
        raise ConfigError(
            f"Expected {name} to hold only {', '.join(known)}, got {', '.join(unknown[:5])}. "
            "Features would change unseen if it were left out: correct it, or upgrade this package."
        )
    return value


def _numbers(name: str, value: Any, count: int) -> tuple[float, ...]:
    valid = isinstance(value, list | tuple) and len(value) == count
    if not valid or not all(_is_number(item) for item in value):
        raise ConfigError(f"Expected {name} to be {count} finite numbers, got {value!r:.80}.")
    return tuple(float(item) for item in value)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e30 and math.isfinite(value)


def _short(value: float) -> int | float:
    return int(value) if value == int(value) else value
