"""Volumes out: NIfTI files with a fresh header, whole or not at all."""

import gzip
from os import PathLike
from pathlib import Path
from typing import BinaryIO, cast

import nibabel
import numpy as np

from universal_model_hub.errors import ConfigError, VolumeError
from universal_model_hub.files import atomic_path, check_output
from universal_model_hub.volume.grid import Volume, largest_shift, spacing_of
from universal_model_hub.volume.stream import CHUNK

LARGEST_NIFTI1_SIDE = 32767
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
PAIR = (".img", ".hdr")
SCANNER = 1  # the standard's code for scanner-based coordinates
NARROWED = ("u1", "i2", "u2", "i4", "u4")  # tried in this order for 64-bit integers


def save_volume(volume: Volume, path: str | PathLike[str], *, force: bool = False) -> None:
    """Write a volume as NIfTI, in its own voxel order and place; equal volumes give equal bytes.

    The header is fresh: nothing but geometry and data type, so no text that may identify a
    patient. bool becomes uint8, 64-bit integers the smallest type that holds them, float16 and
    float64 become float32. NIfTI-1, or NIfTI-2 where a side exceeds 32767.

    Args:
        volume: What to write.
        path: A .nii or .nii.gz file in a folder that exists; .img or .hdr writes the pair of both.
        force: Replace a file that exists; it stays as it is until the new one is complete.

    Raises:
        ConfigError: If the path has another suffix, exists without ``force``, or is not writable.
        VolumeError: If a voxel does not fit the file's type or is not finite, or the disk is full.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz", *PAIR)):
        raise ConfigError(
            f"Expected an output named .nii, .nii.gz, .img or .hdr, got {path.name}. Rename it."
        )
    pair = path.suffix.lower() in PAIR
    for output in [path.with_suffix(suffix) for suffix in PAIR] if pair else [path]:
        check_output(output, [], force=force)
    stored = _stored_dtype(volume.array)
    header = _header(volume, stored)
    try:
        if pair:
            _write_pair(path, header, volume.array, stored)
            return
        with atomic_path(path) as temporary, temporary.open("xb") as file:
            if path.name.lower().endswith(".gz"):
                # No name and no time in the gzip header: both would make equal volumes differ.
                with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                    _write(cast(BinaryIO, packed), header, volume.array, stored)
            else:
                _write(file, header, volume.array, stored)
    except OSError as error:
        raise VolumeError(
            f"Expected to write {path}, got {error.strerror or type(error).__name__!r}. "
            f"Nothing was changed: free some space or choose another folder."
        ) from error


def _stored_dtype(array: np.ndarray) -> np.dtype:
    """Return the type in the file, little-endian, that holds every voxel."""
    if array.dtype.kind == "b":
        return np.dtype("u1")
    if array.dtype.kind == "f":
        lowest, highest = float(array.min()), float(array.max())  # NaN and Inf come through
        if not (abs(lowest) <= LARGEST_FLOAT32 and abs(highest) <= LARGEST_FLOAT32):
            raise VolumeError(
                f"Expected finite voxels within float32, got values of {lowest:g} to {highest:g}. "
                f"Replace them before saving."
            )
        return np.dtype("<f4")
    if array.dtype.itemsize < 8:
        return array.dtype.newbyteorder("<")
    lowest, highest = int(array.min()), int(array.max())
    for name in NARROWED:
        if np.iinfo(name).min <= lowest and highest <= np.iinfo(name).max:
            return np.dtype(name).newbyteorder("<")
    raise VolumeError(
        f"Expected integers that fit 32 bits, got values of {lowest} to {highest}. "
        f"Convert the array to float32 or renumber it before saving."
    )


def _header(volume: Volume, stored: np.dtype) -> nibabel.Nifti1Header:
    large = max(volume.shape) > LARGEST_NIFTI1_SIDE
    # endianness is fixed, so that the bytes do not depend on the machine
    header = (nibabel.Nifti2Header if large else nibabel.Nifti1Header)(endianness="<")
    header.set_data_shape(volume.shape)
    header.set_data_dtype(stored)
    header.set_zooms(spacing_of(volume.affine))
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    header.set_sform(volume.affine, SCANNER)
    header.set_qform(volume.affine, SCANNER, strip_shears=True)
    # A quaternion cannot say shear: rather no qform than one that contradicts the sform.
    if largest_shift(volume.affine, header.get_qform(), volume.shape) > 0.01:
        header["qform_code"] = 0
    return header


def _write_pair(
    path: Path, header: nibabel.Nifti1Header, array: np.ndarray, stored: np.dtype
) -> None:
    """Write voxels to .img and the header to .hdr, the header last: without it nothing is read."""
    header["vox_offset"] = 0
    header["magic"] = header.pair_magic
    image, text = (path.with_suffix(suffix) for suffix in PAIR)
    with atomic_path(text) as temporary:
        temporary.write_bytes(header.binaryblock)
        with atomic_path(image) as voxels, voxels.open("xb") as file:
            _write_voxels(file, array, stored)


def _write(
    file: BinaryIO, header: nibabel.Nifti1Header, array: np.ndarray, stored: np.dtype
) -> None:
    file.write(header.binaryblock)
    file.write(b"\0" * (int(header["vox_offset"]) - header.sizeof_hdr))  # no extensions
    _write_voxels(file, array, stored)


def _write_voxels(file: BinaryIO, array: np.ndarray, stored: np.dtype) -> None:
    X, Y, Z = array.shape
    depth = max(1, CHUNK // (X * Y * stored.itemsize))  # slices a chunk: memory stays small
    for z in range(0, Z, depth):
        file.write(array[:, :, z : z + depth].astype(stored).tobytes(order="F"))
