"""Scans, labels, probabilities and features as files that the page draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from torch import nn

from universal_model_hub.errors import ConfigError, GeometryError
from universal_model_hub.features import FeatureMap, features
from universal_model_hub.predict import predict
from universal_model_hub.preprocess.modality import recognized, sample_of
from universal_model_hub.volume import Volume, load_volume, save_volume

COLORS = (
    *((230, 97, 1), (94, 158, 219), (90, 180, 90), (204, 84, 160), (240, 200, 60)),
    *((120, 110, 210), (60, 200, 190), (200, 60, 60), (150, 110, 70), (170, 200, 90)),
    *((255, 150, 170), (30, 120, 120), (190, 170, 255), (110, 70, 140), (220, 160, 110)),
)
CT_WINDOWS = {  # center and width as read in clinics: lowest and highest HU
    "soft tissue": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-450.0, 1050.0),
    "brain": (0.0, 80.0),
}
SAME_PLACE_MM = 0.1
MOST_LABELS = 1000
FEATURE_LEVEL = 2  # a quarter of the grid's sides: what the network sees, at a bearable size
COMPONENT_SAMPLES = 20_000  # voxels that the principal components are found on
COMPONENT_RANGE = (2.0, 98.0)  # percentiles that become black and full


@dataclass
class Scene:
    """What the page shows: files in ``folder``, and a description of them."""

    folder: Path
    volumes: list[dict[str, Any]] = field(default_factory=list)
    windows: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return scene.json."""
        return {"volumes": self.volumes, "windows": self.windows}

    def add(self, file: str, name: str, kind: str, **more: Any) -> Path:
        """Describe a file that is about to be written into the folder."""
        self.volumes.append({"file": file, "name": name, "kind": kind, **more})
        return self.folder / file


def make_scene(
    folder: Path,
    scan: Path,
    labels: Sequence[Path] = (),
    *,
    label_names: Mapping[int, str] | None = None,
    model: nn.Module | None = None,
    probabilities: bool = False,
    show_features: bool = False,
    modality: str = "auto",
) -> Scene:
    """Load, check and run everything, and write it into a folder.

    Args:
        folder: Empty; the page's files.
        scan: What is shown in gray.
        labels: Label maps on the scan's grid.
        label_names: Names of label values.
        model: A segmenter, or with ``show_features`` alone anything that has an encoder.
        probabilities: Show a map for each class of the model.
        show_features: Show the model's features, three principal components as red, green, blue.
        modality: See ``predict``.

    Raises:
        VolumeError: If a scan cannot be read.
        GeometryError: If a label map is not on the scan's grid.
        ConfigError: If a label map is none.
    """
    volume = load_volume(scan)
    maps = [_label_map(path, volume) for path in labels]
    scene = Scene(folder)
    _add_scan(scene, scan, volume, modality)
    for number, (path, found) in enumerate(zip(labels, maps, strict=True)):
        _add_labels(scene, f"labels{number}.nii", path.name, found, label_names or {})
    if model is not None and (probabilities or not show_features):
        _add_answer(scene, model, volume, modality, probabilities=probabilities)
    if model is not None and show_features:
        found_map = features(model, volume, FEATURE_LEVEL, modality=modality)
        _save_colors(found_map, scene.add("features.nii", "features (3 components)", "colors"))
    return scene


def principal_colors(array: np.ndarray) -> np.ndarray:
    """Return the three main components of a feature map as red, green and blue.

    Args:
        array: (C, X, Y, Z) float32.

    Returns:
        (X, Y, Z, 3) uint8.
    """
    flat = array.reshape(len(array), -1).T.astype(np.float64)
    rng = np.random.default_rng(0)
    some = flat[rng.choice(len(flat), min(len(flat), COMPONENT_SAMPLES), replace=False)]
    mean = some.mean(axis=0)
    axes = np.linalg.svd(some - mean, full_matrices=False)[2][:3]
    axes *= np.where(axes.sum(axis=1) < 0, -1, 1)[:, None]  # a sign that does not depend on luck
    values = (flat - mean) @ axes.T
    low, high = np.percentile(values, COMPONENT_RANGE, axis=0)
    scaled = (values - low) / np.maximum(high - low, 1e-12)
    colors = np.zeros((len(flat), 3), np.uint8)
    colors[:, : scaled.shape[1]] = np.rint(255 * scaled.clip(0, 1))
    return colors.reshape(*array.shape[1:], 3)


