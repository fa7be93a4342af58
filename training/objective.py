"""The paper's objective: restoration, the modality discriminator (MIAL), the scale classifier.

Shape letters: N batch, C channels, X Y Z axes, K scales, w the U-Net's width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import ObjectiveConfig
from universal_model_hub.networks.unet3d import UNet3D

MODALITY_IDS = {"MR": 0, "CT": 1}  # Eq. 2: D answers 1 for CT


class Losses(NamedTuple):
    """The terms of one batch, and how often the two heads were right; each a scalar."""

    restoration: Tensor  # mean squared error, in squared units of [0, 1]
    modality: Tensor  # binary cross-entropy of the discriminator
    scale: Tensor  # cross-entropy of the scale classifier
    modality_accuracy: Tensor  # balanced over CT and MR, no gradient
    scale_accuracy: Tensor  # balanced over the scales, no gradient

    def total(self, config: ObjectiveConfig) -> Tensor:
        """Eq. 4 as one sum to minimize.

        D's cross-entropy is -L_adv (Eq. 2). D minimizes it; the encoder maximizes it, because the
        gradient is reversed between the two (Ganin and Lempitsky, 2015).
        """
        return (
            config.modality_weight * self.modality
            + config.scale_weight * self.scale
            + config.restoration_weight * self.restoration
        )


class ReverseGradient(torch.autograd.Function):
    """The identity forward; backward the gradient times ``-weight``.

    Source: Ganin and Lempitsky, 2015, Sec. 3.1.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:  # noqa: D102 see the class
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: D102 see the class
        return -ctx.weight * gradients[0], None


class DiscriminatorBlock(nn.Module):
    """Two k3 convolutions, batch norm, ReLU, max-pool 2. Source: Zhang et al., Sec. IV-B.2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, X, Y, Z) to (N, out_channels, X/2, Y/2, Z/2), rounded up."""
        x = F.relu(self.norm(self.conv2(self.conv1(x))))
        return F.max_pool3d(x, 2, ceil_mode=True)


class Discriminator(nn.Module):
    """MIAL's D: CT or MR, from the encoder's maps at every level.

    Source: Zhang et al., Sec. III-B, IV-B.2 and Fig. 1. The first map (full resolution, 2w
    channels) is the input; after each block the encoder's map of that resolution is joined, as
    skip connections are in the U-Net. Widths, hidden units and the last join are not in the paper.

    Args:
        encoder_channels: Channels of the encoder's maps, finest first: 2w, 4w, 8w, 16w.
        widths: Channels of the three blocks; None takes those of the encoder's first three maps.
        hidden: Units of the first fully connected layer.
        join_deepest: Join the encoder's deepest map before the global average pooling.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        *,
        widths: Sequence[int] | None = None,
        hidden: int = 128,
        join_deepest: bool = True,
    ) -> None:
        super().__init__()
        if len(encoder_channels) != 4:
            raise ValueError(f"Expected 4 encoder maps, got {len(encoder_channels)}.")
        widths = list(widths or encoder_channels[:3])
        self.join_deepest = join_deepest
        inputs = [encoder_channels[0]]
        inputs += [width + c for width, c in zip(widths, encoder_channels[1:3], strict=False)]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(i, o) for i, o in zip(inputs, widths, strict=True)
        )
        deepest = widths[2] + (encoder_channels[3] if join_deepest else 0)
        self.hidden = nn.Linear(deepest, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map the encoder's maps, finest first, to (N,) logits; positive means CT."""
        x = features[0]  # (N, 2w, X, Y, Z)
        for level, block in enumerate(self.blocks, start=1):
            x = block(x)  # (N, widths[level - 1], X / 2**level, ...)
            if level < 3 or self.join_deepest:
                x = torch.cat([x, features[level]], dim=1)
        pooled = x.mean(dim=(2, 3, 4))
        return cast("Tensor", self.out(F.relu(self.hidden(pooled)))).squeeze(1)


class ScaleClassifier(nn.Module):
    """SC: global average pooling, 1024 units, K scales. Source: Zhang et al., Sec. IV-B.2."""

    def __init__(self, in_channels: int, num_scales: int = 3, hidden: int = 1024) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_channels, hidden)
        self.out = nn.Linear(hidden, num_scales)

    def forward(self, deepest: Tensor) -> Tensor:
        """Map the deepest features (N, C, X, Y, Z) to (N, K) logits."""
        return cast("Tensor", self.out(F.relu(self.hidden(deepest.mean(dim=(2, 3, 4))))))


