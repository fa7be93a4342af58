"""Scans, labels, probabilities and features as files that the page draws."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from torch import nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.features import FeatureMap, features
from universal_model_hub.networks.pyramid import PyramidEncoder
from universal_model_hub.predict import predict
from universal_model_hub.preprocess.modality import recognized, sample_of
from universal_model_hub.volume import Volume, load_volume, save_volume
from universal_model_hub.volume.grid import require_same_grid

COLORS = (  # of the labels 1 to 15
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
SAME_PLACE = 0.05  # voxels that a corner of a label map may be off
MOST_LABELS = 1000
FEATURE_LEVEL = 2  # a quarter of the grid's sides: what the network sees, at a bearable size
COMPONENT_SAMPLES = 20_000  # voxels that the principal components are found on
AUTOMATIC_RANGE = (1.0, 99.5)  # percentiles that an MR scan is first shown in
NOT_ANNOTATED = -1  # as in fine-tuning; shown as background
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
    **options: Any,
) -> Scene:
    """Load, check and run everything, and write it into a folder.

    Args:
        folder: Empty; the page's files.
        scan: What is shown in gray.
        labels: Label maps on the scan's grid.
        label_names: Names of label values.
        model: A segmenter, or an encoder, which has features only.
        probabilities: Show a map for each class of the model.
        show_features: Show the model's features, three principal components as red, green, blue.
        modality: See ``predict``.
        options: Further keywords of ``predict``, such as ``device``.

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
    if model is not None and not isinstance(model, PyramidEncoder):
        _add_answer(scene, model, volume, probabilities, modality=modality, **options)
    if model is not None and show_features:
        found_map = features(model, volume, FEATURE_LEVEL, modality=modality, **options)
        _save_colors(found_map, scene.add("features.nii", "features (3 components)", "colors"))
    for number, overlay in enumerate(scene.volumes[1:]):
        # All given labels at first, else what comes first; one above the other nobody can read.
        overlay["shown"] = number < max(1, len(labels))
    return scene


def principal_colors(array: np.ndarray) -> np.ndarray:
    """Return the three main components of a feature map as red, green and blue.

    Args:
        array: (C, X, Y, Z) float32.

    Returns:
        (X, Y, Z, 3) uint8.
    """
    flat = array.reshape(len(array), -1)
    rng = np.random.default_rng(0)
    chosen = rng.choice(flat.shape[1], min(flat.shape[1], COMPONENT_SAMPLES), replace=False)
    some = flat[:, chosen].T.astype(np.float64)
    mean = some.mean(axis=0)
    axes = np.linalg.svd(some - mean, full_matrices=False)[2][:3]
    axes *= np.where(axes.sum(axis=1) < 0, -1, 1)[:, None]  # a sign that does not depend on luck
    colors = np.zeros((flat.shape[1], 3), np.uint8)
    for color, axis in enumerate(axes):
        values = axis.astype(flat.dtype) @ flat - axis @ mean
        low, high = np.percentile(values, COMPONENT_RANGE)
        scaled = (values - low) / max(high - low, 1e-12)
        colors[:, color] = np.rint(255 * scaled.clip(0, 1))
    return colors.reshape(*array.shape[1:], 3)


