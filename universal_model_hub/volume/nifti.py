"""NIfTI-1 and NIfTI-2 in: single files, gzip, and .hdr/.img pairs; a header is not believed.

nibabel decodes the header's fields; every field that decides about memory, values or place is
checked here before it is used. The rules, where files are known to contradict themselves:

- place: sform if its code is above 0, else qform, else nibabel's guess with a warning;
- spacing: from the affine's columns, pixdim counts only where there is no sform;
- scaling: slope 0 means none (by the standard), NaN or Inf means none with a warning.
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from universal_model_hub.errors import GeometryError, TooLargeError, VolumeError
from universal_model_hub.volume.grid import Volume, checked_affine, geometry_notes, largest_shift
from universal_model_hub.volume.stream import CHUNK, Stream, open_stream
from universal_model_hub.volume.voxels import (
    check_budget,
    fill_nonfinite,
    held_dtype,
    scaled_to_float32,
    three_sides,
)

MAGIC_AT = {1: (344, (b"n+1\0", b"ni1\0")), 2: (4, (b"n+2\0", b"ni2\0"))}  # version: (byte, magic)
HEADER_BYTES = {1: 348, 2: 540}
LARGEST_OFFSET = 256 * 2**20  # bytes of header extensions before the voxels
MOST_FRAMES_READ = 16  # of a series, in budgets: its checksum lies behind all of its frames
# Source: nifti1.h, the DT_ codes that hold one real number a voxel.
STORED = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8"} | {
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
REFUSED = {1: "single bits", 32: "complex numbers", 128: "RGB colors", 1536: "128-bit floats"} | {
    1792: "complex numbers",
    2048: "complex numbers",
    2304: "RGBA colors",
}
MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}  # the header's xyzt_units: meter, millimeter, micrometer
SHIFT_TOLERANCE = 0.1  # voxels by which sform and qform may differ without a warning


@dataclass(frozen=True)
class Layout:
    """What a NIfTI header says about the voxels, checked.

    Attributes:
        shape: (X, Y, Z) of one frame.
        num_frames: Of a 4D series; 1 otherwise.
        stored: Data type in the file, with its byte order.
        offset: Of the first voxel in its file, in bytes.
        slope: Factor to the scan's unit.
        intercept: Added after the factor.
    """

    shape: tuple[int, int, int]
    num_frames: int
    stored: np.dtype
    offset: int
    slope: float
    intercept: float

    @property
    def frame_bytes(self) -> int:
        """Size of one frame in the file."""
        return math.prod(self.shape) * self.stored.itemsize

    @property
    def scaled(self) -> bool:
        """Whether stored values differ from the scan's values."""
        return (self.slope, self.intercept) != (1.0, 0.0)


def is_nifti(start: bytes) -> bool:
    """Return whether a file that begins so has a NIfTI magic."""
    return any(start[at : at + 4] in magics for at, magics in MAGIC_AT.values())


def read_nifti(path: Path, *, frame: int | None, max_bytes: int) -> tuple[Volume, list[str]]:
    """Read a NIfTI file, and say what was odd about it.

    Raises:
        VolumeError: If the file is damaged, no NIfTI, or holds no 3D scan of real numbers.
        GeometryError: If its affine is unusable.
        TooLargeError: If it exceeds ``max_bytes``.
    """
    header_path = _sibling(path, "img", "hdr")
    with open_stream(header_path) as stream:
        header, has_voxels = _header(stream)
    layout, notes = _layout(header, frame, path.name)
    affine, geometry = _affine(header, path.name)
    check_budget(
        layout.shape, held_dtype(layout.stored, scaled=layout.scaled), max_bytes, path.name
    )
    if layout.frame_bytes * layout.num_frames > MOST_FRAMES_READ * max_bytes:
        raise TooLargeError(
            f"Expected at most {MOST_FRAMES_READ} times max_bytes in a series, got "
            f"{layout.num_frames} frames in {path.name}. Split it, or pass a larger max_bytes."
        )
    first_voxel = HEADER_BYTES[_version(header)] if has_voxels else 0
    if not first_voxel <= layout.offset <= LARGEST_OFFSET:
        raise VolumeError(
            f"Expected voxels to begin at byte {first_voxel} to {LARGEST_OFFSET}, got vox_offset "
            f"{layout.offset} in {path.name}. Repair the header."
        )
    with open_stream(header_path if has_voxels else _sibling(path, "hdr", "img")) as stream:
        array, reading_notes = _voxels(stream, layout, frame or 0)
    notes += geometry + reading_notes + fill_nonfinite(array, path.name)
    return Volume(array, affine), notes


