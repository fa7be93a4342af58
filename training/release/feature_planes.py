"""A scan's features as colors, in three planes: their first three principal components."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure

from training.pictures import bare, new_figure
from universal_model_hub import Volume
from universal_model_hub.resample import resample

PLANES = ("sagittal", "coronal", "axial")
SPACING_MM = 2.0  # of pictures


def draw_features(
    volume: Volume, maps: Mapping[str, np.ndarray], window: tuple[float, float] | None
) -> Figure:
    """Draw three planes of a scan, and below them the features of each network.

    Args:
        volume: The scan.
        maps: Features (C, X, Y, Z) by what they are of.
        window: Intensities drawn black and white; None takes the scan's own.
    """
    gray = isotropic(volume).array
    drawn = new_figure(9, 3 * (1 + len(maps)))
    axes = drawn.subplots(1 + len(maps), 3, squeeze=False)
    low, high = window or (float(gray.min()), float(np.percentile(gray, 99.5)))
    for axis, plane, title in zip(axes[0], three_planes(gray), PLANES, strict=True):
        axis.imshow(plane.T, cmap="gray", origin="lower", vmin=low, vmax=high)
        axis.set_title(title)
    for row, (name, found) in zip(axes[1:], maps.items(), strict=True):
        for axis, plane in zip(row, three_planes(principal_components(found)), strict=True):
            axis.imshow(plane.transpose(1, 0, 2), origin="lower")
        row[0].set_ylabel(name)
    for axis in axes.flat:
        bare(axis)
    return drawn


def isotropic(volume: Volume, spacing: float = SPACING_MM, *, order: int = 1) -> Volume:
    """Return a scan in RAS+ orientation at ``spacing`` mm, for pictures."""
    import nibabel as nib

    image = nib.as_closest_canonical(nib.Nifti1Image(volume.array, volume.affine))
    array, affine = np.asarray(image.dataobj), np.asarray(image.affine)
    scale = [spacing / step for step in np.linalg.norm(affine[:3, :3], axis=0)]
    size = [max(1, round(n / s)) for n, s in zip(array.shape, scale, strict=True)]
    return Volume(resample(array, size, scale, (0, 0, 0), order).numpy(), affine)


def three_planes(array: np.ndarray) -> list[np.ndarray]:
    """Return the middle sagittal, coronal and axial planes of (X, Y, Z, ...)."""
    x, y, z = (n // 2 for n in array.shape[:3])
    return [array[x], array[:, y], array[:, :, z]]


def principal_components(maps: np.ndarray) -> np.ndarray:
    """Map features (C, X, Y, Z) to colors (X, Y, Z, 3) in [0, 1]: their first three components."""
    C = maps.shape[0]
    flat = torch.from_numpy(maps.reshape(C, -1).T)
    centered = flat - flat.mean(dim=0)
    _, _, components = torch.pca_lowrank(centered[:: max(1, len(flat) // 50_000)], q=3, niter=4)
    colors = (centered @ components).numpy()
    low, high = np.percentile(colors, [1, 99], axis=0)
    colors = np.clip((colors - low) / np.maximum(high - low, 1e-9), 0, 1)
    return colors.reshape(*maps.shape[1:], 3)
