"""Five layouts of a user's data become the same cases; what is odd is told, not dropped."""

import json
from pathlib import Path

import numpy as np
import pytest

from universal_model_hub import Volume, save_volume
from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.layouts import read_cases


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
    assert "both_seg.nii.gz: Expected one label map of both, got two: both.nii.gz" in text
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
    table.write_text(
        "image,class,split\na.nii.gz,x,\n\n\nb.nii.gz,,\nc.nii.gz,y,holdout\nd,1.nii.gz,y,train\n"
    )
    data = read_cases(data=table)
    assert len(data.cases) == 1
    assert "line 5: Expected a value of class" in told(data)
    assert "line 6: Expected a split of" in told(data)
    assert "line 7: Expected as many fields as the header has, got 1 more" in told(data)


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
            {"image": "./imagesTr/._la_1.nii.gz", "label": "./labelsTr/._la_1.nii.gz"},
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
        assert [case.id for case in data.cases] == ["la_1", "gone"]
        for part in ("gone.nii.gz: Expected a scan, got no such file", "outside.nii.gz", "entry 4"):
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
    assert "imagesTr/b: Expected channel 0001 of this case" in told(data)


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


def test_numbers_are_part_of_a_name_where_label_maps_have_them_too(tmp_path):
    for name in ("p_0001.nii.gz", "p_0002.nii.gz", "q_0007_0000.nii.gz", "q_0007_0001.nii.gz"):
        scan(tmp_path / "images" / name)
    for name in ("p_0001.nii.gz", "p_0002_seg.nii.gz", "q_0007.nii.gz"):
        scan(tmp_path / "labels" / name)
    data = read_cases(images=tmp_path / "images", labels=tmp_path / "labels")
    assert [(c.id, len(c.images)) for c in data.cases] == [
        ("p_0001", 1),
        ("p_0002", 1),
        ("q_0007", 2),
    ]


def test_numbers_in_class_folders_are_channels_only_from_0000_on(tmp_path):
    for name in ("a/p_0001", "a/p_0002", "b/p_0003"):
        scan(tmp_path / "numbered" / f"{name}.nii.gz")
    for name in ("a/p_0000", "a/p_0001", "b/q_0000", "b/q_0001", "b/r_0001"):
        scan(tmp_path / "channels" / f"{name}.nii.gz")
    data = read_cases(images=tmp_path / "numbered")
    assert [c.id for c in data.cases] == ["a/p_0001", "a/p_0002", "b/p_0003"]
    data = read_cases(images=tmp_path / "channels")
    assert [(c.id, len(c.images)) for c in data.cases] == [("a/p", 2), ("b/q", 2), ("b/r", 1)]
    assert "b/r: Expected channels from 0000 on, 0000 is missing" in told(data)


def test_two_files_of_one_name_are_told_and_neither_replaces_the_other_silently(tmp_path):
    for name in ("images/a.nii", "images/a.nii.gz", "labels/a.nii.gz"):
        scan(tmp_path / name)
    data = read_cases(images=tmp_path / "images", labels=tmp_path / "labels")
    assert "images/a.nii.gz: Expected one scan of this name, got a.nii too" in told(data)


