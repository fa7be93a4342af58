"""Heads: small modules from features to an answer."""

from collections.abc import Sequence

from torch import Tensor, nn

from universal_model_hub.networks.unet3d import Encoder


class SegmentationHead(nn.Conv3d):
    """Convolution of 1 x 1 x 1 from decoder features to logits.

    Maps (N, in_channels, X, Y, Z) to (N, num_classes, X, Y, Z).
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes, kernel_size=1)


class ClassificationHead(nn.Module):
    """Mean of the deepest feature map, then a linear layer."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map encoder features, finest first, to logits (N, num_classes)."""
        return self.linear(features[-1].mean(dim=(2, 3, 4)))


class Classifier(nn.Module):
    """An encoder and a classification head."""

    def __init__(self, encoder: Encoder, head: ClassificationHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """What builds this classifier again."""
        return {**self.encoder.arguments, "num_classes": self.head.linear.out_features}

    @property
    def stride(self) -> int:
        """Input voxels per voxel of the deepest feature map."""
        return self.encoder.stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) of any size to logits (N, num_classes)."""
        return self.head(self.encoder(x))
