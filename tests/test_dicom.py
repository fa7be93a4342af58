"""DICOM series: synthetic ones written with pydicom, whole and broken."""

import subprocess
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from universal_model_hub.errors import (
    ConfigError,
    GeometryError,
    TooLargeError,
    UniversalModelError,
    VolumeError,
)
from universal_model_hub.volume import VolumeWarning, load_volume, save_volume

pydicom = pytest.importorskip("pydicom")

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
ARRAY = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 5)).astype("i2")  # (X, Y, Z), HU
SPACING = (0.7, 0.8, 2.5)  # mm
ORIGIN_LPS = np.array([-100.5, 30, 7])
STRAIGHT = np.eye(3)  # columns: LPS directions of x, y, z
OBLIQUE = nibabel.eulerangles.euler2mat(0.3, -0.2, 0.5)


def dataset(z: int, turn: np.ndarray = STRAIGHT, **changes: object) -> "pydicom.Dataset":
    """Return slice z of the series; a change to None takes a tag away."""
    slice_ = pydicom.Dataset()
    slice_.SOPClassUID = CT_CLASS
    slice_.SOPInstanceUID = f"1.2.3.4.{z + 1}"
    slice_.SeriesInstanceUID = "1.2.3.4"
    slice_.FrameOfReferenceUID = "1.2.3.5"
    slice_.SeriesNumber = 7
    slice_.Modality = "CT"
    slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    slice_.PatientName = "DOE^JANE"
    slice_.PatientID = "DOE-4711"
    slice_.InstanceNumber = 99 - z  # against the order in space
    slice_.ImageOrientationPatient = [*turn[:, 0], *turn[:, 1]]
    slice_.ImagePositionPatient = list(ORIGIN_LPS + z * SPACING[2] * turn[:, 2])
    slice_.PixelSpacing = [SPACING[1], SPACING[0]]  # between rows, between columns
    slice_.SliceThickness = 9.9  # a lie: the positions count
    slice_.Columns, slice_.Rows = ARRAY.shape[:2]
    slice_.SamplesPerPixel = 1
    slice_.PhotometricInterpretation = "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
    slice_.PixelRepresentation = 0
    slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
    slice_.PixelData = (ARRAY[..., z].T + 1024).astype("<u2").tobytes()
    for keyword, value in changes.items():
        if value is None:
            delattr(slice_, keyword)
        else:
            setattr(slice_, keyword, value)
    return slice_


def write(slice_: "pydicom.Dataset", path: Path, syntax: str = "1.2.840.10008.1.2.1") -> Path:
    slice_.file_meta = pydicom.dataset.FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = syntax
    slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID
    slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, slice_, enforce_file_format=True)
    return path


