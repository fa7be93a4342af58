"""What is compared: the encoder, the same network with random weights, and hand-made features.

Batch norm carries the intensities of the scans that an encoder was trained on. So there is also the
encoder with the statistics of the user's scans: what its kernels know, whatever those were.

All arms run side by side in one pass, so that they see the same voxels of the same tiles.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from universal_model_hub.errors import ConfigError
from universal_model_hub.networks.pyramid import PyramidEncoder

ENCODER, SETTLED = "encoder", "encoder, new statistics"
RANDOM, HAND_MADE = "random weights", "hand-made"
ARMS = (ENCODER, SETTLED, RANDOM, HAND_MADE)
SIZES = (5, 11)  # voxels: sides of the neighborhoods of the hand-made features


class HandMade(nn.Module):
    """Intensity, local mean and spread at two sizes, gradient: (N, 1, X, Y, Z) to six maps."""

    halo = max(SIZES) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 2 + 2 * len(SIZES), X, Y, Z)."""
        maps = [x]
        for size in SIZES:
            mean = local_mean(x, size)
            maps += [mean, (local_mean(x * x, size) - mean * mean).clamp_min(0).sqrt()]
        return torch.cat([*maps, gradient_length(x)], dim=1)


class SideBySide(nn.Module):
    """All arms as one network: (N, 1, X, Y, Z) to the maps of each arm, one after the other."""

    def __init__(self, encoder: nn.Module, random: nn.Module) -> None:
        super().__init__()
        self.encoder, self.random, self.hand_made = encoder, random, HandMade()
        self.settled = copy.deepcopy(encoder).cpu()
        self.stride = getattr(encoder, "stride", 1)
        if isinstance(getattr(encoder, "halo", None), int):
            self.halo = max(int(encoder.halo), HandMade.halo)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of each network, the same number each, and one of the hand-made.

        Raises:
            ConfigError: If the encoder does not return a list of feature maps.
        """
        maps = self.encoder(x)
        is_list = isinstance(maps, list | tuple) and len(maps) > 0
        if not is_list or any(not isinstance(m, Tensor) or m.ndim != 5 for m in maps):
            raise ConfigError(
                "Expected an encoder that returns a list of feature maps (N, C, X, Y, Z), finest "
                "first, or a model that has one as .encoder. Load one with load_encoder()."
            )
        return [*maps, *self.settled(x), *self.random(x), self.hand_made(x)]


def arm_maps(maps: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Return which of the maps of ``SideBySide`` belong to which arm."""
    each = (len(maps) - 1) // (len(ARMS) - 1)
    return {arm: maps[k * each : (k + 1) * each] for k, arm in enumerate(ARMS[:-1])} | {
        HAND_MADE: maps[-1:]
    }


def side_by_side(model: nn.Module, *, deepest_only: bool, seed: int) -> SideBySide:
    """Return the arms of a model: its encoder, a copy to settle, and one with random weights.

    Args:
        model: An encoder, or a model that has one as ``encoder``; left as it is.
        deepest_only: Leave out all maps but the deepest.
        seed: Of the random weights.
    """
    encoder = getattr(model, "encoder", model)
    if isinstance(encoder, PyramidEncoder):
        encoder = copy.copy(encoder)  # shares the weights; only what it returns differs
        num_levels = len(encoder.maps)
        encoder.out_indices = (num_levels - 1,) if deepest_only else tuple(range(num_levels))
    return SideBySide(encoder, random_weights(encoder, seed))


def random_weights(network: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a network, freshly initialized, on the CPU.

    Raises:
        ConfigError: If a part of it does not say how it is initialized.
    """
    fresh = copy.deepcopy(network).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise ConfigError(
                    "Expected every part of the encoder to have reset_parameters(), to compare it "
                    f"with random weights; {type(module).__name__} has none. Add it."
                )
    return fresh


@torch.no_grad()
def settle_statistics(network: nn.Module, cubes: Sequence[Tensor]) -> None:
    """Set the running statistics of batch norm to the average over cubes (1, 1, X, Y, Z).

    Without them a random network would be worse than the one that training starts from, for many
    of its units would never fire; and an encoder is worse on scans unlike those of its training.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    network.train(True)
    for cube in cubes:
        network(cube)
    network.train(False)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def local_mean(x: Tensor, size: int) -> Tensor:
    """Return the mean of the voxels within a box around each voxel; the box ends at the border."""
    for axis in range(3):
        kernel, padding = [1, 1, 1], [0] * 6
        kernel[axis] = size
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = size // 2
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = x.shape[2 + axis]
        inside = F.avg_pool3d(F.pad(x.new_ones(shape), padding), kernel, stride=1)
        x = F.avg_pool3d(F.pad(x, padding), kernel, stride=1) / inside
    return x


def gradient_length(x: Tensor) -> Tensor:
    """Return the length of the gradient by central differences, in intensity per voxel."""
    padded = F.pad(x, (1,) * 6, mode="replicate")
    squared = torch.zeros_like(x)
    for axis in (2, 3, 4):
        line = padded
        for other in {2, 3, 4} - {axis}:
            line = line.narrow(other, 1, x.shape[other])
        size = x.shape[axis]
        squared += ((line.narrow(axis, 2, size) - line.narrow(axis, 0, size)) / 2) ** 2
    return squared.sqrt()
