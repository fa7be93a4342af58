"""Dense V-Net, as NiftyNet has it: dense blocks at 1/2, 1/4 and 1/8 of the grid, joined at 1/2.

Source: Gibson et al. 2018 (Dense V-Networks); what NiftyNet does differently (no dilation, skips
and logits at half the resolution) follows NiftyNet. Left out: its random affine inside the network,
which is augmentation, and the dropout of channels, which is off there by default. The tensors'
names are ours; ``published_rivals.py`` maps them to TensorFlow's. Axes are X, Y, Z there too.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.networks.layers import crop, pad_to_stride, run_level, same_padded
from universal_model_hub.networks.pyramid import FeatureInfo, PyramidEncoder, scaled

STRIDE = 8
FULL_WIDTH = 24  # channels of the stem and below each block
BLOCKS = ((5, 4), (10, 8), (10, 16))  # units of each dense block, and what each of them adds
SKIP_CHANNELS = (12, 24, 24)
PRIOR_SIDE = 24
PRIOR_FLOOR = 1e-6  # Source: ours; below it the logarithm would leave the reals


class Unit(nn.Module):
    """Convolution with SAME padding and without bias, batch norm, ReLU unless told otherwise."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.kernel, self.step = (kernel,) * 3, (stride,) * 3
        padding = kernel // 2 if stride == 1 else 0  # of stride 2: see forward
        self.conv = nn.Conv3d(
            in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False
        )
        self.norm = nn.BatchNorm3d(out_channels)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) to (N, out_channels, X / stride, ...)."""
        if self.step != (1, 1, 1):
            x = same_padded(x, self.kernel, self.step)
        return self.activation(self.norm(self.conv(x)))


class DenseBlock(nn.Module):
    """Units that each read everything before them; the output is all of it, input included."""

    def __init__(self, in_channels: int, num_units: int, growth: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(Unit(in_channels + k * growth, growth) for k in range(num_units))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) to (N, in_channels + num_units * growth, X, Y, Z)."""
        for unit in self.units:
            x = torch.cat([x, unit(x)], dim=1)
        return x


class DenseVNetEncoder(PyramidEncoder):
    """Stem and three dense blocks: maps at 1/2, 1/4 and 1/8 of the input grid.

    Args:
        in_channels: Channels of the input. The image that goes around the stem is their mean, so
            that a network adapts to another number (source: ours; for one channel no difference).
        width: Channels of the stem, 24 in NiftyNet; all others keep their proportion, rounded up.
        out_indices: See ``PyramidEncoder``.
        checkpointing: See ``PyramidEncoder``.
    """

    stride = STRIDE
    # Units of 3 voxels: 10 at 1/8, 10 at 1/4, 5 at 1/2, and the strided ones between.
    halo = 144

    def __init__(
        self,
        in_channels: int = 1,
        width: int = FULL_WIDTH,
        *,
        out_indices: Sequence[int] | None = None,
        checkpointing: bool = False,
    ) -> None:
        inputs = [1 + width, width, width]
        growths = [scaled(growth, width, FULL_WIDTH) for _, growth in BLOCKS]
        channels = [
            below + units * growth
            for below, (units, _), growth in zip(inputs, BLOCKS, growths, strict=True)
        ]
        super().__init__(
            [FeatureInfo(c, 2 ** (k + 1), k) for k, c in enumerate(channels)],
            in_channels=in_channels,
            width=width,
            out_indices=out_indices,
            checkpointing=checkpointing,
        )
        self.image_norm = nn.BatchNorm3d(1)
        self.stem = Unit(in_channels, width, kernel=5, stride=2, activation=False)
        self.blocks = nn.ModuleList(
            DenseBlock(below, units, growth)
            for below, (units, _), growth in zip(inputs, BLOCKS, growths, strict=True)
        )
        self.downs = nn.ModuleList(Unit(c, width, stride=2) for c in channels[:-1])
        initialize(self)

    def pyramid(self, x: Tensor, depth: int | None = None) -> list[Tensor]:
        """Return the first ``depth`` maps; sides must be multiples of 8.

        The first channel of the finest map is the image itself, at half the resolution.
        """
        image = self.image_norm(_halved(x.mean(dim=1, keepdim=True)))
        x = torch.cat([image, self.stem(x)], dim=1)
        features: list[Tensor] = []
        for k, block in enumerate(list(self.blocks)[:depth]):
            below = self.downs[k - 1](features[-1]) if k > 0 else x
            features.append(run_level(block, below, on=self.checkpointing))
        return features  # map k: (N, channels, X / 2**(k + 1), Y / 2**(k + 1), Z / 2**(k + 1))


