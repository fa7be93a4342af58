"""Overlapping windows, averaged with Gaussian weights, in the memory of one slab along X."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from universal_model_hub.canvas import Canvas, block_of
from universal_model_hub.inference import Runner, progress_bar, require_finite
from universal_model_hub.tiles import gaussian_weights, window_starts

OVERLAP = 0.5  # of neighboring windows. Source: nnU-Net (Isensee et al. 2021)


class Slab:
    """Weighted sums of logits for the windows of one place along X.

    Plane 0 is the last finished plane before them: interpolation still needs it.
    """

    def __init__(self, num_channels: int, depth: int, shape: Sequence[int], device: torch.device):
        self.sums = torch.zeros((num_channels, depth + 1, *shape[1:]), device=device)

    def add(self, logits: Tensor, y: int, z: int) -> None:
        """Add the weighted logits (K, x, y, z) of a window that starts at ``y``, ``z``."""
        Y, Z = logits.shape[2:]
        self.sums[:, 1:, y : y + Y, z : z + Z] += logits

    def advance(self, planes: int) -> None:
        """Forget ``planes`` finished planes but the last, and make room behind."""
        rest = self.sums.shape[1] - planes
        self.sums[:, :rest] = self.sums[:, planes:].clone()
        self.sums[:, rest:] = 0


def fill_gaussian(
    canvas: Canvas,
    runner: Runner,
    grid: Tensor,
    window: Sequence[int],
    *,
    tile_batch: int,
    progress: bool,
) -> None:
    """Fill the canvas from overlapping windows.

    Args:
        canvas: What to fill.
        runner: The network.
        grid: (1, C, X, Y, Z), the whole model grid, on the CPU.
        window: (x, y, z), cut to the grid where it is larger.
        tile_batch: Windows that run together.
        progress: Show a bar on stderr.
    """
    shape = grid.shape[2:]
    window = fitted(window, shape)
    xs, ys, zs = (window_starts(n, w, OVERLAP) for n, w in zip(shape, window, strict=True))
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
            _fill_planes(canvas, slab, x, next_x)
            slab.advance(next_x - x)


def slab_bytes(num_channels: int, window: Sequence[int], shape: Sequence[int]) -> int:
    """Return the bytes that ``fill_gaussian`` holds beside the network's activations."""
    depth = fitted(window, shape)[0] + 1
    return 2 * 4 * num_channels * depth * shape[1] * shape[2]


def fitted(window: Sequence[int], shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the window, no side longer than the volume's."""
    x, y, z = (min(w, n) for w, n in zip(window, shape, strict=True))
    return x, y, z


def _fill_planes(canvas: Canvas, slab: Slab, x: int, next_x: int) -> None:
    """Answer the own voxels whose last needed plane became final: those up to ``next_x - 1``."""
    first, last = np.searchsorted(canvas.positions[0], [x - 1, next_x - 1], side="right")
    if last > first:
        everywhere = (slice(0, len(p)) for p in canvas.positions[1:])
        own = (slice(int(first), int(last)), *everywhere)
        canvas.fill(slab.sums[:, : next_x - x + 1], (x - 1, 0, 0), own)


def _slices(start: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