def _add_scan(scene: Scene, path: Path, volume: Volume, modality: str) -> None:
    sample = sample_of(volume.array)
    known = recognized(sample).modality if modality == "auto" else modality
    low, high = (float(p) for p in np.percentile(sample, [1, 99.5]))
    if known == "CT":
        scene.windows = dict(CT_WINDOWS)
        low, high = CT_WINDOWS["soft tissue"]
    scene.windows["full range"] = (float(sample.min()), float(sample.max()))
    unit = "HU" if known == "CT" else ""
    save_volume(volume, scene.add("scan.nii", path.name, "scan", window=[low, high], unit=unit))


def _label_map(path: Path, scan: Volume) -> Volume:
    volume = load_volume(path)
    if volume.shape != scan.shape or not _same_place(volume, scan):
        raise GeometryError(
            f"Expected {path.name} on the scan's grid of {scan.shape} voxels, got {volume.shape}"
            f"{'' if volume.shape != scan.shape else ' in another place'}. Resample it first."
        )
    values = np.unique(volume.array)
    if len(values) > MOST_LABELS or (values != np.rint(values)).any() or values.min() < -1:
        raise ConfigError(
            f"Expected whole numbers from 0 in {path.name}, got {len(values)} values from "
            f"{values.min():g} to {values.max():g}: is it a label map?"
        )
    kind = np.uint8 if values.max() < 256 else np.int16
    return Volume(np.maximum(volume.array, 0).astype(kind), scan.affine)


def _same_place(volume: Volume, scan: Volume) -> bool:
    far = np.array([*scan.shape, 1.0])
    off = np.abs((volume.affine - scan.affine) @ np.stack([far, [0, 0, 0, 1.0]], axis=1))
    return bool(off.max() < SAME_PLACE_MM)


def _add_labels(
    scene: Scene, file: str, name: str, volume: Volume, names: Mapping[int, str]
) -> None:
    values = [int(value) for value in np.unique(volume.array) if value > 0]
    legend = [
        {
            "value": value,
            "name": names.get(value, f"label {value}"),
            "color": COLORS[(value - 1) % len(COLORS)],
        }
        for value in values
    ]
    save_volume(volume, scene.add(file, name, "labels", legend=legend))


def _add_answer(
    scene: Scene, model: nn.Module, volume: Volume, modality: str, *, probabilities: bool
) -> None:
    names = dict(getattr(getattr(model, "config", None), "labels", None) or {})
    answer = predict(model, volume, modality=modality)
    labels = Volume(np.asarray(answer.array).astype(np.uint8), volume.affine)
    _add_labels(scene, "predicted.nii", "predicted", labels, names)
    if not probabilities:
        return
    for value, found in predict(model, volume, modality=modality, output="probabilities").items():
        if value == 0:
            continue
        name = f"probability of {names.get(value, f'label {value}')}"
        _save_share(found, scene.add(f"probability{value}.nii", name, "map"))


def _save_share(volume: Volume, path: Path) -> None:
    """Save values of 0 to 1 as one byte a voxel, with the slope that leads back."""
    image = nibabel.Nifti1Image(np.rint(255 * volume.array).astype(np.uint8), volume.affine)
    image.header.set_slope_inter(1 / 255, 0)
    nibabel.save(image, path)


def _save_colors(found: FeatureMap, path: Path) -> None:
    colors = principal_colors(found.array)
    rgb = np.dtype([("R", np.uint8), ("G", np.uint8), ("B", np.uint8)])
    nibabel.save(nibabel.Nifti1Image(colors.view(rgb)[..., 0], found.affine), path)
