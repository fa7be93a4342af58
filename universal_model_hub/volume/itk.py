"""NRRD and MetaImage in, through SimpleITK: .nrrd, .nhdr, .mha, .mhd.

ITK believes headers and skips checksums, so the text header is read here first: it must name
its own data or a file in its own folder, and the data must be there, whole and intact.
"""

import re
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from universal_model_hub.errors import ConfigError, GeometryError, VolumeError
from universal_model_hub.volume.grid import LPS_TO_RAS, Volume, checked_affine, geometry_notes
from universal_model_hub.volume.stream import CHUNK, LARGEST_RATIO
from universal_model_hub.volume.voxels import (
    check_budget,
    fill_nonfinite,
    held_dtype,
    scaled_to_float32,
    three_sides,
)

LARGEST_HEADER = 2**20  # bytes of text
NRRD_END = rb"\r?\n\r?\n|\Z"  # a blank line, or the end of a header whose data is detached
METAIMAGE_END = rb"(?m)^[ \t]*ElementDataFile[ \t]*[:=][^\n]*(\n|\Z)"
DATA_FILE_KEY = {"NRRD": "datafile", "MetaImage": "elementdatafile"}


@dataclass(frozen=True)
class TextHeader:
    """What the text says about where the voxels are.

    Attributes:
        fields: Keys in lower case without spaces, to values.
        path: The file that holds the voxels.
        start: Byte at which they start there; None if the header counts from the end.
        compressed: Whether they are one zlib or gzip stream.
    """

    fields: dict[str, str]
    path: Path
    start: int | None
    compressed: bool


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
    text = _text_header(path, kind)
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
    _check_data(text, num_bytes)
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


def _text_header(path: Path, kind: str) -> TextHeader:
    try:
        with path.open("rb") as file:
            block = file.read(LARGEST_HEADER)
    except OSError as error:
        raise VolumeError(f"Expected a readable file, got {error.strerror} for {path}.") from error
    ending = NRRD_END if kind == "NRRD" else METAIMAGE_END
    end = re.search(ending, block)
    if end is None:
        raise VolumeError(
            f"Expected a {kind} header in {path.name}, got none that ends within "
            f"{LARGEST_HEADER} bytes. The file is damaged: fetch it again."
        )
    fields = _fields(block[: end.end()].decode("latin-1"), kind, path.name)
    name = fields.get(DATA_FILE_KEY[kind], "")
    attached = not name if kind == "NRRD" else name.upper() == "LOCAL"
    data_path = path if attached else _data_path(path, name)
    skip, compressed = _encoding(fields, kind, path.name)
    start = None if skip < 0 else skip + (end.end() if attached else 0)
    return TextHeader(fields, data_path, start, compressed)


def _fields(text: str, kind: str, name: str) -> dict[str, str]:
    """Return the header's fields; a NRRD's own key:=value pairs are not fields."""
    separator = ":(?!=)" if kind == "NRRD" else "[:=]"
    fields: dict[str, str] = {}
    for line in text.splitlines():
        match = re.fullmatch(rf"([^:=#]+){separator}(.*)", line)
        if match is None:
            continue
        key = "".join(match[1].lower().split())
        if key in fields:
            raise VolumeError(f"Expected each field once in {name}, got one twice. Repair it.")
        fields[key] = match[2].strip()
    return fields


def _data_path(path: Path, name: str) -> Path:
    """Return the detached data file, which must lie in the header's folder."""
    pieces = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    rooted = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    several = name[:4].upper() == "LIST" or "%" in name
    if not name or rooted or several or ".." in pieces:
        raise VolumeError(
            f"Expected {path.name} to name one data file in its own folder, got another place or "
            f"a list. Move the data beside the header, in one file, and correct the name."
        )
    if not (path.parent / name).is_file():
        raise VolumeError(
            f"Expected the data file of {path.name} in its folder, got none by the name in its "
            f"header. Put the data beside the header."
        )
    return path.parent / name


def _encoding(fields: dict[str, str], kind: str, name: str) -> tuple[int, bool]:
    """Return the bytes to skip before the voxels, and whether they are compressed."""
    if kind == "NRRD":
        encoding = fields.get("encoding", "").lower()
        skips = [fields.get("byteskip", "0"), fields.get("lineskip", "0")]
    else:
        encoding = "raw" if fields.get("binarydata", "").lower() in ("true", "1") else "text"
        if fields.get("compresseddata", "").lower() in ("true", "1"):
            encoding = "gzip"
        skips = [fields.get("headersize", "0"), "0"]
    if encoding not in ("raw", "gzip", "gz"):
        raise VolumeError(
            f"Expected raw or gzip data in {name}, got another encoding. Write it again as one."
        )
    if not all(re.fullmatch(r"-?\d{1,18}", skip) for skip in skips) or skips[1] != "0":
        raise VolumeError(f"Expected a whole number of bytes to skip in {name}. Repair the header.")
    compressed = encoding != "raw"
    if compressed and skips[0] != "0":
        raise VolumeError(f"Expected nothing to skip in the compressed {name}. Write it again.")
    return int(skips[0]), compressed


def _check_data(text: TextHeader, num_bytes: int) -> None:
    """Refuse voxels that are not all there, or whose checksum differs."""
    name = text.path.name
    available = text.path.stat().st_size - (text.start or 0)
    if num_bytes > available * (LARGEST_RATIO if text.compressed else 1):
        raise VolumeError(
            f"Expected {num_bytes} bytes of voxels in {name} by the header, got a file that "
            f"cannot hold them. It is truncated or its header is wrong: fetch it again."
        )
    claimed = text.fields.get("compresseddatasize", "0")
    if text.compressed and not (claimed.isdecimal() and int(claimed) <= available):
        raise VolumeError(
            f"Expected at most {available} bytes of compressed data in {name}, got a header that "
            f"claims more. It is truncated or its header is wrong: fetch it again."
        )
    if text.compressed:
        with text.path.open("rb") as file:
            file.seek(text.start or 0)
            _check_compressed(file, num_bytes, name)


def _check_compressed(file: BinaryIO, num_bytes: int, name: str) -> None:
    """Decompress to nowhere: ITK itself accepts flipped bits and a missing end."""
    inflater = zlib.decompressobj(wbits=47)  # zlib or gzip, by its first bytes
    size = 0
    try:
        while not inflater.eof and size <= num_bytes:
            packed = inflater.unconsumed_tail or file.read(CHUNK // 64)
            part = inflater.decompress(packed, CHUNK)
            if not packed and not part:
                break
            size += len(part)
    except zlib.error:
        size = -1
    if size != num_bytes or not inflater.eof:
        raise VolumeError(
            f"Expected {num_bytes} bytes of intact compressed voxels in {name}, got damaged, "
            f"truncated or other data. Fetch the file again."
        )


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
