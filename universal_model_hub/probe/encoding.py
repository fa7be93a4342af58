"""Features of one scan by all arms: at some voxels, or of the whole scan; nothing else is kept.

The scan runs in tiles with real context, as in ``features()``; of each tile's maps only the cells
at the drawn voxels, or their sums, are held.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from universal_model_hub.canvas import block_of
from universal_model_hub.inference import cells, require_finite, strides_of
from universal_model_hub.job import CUBE, Job, Plan, exact_plan, in_tiles, window_plan
from universal_model_hub.preprocess import PreprocessRecord
from universal_model_hub.probe.arms import HAND_MADE, arm_maps
from universal_model_hub.tiles import Tile, own_positions

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # of a whole scan's intensities
MOST_VOXELS = 1 << 20  # that quantiles are taken of; of a larger scan a regular part


def voxel_features(job: Job, index: np.ndarray) -> dict[str, np.ndarray]:
    """Return the features of all levels at voxels of a scan, by arm.

    A voxel takes the value of the cell that it lies in, of each map.

    Args:
        job: Of a ``SideBySide`` network and the scan.
        index: (P, 3) voxels on the scan's own grid.

    Returns:
        (P, F) float32 of each arm.
    """
    maps, side, bytes_per_voxel = job.probe()
    strides = [strides_of(m, side) for m in maps]
    channels = [int(m.shape[1]) for m in maps]
    found = [np.zeros((len(index), C), np.float32) for C in channels]
    budget = job.budget(bytes_per_voxel, _least(job), answer=4 * len(index) * sum(channels))
    grid, record = job.model_grid()
    at = model_voxels(record, index)

    def fill(tiles: Sequence[Tile]) -> None:
        rows_of = {tile: rows for tile in tiles if len(rows := _inside(at, tile))}
        for tile, output in job.run(grid, list(rows_of)):
            rows = rows_of[tile]
            start = np.array([span.read[0] for span in tile.spans])
            for values, stride, feature in zip(found, strides, output, strict=True):
                cell = at[rows] // stride - start // stride
                x, y, z = torch.from_numpy(cell).T.to(feature.device)
                kept = feature[:, x, y, z].float()  # (C, rows)
                require_finite(kept, tile.read)
                values[rows] = kept.T.cpu().numpy()

    in_tiles(job, tile_plan(job), budget, bytes_per_voxel, fill)
    return {arm: np.concatenate(part, axis=1) for arm, part in arm_maps(found).items()}


def scan_features(job: Job) -> dict[str, np.ndarray]:
    """Return the mean of every map over a whole scan, by arm; hand-made also quantiles.

    Args:
        job: Of a ``SideBySide`` network and the scan.

    Returns:
        (F,) float32 of each arm.
    """
    maps, side, bytes_per_voxel = job.probe()
    strides = [strides_of(m, side) for m in maps]
    channels = [int(m.shape[1]) for m in maps]
    budget = job.budget(bytes_per_voxel, _least(job), answer=0)
    grid, _ = job.model_grid()
    sums = [np.zeros(C) for C in channels]

    def fill(tiles: Sequence[Tile]) -> None:
        for total in sums:
            total[:] = 0  # a run that was out of memory left its part
        for tile, output in job.run(grid, tiles):
            for total, stride, feature in zip(sums, strides, output, strict=True):
                kept = block_of(feature, cells(tile, stride)[0])
                require_finite(kept, tile.read)
                total += kept.double().sum(dim=(1, 2, 3)).cpu().numpy()

    in_tiles(job, tile_plan(job), budget, bytes_per_voxel, fill)
    shape = grid.shape[2:]
    sizes = [
        math.prod(math.ceil(n / s) for n, s in zip(shape, stride, strict=True))
        for stride in strides
    ]
    means = [(total / size).astype(np.float32) for total, size in zip(sums, sizes, strict=True)]
    found = {arm: np.concatenate(part) for arm, part in arm_maps(means).items()}
    found[HAND_MADE] = np.concatenate([found[HAND_MADE], _quantiles(grid)])
    return found


def model_voxels(record: PreprocessRecord, index: np.ndarray) -> np.ndarray:
    """Return the voxels (P, 3) of the model grid that lie nearest to voxels of the own grid."""
    nearest = np.empty_like(index)
    for k, (axis, flip) in enumerate(zip(record.axes, record.flips, strict=True)):
        own = index[:, axis]
        own = record.source_shape[axis] - 1 - own if flip else own
        size, oriented = record.model_shape[k], record.oriented_shape[k]
        positions = own_positions(size, oriented, record.back_scale[k], record.back_offset[k])
        nearest[:, k] = np.rint(positions[own]).astype(np.int64)
    return nearest


def center_cube(job: Job) -> Tensor:
    """Return the middle of a scan as the network reads it, (1, 1, X, Y, Z)."""
    grid, _ = job.model_grid()
    starts = [max(0, (n - side) // 2) for n, side in zip(grid.shape[2:], CUBE, strict=True)]
    x, y, z = (slice(a, a + side) for a, side in zip(starts, CUBE, strict=True))
    return grid[:, :, x, y, z].clone()


def tile_plan(job: Job) -> Plan:
    """Return how a scan may be cut: as ``features()`` does it."""
    positions = [np.arange(n, dtype=np.float64) for n in job.model_shape()]
    return window_plan(job, positions) if job.by_window else exact_plan(job, positions)


def _least(job: Job) -> int:
    return job.least_voxels(CUBE if job.by_window else None)


def _inside(at: np.ndarray, tile: Tile) -> np.ndarray:
    """Return which of the voxels (P, 3) a tile answers."""
    low = np.array([span.keep[0] for span in tile.spans])
    high = np.array([span.keep[1] for span in tile.spans])
    return np.flatnonzero(((at >= low) & (at < high)).all(axis=1))


def _quantiles(grid: Tensor) -> np.ndarray:
    values = grid.flatten()
    values = values[:: math.ceil(len(values) / MOST_VOXELS)]
    return np.quantile(values.numpy(), QUANTILES).astype(np.float32)