def pair_of(path: Path) -> list[Path]:
    """Return the files of a .hdr/.img pair that are there, or ``path`` alone if it is no such."""
    match = re.fullmatch(r"(.*)\.(hdr|img)(\.gz)?", path.name, re.IGNORECASE | re.DOTALL)
    if match is None:
        return [path]
    endings = [f"{kind}{packed}" for kind in ("hdr", "img", "HDR", "IMG") for packed in ("", ".gz")]
    return [p for e in endings if (p := path.with_name(f"{match[1]}.{e}")).is_file()] or [path]


def _sibling(path: Path, given: str, wanted: str) -> Path:
    """Return the other file of a .hdr/.img pair, or ``path`` where it is not ``given``."""
    match = re.fullmatch(rf"(.*)\.{given}(\.gz)?", path.name, re.IGNORECASE | re.DOTALL)
    if match is None:
        return path
    candidates = [f"{match[1]}.{ending}" for ending in (wanted, f"{wanted}.gz", wanted.upper())]
    for candidate in candidates:
        if path.with_name(candidate).is_file():
            return path.with_name(candidate)
    raise VolumeError(
        f"Expected {candidates[0]} or {candidates[1]} beside {path.name}, got neither: a scan in "
        f"this form is two files. Put both into one folder."
    )


def _header(stream: Stream) -> tuple[nibabel.Nifti1Header, bool]:
    """Return the header, and whether the voxels follow in the same file."""
    block = stream.file.read(max(HEADER_BYTES.values()))
    for version, (start, magics) in MAGIC_AT.items():
        magic = block[start : start + 4]
        if magic not in magics:
            continue
        if len(block) < HEADER_BYTES[version]:
            break
        byte_order = _byte_order(block, version, stream.name)
        kind = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
        header = kind(block[: HEADER_BYTES[version]], endianness=byte_order, check=False)
        # Some programs write a pair's magic into a single file; only the name tells then.
        in_pair = stream.name.lower().removesuffix(".gz").endswith(".hdr")
        return header, magic in (b"n+1\0", b"n+2\0") or not in_pair
    raise VolumeError(
        f"Expected a NIfTI header in {stream.name}, got {len(block)} bytes without its magic. "
        f"Analyze files and other formats have to be converted to NIfTI first."
    )


def _byte_order(block: bytes, version: int, name: str) -> str:
    """Return ``<`` or ``>``: only one of them makes a sensible number of dimensions."""
    for byte_order in "<>":
        form, start = ("h", 40) if version == 1 else ("q", 16)
        if 1 <= struct.unpack_from(byte_order + form, block, start)[0] <= 7:
            return byte_order
    raise VolumeError(
        f"Expected 1 to 7 dimensions in the header of {name}, got neither in any byte order. "
        f"Repair the header."
    )


def _version(header: nibabel.Nifti1Header) -> int:
    return 2 if isinstance(header, nibabel.Nifti2Header) else 1


def _layout(header: nibabel.Nifti1Header, frame: int | None, name: str) -> tuple[Layout, list[str]]:
    dim = [int(side) for side in header["dim"]]
    sides = tuple(dim[1 : dim[0] + 1])
    shape = three_sides(sides, frame, name)
    code = int(header["datatype"])
    if code not in STORED:
        raise VolumeError(
            f"Expected one real number a voxel in {name}, got "
            f"{REFUSED.get(code, 'an unknown data type')} (NIfTI data type {code}). "
            f"Convert the scan first."
        )
    offset = float(header["vox_offset"])
    if not math.isfinite(offset) or offset != int(offset):
        raise VolumeError(f"Expected a whole vox_offset, got {offset} in {name}. Repair it.")
    slope, intercept, notes = _scaling(header, name)
    stored = np.dtype(STORED[code]).newbyteorder(header.endianness)
    num_frames = math.prod(sides) // math.prod(shape)
    return Layout(shape, num_frames, stored, int(offset), slope, intercept), notes


