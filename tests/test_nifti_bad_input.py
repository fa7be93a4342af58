"""NIfTI files that lie, are damaged, or are only unusual."""

import gzip
import io
import logging
import os
import subprocess
import sys
import time
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
from universal_model_hub.volume import VolumeWarning, load_volume

AFFINE = np.array([[2.0, 0, 0, -9], [0, 2, 0, 4], [0, 0, 3, 1], [0, 0, 0, 1]])
ARRAY = np.random.default_rng(0).integers(-1000, 1000, (8, 9, 10)).astype("i2")


def nifti(array: np.ndarray = ARRAY, **fields: object) -> bytes:
    """Return a .nii file's bytes with header fields overwritten, unchecked."""
    image = nibabel.Nifti1Image(array, AFFINE)
    image.set_qform(AFFINE, 1)
    data = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    return bytes(data)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def sform(matrix: np.ndarray) -> dict[str, object]:
    return dict(zip(("srow_x", "srow_y", "srow_z"), matrix[:3], strict=True))


def is_the_scan(path: Path) -> bool:
    volume = load_volume(path)
    return np.array_equal(volume.array, ARRAY) and np.array_equal(volume.affine, AFFINE)


def test_the_untouched_file_loads(tmp_path):
    assert is_the_scan(write(tmp_path / "a.nii", nifti()))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_i01_a_truncated_file_is_refused(tmp_path, share):
    for name, data in [("a.nii", nifti()), ("a.nii.gz", gzip.compress(nifti()))]:
        with pytest.raises(VolumeError, match=r"truncated|NIfTI header"):
            load_volume(write(tmp_path / name, data[: int(len(data) * share)]))


def test_i02_a_wrong_checksum_is_refused(tmp_path):
    data = bytearray(gzip.compress(nifti()))
    data[-6] ^= 1
    with pytest.raises(VolumeError, match="damaged"):
        load_volume(write(tmp_path / "a.nii.gz", bytes(data)))


def test_i02_a_wrong_length_is_refused(tmp_path):
    data = bytearray(gzip.compress(nifti()))
    data[-2] ^= 1
    with pytest.raises(VolumeError, match="damaged"):
        load_volume(write(tmp_path / "a.nii.gz", bytes(data)))


def test_i03_every_flipped_bit_in_compressed_data_is_refused_or_harmless(tmp_path):
    data = gzip.compress(nifti())
    rng = np.random.default_rng(1)
    refused = 0
    for at in rng.integers(0, len(data), 150):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        write(tmp_path / "a.nii.gz", bytes(flipped))
        try:
            assert is_the_scan(tmp_path / "a.nii.gz")  # the gzip header's time, name and system
        except VolumeError:
            refused += 1
    assert refused >= 140


def test_i04_a_missing_trailer_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="truncated"):
        load_volume(write(tmp_path / "a.nii.gz", gzip.compress(nifti())[:-8]))


def test_i05_content_counts_and_not_the_suffix(tmp_path):
    assert is_the_scan(write(tmp_path / "plain.nii.gz", nifti()))
    assert is_the_scan(write(tmp_path / "packed.nii", gzip.compress(nifti())))
    assert is_the_scan(write(tmp_path / "no suffix", nifti()))


@pytest.mark.parametrize(
    "data", [b"", b"\x1f\x8b", b"<html>404</html>", b"version https://git-lfs", b"\0" * 1000]
)
def test_i05_what_is_no_scan_is_named(tmp_path, data):
    for name in ("a.nii", "a.nii.gz", "a.txt"):
        with pytest.raises(VolumeError, match=name):
            load_volume(write(tmp_path / name, data))