def series(folder: Path, turn: np.ndarray = STRAIGHT, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    for z in range(ARRAY.shape[2]):
        write(dataset(z, turn, **changes), folder / f"s{(3 * z) % 5}.dcm")  # names in no order
    return folder


def file_of(z: int) -> str:
    return f"s{(3 * z) % 5}.dcm"


@pytest.mark.parametrize("turn", [STRAIGHT, OBLIQUE, -STRAIGHT[:, [1, 2, 0]]], ids=str)
def test_i22_a_clean_series_equals_its_nifti_twin(tmp_path, turn):
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = turn * SPACING, ORIGIN_LPS
    twin = nibabel.Nifti1Image(ARRAY, np.diag([-1, -1, 1, 1]) @ lps)
    nibabel.save(twin, tmp_path / "twin.nii.gz")
    expected = load_volume(tmp_path / "twin.nii.gz")
    volume = load_volume(series(tmp_path / "scan", turn))
    if np.linalg.det(turn) < 0:  # DICOM sorts along the normal of rows and columns
        assert np.array_equal(volume.array, expected.array[..., ::-1])
        last = expected.affine @ [0, 0, ARRAY.shape[2] - 1, 1]
        assert np.allclose(volume.affine[:, 3], last, atol=1e-4)
        return
    assert np.array_equal(volume.array, expected.array)
    assert np.allclose(volume.affine, expected.affine, atol=1e-4)
    assert volume.spacing == pytest.approx(SPACING)


def test_simpleitk_reads_the_same_series_at_the_same_place(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    folder = series(tmp_path / "scan", OBLIQUE)
    files = [str(folder / file_of(z)) for z in range(ARRAY.shape[2])]
    image = sitk.ReadImage(files)
    volume = load_volume(folder)
    assert np.array_equal(sitk.GetArrayFromImage(image).transpose(), volume.array)
    x, y, z = image.TransformIndexToPhysicalPoint((2, 3, 4))
    assert np.allclose(volume.affine @ [2, 3, 4, 1], [-x, -y, z, 1], atol=1e-4)


def test_rescaled_slices_are_float32_and_unscaled_ones_keep_their_type(tmp_path):
    volume = load_volume(series(tmp_path / "ct"))
    assert volume.array.dtype == np.float32
    volume = load_volume(
        series(tmp_path / "mr", RescaleSlope=None, RescaleIntercept=None, Modality="MR")
    )
    assert volume.array.dtype == np.uint16
    assert np.array_equal(volume.array, ARRAY + 1024)


def test_bits_above_those_stored_are_ignored_and_the_sign_is_kept(tmp_path):
    for z in range(5):
        pixels = (ARRAY[..., z].T.astype("i2") & 0x0FFF) | 0x5000
        slice_ = dataset(z, PixelRepresentation=1, RescaleIntercept=0)
        slice_.PixelData = pixels.astype("<i2").tobytes()
        write(slice_, tmp_path / f"{z}.dcm")
    volume = load_volume(tmp_path)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, ARRAY)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_uncompressed_syntaxes_give_the_same_volume(tmp_path, syntax):
    for z in range(5):
        write(dataset(z), tmp_path / f"{z}.dcm", syntax)
    assert np.array_equal(load_volume(tmp_path).array, ARRAY)


def test_rle_compressed_slices_are_decoded(tmp_path):
    for z in range(5):
        slice_ = dataset(z)
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        write(slice_, tmp_path / f"{z}.dcm", pydicom.uid.RLELossless)
    assert np.array_equal(load_volume(tmp_path).array, ARRAY)


def test_i22_two_series_are_refused_by_name_and_one_can_be_chosen(tmp_path):
    series(tmp_path)
    for z in range(2):
        other = dataset(z, SeriesInstanceUID="1.2.9", SeriesNumber=8)
        write(other, tmp_path / f"other{z}.dcm")
    with pytest.raises(VolumeError) as error:
        load_volume(tmp_path)
    assert "1.2.3.4 (number 7, CT, 5 slices)" in str(error.value)
    assert "1.2.9 (number 8, CT, 2 slices)" in str(error.value)
    assert load_volume(tmp_path, series="1.2.3.4").shape == ARRAY.shape
    assert load_volume(tmp_path, series="1.2.9").shape == (6, 7, 2)
    with pytest.raises(VolumeError, match=r"the series 1\.2\.5"):
        load_volume(tmp_path, series="1.2.5")


def test_i22_a_missing_slice_is_a_gap_between_named_files(tmp_path):
    series(tmp_path)
    (tmp_path / file_of(2)).unlink()
    with pytest.raises(VolumeError, match=f"gap of 5.00 mm between {file_of(1)} and {file_of(3)}"):
        load_volume(tmp_path)


def test_i22_a_duplicate_slice_is_named(tmp_path):
    series(tmp_path)
    write(dataset(2, SOPInstanceUID="1.2.3.4.77"), tmp_path / "twice.dcm")
    with pytest.raises(VolumeError, match="two at") as error:
        load_volume(tmp_path)
    assert file_of(2) in str(error.value)
    assert "twice.dcm" in str(error.value)


@pytest.mark.parametrize("shift", [(0, 0, 0.4), (0.4, 0, 0), (0, -0.5, 0.1)])
def test_i22_a_slice_out_of_its_place_is_named(tmp_path, shift):
    series(tmp_path)
    moved = dataset(2)
    moved.ImagePositionPatient = list(np.array(moved.ImagePositionPatient, float) + shift)
    write(moved, tmp_path / file_of(2))
    with pytest.raises(VolumeError, match=f"evenly spaced slices, got {file_of(2)}"):
        load_volume(tmp_path)


def test_positions_rounded_in_the_file_are_fine(tmp_path):
    series(tmp_path)
    rounded = dataset(2)
    rounded.ImagePositionPatient = [-100.5, 30, 12.05]
    write(rounded, tmp_path / file_of(2))
    assert load_volume(tmp_path).spacing == pytest.approx(SPACING)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, -1, 0, 0]}, "the orientation"),
        ({"Rows": 6, "Columns": 7}, "the size"),
        ({"PixelSpacing": [1, 1]}, "PixelSpacing"),
        ({"RescaleSlope": 2}, "RescaleSlope"),
        ({"RescaleIntercept": 0}, "RescaleIntercept"),
        ({"FrameOfReferenceUID": "1.9"}, "frame of reference"),
        ({"PixelRepresentation": 1}, "pixel type"),
    ],
)
def test_i22_a_slice_of_another_kind_is_named(tmp_path, changes, what):
    series(tmp_path)
    write(dataset(3, **changes), tmp_path / file_of(3))
    with pytest.raises(VolumeError, match=f"{what}.* of {file_of(3)} differ"):
        load_volume(tmp_path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, "RescaleSlope and RescaleIntercept"),
        ({"RescaleSlope": None}, "RescaleSlope"),
        ({"RescaleIntercept": None}, "RescaleIntercept"),
        ({"RescaleSlope": 0}, "other than 0"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "ImageOrientationPatient"),
        ({"PixelSpacing": None}, "PixelSpacing"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "MONOCHROME2"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME2"),
        ({"NumberOfFrames": 4}, "multi-frame"),
        ({"BitsStored": 17}, "bits"),
        ({"PixelData": b"1234"}, "pixels"),
        ({"PixelData": None}, "pixels"),
    ],
    ids=str,
)
def test_i22_a_slice_with_missing_or_wrong_tags_is_named(tmp_path, changes, what):
    series(tmp_path)
    write(dataset(3, **changes), tmp_path / file_of(3))
    with pytest.raises(VolumeError, match=what) as error:
        load_volume(tmp_path)
    assert file_of(3) in str(error.value)


