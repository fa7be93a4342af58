"""What every encoder is: a network that gives feature maps of a cube, finest first."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.networks.layers import crop, pad_to_stride


class FeatureInfo(NamedTuple):
    """What one feature map of an encoder is."""

    channels: int
    stride: int | tuple[int, int, int]  # input voxels per feature voxel; three where axes differ
    level: int  # what out_indices calls it; 0 is the finest

    @property
    def strides(self) -> tuple[int, int, int]:
        """Input voxels per feature voxel along X, Y and Z."""
        return self.stride if isinstance(self.stride, tuple) else (self.stride,) * 3


class PyramidEncoder(nn.Module):
    """Base of the encoders: a subclass describes its maps and computes them in ``pyramid``.

    Args:
        maps: Channels and stride of every map that ``pyramid`` gives, finest first.
        in_channels: Channels of the input.
        width: What the channels of all layers are a multiple of.
        out_indices: Maps that ``forward`` returns, negative ones counted from the deepest;
            ``None`` for all. The parameters are the same whatever is returned.
        checkpointing: Recompute activations in the backward pass instead of keeping them.
    """

    stride: int  # the largest of any map along any axis
    halo: int | None  # context that exact tiles need; None where there are none

    def __init__(
        self,
        maps: Sequence[FeatureInfo],
        *,
        in_channels: int,
        width: int,
        out_indices: Sequence[int] | None,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.maps = tuple(maps)
        self.in_channels = in_channels
        self.width = width
        self.checkpointing = checkpointing
        self.out_indices = _levels_of(out_indices, len(self.maps))

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """What builds this encoder again."""
        return {"in_channels": self.in_channels, "width": self.width}

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """Channels, stride and level of each feature map that ``forward`` returns."""
        return [self.maps[k] for k in self.out_indices]

    @property
    def num_features(self) -> int:
        """Channels of the deepest map, the length of an embedding."""
        return self.maps[-1].channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the chosen feature maps of (N, C, X, Y, Z), finest first.

        Feature k is (N, channels, ceil(X / stride), ceil(Y / stride), ceil(Z / stride)), with
        channels and stride of ``maps[k]``.

        Raises:
            VolumeError: If ``x`` does not have five axes of at least one voxel.
        """
        features = self.pyramid(self.padded(x), depth=max(self.out_indices) + 1)
        return [crop(features[k], _map_shape(x, self.maps[k])) for k in self.out_indices]

    def padded(self, x: Tensor) -> Tensor:
        """Pad (N, C, X, Y, Z) with 0 at the high end to sides that ``pyramid`` takes."""
        return pad_to_stride(x, self.stride)

    def pyramid(self, x: Tensor, depth: int | None = None) -> list[Tensor]:
        """Return the first ``depth`` maps, all for ``None``, of sides as ``padded`` gives them."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> Tensor:
        """Return (N, F): the mean of the deepest map of (N, C, X, Y, Z)."""
        deepest = self.pyramid(self.padded(x))[-1]
        return crop(deepest, _map_shape(x, self.maps[-1])).mean(dim=(2, 3, 4))


def scaled(channels: int, width: int, full_width: int) -> int:
    """Return the channels of a layer, given at full width, at another width; at least one."""
    return math.ceil(channels * width / full_width)


def _map_shape(x: Tensor, info: FeatureInfo) -> list[int]:
    return [-(-side // stride) for side, stride in zip(x.shape[2:], info.strides, strict=True)]


def _levels_of(out_indices: Sequence[int] | None, num_levels: int) -> tuple[int, ...]:
    """Turn the caller's choice of levels into ascending indices from 0."""
    if out_indices is None:
        return tuple(range(num_levels))
    chosen = tuple(out_indices)
    valid = all(isinstance(k, int) and -num_levels <= k < num_levels for k in chosen)
    levels = sorted({k % num_levels for k in chosen}) if valid else []
    if not levels or len(levels) != len(chosen):
        raise ConfigError(
            f"Expected out_indices to name different levels of 0 to {num_levels - 1}, "
            f"got {out_indices!r}."
        )
    return tuple(levels)
