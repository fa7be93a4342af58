"""Five layouts of a user's data become the same cases; what is odd is told, not dropped."""

import json
from pathlib import Path

import numpy as np
import pytest

from universal_model_hub import Volume, save_volume
from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.layouts import read_cases


def scan(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(64, dtype=np.int16).reshape(4, 4, 4) + value
    return save_volume(Volume(array, np.eye(4)), path) or path


def told(data) -> str:
    return " | ".join(f"{f.level}: {f.where}: {f.text}" for f in data.findings)


@pytest.mark.parametrize(
    "label", ["a.nii.gz", "a_seg.nii", "a-label.nii.gz", "a_mask.nii.gz", "a.dseg.nii.gz"]
)
def test_a_label_map_is_named_like_its_scan_or_with_a_word_for_labels(tmp_path, label):
    scan(tmp_path / "images" / "a.nii.gz")
    scan(tmp_path / "labels" / label)
    data = read_cases(images=tmp_path / "images", labels=tmp_path / "labels")
    (case,) = data.cases
    assert (case.id, case.labels.name) == ("a", label)
    assert not data.findings


def test_channels_of_a_folder_are_found_by_their_number(tmp_path):
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"):
        scan(tmp_path / "images" / name)
    for name in ("a.nii.gz", "b.nii.gz"):
        scan(tmp_path / "labels" / name)
    data = read_cases(images=tmp_path / "images", labels=tmp_path / "labels", modality=("CT", "MR"))
    assert [[p.name for p in c.images] for c in data.cases] == [
        ["a_0000.nii.gz", "a_0001.nii.gz"],
        ["b_0000.nii.gz", "b_0001.nii.gz"],
    ]
    assert data.modalities == ("CT", "MR")
    with pytest.raises(ConfigError, match="each of 2 channels, got 3"):
        read_cases(
            images=tmp_path / "images", labels=tmp_path / "labels", modality=("CT", "MR", "MR")
        )


def test_everything_without_a_partner_is_told(tmp_path):
    scan(tmp_path / "images" / "alone.nii.gz")
    scan(tmp_path / "images" / "both.nii.gz")
    scan(tmp_path / "images" / "gap_0000.nii.gz")
    scan(tmp_path / "images" / "gap_0002.nii.gz")
    scan(tmp_path / "labels" / "both.nii.gz")
    scan(tmp_path / "labels" / "both_seg.nii.gz")
    scan(tmp_path / "labels" / "gap.nii.gz")
    scan(tmp_path / "labels" / "nobody.nii.gz")
    (tmp_path / "images" / "._both.nii.gz").write_bytes(b"of another system")
    text = told(read_cases(images=tmp_path / "images", labels=tmp_path / "labels"))
    assert "alone.nii.gz: Expected a label map" in text
    assert "one label map of both, got two" in text
    assert "gap: Expected channels from 0000 on, 0001 is missing" in text
    assert "warning" in text
    assert "nobody.nii.gz" in text
    assert "._both" not in text


def test_a_folder_for_each_class_is_a_classification(tmp_path):
    for name in ("ill/a.nii.gz", "ill/b.nii.gz", "well/a.nii.gz"):
        scan(tmp_path / name)
    data = read_cases(images=tmp_path)
    assert data.task == "classification"
    assert [(c.id, c.target) for c in data.cases] == [
        ("ill/a", "ill"),
        ("ill/b", "ill"),
        ("well/a", "well"),
    ]
    with pytest.raises(ConfigError, match="folder of label maps"):
        read_cases(images=tmp_path, task="segmentation")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_gives_split_subject_and_channels(tmp_path, delimiter):
    rows = [
        ["id", "image_T1", "image_FLAIR", "label", "split", "subject"],
        ["one", "s/a.nii.gz", "s/b.nii.gz", "s/l.nii.gz", "train", "p1"],
        ["two", "s/c.nii.gz", "s/d.nii.gz", "s/m.nii.gz", "val", "p2"],
    ]
    table = tmp_path / "cases.csv"
    table.write_text("\ufeff" + "\n".join(delimiter.join(row) for row in rows) + "\n\n")
    data = read_cases(data=table)
    assert [(c.id, c.subject, c.split) for c in data.cases] == [
        ("one", "p1", "train"),
        ("two", "p2", "validation"),
    ]
    assert data.cases[0].images == (tmp_path / "s/a.nii.gz", tmp_path / "s/b.nii.gz")
    assert data.num_channels == 2


def test_bad_lines_of_a_table_are_told_by_their_number(tmp_path):
    table = tmp_path / "cases.csv"
    table.write_text("image,class,split\na.nii.gz,x,\nb.nii.gz,,\nc.nii.gz,y,holdout\n")
    data = read_cases(data=table)
    assert len(data.cases) == 1
    assert "line 3: Expected a value of class" in told(data)
    assert "line 4: Expected a split of" in told(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan,label\na,b\n", "columns image"),
        ("image,label,label\na,b,c\n", "each column once"),
        ("", "columns image"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_cases(data=tmp_path / "t.csv")
    (tmp_path / "latin.csv").write_bytes("image,label\nä,b\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        read_cases(data=tmp_path / "latin.csv")


def test_a_decathlon_task_is_read_by_its_list(tmp_path):
    for name in ("imagesTr/la_1.nii.gz", "labelsTr/la_1.nii.gz", "imagesTr/._la_1.nii.gz"):
        scan(tmp_path / name)
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "left atrium"},
        "training": [
            {"image": "./imagesTr/la_1.nii.gz", "label": "./labelsTr/la_1.nii.gz"},
            {"image": "./imagesTr/gone.nii.gz", "label": "./labelsTr/la_1.nii.gz"},
            {"image": "../outside.nii.gz", "label": "./labelsTr/la_1.nii.gz"},
            "odd",
        ],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for place in (tmp_path, tmp_path / "dataset.json"):
        data = read_cases(data=place)
        assert data.layout == "msd"
        assert data.modalities == ("MR",)
        assert data.classes == {0: "background", 1: "left atrium"}
        assert [case.id for case in data.cases] == ["la_1"]
        for part in ("gone.nii.gz", "outside.nii.gz", "entry 3"):
            assert part in told(data)


@pytest.mark.parametrize("version", [1, 2])
def test_an_nnunet_folder_is_read_with_its_channels_and_test_part(tmp_path, version):
    for name in (
        *("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"),
        *("imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"),
        *("imagesTs/t_0000.nii.gz", "imagesTs/t_0001.nii.gz", "labelsTs/t.nii.gz"),
    ):
        scan(tmp_path / name)
    names = {"0": "T1w", "1": "CT"}
    content = (
        {"modality": names, "labels": {"0": "background", "1": "tumor"}}
        if version == 1
        else {"channel_names": names, "labels": {"background": 0, "tumor": 1}}
    )
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    data = read_cases(data=tmp_path)
    assert data.layout == "nnunet"
    assert data.modalities == ("MR", "CT")
    assert data.classes == {0: "background", 1: "tumor"}
    assert [(c.id, c.split, len(c.images)) for c in data.cases] == [
        ("a", None, 2),
        ("t", "test", 2),
    ]
    assert "channel 0001" in told(data)


def test_a_bids_tree_has_sessions_of_a_subject(tmp_path):
    for subject, session in (("01", "1"), ("01", "2"), ("02", "1")):
        place = f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}"
        scan(tmp_path / f"{place}_T1w.nii.gz")
        scan(tmp_path / "derivatives" / "hand" / f"{place}_dseg.nii.gz")
    data = read_cases(data=tmp_path, modality="MR")
    assert [(c.id, c.subject) for c in data.cases] == [
        ("sub-01_ses-1", "sub-01"),
        ("sub-01_ses-2", "sub-01"),
        ("sub-02_ses-1", "sub-02"),
    ]
    (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-01\tAD\nsub-02\tNC\n")
    data = read_cases(data=tmp_path, task="classification")
    assert [case.target for case in data.cases] == ["AD", "AD", "NC"]


def test_a_case_named_twice_or_a_scan_in_two_cases_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("id,image,class\na,x.nii.gz,1\na,y.nii.gz,2\nb,x.nii.gz,1\n")
    text = told(read_cases(data=tmp_path / "t.csv"))
    assert "a: Expected each case once, got 2" in text
    assert "x.nii.gz: Expected each scan in one case, got it in 2" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of the two ways"),
        ({"images": "here", "data": "here"}, "one of the two ways"),
        ({"data": "nowhere"}, "no such file"),
        ({"data": "here"}, "Expected a CSV"),
        ({"images": "here"}, "folder of scans for each class"),
        ({"data": "here", "labels": "here"}, "only together with images"),
    ],
)
def test_what_is_no_data_set_is_refused_with_the_layouts_named(tmp_path, options, message):
    (tmp_path / "here").mkdir()
    with pytest.raises(ConfigError, match=message):
        read_cases(**{name: tmp_path / value for name, value in options.items()})


def test_names_that_the_user_gives_go_before_those_of_the_set(tmp_path):
    scan(tmp_path / "images" / "a.nii.gz")
    scan(tmp_path / "labels" / "a.nii.gz")
    folders = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    assert read_cases(**folders).classes is None
    assert read_cases(**folders, label_names={1: "liver"}).classes == {1: "liver"}
    with pytest.raises(ConfigError, match="modality CT, MR, auto"):
        read_cases(**folders, modality="PET")