class UniversalModel(nn.Module):
    """U-Net, discriminator and scale classifier, with the losses of Eq. 1 to 3.

    One forward call gives every loss, so that one wrapper for several processes covers them all.
    """

    def __init__(self, unet: UNet3D, config: ObjectiveConfig, num_scales: int = 3) -> None:
        super().__init__()
        channels = [info.channels for info in unet.encoder.feature_info]
        self.config = config
        self.unet = unet
        self.discriminator = Discriminator(
            channels,
            widths=config.discriminator_widths,
            hidden=config.discriminator_hidden,
            join_deepest=config.join_deepest,
        )
        self.scale_classifier = ScaleClassifier(channels[-1], num_scales, config.scale_hidden)
        self.discriminator.requires_grad_(config.modality_weight > 0)
        self.scale_classifier.requires_grad_(config.scale_weight > 0)

    def forward(
        self, batch: Mapping[str, Tensor], step: int, *, only_discriminator: bool = False
    ) -> Losses:
        """Compute the losses of one batch.

        Args:
            batch: ``corrupted`` and ``original`` (N, 1, X, Y, Z) in [0, 1]; ``modality_id`` (N,),
                1 for CT and 0 for MR; ``scale_id`` (N,), 0 for the smallest scale.
            step: Finished optimizer steps, for the reversal's schedule.
            only_discriminator: D's own step of the alternating game: no gradient reaches the
                encoder, and the other losses are zero.
        """
        if only_discriminator:
            with torch.no_grad():
                features = self.unet.encoder.pyramid(batch["corrupted"])
            return self.losses(batch, modality_logits=self.discriminator(features))
        features = self.unet.encoder.pyramid(batch["corrupted"])
        restored = torch.sigmoid(self.unet.head(self.unet.decoder(features)))
        modality_logits = None
        if self.config.modality_weight > 0:
            reversal = reversal_weight(self.config, step)
            modality_logits = self.discriminate(features, reversal)
        scale_logits = None
        if self.config.scale_weight > 0:
            scale_logits = self.scale_classifier(features[-1])
        return self.losses(batch, restored, modality_logits, scale_logits)

    def discriminate(self, features: Sequence[Tensor], reversal: float) -> Tensor:
        """Return D's logits (N,) with the gradient to the encoder reversed.

        In the alternating game D itself gets no gradient here: it has steps of its own.
        """
        reversed_features = [ReverseGradient.apply(f, reversal) for f in features]
        if self.config.adversarial == "reversal":
            return cast("Tensor", self.discriminator(reversed_features))
        frozen = {k: v.detach() for k, v in self.discriminator.named_parameters()}
        return cast(
            "Tensor", torch.func.functional_call(self.discriminator, frozen, (reversed_features,))
        )

    def losses(
        self,
        batch: Mapping[str, Tensor],
        restored: Tensor | None = None,
        modality_logits: Tensor | None = None,
        scale_logits: Tensor | None = None,
    ) -> Losses:
        """Compare what the heads answered with the truth; a part that is switched off is zero."""
        original, modality_id, scale_id = (
            batch[key] for key in ("original", "modality_id", "scale_id")
        )
        nothing = original.new_zeros(())
        restoration = modality = scale = nothing
        modality_accuracy = scale_accuracy = nothing.clone()
        if restored is not None:
            restoration = F.mse_loss(restored.float(), original)  # Eq. 1, in the mean
        if modality_logits is not None:
            logits = modality_logits.float()
            modality = F.binary_cross_entropy_with_logits(logits, modality_id.float())  # Eq. 2
            modality_accuracy = balanced_accuracy((logits > 0).long(), modality_id, 2)
        if scale_logits is not None:
            scale = F.cross_entropy(scale_logits.float(), scale_id)  # Eq. 3
            scale_accuracy = balanced_accuracy(
                scale_logits.argmax(dim=1), scale_id, scale_logits.shape[1]
            )
        return Losses(restoration, modality, scale, modality_accuracy, scale_accuracy)


def reversal_weight(config: ObjectiveConfig, step: int) -> float:
    """Factor of the reversed gradient: 0 while D learns, then rising linearly to 1.

    Source: ours; a discriminator at chance gives the encoder nothing to move away from.
    """
    since = step - config.reversal_delay
    if since < 0:
        return 0.0
    return min(1.0, (since + 1) / (config.reversal_ramp + 1))


@torch.no_grad()
def balanced_accuracy(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Mean over the classes present of the share that was predicted right; both (N,) int64."""
    classes = torch.arange(num_classes, device=truth.device)
    is_class = (truth[:, None] == classes).float()  # (N, classes); no size that a GPU must tell
    right = (predicted == truth).float() @ is_class
    count = is_class.sum(dim=0)
    shares = right / count.clamp(min=1)
    return shares.sum() / (count > 0).sum()
