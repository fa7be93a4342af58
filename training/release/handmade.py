"""Hand-made features of every voxel: what a probe reaches without any network.

Intensity, and at three widths its mean, gradient, Laplacian, spread and a soft histogram.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIGMAS = (1.0, 2.0, 4.0)  # voxels
BINS = 8  # of the soft histogram over [0, 1]
REACH = 3  # standard deviations that a kernel reaches


class HandFeatures(nn.Module):
    """Maps (N, 1, X, Y, Z) to one map (N, ``channels[0]``, X, Y, Z); nothing in it learns."""

    stride = 1
    halo = math.ceil(REACH * max(SIGMAS)) + 2  # a gradient looks one voxel further
    strides = (1,)
    channels = (1 + len(SIGMAS) * (4 + BINS),)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of cubes in [0, 1]."""
        found = [x]
        bins = soft_histogram(x)
        for sigma in SIGMAS:
            mean = blurred(x, sigma)
            spread = (blurred(x * x, sigma) - mean * mean).clamp_min(0).sqrt()
            gradient, laplacian = derivatives(mean)
            found += [mean, sigma * gradient, sigma**2 * laplacian, spread, blurred(bins, sigma)]
        return [torch.cat(found, dim=1)]


def soft_histogram(x: Tensor) -> Tensor:
    """Return how near each voxel of (N, 1, X, Y, Z) lies to each bin: (N, BINS, X, Y, Z)."""
    centers = torch.linspace(0, 1, BINS, device=x.device).view(1, -1, 1, 1, 1)
    return (1 - (x - centers).abs() * (BINS - 1)).clamp_min(0)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Blur (N, C, X, Y, Z) with a Gaussian of ``sigma`` voxels, edges repeated."""
    reach = math.ceil(REACH * sigma)
    places = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel /= kernel.sum()
    N, C, X, Y, Z = x.shape
    x = x.reshape(N * C, 1, X, Y, Z)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = -1
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = reach
        x = F.conv3d(F.pad(x, padding, mode="replicate"), kernel.view(shape))
    return x.reshape(N, C, X, Y, Z)


def derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient's length and the Laplacian of (N, C, X, Y, Z), by central differences."""
    padded = F.pad(x, (1,) * 6, mode="replicate")
    squared, laplacian = torch.zeros_like(x), torch.zeros_like(x)
    for axis in (2, 3, 4):
        inner = padded
        for other in {2, 3, 4} - {axis}:
            inner = inner.narrow(other, 1, x.shape[other])
        before, after = inner.narrow(axis, 0, x.shape[axis]), inner.narrow(axis, 2, x.shape[axis])
        squared += ((after - before) / 2) ** 2
        laplacian += after + before - 2 * x
    return squared.sqrt(), laplacian
