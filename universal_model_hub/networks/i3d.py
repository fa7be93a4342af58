"""I3D: the two-stream video network as an encoder of scans, and a U-Net-like decoder for it.

Source: Carreira and Zisserman 2017 (I3D, arXiv:1705.07750); Szegedy et al. 2014 for the modules.
The encoder's tensors have the names of the published files; the decoder is ours, after Zhang et
al., Sec. IV-D: the two-channel flow network, its input duplicated, skips as in a U-Net.

The published networks take (N, C, T, H, W) in [-1, 1]. At the door the input is scaled from [0, 1]
to [-1, 1], each channel is repeated, and Z becomes the time axis: (T, H, W) is (Z, Y, X), slices in
the place of frames. What comes out is in the order X, Y, Z again.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from universal_model_hub.networks.layers import ConvUnit, pad_to_stride, run_level, same_padded
from universal_model_hub.networks.pyramid import FeatureInfo, PyramidEncoder, scaled

FULL_WIDTH = 64
EPS, MOMENTUM = 1e-3, 0.01  # of batch norm

# Inputs of each module, and outputs of its units b0, b1a, b1b, b2a, b2b, b3b, at full width.
INCEPTIONS = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
# Each level: the pooling before it (kernel, stride), its modules, and its stride along T, H, W.
Sides = tuple[int, int, int]
LEVELS: tuple[tuple[tuple[Sides, Sides] | None, tuple[str, ...], Sides], ...] = (
    (None, ("Conv3d_1a_7x7",), (2, 2, 2)),
    (((1, 3, 3), (1, 2, 2)), ("Conv3d_2b_1x1", "Conv3d_2c_3x3"), (2, 4, 4)),
    (((1, 3, 3), (1, 2, 2)), ("Mixed_3b", "Mixed_3c"), (2, 8, 8)),
    (((3, 3, 3), (2, 2, 2)), tuple(f"Mixed_4{part}" for part in "bcdef"), (4, 16, 16)),
    (((2, 2, 2), (2, 2, 2)), ("Mixed_5b", "Mixed_5c"), (8, 32, 32)),
)
LEVEL_CHANNELS = (64, 192, 480, 832, 1024)
DECODER_CHANNELS = (256, 128, 64, 64, 32)  # Source: ours, deepest first, the last on the input grid


class Unit(nn.Module):
    """Convolution with dynamic SAME padding and without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.step = (kernel,) * 3, (stride,) * 3
        # Of stride 1, SAME is a fixed padding; otherwise it depends on the size: see forward.
        padding = kernel // 2 if stride == 1 else 0
        self.conv3d = nn.Conv3d(
            in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False
        )
        self.bn = nn.BatchNorm3d(out_channels, eps=EPS, momentum=MOMENTUM)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, T, H, W) to (N, out_channels, ceil(T / stride), ...)."""
        if self.step != (1, 1, 1):
            x = same_padded(x, self.kernel, self.step)
        return self.relu(self.bn(self.conv3d(x)))


class Inception(nn.Module):
    """Four branches beside each other: 1, 1 and 3, 1 and 3, pooling and 1 voxels a side."""

    def __init__(self, in_channels: int, outputs: Sequence[int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = outputs
        self.b0 = Unit(in_channels, b0, 1)
        self.b1a = Unit(in_channels, b1a, 1)
        self.b1b = Unit(b1a, b1b, 3)
        self.b2a = Unit(in_channels, b2a, 1)
        self.b2b = Unit(b2a, b2b, 3)
        self.b3a = nn.MaxPool3d(3, stride=1, padding=1)
        self.b3b = Unit(in_channels, b3b, 1)
        self.out_channels = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, T, H, W) to (N, out_channels, T, H, W)."""
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, dim=1)


