"""Everything wrong with a data set is found at once, by file, and nothing is written."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from universal_model_hub import Preprocessing, Volume, save_volume
from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import Case, Finding
from universal_model_hub.fit.data.check import cache_bytes, check_cases, check_space, raise_if_bad
from universal_model_hub.fit.data.layouts import read_cases

GRID = Preprocessing(spacing=(2, 2, 2))
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three good cases."""
    for number in range(3):
        write(tmp_path, f"case{number}", number)
    return tmp_path


def write(root: Path, name: str, seed: int, *, affine=AFFINE, change=None, labels=None) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(-500, 300, (12, 11, 10)).astype(np.int16)
    truth = np.zeros(image.shape, np.int16)
    truth[3:6, 3:6, 3:6], truth[7:9, 7:9, 7:9] = 1, 2
    truth = truth if labels is None else labels(truth)
    image = image if change is None else change(image)
    for part, array in (("images", image), ("labels", truth)):
        (root / part).mkdir(exist_ok=True)
        save_volume(Volume(array, affine), root / part / f"{name}.nii.gz", force=True)


def report_of(root: Path, **options):
    cases = read_cases(images=root / "images", labels=root / "labels", modality="CT", **options)
    return check_cases(cases, preprocessing=GRID)


def told(report, level="error") -> str:
    return " | ".join(f"{f.where}: {f.text}" for f in report.findings if f.level == level)


def test_good_data_are_described(data):
    report = report_of(data)
    assert report.ok
    assert report.label_voxels == {0: 3 * (1320 - 35), 1: 81, 2: 24}
    assert report.cases[0].label_ml[1] == pytest.approx(27 * 8 / 1000)
    assert report.median_shape == (12, 11, 10)
    assert "case2" in report.text()
    assert "the data can be used" in report.text()
    assert "label 1: 81 voxels, 0.648 ml, in 3 cases" in report.text()
    assert "median: spacing 2 x 2 x 2 mm, 12 x 11 x 10 voxels" in report.text()
    assert "intensities of channel 1, percentiles 0.5 / 50 / 99.5" in report.text()
    assert report.cases[0].extent_mm == (24, 22, 20)
    low, middle, high = report.cases[0].intensities[0]
    assert low < middle < high
    assert middle == pytest.approx(-500, abs=30)
    stored = json.loads(json.dumps(report.to_json()))
    assert (stored["ok"], stored["cases"][1]["modalities"]) == (True, ["CT"])
    raise_if_bad(report)


def test_everything_is_found_at_once_and_nothing_is_written(data):
    (data / "images" / "case0.nii.gz").write_bytes(b"no scan")
    write(data, "case1", 1, change=lambda a: np.full_like(a, 7))
    write(data, "case3", 3, labels=lambda t: t[:-1])
    write(data, "case4", 4, labels=lambda t: t + np.float32(0.5))
    write(data, "case5", 5, labels=lambda t: np.where(t == 1, -3, t).astype(np.int16))
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    report = report_of(data)
    text = told(report)
    assert not report.ok
    for part in (
        *("case0.nii.gz", "case1.nii.gz: Expected a scan with contrast"),
        *("labels/case3.nii.gz: Expected it on the grid of", "(11, 11, 10)"),
        *("case4.nii.gz: Expected whole numbers", "case5.nii.gz: Expected labels from 0"),
    ):
        assert part in text, part
    with pytest.raises(ConfigError, match="got 5 errors") as raised:
        raise_if_bad(report)
    assert all(f"case{number}.nii.gz" in str(raised.value) for number in (0, 1, 3, 4, 5))
    assert all(finding.where in report.text() for finding in report.errors())
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_a_label_map_that_is_shifted_is_told_with_the_distance(data):
    labels = data / "labels" / "case1.nii.gz"
    shifted = AFFINE.copy()
    shifted[0, 3] = 3.0
    save_volume(Volume(np.zeros((12, 11, 10), np.int16), shifted), labels, force=True)
    assert "up to 3.0 mm off" in told(report_of(data))


