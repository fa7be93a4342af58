"""Heads: small modules from features to an answer."""

from collections.abc import Sequence

from torch import Tensor, nn

from universal_model_hub.networks.pyramid import PyramidEncoder


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

    def __init__(self, encoder: PyramidEncoder, head: ClassificationHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    @property
    def arguments(self) -> dict[str, int | str | None]:
        """What builds this classifier again."""
        return {**self.encoder.arguments, "num_classes": self.head.linear.out_features}

    @property
    def stride(self) -> int:
        """Input voxels per voxel of the deepest feature map, along the axis with the most."""
        return self.encoder.stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, X, Y, Z) of any size to logits (N, num_classes)."""
        return self.head(self.encoder(x))