def label_counts(array: np.ndarray) -> dict[float, int]:
    """Return the values that occur, in order, with their voxels; stops beyond ``MOST_LABELS``.

    Args:
        array: (X, Y, Z).
    """
    counts: dict[float, int] = {}
    for plane in array:  # plane by plane: sorting a whole scan takes several times its memory
        values, voxels = np.unique(plane, return_counts=True)
        for value, number in zip(values.tolist(), voxels.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + number
        if len(counts) > MOST_LABELS:
            break
    return dict(sorted(counts.items()))


def color_of(value: int) -> tuple[int, int, int]:
    """Return the color of a label, the same in every label map."""
    if 1 <= value <= len(COLORS):
        return COLORS[value - 1]
    hue = value * 0.618034 % 1  # steps of the golden section keep neighbors apart
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _add_scan(scene: Scene, path: Path, volume: Volume, modality: str) -> None:
    sample = sample_of(volume.array)
    known = recognized(sample).modality if modality == "auto" else modality
    if known == "CT":
        scene.windows = dict(CT_WINDOWS)
    else:
        scene.windows["automatic"] = _window(*np.percentile(sample, AUTOMATIC_RANGE))
    scene.windows["full range"] = _window(volume.array.min(), volume.array.max())
    unit = "HU" if known == "CT" else ""
    save_volume(volume, scene.add("scan.nii", path.name, "scan", unit=unit))


def _window(low: float, high: float) -> tuple[float, float]:
    return float(low), float(high) if high > low else float(low) + 1


def _label_map(path: Path, scan: Volume) -> Volume:
    volume = load_volume(path)
    require_same_grid(scan, volume, path.name, SAME_PLACE)
    values = list(label_counts(volume.array))
    if len(values) > MOST_LABELS or any(v != int(v) for v in values) or values[0] < NOT_ANNOTATED:
        many = f"more than {MOST_LABELS}" if len(values) > MOST_LABELS else str(len(values))
        raise ConfigError(
            f"Expected whole numbers from 0 in {path.name}, got {many} values, such as "
            f"{values[0]:g} and {values[-1]:g}. Pass a label map; a second scan gets its own page."
        )
    return volume


def _add_labels(
    scene: Scene, file: str, name: str, volume: Volume, names: Mapping[int, str]
) -> None:
    """Add labels, numbered from 1 in the file: the page's table of colors has an entry a number."""
    counts = {int(v): n for v, n in label_counts(volume.array).items() if v > 0}
    voxel_ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000
    legend = [
        {
            "value": value,
            "name": names.get(value, f"label {value}"),
            "color": color_of(value),
            "ml": round(number * voxel_ml, 2),
        }
        for value, number in counts.items()
    ]
    numbered = np.zeros(volume.shape, np.uint8 if len(counts) < 256 else np.uint16)
    for plane, found in zip(numbered, volume.array, strict=True):
        plane[:] = np.searchsorted([0, *counts], np.maximum(found, 0))
    path = scene.add(file, name, "labels", legend=legend)
    save_volume(Volume(numbered, volume.affine), path)


def _add_answer(
    scene: Scene, model: nn.Module, volume: Volume, probabilities: bool, **options: Any
) -> None:
    names = dict(getattr(getattr(model, "config", None), "labels", None) or {})
    if not probabilities:
        labels = predict(model, volume, **options)
        _add_labels(scene, "predicted.nii", "predicted", labels, names)
        return
    shares = predict(model, volume, output="probabilities", **options)
    _add_labels(scene, "predicted.nii", "predicted", likeliest(shares), names)
    for value, share in shares.items():
        if value != 0:
            name = names.get(value, f"label {value}")
            _save_share(share, scene.add(f"probability{value}.nii", name, "map"))


def likeliest(shares: Mapping[int, Volume]) -> Volume:
    """Return the labels that ``predict`` gives beside these probabilities, without a second run.

    Args:
        shares: A volume a class, by class; of one class alone, its label where it is above 0.5.
    """
    first = next(iter(shares.values()))
    best = np.full(first.shape, 0.5, np.float32) if len(shares) == 1 else first.array.copy()
    labels = np.zeros(first.shape, np.uint8 if len(shares) < 256 else np.uint16)
    for value, share in shares.items():
        above = share.array > best
        labels[above] = value
        np.maximum(best, share.array, out=best)
    return Volume(labels, first.affine)


def _save_share(volume: Volume, path: Path) -> None:
    """Save values of 0 to 1 as one byte a voxel, with the slope that leads back."""
    image = nibabel.Nifti1Image(np.rint(255 * volume.array).astype(np.uint8), volume.affine)
    image.header.set_slope_inter(1 / 255, 0)
    nibabel.save(image, path)


def _save_colors(found: FeatureMap, path: Path) -> None:
    colors = principal_colors(found.array)
    rgb = np.dtype([(channel, np.uint8) for channel in "RGB"])
    nibabel.save(nibabel.Nifti1Image(colors.view(rgb)[..., 0], found.affine), path)