def test_values_without_a_name_and_names_without_a_voxel_are_told(data):
    text = told(report_of(data, label_names={1: "liver"}))
    assert "Expected the labels [1], got [2]" in text
    report = report_of(data, label_names={1: "liver", 2: "tumor", 3: "cyst"})
    assert report.ok
    assert "label 3 (cyst)" in told(report, "warning")


def test_empty_label_maps_and_a_label_of_one_case_are_warned_of(data):
    write(data, "case0", 0, labels=lambda t: np.zeros_like(t))
    write(data, "case1", 1, labels=lambda t: np.where(t == 1, 9, 0).astype(np.int16))
    report = report_of(data)
    assert "case0.nii.gz: No voxel has a label" in told(report, "warning")
    assert "case1: Label 9 is in this case only" in told(report, "warning")


def test_no_label_at_all_is_an_error(data):
    for number in range(3):
        write(data, f"case{number}", number, labels=lambda t: np.zeros_like(t))
    assert "Expected labeled voxels, got none" in told(report_of(data))


def test_the_same_voxels_under_two_names_are_an_error_unless_on_one_side(data):
    write(data, "case9", 0)
    both = (
        "images/case0.nii.gz: The same voxels are in",
        "images/case9.nii.gz, cases case0, case9",
    )
    for part in both:
        assert part in told(report_of(data))
    cases = read_cases(images=data / "images", labels=data / "labels", modality="CT")
    one_side = cases.with_cases(tuple(replace(case, split="train") for case in cases.cases))
    one_subject = cases.with_cases(tuple(replace(case, subject="p") for case in cases.cases))
    for same in (one_side, one_subject):
        report = check_cases(same, preprocessing=GRID)
        assert report.ok
        for part in both:
            assert part in told(report, "warning")
    split = tuple(replace(c, split="test" if c.id == "case9" else "train") for c in cases.cases)
    assert both[0] in told(check_cases(cases.with_cases(split), preprocessing=GRID))


def test_a_copy_is_found_in_another_type_and_though_its_label_map_is_wrong(data):
    write(data, "case9", 0, change=lambda a: a.astype(np.float32), labels=lambda t: t[:-1])
    text = told(report_of(data))
    assert "case9.nii.gz: Expected it on the grid of" in text
    assert "case0.nii.gz: The same voxels are in" in text


def test_two_channels_with_the_same_voxels_are_warned_of(data):
    for number in range(3):
        image = data / "images" / f"case{number}.nii.gz"
        if number == 1:
            write(data, "other", 7)
            (data / "images" / "other.nii.gz").rename(data / "images" / "case1_0001.nii.gz")
        else:
            (data / "images" / f"case{number}_0001.nii.gz").write_bytes(image.read_bytes())
        image.rename(data / "images" / f"case{number}_0000.nii.gz")
    text = told(report_of(data), "warning")
    assert "case0_0000.nii.gz: Expected each channel of a case to be another scan" in text
    assert "case2_0001.nii.gz" in text
    assert "case1_000" not in text


def test_a_subject_on_two_sides_is_an_error(data):
    cases = read_cases(images=data / "images", labels=data / "labels", modality="CT")
    first, second, third = cases.cases
    split = cases.with_cases(
        (
            replace(first, subject="p", split="train"),
            replace(second, subject="p", split="test"),
            third,
        )
    )
    text = told(check_cases(split, preprocessing=GRID))
    assert (
        "p: Expected a subject on one side of the split, got case0 in train, case1 in test" in text
    )


def test_uneven_and_unlike_scans_are_warned_of(data):
    write(data, "thick", 7, affine=np.diag([1.0, 1.0, 9.0, 1.0]))
    write(data, "coarse", 8, affine=np.diag([9.0, 9.0, 9.0, 1.0]))
    write(data, "small", 9, affine=np.diag([0.7, 0.7, 0.7, 1.0]))
    text = told(report_of(data), "warning")
    assert "thick: Voxels of 1 x 1 x 9 mm are very uneven" in text
    assert "coarse: Its voxels differ threefold" in text
    assert "small: Only 4 x 4 x 3 voxels" in text


