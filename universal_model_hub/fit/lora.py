"""Low-rank adapters for 3D convolutions: few parameters train, and merge into the plain weights.

``y = W x + (alpha / r) B A x``: A is a convolution of W's kernel to r channels, B one of 1 x 1 x 1
back to W's. B starts at zero, so the network starts as it was. Source: Hu et al. 2021 (LoRA); the
convolutional form is that of LoCon. Norms train beside the adapters, and the head as a whole.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from universal_model_hub.errors import ConfigError

SHARE = 0.05  # of all parameters: adapters and norms of the default rank stay below
ALPHA_PER_RANK = 2.0  # alpha / r: the usual choice of alpha = 2 r
LARGEST_RANK = 64


class LoraConv3d(nn.Module):
    """A convolution with frozen weights and a low-rank update beside it."""

    def __init__(self, conv: nn.Conv3d, rank: int) -> None:
        super().__init__()
        if conv.groups != 1:
            raise ConfigError(f"Expected convolutions of one group for LoRA, got {conv.groups}.")
        self.conv = conv
        self.down = nn.Parameter(conv.weight.new_empty(rank, *conv.weight.shape[1:]))
        self.up = nn.Parameter(conv.weight.new_zeros(conv.out_channels, rank, 1, 1, 1))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map what the convolution maps."""
        conv: Any = self.conv
        inner = F.conv3d(x, self.down, None, conv.stride, conv.padding, conv.dilation)
        return conv(x) + ALPHA_PER_RANK * F.conv3d(inner, self.up)

    @torch.no_grad()
    def merged(self) -> nn.Conv3d:
        """Return the convolution with the update in its weights."""
        update = torch.einsum("or,rixyz->oixyz", self.up[:, :, 0, 0, 0], self.down)
        self.conv.weight.add_(ALPHA_PER_RANK * update)
        return self.conv


def add_lora(model: nn.Module, rank: int | None = None) -> int:
    """Put adapters beside every convolution but those of the head, in place.

    Convolutions of 1 x 1 x 1 and transposed ones stay frozen: they have few parameters.

    Args:
        model: Has a ``head``, which is left as it is.
        rank: None takes the largest at which adapters and norms stay under 5 % of all parameters.

    Returns:
        How many parameters train: adapters, norms and the head.

    Raises:
        ConfigError: If the rank is below 1, or there is no convolution to adapt.
    """
    targets = list(_targets(model))
    if not targets:
        raise ConfigError("Expected a network with 3D convolutions to adapt, got none.")
    if rank is None:
        rank = default_rank(model)
    if not rank >= 1:
        raise ConfigError(f"Expected a LoRA rank of at least 1, got {rank}.")
    for parent, name, conv in targets:
        setattr(parent, name, LoraConv3d(conv, rank))
    head: Any = model.head
    kept = list(lora_parameters(model)) + list(head.parameters())
    return sum(parameter.numel() for parameter in kept)


def default_rank(model: nn.Module) -> int:
    """Return the largest rank at which adapters and norms stay under 5 % of all parameters.

    At least 1, also where that is more.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    norms = sum(parameter.numel() for parameter in _norm_parameters(model))
    a_rank = sum(
        conv.weight[0].numel() + conv.out_channels for _, _, conv in _targets(model)
    )  # parameters of rank 1
    return max(1, min(LARGEST_RANK, int((SHARE * total - norms) / a_rank - 1e-9)))


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the adapters' parameters and those of the norms."""
    for module in model.modules():
        if isinstance(module, LoraConv3d):
            yield from (module.down, module.up)
    yield from _norm_parameters(model)


def merge_lora(model: nn.Module) -> None:
    """Fold every adapter into its convolution, in place: names and shapes are as before."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraConv3d):
                setattr(parent, name, child.merged())


def _targets(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Conv3d]]:
    head: Any = model.head
    inside = {id(module) for module in head.modules()}
    for parent in model.modules():
        if isinstance(parent, LoraConv3d):
            raise ConfigError("Expected a network without adapters, got one that has some.")
        for name, child in parent.named_children():
            spatial = isinstance(child, nn.Conv3d) and max(child.kernel_size) > 1
            if spatial and id(child) not in inside:
                yield parent, name, child


def _norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from module.parameters(recurse=False)
