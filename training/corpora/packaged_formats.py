"""The file formats of packaged scans that `load_volume` does not read, and how labels are made."""

import base64
import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt

from universal_model_hub.errors import VolumeError
from universal_model_hub.volume import Volume

_SSDF_ARRAY = re.compile(r"^\s*(\w+) = array (\d+(?:x\d+)*) (\w+) (\S+)$", re.MULTILINE)


def affine_of(axes: str, spacing: tuple[float, float, float]) -> np.ndarray:
    """Return the (4, 4) affine of axes that point to ``axes`` (such as "LPS"), at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(axcodes2ornt(tuple(axes))):
        affine[int(world), axis] = sign * spacing[axis]
    return affine


def read_raw(path: Path, dtype: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Read bare voxels whose first axis runs fastest: (X, Y, Z), little-endian.

    Raises:
        VolumeError: If the file has another size.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    size = int(np.prod(shape)) * kind.itemsize
    if path.stat().st_size != size:
        raise VolumeError(
            f"Expected {size} bytes in {path.name}, got {path.stat().st_size}. Fetch it again."
        )
    return np.fromfile(path, kind).reshape(shape, order="F")


def read_mat(path: Path, key: str) -> np.ndarray:
    """Read one (X, Y, Z) array of a MATLAB 5 file.

    Raises:
        VolumeError: If it is not there.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return np.asarray(loadmat(path, variable_names=[key])[key])
    except (KeyError, ValueError, MatReadError) as cause:
        raise VolumeError(
            f"Expected an array {key!r} in {path.name}, got: {cause}. Fetch it again."
        ) from cause


def read_ssdf(path: Path, key: str) -> np.ndarray:
    """Read one array of a Simple Structured Data Format text file, stored (Z, Y, X): (X, Y, Z).

    An array is a line ``name = array 256x128x128 uint8 <blocks>``; each block, up to the next
    ``;``, is Base64 of a zlib stream.

    Raises:
        VolumeError: If it is not there or damaged.
    """
    for name, sides, dtype, blocks in _SSDF_ARRAY.findall(path.read_text(encoding="utf-8")):
        if name != key:
            continue
        try:
            data = b"".join(
                zlib.decompress(base64.b64decode(block)) for block in blocks.split(";") if block
            )
            shape = [int(side) for side in sides.split("x")]
            return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).T
        except (ValueError, TypeError, zlib.error) as cause:
            raise VolumeError(
                f"Expected array {key!r} of {sides} {dtype} in {path.name}, got: {cause}. "
                f"Fetch it again."
            ) from cause
    raise VolumeError(f"Expected an array {key!r} in {path.name}, got none. Fetch it again.")


def likeliest(maps: list[Volume]) -> Volume:
    """Return labels 1..K: the largest of K maps where it is half its full scale or more.

    Args:
        maps: K volumes on one grid, integers from 0 to 255 for probabilities from 0 to 1.
    """
    stack = np.stack([volume.array for volume in maps])  # (K, X, Y, Z)
    labels = np.where(stack.max(axis=0) >= 128, stack.argmax(axis=0) + 1, 0)
    return Volume(labels.astype(np.uint8), maps[0].affine)


def tissue_at(path: Path, target: Volume) -> Volume:
    """Return labels 1..K on a grid: the likeliest of K tissue maps at each voxel's position.

    Args:
        path: A 4D NIfTI file (X, Y, Z, K) of probabilities, in the target's space.
        target: Gives the grid; voxels outside the maps get 0.
    """
    image = nib.Nifti1Image.from_filename(path)
    # (X, Y, Z), 1..K
    tissues = np.asarray(image.dataobj, np.float32).argmax(axis=3).astype(np.uint8) + 1
    to_maps = np.linalg.inv(np.asarray(image.affine)) @ target.affine
    positions = np.indices(target.shape).reshape(3, -1)
    nearest = np.rint(to_maps[:3, :3] @ positions + to_maps[:3, 3:]).astype(int)  # (3, X * Y * Z)
    inside = np.all((nearest >= 0) & (nearest < np.array(tissues.shape)[:, None]), axis=0)
    labels = np.zeros(nearest.shape[1], np.uint8)
    labels[inside] = tissues[tuple(nearest[:, inside])]
    return Volume(labels.reshape(target.shape), target.affine)