def test_channels_on_two_grids_are_an_error(tmp_path):
    write(tmp_path, "a", 0)
    images = tmp_path / "images"
    (images / "a.nii.gz").rename(images / "a_0000.nii.gz")
    other = np.arange(125, dtype=np.int16).reshape(5, 5, 5)
    save_volume(Volume(other, AFFINE), images / "a_0001.nii.gz")
    text = told(report_of(tmp_path))
    assert "a_0001.nii.gz: Expected it on the grid of" in text
    assert "a_0000.nii.gz, (12, 11, 10), got (5, 5, 5)" in text


def test_modalities_that_differ_between_cases_are_an_error(data):
    write(data, "mr", 9, change=lambda a: np.abs(a))
    cases = read_cases(images=data / "images", labels=data / "labels")
    assert "mr: Taken as MR, most others as CT" in told(check_cases(cases, preprocessing=GRID))


def test_classification_needs_two_subjects_of_each_class(data):
    cases = read_cases(images=data / "images", labels=data / "labels", modality="CT")
    targets = [
        Case(id=c.id, subject=c.id, images=c.images, target=t)
        for c, t in zip(cases.cases, ("x", "x", "y"), strict=True)
    ]
    split = replace(cases.with_cases(tuple(targets)), task="classification")
    assert "two subjects of class y" in told(check_cases(split, preprocessing=GRID))
    one = replace(split.with_cases(tuple(targets[:2])))
    assert "at least two classes, got x" in told(check_cases(one, preprocessing=GRID))


def nifti(path: Path, array: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((12, 11), "got shape (12, 11)"), ((12, 11, 10, 3), "got shape (12, 11,")],
)
def test_flat_scans_and_series_are_told_by_file(data, shape, message):
    nifti(data / "images" / "case1.nii.gz", np.ones(shape, np.int16))
    assert f"images/case1.nii.gz: Expected a 3D scan, {message}" in told(report_of(data))


def test_a_truncated_file_is_told(data):
    for part in ("images", "labels"):
        path = data / part / "case2.nii.gz"
        path.write_bytes(path.read_bytes()[:-20])
    text = told(report_of(data))
    assert "images/case2.nii.gz: Expected intact gzip data" in text
    assert "labels/case2.nii.gz: Expected intact gzip data" in text


def test_values_that_are_not_finite_are_told_of_a_scan_and_refused_in_a_label_map(data):
    image = np.linspace(-1000, 400, 1320, dtype=np.float32).reshape(12, 11, 10)
    image[0, 0, :2] = np.nan, np.inf
    nifti(data / "images" / "case0.nii.gz", image)
    labels = np.zeros((12, 11, 10), np.float32)
    labels[3:6, 3:6, 3:6], labels[0, 0, 0] = 1, np.nan
    nifti(data / "labels" / "case1.nii.gz", labels)
    report = report_of(data)
    assert "images/case0.nii.gz: 2 of 1320 voxels are NaN or Inf" in told(report, "warning")
    assert "labels/case1.nii.gz: 1 of 1320 voxels are NaN or Inf" in told(report)


def test_several_things_wrong_with_one_label_map_are_all_told(data):
    write(data, "case0", 0, labels=lambda t: np.where(t == 1, -5, t + np.float32(0.5))[:-1])
    text = told(report_of(data))
    for part in ("it on the grid of", "whole numbers as labels", "labels from 0 (-1: not annot"):
        assert f"labels/case0.nii.gz: Expected {part}" in text
    assert "got [-5]" in text
    assert text.count("labels/case0.nii.gz: ") == 3


def test_not_annotated_voxels_are_no_error(data):
    write(data, "case0", 0, labels=lambda t: np.where(t == 0, -1, t).astype(np.int16))
    assert report_of(data).ok


def test_a_scan_given_as_label_map_is_told(data):
    rng = np.random.default_rng(0)
    write(data, "case0", 0, labels=lambda t: rng.integers(0, 30_000, t.shape).astype(np.int16))
    assert "labels/case0.nii.gz: Expected a label map, got" in told(report_of(data))


