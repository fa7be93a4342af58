"""One DICOM file: the numbers in its header, and its pixels.

Only the tags that decide about voxels and place are ever parsed, so nothing that identifies a
patient can reach an error or a warning: those name files and UIDs.
"""

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from universal_model_hub.errors import VolumeError
from universal_model_hub.volume.dicom_geometry import Slice

IDENTITY_TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "ImageType",
    "NumberOfFrames",
]
GEOMETRY_TAGS = [
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
]
PIXEL_TAGS = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
]
DEFLATED = "1.2.840.10008.1.2.1.99"
OWN_SCALE_EACH_SLICE = ("PT", "NM")  # their slices may carry a rescale each, by design


def read_dataset(pydicom: ModuleType, path: Path, *, pixels: bool) -> Any:
    """Return the tags of a DICOM file that this package reads, with or without its pixels."""
    tags = IDENTITY_TAGS + GEOMETRY_TAGS + PIXEL_TAGS
    try:
        # Looked at first: reading a deflated file would inflate all of it, whatever its size.
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DEFLATED:
            dataset = pydicom.dcmread(
                path, specific_tags=tags + ["PixelData"] * pixels, stop_before_pixels=not pixels
            )
            list(dataset)  # decodes every value here, where a damaged one can be told by file
            return dataset
    except Exception as error:  # pydicom lets out a dozen classes
        raise VolumeError(
            f"Expected an intact DICOM file, got {type(error).__name__} while reading "
            f"{path.name}. Fetch it again, or take it out of the folder."
        ) from error
    raise VolumeError(
        f"Expected an uncompressed or image-compressed DICOM file, got the transfer syntax "
        f"Deflated Explicit VR Little Endian in {path.name}. Decompress it first (gdcmconv --raw)."
    )


def read_slice(pydicom: ModuleType, path: Path, dataset: Any) -> Slice:
    """Return a slice's numbers, checked."""
    name = path.name
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise VolumeError(
            f"Expected one slice a file, got {dataset.NumberOfFrames} frames in {name}: enhanced "
            f"multi-frame DICOM is not supported. Convert it to NIfTI, for instance with dcm2niix."
        )
    if dataset.get("SamplesPerPixel", 1) != 1 or (
        dataset.get("PhotometricInterpretation") != "MONOCHROME2"
    ):
        raise VolumeError(
            f"Expected gray values (MONOCHROME2) in {name}, got "
            f"{dataset.get('PhotometricInterpretation', 'none')}. Take it out or convert it."
        )
    slope, intercept = _rescale(dataset, name)
    allocated = int(_numbers(dataset, "BitsAllocated", 1, name)[0])
    stored = int(dataset.get("BitsStored", allocated))
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated:
        raise VolumeError(
            f"Expected pixels of 8, 16 or 32 bits, got {stored} bits stored of {allocated} in "
            f"{name}. Convert the series first."
        )
    kind = "i" if dataset.get("PixelRepresentation", 0) == 1 else "u"
    thickness = "SpacingBetweenSlices" if "SpacingBetweenSlices" in dataset else "SliceThickness"
    return Slice(
        path=path,
        columns=int(_numbers(dataset, "Columns", 1, name)[0]),
        rows=int(_numbers(dataset, "Rows", 1, name)[0]),
        position=np.array(_numbers(dataset, "ImagePositionPatient", 3, name)),
        orientation=np.array(_numbers(dataset, "ImageOrientationPatient", 6, name)),
        pixel_spacing=np.array(_numbers(dataset, "PixelSpacing", 2, name)),
        thickness=_numbers(dataset, thickness, 1, name)[0] if dataset.get(thickness) else None,
        frame_of_reference=str(dataset.get("FrameOfReferenceUID", "")),
        stored=np.dtype(f"{kind}{allocated // 8}"),
        bits_stored=stored,
        slope=slope,
        intercept=intercept,
        own_scale=dataset.get("Modality") in OWN_SCALE_EACH_SLICE,
        transfer_syntax=_transfer_syntax(pydicom, dataset, name),
    )


def _numbers(dataset: Any, keyword: str, count: int, name: str) -> list[float]:
    """Return a tag's finite numbers."""
    try:
        value = dataset[keyword].value
        numbers = [float(number) for number in (value if count > 1 else [value])]
    except Exception:  # pydicom: absent, empty, or text that is no number
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise VolumeError(
            f"Expected {count} number(s) as {keyword} in {name}, got none that can be used. "
            f"Repair the slice, or export the series again."
        )
    return numbers


def _rescale(dataset: Any, name: str) -> tuple[float, float]:
    if "RescaleSlope" not in dataset and "RescaleIntercept" not in dataset:
        if dataset.get("Modality") != "CT":
            return 1.0, 0.0
        raise VolumeError(
            f"Expected RescaleSlope and RescaleIntercept in a CT slice, got neither in {name}: "
            f"without them the voxels are no HU. Export the series again with all tags."
        )
    slope = _numbers(dataset, "RescaleSlope", 1, name)[0]
    intercept = _numbers(dataset, "RescaleIntercept", 1, name)[0]
    if slope == 0:
        raise VolumeError(f"Expected a RescaleSlope other than 0, got 0 in {name}. Repair it.")
    return slope, intercept


def _transfer_syntax(pydicom: ModuleType, dataset: Any, name: str) -> str:
    """Return the UID, if its pixels can be decoded here."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except Exception:  # not an image's transfer syntax
        decoder = None
    if decoder is None or not decoder.is_available:
        raise VolumeError(
            f"Expected pixels that can be decoded here, got the transfer syntax "
            f"{getattr(syntax, 'name', 'unknown')} in {name}. "
            f"Install its codec: pip install 'pylibjpeg[all]', or decompress the series first."
        )
    return str(syntax)


def read_pixels(pydicom: ModuleType, part: Slice) -> np.ndarray:
    """Return (rows, columns), as stored."""
    dataset = read_dataset(pydicom, part.path, pixels=True)
    try:
        pixels = dataset.pixel_array
    except Exception as error:  # pydicom and its codecs let out a dozen classes
        raise VolumeError(
            f"Expected {part.columns} x {part.rows} intact pixels in {part.path.name}, got "
            f"{type(error).__name__} while decoding. Fetch the file again."
        ) from error
    if pixels.shape != (part.rows, part.columns) or pixels.dtype != part.stored:
        raise VolumeError(
            f"Expected {part.columns} x {part.rows} pixels of {part.stored} in {part.path.name}, "
            f"got {pixels.shape} of {pixels.dtype}. The file is damaged: fetch it again."
        )
    # Bits above BitsStored may hold anything: shifted out, and the sign shifted back in.
    unused = part.stored.itemsize * 8 - part.bits_stored
    return (pixels << unused) >> unused if unused > 0 else pixels
