"""The door for scans: finds out what a path holds, and lets only this package's errors out."""

import warnings
from os import PathLike
from pathlib import Path

from universal_model_hub.errors import ConfigError, TooLargeError, UniversalModelError, VolumeError
from universal_model_hub.volume.dicom import is_dicom, read_dicom
from universal_model_hub.volume.grid import Volume, VolumeWarning
from universal_model_hub.volume.itk import read_itk
from universal_model_hub.volume.nifti import is_nifti, read_nifti
from universal_model_hub.volume.stream import open_stream

KINDS = ".nii, .nii.gz, .hdr/.img, .nrrd, .nhdr, .mha, .mhd, or a folder with a DICOM series"
DEFAULT_MAX_BYTES = 2 * 2**30


def load_volume(
    path: str | PathLike[str],
    *,
    frame: int | None = None,
    series: str | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Volume:
    """Load a scan, in the file's own voxel order, with the affine to RAS+ mm.

    The content decides, not only the name. Integers without scaling keep their type; everything
    else becomes float32. NaN and Inf voxels are filled with the smallest finite value.

    Args:
        path: A .nii, .nii.gz, .hdr or .img (NIfTI-1 and -2); .nrrd, .nhdr, .mha or .mhd (needs the
            ``itk`` extra); or a folder that holds one DICOM series (needs the ``dicom`` extra).
        frame: Which volume of a 4D series, from 0; None refuses a series.
        series: Which DICOM series of the folder, by its SeriesInstanceUID.
        max_bytes: Refuse scans whose voxels need more memory than this, by the header and before
            anything is allocated; a voxel counts at least 4 bytes.

    Raises:
        VolumeError: If the scan is missing, damaged, or cannot be read as a 3D volume;
            ``GeometryError`` for its affine, ``TooLargeError`` for its size.
        ConfigError: If an extra is missing or an option does not fit.

    Warns:
        VolumeWarning: If something about the scan was guessed or repaired.
    """
    path = Path(path)
    try:
        volume, notes = _read(path, frame, series, max_bytes)
    except UniversalModelError:
        raise
    except MemoryError as error:
        raise TooLargeError(
            f"Expected enough free memory for {path.name}, got MemoryError. "
            f"Free some, or pass a smaller scan."
        ) from error
    except Exception as error:  # the libraries below have no common base class
        raise VolumeError(
            f"Expected a readable scan in {path.name}, got {type(error).__name__} while reading. "
            f"The file is damaged or of an unsupported variant."
        ) from error
    for note in notes:
        warnings.warn(f"{path.name}: {note}.", VolumeWarning, stacklevel=2)
    return volume


def _read(
    path: Path, frame: int | None, series: str | None, max_bytes: int
) -> tuple[Volume, list[str]]:
    if path.is_dir():
        if frame:
            raise ConfigError(f"Expected no frame= for a folder of DICOM files, got {frame}.")
        return read_dicom(path, series=series, max_bytes=max_bytes)
    if series is not None:
        raise ConfigError(f"Expected series= only with a folder of DICOM files, got {path.name}.")
    if not path.is_file():
        state = "something that is not a file" if path.exists() else "no such file"
        raise VolumeError(f"Expected a scan at {path}, got {state}. Supported: {KINDS}.")
    with open_stream(path) as stream:
        start = stream.file.read(512)
    if not start:
        raise VolumeError(f"Expected a scan in {path.name}, got an empty file. Fetch it again.")
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if start.startswith(b"NRRD"):
        return read_itk(path, "NRRD", frame=frame, max_bytes=max_bytes)
    if suffix in ("mha", "mhd"):
        return read_itk(path, "MetaImage", frame=frame, max_bytes=max_bytes)
    if suffix in ("nii", "hdr", "img") or is_nifti(start):
        return read_nifti(path, frame=frame, max_bytes=max_bytes)
    if is_dicom(start):
        raise VolumeError(
            f"Expected a whole scan, got {path.name}, one file of a DICOM series. "
            f"Pass the folder that holds the series."
        )
    raise VolumeError(f"Expected a scan, got {path.name}, which is none. Supported: {KINDS}.")
