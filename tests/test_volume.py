"""Volumes in memory, saved and loaded again."""

import gzip
import itertools
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from universal_model_hub import files
from universal_model_hub.errors import ConfigError, GeometryError, VolumeError
from universal_model_hub.volume import Volume, load_volume, save_volume

OBLIQUE = nibabel.affines.from_matvec(
    nibabel.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([0.7, 0.8, 2.5]), [-90.5, 12.25, 300]
)


def ramp(*shape: int, dtype: str = "i2") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


# Volume


def test_spacing_is_the_length_of_the_affines_columns():
    assert Volume(ramp(2, 3, 4), OBLIQUE).spacing == pytest.approx((0.7, 0.8, 2.5))


def test_orientation_of_all_48_axis_orders_agrees_with_nibabel():
    for order in itertools.permutations(range(3)):
        for signs in itertools.product([1, -1], repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = np.diag([1.0, 2.0, 3.0])[:, order] * signs
            expected = "".join(
                ("LR", "PA", "IS")[a][s > 0] for a, s in zip(order, signs, strict=True)
            )
            assert Volume(ramp(2, 3, 4), affine).orientation == expected


def test_volume_copies_the_affine_and_holds_the_array_itself():
    array, affine = ramp(2, 3, 4), np.eye(4)
    volume = Volume(array, affine)
    affine[0, 0] = 7
    assert volume.affine[0, 0] == 1
    assert volume.array is array


@pytest.mark.parametrize(
    "array",
    [ramp(4, 4), ramp(2, 2, 2, 2), np.zeros((2, 0, 2)), ramp(2, 2, 2) * 1j, [[[1]]]],
    ids=["2d", "4d", "empty", "complex", "list"],
)
def test_volume_refuses_what_is_no_3d_array_of_real_numbers(array):
    with pytest.raises(VolumeError, match="Expected"):
        Volume(array, np.eye(4))


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(3),
        np.diag([1.0, 1, 1, 2]),
        np.diag([1.0, 1, 0, 1]),
        np.diag([1.0, np.nan, 1, 1]),
        np.diag([1e9, 1, 1, 1]),
        np.diag([1e300, 1e300, 1e300, 1]),
        np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        np.array([[1, 0, 0, np.inf], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        "text",
        None,
    ],
)
def test_volume_refuses_an_affine_where_no_scan_can_lie(affine):
    with pytest.raises(GeometryError, match="Expected"):
        Volume(ramp(2, 3, 4), affine)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=12, max_size=12))
def test_any_affine_is_accepted_or_refused_by_our_own_error(numbers):
    affine = np.vstack([np.array(numbers).reshape(3, 4), [0, 0, 0, 1]])
    try:
        volume = Volume(ramp(2, 3, 4), affine)
    except GeometryError:
        return
    assert np.isfinite(np.linalg.inv(volume.affine)).all()
    assert min(volume.spacing) > 0
    assert sorted(volume.orientation.translate(str.maketrans("LPI", "RAS"))) == ["A", "R", "S"]


# save_volume


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4"])
def test_voxels_and_affine_survive_save_and_load_bitwise(tmp_path, suffix, dtype):
    volume = Volume(ramp(5, 6, 7, dtype=dtype), OBLIQUE)
    save_volume(volume, tmp_path / f"scan{suffix}")
    again = load_volume(tmp_path / f"scan{suffix}")
    assert again.array.dtype == volume.array.dtype
    assert np.array_equal(again.array, volume.array)
    assert np.array_equal(again.affine, OBLIQUE.astype(np.float32))


