"""How a volume is cut for the network: cores with real context, or weighted windows.

Two grids meet here. The network reads the *model grid* (after resampling); answers are wanted at
the voxels of the scan's *own grid*, oriented alike, whose centers lie at ``positions`` along each
axis of the model grid. Everything is separable, so a tile is three ``Span``, one an axis.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_SPLITS = 64  # parts an axis is cut into at most when tiles are chosen by memory


@dataclass(frozen=True)
class Span:
    """One axis of a tile, as half-open ranges."""

    read: tuple[int, int]  # what the network sees, on the model grid
    keep: tuple[int, int]  # what is kept of its answer, on the model grid
    own: tuple[int, int]  # the voxels answered, on the own grid

    @property
    def read_size(self) -> int:
        """Voxels the network sees along this axis."""
        return self.read[1] - self.read[0]


@dataclass(frozen=True)
class Tile:
    """What the network reads and what of its answer is kept, along X, Y and Z."""

    spans: tuple[Span, Span, Span]

    @property
    def read_shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) the network sees."""
        x, y, z = (span.read_size for span in self.spans)
        return x, y, z

    @property
    def read(self) -> tuple[slice, slice, slice]:
        """Slices of the model grid that the network sees."""
        x, y, z = (slice(*span.read) for span in self.spans)
        return x, y, z

    @property
    def kept(self) -> tuple[slice, slice, slice]:
        """Slices of the network's answer that are kept, relative to what it read."""
        x, y, z = (
            slice(span.keep[0] - span.read[0], span.keep[1] - span.read[0]) for span in self.spans
        )
        return x, y, z

    @property
    def origin(self) -> tuple[int, int, int]:
        """Model-grid index of the first kept voxel."""
        x, y, z = (span.keep[0] for span in self.spans)
        return x, y, z

    @property
    def own(self) -> tuple[slice, slice, slice]:
        """Slices of the own grid that this tile answers."""
        x, y, z = (slice(*span.own) for span in self.spans)
        return x, y, z


@dataclass(frozen=True)
class Context:
    """What a network needs around a block of its output to compute it exactly."""

    stride: int  # blocks start and end at multiples of it
    halo: int  # voxels of real context beyond a block, on each side


def own_positions(size: int, own_size: int, scale: float, offset: float) -> np.ndarray:
    """Return where the centers of the own voxels lie along one axis of the model grid.

    Beyond the first and last center of the model grid the nearest of them answers.

    Returns:
        (own_size,) float64, ascending, within [0, size - 1].
    """
    return np.clip(scale * np.arange(own_size) + offset, 0.0, size - 1.0)


def split_axis(size: int, core: int, context: Context, positions: np.ndarray) -> list[Span]:
    """Cut one axis into cores and give each its context, clipped at the volume's border.

    A core answers the own voxels between its first voxel and the next core's; interpolation there
    needs up to two voxels of its neighbors, and context is counted from what is needed.
    Cores without own voxels are left out. At the high border the network pads by itself.

    Args:
        size: Voxels of the model grid along this axis.
        core: Voxels of a core; a multiple of the stride.
        context: The network's stride and halo.
        positions: (own_size,) ascending, see ``own_positions``.
    """
    stride, halo = context.stride, context.halo
    reach = 0 if (positions == np.floor(positions)).all() else 1  # of cubic interpolation
    spans = []
    for start in range(0, size, core):
        first, last = np.searchsorted(positions, [start, start + core])
        if first == last:
            continue
        low = max(0, math.floor(positions[first]) - reach)
        high = min(size, math.ceil(positions[last - 1]) + 1 + reach)
        read = (
            max(0, low // stride * stride - halo),
            min(size, math.ceil(high / stride) * stride + halo),
        )
        spans.append(Span(read, (low, high), (int(first), int(last))))
    return spans


def tiles_of(axes: Sequence[list[Span]]) -> list[Tile]:
    """Combine the spans of three axes into tiles, X slowest."""
    return [Tile((x, y, z)) for x, y, z in itertools.product(*axes)]


def exact_tiles(
    shape: Sequence[int], positions: Sequence[np.ndarray], context: Context, max_voxels: int
) -> list[Tile]:
    """Choose the tiles that read the fewest voxels in all, none more than ``max_voxels``.

    Args:
        shape: (X, Y, Z) of the model grid.
        positions: Own voxel centers along each axis.
        context: The network's stride and halo.
        max_voxels: Voxels that fit in memory at once.

    Returns:
        The tiles, X slowest; an empty list if even the smallest do not fit.
    """
    choices = [
        [split_axis(n, core, context, p) for core in _cores(n, context.stride)]
        for n, p in zip(shape, positions, strict=True)
    ]
    costs = [[_cost(spans, context.stride) for spans in options] for options in choices]
    best, best_work = None, math.inf
    for picks in itertools.product(*(range(len(options)) for options in choices)):
        largest = math.prod(costs[axis][pick][0] for axis, pick in enumerate(picks))
        work = math.prod(costs[axis][pick][1] for axis, pick in enumerate(picks))
        if largest <= max_voxels and work < best_work:
            best, best_work = picks, work
    if best is None:
        return []
    return tiles_of([choices[axis][pick] for axis, pick in enumerate(best)])


def smallest_tile_voxels(
    shape: Sequence[int], positions: Sequence[np.ndarray], context: Context
) -> int:
    """Return how many voxels the largest of the smallest possible tiles reads."""
    return math.prod(
        min(
            _cost(split_axis(n, core, context, p), context.stride)[0]
            for core in _cores(n, context.stride)
        )
        for n, p in zip(shape, positions, strict=True)
    )


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Return where windows start so that they cover an axis with at least ``overlap``.

    The first starts at 0 and the last ends at the border; between them they are spread evenly.
    """
    window = min(window, size)
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((size - window) / step) + 1
    return [round(i * (size - window) / max(1, count - 1)) for i in range(count)]


def gaussian_weights(size: int, window: int, starts: Sequence[int]) -> list[np.ndarray]:
    """Return each window's weights along one axis, scaled so that they sum to 1 at every voxel.

    Weights and their sums are separable: the product over three axes needs no division later.
    Source: the width, an eighth of the window, is that of nnU-Net (Isensee et al. 2021).

    Returns:
        One (window,) float32 a start.
    """
    window = min(window, size)
    distance = (np.arange(window) - (window - 1) / 2) / (window / 8)
    bell = np.exp(-0.5 * distance**2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + window] += bell
    return [(bell / total[start : start + window]).astype(np.float32) for start in starts]


def _cores(size: int, stride: int) -> list[int]:
    """Return the different core sizes that cut an axis into 1, 2, 3, ... even parts."""
    blocks = math.ceil(size / stride)
    parts = range(1, min(blocks, MAX_SPLITS) + 1)
    cores = {math.ceil(blocks / n) * stride for n in parts}
    return sorted(cores | {stride}, reverse=True)


def _cost(spans: list[Span], stride: int) -> tuple[int, int]:
    """Return the longest and the summed read of an axis, as the network pads them."""
    padded = [math.ceil(span.read_size / stride) * stride for span in spans]
    return max(padded), sum(padded)
