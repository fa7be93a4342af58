"""Safetensors files: every claim of the header checked, only the tensors asked for read.

Two kinds of trouble, two errors:

* ``IntegrityError`` (exit 4): the file is not, or no longer, a whole safetensors file: truncated,
  trailing bytes, a web page, a pickle, a header that contradicts itself, changed while read.
* ``WeightsError`` (exit 2): a sound file whose content cannot be used: unknown names or dtypes,
  NaN or infinity.

The file is read, never mapped: a mapped file that shrinks would kill the process. Source: ours; the
rules are those of the safetensors format, and stricter where its reader is lenient (a name twice).
"""

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import safetensors.torch
import torch
from torch import Tensor

from universal_model_hub.errors import ConfigError, IntegrityError, WeightsError
from universal_model_hub.files import parse_json, write_bytes

MAX_HEADER_BYTES = 4 << 20  # 106 tensors take 12 KB

# What a network may hold; the other dtypes of the format are refused by name.
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
_HALF = (torch.float16, torch.bfloat16)
_ITEM_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1},
    **{"I16": 2, "U16": 2, "F16": 2, "BF16": 2},
    **{"I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8},
}


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str  # as the format writes it: "F32", "I64"
    start: int  # first byte in the file
    end: int  # one past the last

    @property
    def is_float(self) -> bool:
        """Whether ``read_tensors`` gives it as float32."""
        return self.dtype in ("F32", "F16", "BF16")


def inspect_tensors(path: Path) -> dict[str, TensorInfo]:
    """Read the header of a safetensors file: names, shapes and dtypes, no tensor.

    Raises:
        IntegrityError: If it cannot be read, or is not a whole safetensors file.
        WeightsError: If a dtype is not one that the format knows.
    """
    with _opened(path) as stream:
        return _read_header(stream, path)[0]


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file: format and provenance.

    Raises:
        IntegrityError: If it cannot be read, or is not a whole safetensors file.
    """
    with _opened(path) as stream:
        return _read_header(stream, path)[1]


def read_tensors(
    path: Path,
    names: Iterable[str] | None = None,
    *,
    expected: Mapping[str, TensorInfo] | None = None,
) -> dict[str, Tensor]:
    """Read the named tensors, all without ``names``, into memory of their own.

    float16 and bfloat16 come back as float32, which holds each of their values exactly.

    Args:
        path: A safetensors file.
        names: Tensors to read; the bytes of others are not touched.
        expected: An earlier ``inspect_tensors``; the file must still say the same.

    Raises:
        IntegrityError: If the file is damaged, or changed since ``expected`` or while it was read.
        WeightsError: If a name is missing, a dtype is not one of ``DTYPES``, or a value is NaN or
            infinite.
    """
    with _opened(path) as stream:
        before = os.fstat(stream.fileno())
        infos, _ = _read_header(stream, path)
        if expected is not None and infos != dict(expected):
            raise _changed(path)
        wanted = list(infos if names is None else names)
        missing = [name for name in wanted if name not in infos]
        if missing:
            raise WeightsError(f"{path}: expected the tensors {missing[:5]}, which are missing.")
        _check_dtypes(path, {name: infos[name] for name in wanted})
        tensors = {name: _read_tensor(stream, infos[name], path) for name in wanted}
        after = os.fstat(stream.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise _changed(path)
    for name in wanted:
        check_finite(f"{name} of {path}", tensors[name])
    return {name: t.float() if t.dtype in _HALF else t for name, t in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``tensor_bytes`` atomically; the file's mode follows the umask.

    Raises:
        WeightsError: As ``tensor_bytes``; nothing is written then.
    """
    write_bytes(path, tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file; equal tensors and metadata give equal bytes.

    Args:
        tensors: On any device; copied to the CPU. Tensors that share memory are written each.
        metadata: Beside ``{"format": "pt"}``.

    Raises:
        WeightsError: If a value is NaN or infinite, a dtype is not one of ``DTYPES``, or a name is
            ``__metadata__``.
    """
    if "__metadata__" in tensors:
        raise WeightsError("Expected tensor names, got __metadata__, which the format reserves.")
    copies: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise WeightsError(
                f"Expected {name} to be one of {', '.join(map(str, DTYPES.values()))}, "
                f"got {tensor.dtype}. Convert it first."
            )
        check_finite(name, tensor)
        copy = tensor.detach().cpu().contiguous()
        pointer = copy.untyped_storage().data_ptr()
        # The library refuses tensors that share memory, so a tied one gets a copy.
        copies[name] = copy.clone() if pointer in seen else copy
        seen.add(pointer)
    return _with_metadata(safetensors.torch.save(copies), {"format": "pt", **metadata})


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        WeightsError: If a value is not finite; it names the tensor and counts the values.
    """
    # NaN and infinity survive a sum: a finite one proves every value finite, without a mask.
    if not tensor.is_floating_point() or torch.isfinite(tensor.sum()):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise WeightsError(
            f"Expected finite values, {name} has {bad} of {tensor.numel()} that are NaN or "
            "infinite. These weights cannot be used."
        )


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Put metadata into a header, sorted: the library's own order differs from run to run."""
    (length,) = struct.unpack("<Q", data[:8])
    entries = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + length])}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise IntegrityError(
            f"Expected a safetensors file, cannot read {path}: {error.strerror or error}."
        ) from error


