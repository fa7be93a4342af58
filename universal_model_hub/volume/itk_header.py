"""The text header of NRRD and MetaImage files: where the voxels are, and whether they are whole.

ITK believes headers and skips checksums, so these are checked here before it opens the file: the
header must name its own data or a file in its own folder, and the data must be there, intact.
"""

import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from universal_model_hub.errors import GeometryError, VolumeError
from universal_model_hub.volume.stream import CHUNK, LARGEST_RATIO

LARGEST_HEADER = 2**20  # bytes of text
NRRD_END = rb"\r?\n\r?\n|\Z"  # a blank line, or the end of a header whose data is detached
METAIMAGE_END = rb"(?m)^[ \t]*ElementDataFile[ \t]*[:=][^\n]*(\n|\Z)"
PLACE_KEYS = {"spacings", "spacedirections", "spaceorigin"} | {
    *("offset", "position", "origin", "elementspacing", "elementsize"),
    *("transformmatrix", "rotation", "orientation"),
}
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


def read_text_header(path: Path, kind: str) -> TextHeader:
    """Read the text before the voxels.

    Args:
        path: The file, or the header of a detached pair.
        kind: ``"NRRD"`` or ``"MetaImage"``.

    Raises:
        VolumeError: If it contradicts itself, or names voxels elsewhere or in a form that
            cannot be checked.
        GeometryError: If a number of its geometry is not finite.
    """
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
    fields = _fields(block[: end.end()].decode("utf-8", "surrogateescape"), kind, path.name)
    name = fields.get(DATA_FILE_KEY[kind], "")
    attached = not name if kind == "NRRD" else name.upper() == "LOCAL"
    _check_numbers(fields, path.name)
    data_path = path if attached else _data_path(path, name)
    skip, compressed = _encoding(fields, kind, path.name)
    start = None if skip < 0 else skip + (end.end() if attached else 0)
    return TextHeader(fields, data_path, start, compressed)


def _fields(text: str, kind: str, name: str) -> dict[str, str]:
    """Return the header's fields; a NRRD's own key:=value pairs are not fields."""
    separator = ":(?!=)" if kind == "NRRD" else "[:=]"
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        match = re.fullmatch(rf"([^:=#]+){separator}(.*)", line.rstrip("\r"))
        if match is None:
            continue
        key = "".join(match[1].lower().split())
        if key in fields:
            raise VolumeError(f"Expected each field once in {name}, got one twice. Repair it.")
        fields[key] = match[2].strip()
    return fields


def _check_numbers(fields: dict[str, str], name: str) -> None:
    """Refuse NaN and words as geometry: ITK would read some as 0 and go on."""
    for key in PLACE_KEYS & fields.keys():
        words = re.sub(r"[(),]", " ", fields[key]).split()
        if any(not _is_finite(word) for word in words if word != "none"):
            raise GeometryError(f"Expected finite numbers as {key} in {name}. Repair the header.")


def _is_finite(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


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


def check_data(text: TextHeader, num_bytes: int) -> None:
    """Refuse voxels that are not all there, or whose checksum differs.

    Args:
        text: The header.
        num_bytes: Size of all voxels by the header.

    Raises:
        VolumeError: If the file cannot hold them, or its compressed data is damaged.
    """
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
