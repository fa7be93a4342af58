"""The two grids of a scan, its own and the model's, and the way back from one to the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from universal_model_hub.errors import ConfigError, VolumeError
from universal_model_hub.preprocess.orientation import closest_axes, oriented_affine, unorient
from universal_model_hub.preprocess.settings import Preprocessing
from universal_model_hub.resample import MAX_BYTES, resample
from universal_model_hub.volume import Volume

SAME_SPACING = 1e-5  # relative difference of spacings that count as equal

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class PreprocessRecord:
    """How a scan was preprocessed: all that leads back.

    The *own grid* is the scan's, the *oriented* own grid has its voxels with axes reordered and
    flipped, the *model grid* is what the network reads. Along oriented axis k, model voxel j lies
    at ``scale[k] * j + offset[k]`` of the oriented own grid, and own voxel i at
    ``back_scale[k] * i + back_offset[k]`` of the model grid.
    """

    source_shape: Triple  # (X, Y, Z) of the scan
    source_affine: np.ndarray  # (4, 4) of the scan, voxel index to RAS+ mm
    axes: Triple  # for each oriented axis the scan's axis
    flips: tuple[bool, bool, bool]  # for each oriented axis
    model_shape: Triple  # (X, Y, Z) of the model grid
    model_affine: np.ndarray  # (4, 4) of the model grid, voxel index to RAS+ mm
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    modality: str  # "CT" or "MR"
    modality_reason: str
    intensity_range: tuple[float, float]  # what became 0 and 1, in the scan's own unit

    @property
    def oriented_shape(self) -> Triple:
        """(X, Y, Z) of the oriented own grid."""
        x, y, z = (self.source_shape[axis] for axis in self.axes)
        return x, y, z

    @property
    def back_scale(self) -> tuple[float, float, float]:
        """Model voxels from one own voxel to the next, along each oriented axis."""
        x, y, z = (1 / s for s in self.scale)
        return x, y, z

    @property
    def back_offset(self) -> tuple[float, float, float]:
        """Where own voxel 0 lies on the model grid, along each oriented axis."""
        x, y, z = (-o / s for o, s in zip(self.offset, self.scale, strict=True))
        return x, y, z

    def unorient(self, array: np.ndarray) -> np.ndarray:
        """Put voxels of the oriented own grid into the scan's own order, bit by bit.

        Args:
            array: (..., X, Y, Z) with ``oriented_shape``.

        Returns:
            A view with ``source_shape``.

        Raises:
            VolumeError: If the shape is another.
        """
        _check_shape(array, self.oriented_shape, "the oriented own grid")
        return unorient(array, self.axes, self.flips)

    def back(
        self, array: np.ndarray | Tensor, order: int = 1, *, max_bytes: int = MAX_BYTES
    ) -> Tensor:
        """Resample from the model grid to the scan's own voxels.

        Args:
            array: (X, Y, Z) or (K, X, Y, Z) on the model grid. Labels: order 0; but interpolating
                logits and deciding after gives smoother and more exact borders.
            order: 0, 1 or 3.
            max_bytes: Largest result, in bytes.

        Returns:
            With ``source_shape``: float32 for orders 1 and 3, the input's dtype for order 0.

        Raises:
            VolumeError: If the shape is not that of the model grid.
            TooLargeError: If the result needs more than ``max_bytes``.
        """
        _check_shape(array, self.model_shape, "the model grid")
        grid = (self.oriented_shape, self.back_scale, self.back_offset)
        if array.ndim == 3:
            own = resample(array, *grid, order, max_bytes=max_bytes)
            return unorient(own, self.axes, self.flips)
        share = max_bytes // max(1, len(array))
        channels = [resample(channel, *grid, order, max_bytes=share) for channel in array]
        return torch.stack([unorient(own, self.axes, self.flips) for own in channels])

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value if isinstance(value, str) else np.asarray(value).tolist()
            for name, value in values.items()
        }

    @classmethod
    def from_json(cls, value: Any) -> "PreprocessRecord":
        """Read what ``to_json`` gave.

        Raises:
            ConfigError: If an entry is missing or not of its shape.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or sorted(value) != sorted(names):
            raise ConfigError(f"Expected a record with {', '.join(names)}, got {value!r:.80}.")
        shapes = {"source_affine": (4, 4), "model_affine": (4, 4), "intensity_range": (2,)}
        kinds = {"source_shape": int, "model_shape": int, "axes": int, "flips": bool}
        entries: dict[str, Any] = {}
        for name in names:
            if name.startswith("modality"):
                entries[name] = str(value[name])
                continue
            try:
                array: np.ndarray = np.asarray(value[name], dtype=kinds.get(name, float))
            except (TypeError, ValueError, OverflowError) as error:
                raise ConfigError(f"Expected numbers in the record's {name}.") from error
            if array.shape != shapes.get(name, (3,)) or not np.isfinite(array).all():
                raise ConfigError(f"Expected finite numbers of another shape in {name}.")
            entries[name] = array if array.ndim == 2 else tuple(array.tolist())
        return cls(**entries)


@dataclass(frozen=True)
class Grid:
    """Where the model grid of a scan lies; the fields are those of ``PreprocessRecord``."""

    axes: Triple
    flips: tuple[bool, bool, bool]
    model_shape: Triple
    model_affine: np.ndarray
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]


def model_grid(volume: Volume, preprocessing: Preprocessing) -> Grid:
    """Lay the model grid over a scan: its field of view and center, the wanted spacing.

    Along each axis the grid has round(own voxels * own spacing / spacing) voxels, at least one.
    """
    axes, flips = closest_axes(volume.affine, preprocessing.orientation)
    affine = oriented_affine(volume.affine, volume.shape, axes, flips)
    own_shape = [volume.shape[axis] for axis in axes]
    own_spacing = [volume.spacing[axis] for axis in axes]
    spacing = own_spacing if preprocessing.spacing is None else preprocessing.spacing
    scale, shape = [], []
    for side, old, new in zip(own_shape, own_spacing, spacing, strict=True):
        # A header's float32 spacing of 0.99999994 mm is 1 mm: voxels are kept, not interpolated.
        same = abs(new / old - 1) < SAME_SPACING
        scale.append(1.0 if same else new / old)
        shape.append(side if same else max(1, round(side * old / new)))
    offset = [
        (own - 1) / 2 - step * (new - 1) / 2
        for own, new, step in zip(own_shape, shape, scale, strict=True)
    ]
    to_own = np.diag([*scale, 1.0])
    to_own[:3, 3] = offset
    return Grid(axes, flips, _three(shape), affine @ to_own, _three(scale), _three(offset))


def model_shape(volume: Volume, preprocessing: Preprocessing) -> Triple:
    """Return the (X, Y, Z) that a network will see of a scan, before anything is resampled."""
    return model_grid(volume, preprocessing).model_shape


def _three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    x, y, z = values
    return x, y, z


def _check_shape(array: np.ndarray | Tensor, expected: Triple, what: str) -> None:
    if tuple(array.shape[-3:]) != expected:
        raise VolumeError(
            f"Expected {expected} voxels of {what}, got shape {tuple(array.shape)}. Pass an array "
            "that belongs to this record."
        )
