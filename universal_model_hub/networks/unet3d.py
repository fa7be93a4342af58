"""The paper's 3D U-Net: encoder, decoder and head.

Source: Zhang et al., Sec. III-A (3D U-Net with batch normalization); Cicek et al. 2016 for the
channel plan. Padding instead of valid convolutions, and the sigmoid at the end, follow the layout
of the published checkpoints, so that a user's own file converts without loss (``published.py``).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.networks.layers import (
    ConvUnit,
    Normalization,
    crop,
    pad_to_stride,
    run_level,
)
from universal_model_hub.networks.pyramid import FeatureInfo, PyramidEncoder

NUM_LEVELS = 4  # three poolings of 2
STRIDE = 8  # voxels of the input grid a voxel of the deepest level spans, per axis


class DownLevel(nn.Module):
    """Two units of one encoder level; the second doubles the channels."""

    def __init__(self, in_channels: int, middle: int, normalization: Normalization) -> None:
        super().__init__()
        self.units = nn.Sequential(
            ConvUnit(in_channels, middle, normalization),
            ConvUnit(middle, 2 * middle, normalization),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) to (N, 2 * middle, X, Y, Z)."""
        return self.units(x)


class UpLevel(nn.Module):
    """Doubles the sides, joins the encoder's feature of that level, two units."""

    def __init__(self, in_channels: int, skip_channels: int, normalization: Normalization) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, in_channels, kernel_size=2, stride=2)
        self.units = nn.Sequential(
            ConvUnit(in_channels + skip_channels, skip_channels, normalization),
            ConvUnit(skip_channels, skip_channels, normalization),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) and its skip to (N, skip_channels, 2X, 2Y, 2Z)."""
        return self.units(torch.cat([self.up(x), skip], dim=1))


class Encoder(PyramidEncoder):
    """The contracting half: features at 1, 1/2, 1/4 and 1/8 of the input grid.

    Args:
        in_channels: Channels of the input.
        width: Channels of the first unit; level k gives ``2 * width * 2**k``.
        out_indices: Levels that ``forward`` returns, negative ones counted from the deepest;
            ``None`` for all. The parameters are the same whatever is returned.
        normalization: ``"running"`` or ``"batch"``, see ``UNet3D``.
        checkpointing: Recompute activations in the backward pass instead of keeping them.
    """

    stride = STRIDE
    # Three poolings and two 3-voxel units a level reach 30 voxels beyond a block of 8 input voxels.
    halo = 32

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 32,
        *,
        out_indices: Sequence[int] | None = None,
        normalization: Normalization = "running",
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            [FeatureInfo(2 * width * 2**k, 2**k, k) for k in range(NUM_LEVELS)],
            in_channels=in_channels,
            width=width,
            out_indices=out_indices,
            checkpointing=checkpointing,
        )
        self.normalization = normalization
        inputs = [in_channels, *(2 * width * 2**k for k in range(NUM_LEVELS - 1))]
        self.levels = nn.ModuleList(
            DownLevel(channels, width * 2**k, normalization) for k, channels in enumerate(inputs)
        )
        self.pool = nn.MaxPool3d(2)

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """What builds this encoder again."""
        return {**super().arguments, "normalization": self.normalization}

    def pyramid(self, x: Tensor, depth: int | None = None) -> list[Tensor]:
        """Return the maps of the first ``depth`` levels; sides must be multiples of 8."""
        features: list[Tensor] = []
        for level in list(self.levels)[:depth]:
            x = run_level(level, self.pool(features[-1]) if features else x, on=self.checkpointing)
            features.append(x)  # level k: (N, 2 * width * 2**k, X / 2**k, Y / 2**k, Z / 2**k)
        return features


class Decoder(nn.Module):
    """The expanding half: from the encoder's four maps back to the input grid."""

    def __init__(
        self,
        width: int = 32,
        *,
        normalization: Normalization = "running",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        skips = [2 * width * 2**k for k in reversed(range(NUM_LEVELS - 1))]
        self.levels = nn.ModuleList(UpLevel(2 * skip, skip, normalization) for skip in skips)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the four maps of ``Encoder.pyramid`` to (N, 2 * width, X, Y, Z)."""
        x = features[-1]
        for level, skip in zip(self.levels, reversed(features[:-1]), strict=True):
            x = run_level(level, x, skip, on=self.checkpointing)
        return x


class UNet3D(nn.Module):
    """The paper's 3D U-Net; with its defaults 19,073,665 parameters.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        width: Channels of the first unit. The compact network has 8.
        activation: ``"sigmoid"`` for the restoration of cubes in [0, 1]; ``None`` for logits.
        normalization: ``"running"``: ordinary batch norm. ``"batch"``: the batch's own statistics
            in eval mode too, as the published checkpoints were trained; outputs then depend on
            the batch, and tiles are not equivalent to the whole.
        checkpointing: Recompute activations in the backward pass: the same gradients, far less
            memory, about a third more time.
    """

    stride = STRIDE
    # An output voxel at the edge of an aligned block of 8 sees 46 voxels beyond it.
    halo = 48

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = 32,
        *,
        activation: Literal["sigmoid"] | None = "sigmoid",
        normalization: Normalization = "running",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ("sigmoid", None):
            raise ConfigError(f"Expected activation 'sigmoid' or None, got {activation!r}.")
        self.activation = activation
        self.encoder = Encoder(
            in_channels, width, normalization=normalization, checkpointing=checkpointing
        )
        self.decoder = Decoder(width, normalization=normalization, checkpointing=checkpointing)
        self.head = nn.Conv3d(2 * width, out_channels, kernel_size=1)

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """What builds this network again."""
        return {
            **self.encoder.arguments,
            "out_channels": self.head.out_channels,
            "activation": self.activation,
        }

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) of any size to (N, out_channels, X, Y, Z).

        Sides are padded with 0 at their high end to a multiple of 8 and cropped back.

        Raises:
            VolumeError: If ``x`` does not have five axes of at least one voxel.
        """
        features = self.encoder.pyramid(pad_to_stride(x, STRIDE))
        restored = self.head(crop(self.decoder(features), x.shape[2:]))
        return torch.sigmoid(restored) if self.activation == "sigmoid" else restored
