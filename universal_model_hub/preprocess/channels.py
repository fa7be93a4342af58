"""Several scans of one examination as the channels of one cube."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from universal_model_hub.errors import ConfigError, GeometryError
from universal_model_hub.preprocess.record import PreprocessRecord
from universal_model_hub.preprocess.steps import preprocess
from universal_model_hub.volume import Volume

SAME_PLACE_MM = 0.1  # voxels of two grids this close to each other are the same


def preprocess_channels(
    volumes: Sequence[Volume],
    model_or_config: Any,
    modality: str | Sequence[str] = "auto",
    *,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, PreprocessRecord]:
    """Preprocess scans on one grid, each normalized by its own modality.

    Args:
        volumes: One a channel, in the model's order; left as they are.
        model_or_config: See ``preprocess``.
        modality: "CT", "MR" or "auto": one for all, or one a channel.
        device: Where to resample and where the result lies.

    Returns:
        (1, C, X, Y, Z) float32 in [0, 1], and the record that leads back to the first scan's grid.

    Raises:
        GeometryError: If a scan does not lie on the first one's grid.
        ConfigError: If there is no scan, or not one modality for each.
    """
    modalities = [modality] * len(volumes) if isinstance(modality, str) else list(modality)
    if not volumes or len(modalities) != len(volumes):
        raise ConfigError(
            f"Expected a modality for each of {len(volumes)} channels, got {len(modalities)}."
        )
    check_same_grid(volumes)
    cubes, records = zip(
        *(
            preprocess(volume, model_or_config, kind, device=device)
            for volume, kind in zip(volumes, modalities, strict=True)
        ),
        strict=True,
    )
    return (cubes[0] if len(cubes) == 1 else torch.cat(cubes, dim=1)), records[0]


def check_same_grid(volumes: Sequence[Volume]) -> None:
    """Refuse channels that do not lie voxel on voxel.

    Raises:
        GeometryError: Naming the channel, and how far it is off.
    """
    first = volumes[0]
    for number, other in enumerate(volumes[1:], start=2):
        if other.shape != first.shape:
            raise GeometryError(
                f"Expected channel {number} on the grid of channel 1, {first.shape}, got "
                f"{other.shape}. Resample it onto the first one."
            )
        corners = np.array(np.meshgrid(*([0, side - 1] for side in first.shape))).reshape(3, -1)
        corners = np.vstack([corners, np.ones(corners.shape[1])])
        off = float(np.abs((other.affine - first.affine) @ corners).max())
        if off > SAME_PLACE_MM:
            raise GeometryError(
                f"Expected channel {number} on the grid of channel 1, its voxels are up to "
                f"{off:.1f} mm off. Register and resample it onto the first one."
            )
