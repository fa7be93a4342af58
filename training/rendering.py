"""Label cubes rendered as images in random CT-like and MR-like contrasts.

After SynthSeg (Billot et al. 2023): a random intensity for each label, then texture, partial
volume, bias field, resolution, noise. CT-like images mostly keep the tissues' HU, since in CT the
intensity itself means something; a share of them, and most MR-like ones, take any contrast.
Images are (X, Y, Z) float32 in [0, 1], as preprocessing leaves scans.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.corpora.phantom.tissues import PHASES, TISSUES, tissue_values

TRUE_HU_PROBABILITY = 0.7  # of a CT-like image with the tissues' own HU
SIGNAL_PROBABILITY = 0.4  # of an MR-like image by the spin echo's signal equation
SAME_KIND_PROBABILITY = 0.3  # of two images of one kind rather than one of each
EXTRA_LABELS = 16  # abstract shapes beyond the tissues


def render_pair(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Render label cube (X, Y, Z) twice: mostly once CT-like and once MR-like, in any order."""
    kinds = ["CT", "MR"]
    if rng.random() < SAME_KIND_PROBABILITY:
        kinds = [str(rng.choice(kinds))] * 2
    first, second = (render(labels, kinds[int(k)], rng) for k in rng.permutation(2))
    return first, second


def render(labels: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Render a label cube.

    Args:
        labels: (X, Y, Z) integers: tissues, then abstract shapes.
        kind: ``"CT"`` or ``"MR"``.
        rng: Draws everything.

    Returns:
        (X, Y, Z) float32 in [0, 1].
    """
    means, textures = ct_values(rng) if kind == "CT" else mr_values(rng)
    noise = rng.standard_normal(labels.shape, dtype=np.float32)
    coarse = smooth_field(labels.shape, 8, rng)
    image = torch.from_numpy(means[labels] + textures[labels] * (0.5 * noise + coarse))
    image = blurred(image, rng.uniform(0.2, 0.9, 3))
    if kind == "MR":
        image = image * torch.from_numpy(np.exp(0.25 * smooth_field(labels.shape, 3, rng)))
    if rng.random() < 0.5:
        image = coarsened(image, rng)
    image = noisy(image, kind, rng)
    if kind == "MR":
        low, high = image.min(), image.max()
        image = (image - low) / (high - low).clamp(min=1e-6) * float(rng.uniform(0.4, 1.0))
    if rng.random() < 0.3:
        image = image.clamp(0, 1) ** float(np.exp(rng.uniform(-0.3, 0.3)))
    return image.clamp(0, 1).numpy()


def ct_values(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw mean and texture of each label in [0, 1] of the window -1000 to 1000 HU."""
    hu = tissue_values("hu").copy()
    phase = str(rng.choice(sorted(PHASES)))
    for name, value in PHASES[phase].items():
        hu[TISSUES[name]] = value
    spread, texture = tissue_values("hu_spread"), tissue_values("hu_texture")
    hu = hu + 1.5 * spread * rng.standard_normal(len(hu))
    values = (hu + 1000) / 2000
    if rng.random() > TRUE_HU_PROBABILITY:
        values = np.where(hu < -500, values, rng.uniform(0.3, 0.9, len(hu)))
    textures = texture / 2000 * rng.uniform(0.5, 2)
    return with_shapes(values, textures, rng)


def mr_values(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw mean and texture of each label in an MR-like contrast; what has no protons is dark.

    By the spin echo's equation (density times (1 - exp(-TR / T1)) times exp(-TE / T2)), or any.
    """
    density = tissue_values("density")
    if rng.random() < SIGNAL_PROBABILITY:
        tr, te = np.exp(rng.uniform(np.log(300), np.log(5000))), rng.uniform(5, 120)
        relaxed = 1 - np.exp(-tr / tissue_values("t1_ms"))
        values = density * relaxed * np.exp(-te / tissue_values("t2_ms"))
        values = values / max(float(values.max()), 1e-6)
        values = values * np.exp(0.1 * rng.standard_normal(len(values)))
    else:
        values = np.where(density > 0, rng.uniform(0.05, 1, len(density)), 0.0)
    textures = values * tissue_values("mr_texture") * rng.uniform(0.5, 1.5)
    return with_shapes(values, textures, rng)


def with_shapes(
    values: np.ndarray, textures: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Append a random intensity and texture for each abstract shape; both float32."""
    more = rng.uniform(0, 1, EXTRA_LABELS), rng.uniform(0, 0.1, EXTRA_LABELS)
    pairs = zip((values, textures), more, strict=True)
    first, second = (np.concatenate(pair).astype(np.float32) for pair in pairs)
    return first, second


def smooth_field(shape: Sequence[int], knots: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth field (X, Y, Z) float32 of about unit variance at its knots."""
    values = torch.from_numpy(rng.standard_normal((1, 1, knots, knots, knots), dtype=np.float32))
    field = F.interpolate(values, size=tuple(shape), mode="trilinear", align_corners=True)
    smooth: np.ndarray = field[0, 0].numpy()
    return smooth


def blurred(image: Tensor, sigmas: np.ndarray) -> Tensor:
    """Blur along each axis by a Gaussian of that many voxels, borders repeated."""
    x = image[None, None]
    for axis, sigma in enumerate(sigmas):
        offsets = torch.arange(-2, 3, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (offsets / float(sigma)) ** 2)
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 5
        pads = [0] * 6
        pads[2 * (2 - axis)] = pads[2 * (2 - axis) + 1] = 2
        x = F.conv3d(F.pad(x, pads, mode="replicate"), (kernel / kernel.sum()).reshape(shape))
    return x[0, 0]


def coarsened(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Sample coarsely along one axis, or along all, and come back: thick slices."""
    size = list(image.shape)
    axes = [int(rng.integers(3))] if rng.random() < 0.7 else [0, 1, 2]
    factor = float(rng.uniform(1.2, 4.0 if len(axes) == 1 else 2.0))
    small = [max(2, round(n / factor)) if k in axes else n for k, n in enumerate(size)]
    x = F.interpolate(image[None, None], size=small, mode="area")
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)[0, 0]


def noisy(image: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Add noise: Gaussian in CT, of magnitude images (Rician) in MR."""
    sigma = float(rng.uniform(0, 0.04))
    first = sigma * torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
    if kind == "CT":
        return image + first
    second = sigma * torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
    return torch.sqrt((image + first) ** 2 + second**2)
