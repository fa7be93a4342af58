"""MedicalNet's 3D residual networks (Med3D): encoder of any depth, and their segmentation head.

Source: Chen et al. 2019 (Med3D, arXiv:1904.00625); He et al. 2015 for the residual blocks. The
encoder's tensors have the names of the published files without their ``module.``; the head's are
mapped in ``published_rivals.py``.

The published networks take (N, 1, D, H, W), slices first: X and Z are swapped at the door, and
swapped back in what comes out. They were trained on z-scores of voxels above 0; scaling is left to
preprocessing.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.networks.layers import crop, pad_to_stride, run_level
from universal_model_hub.networks.pyramid import FeatureInfo, PyramidEncoder

STRIDE = 8  # the last two stages are dilated instead of strided
BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}  # depth: residual blocks of each stage
DEPTH = 101  # Source: Zhang et al., Sec. IV-D
BOTTLENECKS = (50, 101, 152, 200)
PLAIN_SHORTCUTS = (18, 34)
EXPANSION = 4  # of the channels in a bottleneck
STAGE_STRIDES = (1, 2, 1, 1)
STAGE_DILATIONS = (1, 1, 2, 4)


class BasicBlock(nn.Module):
    """Two convolutions of 3 x 3 x 3 beside a shortcut."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, dilation: int, *, plain: bool
    ) -> None:
        super().__init__()
        self.conv1 = _wide_conv(in_channels, channels, stride, dilation)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = _wide_conv(channels, channels, 1, dilation)
        self.bn2 = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels, stride, plain=plain)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, D, H, W) to (N, channels, D / stride, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 voxels a side beside a shortcut; four times the channels."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, dilation: int, *, plain: bool
    ) -> None:
        super().__init__()
        outputs = EXPANSION * channels
        self.conv1 = nn.Conv3d(in_channels, channels, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = _wide_conv(channels, channels, stride, dilation)
        self.bn2 = nn.BatchNorm3d(channels)
        self.conv3 = nn.Conv3d(channels, outputs, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, outputs, stride, plain=plain)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, D, H, W) to (N, 4 * channels, D / stride, ...)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.downsample(x))


class PlainShortcut(nn.Module):
    """Shortcut of type A: every ``stride``-th voxel, and zeros for the channels that are missing.

    No gradient passes, as in the published code, which takes the bare data here. Outputs are the
    same either way, so published weights do not need a switch.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, D, H, W) to (N, channels, D / stride, H / stride, W / stride)."""
        x = x.detach()[:, :, :: self.stride, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, self.channels - x.shape[1]))


