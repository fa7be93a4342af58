"""Bytes on their way in, plain or gzip: never more than asked for, and checked to the end."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from universal_model_hub.errors import UniversalModelError, VolumeError

GZIP_MAGIC = b"\x1f\x8b"
# Deflate's best ratio is about 1032 : 1, so a file that claims more than this is lying.
# Source: zlib's technical details; the margin is ours.
LARGEST_RATIO = 1040
LARGEST_TAIL = 16 * 2**20  # bytes that may follow the voxels of a compressed file
CHUNK = 4 * 2**20  # bytes read at once


@dataclass(frozen=True)
class Stream:
    """An open scan file.

    Attributes:
        file: The content, decompressed where the file is gzip.
        name: The file's name, for messages.
        compressed: Whether the file is gzip, by its first bytes and not by its name.
        size: Of the file on disk, in bytes.
    """

    file: BinaryIO
    name: str
    compressed: bool
    size: int

    def check_holds(self, num_bytes: int) -> None:
        """Refuse a file that cannot hold ``num_bytes`` of content, without reading it.

        Raises:
            VolumeError: If the file is too small for that, even at deflate's best ratio.
        """
        largest = self.size * LARGEST_RATIO if self.compressed else self.size
        if num_bytes > largest:
            kind = "compressed " if self.compressed else ""
            raise VolumeError(
                f"Expected {num_bytes} bytes in {self.name} by its header, got a {kind}file of "
                f"{self.size} bytes, which cannot hold them. "
                f"It is truncated or its header is wrong: fetch it again."
            )

    def read_into(self, array: np.ndarray) -> None:
        """Fill a contiguous array of any dtype.

        Raises:
            VolumeError: If the file ends before.
        """
        view = array.reshape(-1, order="A").view(np.uint8).data
        done = 0
        while done < len(view):
            count = self.file.readinto(view[done : done + CHUNK])  # type: ignore[attr-defined]
            if not count:
                raise VolumeError(
                    f"Expected {len(view) - done} more bytes of voxels in {self.name}, got its "
                    f"end. The file is truncated: fetch it again."
                )
            done += count

    def skip(self, num_bytes: int) -> None:
        """Move on by ``num_bytes``, read and thrown away where the file is compressed.

        Raises:
            VolumeError: If the file ends before.
        """
        if not self.compressed:
            self.file.seek(num_bytes, 1)
        elif self._discard(num_bytes) < num_bytes:
            raise VolumeError(
                f"Expected {num_bytes} more bytes in {self.name}, got its end. "
                f"The file is truncated: fetch it again."
            )

    def finish(self) -> list[str]:
        """Go to the end, so that gzip's checksum and length are checked; return notes.

        Raises:
            VolumeError: If much more follows than belongs to the scan, or the checksum differs.
        """
        if self.compressed:
            tail = self._discard(LARGEST_TAIL + 1)
        else:
            tail = self.size - self.file.tell()
        if self.compressed and tail > LARGEST_TAIL:
            raise VolumeError(
                f"Expected the end of {self.name} after its voxels, got more than "
                f"{LARGEST_TAIL // 2**20} MiB. Repair the header or the file."
            )
        return [f"{tail} bytes follow the voxels; they were not used"] if tail else []

    def _discard(self, num_bytes: int) -> int:
        done = 0
        while done < num_bytes and (chunk := self.file.read(min(CHUNK, num_bytes - done))):
            done += len(chunk)
        return done


@contextlib.contextmanager
def open_stream(path: Path) -> Iterator[Stream]:
    """Open a scan file for reading, decompressing gzip whatever the file is called.

    Raises:
        VolumeError: If the file cannot be read, or turns out to be damaged gzip.
    """
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))
            size = path.stat().st_size
            compressed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            content: BinaryIO = file
            if compressed:
                content = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=file)))
            yield Stream(content, path.name, compressed, size)
    except UniversalModelError:
        raise
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise VolumeError(
            f"Expected intact gzip data in {path.name}, got damaged or truncated data "
            f"({type(error).__name__}). Fetch the file again."
        ) from error
    except OSError as error:
        raise VolumeError(
            f"Expected a readable file, got {error.strerror or type(error).__name__!r} for {path}. "
            f"Check the path and its permissions."
        ) from error
