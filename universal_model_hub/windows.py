"""Overlapping windows, averaged with Gaussian weights, in the memory of one slab along X."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from universal_model_hub.canvas import Canvas, block_of
from universal_model_hub.inference import Runner, progress_bar, require_finite
from universal_model_hub.tiles import gaussian_weights, window_starts

# Cubic interpolation looks one voxel back and two ahead, so what lies within two planes of the next
# windows waits for them, and then needs three planes of before.
AHEAD, BEHIND = 2, 3


class Slab:
    """Weighted sums of logits for the windows of one place along X.

    The first planes are the last finished ones before them: interpolation still needs those.
    """

    def __init__(self, num_channels: int, depth: int, shape: Sequence[int], device: torch.device):
        self.sums = torch.zeros((num_channels, depth + BEHIND, *shape[1:]), device=device)

    def add(self, logits: Tensor, y: int, z: int) -> None:
        """Add the weighted logits (K, x, y, z) of a window that starts at ``y``, ``z``."""
        Y, Z = logits.shape[2:]
        self.sums[:, BEHIND:, y : y + Y, z : z + Z] += logits

    def advance(self, planes: int) -> None:
        """Move on by ``planes`` finished planes, and make room for as many new ones."""
        rest = self.sums.shape[1] - planes
        self.sums[:, :rest] = self.sums[:, planes:].clone()
        self.sums[:, rest:] = 0


def fill_gaussian(
    canvas: Canvas,
    runner: Runner,
    grid: Tensor,
    window: Sequence[int],
    *,
    overlap: float,
    tile_batch: int,
    progress: bool,
) -> None:
    """Fill the canvas from overlapping windows.

    Args:
        canvas: What to fill.
        runner: The network.
        grid: (1, C, X, Y, Z), the whole model grid, on the CPU.
        window: (x, y, z), cut to the grid where it is larger.
        overlap: Share of a window's side that neighbors have in common, at least.
        tile_batch: Windows that run together.
        progress: Show a bar on stderr.
    """
    shape = grid.shape[2:]
    window = fitted(window, shape)
    xs, ys, zs = (window_starts(n, w, overlap) for n, w in zip(shape, window, strict=True))
    weights = [
        [torch.from_numpy(bell).to(runner.device) for bell in gaussian_weights(n, w, starts)]
        for n, w, starts in zip(shape, window, (xs, ys, zs), strict=True)
    ]
    columns = list(
        itertools.product(zip(ys, weights[1], strict=True), zip(zs, weights[2], strict=True))
    )
    slab = Slab(canvas.num_channels, window[0], shape, runner.device)
    with progress_bar(len(xs) * len(columns), "window", progress) as bar:
        for x, next_x, weight_x in zip(xs, [*xs[1:], shape[0]], weights[0], strict=True):
            for low in range(0, len(columns), tile_batch):
                batch = columns[low : low + tile_batch]
                places = [_slices((x, y, z), window) for (y, _), (z, _) in batch]
                output = runner(torch.cat([block_of(grid, place) for place in places]))
                for ((y, weight_y), (z, weight_z)), place, logits in zip(
                    batch, places, output.float(), strict=True
                ):
                    require_finite(logits, place)
                    weight = weight_x[:, None, None] * weight_y[:, None] * weight_z
                    slab.add(logits * weight, y, z)
                bar.update(len(batch))
            _fill_planes(canvas, slab, x, next_x, shape[0])
            slab.advance(next_x - x)


def slab_bytes(num_channels: int, window: Sequence[int], shape: Sequence[int]) -> int:
    """Return the bytes that ``fill_gaussian`` holds beside the network's activations."""
    depth = fitted(window, shape)[0] + BEHIND
    return 2 * 4 * num_channels * depth * shape[1] * shape[2]


def fitted(window: Sequence[int], shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the window, no side longer than the volume's."""
    x, y, z = (min(w, n) for w, n in zip(window, shape, strict=True))
    return x, y, z


def _fill_planes(canvas: Canvas, slab: Slab, x: int, next_x: int, size: int) -> None:
    """Answer the own voxels for which every plane that they need has become final."""
    positions = canvas.positions[0]
    first = 0 if x == 0 else int(np.searchsorted(positions, x - AHEAD))
    last = len(positions) if next_x == size else int(np.searchsorted(positions, next_x - AHEAD))
    if last > first:
        start = max(0, x - BEHIND)
        planes = slab.sums[:, start - (x - BEHIND) : next_x - (x - BEHIND)]
        everywhere = (slice(0, len(p)) for p in canvas.positions[1:])
        canvas.fill(planes, (start, 0, 0), (slice(first, last), *everywhere))


def _slices(start: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
