"""NRRD and MetaImage in, through SimpleITK: .nrrd, .nhdr, .mha, .mhd."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from universal_model_hub.errors import ConfigError, GeometryError, VolumeError
from universal_model_hub.volume.grid import LPS_TO_RAS, Volume, checked_affine, geometry_notes
from universal_model_hub.volume.itk_header import TextHeader, check_data, read_text_header
from universal_model_hub.volume.voxels import (
    check_budget,
    fill_nonfinite,
    held_dtype,
    scaled_to_float32,
    three_sides,
)


def read_itk(
    path: Path, kind: str, *, frame: int | None, max_bytes: int
) -> tuple[Volume, list[str]]:
    """Read a NRRD or MetaImage file, and say what was odd about it.

    Args:
        path: The file, or the header of a detached pair.
        kind: ``"NRRD"`` or ``"MetaImage"``.
        frame: Which volume of a 4D series.
        max_bytes: The most that the voxels may need.

    Raises:
        ConfigError: If SimpleITK is not installed.
        VolumeError: If the file is damaged or holds no 3D scan of real numbers.
    """
    sitk = _simpleitk()
    text = read_text_header(path, kind)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if kind == "NRRD" else "MetaImageIO")
    _call(reader.ReadImageInformation, path.name)
    if reader.GetNumberOfComponents() != 1:
        raise VolumeError(
            f"Expected one number a voxel, got {reader.GetNumberOfComponents()} in {path.name}. "
            f"Split the components (colors, vectors) first."
        )
    shape = three_sides(reader.GetSize(), frame, path.name)
    stored = _stored(sitk, reader, path.name)
    check_budget(shape, held_dtype(stored, scaled=False), max_bytes, path.name)
    num_bytes = stored.itemsize
    for side in reader.GetSize():
        num_bytes *= int(side)
    check_data(text, num_bytes)
    affine = _affine(reader, path.name)
    notes = _orientation_notes(text, kind) + geometry_notes(affine)
    array = _voxels(sitk, reader, shape, frame or 0, path.name)
    notes += fill_nonfinite(array, path.name)
    return Volume(array, affine), notes


def _simpleitk() -> ModuleType:
    try:
        import SimpleITK
    except ImportError as error:
        raise ConfigError(
            "Expected SimpleITK to read .nrrd, .nhdr, .mha and .mhd files, got no such package. "
            "Install it: pip install 'universal_model_hub[itk]'"
        ) from error
    return SimpleITK


def _call(step: Any, name: str) -> Any:
    try:
        return step()
    except RuntimeError as error:  # all that SimpleITK raises
        raise VolumeError(
            f"Expected an intact file in {name}, but ITK cannot read it. "
            f"It is damaged or of an unsupported variant: fetch it again or convert it."
        ) from error


def _stored(sitk: ModuleType, reader: Any, name: str) -> np.dtype:
    kinds = {sitk.sitkInt8: "i1", sitk.sitkUInt8: "u1", sitk.sitkInt16: "i2"}
    kinds |= {sitk.sitkUInt16: "u2", sitk.sitkInt32: "i4", sitk.sitkUInt32: "u4"}
    kinds |= {sitk.sitkInt64: "i8", sitk.sitkUInt64: "u8"}
    kinds |= {sitk.sitkFloat32: "f4", sitk.sitkFloat64: "f8"}
    if reader.GetPixelID() not in kinds:
        raise VolumeError(
            f"Expected one real number a voxel in {name}, got another pixel type. Convert it first."
        )
    return np.dtype(kinds[reader.GetPixelID()])


def _affine(reader: Any, name: str) -> np.ndarray:
    """Return the (4, 4) affine to RAS+ mm; ITK's own is LPS."""
    dimension = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    try:
        return checked_affine(LPS_TO_RAS @ affine)
    except GeometryError as error:
        raise GeometryError(f"{name}: {error}") from None


def _orientation_notes(text: TextHeader, kind: str) -> list[str]:
    space = text.fields.get("space", "")
    oriented = {"left-posterior-superior", "lps", "right-anterior-superior", "ras"}
    oriented |= {"left-anterior-superior", "las"}
    known = space.lower() in oriented and "spacedirections" in text.fields
    if kind == "NRRD" and not known:
        return ["orientation unknown: the header names no patient space; axes taken as LPS"]
    return []


def _voxels(
    sitk: ModuleType, reader: Any, shape: tuple[int, int, int], frame: int, name: str
) -> np.ndarray:
    """Return (X, Y, Z): integers as stored, floats as float32."""
    if reader.GetDimension() > 3:
        extra = reader.GetDimension() - 3
        reader.SetExtractSize([*shape, *[0] * extra])
        reader.SetExtractIndex([0, 0, 0, frame, *[0] * (extra - 1)])
    image = _call(reader.Execute, name)
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    if array.dtype == np.float64:
        held = np.empty(shape, np.float32, order="F")
        for z in range(shape[2]):
            scaled_to_float32(array[..., z], 1.0, 0.0, name, held[..., z])
        return held
    return array
