"""Low-rank adapters for 3D convolutions: few parameters train, and merge into the plain weights.

``y = W x + (alpha / r) B A x``: A is a convolution of W's kernel to r channels, B one of 1 x 1 x 1
back to W's. B starts at zero, so the network starts as it was. Source: Hu et al. 2021 (LoRA); the
convolutional form is that of LoCon. Norms train beside the adapters, and the head as a whole.

Transposed convolutions and those of one voxel stay frozen: the convolutions after them can make up
for it, and their share of the parameters goes into a higher rank instead.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from universal_model_hub.errors import ConfigError

SHARE = 0.05  # of the plain network's parameters: what trains at the default rank stays below
ALPHA_PER_RANK = 2.0  # alpha / r: the usual choice of alpha = 2 r
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class LoraConv3d(nn.Module):
    """A convolution with frozen weights and a low-rank update beside it."""

    def __init__(self, conv: nn.Conv3d, rank: int) -> None:
        super().__init__()
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
    def merge(self) -> nn.Conv3d:
        """Add the update to the convolution's weights, in place, and return the convolution."""
        # float64, so that the one rounding is that of the sum.
        up, down = self.up[:, :, 0, 0, 0].double(), self.down.double()
        update = ALPHA_PER_RANK * torch.einsum("or,rixyz->oixyz", up, down)
        self.conv.weight.copy_(self.conv.weight.double() + update)
        return self.conv


def add_lora(model: nn.Module, rank: int | None = None) -> int:
    """Put adapters beside the convolutions below the head, in place, and freeze what they adapt.

    Args:
        model: Has a ``head``, which gets no adapters and trains in full.
        rank: None takes ``default_rank``.

    Returns:
        How many parameters train: adapters, norms and the head.

    Raises:
        ConfigError: If the rank is not a whole number from 1, or the network cannot be adapted.
    """
    targets = _targets(model)
    if rank is None:
        rank = default_rank(model)
    if not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"Expected a LoRA rank that is a whole number from 1, got {rank!r}.")
    for parent, name, conv in targets:
        setattr(parent, name, LoraConv3d(conv, rank))
    model.requires_grad_(False)
    for parameter in [*lora_parameters(model), *head_of(model).parameters()]:
        parameter.requires_grad_(True)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def default_rank(model: nn.Module) -> int:
    """Return the largest rank at which what trains stays under 5 % of the parameters.

    What trains is adapters, norms and head; the parameters are those of the network without
    adapters. The lowest rank is 1, also where even that is more than 5 %: in a U-Net of width 2,
    or below a head of very many classes.

    Raises:
        ConfigError: If the network cannot be adapted.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    always = {id(p): p.numel() for p in [*_norm_parameters(model), *head_of(model).parameters()]}
    per_rank = sum(conv.weight[0].numel() + conv.out_channels for _, _, conv in _targets(model))
    return max(1, math.ceil((SHARE * total - sum(always.values())) / per_rank) - 1)


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the adapters' parameters, then those of the norms."""
    for module in model.modules():
        if isinstance(module, LoraConv3d):
            yield from (module.down, module.up)
    yield from _norm_parameters(model)


def has_lora(model: nn.Module) -> bool:
    """Whether the network has adapters."""
    return any(isinstance(module, LoraConv3d) for module in model.modules())


def merge_lora(model: nn.Module) -> None:
    """Fold every adapter into its convolution, in place: modules and names are as before.

    Outputs change by float32 rounding alone: logits by a few millionths of the largest, which can
    be more than 1e-5. All parameters train again. A network without adapters is left as it is.
    """
    if not has_lora(model):
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraConv3d):
                setattr(parent, name, child.merge())
    model.requires_grad_(True)


def head_of(model: nn.Module) -> nn.Module:
    """Return the network's head.

    Raises:
        ConfigError: If it has none.
    """
    head: Any = getattr(model, "head", None)
    if not isinstance(head, nn.Module):
        raise ConfigError(
            f"Expected a network with a head, got {type(model).__name__}. Use load_segmenter or "
            "load_classifier, or keep your own head as the attribute head."
        )
    return head


def _targets(model: nn.Module) -> list[tuple[nn.Module, str, nn.Conv3d]]:
    """Return the convolutions to adapt; all is checked here, before anything is changed."""
    if has_lora(model):
        raise ConfigError(
            "Expected a network without adapters, got one that has some. Call merge_lora first."
        )
    inside = {id(module) for module in head_of(model).modules()}
    targets = []
    for parent in model.modules():
        for name, child in parent.named_children():
            if not isinstance(child, nn.Conv3d) or max(child.kernel_size) == 1:
                continue
            if id(child) in inside:
                continue
            if child.groups != 1 or child.padding_mode != "zeros":
                raise ConfigError(
                    f"Expected convolutions of one group that pad with zeros, got {child}. "
                    "Train such a network in full."
                )
            targets.append((parent, name, child))
    if not targets:
        raise ConfigError(
            f"Expected 3D convolutions to adapt below the head, got {type(model).__name__} "
            "without. Train it in full."
        )
    return targets


def _norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, NORMS):
            yield from module.parameters(recurse=False)
