"""Pictures of scans, features and labels in three planes, for a page of their own."""

import base64
import html
import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import torch

from universal_model_hub import Volume
from universal_model_hub.resample import resample

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def figure(draw: Callable[[], Any], caption: str) -> str:
    """Draw with matplotlib and return the picture as an HTML figure."""
    drawn = draw()
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    plt.close(drawn)
    data = base64.b64encode(stream.getvalue()).decode()
    text = html.escape(caption)
    return (
        f"<figure><img alt='{text}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{text}</figcaption></figure>"
    )


def draw_features(volume: Volume, maps: np.ndarray, window: tuple[float, float] | None) -> Any:
    """Three planes of a scan, and below them its features' first three principal components.

    Args:
        volume: The scan.
        maps: Its features, (C, X, Y, Z).
        window: Intensities drawn black and white; None takes the scan's own.
    """
    volume = isotropic(volume)
    drawn, axes = plt.subplots(2, 3, figsize=(9, 6))
    low, high = window or (float(volume.array.min()), float(np.percentile(volume.array, 99.5)))
    for axis, plane in zip(axes[0], three_planes(volume.array), strict=True):
        axis.imshow(plane.T, cmap="gray", origin="lower", vmin=low, vmax=high)
    for axis, plane in zip(axes[1], three_planes(principal_components(maps)), strict=True):
        axis.imshow(plane.transpose(1, 0, 2), origin="lower")
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].set_title("sagittal")
    axes[0, 1].set_title("coronal")
    axes[0, 2].set_title("axial")
    return drawn


def draw_labels(volume: Volume, labels: Volume) -> Any:
    """Three planes of a scan with its labels laid over, a color each."""
    gray = isotropic(volume).array
    classes = isotropic(labels, order=0).array
    drawn, axes = plt.subplots(1, 3, figsize=(9, 3))
    for axis, plane, over in zip(axes, three_planes(gray), three_planes(classes), strict=True):
        axis.imshow(plane.T, cmap="gray", origin="lower", vmin=-1000, vmax=400)
        painted = np.ma.masked_where(over.T == 0, over.T)
        axis.imshow(painted, cmap="tab20", origin="lower", alpha=0.6, vmin=1, vmax=20)
        axis.axis("off")
    return drawn


def isotropic(volume: Volume, spacing: float = 2.0, *, order: int = 1) -> Volume:
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
