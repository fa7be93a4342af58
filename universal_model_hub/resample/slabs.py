"""Resampling a volume slab by slab, each axis as a few small dense products."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from universal_model_hub.errors import ConfigError, TooLargeError, VolumeError
from universal_model_hub.resample.weights import ORDERS, axis_weights, positions

SLAB_ROWS = 32  # rows a product: fewer waste its start-up, more waste it on zeros outside the band
MAX_BYTES = 8 * 2**30  # of one resampled volume


def resample(
    array: np.ndarray | Tensor,
    size: Sequence[int],
    scale: Sequence[float],
    offset: Sequence[float],
    order: int,
    *,
    clip: tuple[float, float] | None = None,
    max_bytes: int = MAX_BYTES,
    device: torch.device | str | None = None,
) -> Tensor:
    """Sample a volume at ``scale * i + offset`` along each axis.

    The input is converted a slab at a time and never modified: beside the result, the work memory
    is some dozens of rows along X, not a second volume.

    Args:
        array: (X, Y, Z), any real dtype, any memory order.
        size: Voxels of the result along each axis.
        scale: Step between two output voxels along each axis, in input voxels; above 0.
        offset: Where output voxel 0 lies along each axis, in input voxels.
        order: 0 nearest (a half rounds up), 1 linear, 3 cubic B-spline.
        clip: Lowest and highest input value kept, for orders 1 and 3; a spline may overshoot them.
        max_bytes: Largest result, in bytes.
        device: Where to compute and where the result lies; None: where the input is.

    Returns:
        (X', Y', Z'), contiguous: float32 for orders 1 and 3, the input's dtype for order 0.

    Raises:
        VolumeError: If the array is not 3D and real, or has an empty side.
        ConfigError: If size, scale, offset or order cannot be used.
        TooLargeError: If the result needs more than ``max_bytes``.
    """
    source = _plain(array)
    sizes = _checked_grid(size, scale, offset, order)
    _check_bytes(sizes, source.itemsize if order == 0 else 4, max_bytes)
    if device is None:
        device = array.device if isinstance(array, Tensor) else "cpu"
    grid = list(zip(source.shape, sizes, scale, offset, strict=True))
    if order == 0:
        return _nearest(source, grid, torch.device(device))
    axes = [_Axis.build(*step, order=order, device=torch.device(device)) for step in grid]
    result = torch.empty(sizes, dtype=torch.float32, device=device)
    # Inside a caller's autocast the products would silently run in bfloat16.
    with torch.no_grad(), torch.autocast(result.device.type, enabled=False):
        _resample_into(result, source, axes, clip)
    return result


@dataclass(frozen=True)
class _Band:
    """Consecutive output rows of an axis and the consecutive input rows that they need."""

    rows: slice  # of the output
    reach: slice  # of the input
    matrix: Tensor | None  # (rows, reach); None: ``picks`` are exact
    picks: Tensor | None  # (rows,), counted from reach.start

    def apply(self, block: Tensor, dim: int) -> Tensor:
        """Make the output rows from ``block``, the input rows of ``reach`` along ``dim``."""
        if self.matrix is None:
            assert self.picks is not None
            return block.index_select(dim, self.picks)
        block = block.to(self.matrix.dtype)
        if dim == 0:
            product = self.matrix @ block.flatten(1)
            return product.view(-1, *block.shape[1:])
        return self.matrix @ block if dim == 1 else block @ self.matrix.T


@dataclass(frozen=True)
class _Axis:
    """The interpolation along one axis."""

    side: int
    size: int
    bands: tuple[_Band, ...]
    identity: bool

    @classmethod
    def build(
        cls, side: int, size: int, scale: float, offset: float, *, order: int, device: torch.device
    ) -> "_Axis":
        position = positions(side, size, scale, offset)
        # At voxel centers a spline gives the voxel itself: pick it, which is exact and free.
        exact = np.array_equal(position, np.rint(position))
        index, weights = axis_weights(side, size, scale, offset, 0 if exact else order)
        rows = max(1, int(SLAB_ROWS / max(scale, 1.0)))
        bands = tuple(
            _band(slice(start, min(start + rows, size)), index, weights, exact, device)
            for start in range(0, size, rows)
        )
        identity = exact and side == size and np.array_equal(position, np.arange(side))
        return cls(side, size, bands, identity)

    def apply(self, slab: Tensor, dim: int) -> Tensor:
        """Bring one axis of a slab, ``dim`` 1 or 2, from ``side`` to ``size`` voxels."""
        if self.identity:
            return slab
        shape = list(slab.shape)
        shape[dim] = self.size
        result = slab.new_empty(shape)
        for band in self.bands:
            block = slab.narrow(dim, band.reach.start, band.reach.stop - band.reach.start)
            target = result.narrow(dim, band.rows.start, band.rows.stop - band.rows.start)
            target.copy_(band.apply(block, dim))
        return result


def _band(
    rows: slice, index: np.ndarray, weights: np.ndarray, exact: bool, device: torch.device
) -> _Band:
    index, weights = index[rows], weights[rows]
    reach = slice(int(index.min()), int(index.max()) + 1)
    if exact:
        picks = torch.from_numpy(index[:, 0] - reach.start).to(device)
        return _Band(rows, reach, None, picks)
    dense = np.zeros((len(index), reach.stop - reach.start))
    np.add.at(dense, (np.arange(len(index))[:, None], index - reach.start), weights)
    # Below "highest", torch may round the factors of a float32 product to bfloat16.
    full = torch.get_float32_matmul_precision() == "highest"
    matrix = torch.from_numpy(dense).to(device, torch.float32 if full else torch.float64)
    return _Band(rows, reach, matrix, None)


def _resample_into(
    result: Tensor,
    source: np.ndarray | Tensor,
    axes: Sequence[_Axis],
    clip: tuple[float, float] | None,
) -> None:
    """Walk along X: bring each input row to its final Y and Z once, hold only rows still needed."""
    axis_x, axis_y, axis_z = axes
    # The axis that shrinks most goes first: it leaves less for the next one.
    y_first = axis_y.size * axis_z.side <= axis_z.size * axis_y.side
    held, held_from = result.new_empty((0, *result.shape[1:])), 0
    for band in axis_x.bands:
        begin = max(held_from + len(held), band.reach.start)
        pieces = [held[max(0, band.reach.start - held_from) :]]
        for start in range(begin, band.reach.stop, SLAB_ROWS):
            slab = _slab(source, slice(start, min(start + SLAB_ROWS, band.reach.stop)))
            slab = slab.to(result.device)
            if clip is not None:
                slab = slab.clamp_(*clip)
            for dim in (1, 2) if y_first else (2, 1):
                slab = axes[dim].apply(slab, dim)
            pieces.append(slab)
        held, held_from = torch.cat(pieces), band.reach.start
        result[band.rows] = band.apply(held, 0)


def _slab(source: np.ndarray | Tensor, rows: slice) -> Tensor:
    """Copy some rows along X into a contiguous float32 tensor, whatever the memory order."""
    part = source[rows]
    if isinstance(part, Tensor):
        return torch.empty(part.shape, dtype=torch.float32, device=part.device).copy_(part)
    strides = [
        abs(s) if n > 1 else part.nbytes for s, n in zip(part.strides, part.shape, strict=True)
    ]
    nearest = int(np.argmin(strides))
    if nearest == 2:
        return torch.from_numpy(np.array(part, dtype=np.float32, order="C"))
    # Files hold X fastest. Gathering in memory order, then turning Z inwards in one transposition
    # that stays in the cache, is several times as fast as a plain strided copy.
    other = 1 - nearest
    turn = (2, other, nearest)
    native = part.dtype.newbyteorder("=")
    gathered = torch.from_numpy(np.array(part.transpose(turn), dtype=native, order="C"))
    flat = gathered.flatten(1)  # (Z, X * Y)
    turned = torch.empty(flat.shape[::-1], dtype=flat.dtype).copy_(flat.t())
    turned = turned.view(part.shape[other], part.shape[nearest], part.shape[2])
    ordered = turned if nearest == 1 else turned.transpose(0, 1)
    return torch.empty(part.shape, dtype=torch.float32).copy_(ordered)


def _nearest(
    source: np.ndarray | Tensor, grid: Sequence[tuple[int, int, float, float]], device: torch.device
) -> Tensor:
    x, y, z = (axis_weights(*step, order=0)[0][:, 0] for step in grid)
    if isinstance(source, np.ndarray):
        native = source.dtype.newbyteorder("=")
        result = np.ascontiguousarray(source[np.ix_(x, y, z)], dtype=native)
        return torch.from_numpy(result).to(device)
    for dim, index in enumerate((x, y, z)):
        source = source.index_select(dim, torch.from_numpy(index).to(source.device))
    return source.to(device)


def _plain(array: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Check an array; NumPy wherever the data are on the CPU."""
    if isinstance(array, Tensor):
        array = array.detach()
        real = not array.dtype.is_complex
        if array.device.type == "cpu" and array.dtype != torch.bfloat16:  # NumPy has no bfloat16
            array = array.numpy()
    else:
        array = np.asarray(array)
        real = array.dtype.kind in "buif" and array.dtype.itemsize <= 8
    if not real or array.ndim != 3 or 0 in array.shape:
        raise VolumeError(
            f"Expected a 3D array of real numbers without an empty side, got shape "
            f"{tuple(array.shape)} of {array.dtype}."
        )
    return array


def _checked_grid(
    size: Sequence[int], scale: Sequence[float], offset: Sequence[float], order: int
) -> tuple[int, ...]:
    if order not in ORDERS:
        raise ConfigError(f"Expected an interpolation order of {ORDERS}, got {order!r}.")
    if not len(size) == len(scale) == len(offset) == 3:
        raise ConfigError(
            f"Expected three sizes, scales and offsets, got {size}, {scale} and {offset}."
        )
    if min(size) < 1:
        raise ConfigError(f"Expected a result of at least one voxel a side, got {tuple(size)}.")
    if not all(math.isfinite(s) and s > 0 for s in scale) or not all(map(math.isfinite, offset)):
        raise ConfigError(
            f"Expected finite scales above 0 and finite offsets, got {tuple(scale)} and "
            f"{tuple(offset)}."
        )
    return tuple(int(n) for n in size)


def _check_bytes(sizes: tuple[int, ...], itemsize: int, max_bytes: int) -> None:
    need = math.prod(sizes) * itemsize
    if need > max_bytes:
        voxels = " x ".join(f"{n:,}" for n in sizes)
        raise TooLargeError(
            f"Expected a result of at most {max_bytes / 2**30:,.1f} GiB, got a grid of {voxels} "
            f"voxels, which needs {need / 2**30:,.1f} GiB. Check the spacing (is it in mm?), crop "
            "the scan, or raise max_bytes."
        )
