"""Batches for fine-tuning: a pure function of seed and step, whatever the number of processes.

Cubes cut from labeled volumes for segmentation, whole scans for classification.
Shape letters: N batch, C channels, X Y Z the volume's axes, K classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import NOT_ANNOTATED, LoadedCase, LoadedScan
from universal_model_hub.fit.training.settings import FinetuneSettings

INDEXED_VOXELS = 20_000  # of each class and case, among which centers are drawn


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
        self.places: dict[int, list[tuple[int, np.ndarray]]] = {}  # class: (case, some voxels)
        self.sizes: dict[int, list[int]] = {}  # class: how many voxels, of the same cases
        self.voxels = np.zeros(num_classes, np.int64)  # annotated, of each class
        rng = np.random.default_rng([settings.seed, 1])
        for number, case in enumerate(self.cases):
            _check_case(case, num_classes)
            for value in range(num_classes):
                found = np.flatnonzero(case.labels == value)
                count = len(found)
                self.voxels[value] += count
                if count > INDEXED_VOXELS:
                    found = rng.choice(found, INDEXED_VOXELS, replace=False)
                if count:
                    self.places.setdefault(value, []).append((number, found))
                    self.sizes.setdefault(value, []).append(count)
        if not self.places:
            raise ConfigError("Expected annotated voxels in the training cases, got none.")

    @property
    def foreground(self) -> list[int]:
        """Classes but background of which there are voxels."""
        return [value for value in sorted(self.places) if value > 0]

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Return a process's share of the batch of a step.

        Returns:
            Images (N, C, X, Y, Z) float32, labels (N, X, Y, Z) int64.
        """
        pairs = [self.cube(rng) for rng in item_rngs(self.settings, step, rank, world_size)]
        images, labels = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(labels)

    def cube(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw one cube: image (C, X, Y, Z) and labels (X, Y, Z)."""
        foreground = self.foreground
        if foreground and rng.random() < self.settings.foreground_share:
            value = int(rng.choice(foreground))
        else:
            value = int(rng.choice(len(self.voxels), p=self.voxels / self.voxels.sum()))
        entries = self.places[value]
        sizes = np.array(self.sizes[value], float)
        number, found = entries[int(rng.choice(len(entries), p=sizes / sizes.sum()))]
        case = self.cases[number]
        center = np.unravel_index(int(rng.choice(found)), case.labels.shape)
        image, labels = cut(case, [int(c) for c in center], self.settings.cube, rng)
        return augmented(image, labels, self.settings, rng)


class ScanSampler:
    """Draws batches of whole scans, each class alike.

    Scans larger than ``settings.cube`` are cut to it, and all of a batch to its smallest along each
    axis, at a random place: nothing is padded, for a scan to be classified is not padded either.

    Raises:
        ConfigError: If a target is not one of the classes, or a class has no scan.
    """

    def __init__(
        self, scans: Sequence[LoadedScan], settings: FinetuneSettings, num_classes: int
    ) -> None:
        self.settings = settings
        self.by_class: list[list[LoadedScan]] = [[] for _ in range(num_classes)]
        for scan in scans:
            if not 0 <= scan.target < num_classes:
                raise ConfigError(
                    f"Expected a target of 0 to {num_classes - 1} for {scan.id}, got {scan.target}."
                )
            self.by_class[scan.target].append(scan)
        empty = [number for number, found in enumerate(self.by_class) if not found]
        if empty:
            raise ConfigError(f"Expected training scans of each class, got none of {empty}.")

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Return a process's share of the batch of a step.

        Returns:
            Images (N, C, X, Y, Z) float32, targets (N,) int64.
        """
        rngs = item_rngs(self.settings, step, rank, world_size)
        drawn = [self._scan(rng) for rng in rngs]
        shape = np.min(
            [[*scan.image.shape[1:]] for scan in drawn] + [[*self.settings.cube]], axis=0
        )
        images = [
            varied(random_part(scan.image, shape, rng), self.settings, rng)
            for scan, rng in zip(drawn, rngs, strict=True)
        ]
        return torch.stack(images), torch.tensor([scan.target for scan in drawn])

    def _scan(self, rng: np.random.Generator) -> LoadedScan:
        scans = self.by_class[int(rng.integers(len(self.by_class)))]
        return scans[int(rng.integers(len(scans)))]


def item_rngs(
    settings: FinetuneSettings, step: int, rank: int, world_size: int
) -> list[np.random.Generator]:
    """Return the generator of each item of a process's share of a step's batch."""
    if settings.batch_size % world_size:
        raise ConfigError(
            f"Expected a batch_size that {world_size} processes can share, got "
            f"{settings.batch_size}. Make it a multiple."
        )
    numbers = range(rank, settings.batch_size, world_size)
    return [np.random.default_rng([settings.seed, 2, step, number]) for number in numbers]


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
    """Flip and turn where allowed, and vary intensities: gamma, contrast, brightness, noise.

    Source: flips, transposes, rotations and Gaussian noise as in Zhang et al., Sec. IV-C; gamma,
    contrast and brightness are ours.
    """
    if not settings.augment:
        return image, labels
    for axis in settings.flip_axes:
        if rng.random() < 0.5:
            image, labels = image.flip(1 + axis), labels.flip(axis)
    if settings.transpose:
        order = shape_keeping_order(labels.shape, rng)
        image, labels = image.permute(0, *(1 + axis for axis in order)), labels.permute(order)
    return other_intensities(image, rng, noise_alone=not settings.intensities), labels


def varied(image: Tensor, settings: FinetuneSettings, rng: np.random.Generator) -> Tensor:
    """Vary a scan (C, X, Y, Z) as ``augmented`` varies a cube, without labels."""
    if not settings.augment:
        return image
    flipped = [1 + axis for axis in settings.flip_axes if rng.random() < 0.5]
    image = image.flip(flipped)
    if settings.transpose:
        order = shape_keeping_order(image.shape[1:], rng)
        image = image.permute(0, *(1 + axis for axis in order))
    return other_intensities(image, rng, noise_alone=not settings.intensities)


def shape_keeping_order(shape: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Draw an order of the axes X, Y, Z that leaves the shape as it is."""
    order = list(range(len(shape)))
    for side in sorted(set(shape)):
        equal = [axis for axis, size in enumerate(shape) if size == side]
        for axis, source in zip(equal, rng.permutation(equal), strict=True):
            order[axis] = int(source)
    return order


def other_intensities(
    image: Tensor, rng: np.random.Generator, *, noise_alone: bool = False
) -> Tensor:
    """Vary gamma, contrast and brightness of (C, X, Y, Z) in [0, 1], and add noise."""
    if not noise_alone and rng.random() < 0.5:
        image = image ** float(np.exp(rng.uniform(-0.25, 0.25)))
    if not noise_alone and rng.random() < 0.5:
        image = image * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.03, 0.03))
    if rng.random() < 0.3:
        sigma = float(rng.uniform(0, 0.03))
        noise = rng.standard_normal(tuple(image.shape), dtype=np.float32)
        image = image + sigma * torch.from_numpy(noise)
    return image.clamp(0, 1)


def random_part(
    image: np.ndarray, shape: Sequence[int] | np.ndarray, rng: np.random.Generator
) -> Tensor:
    """Return a part of an image (C, X, Y, Z) with the sides ``shape``, at a random place."""
    box = [slice(None)]
    for side, size in zip(shape, image.shape[1:], strict=True):
        start = int(rng.integers(size - int(side) + 1))
        box.append(slice(start, start + int(side)))
    return torch.from_numpy(np.array(image[tuple(box)], np.float32))


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
