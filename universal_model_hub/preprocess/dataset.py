"""Preprocessing for training code: a PyTorch data set, and a step of a MONAI ``Compose``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from universal_model_hub.errors import ConfigError
from universal_model_hub.preprocess.record import PreprocessRecord
from universal_model_hub.preprocess.steps import preprocess, preprocessing_of, seen_of
from universal_model_hub.volume import Volume, load_volume


class VolumeItem(TypedDict):
    """One scan of a ``VolumeDataset``."""

    volume: Tensor  # (1, X, Y, Z) float32 in [0, 1]
    affine: Tensor  # (4, 4) float64, maps its voxels to RAS+ mm
    modality: str  # "CT" or "MR"
    path: str


class VolumeDataset(Dataset[VolumeItem]):
    """Scans on disk, each preprocessed when it is asked for.

    Scans differ in size, so a ``DataLoader`` over them needs ``batch_size=1`` or a crop first.

    Args:
        paths: Of scans that ``load_volume`` reads.
        preprocessing: ``Preprocessing``, or a model or config that has one.
        modality: "CT", "MR" or "auto", for all.
    """

    def __init__(
        self, paths: Sequence[str | Path], preprocessing: Any, modality: str = "auto"
    ) -> None:
        if isinstance(paths, str | Path):
            raise ConfigError(f"Expected a list of paths, got one: {paths}. Put it in a list.")
        self.paths = [Path(path) for path in paths]
        self.modality = modality
        # Not the model itself: worker processes would each get a copy of its weights.
        self._settings = _settings(preprocessing)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> VolumeItem:
        path = self.paths[index]
        volume, record = preprocess(load_volume(path), self._settings, self.modality)
        return {
            "volume": volume[0],
            "affine": torch.from_numpy(record.model_affine.copy()),
            "modality": record.modality,
            "path": str(path),
        }


class PreprocessTransform:
    """A scan, or the scans of a dictionary, as a network reads them.

    Stands first in a ``monai.transforms.Compose``, in place of MONAI's own loading, orientation,
    spacing and intensity steps. A path or ``Volume`` becomes a tensor. A dictionary is copied: each
    of ``keys`` becomes a tensor, with its (4, 4) float64 voxel-to-RAS+ affine as ``<key>_affine``.

    Args:
        preprocessing: ``Preprocessing``, or a model or config that has one.
        keys: Entries of a dictionary that hold scans.
        modality: "CT", "MR" or "auto", for all.
    """

    def __init__(
        self, preprocessing: Any, keys: Sequence[str] = ("image",), modality: str = "auto"
    ) -> None:
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)
        self.modality = modality
        self._settings = _settings(preprocessing)

    def __call__(self, scan: Any) -> Any:
        """Preprocess one scan or dictionary.

        Args:
            scan: A path, a ``Volume``, or a dictionary of them.

        Returns:
            (1, X, Y, Z) float32 in [0, 1], or a dictionary with such entries.

        Raises:
            ConfigError: If it is none of these, or a key is missing.
        """
        if not isinstance(scan, Mapping):
            return self._preprocessed(scan)[0]
        missing = [key for key in self.keys if key not in scan]
        if missing:
            raise ConfigError(f"Expected the keys {missing} in the dictionary, got {[*scan]}.")
        entries = dict(scan)
        for key in self.keys:
            entries[key], record = self._preprocessed(scan[key])
            entries[f"{key}_affine"] = torch.from_numpy(record.model_affine.copy())
        return entries

    def _preprocessed(self, scan: Any) -> tuple[Tensor, PreprocessRecord]:
        if isinstance(scan, str | Path):
            scan = load_volume(scan)
        if not isinstance(scan, Volume):
            raise ConfigError(
                f"Expected a path or a Volume, got {type(scan).__name__}. PreprocessTransform "
                "reads scans itself: put it first, in place of LoadImage."
            )
        volume, record = preprocess(scan, self._settings, self.modality)
        return volume[0], record


def _settings(preprocessing: Any) -> dict[str, Any]:
    return {"preprocessing": preprocessing_of(preprocessing), "seen": seen_of(preprocessing)}