class I3DEncoder(PyramidEncoder):
    """Inception-v1 in 3D: maps at 1/2 to 1/32 of the input grid along X and Y, 1/2 to 1/8 along Z.

    Padding is dynamic, so any size works as it is and gives what the published network gives; the
    maps are the end points Conv3d_1a_7x7, Conv3d_2c_3x3, Mixed_3c, Mixed_4f and Mixed_5c.

    Args:
        in_channels: Channels of the input.
        width: Channels of the first convolution, 64 in the published networks; all others keep
            their proportion to it, rounded up.
        copies: How often each channel is repeated: 2 and 3 give the flow and the RGB network of
            a scan. For three channels of its own, ``in_channels=3`` and ``copies=1``.
        out_indices: See ``PyramidEncoder``.
        checkpointing: See ``PyramidEncoder``.
    """

    stride = 32
    # SAME padding splits odd voxels by the size of the whole, so a part is padded differently.
    halo = None

    def __init__(
        self,
        in_channels: int = 1,
        width: int = FULL_WIDTH,
        *,
        copies: int = 2,
        out_indices: Sequence[int] | None = None,
        checkpointing: bool = False,
    ) -> None:
        def wide(channels: int) -> int:
            return scaled(channels, width, FULL_WIDTH)

        modules: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": Unit(in_channels * copies, wide(64), 7, stride=2),
            "Conv3d_2b_1x1": Unit(wide(64), wide(64), 1),
            "Conv3d_2c_3x3": Unit(wide(64), wide(192), 3),
        }
        inputs = wide(192)
        for name, (_, outputs) in INCEPTIONS.items():
            inception = Inception(inputs, [wide(channels) for channels in outputs])
            modules[name], inputs = inception, inception.out_channels
        maps = [
            FeatureInfo(_outputs(modules[names[-1]]), (w, h, t), level)
            for level, (_, names, (t, h, w)) in enumerate(LEVELS)
        ]
        super().__init__(
            maps,
            in_channels=in_channels,
            width=width,
            out_indices=out_indices,
            checkpointing=checkpointing,
        )
        self.copies = copies
        for name, module in modules.items():
            self.add_module(name, module)

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """What builds this encoder again."""
        return {**super().arguments, "copies": self.copies}

    def padded(self, x: Tensor) -> Tensor:
        """Return ``x`` as it is: every size is taken."""
        return pad_to_stride(x, 1)  # it refuses what is no batch

    def video(self, x: Tensor) -> Tensor:
        """Turn (N, C, X, Y, Z) in [0, 1] into (N, copies * C, T, H, W) in [-1, 1]."""
        return (2 * x - 1).repeat(1, self.copies, 1, 1, 1).transpose(2, 4)

    def pyramid(self, x: Tensor, depth: int | None = None) -> list[Tensor]:
        """Return the first ``depth`` maps of (N, C, X, Y, Z) of any size."""
        return [feature.transpose(2, 4) for feature in self.end_points(self.video(x), depth)]

    def end_points(self, x: Tensor, depth: int | None = None) -> list[Tensor]:
        """Return the first ``depth`` maps of (N, copies * C, T, H, W), in the same order."""
        features: list[Tensor] = []
        for pooling, names, _ in LEVELS[:depth]:
            if pooling is not None:
                kernel, stride = pooling
                # Zeros change no maximum: what is pooled comes from a ReLU.
                x = F.max_pool3d(same_padded(x, kernel, stride), kernel, stride)
            for name in names:
                x = run_level(self.get_submodule(name), x, on=self.checkpointing)
            features.append(x)  # (N, channels, ceil(T / t), ceil(H / h), ceil(W / w))
        return features


class UpLevel(nn.Module):
    """Enlarges to the grid of a skip, joins it, two units."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.units = nn.Sequential(
            ConvUnit(in_channels + skip_channels, out_channels, "running"),
            ConvUnit(out_channels, out_channels, "running"),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (N, in_channels, ...) and its skip to (N, out_channels, sides of the skip)."""
        x = F.interpolate(x, size=skip.shape[2:], mode="trilinear")
        return self.units(torch.cat([x, skip], dim=1))


class Decoder(nn.Module):
    """From the five maps and the image itself back to the input grid."""

    def __init__(self, channels: Sequence[int], width: int, *, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        outputs = [scaled(c, width, FULL_WIDTH) for c in DECODER_CHANNELS]
        *skips, deepest = channels
        inputs = [deepest, *outputs]
        self.levels = nn.ModuleList(
            UpLevel(below, skip, out)
            for below, skip, out in zip(inputs, reversed(skips), outputs, strict=False)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the image (N, 1, T, H, W) and the five maps to (N, channels, T, H, W)."""
        x = features[-1]
        for level, skip in zip(self.levels, reversed(features[:-1]), strict=True):
            x = run_level(level, x, skip, on=self.checkpointing)
        return x


class I3D(nn.Module):
    """I3D as a segmentation network, with a decoder that is not part of any published file.

    Args:
        in_channels: Channels of the input.
        out_channels: Classes, background included.
        width: See ``I3DEncoder``; the decoder keeps its proportion to it too.
        copies: See ``I3DEncoder``.
        checkpointing: Recompute activations in the backward pass.
    """

    stride = I3DEncoder.stride
    halo = I3DEncoder.halo

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = FULL_WIDTH,
        *,
        copies: int = 2,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = I3DEncoder(in_channels, width, copies=copies, checkpointing=checkpointing)
        channels = [1, *(info.channels for info in self.encoder.maps)]
        self.decoder = Decoder(channels, width, checkpointing=checkpointing)
        self.head = nn.Conv3d(
            scaled(DECODER_CHANNELS[-1], width, FULL_WIDTH), out_channels, kernel_size=1
        )

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """What builds this network again."""
        return {**self.encoder.arguments, "out_channels": self.head.out_channels}

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) of any size to logits (N, out_channels, X, Y, Z).

        Raises:
            VolumeError: If ``x`` does not have five axes of at least one voxel.
        """
        video = self.encoder.video(self.encoder.padded(x))
        # The finest skip: one channel, so that weights adapt to another number of inputs.
        image = video.mean(dim=1, keepdim=True)
        features = [image, *self.encoder.end_points(video)]
        return self.head(self.decoder(features)).transpose(2, 4)


def _outputs(module: nn.Module) -> int:
    """Return the channels that a unit or a module of branches gives."""
    if isinstance(module, Inception):
        return module.out_channels
    assert isinstance(module, Unit)
    return module.conv3d.out_channels