def _changed(path: Path) -> IntegrityError:
    return IntegrityError(f"{path} changed while it was being loaded. Load it again.")


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"Expected a safetensors file, {path} {what}. Download or copy the file again."
    )


def _read_header(stream: BinaryIO, path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(512)
    _check_magic(start, path)
    (length,) = struct.unpack("<Q", start[:8])
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise _damaged(path, f"claims a header of {length} bytes in {size}")
    stream.seek(8)
    data = stream.read(length)
    try:
        entries = parse_json(data)
    except ConfigError as error:
        raise _damaged(path, f"has a broken header: {error}") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "has a header that is not an object")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "has metadata that are not strings")
    infos = {name: _tensor_info(name, entry, 8 + length, path) for name, entry in entries.items()}
    _check_layout(infos, 8 + length, size, path)
    return infos, metadata


def _check_magic(start: bytes, path: Path) -> None:
    """Say what the file is when it is plainly something else."""
    kinds = {
        rb"\s*<": "is a web page or XML, perhaps an error page saved under this name",
        rb"version https://git-lfs": "is a Git LFS pointer; fetch the file with `git lfs pull`",
        rb"PK\x03\x04|\x80[\x02-\x05]": "is a pickle (.pt, .pth), which is never loaded here; "
        "read a file you trust with torch.load and write a model folder with save_pretrained",
        rb"\x1f\x8b": "is gzip-compressed",
    }
    if len(start) < 8:
        raise _damaged(path, f"has only {len(start)} bytes")
    for pattern, what in kinds.items():
        if re.match(pattern, start) and start[8:9] != b"{":
            raise _damaged(path, what)


def _tensor_info(name: str, entry: Any, data_start: int, path: Path) -> TensorInfo:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets):
        raise _damaged(path, f"does not give {name!r:.80} a dtype, a shape and a place")
    if len(offsets) != 2:
        raise _damaged(path, f"gives {name!r:.80} a place of {len(offsets)} numbers")
    if dtype not in _ITEM_BYTES:
        raise WeightsError(f"{path}: {name!r:.80} has the unknown dtype {dtype!r:.20}.")
    start, end = (data_start + offset for offset in offsets)
    if end - start != _ITEM_BYTES[dtype] * math.prod(shape):
        raise _damaged(path, f"gives {name!r:.80} {end - start} bytes, too few or many for {shape}")
    return TensorInfo(tuple(shape), dtype, start, end)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def _check_layout(infos: Mapping[str, TensorInfo], start: int, size: int, path: Path) -> None:
    """Tensors must fill the file from the header to its end, without hole or overlap."""
    position = start
    for info in sorted(infos.values(), key=lambda info: (info.start, info.end)):
        if info.start != position:
            raise _damaged(path, f"has a hole or an overlap at byte {position}")
        position = info.end
    if position != size:
        what = "is truncated" if position > size else "has trailing bytes"
        raise _damaged(path, f"{what}: {size} bytes instead of {position}")


def _check_dtypes(path: Path, infos: Mapping[str, TensorInfo]) -> None:
    for name, info in infos.items():
        if info.dtype not in DTYPES:
            raise WeightsError(
                f"{path}: expected {name} to have dtype {', '.join(DTYPES)}, got {info.dtype}. "
                "Save the weights as float32."
            )


def _read_tensor(stream: BinaryIO, info: TensorInfo, path: Path) -> Tensor:
    raw = torch.empty(info.end - info.start, dtype=torch.uint8, device="cpu")
    stream.seek(info.start)
    if stream.readinto(memoryview(raw.numpy())) != len(raw):  # type: ignore[arg-type, attr-defined]
        raise _changed(path)
    return raw.view(DTYPES[info.dtype]).reshape(info.shape)
