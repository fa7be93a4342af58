"""NRRD and MetaImage files through SimpleITK."""

import gzip
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from universal_model_hub.errors import (
    ConfigError,
    TooLargeError,
    UniversalModelError,
    VolumeError,
)
from universal_model_hub.volume import VolumeWarning, load_volume, save_volume

sitk = pytest.importorskip("SimpleITK")

ARRAY = np.random.default_rng(0).integers(-1000, 1000, (8, 9, 10)).astype("i2")  # (X, Y, Z)
ANGLE = 0.4
DIRECTION = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, -1]]
)  # LPS, and mirrored
SPACING = (0.7, 0.8, 2.5)  # mm
ORIGIN = (-100.5, 30, 7)  # LPS, mm
NAMES = ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"]


def image(array: np.ndarray = ARRAY) -> "sitk.Image":
    scan = sitk.GetImageFromArray(array.transpose())
    scan.SetSpacing(SPACING)
    scan.SetOrigin(ORIGIN)
    scan.SetDirection(DIRECTION.ravel())
    return scan


def written(path: Path, *, compressed: bool = False, array: np.ndarray = ARRAY) -> Path:
    sitk.WriteImage(image(array), str(path), compressed)
    return path


def edited(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_voxels_and_place_agree_with_itk(tmp_path, name, compressed):
    volume = load_volume(written(tmp_path / name, compressed=compressed))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, ARRAY)
    x, y, z = image().TransformIndexToPhysicalPoint((3, 5, 7))
    assert np.allclose(volume.affine @ [3, 5, 7, 1], [-x, -y, z, 1])
    assert volume.spacing == pytest.approx(SPACING)


@pytest.mark.parametrize("name", NAMES)
def test_the_nifti_twin_is_the_same_volume(tmp_path, name):
    volume = load_volume(written(tmp_path / name))
    save_volume(volume, tmp_path / "a.nii.gz")
    twin = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(twin).transpose(), ARRAY)
    assert np.allclose(twin.GetOrigin(), ORIGIN, atol=1e-4)
    assert np.allclose(twin.GetDirection(), DIRECTION.ravel(), atol=1e-5)


@pytest.mark.parametrize(("space", "flips"), [("right", (-1, -1)), ("left", (1, -1))])
def test_nrrd_in_ras_and_las_lies_where_it_says(tmp_path, space, flips):
    path = written(tmp_path / "a.nrrd")
    edited(path, b"left-posterior-superior", f"{space}-anterior-superior".encode())
    lps = load_volume(written(tmp_path / "b.nrrd")).affine
    expected = np.diag([*flips, 1, 1]) @ lps
    assert np.allclose(load_volume(path).affine, expected)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_types_are_kept_and_float64_becomes_float32(tmp_path, name, dtype):
    array = (ARRAY % 100).astype(dtype)
    volume = load_volume(written(tmp_path / name, array=array))
    assert volume.array.dtype == ("f4" if dtype == "f8" else dtype)
    assert np.array_equal(volume.array, array)


def test_a_luna16_header_loads(tmp_path):
    ARRAY.transpose().tofile(tmp_path / "1.3.6.1.raw")
    (tmp_path / "1.3.6.1.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "CompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        "Offset = -198.1 -195 -335.2\nCenterOfRotation = 0 0 0\nAnatomicalOrientation = RAI\n"
        "ElementSpacing = 0.76 0.76 1.25\nDimSize = 8 9 10\nElementType = MET_SHORT\n"
        "ElementDataFile = 1.3.6.1.raw\n"
    )
    volume = load_volume(tmp_path / "1.3.6.1.mhd")
    assert np.array_equal(volume.array, ARRAY)
    assert volume.orientation == "LPS"
    assert np.allclose(volume.affine[:3, 3], [198.1, 195, -335.2])
    assert volume.spacing == pytest.approx((0.76, 0.76, 1.25))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_i01_truncated_voxels_are_refused(tmp_path, name, compressed):
    path = written(tmp_path / name, compressed=compressed)
    data_path = max(tmp_path.iterdir(), key=lambda entry: entry.stat().st_size)
    data = data_path.read_bytes()
    for missing in (4, 300):
        data_path.write_bytes(data[:-missing])
        with pytest.raises(VolumeError, match="truncated"):
            load_volume(path)
    data_path.write_bytes(data[:10])
    with pytest.raises(VolumeError, match=r"a\."):
        load_volume(path)


