"""Parts that networks share: units, the two batch norms, padding, recomputed activations."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from universal_model_hub.errors import ConfigError, VolumeError
from universal_model_hub.rounding import rounding_again

Normalization = Literal["running", "batch"]


class BatchStatisticsNorm3d(nn.BatchNorm3d):
    """Batch norm that uses the batch's own mean and variance in eval mode too.

    The published checkpoints were trained and evaluated this way: their outputs depend on the
    batch and on the size of the cube. Training updates the running buffers as usual; eval leaves
    them alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, X, Y, Z) by its own statistics."""
        if self.training:
            return super().forward(input)
        # The function below F.batch_norm: it also takes one value a channel (an 8-voxel cube).
        return torch.batch_norm(
            input, self.weight, self.bias, None, None, True, 0.0, self.eps, True
        )


class ConvUnit(nn.Module):
    """Convolution of 3 x 3 x 3 with bias, batch norm, ReLU; the size stays."""

    def __init__(self, in_channels: int, out_channels: int, normalization: Normalization) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm = _norm(out_channels, normalization)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) to (N, out_channels, X, Y, Z)."""
        return self.activation(self.norm(self.conv(x)))


def pad_to_stride(x: Tensor, stride: int) -> Tensor:
    """Pad (N, C, X, Y, Z) with 0 at the high end of X, Y, Z to multiples of ``stride``."""
    if x.ndim != 5 or 0 in x.shape[2:]:
        raise VolumeError(
            f"Expected a batch (N, C, X, Y, Z) of at least one voxel, got shape {tuple(x.shape)}. "
            "Add the axes that are missing, as in volume[None, None]."
        )
    short = [-side % stride for side in x.shape[2:]]
    if not any(short):
        return x
    return F.pad(x, (0, short[2], 0, short[1], 0, short[0]))


def same_padded(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pad with 0 so that windows give ceil(side / stride) values an axis, as TensorFlow's SAME.

    How much depends on the side; an odd voxel goes to the high end.

    Args:
        x: (N, C, then three axes).
        kernel: Window of each of the three axes, in voxels.
        stride: Step of each.
    """
    missing = [
        max(0, (math.ceil(side / step) - 1) * step + width - side)
        for side, width, step in zip(x.shape[2:], kernel, stride, strict=True)
    ]
    if not any(missing):
        return x
    # F.pad takes the last axis first.
    return F.pad(x, [part for m in reversed(missing) for part in (m // 2, m - m // 2)])


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Keep the low end of (N, C, X, Y, Z): X, Y, Z become ``shape``."""
    return x[:, :, : shape[0], : shape[1], : shape[2]]


def run_level(level: nn.Module, *inputs: Tensor, on: bool) -> Tensor:
    """Run one level, with its activations recomputed in the backward pass when ``on``."""
    if not on or not torch.is_grad_enabled():
        return level(*inputs)

    rounding = rounding_again()

    @contextlib.contextmanager
    def recomputing() -> Iterator[None]:
        with rounding, _statistics_kept(level):
            yield

    contexts: Callable = lambda: (contextlib.nullcontext(), recomputing())  # noqa: E731
    return checkpoint(level, *inputs, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _statistics_kept(level: nn.Module) -> Iterator[None]:
    """Leave running statistics alone: the recomputation would count every batch twice."""
    norms = [module for module in level.modules() if isinstance(module, nn.BatchNorm3d)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm, _, counted in before:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if counted is None else counted.clone()
        yield
    finally:
        for norm, momentum, counted in before:
            norm.momentum, norm.num_batches_tracked = momentum, counted


def _norm(channels: int, normalization: Normalization) -> nn.BatchNorm3d:
    if normalization == "running":
        return nn.BatchNorm3d(channels)
    if normalization == "batch":
        return BatchStatisticsNorm3d(channels)
    raise ConfigError(f"Expected normalization 'running' or 'batch', got {normalization!r}.")