def _scaling(header: nibabel.Nifti1Header, name: str) -> tuple[float, float, list[str]]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0:
        return 1.0, 0.0, []
    if not math.isfinite(slope):
        return 1.0, 0.0, [f"the header's slope is {slope}; the voxels were left unscaled"]
    if not math.isfinite(intercept):
        raise VolumeError(
            f"Expected a finite intercept beside the slope {slope:g}, got {intercept} in {name}. "
            f"Repair the header's scl_inter."
        )
    return slope, intercept, []


def _affine(header: nibabel.Nifti1Header, name: str) -> tuple[np.ndarray, list[str]]:
    """Return the affine in mm by the module's rule, and notes on what was odd."""
    notes = []
    if int(header["sform_code"]) > 0:
        affine = header.get_sform().astype(np.float64)
        if int(header["qform_code"]) > 0 and not _agree(affine, header):
            notes.append("sform and qform disagree or qform is unusable; the sform is used")
    elif int(header["qform_code"]) > 0:
        affine = _qform(header, name)
    else:
        affine = header.get_base_affine().astype(np.float64)
        notes.append(
            "orientation unknown: the header has neither sform nor qform; "
            "which side is left is a guess (axes taken as LAS, as nibabel does)"
        )
    unit = int(header["xyzt_units"]) & 7
    if MM_PER_UNIT.get(unit, 1.0) != 1.0:
        notes.append(f"the header's unit is {'meter' if unit == 1 else 'micrometer'}, not mm")
        affine[:3] *= MM_PER_UNIT[unit]
    try:
        affine = checked_affine(affine)
    except GeometryError as error:
        raise GeometryError(f"{name}: {error}") from None
    return affine, notes + geometry_notes(affine)


def _agree(sform: np.ndarray, header: nibabel.Nifti1Header) -> bool:
    shape = tuple(max(1, int(side)) for side in header["dim"][1:4])
    try:
        return largest_shift(checked_affine(sform), _qform(header, ""), shape) <= SHIFT_TOLERANCE
    except GeometryError:
        return False


def _qform(header: nibabel.Nifti1Header, name: str) -> np.ndarray:
    # The standard: a spacing is positive, and a handedness other than 1 or -1 counts as 1.
    header = header.copy()
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1
    try:
        with np.errstate(all="ignore"):
            return header.get_qform().astype(np.float64)
    except Exception as error:  # nibabel: HeaderDataError, a bare ValueError, LinAlgError
        raise GeometryError(
            f"Expected a unit quaternion and positive spacing in {name}, got a qform that "
            f"cannot be used ({type(error).__name__}). Repair the header."
        ) from error


def _voxels(stream: Stream, layout: Layout, frame: int) -> tuple[np.ndarray, list[str]]:
    """Read one frame; memory is the result's and one chunk."""
    stream.check_holds(layout.offset + layout.num_frames * layout.frame_bytes)
    stream.skip(layout.offset + frame * layout.frame_bytes)
    stored = layout.stored
    held = held_dtype(stored, scaled=layout.scaled)
    array = np.empty(layout.shape, held, order="F")
    if held == stored.newbyteorder("=") and not layout.scaled:
        stream.read_into(array)
        if not stored.isnative:
            array.byteswap(inplace=True)
    else:
        flat = array.reshape(-1, order="F")  # a view
        chunk = np.empty(min(flat.size, CHUNK // stored.itemsize), stored)
        for start in range(0, flat.size, chunk.size):
            part = chunk[: flat.size - start]
            stream.read_into(part)
            out = flat[start : start + part.size]
            scaled_to_float32(part, layout.slope, layout.intercept, stream.name, out)
    stream.skip((layout.num_frames - 1 - frame) * layout.frame_bytes)
    return array, stream.finish()