def test_i01_truncated_metaimage_prints_nothing(tmp_path, capfd):
    path = written(tmp_path / "a.mha")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(VolumeError):
        load_volume(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
def test_i03_a_flipped_bit_in_compressed_voxels_is_refused(tmp_path, name):
    path = written(tmp_path / name, compressed=True)
    data_path = max(tmp_path.iterdir(), key=lambda entry: entry.stat().st_size)
    data = data_path.read_bytes()
    for at in (-500, -60, -7):
        flipped = bytearray(data)
        flipped[at] ^= 1
        data_path.write_bytes(flipped)
        with pytest.raises(VolumeError, match="damaged"):
            load_volume(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_i06_large_claims_are_refused_by_the_header(tmp_path, name):
    path = written(tmp_path / name, compressed=True)
    edited(path, b" 8 9 10\n", b" 30000 30000 30000\n")
    with pytest.raises(TooLargeError, match="30000"):
        load_volume(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_i06_an_impossible_ratio_is_refused(tmp_path, name):
    path = edited(written(tmp_path / name, compressed=True), b" 8 9 10\n", b" 700 700 700\n")
    with pytest.raises(VolumeError, match="cannot hold"):
        load_volume(path)


def test_i06_a_claim_of_compressed_bytes_is_checked(tmp_path):
    path = written(tmp_path / "a.mha", compressed=True)
    size = next(x for x in path.read_bytes().split(b"\n") if b"DataSize" in x)
    edited(path, size, b"CompressedDataSize = 999999999999")
    with pytest.raises(VolumeError, match="claims more"):
        load_volume(path)


def test_i07_more_voxels_than_the_header_says_are_refused(tmp_path):
    path = written(tmp_path / "a.nrrd", compressed=True)
    header = path.read_bytes().split(b"\n\n")[0]
    path.write_bytes(header + b"\n\n" + gzip.compress(bytes(10**7)))
    with pytest.raises(VolumeError, match="1440 bytes"):
        load_volume(path)


def test_i07_the_budget_counts_four_bytes_a_voxel(tmp_path):
    path = written(tmp_path / "a.nrrd")
    assert load_volume(path, max_bytes=ARRAY.size * 4).shape == ARRAY.shape
    with pytest.raises(TooLargeError):
        load_volume(path, max_bytes=ARRAY.size * 4 - 1)


@pytest.mark.parametrize(
    "place", ["../secret.raw", "/etc/passwd", "sub/../../secret.raw", "..\\secret.raw", "C:\\x.raw"]
)
@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
def test_voxels_outside_the_headers_folder_are_refused(tmp_path, name, place):
    (tmp_path / "scans").mkdir()
    (tmp_path / "secret.raw").write_bytes(ARRAY.tobytes())
    path = edited(written(tmp_path / "scans" / name), b"a.raw", place.encode())
    with pytest.raises(VolumeError, match="own folder"):
        load_volume(path)


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
@pytest.mark.parametrize("place", ["LIST", "a%03d.raw 1 2 1", "list 2"])
def test_lists_of_data_files_are_refused(tmp_path, name, place):
    (tmp_path / place).write_bytes(ARRAY.tobytes())
    with pytest.raises(VolumeError, match="one data file"):
        load_volume(edited(written(tmp_path / name), b"a.raw", place.encode()))


@pytest.mark.parametrize("separator", [b"=", b":"])
def test_a_second_data_file_cannot_be_slipped_in(tmp_path, separator):
    (tmp_path / "scans").mkdir()
    (tmp_path / "secret.raw").write_bytes(ARRAY.tobytes())
    path = written(tmp_path / "scans" / "a.mha")
    line = b"ElementDataFile " + separator + b" ../secret.raw\nElementDataFile = LOCAL"
    with pytest.raises(VolumeError, match=r"twice|own folder"):
        load_volume(edited(path, b"ElementDataFile = LOCAL", line))


def test_a_missing_data_file_is_said(tmp_path):
    path = written(tmp_path / "a.mhd")
    (tmp_path / "a.raw").unlink()
    with pytest.raises(VolumeError, match="data file"):
        load_volume(path)


@pytest.mark.parametrize(
    ("name", "key", "line"),
    [
        ("a.nrrd", b"space directions", b"space directions: (1,0,0) (1,0,0) (0,0,1)"),
        ("a.nrrd", b"space origin", b"space origin: (inf,0,0)"),
        ("a.nrrd", b"space origin", b"space origin: (nan,0,0)"),
        ("a.mha", b"TransformMatrix", b"TransformMatrix = 1 0 0 1 0 0 0 0 1"),
        ("a.mha", b"ElementSpacing", b"ElementSpacing = 1 0 1"),
        ("a.mha", b"Offset", b"Offset = 0 nan 1"),
    ],
)
def test_i09_an_unusable_place_is_refused(tmp_path, name, key, line):
    path = written(tmp_path / name)
    edited(path, next(x for x in path.read_bytes().split(b"\n") if x.startswith(key)), line)
    with pytest.raises(VolumeError, match=name):
        load_volume(path)


def test_i12_a_nrrd_without_patient_space_is_a_warning(tmp_path):
    path = written(tmp_path / "a.nrrd")
    lines = path.read_bytes().split(b"\n")
    kept = [line for line in lines if not line.startswith(b"space")]
    path.write_bytes(b"\n".join(kept).replace(b"kinds:", b"spacings: 1 2 3\nkinds:"))
    with pytest.warns(VolumeWarning, match="orientation unknown"):
        assert load_volume(path).spacing == (1, 2, 3)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_i15_flat_images_and_series_follow_the_rule(tmp_path, name):
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY[0]), str(tmp_path / name))
    with pytest.raises(VolumeError, match="3D"):
        load_volume(tmp_path / name)
    series = sitk.JoinSeries([image(), image(ARRAY + 1)])
    sitk.WriteImage(series, str(tmp_path / name))
    with pytest.raises(VolumeError, match=r"Expected .*3D|one number"):
        load_volume(tmp_path / name)


def test_i15_a_frame_of_a_metaimage_series_can_be_named(tmp_path):
    sitk.WriteImage(sitk.JoinSeries([image(), image(ARRAY + 1)]), str(tmp_path / "a.mha"))
    for frame in range(2):
        volume = load_volume(tmp_path / "a.mha", frame=frame)
        assert np.array_equal(volume.array, ARRAY + frame)
        assert np.allclose(volume.spacing, SPACING)
    with pytest.raises(VolumeError, match="0 to 1"):
        load_volume(tmp_path / "a.mha", frame=2)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_i16_colors_and_complex_numbers_are_refused(tmp_path, name):
    colors = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), "u1"), isVector=True)
    sitk.WriteImage(colors, str(tmp_path / name))
    with pytest.raises(VolumeError, match="one number"):
        load_volume(tmp_path / name)