def test_a_saved_file_means_the_same_to_nibabel(tmp_path):
    volume = Volume(ramp(5, 6, 7), OBLIQUE)
    save_volume(volume, tmp_path / "scan.nii.gz")
    image = nibabel.load(tmp_path / "scan.nii.gz")
    assert np.array_equal(np.asanyarray(image.dataobj), volume.array)
    assert np.allclose(image.get_qform(), OBLIQUE, atol=1e-4)
    assert np.array_equal(image.get_sform(), OBLIQUE.astype(np.float32))
    assert np.allclose(image.header.get_zooms(), volume.spacing)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_a_sheared_affine_is_kept_and_gets_no_qform(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    save_volume(Volume(ramp(5, 6, 7), affine), tmp_path / "scan.nii")
    assert int(nibabel.load(tmp_path / "scan.nii").header["qform_code"]) == 0
    with pytest.warns(UserWarning, match="perpendicular") as caught:
        again = load_volume(tmp_path / "scan.nii")
    assert len(caught) == 1
    assert np.array_equal(again.affine, affine.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "stored"),
    [
        (ramp(2, 3, 4) > 5, "u1"),
        (ramp(2, 3, 4, dtype="i8"), "u1"),
        (ramp(2, 3, 4, dtype="i8") - 1, "i2"),
        (ramp(2, 3, 4, dtype="u8") + 40000, "u2"),
        (ramp(2, 3, 4, dtype="i8") * 10**7 - 1, "i4"),
        (ramp(2, 3, 4, dtype="f2"), "f4"),
        (ramp(2, 3, 4, dtype="f8"), "f4"),
        (ramp(2, 3, 4, dtype=">i2"), "i2"),
    ],
)
def test_types_that_viewers_lack_are_narrowed_without_loss(tmp_path, array, stored):
    save_volume(Volume(array, np.eye(4)), tmp_path / "scan.nii.gz")
    again = load_volume(tmp_path / "scan.nii.gz").array
    assert again.dtype == np.dtype(stored)
    assert np.array_equal(again, array)