def test_scans_and_label_maps_may_lie_in_one_folder(tmp_path):
    for name in ("a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "b-label.nii.gz"):
        scan(tmp_path / name)
    data = read_cases(images=tmp_path, labels=tmp_path)
    assert [(c.id, c.images[0].name, c.labels.name) for c in data.cases] == [
        ("a", "a.nii.gz", "a_seg.nii.gz"),
        ("b", "b.nii.gz", "b-label.nii.gz"),
    ]
    assert not data.findings


def test_a_folder_of_slices_is_a_scan_and_other_folders_are_told(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.dcm").write_bytes(b"slice")
    scan(tmp_path / "images" / "deeper" / "b.nii.gz")
    scan(tmp_path / "labels" / "a.nii.gz")
    data = read_cases(images=tmp_path / "images", labels=tmp_path / "labels")
    assert [c.images for c in data.cases] == [(tmp_path / "images" / "a",)]
    assert "warning" in told(data)
    assert "deeper: Expected scans, got a folder" in told(data)


def test_links_that_lead_in_a_circle_and_missing_files_are_told(tmp_path):
    scan(tmp_path / "good.nii.gz")
    (tmp_path / "x.nii.gz").symlink_to("y.nii.gz")
    (tmp_path / "y.nii.gz").symlink_to("x.nii.gz")
    (tmp_path / "t.csv").write_text("image,class\ngood.nii.gz,1\nx.nii.gz,2\ngone.nii.gz,2\n")
    text = told(read_cases(data=tmp_path / "t.csv"))
    assert "x.nii.gz: Expected a scan, got a link that leads nowhere or in a circle" in text
    assert "gone.nii.gz: Expected a scan, got no such file" in text
    assert "good.nii.gz" not in text


@pytest.mark.parametrize("odd", ["x" * 5000, "a\0b", "..", "."])
def test_a_field_that_can_be_no_path_is_told(tmp_path, odd):
    scan(tmp_path / "good.nii.gz")
    (tmp_path / "t.csv").write_text(f"image,class\ngood.nii.gz,1\n{odd},2\n")
    data = read_cases(data=tmp_path / "t.csv")
    assert len(data.cases) == 2
    if odd not in ("..", "."):
        assert "Expected a scan, got no such file" in told(data)


def test_a_scan_that_a_link_gives_another_name_is_found_in_two_cases(tmp_path):
    scan(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("a.nii.gz")
    (tmp_path / "t.csv").write_text("image,class\na.nii.gz,1\nb.nii.gz,2\n")
    assert "a.nii.gz: Expected each scan in one case, got it in 2" in told(
        read_cases(data=tmp_path / "t.csv")
    )


def test_one_file_for_two_channels_or_as_scan_and_label_map_is_told(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz", "m.nii.gz"):
        scan(tmp_path / name)
    table = "image_1,image_2,label\na.nii.gz,a.nii.gz,m.nii.gz\nb.nii.gz,c.nii.gz,c.nii.gz\n"
    (tmp_path / "t.csv").write_text(table)
    text = told(read_cases(data=tmp_path / "t.csv"))
    assert "a.nii.gz: Expected each channel in a file of its own" in text
    assert "c.nii.gz: Expected a scan or a label map, got this file as both" in text
    (tmp_path / "t.csv").write_text("image,label\na.nii.gz,m.nii.gz\nb.nii.gz,m.nii.gz\n")
    text = told(read_cases(data=tmp_path / "t.csv"))
    assert "warning" in text
    assert "m.nii.gz: This label map is in 2 cases" in text


def test_a_set_without_a_case_is_refused_and_says_why(tmp_path):
    (tmp_path / "images").mkdir()
    scan(tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(ConfigError, match=r"Expected cases .* got none.*a\.nii\.gz"):
        read_cases(images=tmp_path / "images", labels=tmp_path / "labels")


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("p1_ses-2", "p1"),
        ("p1-visit2", "p1"),
        ("p1_tp_1_T1", "p1"),
        ("sub-01_run-2_T1w", "sub-01"),
        ("liver_sesame", "liver_sesame"),
        ("old_visitor", "old_visitor"),
        ("case_7", "case_7"),
    ],
)
def test_visits_are_recognized_by_a_clear_ending(tmp_path, name, subject):
    scan(tmp_path / "images" / f"{name}.nii.gz")
    scan(tmp_path / "labels" / f"{name}.nii.gz")
    (case,) = read_cases(images=tmp_path / "images", labels=tmp_path / "labels").cases
    assert case.subject == subject


def test_visits_in_folders_of_two_classes_are_of_one_subject(tmp_path):
    for name in ("ill/p1_ses-2", "well/p1_ses-1", "ill/other", "well/other"):
        scan(tmp_path / f"{name}.nii.gz")
    subjects = {c.id: c.subject for c in read_cases(images=tmp_path).cases}
    assert subjects["ill/p1_ses-2"] == subjects["well/p1_ses-1"] == "p1"
    assert subjects["ill/other"] != subjects["well/other"]


def test_an_nnunet_folder_tells_strays_an_ignored_label_and_another_kind_of_file(tmp_path):
    for name in ("imagesTr/a_0000", "imagesTr/b_0000", "imagesTr/b_0001", "imagesTr/stray"):
        scan(tmp_path / f"{name}.nii.gz")
    for name in ("labelsTr/a", "labelsTr/b", "labelsTr/nobody"):
        scan(tmp_path / f"{name}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1, "ignore": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    text = told(read_cases(data=tmp_path))
    assert "stray.nii.gz: Expected the number of a channel" in text
    assert "b_0001.nii.gz: Expected 1 channels as dataset.json names" in text
    assert "nobody.nii.gz: Expected scans of it in imagesTr" in text
    assert "dataset.json: Expected no label 'ignore'" in text
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"file_ending": ".png"}))
    with pytest.raises(ConfigError, match="file_ending"):
        read_cases(data=tmp_path)


def test_decathlon_files_with_several_channels_get_advice(tmp_path):
    for name in ("imagesTr/b_1.nii.gz", "labelsTr/b_1.nii.gz"):
        scan(tmp_path / name)
    content = {
        "modality": {"0": "FLAIR", "1": "T1w"},
        "training": [{"image": "imagesTr/b_1.nii.gz", "label": "labelsTr/b_1.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert "2 channels (FLAIR, T1w). Files with several (4D) have to be split" in told(
        read_cases(data=tmp_path)
    )
    with pytest.raises(ConfigError, match="Expected segmentation"):
        read_cases(data=tmp_path, task="classification")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ConfigError, match=r"dataset\.json: Expected JSON"):
        read_cases(data=tmp_path)


def test_bids_channels_are_the_sequences_that_most_sessions_have(tmp_path):
    for subject, ends in (
        ("01", ("T1w", "FLAIR")),
        ("02", ("FLAIR", "T1w", "T2w")),
        ("03", ("T1w",)),
        ("04", ("run-1_T1w", "run-2_T1w", "FLAIR")),
    ):
        for end in ends:
            scan(tmp_path / f"sub-{subject}/anat/sub-{subject}_{end}.nii.gz")
        scan(tmp_path / f"derivatives/h/sub-{subject}/anat/sub-{subject}_dseg.nii.gz")
        scan(tmp_path / f"derivatives/h/sub-{subject}/anat/sub-{subject}_desc-brain_mask.nii.gz")
    scan(tmp_path / "derivatives/h/sub-01/anat/._sub-01_dseg.nii.gz")
    scan(tmp_path / "derivatives/h/sub-02/anat/sub-02_desc-b_dseg.nii.gz")
    scan(tmp_path / "derivatives/h/sub-09/anat/sub-09_dseg.nii.gz")
    data = read_cases(data=tmp_path)
    assert [[p.name for p in c.images] for c in data.cases] == [
        ["sub-01_FLAIR.nii.gz", "sub-01_T1w.nii.gz"],
        ["sub-02_FLAIR.nii.gz", "sub-02_T1w.nii.gz"],
        ["sub-04_FLAIR.nii.gz", "sub-04_run-1_T1w.nii.gz"],
    ]
    assert data.cases[0].labels.name == "sub-01_dseg.nii.gz"
    assert data.modalities == ("MR", "MR")
    text = told(data)
    assert "sub-02_T2w.nii.gz: Most sessions have no T2w" in text
    assert "sub-03/anat: Expected FLAIR of sub-03" in text
    assert "sub-04_run-2_T1w.nii.gz: Expected one T1w of sub-04" in text
    assert "sub-02_dseg.nii.gz: Expected one label map of sub-02" in text
    assert "sub-09_dseg.nii.gz: Expected a scan of sub-09" in text


def test_subjects_without_a_class_are_told(tmp_path):
    for subject in ("01", "02", "03"):
        scan(tmp_path / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz")
    table = "participant_id\tage\tdiagnosis\nsub-01\t70\tAD\nsub-02\t71\tn/a\n"
    (tmp_path / "participants.tsv").write_text(table)
    data = read_cases(data=tmp_path)
    assert [(c.id, c.target) for c in data.cases] == [("sub-01", "AD")]
    assert "sub-02: Expected a class of sub-02 in participants.tsv" in told(data)
    assert "sub-03: Expected a class of sub-03 in participants.tsv" in told(data)


def test_a_decathlon_list_with_numbered_names_is_no_nnunet_folder(tmp_path):
    for name in ("imagesTr/p_0000", "imagesTr/p_0001", "labelsTr/p_0000", "labelsTr/p_0001"):
        scan(tmp_path / f"{name}.nii.gz")

    def described(names):
        pairs = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names]
        (tmp_path / "dataset.json").write_text(json.dumps({"training": pairs}))
        return read_cases(data=tmp_path)

    data = described(["p_0000", "p_0001"])
    assert (data.layout, [c.id for c in data.cases]) == ("msd", ["p_0000", "p_0001"])
    scan(tmp_path / "labelsTr" / "p.nii.gz")
    data = described(["p"])  # nnU-Net 1 lists the case, not its channels
    assert (data.layout, [len(c.images) for c in data.cases]) == ("nnunet", [2])
