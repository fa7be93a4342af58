"""Every known trap of the data sets, built into a small corpus: found, named, and never silent."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny_corpora
from tiny_corpora import AFFINE, SIDE, adni_scan, ct, labels, mhd, mr, nifti

from training.corpora import CORPORA, CorpusWarning, Finding, lits2017, luna16
from training.corpora.__main__ import main
from training.corpora.checks import inspect, used
from training.corpora.phantom import write_corpus
from training.corpora.phantom.corpus import LAYOUTS, planted_traps
from training.corpora.splits import evaluation_cases, pretraining_cases
from universal_model_hub.errors import ConfigError, GeometryError, VolumeError


def findings(name: str, folder: Path, **options) -> dict[str, Finding]:
    """Findings by code; the first of each."""
    found: dict[str, Finding] = {}
    for finding in inspect(CORPORA[name], folder, **options).findings:
        found.setdefault(finding.code, finding)
    return found


def used_ids(name: str, folder: Path) -> set[str]:
    survey = inspect(CORPORA[name], folder)
    return {case.id for case in used(survey.cases, survey.findings)}


# ---- all corpora ----


def test_nan_voxels_are_counted_and_the_case_is_not_used(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    array = mr().astype(np.float32)
    array[3, 3, 3:5] = np.nan
    nifti(folder / "Task02_Heart/imagesTr/la_001.nii.gz", array)

    finding = findings("msd_heart", folder)["nan_voxels"]
    assert (finding.severity, finding.case) == ("error", "la_001")
    assert "2 of 1000" in finding.what
    assert finding.file == "Task02_Heart/imagesTr/la_001.nii.gz"
    assert used_ids("msd_heart", folder) == {"la_000", "la_002", "la_003", "la_004"}


def test_mostly_nan_is_unreadable(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    nifti(folder / "Task02_Heart/imagesTr/la_001.nii.gz", np.full((SIDE,) * 3, np.nan, np.float32))

    assert findings("msd_heart", folder)["unreadable"].case == "la_001"


def test_four_dimensions_are_found_in_the_header(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    nifti(folder / "Task02_Heart/imagesTs/la_003.nii.gz", np.stack([mr(), mr()], axis=3))

    assert findings("msd_heart", folder, fast=True)["not_3d"].case == "la_003"


def test_single_frame_is_three_dimensions(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    nifti(folder / "Task02_Heart/imagesTs/la_003.nii.gz", mr()[..., None])

    assert findings("msd_heart", folder) == {}


def test_too_small_volume(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    nifti(folder / "Task02_Heart/imagesTs/la_003.nii.gz", mr()[:, :, :7])

    assert findings("msd_heart", folder)["too_small"].severity == "error"


def test_constant_volume(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    nifti(folder / "Task02_Heart/imagesTs/la_003.nii.gz", np.zeros((SIDE,) * 3, np.int16))

    assert findings("msd_heart", folder)["empty_volume"].case == "la_003"


def test_damaged_volume_does_not_stop_the_check(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    root = folder / "Task02_Heart"
    (root / "imagesTr/la_000.nii.gz").write_bytes(b"<html>")
    nifti(root / "labelsTr/la_002.nii.gz", labels())

    found = findings("msd_heart", folder)
    assert found["unreadable"].case == "la_000"
    assert found["empty_label"].case == "la_002"


@pytest.mark.parametrize("fast", [True, False])
def test_geometry_mismatch_of_shape_and_of_place(tmp_path, fast):
    folder = tiny_corpora.lits2017(tmp_path)
    nifti(folder / "segmentation-1.nii", labels(1)[:9])
    moved = AFFINE.copy()
    moved[0, 3] += 5
    nifti(folder / "segmentation-2.nii", labels(1), moved)

    survey = inspect(CORPORA["lits2017"], folder, fast=fast)
    wrong = {f.case: f.what for f in survey.findings if f.code == "geometry_mismatch"}
    assert set(wrong) == {"volume-1", "volume-2"}
    assert "(9, 10, 10)" in wrong["volume-1"]
    assert "7.1 voxels away" in wrong["volume-2"]


def test_geometry_within_rounding_is_fine(tmp_path):
    folder = tiny_corpora.lits2017(tmp_path)
    nifti(folder / "segmentation-1.nii", labels(1), AFFINE + np.eye(4) * 1e-4 * [1, 1, 1, 0])

    assert findings("lits2017", folder) == {}


@pytest.mark.parametrize(
    ("name", "file", "value"),
    [
        ("lits2017", "segmentation-1.nii", 3),
        ("brats2018", "MICCAI_BraTS_2018_Data_Training/HGG/{p}/{p}_seg.nii.gz", 3),
        ("msd_heart", "Task02_Heart/labelsTr/la_001.nii.gz", 2),
        ("mmwhs", "ct_train/ct_train_1001_label.nii.gz", 422),
    ],
)
def test_label_out_of_range(tmp_path, name, file, value):
    folder = tiny_corpora.WRITERS[name](tmp_path)
    path = folder / file.format(p="Brats18_TCIA02_1_1")
    nifti(path, labels(value))

    finding = findings(name, folder)["label_out_of_range"]
    assert finding.severity == "error"
    assert f"[{value}]" in finding.what
    assert finding.file == path.relative_to(folder).as_posix()


def test_fractions_are_no_labels(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    nifti(folder / "Task02_Heart/labelsTr/la_001.nii.gz", labels(1).astype(np.float32) * 0.5)

    assert findings("msd_heart", folder)["label_not_integer"].case == "la_001"


def test_ct_without_air_is_not_hu(tmp_path):
    folder = tiny_corpora.lits2017(tmp_path)
    nifti(folder / "volume-1.nii", ct() + 1024)

    assert findings("lits2017", folder)["not_hu"].case == "volume-1"


def test_several_problems_are_all_reported(tmp_path):
    folder = tiny_corpora.lits2017(tmp_path)
    nifti(folder / "segmentation-1.nii", labels(9))
    nifti(folder / "segmentation-2.nii", labels())
    (folder / "segmentation-3.nii").unlink()

    found = findings("lits2017", folder)
    assert {"label_out_of_range", "empty_label", "missing_label"} <= set(found)


# ---- LUNA16 ----


def test_candidate_outside_names_the_series(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    with (folder / "candidates_V2.csv").open("a") as stream:
        stream.write("1.2.4,0,0,900,0\n")

    finding = findings("luna16", folder, fast=True)["candidate_outside"]
    assert (finding.severity, finding.case, finding.file) == (
        "error",
        "1.2.4",
        "candidates_V2.csv",
    )


def test_candidate_on_the_border_is_inside(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    with (folder / "candidates_V2.csv").open("a") as stream:
        stream.write("1.2.0,-5.2,-6.2,-7.9,0\n")  # 0.4 voxels before the first center

    assert findings("luna16", folder) == {}


def test_unknown_seriesuid_is_counted(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    with (folder / "candidates_V2.csv").open("a") as stream:
        stream.write("9.9.9,0,0,0,1\n9.9.9,0,0,1,0\n")

    finding = findings("luna16", folder)["unknown_seriesuid"]
    assert finding.severity == "warning"
    assert finding.what.startswith("2 rows name 1 series")


def test_candidate_rows_are_counted_per_subset(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    with (folder / "candidates_V2.csv").open("a") as stream:
        stream.write("1.2.3,-4,-5,-3,1\n")

    facts = inspect(CORPORA["luna16"], folder, fast=True).facts
    assert facts["candidates"] == "candidates_V2.csv: 21 rows, 11 positive"
    assert facts["rows per subset"] == "2 2 2 3 2 2 2 2 2 2"
    assert facts["positives per subset"] == "1 1 1 2 1 1 1 1 1 1"


def test_old_candidates_are_named_and_need_a_word(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    (folder / "candidates_V2.csv").rename(folder / "candidates.csv")

    assert findings("luna16", folder)["old_candidates"].severity == "warning"
    with pytest.raises(ConfigError, match="version='old'"):
        luna16.candidates(folder)
    assert luna16.candidates(folder, version="old").version == "old"


def test_damaged_candidate_table(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    with (folder / "candidates_V2.csv").open("a") as stream:
        stream.write("1.2.3,-4,minus five,-3,1\n")

    assert "line 22" in findings("luna16", folder)["bad_table"].what


def test_series_in_two_subsets(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    mhd(folder / "subset9" / "1.2.0.mhd", ct())

    finding = findings("luna16", folder)["duplicate_subject"]
    assert (finding.severity, finding.case) == ("error", "1.2.0")
    assert "1.2.0" not in used_ids("luna16", folder)  # which copy is right is not for us to guess


def test_missing_raw_file(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    (folder / "subset3" / "1.2.3.raw").unlink()

    assert findings("luna16", folder)["missing_raw"].case == "1.2.3"
    with pytest.warns(CorpusWarning, match="check luna16"):
        assert len(CORPORA["luna16"].cases(folder)) == 9


def test_no_test_subset_means_no_evaluation(tmp_path):
    folder = tiny_corpora.luna16(tmp_path, num_subsets=7)

    assert len(pretraining_cases("luna16", folder)) == 7
    with pytest.raises(ConfigError, match="no test case"):
        evaluation_cases("luna16", folder)


def test_missing_subset(tmp_path):
    folder = tiny_corpora.luna16(tmp_path, num_subsets=9)

    assert "none in subset9." in findings("luna16", folder)["missing_subset"].what


def test_nodule_annotated_twice(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    with (folder / "annotations.csv").open("a") as stream:
        stream.write("1.2.0,-4.2,-4.4,1.5,6\n")  # the nodule of 1.2.0 again, moved by half a mm

    assert findings("luna16", folder)["nodule_twice"].what.startswith("1 pair")


# ---- LiTS2017 ----


@pytest.fixture
def false_spacing(tmp_path) -> Path:
    folder = tiny_corpora.lits2017(tmp_path, numbers=range(26, 32))
    for number in (28, 29):
        nifti(folder / f"volume-{number}.nii", ct(number), np.eye(4))
        nifti(folder / f"segmentation-{number}.nii", labels(1, 2), np.eye(4))
    return folder


def test_false_spacing_is_left_out_of_everything(false_spacing):
    survey = inspect(CORPORA["lits2017"], false_spacing)
    case = next(case for case in survey.cases if case.subject == "28")

    assert [f.case for f in survey.findings if f.code == "false_spacing"] == [
        "volume-28",
        "volume-29",
    ]
    assert survey.facts["false spacing, left out"] == "28 29"
    assert used_ids("lits2017", false_spacing) == {f"volume-{n}" for n in (26, 27, 30, 31)}
    with pytest.raises(GeometryError, match=r"spacing\.csv"):
        CORPORA["lits2017"].load(case)
    with pytest.warns(CorpusWarning, match="left out"):
        train = pretraining_cases("lits2017", false_spacing)
    assert not {"28", "29"} & {case.subject for case in train}


def test_true_spacing_from_a_table_brings_a_volume_back(false_spacing):
    (false_spacing / "spacing.csv").write_text("volume,x,y,z\n28,0.7,0.8,2.5\n")
    case = next(c for c in CORPORA["lits2017"].cases(false_spacing) if c.subject == "28")

    assert CORPORA["lits2017"].load(case).spacing == pytest.approx((0.7, 0.8, 2.5))
    assert CORPORA["lits2017"].load_labels(case).spacing == pytest.approx((0.7, 0.8, 2.5))
    assert "volume-28" in used_ids("lits2017", false_spacing)


@pytest.mark.parametrize("row", ["28,0.7,0.8", "28,0.7,0.8,-1", "28,a,b,c", "28,0.7,nan,1"])
def test_spacing_table_with_a_bad_row(false_spacing, row):
    (false_spacing / "spacing.csv").write_text(f"volume,x,y,z\n{row}\n")

    with pytest.raises(ConfigError, match="line 2"):
        lits2017.survey(false_spacing)


def test_true_one_millimeter_spacing_is_not_suspect(tmp_path):
    folder = tiny_corpora.lits2017(tmp_path, numbers=[3])
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = (120, 90, -300)
    nifti(folder / "volume-3.nii", ct(), affine)
    nifti(folder / "segmentation-3.nii", labels(1), affine)

    assert findings("lits2017", folder) == {}


def test_segmentation_without_volume(tmp_path):
    folder = tiny_corpora.lits2017(tmp_path)
    (folder / "volume-2.nii").unlink()

    assert findings("lits2017", folder)["missing_volume"].file == "segmentation-2.nii"


# ---- BraTS2018 ----

HGG = "MICCAI_BraTS_2018_Data_Training/HGG"
PATIENT = "Brats18_TCIA02_1_1"


def test_missing_modality_leaves_the_patient_out(tmp_path):
    folder = tiny_corpora.brats2018(tmp_path)
    (folder / HGG / PATIENT / f"{PATIENT}_t2.nii.gz").unlink()

    finding = findings("brats2018", folder)["missing_modality"]
    assert finding.what.endswith("got no t2.")
    assert finding.file == f"{HGG}/{PATIENT}"
    with pytest.warns(CorpusWarning, match="1 problem"):
        cases = CORPORA["brats2018"].cases(folder)
    assert len(cases) == 20
    assert not any(PATIENT in case.id for case in cases)


def test_sequences_on_different_grids(tmp_path):
    folder = tiny_corpora.brats2018(tmp_path)
    nifti(folder / HGG / PATIENT / f"{PATIENT}_flair.nii.gz", mr()[:9])

    survey = inspect(CORPORA["brats2018"], folder, fast=True)
    wrong = {f.case for f in survey.findings if f.code == "geometry_mismatch"}
    assert f"{PATIENT}_flair" in wrong
    assert not any(c.subject in PATIENT for c in used(survey.cases, survey.findings))


def test_background_that_is_not_zero(tmp_path):
    folder = tiny_corpora.brats2018(tmp_path)
    nifti(folder / HGG / PATIENT / f"{PATIENT}_t1.nii.gz", mr() + 3)

    assert findings("brats2018", folder)["background_not_zero"].case == f"{PATIENT}_t1"


def test_patient_in_both_grades(tmp_path):
    folder = tiny_corpora.brats2018(tmp_path)
    root = folder / "MICCAI_BraTS_2018_Data_Training"
    shutil.copytree(root / "HGG" / PATIENT, root / "LGG" / PATIENT)

    finding = findings("brats2018", folder)["duplicate_subject"]
    assert finding.file == f"MICCAI_BraTS_2018_Data_Training/LGG/{PATIENT}"
    assert len({case.id for case in inspect(CORPORA["brats2018"], folder).cases}) == 24


def test_visits_of_one_patient_are_one_subject(tmp_path):
    folder = tiny_corpora.brats2018(tmp_path)
    root = folder / HGG
    for path in sorted((root / PATIENT).iterdir()):
        name = path.name.replace(PATIENT, "Brats18_TCIA02_1_2")
        nifti(root / "Brats18_TCIA02_1_2" / name, np.asarray(nib.load(path).dataobj))

    cases = CORPORA["brats2018"].cases(folder)
    assert len({case.subject for case in cases}) == 6
    assert sum(case.subject == "Brats18_TCIA02_1" for case in cases) == 8


# ---- MSD heart ----


def test_apple_double_files_are_no_volumes(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    for part in ("imagesTr/._la_000.nii.gz", "imagesTs/._la_003.nii.gz"):
        (folder / "Task02_Heart" / part).write_bytes(b"\0\5\26\7")

    finding = findings("msd_heart", folder)["apple_double"]
    assert finding.severity == "warning"
    assert "2 file(s)" in finding.what
    assert len(CORPORA["msd_heart"].cases(folder)) == 5


def rewrite_list(folder: Path, change) -> None:
    path = folder / "Task02_Heart" / "dataset.json"
    listing = json.loads(path.read_text())
    change(listing)
    path.write_text(json.dumps(listing))


def test_listed_file_that_is_missing(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    (folder / "Task02_Heart/labelsTr/la_001.nii.gz").unlink()

    assert findings("msd_heart", folder)["missing_file"].severity == "error"


def test_file_that_is_not_listed(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    rewrite_list(folder, lambda listing: listing["test"].pop())

    assert findings("msd_heart", folder)["not_listed"].file.endswith("la_004.nii.gz")


@pytest.mark.parametrize("name", ["../../secret.nii.gz", "/etc/passwd", 7])
def test_list_that_leads_out_of_the_folder(tmp_path, name):
    folder = tiny_corpora.msd_heart(tmp_path / "corpus")
    nifti(tmp_path / "secret.nii.gz", mr())
    rewrite_list(folder, lambda listing: listing["test"].append(name))

    assert findings("msd_heart", folder)["path_outside"].severity == "error"
    assert len(inspect(CORPORA["msd_heart"], folder).cases) == 5


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"training": [1], "test": []}', "\x00"])
def test_damaged_list(tmp_path, text):
    folder = tiny_corpora.msd_heart(tmp_path)
    (folder / "Task02_Heart" / "dataset.json").write_text(text)

    with pytest.raises(ConfigError, match=r"dataset\.json"):
        CORPORA["msd_heart"].cases(folder)


def test_labels_of_a_test_volume_are_reported_and_not_used(tmp_path):
    folder = tiny_corpora.msd_heart(tmp_path)
    nifti(folder / "Task02_Heart/labelsTr/la_003.nii.gz", labels(1))

    assert findings("msd_heart", folder)["test_label"].case == "la_003"


# ---- MMWHS ----


def test_stray_421_becomes_420(tmp_path):
    folder = tiny_corpora.mmwhs(tmp_path)
    nifti(folder / "mr_train/mr_train_1002_label.nii.gz", labels(420, 421, 421, 500))
    case = next(c for c in CORPORA["mmwhs"].cases(folder) if c.id == "mr_train_1002")

    finding = findings("mmwhs", folder)["stray_421"]
    assert (finding.severity, finding.case) == ("warning", "mr_train_1002")
    assert "2 voxel(s)" in finding.what
    loaded = CORPORA["mmwhs"].load_labels(case).array
    assert set(np.unique(loaded)) == {0, 420, 500}
    assert (loaded == 420).sum() == 3
    assert "mr_train_1002" in used_ids("mmwhs", folder)


def test_mmwhs_image_without_label(tmp_path):
    folder = tiny_corpora.mmwhs(tmp_path)
    (folder / "ct_train/ct_train_1003_label.nii.gz").unlink()

    assert findings("mmwhs", folder)["missing_label"].case == "ct_train_1003"


def test_only_one_modality_is_there(tmp_path):
    folder = tiny_corpora.mmwhs(tmp_path)
    shutil.rmtree(folder / "mr_train")

    assert findings("mmwhs", folder)["missing_modality"].file == "mr_train"


# ---- ADNI ----


def add_rows(folder: Path, *rows: str) -> None:
    with (folder / "search.csv").open("a") as stream:
        stream.writelines(f"{row}\n" for row in rows)


def test_second_scan_of_a_subject_is_not_used(tmp_path):
    folder = tiny_corpora.adni(tmp_path)
    adni_scan(folder, "002_S_0001", "I900", date="2005-01-01")
    add_rows(folder, "I900,002_S_0001,AD,F,77")

    finding = findings("adni", folder)["several_scans"]
    assert (finding.severity, finding.case) == ("warning", "002_S_0001_I900")
    cases = CORPORA["adni"].cases(folder)
    assert len(cases) == 10
    assert "002_S_0001_I900" in {case.id for case in cases}  # the earlier one


def test_groups_are_ad_and_nc(tmp_path):
    folder = tiny_corpora.adni(tmp_path)
    adni_scan(folder, "002_S_0500", "I900")
    add_rows(folder, "I900,002_S_0500,MCI,F,77")

    finding = findings("adni", folder)["other_group"]
    assert "MCI" in finding.what
    cases = CORPORA["adni"].cases(folder)
    assert {case.label_class for case in cases if not case.left_out} == {"AD", "NC"}
    assert len(used_ids("adni", folder)) == 10


def test_scan_without_a_row_and_with_another_subjects_row(tmp_path):
    folder = tiny_corpora.adni(tmp_path)
    adni_scan(folder, "002_S_0500", "I900")
    adni_scan(folder, "002_S_0501", "I901")
    add_rows(folder, "I901,002_S_0502,AD,F,77")

    found = findings("adni", folder)
    assert found["not_in_table"].severity == "error"
    assert found["subject_mismatch"].severity == "error"


def test_missing_group_is_said(tmp_path):
    folder = tiny_corpora.adni(tmp_path)
    adni_scan(folder, "002_S_0500", "I900")
    add_rows(folder, "I900,002_S_0500,,F,77")

    assert "group empty" in findings("adni", folder)["other_group"].what


def test_table_without_the_columns(tmp_path):
    folder = tiny_corpora.adni(tmp_path)
    (folder / "search.csv").write_text("Image,Who\nI100,x\n")

    with pytest.raises(ConfigError, match="Image Data ID, Subject, Group"):
        CORPORA["adni"].cases(folder)


def test_nan_marks_the_mask_in_adni(tmp_path):
    folder = tiny_corpora.adni(tmp_path)
    case = CORPORA["adni"].cases(folder)[0]
    array = np.where(mr() == 0, np.nan, mr()).astype(np.float32)
    array[:, :, :5] = np.where(mr() == 0, 0, mr())[:, :, :5]
    nifti(case.volume, array)

    assert findings("adni", folder)["nan_voxels"].severity == "warning"
    assert case.id in used_ids("adni", folder)


def test_no_personal_data_in_the_report(tmp_path, capsys):
    folder = tiny_corpora.adni(tmp_path)
    adni_scan(folder, "002_S_0500", "I900")
    add_rows(folder, "I900,002_S_0500,MCI,Hidden Name,1931-02-03")

    main(["check", "adni", str(folder), "--json"])
    text = capsys.readouterr().out
    assert "Hidden" not in text
    assert "1931" not in text
    assert str(tmp_path) not in text


# ---- phantoms ----

# What the checks call a trap that the phantoms call otherwise.
CODES = {"duplicate_subject": "several_scans"}
WARNINGS = {"apple_double", "false_spacing", "several_scans", "stray_421", "unknown_seriesuid"}


@pytest.mark.parametrize(
    "name",
    ["luna16", "adni"]
    + [pytest.param(n, marks=pytest.mark.slow) for n in ("lits2017", "brats2018", "msd_heart")]
    + [pytest.param("mmwhs", marks=pytest.mark.slow)],
)
def test_every_trap_that_phantoms_can_have_is_found_in_its_file(tmp_path, name):
    traps = [trap for trap in LAYOUTS[name][0].traps if trap != "false_spacing"]
    write_corpus(name, tmp_path / name, len(traps) + 1, seed=3, size="toy", traps=traps)

    found = inspect(CORPORA[name], tmp_path / name).findings
    planted = planted_traps(tmp_path / name)
    assert set(planted) == set(traps)
    for trap, files in planted.items():
        matching = [f for f in found if f.code == CODES.get(trap, trap)]
        assert matching, trap
        mild = CODES.get(trap, trap) in WARNINGS or (name, trap) == ("adni", "nan_voxels")
        assert {f.severity for f in matching} == {"warning" if mild else "error"}
        if trap not in ("apple_double", "duplicate_subject"):  # these are counted, not named
            assert {f.file for f in matching} == set(files)
    assert {f.code for f in found} <= {CODES.get(t, t) for t in traps} | {"missing_subset"}


@pytest.mark.parametrize("name", ["luna16", "adni"])
def test_phantoms_without_traps_are_clean(tmp_path, name):
    write_corpus(name, tmp_path / name, 2, seed=1, size="toy")

    found = inspect(CORPORA[name], tmp_path / name).findings
    assert {finding.code for finding in found} <= {"missing_subset"}


def test_false_spacing_of_phantoms(tmp_path):
    write_corpus("lits2017", tmp_path / "x", 2, seed=1, size="toy", traps=["false_spacing"])

    survey = inspect(CORPORA["lits2017"], tmp_path / "x", fast=True)
    files = {f.file for f in survey.findings if f.code == "false_spacing"}
    assert files == set(planted_traps(tmp_path / "x")["false_spacing"])


# ---- the command ----


def test_check_exits_with_2_on_errors_and_0_on_warnings(tmp_path, capsys):
    folder = tiny_corpora.mmwhs(tmp_path)
    label = folder / "mr_train/mr_train_1002_label.nii.gz"
    nifti(label, labels(421))
    assert main(["check", "mmwhs", str(folder)]) == 0
    assert "stray_421" in capsys.readouterr().out

    nifti(label, labels(422))
    assert main(["check", "mmwhs", str(folder)]) == 2
    assert "label_out_of_range" in capsys.readouterr().out


def test_fast_check_reads_no_voxel(tmp_path, capsys):
    folder = tiny_corpora.lits2017(tmp_path)
    nifti(folder / "segmentation-1.nii", labels(9))

    assert main(["check", "lits2017", str(folder), "--fast"]) == 0
    assert "no voxel was read" in capsys.readouterr().out


def test_wrong_folder_is_one_line_and_2(tmp_path, capsys):
    assert main(["check", "luna16", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: Expected the LUNA16 layout")


def test_used_leaves_out_the_whole_subject(tmp_path):
    folder = tiny_corpora.brats2018(tmp_path)
    nifti(folder / HGG / PATIENT / f"{PATIENT}_seg.nii.gz", labels())

    assert not any(PATIENT in case_id for case_id in used_ids("brats2018", folder))


def test_unsupported_candidate_version(tmp_path):
    with pytest.raises(ConfigError, match="V2"):
        luna16.candidates(tiny_corpora.luna16(tmp_path), version="V3")


def test_luna_refuses_candidates_outside(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    mhd(folder / "subset4" / "1.2.4.mhd", ct(), offset=(400, 400, 400))

    with pytest.raises(VolumeError, match=r"2 outside.*1\.2\.4"):
        luna16.candidates(folder)
