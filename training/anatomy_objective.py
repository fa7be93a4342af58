"""The objective of the anatomy recipe: the paper's, and supervision on synthetic renderings.

Beside Eq. 1 to 4 the U-Net names the tissue of every voxel of a rendering, finds the borders of
labels, and gives a voxel the same features in both renderings of its cube. Two readings of one
anatomy pull together what MIAL pulls together by an adversary; borders, tissues and restoration
keep what contrast invariance alone would throw away.
Shape letters: N batch, C channels, X Y Z axes, G groups, P sampled voxels.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.anatomy import GROUPS, NOT_LABELED
from training.config import ObjectiveConfig
from training.objective import Losses, UniversalModel
from universal_model_hub.networks.unet3d import UNet3D

PROJECTED = 32  # channels in which voxels are compared
TEMPERATURE = 0.1


class AnatomyLosses(NamedTuple):
    """The paper's terms, and those of the synthetic renderings; each a scalar."""

    restoration: Tensor
    modality: Tensor
    scale: Tensor
    segmentation: Tensor  # cross-entropy over groups of tissues
    edges: Tensor  # binary cross-entropy of label borders
    contrast: Tensor  # of voxels between two renderings
    modality_accuracy: Tensor
    scale_accuracy: Tensor
    segmentation_accuracy: Tensor  # share of the labeled voxels, no gradient

    def total(self, config: ObjectiveConfig) -> Tensor:
        """Eq. 4, and the terms of the renderings by their weights."""
        paper = Losses(
            self.restoration, self.modality, self.scale, self.modality_accuracy, self.scale_accuracy
        )
        return (
            paper.total(config)
            + config.segmentation_weight * self.segmentation
            + config.edges_weight * self.edges
            + config.contrast_weight * self.contrast
        )


class AnatomyModel(UniversalModel):
    """The paper's model with a segmentation head and a projection, both for training alone."""

    def __init__(self, unet: UNet3D, config: ObjectiveConfig, num_scales: int = 3) -> None:
        super().__init__(unet, config, num_scales)
        channels = unet.head.in_channels
        self.segmentation_head = nn.Conv3d(channels, len(GROUPS) + 1, kernel_size=1)  # and borders
        self.projection = nn.Linear(channels, PROJECTED)

    def forward(  # type: ignore[override]  # more terms than the paper's
        self, batch: Mapping[str, Tensor], step: int, *, only_discriminator: bool = False
    ) -> AnatomyLosses:
        """Compute the losses of one batch.

        Args:
            batch: As of ``UniversalModel``; and ``rendering_a``, ``rendering_b`` (N, 1, X, Y, Z),
                ``groups`` (N, X, Y, Z), ``edges`` (N, X, Y, Z) and ``points`` (N, P).
            step: Finished optimizer steps.
            only_discriminator: As of ``UniversalModel``.
        """
        paper = super().forward(batch, step, only_discriminator=only_discriminator)
        if only_discriminator:
            nothing = paper.restoration
            return AnatomyLosses(*paper[:3], nothing, nothing, nothing, *paper[3:], nothing)
        renderings = torch.cat([batch["rendering_a"], batch["rendering_b"]])
        maps = self.unet.decoder(self.unet.encoder.pyramid(renderings))  # (2N, 2w, X, Y, Z)
        logits = self.segmentation_head(maps).float()
        groups = torch.cat([batch["groups"]] * 2)
        named = logits[:, :-1]
        segmentation = F.cross_entropy(named, groups, ignore_index=NOT_LABELED)
        edges = F.binary_cross_entropy_with_logits(logits[:, -1], torch.cat([batch["edges"]] * 2))
        first, second = sampled(maps, batch["points"].repeat(2, 1)).chunk(2)
        contrast = contrastive_loss(self.projection(first), self.projection(second))
        with torch.no_grad():
            known = groups != NOT_LABELED
            right = (named.argmax(dim=1) == groups) & known
            accuracy = right.sum() / known.sum()
        return AnatomyLosses(*paper[:3], segmentation, edges, contrast, *paper[3:], accuracy)


def sampled(maps: Tensor, points: Tensor) -> Tensor:
    """Return the features of sampled voxels: maps (N, C, X, Y, Z), points (N, P) -> (N, P, C)."""
    flat = maps.flatten(2)  # (N, C, XYZ)
    chosen = flat.gather(2, points[:, None, :].expand(-1, flat.shape[1], -1))
    return chosen.transpose(1, 2)


def contrastive_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return how badly a voxel finds itself among the voxels of the other rendering.

    Source: InfoNCE, van den Oord et al. 2018, in both directions. The positive is the voxel itself,
    not its label: within an organ, too, places differ.

    Args:
        first: (N, P, C) features of one rendering.
        second: (N, P, C) of the other, the same voxels.
    """
    a, b = (F.normalize(x.float(), dim=2) for x in (first, second))
    likeness = a @ b.transpose(1, 2) / TEMPERATURE  # (N, P, P)
    truth = torch.arange(likeness.shape[1], device=likeness.device).repeat(len(likeness))
    rows, columns = likeness.flatten(0, 1), likeness.transpose(1, 2).flatten(0, 1)
    return (F.cross_entropy(rows, truth) + F.cross_entropy(columns, truth)) / 2