def test_pet_slices_keep_a_scale_each(tmp_path):
    for z in range(5):
        write(dataset(z, Modality="PT", RescaleSlope=z + 1, RescaleIntercept=0), tmp_path / f"{z}")
    expected = (ARRAY + 1024.0) * np.arange(1, 6)
    assert np.array_equal(load_volume(tmp_path).array, expected)


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        (pydicom.uid.JPEGLSLossless, "JPEG-LS"),
        (pydicom.uid.JPEGLossless, "JPEG Lossless"),
        (pydicom.uid.MPEG2MPML, "MPEG2"),
    ],
)
def test_i22_a_compressed_syntax_without_a_codec_is_named(tmp_path, uid, name):
    if uid in (pydicom.uid.JPEGLSLossless, pydicom.uid.JPEGLossless) and (
        pydicom.pixels.get_decoder(uid).is_available
    ):
        pytest.skip("the codec is installed")
    for z in range(2):
        slice_ = dataset(z)
        slice_.PixelData = pydicom.encaps.encapsulate([b"not decoded"])
        slice_["PixelData"].is_undefined_length = True
        write(slice_, tmp_path / f"{z}.dcm", uid)
    with pytest.raises(VolumeError, match=name) as error:
        load_volume(tmp_path)
    assert "0.dcm" in str(error.value)


def test_deflated_files_are_refused_before_they_are_inflated(tmp_path):
    write(dataset(0), tmp_path / "0.dcm", pydicom.uid.DeflatedExplicitVRLittleEndian)
    with pytest.raises(VolumeError, match=r"Deflated.*0\.dcm"):
        load_volume(tmp_path)


