"""Features of whole scans: one embedding, or a feature map with its place in the world."""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from universal_model_hub.canvas import block_of
from universal_model_hub.errors import ConfigError
from universal_model_hub.inference import Precision, cells, require_finite, strides_of
from universal_model_hub.job import CUBE, Scan, exact_plan, in_tiles, make_job, window_plan
from universal_model_hub.networks.pyramid import PyramidEncoder
from universal_model_hub.preprocess import PreprocessRecord
from universal_model_hub.tiles import Tile

DEEPEST = -1


class FeatureMap(NamedTuple):
    """Features of a scan, and where they lie."""

    array: np.ndarray  # (C, X, Y, Z) float32, in the orientation of the model grid
    affine: np.ndarray  # (4, 4) float64, maps feature voxels to RAS+ mm


def embed(
    model: nn.Module,
    volume: Scan | Sequence[Scan],
    *,
    modality: str | Sequence[str] = "auto",
    memory_limit: int | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    tile_batch: int = 1,
    progress: bool = False,
) -> np.ndarray:
    """Describe a whole scan by one vector: the mean of the deepest feature map.

    Tiles have exact context: the result is that of ``encoder.embed`` on the whole preprocessed
    scan, within rounding.

    Args:
        model: An encoder, or a model that has one as ``encoder``; it carries ``preprocessing``.
        volume: A scan or the path of one; for a model with several channels one for each.
        modality: ``"CT"``, ``"MR"`` or ``"auto"``, see ``preprocess``.
        memory_limit: Bytes the run may take on its device; ``None`` for half of what is free.
        device: Where to run; ``None`` for where the model is.
        precision: See ``predict``.
        tile_batch: Tiles that run together.
        progress: Show a bar on stderr.

    Returns:
        (F,) float32.

    Raises:
        WeightsError: If features are not finite.
        TooLargeError: If the run does not fit in the limit; names both.
        ConfigError: If an option cannot be used, or the model has no encoder.
    """
    array, _, _ = _encoded(
        model,
        volume,
        DEEPEST,
        modality=modality,
        memory_limit=memory_limit,
        device=device,
        precision=precision,
        tile_batch=tile_batch,
        progress=progress,
    )
    return array.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)


def features(
    model: nn.Module,
    volume: Scan | Sequence[Scan],
    level: int = DEEPEST,
    *,
    modality: str | Sequence[str] = "auto",
    memory_limit: int | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    tile_batch: int = 1,
    progress: bool = False,
) -> FeatureMap:
    """Return one feature map of a whole scan, as one pass of the encoder would give it.

    Args:
        model: See ``embed``, as for all that follows but ``level``.
        volume: A scan or the path of one; for a model with several channels one for each.
        level: Depth in the encoder; 0 is the model grid, -1 the deepest.
        modality: ``"CT"``, ``"MR"`` or ``"auto"``.
        memory_limit: Bytes the run may take on its device.
        device: Where to run.
        precision: ``"float32"`` or ``"bfloat16"``.
        tile_batch: Tiles that run together.
        progress: Show a bar on stderr.

    Returns:
        (C, X, Y, Z) features, and the affine of their voxels.
    """
    array, strides, record = _encoded(
        model,
        volume,
        level,
        modality=modality,
        memory_limit=memory_limit,
        device=device,
        precision=precision,
        tile_batch=tile_batch,
        progress=progress,
    )
    # A feature voxel covers `stride` voxels along an axis; its center is theirs.
    to_model_grid = np.diag([*strides, 1.0])
    to_model_grid[:3, 3] = (np.array(strides) - 1) / 2
    return FeatureMap(array, record.model_affine @ to_model_grid)


def _encoded(
    model: nn.Module, volume: Scan | Sequence[Scan], level: int, **options: Any
) -> tuple[np.ndarray, tuple[int, ...], PreprocessRecord]:
    """Return one feature map of a whole scan, its strides, and the record of preprocessing."""
    encoder, index = _encoder(model, level)
    job = make_job(model, encoder, volume, **options)
    maps, probe_side, bytes_per_voxel = job.probe()
    channels, strides = _channels_and_strides(maps, index, probe_side)
    shape = [math.ceil(n / s) for n, s in zip(job.model_shape(), strides, strict=True)]
    least = job.least_voxels(CUBE if job.by_window else None)
    budget = job.budget(bytes_per_voxel, least, answer=4 * channels * math.prod(shape))
    grid, record = job.model_grid()
    array = np.zeros((channels, *shape), np.float32)

    def fill(tiles: Sequence[Tile]) -> None:
        for tile, output in job.run(grid, tiles):
            inner, (x, y, z) = cells(tile, strides)
            kept = block_of(output[index], inner).float()
            require_finite(kept, tile.read)
            array[:, x, y, z] = kept.cpu().numpy()

    positions = [np.arange(n, dtype=np.float64) for n in grid.shape[2:]]
    plan = window_plan(job, positions) if job.by_window else exact_plan(job, positions)
    in_tiles(job, plan, budget, bytes_per_voxel, fill)
    return array, strides, record


def _encoder(model: nn.Module, level: int) -> tuple[nn.Module, int]:
    """Return the encoder of a model, and which of its outputs is the map of ``level``.

    Our own encoder is made to compute that map only.

    Raises:
        ConfigError: If the model has no encoder, or the encoder no such level.
    """
    encoder = getattr(model, "encoder", model)
    if not isinstance(encoder, PyramidEncoder):
        return encoder, level
    num_levels = len(encoder.maps)
    if not -num_levels <= level < num_levels:
        raise ConfigError(f"Expected a level of 0 to {num_levels - 1} or -1, got {level}.")
    single = copy.copy(encoder)  # shares the weights; only what it returns differs
    single.out_indices = (level % num_levels,)
    return single, 0


def _channels_and_strides(maps: Any, index: int, side: int) -> tuple[int, tuple[int, ...]]:
    """Return channels and strides of an encoder's map, from its output for a cube of ``side``.

    Raises:
        ConfigError: If the output is not a list of feature maps.
    """
    is_list = isinstance(maps, list | tuple) and -len(maps) <= index < len(maps)
    if not is_list or not isinstance(maps[index], Tensor) or maps[index].ndim != 5:
        raise ConfigError(
            "Expected an encoder that returns a list of feature maps (N, C, X, Y, Z), finest "
            "first, or a model that has one as .encoder. Load one with load_encoder()."
        )
    return int(maps[index].shape[1]), strides_of(maps[index], side)
