"""The content of a scan as a hash, whatever number of files it is in."""

import hashlib
import json
from pathlib import Path

from universal_model_hub.errors import VolumeError
from universal_model_hub.files import sha256_of
from universal_model_hub.volume.itk_header import read_text_header
from universal_model_hub.volume.nifti import pair_of


def scan_sha256(path: Path) -> str:
    """Return the SHA-256 of all that a scan is read from, in hex; names of files do not count.

    Of a single file it is that of the file. Two scans whose headers or folders are called alike
    differ in it: the voxels count, wherever they lie.

    Args:
        path: As ``load_volume`` takes it.

    Raises:
        VolumeError: If there is no such scan, or the header of a detached pair is damaged, or its
            voxels are missing.
    """
    files = scan_files(path)
    if len(files) == 1:
        return sha256_of(files[0])
    return hashlib.sha256(json.dumps([sha256_of(file) for file in files]).encode()).hexdigest()


def scan_files(path: Path) -> list[Path]:
    """Return the files that a scan is read from, in a fixed order.

    Raises:
        VolumeError: As ``scan_sha256``.
    """
    if path.is_dir():  # DICOM; ``read_dicom`` leaves hidden files alone, too
        return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise VolumeError(f"Expected a readable file, got {error.strerror} for {path}.") from error
    if start == b"NRRD":
        return list(dict.fromkeys([path, read_text_header(path, "NRRD").path]))
    if path.suffix.lower() in (".mha", ".mhd"):
        return list(dict.fromkeys([path, read_text_header(path, "MetaImage").path]))
    return pair_of(path)