def measured(path: Path) -> tuple[str, float, float]:
    """Return the error's name, seconds and MB above import of loading in a fresh process."""
    code = """
import resource, sys, time
from universal_model_hub.volume import load_volume
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.perf_counter()
try:
    load_volume(sys.argv[1])
    name = "none"
except Exception as error:
    name = type(error).__name__
print(name, time.perf_counter() - start, peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    name, seconds, megabytes = run.stdout.split()
    return name, float(seconds), float(megabytes)


def test_i06_claims_of_8_gb_cost_nothing(tmp_path):
    data = nifti(dim=[3, 2000, 2000, 2000, 1, 1, 1, 1], datatype=2)
    name, seconds, megabytes = measured(write(tmp_path / "a.nii.gz", gzip.compress(data)))
    assert name == "TooLargeError"
    assert seconds < 5
    assert megabytes < 50


def test_i06_claims_of_140_tb_are_refused_by_name(tmp_path):
    for suffix in (".nii", ".nii.gz"):
        data = nifti(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
        data = gzip.compress(data) if suffix == ".nii.gz" else data
        with pytest.raises(TooLargeError, match="32767"):
            load_volume(write(tmp_path / f"a{suffix}", data))


def test_i06_nifti2_claims_beyond_64_bits_are_refused(tmp_path):
    data = bytearray(nibabel.Nifti2Image(ARRAY, AFFINE).to_bytes())
    header = nibabel.Nifti2Header(bytes(data[:540]), check=False)
    header["dim"] = [3, 2**62, 2**62, 2**62, 1, 1, 1, 1]
    data[:540] = header.binaryblock
    with pytest.raises(TooLargeError):
        load_volume(write(tmp_path / "a.nii", bytes(data)))


def test_i06_an_impossible_ratio_is_refused_unread(tmp_path):
    data = gzip.compress(nifti(dim=[3, 800, 800, 800, 1, 1, 1, 1]))
    start = time.perf_counter()
    with pytest.raises(VolumeError, match="cannot hold"):
        load_volume(write(tmp_path / "a.nii.gz", data))
    assert time.perf_counter() - start < 0.5


def bomb(side: int) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as stream:
        stream.write(nifti(dim=[3, side, side, side, 1, 1, 1, 1])[:352])
        for _ in range(side):
            stream.write(bytes(side * side * 2))
    return packed.getvalue()


def test_i07_a_valid_bomb_meets_the_budget(tmp_path):
    path = write(tmp_path / "a.nii.gz", bomb(100))
    with pytest.raises(TooLargeError, match="max_bytes"):
        load_volume(path, max_bytes=3_999_999)
    assert load_volume(path, max_bytes=4_000_000).shape == (100, 100, 100)


@pytest.mark.slow
def test_i07_a_bomb_of_a_thousand_cubed_meets_the_default_budget(tmp_path):
    path = write(tmp_path / "a.nii.gz", bomb(1000))
    assert path.stat().st_size < 2_000_000
    name, seconds, megabytes = measured(path)
    assert name == "TooLargeError"
    assert seconds < 5
    assert megabytes < 50


def test_i07_a_long_series_is_not_read_for_one_frame(tmp_path):
    data = nifti(dim=[4, 8, 9, 10, 30000, 1, 1, 1])
    with pytest.raises(TooLargeError, match="30000 frames"):
        load_volume(write(tmp_path / "a.nii.gz", data), frame=0, max_bytes=10_000)


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_a_budget_of_nothing_is_a_config_error(tmp_path, max_bytes):
    with pytest.raises(ConfigError, match="max_bytes"):
        load_volume(write(tmp_path / "a.nii", nifti()), max_bytes=max_bytes)


def test_i08_a_long_tail_is_refused_without_reading_it_all(tmp_path):
    packed = gzip.compress(nifti()) + gzip.compress(bytes(10**8), compresslevel=1) * 15
    name, seconds, megabytes = measured(write(tmp_path / "a.nii.gz", packed))
    assert name == "VolumeError"
    assert seconds < 5
    assert megabytes < 50


def test_i08_a_short_tail_is_a_warning(tmp_path):
    for name, data in [
        ("a.nii", nifti() + b"tail"),
        ("a.nii.gz", gzip.compress(nifti() + b"tail")),
    ]:
        with pytest.warns(VolumeWarning, match="4 bytes follow"):
            assert is_the_scan(write(tmp_path / name, data))


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [(0, 0, np.nan), (1, 3, np.nan), (0, 3, np.inf), (2, 3, -np.inf), (2, 2, 0), (0, 0, 1e9)],
)
def test_i09_an_unusable_sform_is_refused(tmp_path, row, column, value):
    affine = AFFINE.copy()
    affine[row, column] = value
    with pytest.raises(GeometryError, match=r"a\.nii"):
        load_volume(write(tmp_path / "a.nii", nifti(**sform(affine))))


def test_i09_a_zero_or_singular_sform_is_refused(tmp_path):
    singular = AFFINE.copy()
    singular[:3, 1] = singular[:3, 0]
    for affine in (np.zeros((4, 4)), singular):
        with pytest.raises(GeometryError):
            load_volume(write(tmp_path / "a.nii", nifti(**sform(affine))))


@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim": [1, np.nan, 2, 3, 1, 1, 1, 1]},
        {"pixdim": [1, 0, 2, 3, 1, 1, 1, 1]},
        {"quatern_b": 3.0},
        {"quatern_c": np.nan},
        {"qoffset_x": np.inf},
    ],
    ids=str,
)
def test_i09_an_unusable_qform_is_refused_where_it_counts(tmp_path, fields):
    with pytest.raises(GeometryError, match=r"a\.nii"):
        load_volume(write(tmp_path / "a.nii", nifti(sform_code=0, **fields)))
    with pytest.warns(VolumeWarning, match="sform is used"):
        assert is_the_scan(write(tmp_path / "b.nii", nifti(**fields)))


@pytest.mark.parametrize("pixdim", [[1, 0, 0, 0], [1, 1, 1, 1], [-1, -5, 7, 9], [0, 2, 2, 3]])
def test_i10_spacing_comes_from_the_affine_and_not_from_pixdim(tmp_path, pixdim):
    path = write(tmp_path / "a.nii", nifti(pixdim=[*pixdim, 1, 1, 1, 1], qform_code=0))
    assert load_volume(path).spacing == (2, 2, 3)


def test_i10_a_qform_with_handedness_zero_counts_as_one(tmp_path):
    path = write(tmp_path / "a.nii", nifti(sform_code=0, pixdim=[0, 2, 2, 3, 1, 1, 1, 1]))
    assert np.allclose(load_volume(path).affine, AFFINE)


def test_i11_sform_wins_over_a_qform_that_disagrees_with_a_warning(tmp_path):
    with pytest.warns(VolumeWarning, match="disagree"):
        assert is_the_scan(write(tmp_path / "a.nii", nifti(qoffset_x=50.0)))


def test_i11_a_lone_qform_is_used_silently(tmp_path):
    volume = load_volume(write(tmp_path / "a.nii", nifti(sform_code=0)))
    assert np.allclose(volume.affine, AFFINE)


def test_i12_unknown_orientation_is_a_warning_and_nibabels_guess(tmp_path):
    path = write(tmp_path / "a.nii", nifti(sform_code=0, qform_code=0))
    with pytest.warns(VolumeWarning, match="orientation unknown"):
        volume = load_volume(path)
    assert volume.orientation == "LAS"
    assert np.array_equal(volume.affine, nibabel.load(path).affine)


@pytest.mark.parametrize(("unit", "factor"), [(1, 1e3), (3, 1e-3)])
def test_units_other_than_mm_are_converted_with_a_warning(tmp_path, unit, factor):
    affine = np.diag([2 / factor, 2 / factor, 3 / factor, 1])
    path = write(tmp_path / "a.nii", nifti(xyzt_units=unit, qform_code=0, **sform(affine)))
    with pytest.warns(VolumeWarning, match="not mm"):
        assert load_volume(path).spacing == pytest.approx((2, 2, 3))


@pytest.mark.parametrize(
    "dim",
    [[3, 0, 9, 10], [3, -8, 9, 10], [3, 8, 9, -1], [0, 8, 9, 10], [8, 8, 9, 10], [-3, 8, 9, 10]],
)
def test_i14_zero_and_negative_sides_are_refused(tmp_path, dim):
    with pytest.raises(VolumeError, match=r"a\.nii"):
        load_volume(write(tmp_path / "a.nii", nifti(dim=[*dim, 1, 1, 1, 1])))


def test_i15_flat_and_real_4d_scans_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="3D"):
        load_volume(write(tmp_path / "a.nii", nifti(ARRAY[..., 0])))
    with pytest.raises(VolumeError, match="frame="):
        load_volume(write(tmp_path / "a.nii", nifti(np.stack([ARRAY, ARRAY], -1))))
    vectors = np.stack([ARRAY] * 3, -1)[..., None, :]
    with pytest.raises(VolumeError, match="Split"):
        load_volume(write(tmp_path / "a.nii", nifti(vectors)), frame=0)


def test_i15_trailing_sides_of_one_are_dropped(tmp_path):
    assert is_the_scan(write(tmp_path / "a.nii", nifti(ARRAY[..., None, None])))
    one_slice = load_volume(write(tmp_path / "b.nii", nifti(ARRAY[..., :1])))
    assert one_slice.shape == (8, 9, 1)


def test_i15_each_frame_of_a_series_can_be_named(tmp_path):
    series = np.stack([ARRAY, ARRAY + 1, ARRAY + 2], -1)
    for name, data in [("a.nii", nifti(series)), ("a.nii.gz", gzip.compress(nifti(series)))]:
        path = write(tmp_path / name, data)
        for frame in range(3):
            assert np.array_equal(load_volume(path, frame=frame).array, ARRAY + frame)
        for frame in (-1, 3):
            with pytest.raises(VolumeError, match="0 to 2"):
                load_volume(path, frame=frame)


def test_i15_a_truncated_series_is_refused_whatever_the_frame(tmp_path):
    data = nifti(np.stack([ARRAY, ARRAY], -1))[:-10]
    for name, content in [("a.nii", data), ("a.nii.gz", gzip.compress(data))]:
        with pytest.raises(VolumeError, match="truncated"):
            load_volume(write(tmp_path / name, content), frame=0)


@pytest.mark.parametrize("code", [0, 1, 32, 128, 255, 1536, 1792, 2048, 2304, 77, -4])
def test_i16_voxels_that_are_no_real_number_are_refused(tmp_path, code):
    with pytest.raises(VolumeError, match=f"data type {code}"):
        load_volume(write(tmp_path / "a.nii", nifti(datatype=code)))


def test_i16_complex_voxels_written_by_nibabel_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="complex"):
        load_volume(write(tmp_path / "a.nii", nifti(ARRAY.astype("c8"))))


def test_i17_slope_zero_means_no_scaling(tmp_path):
    assert is_the_scan(write(tmp_path / "a.nii", nifti(scl_slope=0, scl_inter=5)))


@pytest.mark.parametrize("slope", [np.nan, np.inf, -np.inf])
def test_i17_a_slope_that_is_not_finite_is_a_warning(tmp_path, slope):
    with pytest.warns(VolumeWarning, match="slope"):
        assert is_the_scan(write(tmp_path / "a.nii", nifti(scl_slope=slope, scl_inter=0)))


def test_i17_an_intercept_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="intercept"):
        load_volume(write(tmp_path / "a.nii", nifti(scl_slope=1, scl_inter=np.nan)))


def test_i17_scaling_beyond_float32_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="float32"):
        load_volume(write(tmp_path / "a.nii", nifti(scl_slope=1e38, scl_inter=0)))
    with pytest.raises(VolumeError, match="float32"):
        load_volume(write(tmp_path / "a.nii", nifti(ARRAY * 1e300)))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("slope", [1, 2])
def test_i18_some_nan_voxels_are_filled_with_the_smallest_value(tmp_path, dtype, slope):
    array = ARRAY.astype(dtype)
    array[3, 3, 3], array[4, 4, 4], array[5, 5, 5] = np.nan, np.inf, -np.inf
    path = write(tmp_path / "a.nii", nifti(array, scl_slope=slope, scl_inter=0))
    with pytest.warns(VolumeWarning, match="3 of 720 voxels"):
        loaded = load_volume(path).array
    expected = np.where(np.isfinite(array), array, ARRAY.min()) * slope
    assert np.array_equal(loaded, expected)


@pytest.mark.parametrize("num_nan", [361, 720])
def test_i18_mostly_nan_is_refused(tmp_path, num_nan):
    array = ARRAY.astype("f4")
    array.reshape(-1)[:num_nan] = np.nan
    with pytest.raises(VolumeError, match=f"{num_nan} of 720"):
        load_volume(write(tmp_path / "a.nii", nifti(array)))


def test_i19_a_constant_volume_stays_constant(tmp_path):
    volume = load_volume(write(tmp_path / "a.nii.gz", gzip.compress(nifti(ARRAY * 0 + 7))))
    assert (volume.array == 7).all()


@pytest.mark.parametrize(
    "fields",
    [{"sizeof_hdr": 7}, {"magic": b"ni1"}, {"bitpix": 64}, {"regular": b"x"}, {"dim_info": 255}],
    ids=str,
)
def test_i20_harmless_contradictions_give_the_same_scan(tmp_path, fields):
    assert is_the_scan(write(tmp_path / "a.nii", nifti(**fields)))


@pytest.mark.parametrize("offset", [np.nan, np.inf, -352, 0, 100, 352.5, 1e6, 1e30])
def test_a_voxel_offset_out_of_place_is_refused(tmp_path, offset):
    for name in ("a.nii", "a.nii.gz"):
        data = nifti(vox_offset=offset)
        with pytest.raises(VolumeError, match=name):
            load_volume(write(tmp_path / name, gzip.compress(data) if ".gz" in name else data))


def test_voxels_behind_a_header_extension_are_found(tmp_path):
    image = nibabel.Nifti1Image(ARRAY, AFFINE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 3000))
    assert is_the_scan(write(tmp_path / "a.nii.gz", gzip.compress(image.to_bytes())))


def test_half_a_pair_is_named(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(ARRAY, AFFINE), tmp_path / "a.img")
    (tmp_path / "a.img").rename(tmp_path / "b.img")
    with pytest.raises(VolumeError, match=r"a\.img or a\.img\.gz beside a\.hdr"):
        load_volume(tmp_path / "a.hdr")
    with pytest.raises(VolumeError, match=r"b\.hdr"):
        load_volume(tmp_path / "b.img")


def test_analyze_without_an_orientation_is_refused(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(ARRAY, None), tmp_path / "a.img")
    with pytest.raises(VolumeError, match="Analyze"):
        load_volume(tmp_path / "a.img")


def test_c01_a_missing_or_special_file_is_named(tmp_path):
    with pytest.raises(VolumeError, match="no such file"):
        load_volume(tmp_path / "nowhere.nii.gz")
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(VolumeError, match="not a file"):
        load_volume(tmp_path / "pipe.nii")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    with pytest.raises(VolumeError):
        load_volume(tmp_path / "loop.nii")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_c01_an_unreadable_file_is_named(tmp_path):
    path = write(tmp_path / "a.nii", nifti())
    path.chmod(0)
    with pytest.raises(VolumeError, match="Permission denied"):
        load_volume(path)


def test_options_that_do_not_fit_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="series="):
        load_volume(write(tmp_path / "a.nii", nifti()), series="1.2")
    with pytest.raises(ConfigError, match="frame="):
        load_volume(tmp_path, frame=1)


def test_a_sheared_affine_and_odd_spacing_are_warnings(tmp_path):
    affine = AFFINE.copy()
    affine[0, 2] = 1
    with pytest.warns(VolumeWarning, match="perpendicular"):
        load_volume(write(tmp_path / "a.nii", nifti(qform_code=0, **sform(affine))))
    with pytest.warns(VolumeWarning, match="unusual"):
        load_volume(write(tmp_path / "a.nii", nifti(qform_code=0, **sform(AFFINE * 1000))))


def test_nothing_is_logged_and_no_header_text_is_shown(tmp_path, caplog, capfd):
    fields = {"sizeof_hdr": 7, "pixdim": [0] * 8, "descrip": b"DOE^JANE", "qoffset_x": 9}
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_volume(write(tmp_path / "a.nii", nifti(**fields)))
        with pytest.raises(VolumeError) as error:
            load_volume(write(tmp_path / "a.nii", nifti(**fields, datatype=1)))
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert "DOE" not in "".join([str(error.value), *[str(entry.message) for entry in caught]])


HEADER_BITS = st.lists(st.integers(0, 348 * 8 - 1), min_size=1, max_size=6, unique=True)


def survives(path: Path) -> None:
    """Assert that a file is refused by our own error, or gives a finite scan somewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", VolumeWarning)
        try:
            volume = load_volume(path, max_bytes=10**7)
        except UniversalModelError:
            return
    assert np.isfinite(volume.array).all()
    assert np.isfinite(np.linalg.inv(volume.affine)).all()
    assert len(volume.orientation) == 3


FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(bits=HEADER_BITS)
@FUZZ
def test_flipped_header_bits_give_our_error_or_a_finite_scan(tmp_path, bits):
    data = bytearray(nifti(ARRAY.astype("f4")))
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    survives(write(tmp_path / "a.nii", bytes(data)))


VALUES = st.one_of(
    st.sampled_from([0, -1, 1, 2**15 - 1, -(2**15)]),
    st.floats(width=32),
)
FIELDS = ["dim", "datatype", "pixdim", "vox_offset", "scl_slope", "scl_inter", "xyzt_units"]
FIELDS += ["qform_code", "sform_code", "quatern_b", "quatern_d", "qoffset_z", "srow_x", "srow_z"]


@given(changes=st.lists(st.tuples(st.sampled_from(FIELDS), st.integers(0, 7), VALUES), min_size=1))
@FUZZ
def test_any_header_value_gives_our_error_or_a_finite_scan(tmp_path, changes):
    data = bytearray(nifti())
    header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
    for name, index, value in changes:
        field = header[name]
        if field.dtype.kind in "iu":
            value = int(np.nan_to_num(value, nan=0, posinf=1, neginf=-1)) % 2**15
        with np.errstate(all="ignore"):
            if field.ndim:
                field[index % len(field)] = np.array(value).astype(field.dtype)
            else:
                header[name] = np.array(value).astype(field.dtype)
    data[:348] = header.binaryblock
    survives(write(tmp_path / "a.nii", bytes(data)))


@given(at=st.integers(0, 10**9), byte=st.integers(0, 255), end=st.integers(0, 20))
@FUZZ
def test_damaged_gzip_gives_our_error_or_the_scan(tmp_path, at, byte, end):
    data = bytearray(gzip.compress(nifti(ARRAY.astype("f4"))))
    data[at % len(data)] = byte
    survives(write(tmp_path / "a.nii.gz", bytes(data[: len(data) - end])))


@given(data=st.binary(max_size=600))
@FUZZ
def test_any_bytes_give_our_error(tmp_path, data):
    for name in ("a.nii", "a.nii.gz", "a.img", "a.xyz"):
        survives(write(tmp_path / name, data))
