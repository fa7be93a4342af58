"""DICOM series in, through pydicom: a folder of files to one volume.

Everything in the folder that is no slice of the series is left aside and named in a note; what
may be a slice has to fit, or the whole series is refused.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from universal_model_hub.errors import ConfigError, VolumeError
from universal_model_hub.volume.dicom_geometry import Slice, series_affine, sorted_slices
from universal_model_hub.volume.dicom_slice import read_dataset, read_pixels, read_slice
from universal_model_hub.volume.grid import Volume, geometry_notes
from universal_model_hub.volume.voxels import (
    check_budget,
    fill_nonfinite,
    held_dtype,
    scaled_to_float32,
)

NOT_SCANS = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTIMAGE", "SR", "PR", "KO", "REG", "DOC"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
MOST_NAMED = 5


def is_dicom(start: bytes) -> bool:
    """Return whether a file that begins so has the DICOM magic."""
    return start[128:132] == b"DICM"


def read_dicom(folder: Path, *, series: str | None, max_bytes: int) -> tuple[Volume, list[str]]:
    """Read the one series in a folder, sorted by position, and say what was left aside.

    Raises:
        ConfigError: If pydicom is not installed.
        VolumeError: If the folder holds no series, several, or one that is not whole and even.
    """
    pydicom = _pydicom()
    found, notes = _images(pydicom, folder)
    chosen = _one_series(found, series, folder)
    slices = [read_slice(pydicom, path, dataset) for path, dataset in chosen]
    first = slices[0]
    for other in slices[1:]:
        _check_alike(first, other)
    slices = sorted_slices(slices)
    affine = series_affine(slices)
    shape = (first.columns, first.rows, len(slices))
    scaled = any((part.slope, part.intercept) != (1.0, 0.0) for part in slices)
    held = held_dtype(first.stored, scaled=scaled)
    check_budget(shape, held, max_bytes, folder.name)
    array = np.empty(shape, held, order="F")
    for z, part in enumerate(slices):
        pixels = read_pixels(pydicom, part).T  # stored as (rows, columns) = (Y, X)
        if held.kind == "f":
            scaled_to_float32(pixels, part.slope, part.intercept, part.path.name, array[..., z])
        else:
            array[..., z] = pixels
    notes += geometry_notes(affine) + fill_nonfinite(array, folder.name)
    return Volume(array, affine), notes


def _pydicom() -> ModuleType:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise ConfigError(
            "Expected pydicom to read DICOM folders, got no such package. "
            "Install it: pip install 'universal_model_hub[dicom]'"
        ) from error
    return pydicom


def _images(pydicom: ModuleType, folder: Path) -> tuple[list[tuple[Path, Any]], list[str]]:
    """Return the files of the folder that may be slices, with the tags above, and notes."""
    images, foreign, asides = [], [], []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.name.startswith("."):
            continue
        if not _starts_as_dicom(path):
            foreign.append(path.name)
            continue
        dataset = read_dataset(pydicom, path, pixels=False)
        reason = _why_not_slice(dataset)
        if reason is None:
            images.append((path, dataset))
        elif reason:
            asides.append(f"{path.name} ({reason})")
    notes = []
    if foreign:
        notes.append(f"{len(foreign)} files are not DICOM and were left aside: {_some(foreign)}")
    if asides:
        notes.append(f"{len(asides)} DICOM objects are no slices, left aside: {_some(asides)}")
    if not images:
        folders = sum(path.is_dir() for path in folder.iterdir())
        rest = "; ".join(notes) or f"{folders} folders, no file"
        raise VolumeError(
            f"Expected the slices of a DICOM series in {folder}, got none ({rest}). "
            f"Pass the folder that holds the series itself."
        )
    return images, notes


def _starts_as_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(132))
    except OSError as error:
        raise VolumeError(f"Expected a readable file, got {error.strerror} for {path}.") from error


def _why_not_slice(dataset: Any) -> str | None:
    """Return what else a DICOM object is; "" for a directory, None for a possible slice."""
    sop_class = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", "")
    if sop_class == DICOMDIR_CLASS:
        return ""
    if "LOCALIZER" in (dataset.get("ImageType") or []):
        return "localizer"
    no_scan = "Rows" not in dataset or dataset.get("Modality") in NOT_SCANS
    if no_scan or sop_class.startswith(SECONDARY_CAPTURE):
        return str(getattr(sop_class, "name", sop_class)) or "unknown object"
    return None


def _one_series(
    images: list[tuple[Path, Any]], series: str | None, folder: Path
) -> list[tuple[Path, Any]]:
    groups: dict[str, list[tuple[Path, Any]]] = {}
    for path, dataset in images:
        groups.setdefault(str(dataset.get("SeriesInstanceUID", "")), []).append((path, dataset))
    if series is None and len(groups) == 1:
        return images
    if series in groups:
        return groups[series]
    listed = [
        f"{uid or 'no UID'} (number {group[0][1].get('SeriesNumber', '?')}, "
        f"{group[0][1].get('Modality', '?')}, {len(group)} slices)"
        for uid, group in groups.items()
    ]
    wanted = "one DICOM series" if series is None else f"the series {series}"
    raise VolumeError(
        f"Expected {wanted} in {folder}, got {len(groups)}: {_some(listed)}. "
        f"Name one with series=, or give each a folder of its own."
    )


def _check_alike(first: Slice, other: Slice) -> None:
    """Refuse a slice that cannot lie in one volume with the first."""
    alike = {
        "the size": (first.rows, first.columns) == (other.rows, other.columns),
        "the pixel type": (first.stored, first.bits_stored) == (other.stored, other.bits_stored),
        "the orientation": np.allclose(first.orientation, other.orientation, atol=1e-3),
        "PixelSpacing": np.allclose(first.pixel_spacing, other.pixel_spacing, rtol=1e-3),
        "the frame of reference": first.frame_of_reference == other.frame_of_reference,
        "RescaleSlope and RescaleIntercept": first.own_scale
        or (first.slope, first.intercept) == (other.slope, other.intercept),
    }
    differing = [what for what, same in alike.items() if not same]
    if differing:
        raise VolumeError(
            f"Expected slices of one kind, but {' and '.join(differing)} of {other.path.name} "
            f"differ from {first.path.name}. Take out the slices that do not belong."
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