def test_a_doubtful_modality_is_warned_of_by_file(data):
    write(data, "case1", 1, change=lambda a: (a - a.min()).astype(np.int16))
    assert "images/case1.nii.gz: Taken as CT (as given), but" in told(report_of(data), "warning")


def test_a_missing_file_is_told_once(data, tmp_path):
    table = "image,label\n" + "".join(
        f"images/{name}.nii.gz,labels/case{n}.nii.gz\n"
        for n, name in enumerate(("case0", "case1", "gone"))
    )
    (tmp_path / "t.csv").write_text(table)
    report = check_cases(read_cases(data=tmp_path / "t.csv", modality="CT"), preprocessing=GRID)
    (error,) = report.errors()
    assert error.where.endswith("images/gone.nii.gz")


def test_a_file_that_goes_after_the_layout_was_read_is_told(data):
    cases = read_cases(images=data / "images", labels=data / "labels", modality="CT")
    (data / "images" / "case1.nii.gz").unlink()
    assert "images/case1.nii.gz" in told(check_cases(cases, preprocessing=GRID))


def test_a_split_without_training_or_validation_is_told(data):
    cases = read_cases(images=data / "images", labels=data / "labels", modality="CT")

    def with_sides(*sides):
        split = [replace(c, split=side) for c, side in zip(cases.cases, sides, strict=True)]
        return check_cases(cases.with_cases(tuple(split)), preprocessing=GRID)

    assert "Expected cases to train on, got none" in told(with_sides("test", "validation", "test"))
    report = with_sides("train", "train", "test")
    assert report.ok
    assert "no validation part" in told(report, "warning")
    for sides in (("train", "train", None), ("train", "validation", "test")):
        assert "no validation part" not in told(with_sides(*sides), "warning")


def test_classes_without_a_case_on_a_side_and_cases_without_a_class_are_told(data):
    for number in range(3, 6):
        write(data, f"case{number}", number)
    cases = read_cases(images=data / "images", labels=data / "labels", modality="CT")

    def classified(*pairs):
        found = tuple(
            Case(id=c.id, subject=c.id, images=c.images, target=target, split=split)
            for c, (target, split) in zip(cases.cases, pairs, strict=True)
        )
        data_set = replace(cases.with_cases(found), task="classification")
        return check_cases(data_set, preprocessing=GRID)

    report = classified(
        *(("x", "train"), ("x", "train"), ("x", "validation")),
        *(("y", "train"), ("y", "train"), (None, "train")),
    )
    assert "case5: Expected a class of this case, got none" in told(report)
    assert "The validation part has no case of class y" in told(report, "warning")
    report = classified(
        *(("x", "train"), ("x", "train"), ("x", "validation")),
        *(("y", "validation"), ("y", "validation"), ("y", "test")),
    )
    assert "Expected cases of class y to train on, got none" in told(report)


def test_what_the_layout_showed_is_in_the_report(data):
    write(data, "lonely", 8)
    (data / "labels" / "lonely.nii.gz").unlink()
    assert "images/lonely.nii.gz: Expected a label map" in told(report_of(data))


def test_errors_beyond_twenty_are_counted(data):
    report = report_of(data)
    errors = tuple(Finding("error", f"file{n}.nii", "Expected more.") for n in range(25))
    with pytest.raises(ConfigError, match=r"got 25 errors.*file19\.nii.*and 5 more") as raised:
        raise_if_bad(replace(report, findings=errors))
    assert "file20.nii" not in str(raised.value)
    assert "file24.nii" in replace(report, findings=errors).text()


def test_space_for_the_cache_is_judged_by_the_grid(data):
    report = report_of(data)
    voxels = 3 * 12 * 11 * 10
    assert cache_bytes(report, GRID) == voxels * (4 + 2)
    assert cache_bytes(report, Preprocessing(spacing=(1, 1, 1))) == 8 * voxels * (4 + 2)
    check_space(report, GRID, data / "not" / "there" / "yet")
    fine = Preprocessing(spacing=(1e-6, 1e-6, 1e-6))
    with pytest.raises(ConfigError, match="GB of free space"):
        check_space(report, fine, data / "not" / "there" / "yet")
    assert not (data / "not").exists()