def test_i18_nan_voxels_are_filled(tmp_path):
    array = ARRAY.astype("f8")
    array[1, 2, 3] = np.nan
    with pytest.warns(VolumeWarning, match="1 of 720"):
        volume = load_volume(written(tmp_path / "a.mha", array=array))
    assert volume.array[1, 2, 3] == np.delete(array.ravel(), 1 * 90 + 2 * 10 + 3).min()


def test_i21_odd_names_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.mha").rename(tmp_path / "UPPER.MHA")
    written(tmp_path / "-a b's ü.nrrd")
    written(tmp_path / "-a b's ü.mhd")
    for name in ("UPPER.MHA", "-a b's ü.nrrd", "-a b's ü.mhd"):
        assert np.array_equal(load_volume(name).array, ARRAY)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.nrrd", b"encoding: raw", b"encoding: ascii"),
        ("a.nrrd", b"encoding: raw", b"encoding: bzip2"),
        ("a.nrrd", b"encoding: raw", b"encoding: raw\nline skip: 3"),
        ("a.mha", b"BinaryData = True", b"BinaryData = False"),
        ("a.mha", b"NDims = 3", b"HeaderSize = x"),
    ],
)
def test_encodings_that_cannot_be_checked_are_refused(tmp_path, name, old, new):
    with pytest.raises(VolumeError, match=name):
        load_volume(edited(written(tmp_path / name), old, new))


def test_bytes_to_skip_are_skipped(tmp_path):
    path = edited(written(tmp_path / "a.mhd"), b"NDims = 3", b"NDims = 3\nHeaderSize = 5")
    (tmp_path / "a.raw").write_bytes(b"12345" + (tmp_path / "a.raw").read_bytes())
    assert np.array_equal(load_volume(path).array, ARRAY)


def test_without_simpleitk_the_pip_line_is_named(tmp_path):
    code = """
import sys
sys.modules["SimpleITK"] = None
from universal_model_hub.volume import load_volume
try:
    load_volume(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", code, written(tmp_path / "a.nrrd")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.startswith(ConfigError.__name__)
    assert "pip install 'universal_model_hub[itk]'" in out


@given(
    name=st.sampled_from(["a.nrrd", "a.mha"]),
    at=st.integers(0, 10**6),
    byte=st.integers(0, 255),
    compressed=st.booleans(),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_header_byte_gives_our_error_or_a_finite_scan(
    tmp_path, name, at, byte, compressed
):
    path = tmp_path / f"{compressed}{name}"
    original = path.with_suffix(".original")
    if not original.exists():
        written(path, compressed=compressed, array=ARRAY.astype("f4")).rename(original)
    data = bytearray(original.read_bytes())
    data[at % 500] = byte
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VolumeWarning)
        try:
            volume = load_volume(path, max_bytes=10**7)
        except UniversalModelError:
            return
    assert np.isfinite(volume.array).all()
    assert np.isfinite(np.linalg.inv(volume.affine)).all()


def test_a_checksum_of_zlib_is_checked_where_itk_does_not(tmp_path):
    path = written(tmp_path / "a.mha", compressed=True)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the last byte of zlib's Adler-32
    path.write_bytes(data)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(), ARRAY)
    with pytest.raises(VolumeError, match="damaged"):
        load_volume(path)