class Decoder(nn.Module):
    """A unit on each map, all enlarged to half the resolution and joined with the image."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        outputs = [scaled(c, width, FULL_WIDTH) for c in SKIP_CHANNELS]
        self.skips = nn.ModuleList(Unit(c, out) for c, out in zip(channels, outputs, strict=True))
        self.out_channels = 1 + sum(outputs)
        initialize(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the three maps to (N, out_channels, X / 2, Y / 2, Z / 2)."""
        image = features[0][:, :1]
        shape = image.shape[2:]
        skips = [resized(skip(x), shape) for skip, x in zip(self.skips, features, strict=True)]
        return torch.cat([image, *skips], dim=1)


class DenseVNet(nn.Module):
    """Dense V-Net; logits at half the resolution, enlarged to the input grid.

    Args:
        in_channels: See ``DenseVNetEncoder``.
        out_channels: Classes, background included.
        width: See ``DenseVNetEncoder``.
        prior: ``"spatial"`` adds the logarithm of a learned map of 24 voxels a side, enlarged to
            the size of the input, as NiftyNet does (one map for all classes). The answer then
            depends on where a cube begins and ends: there are no exact tiles.
        checkpointing: Recompute activations in the backward pass.
    """

    stride = STRIDE

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = FULL_WIDTH,
        *,
        prior: Literal["spatial"] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if prior not in ("spatial", None):
            raise ConfigError(f"Expected prior 'spatial' or None, got {prior!r}.")
        self.encoder = DenseVNetEncoder(in_channels, width, checkpointing=checkpointing)
        self.decoder = Decoder([info.channels for info in self.encoder.maps], width)
        self.head = nn.Conv3d(self.decoder.out_channels, out_channels, kernel_size=3, padding=1)
        self.prior = nn.Parameter(torch.ones((PRIOR_SIDE,) * 3)) if prior == "spatial" else None
        initialize(self.head)

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """What builds this network again."""
        prior = None if self.prior is None else "spatial"
        outputs = self.head.out_channels
        return {**self.encoder.arguments, "out_channels": outputs, "prior": prior}

    @property
    def halo(self) -> int | None:
        """Voxels that the output reaches beyond an aligned block of 8; None with a prior."""
        return 168 if self.prior is None else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) of any size to logits (N, out_channels, X, Y, Z).

        Sides are padded with 0 at their high end to a multiple of 8 and cropped back.

        Raises:
            VolumeError: If ``x`` does not have five axes of at least one voxel.
        """
        padded = pad_to_stride(x, STRIDE)
        logits = self.head(
            self.decoder(self.encoder.pyramid(padded))
        )  # (N, K, X / 2, Y / 2, Z / 2)
        if self.prior is not None:
            prior = resized(self.prior[None, None], logits.shape[2:])
            logits = logits + prior.clamp_min(PRIOR_FLOOR).log()
        return crop(resized(logits, padded.shape[2:]), x.shape[2:])


def resized(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate (N, C, X, Y, Z) linearly to other sides, by TensorFlow 1's rule.

    Voxel i of the output lies at i * old / new of the input, so first voxels meet and nothing is
    centered; beyond the last voxel it holds. PyTorch has no such mode.
    """
    for axis, new in enumerate(shape, start=2):
        old = x.shape[axis]
        if old == new:
            continue
        position = torch.arange(new, device=x.device, dtype=torch.float64) * (old / new)
        low = position.floor().long()
        weight = (position - low).to(x.dtype).reshape([-1] + [1] * (4 - axis))
        below = x.index_select(axis, low)
        above = x.index_select(axis, (low + 1).clamp_max(old - 1))
        x = torch.lerp(below, above, weight)
    return x


def initialize(model: nn.Module) -> None:
    """Draw convolutions from a cut-off normal of variance 2 / (inputs x kernel); biases are 0.

    Source: NiftyNet's default; He et al. 2015.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            std = (2 / module.weight[0].numel()) ** 0.5
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _halved(x: Tensor) -> Tensor:
    """Average 3 x 3 x 3 voxels at every second one; what lies outside does not count."""
    kernel, stride = (3, 3, 3), (2, 2, 2)
    inside = same_padded(torch.ones_like(x[:1]), kernel, stride)
    total = F.avg_pool3d(same_padded(x, kernel, stride), kernel, stride)
    return total / F.avg_pool3d(inside, kernel, stride)
