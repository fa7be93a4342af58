"""How well a U-Net restores cubes: one corruption at a time, inside the body.

Every corruption is applied alone and always. Errors are mean squared errors over the voxels of the
body, in squared units of [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from training.cubes import CubeStore
from training.transforms import (
    CorruptionConfig,
    apply_curve,
    inpaint,
    outpaint,
    shuffle_locally,
)

MEDIAN_SIDE = 3  # voxels; what the network is compared with
MIN_BODY_VOXELS = 64  # a cube with less of the body says nothing about restoring it
CORRUPTION_NAMES = ("non-linear", "local shuffling", "in-painting", "out-painting")


@dataclass(frozen=True)
class RestorationErrors:
    """Mean errors over the cubes of one modality under one corruption."""

    corruption: str
    modality: str
    cubes: int
    corrupted: float  # doing nothing
    median: float  # a 3 x 3 x 3 median filter
    restored: float  # the network


def corrupt_alone(
    name: str, cube: np.ndarray, config: CorruptionConfig, rng: np.random.Generator
) -> np.ndarray:
    """Apply one corruption to a cube (X, Y, Z) in [0, 1]; its sizes come from ``config``."""
    if name == "non-linear":
        invert = bool(rng.random() < config.invert_probability)
        return apply_curve(cube, rng.random((2, 2)), invert=invert)
    alone: dict[str, Callable[..., np.ndarray]] = {
        "local shuffling": shuffle_locally,
        "in-painting": inpaint,
        "out-painting": outpaint,
    }
    return alone[name](cube, config, rng)


def restoration_errors(
    unet: nn.Module,
    store: CubeStore,
    bodies: dict[str, np.ndarray],
    numbers: Sequence[int],
    config: CorruptionConfig,
    *,
    seed: int = 0,
) -> list[RestorationErrors]:
    """Measure a U-Net, doing nothing, and a median filter on the same corrupted cubes.

    Args:
        unet: In eval mode, with its restoration head.
        store: The cubes.
        bodies: For each case the masks of its cubes, (n, X, Y, Z) bool.
        numbers: Which cubes of the store.
        config: Sizes of the corruptions.
        seed: Of the corruptions.

    Returns:
        A row for each corruption and modality.
    """
    rows = []
    for stream, name in enumerate(CORRUPTION_NAMES):
        errors: dict[str, list[tuple[float, float, float]]] = {}
        for number in numbers:
            record = store.records[number]
            body = np.asarray(bodies[record.case][record.row])
            if body.sum() < MIN_BODY_VOXELS:
                continue
            cube = store.cube(number)
            rng = np.random.default_rng([seed, stream, number])
            corrupted = corrupt_alone(name, cube, config, rng)
            answers = (
                corrupted,
                ndimage.median_filter(corrupted, MEDIAN_SIDE),
                restore(unet, corrupted),
            )
            found = tuple(float(np.square(a - cube)[body].mean()) for a in answers)
            errors.setdefault(record.modality, []).append((found[0], found[1], found[2]))
        for modality, values in sorted(errors.items()):
            means = np.mean(values, axis=0).tolist()
            rows.append(RestorationErrors(name, modality, len(values), *means))
    return rows


@torch.inference_mode()
def restore(unet: nn.Module, corrupted: np.ndarray) -> np.ndarray:
    """Return what the network makes of one cube (X, Y, Z) float32."""
    restored: np.ndarray = unet(torch.from_numpy(corrupted)[None, None])[0, 0].numpy()
    return restored
