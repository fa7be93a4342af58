"""Everything wrong with a data set is found at once, by file, and nothing is written."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from universal_model_hub import Preprocessing, Volume, save_volume
from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.cases import Case
from universal_model_hub.fit.check import check_cases, raise_if_bad
from universal_model_hub.fit.layouts import read_cases

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
    assert report.to_json()["ok"] is True
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
        *("case3.nii.gz: Expected the label map on the grid of its scan", "(11, 11, 10)"),
        *("case4.nii.gz: Expected whole numbers", "case5.nii.gz: Expected labels from 0"),
    ):
        assert part in text, part
    with pytest.raises(ConfigError, match="got 5 errors"):
        raise_if_bad(report)
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
    assert "The same voxels are in case0, case9" in told(report_of(data))


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
    assert "p: Expected a subject on one side of the split, got test, train" in told(
        check_cases(split, preprocessing=GRID)
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
    save_volume(Volume(np.ones((5, 5, 5), np.int16), AFFINE), images / "a_0001.nii.gz")
    assert "a: Expected channel 2 on the grid of channel 1" in told(report_of(tmp_path))


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