@pytest.mark.parametrize("value", [np.float64(1e39), np.nan, -np.inf, np.int64(2**40)], ids=str)
def test_a_voxel_that_does_not_fit_the_file_is_refused_and_nothing_written(tmp_path, value):
    array = np.zeros((2, 3, 4), type(value) if isinstance(value, np.generic) else "f4")
    array[1, 1, 1] = value
    with pytest.raises(VolumeError, match="Expected"):
        save_volume(Volume(array, np.eye(4)), tmp_path / "scan.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_equal_volumes_give_equal_bytes(tmp_path):
    array = ramp(5, 6, 7)
    save_volume(Volume(array, OBLIQUE), tmp_path / "one.nii.gz")
    save_volume(Volume(np.asfortranarray(array), OBLIQUE), tmp_path / "two.nii.gz")
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_a_side_above_32767_becomes_nifti2(tmp_path):
    volume = Volume(ramp(40000, 1, 2), np.eye(4))
    save_volume(volume, tmp_path / "long.nii.gz")
    assert isinstance(nibabel.load(tmp_path / "long.nii.gz"), nibabel.Nifti2Image)
    assert np.array_equal(load_volume(tmp_path / "long.nii.gz").array, volume.array)


def test_identifying_header_text_does_not_reach_the_output(tmp_path):
    image = nibabel.Nifti1Image(ramp(4, 4, 4), np.eye(4))
    image.header["descrip"] = b"DOE^JANE"
    image.header["aux_file"] = b"DOE^JANE"
    image.header["intent_name"] = b"DOE^JANE"
    image.header["db_name"] = b"DOE^JANE"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    nibabel.save(image, tmp_path / "in.nii")
    assert (tmp_path / "in.nii").read_bytes().count(b"DOE") == 5
    save_volume(load_volume(tmp_path / "in.nii"), tmp_path / "out.nii")
    data = (tmp_path / "out.nii").read_bytes()
    assert b"DOE" not in data
    assert len(data) == 352 + 128


@pytest.mark.parametrize("name", ["scan.mha", "scan.nii.zip", "scan", "scan.gz"])
def test_an_output_of_another_kind_is_refused_before_writing(tmp_path, name):
    with pytest.raises(ConfigError, match=r"\.nii\.gz, \.img or \.hdr"):
        save_volume(Volume(ramp(2, 3, 4), np.eye(4)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_c02_an_existing_file_is_kept_without_force(tmp_path):
    path = tmp_path / "scan.nii"
    path.write_bytes(b"old")
    with pytest.raises(ConfigError, match="force"):
        save_volume(Volume(ramp(2, 3, 4), np.eye(4)), path)
    assert path.read_bytes() == b"old"
    save_volume(Volume(ramp(2, 3, 4), np.eye(4)), path, force=True)
    assert load_volume(path).shape == (2, 3, 4)


def test_c03_a_missing_output_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        save_volume(Volume(ramp(2, 3, 4), np.eye(4)), tmp_path / "nowhere" / "scan.nii")


def test_c03_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "scan.nii"
    save_volume(Volume(ramp(2, 3, 4), np.eye(4)), path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(VolumeError, match="No space left"):
        save_volume(Volume(ramp(4, 4, 4), np.eye(4)), path, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan.nii"]
    assert load_volume(path).shape == (2, 3, 4)


SAVE_FOREVER = """
import sys, numpy as np
from universal_model_hub.volume import Volume, save_volume
array = np.random.default_rng(0).integers(0, 1000, (128, 128, 64)).astype("i2")
print("ready", flush=True)
while True:
    save_volume(Volume(array, np.eye(4)), sys.argv[1], force=True)
"""


def kill_while_saving(path: Path, seconds: float, kill: signal.Signals) -> None:
    child = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, path], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        child.stdout.readline()
        time.sleep(seconds)
    finally:
        child.send_signal(kill)
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("seconds", [0.02, 0.11])
def test_a_killed_save_leaves_the_old_or_the_new_file_complete(tmp_path, seconds):
    path = tmp_path / "scan.nii.gz"
    save_volume(Volume(ramp(4, 4, 4), np.eye(4)), path)
    kill_while_saving(path, seconds, signal.SIGKILL)
    assert load_volume(path).shape in [(4, 4, 4), (128, 128, 64)]


@pytest.mark.slow
def test_saves_killed_at_ten_random_moments_leave_a_complete_file(tmp_path):
    path = tmp_path / "scan.nii.gz"
    save_volume(Volume(ramp(4, 4, 4), np.eye(4)), path)
    rng = np.random.default_rng(0)
    for seconds in rng.uniform(0, 0.5, 10):
        kill_while_saving(path, seconds, signal.SIGKILL)
        assert load_volume(path).shape in [(4, 4, 4), (128, 128, 64)]


# load_volume


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8", "f4"])
@pytest.mark.parametrize("byte_order", "<>")
def test_i20_each_type_in_each_byte_order_loads_as_nibabel_reads_it(tmp_path, dtype, byte_order):
    header = nibabel.Nifti1Header(endianness=byte_order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(byte_order))
    array = ramp(5, 6, 7, dtype=dtype)
    nibabel.save(nibabel.Nifti1Image(array, OBLIQUE, header), tmp_path / "scan.nii.gz")
    volume = load_volume(tmp_path / "scan.nii.gz")
    assert volume.array.dtype == np.dtype(dtype)
    assert volume.array.dtype.isnative
    assert np.array_equal(volume.array, array)
    assert np.array_equal(volume.affine, nibabel.load(tmp_path / "scan.nii.gz").affine)


def test_i20_float64_becomes_float32(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 6, 7))
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii")
    volume = load_volume(tmp_path / "scan.nii")
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, array.astype(np.float32))


@pytest.mark.parametrize("names", [("a.hdr", "a.img"), ("a.hdr.gz", "a.img.gz")], ids=str)
def test_i20_a_pair_loads_by_either_name(tmp_path, names):
    nibabel.save(nibabel.Nifti1Pair(ramp(5, 6, 7), OBLIQUE), tmp_path / names[1])
    assert sorted(os.listdir(tmp_path)) == sorted(names)  # noqa: PTH208 names only
    for name in names:
        assert np.array_equal(load_volume(tmp_path / name).array, ramp(5, 6, 7))


@pytest.mark.parametrize("byte_order", "<>")
def test_i20_nifti2_loads(tmp_path, byte_order):
    header = nibabel.Nifti2Header(endianness=byte_order)
    nibabel.save(nibabel.Nifti2Image(ramp(5, 6, 7), OBLIQUE, header), tmp_path / "scan.nii")
    volume = load_volume(tmp_path / "scan.nii")
    assert np.array_equal(volume.array, ramp(5, 6, 7))
    assert np.array_equal(volume.affine, OBLIQUE)


def test_scaled_integers_become_float32_with_nibabels_values(tmp_path):
    image = nibabel.Nifti1Image(ramp(5, 6, 7), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    volume = load_volume(tmp_path / "scan.nii.gz")
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, nibabel.load(tmp_path / "scan.nii.gz").get_fdata())


def test_voxels_of_many_chunks_arrive_in_order(tmp_path):
    array = np.random.default_rng(0).integers(0, 2**15, (130, 120, 110)).astype("i2")
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(2, 1)
    image.header.set_data_dtype("f8")
    nibabel.save(image, tmp_path / "scan.nii.gz")
    expected = nibabel.load(tmp_path / "scan.nii.gz").get_fdata()
    assert np.array_equal(load_volume(tmp_path / "scan.nii.gz").array, expected)


@pytest.mark.parametrize(
    "name",
    ["-scan.nii.gz", 'a b\'s "c".nii.gz', "Schädel ü 頭.nii.gz", "new\nline.nii", "SCAN.NII.GZ"],
)
def test_i21_names_with_odd_characters_work_both_ways(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save_volume(Volume(ramp(2, 3, 4), np.eye(4)), name)
    assert np.array_equal(load_volume(name).array, ramp(2, 3, 4))


def test_i21_a_symlink_loads_and_is_replaced_without_touching_its_target(tmp_path):
    save_volume(Volume(ramp(2, 3, 4), np.eye(4)), tmp_path / "target.nii")
    link = tmp_path / "link.nii"
    link.symlink_to("target.nii")
    assert load_volume(link).shape == (2, 3, 4)
    save_volume(Volume(ramp(5, 5, 5), np.eye(4)), link, force=True)
    assert load_volume(link).shape == (5, 5, 5)
    assert load_volume(tmp_path / "target.nii").shape == (2, 3, 4)


def test_i13_every_orientation_keeps_its_world(tmp_path):
    array = np.random.default_rng(0).integers(0, 9, (3, 4, 5)).astype("i2")
    scan = nibabel.Nifti1Image(array, OBLIQUE)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product([1, -1], repeat=3):
            turned = scan.as_reoriented(np.array(list(zip(order, signs, strict=True))))
            nibabel.save(turned, tmp_path / "scan.nii")
            volume = load_volume(tmp_path / "scan.nii")
            x, y, z = np.linalg.inv(volume.affine)[:3] @ OBLIQUE @ [2, 1, 3, 1]
            assert volume.array[round(x), round(y), round(z)] == array[2, 1, 3]


@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.05, 50)] * 3),
    origin=st.tuples(*[st.floats(-1000, 1000)] * 3),
)
@settings(max_examples=60, deadline=None)
def test_any_rotation_and_spacing_survives_without_a_warning(
    tmp_path_factory, shape, angles, spacing, origin
):
    matrix = nibabel.eulerangles.euler2mat(*angles) @ np.diag(spacing)
    volume = Volume(ramp(*shape), nibabel.affines.from_matvec(matrix, origin))
    path = tmp_path_factory.mktemp("any") / "scan.nii"
    save_volume(volume, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_volume(path)
    assert np.array_equal(again.affine, volume.affine.astype(np.float32))
    assert np.array_equal(again.array, volume.array)


def test_import_loads_no_torch():
    code = "import sys, universal_model_hub.volume; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_gzip_of_the_output_passes_the_systems_own_check(tmp_path):
    save_volume(Volume(ramp(5, 6, 7), np.eye(4)), tmp_path / "scan.nii.gz")
    assert len(gzip.decompress((tmp_path / "scan.nii.gz").read_bytes())) == 352 + 5 * 6 * 7 * 2


@pytest.mark.parametrize("name", ["scan.img", "scan.hdr"])
def test_a_pair_of_files_comes_back(tmp_path, name):
    array = np.random.default_rng(0).integers(-1000, 1000, (5, 4, 3)).astype(np.int16)
    affine = np.array([[0, 2, 0, -7], [1.5, 0, 0, 3], [0, 0, -4, 9], [0, 0, 0, 1]], float)
    save_volume(Volume(array, affine), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.hdr", "scan.img"]
    for half in ("scan.img", "scan.hdr"):
        again = load_volume(tmp_path / half)
        assert np.array_equal(again.array, array)
        np.testing.assert_allclose(again.affine, affine, atol=1e-5)
    with pytest.raises(ConfigError, match="exists"):
        save_volume(Volume(array, affine), tmp_path / name)
    save_volume(Volume(array + 1, affine), tmp_path / name, force=True)
    assert np.array_equal(load_volume(tmp_path / name).array, array + 1)
