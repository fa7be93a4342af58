"""Cubes for fine-tuning, cut from labeled volumes: a pure function of seed and step.

Shape letters: N batch, C channels, X Y Z the volume's axes, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.settings import FinetuneSettings

NOT_ANNOTATED = -1
INDEXED_VOXELS = 20_000  # of each class and case, among which centers are drawn


@dataclass(frozen=True)
class LoadedCase:
    """A preprocessed volume with its labels."""

    id: str
    image: np.ndarray  # (C, X, Y, Z) float32 in [0, 1]; may be memory-mapped
    labels: np.ndarray  # (X, Y, Z) integers; -1 is not annotated


class CubeSampler:
    """Draws batches of cubes.

    A share of the cubes is centered on a voxel of a class that was drawn first, each class of the
    foreground alike; the others on any annotated voxel. Where a volume is smaller than the cube it
    is padded with 0, and with "not annotated".

    Raises:
        ConfigError: If nothing is annotated, or a label is not one of the classes.
    """

    def __init__(
        self, cases: Sequence[LoadedCase], settings: FinetuneSettings, num_classes: int
    ) -> None:
        self.cases = list(cases)
        self.settings = settings
        self.places: dict[int, list[tuple[int, np.ndarray]]] = {}  # class: (case, voxels)
        self.voxels = np.zeros(num_classes, np.int64)  # annotated, of each class
        rng = np.random.default_rng([settings.seed, 1])
        for number, case in enumerate(self.cases):
            _check_case(case, num_classes)
            for value in range(num_classes):
                found = np.flatnonzero(case.labels == value)
                self.voxels[value] += len(found)
                if len(found) > INDEXED_VOXELS:
                    found = rng.choice(found, INDEXED_VOXELS, replace=False)
                if len(found):
                    self.places.setdefault(value, []).append((number, found))
        if not self.places:
            raise ConfigError("Expected annotated voxels in the training cases, got none.")

    @property
    def foreground(self) -> list[int]:
        """Classes but background of which there are voxels."""
        return [value for value in sorted(self.places) if value > 0]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step: images (N, C, X, Y, Z) float32, labels (N, X, Y, Z) int64."""
        rng = np.random.default_rng([self.settings.seed, 2, step])
        pairs = [self.cube(rng) for _ in range(self.settings.batch_size)]
        images, labels = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(labels)

    def cube(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw one cube: image (C, X, Y, Z) and labels (X, Y, Z)."""
        foreground = self.foreground
        if foreground and rng.random() < self.settings.foreground_share:
            value = int(rng.choice(foreground))
        else:
            weights = [sum(len(found) for _, found in self.places[v]) for v in sorted(self.places)]
            value = int(rng.choice(sorted(self.places), p=np.array(weights) / sum(weights)))
        entries = self.places[value]
        sizes = np.array([len(found) for _, found in entries], float)
        number, found = entries[int(rng.choice(len(entries), p=sizes / sizes.sum()))]
        case = self.cases[number]
        center = np.unravel_index(int(rng.choice(found)), case.labels.shape)
        image, labels = cut(case, [int(c) for c in center], self.settings.cube, rng)
        return augmented(image, labels, self.settings, rng)


def cut(
    case: LoadedCase, center: Sequence[int], cube: Sequence[int], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Cut a cube that holds a voxel, at a random place in it where the volume allows."""
    box: list[slice] = []
    pads: list[int] = []
    for at, side, size in zip(center, cube, case.labels.shape, strict=True):
        kept = min(side, size)
        shift = int(rng.integers(side // 4, side - side // 4))
        start = min(max(0, at - shift), size - kept)
        box.append(slice(start, start + kept))
        pads = [0, side - kept, *pads]  # torch pads the last axis first
    everything: tuple[slice, ...] = (slice(None), *box)
    image = torch.from_numpy(np.array(case.image[everything], np.float32))
    labels = torch.from_numpy(np.array(case.labels[tuple(box)], np.int64))
    return F.pad(image, pads), F.pad(labels, pads, value=NOT_ANNOTATED)


def augmented(
    image: Tensor, labels: Tensor, settings: FinetuneSettings, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Flip where allowed, and vary intensities: gamma, contrast, brightness, noise.

    Source: flips and Gaussian noise as in Zhang et al., Sec. IV-C; the other two are ours.
    """
    if not settings.augment:
        return image, labels
    for axis in settings.flip_axes:
        if rng.random() < 0.5:
            image, labels = image.flip(1 + axis), labels.flip(axis)
    if rng.random() < 0.5:
        image = image ** float(np.exp(rng.uniform(-0.25, 0.25)))
    if rng.random() < 0.5:
        image = image * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.03, 0.03))
    if rng.random() < 0.3:
        sigma = float(rng.uniform(0, 0.03))
        noise = rng.standard_normal(tuple(image.shape), dtype=np.float32)
        image = image + sigma * torch.from_numpy(noise)
    return image.clamp(0, 1), labels


def _check_case(case: LoadedCase, num_classes: int) -> None:
    if case.image.shape[1:] != case.labels.shape:
        raise ConfigError(
            f"Expected labels of the image's shape in {case.id}, got image {case.image.shape} and "
            f"labels {case.labels.shape}."
        )
    low, high = int(case.labels.min()), int(case.labels.max())
    if low < NOT_ANNOTATED or high >= num_classes:
        raise ConfigError(
            f"Expected labels of -1 to {num_classes - 1} in {case.id}, got {low} to {high}."
        )
