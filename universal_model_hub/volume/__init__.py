"""Scans in and out: NIfTI, NRRD, MetaImage and DICOM files to a ``Volume``, and back to NIfTI."""

from universal_model_hub.volume.grid import Volume, VolumeWarning
from universal_model_hub.volume.reading import load_volume
from universal_model_hub.volume.writing import save_volume

__all__ = ["Volume", "VolumeWarning", "load_volume", "save_volume"]