def test_i22_objects_that_are_no_slices_are_left_aside_and_named(tmp_path):
    series(tmp_path)
    report = pydicom.Dataset()
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.SOPInstanceUID, report.SeriesInstanceUID, report.Modality = "1.5.1", "1.5", "SR"
    write(report, tmp_path / "report.dcm")
    structures = pydicom.Dataset()
    structures.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    structures.SOPInstanceUID, structures.SeriesInstanceUID = "1.6.1", "1.6"
    write(structures, tmp_path / "structures.dcm")
    scout = dataset(0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    write(scout, tmp_path / "scout.dcm")
    (tmp_path / "notes.txt").write_text("DOE^JANE")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    with pytest.warns(VolumeWarning) as caught:
        volume = load_volume(tmp_path)
    assert np.array_equal(volume.array, ARRAY)
    text = " ".join(str(warning.message) for warning in caught)
    assert "scout.dcm (localizer)" in text
    assert "report.dcm (Basic Text SR Storage)" in text
    assert "structures.dcm (RT Structure Set Storage)" in text
    assert "1 files are not DICOM and were left aside: notes.txt" in text
    assert "DS_Store" not in text


def test_i22_a_folder_without_slices_says_what_it_holds(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(VolumeError, match="1 folders, no file"):
        load_volume(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(VolumeError, match=r"a\.txt"):
        load_volume(tmp_path)


def test_a_single_file_points_to_its_folder(tmp_path):
    with pytest.raises(VolumeError, match="folder that holds the series"):
        load_volume(write(dataset(0), tmp_path / "0.dcm"))


def test_a_series_of_one_slice_needs_its_thickness(tmp_path):
    write(dataset(0), tmp_path / "0.dcm")
    assert load_volume(tmp_path).spacing == pytest.approx((0.7, 0.8, 9.9))
    write(dataset(0, SliceThickness=None), tmp_path / "0.dcm")
    with pytest.raises(GeometryError, match="SliceThickness"):
        load_volume(tmp_path)


def test_a_tilted_gantry_is_a_sheared_affine_and_a_warning(tmp_path):
    for z in range(5):
        tilted = dataset(z)
        tilted.ImagePositionPatient = list(ORIGIN_LPS + z * np.array([0, 0.5, 2.5]))
        write(tilted, tmp_path / f"{z}.dcm")
    with pytest.warns(VolumeWarning, match=r"11\.3 degrees"):
        volume = load_volume(tmp_path)
    assert np.allclose(volume.affine @ [0, 0, 4, 1], [100.5, -32, 17, 1])


def test_i06_the_budget_counts_before_pixels_are_read(tmp_path):
    series(tmp_path, Rows=30000, Columns=30000)
    with pytest.raises(TooLargeError, match="30000"):
        load_volume(tmp_path)


def test_no_patient_identifier_reaches_an_error_a_warning_or_the_output(tmp_path, capfd):
    folder = series(tmp_path / "scan")
    write(dataset(3, RescaleSlope=None), folder / file_of(3))
    with pytest.raises(VolumeError) as error:
        load_volume(folder)
    chain = [error.value, error.value.__cause__, error.value.__context__]
    write(dataset(3), folder / file_of(3))
    (folder / "notes.txt").write_text("DOE^JANE")
    with pytest.warns(VolumeWarning) as caught:
        volume = load_volume(folder)
    save_volume(volume, tmp_path / "out.nii")
    said = " ".join(
        str(entry) for entry in [*chain, *[w.message for w in caught], *capfd.readouterr()]
    )
    assert "DOE" not in said
    assert b"DOE" not in (tmp_path / "out.nii").read_bytes()


def test_without_pydicom_the_pip_line_is_named(tmp_path):
    code = """
import sys
sys.modules["pydicom"] = None
from universal_model_hub.volume import load_volume
try:
    load_volume(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", code, series(tmp_path / "scan")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.startswith(ConfigError.__name__)
    assert "pip install 'universal_model_hub[dicom]'" in out


@given(at=st.integers(128, 1200), byte=st.integers(0, 255), end=st.integers(0, 60))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_slice_gives_our_error_or_a_finite_scan(tmp_path, at, byte, end):
    if not (tmp_path / file_of(3)).exists():
        series(tmp_path)
    path = write(dataset(3), tmp_path / file_of(3))
    data = bytearray(path.read_bytes())
    data[at % len(data)] = byte
    path.write_bytes(data[: len(data) - end])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            volume = load_volume(tmp_path)
        except UniversalModelError:
            return
    assert np.isfinite(volume.array).all()