class ResNetEncoder(PyramidEncoder):
    """Stem and four stages: maps at 1/2, 1/4, 1/8, 1/8 and 1/8 of the input grid.

    Args:
        in_channels: Channels of the input.
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many, and four times
            those from depth 50 on. The published networks have 64.
        depth: 10, 18, 34, 50, 101, 152 or 200.
        out_indices: See ``PyramidEncoder``.
        checkpointing: See ``PyramidEncoder``.
    """

    stride = STRIDE

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 64,
        *,
        depth: int = DEPTH,
        out_indices: Sequence[int] | None = None,
        checkpointing: bool = False,
    ) -> None:
        if depth not in BLOCKS:
            raise ConfigError(
                f"Expected depth to be one of {', '.join(map(str, BLOCKS))}, got {depth!r}."
            )
        expansion = EXPANSION if depth in BOTTLENECKS else 1
        channels = [width, *(expansion * width * 2**k for k in range(4))]
        strides = (2, 4, 8, 8, 8)
        super().__init__(
            [FeatureInfo(c, s, k) for k, (c, s) in enumerate(zip(channels, strides, strict=True))],
            in_channels=in_channels,
            width=width,
            out_indices=out_indices,
            checkpointing=checkpointing,
        )
        self.depth = depth
        self.conv1 = nn.Conv3d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(depth, k, channels[k], width * 2**k) for k in range(4)
        )
        initialize(self)

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """What builds this encoder again."""
        return {**super().arguments, "depth": self.depth}

    @property
    def halo(self) -> int:  # type: ignore[override]  # a number for each depth
        """Voxels that the deepest map reaches beyond its block of 8, a multiple of 8."""
        return -(-_reach(self.depth) // STRIDE) * STRIDE

    def pyramid(self, x: Tensor, depth: int | None = None) -> list[Tensor]:
        """Return the first ``depth`` maps; sides must be multiples of 8."""
        x = x.transpose(2, 4)  # (N, C, X, Y, Z) to (N, C, D, H, W)
        features = [self.relu(self.bn1(self.conv1(x)))]  # (N, width, D / 2, H / 2, W / 2)
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        for stage in stages[: None if depth is None else depth - 1]:
            below = self.maxpool(features[-1]) if len(features) == 1 else features[-1]
            features.append(run_level(stage, below, on=self.checkpointing))
        return [feature.transpose(2, 4) for feature in features]


class ResNet3D(nn.Module):
    """MedicalNet's segmentation network: no skips, its logits lie on a quarter of the grid.

    They are interpolated to the input grid at the door, trilinearly. (The published code compares
    them with labels at a quarter of the size, and enlarges probabilities when it tests.)

    Args:
        in_channels: Channels of the input.
        out_channels: Classes, background included.
        width: See ``ResNetEncoder``; the decoder has half as many channels.
        depth: See ``ResNetEncoder``.
        checkpointing: Recompute activations in the backward pass.
    """

    stride = STRIDE

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 64,
        *,
        depth: int = DEPTH,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = ResNetEncoder(in_channels, width, depth=depth, checkpointing=checkpointing)
        inner = max(1, width // 2)
        self.decoder = nn.Sequential(
            nn.ConvTranspose3d(self.encoder.num_features, inner, kernel_size=2, stride=2),
            nn.BatchNorm3d(inner),
            nn.ReLU(inplace=True),
            nn.Conv3d(inner, inner, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm3d(inner),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Conv3d(inner, out_channels, kernel_size=1, bias=False)
        initialize(self.decoder)
        initialize(self.head)

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """What builds this network again."""
        return {**self.encoder.arguments, "out_channels": self.head.out_channels}

    @property
    def halo(self) -> int:
        """Voxels that the output reaches beyond an aligned block of 8, a multiple of 8."""
        # Interpolation and the decoder's 3-voxel unit look one more voxel of the deepest map.
        return -(-(_reach(self.encoder.depth) + STRIDE) // STRIDE) * STRIDE

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) of any size to logits (N, out_channels, X, Y, Z).

        Sides are padded with 0 at their high end to a multiple of 8 and cropped back.

        Raises:
            VolumeError: If ``x`` does not have five axes of at least one voxel.
        """
        padded = pad_to_stride(x, STRIDE)
        deepest = self.encoder.pyramid(padded)[-1].transpose(2, 4)  # (N, F, D / 8, H / 8, W / 8)
        logits = self.head(self.decoder(deepest)).transpose(2, 4)  # (N, K, X / 4, Y / 4, Z / 4)
        logits = F.interpolate(logits, size=padded.shape[2:], mode="trilinear")
        return crop(logits, x.shape[2:])


def initialize(model: nn.Module) -> None:
    """Draw convolutions from a normal of variance 2 / (outputs x kernel), in place.

    Source: He et al. 2015, in the form of the published networks (fan out). Batch norm starts as
    the identity, as it does anyway.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(depth: int, k: int, in_channels: int, channels: int) -> nn.Sequential:
    """Return the residual blocks of stage k; the first one changes stride and channels."""
    block = Bottleneck if depth in BOTTLENECKS else BasicBlock
    outputs = channels * (EXPANSION if block is Bottleneck else 1)
    plain = depth in PLAIN_SHORTCUTS
    stride, dilation = STAGE_STRIDES[k], STAGE_DILATIONS[k]
    first = block(in_channels, channels, stride, dilation, plain=plain)
    rest = (block(outputs, channels, 1, dilation, plain=plain) for _ in range(BLOCKS[depth][k] - 1))
    return nn.Sequential(first, *rest)


def _wide_conv(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv3d:
    return nn.Conv3d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        bias=False,
    )


def _shortcut(in_channels: int, out_channels: int, stride: int, *, plain: bool) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if plain:
        return PlainShortcut(out_channels, stride)
    return nn.Sequential(  # type B
        nn.Conv3d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        nn.BatchNorm3d(out_channels),
    )


def _reach(depth: int) -> int:
    """Return how many input voxels the deepest map sees beyond its block of 8, at the low end."""
    each = 1 if depth in BOTTLENECKS else 2  # convolutions of 3 voxels a block
    one, two, three, four = (each * blocks for blocks in BLOCKS[depth])
    eighths = 4 * four + 2 * three + (two - 1)  # the first one of stage 2 reads the quarter grid
    quarters = 1 + one
    return 8 * eighths + 4 * quarters + 5  # pooling and stem: 2 * 1 + 3
