"""The answer on the scan's own grid, filled block by block from logits on the model grid.

Logits are interpolated first and decided after: a class border then falls where two logits cross
between voxels, and logits of all classes are held only for one block at a time.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CHUNK_BYTES = 16 * 2**20  # of logits that are interpolated at once


class Canvas:
    """Labels or probabilities of the own grid, in the orientation of the model grid.

    Args:
        positions: Where own voxel centers lie along each axis of the model grid, in its voxels.
        num_channels: Channels K of the logits; 1 means one binary logit.
        probabilities: Keep one map a class instead of labels.
    """

    def __init__(
        self, positions: Sequence[np.ndarray], num_channels: int, *, probabilities: bool
    ) -> None:
        self.positions = tuple(positions)
        self.num_channels = num_channels
        self.probabilities = probabilities
        shape = tuple(len(p) for p in positions)
        if probabilities:
            self.array = np.zeros((num_channels, *shape), np.float32)
        else:
            self.array = np.zeros(shape, label_dtype(num_channels))

    def fill(self, logits: Tensor, origin: Sequence[int], own: Sequence[slice]) -> None:
        """Answer the own voxels ``own`` from a block of logits.

        Args:
            logits: (K, x, y, z), float32, covering the voxels around those of ``own``.
            origin: Model-grid index of the block's first voxel.
            own: Slices of the own grid.
        """
        sides = (max(s.stop - s.start, n) for s, n in zip(own[1:], logits.shape[2:], strict=True))
        plane_bytes = 4 * self.num_channels * math.prod(sides)
        step = max(1, CHUNK_BYTES // plane_bytes)
        at = [p[s] - o for p, s, o in zip(self.positions, own, origin, strict=True)]
        for low in range(0, len(at[0]), step):
            block = between(logits, at[0][low : low + step], axis=1)
            block = between(between(block, at[1], axis=2), at[2], axis=3)
            start = own[0].start + low
            planes = slice(start, start + block.shape[1])
            self.array[..., planes, own[1], own[2]] = self._decided(block)

    def _decided(self, logits: Tensor) -> np.ndarray:
        """Turn (K, x, y, z) logits into labels (x, y, z) or probabilities (K, x, y, z)."""
        if self.probabilities:
            values = logits.sigmoid() if self.num_channels == 1 else logits.softmax(dim=0)
            return values.cpu().numpy()
        if self.num_channels == 1:
            return (logits[0] > 0).cpu().numpy()
        return logits.argmax(dim=0).to(torch.int32).cpu().numpy()


def block_of(values: Tensor, where: Sequence[slice]) -> Tensor:
    """Return the part of (..., X, Y, Z) at three slices."""
    x, y, z = where
    return values[..., x, y, z]


def label_dtype(num_channels: int) -> np.dtype:
    """Return the smallest unsigned dtype that holds every label of ``num_channels`` channels."""
    return np.min_scalar_type(max(num_channels - 1, 1))


def between(block: Tensor, at: np.ndarray, axis: int) -> Tensor:
    """Interpolate along one axis at the positions ``at``, in voxels of the block.

    Cubic convolution over four voxels; past the block's ends its last voxels repeat. Positions on
    voxel centers give those voxels bit by bit. Linear interpolation would shrink small shapes.

    Source: Keys, 1981, Eq. 8 (a = -1/2).
    """
    low = np.floor(at).astype(np.int64)
    fraction = (at - low).astype(np.float32)
    if not fraction.any():
        return block.index_select(axis, torch.from_numpy(low).to(block.device))
    t, last = fraction, block.shape[axis] - 1
    weights = (
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )
    shape = [-1 if a == axis else 1 for a in range(block.ndim)]
    result: Tensor | None = None
    for tap, weight in zip(range(-1, 3), weights, strict=True):
        index = torch.from_numpy(np.clip(low + tap, 0, last)).to(block.device)
        values = block.index_select(axis, index)
        factor = torch.from_numpy(weight).to(block.device).view(shape)
        result = values.mul_(factor) if result is None else result.addcmul_(values, factor)
    assert result is not None
    return result
