"""Readers, splits and Table I, II: on small corpora in their real layouts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_corpora

from training.corpora import CORPORA, CorpusWarning, get_corpus, luna16
from training.corpora.__main__ import main
from training.corpora.case import Case
from training.corpora.checks import inspect, read_grid
from training.corpora.paper import SPLIT_SIZES, TABLE_1, TABLE_2
from training.corpora.splits import (
    SPLIT_SEED,
    Split,
    evaluation_cases,
    fine_tuning_cases,
    pretraining_cases,
    refuse_leak,
    split,
)
from universal_model_hub.errors import ConfigError, VolumeError
from universal_model_hub.volume import load_volume

# The splits that every run uses: a change here is a change of every benchmark.
STORED = {
    "adni": "13c774327132",
    "brats2018": "a1d05cb24482",
    "lits2017": "f46933d05e6a",
    "luna16": "0e4e4c3dac95",
    "mmwhs": "65ee0c1799ef",
    "msd_heart": "fad83065a59a",
}
NAMES = sorted(tiny_corpora.WRITERS)


@pytest.fixture(params=NAMES)
def corpus_folder(request, tmp_path: Path) -> tuple[str, Path]:
    return request.param, tiny_corpora.WRITERS[request.param](tmp_path)


def full_corpus(name: str) -> list[Case]:
    """Cases of the paper's numbers, without files."""

    def case(subject: str, group: str = "", sequence: str = "") -> Case:
        return Case(
            corpus=name,
            subject=subject,
            id=f"{subject}{sequence}",
            modality="MR",
            volume=Path(f"{subject}{sequence}"),
            group=group,
            sequence=sequence,
        )

    if name == "luna16":
        sizes = [89] * 8 + [88] * 2  # 888 volumes
        return [case(f"{s}.{n}", f"subset{s}") for s, size in enumerate(sizes) for n in range(size)]
    if name == "lits2017":
        return [case(str(number)) for number in range(131)]
    if name == "brats2018":
        grades = ["HGG"] * 210 + ["LGG"] * 75
        sequences = ("t1", "t1ce", "t2", "flair")
        return [case(f"p{n}", g, s) for n, g in enumerate(grades) for s in sequences]
    if name == "msd_heart":
        return [case(f"la_{n:03}", "train" if n < 20 else "test") for n in range(30)]
    if name == "mmwhs":
        return [case(f"{m}{n}", m) for m in ("CT", "MR") for n in range(20)]
    return [case(f"s{n}", "AD" if n < 47 else "NC") for n in range(103)]


def test_table_1_counts():
    totals = {name: sum(row.totals) for name, row in TABLE_1.items()}

    assert totals == {
        "luna16": 39_872,
        "lits2017": 14_208,
        "brats2018": 48_640,
        "msd_heart": 3_840,
    }
    assert TABLE_1["luna16"].totals == (19_936, 9_968, 9_968)
    assert TABLE_1["lits2017"].totals == (7_104, 3_552, 3_552)
    assert TABLE_1["brats2018"].totals == (24_320, 12_160, 12_160)
    assert TABLE_1["msd_heart"].totals == (1_920, 960, 960)
    assert sum(totals.values()) == 106_560


def test_table_1_volumes_are_the_training_side_of_the_splits():
    sequences = {"brats2018": 4}

    for name, row in TABLE_1.items():
        train = sum(size.train for size in SPLIT_SIZES[name].values())
        assert row.volumes == train * sequences.get(name, 1)


@pytest.mark.parametrize(
    ("name", "train", "test", "left_out"),
    [
        ("luna16", 623, 265, ()),
        ("lits2017", 111, 19, ("130",)),
        ("brats2018", 190, 95, ()),
        ("msd_heart", 30, 0, ()),
        ("mmwhs", 32, 8, ()),
        ("adni", 82, 21, ()),
    ],
)
def test_splits_have_the_papers_sizes(name, train, test, left_out):
    parts = split(name, full_corpus(name))

    assert (len(parts.train), len(parts.test), parts.left_out) == (train, test, left_out)
    assert not set(parts.train) & set(parts.test)


def test_splits_are_stratified():
    brats, adni = full_corpus("brats2018"), full_corpus("adni")
    mmwhs = split("mmwhs", full_corpus("mmwhs"))

    hgg = {case.subject for case in brats if case.group == "HGG"}
    assert len(hgg & set(split("brats2018", brats).test)) == 70
    ad = {case.subject for case in adni if case.group == "AD"}
    assert len(ad & set(split("adni", adni).test)) == 10
    assert sum(subject.startswith("CT") for subject in mmwhs.test) == 4


@pytest.mark.parametrize("name", NAMES)
def test_split_does_not_depend_on_the_order_of_cases(name):
    cases = full_corpus(name)

    assert split(name, cases[::-1]) == split(name, cases)
    assert split(name, cases).sha256 == split(name, cases[::-1]).sha256


def test_split_changes_with_the_seed_and_little_with_one_subject_less():
    cases = full_corpus("brats2018")
    parts = split("brats2018", cases)

    assert split("brats2018", cases, seed=SPLIT_SEED + 1).test != parts.test
    fewer = split("brats2018", [case for case in cases if case.subject != parts.test[0]])
    assert len(set(fewer.test) ^ set(parts.test)) <= 2


def test_stored_seed_gives_the_stored_split():
    hashes = {name: split(name, full_corpus(name)).sha256[:12] for name in NAMES}

    assert hashes == STORED


def test_split_survives_json_and_shows_tampering():
    parts = split("adni", full_corpus("adni"))
    stored = json.loads(json.dumps(parts.to_json()))

    assert Split.from_json(stored) == parts
    stored["test"] = stored["test"][1:]
    with pytest.raises(ConfigError, match="changed by hand"):
        Split.from_json(stored)


def test_reader_lists_loads_and_finds_nothing_wrong(corpus_folder):
    name, folder = corpus_folder
    corpus = CORPORA[name]
    cases = corpus.cases(folder)

    assert cases
    assert [case.id for case in cases] == sorted({case.id for case in cases})
    assert all(case.corpus == name and case.modality in corpus.modalities for case in cases)
    volume = corpus.load(cases[0])
    assert volume.shape == (tiny_corpora.SIDE,) * 3
    assert inspect(corpus, folder).findings == ()


def test_labels_lie_on_the_volume_and_keep_their_values(corpus_folder):
    name, folder = corpus_folder
    corpus = CORPORA[name]
    case = next((case for case in corpus.cases(folder) if case.labels), None)
    if case is None:  # these corpora label places or whole volumes
        assert name in ("luna16", "adni")
        return

    labels = corpus.load_labels(case)
    assert np.array_equal(labels.affine, corpus.load(case).affine)
    assert set(np.unique(labels.array)) <= set(corpus.label_names)


def test_train_and_test_never_share_a_subject(corpus_folder):
    name, folder = corpus_folder
    cases = CORPORA[name].cases(folder)
    parts = split(name, cases)
    train, test = parts.of(cases, "train"), parts.of(cases, "test")

    refuse_leak(train, test)
    assert {case.id for case in train} | {case.id for case in test} == {case.id for case in cases}


def test_table_2_is_enforced(corpus_folder):
    name, folder = corpus_folder
    usage = TABLE_2[name]
    stages = (
        (pretraining_cases, usage.pretraining),
        (fine_tuning_cases, usage.fine_tuning),
        (evaluation_cases, usage.test),
    )

    for cases_of, allowed in stages:
        if allowed:
            assert cases_of(name, folder)
        else:
            with pytest.raises(ConfigError, match="Table II"):
                cases_of(name, folder)


def test_pretraining_never_sees_what_a_target_task_tests_on(corpus_folder):
    name, folder = corpus_folder
    if not (TABLE_2[name].pretraining and TABLE_2[name].test):
        return

    tested = {case.subject for case in evaluation_cases(name, folder)}
    seen = {case.subject for case in pretraining_cases(name, folder)}
    assert tested
    assert not tested & seen


def test_refuse_leak_finds_a_shared_subject_and_a_shared_file():
    one, other = full_corpus("adni")[:2]

    refuse_leak([one], [other])
    with pytest.raises(ConfigError, match="adni s0"):
        refuse_leak([one], [replace(other, subject=one.subject)])
    with pytest.raises(ConfigError, match="common subject"):
        refuse_leak([one], [replace(other, corpus="copy", volume=one.volume)])


def test_fine_tuning_uses_the_train_set_of_pretraining(tmp_path):
    folder = tiny_corpora.brats2018(tmp_path)

    assert fine_tuning_cases("brats2018", folder) == pretraining_cases("brats2018", folder)


@pytest.mark.parametrize("mirrored", [False, True])
def test_header_and_volume_agree_on_the_grid(tmp_path, mirrored):
    path = tiny_corpora.mhd(tmp_path / "a.mhd", tiny_corpora.ct(), mirrored=mirrored)

    grid, volume = read_grid(path), load_volume(path)
    assert grid.shape == volume.shape
    np.testing.assert_allclose(grid.affine, volume.affine, atol=1e-9)


def test_candidates_land_on_their_voxels_mirrored_or_not(tmp_path):
    table = luna16.candidates(tiny_corpora.luna16(tmp_path))

    assert table.version == "V2"
    expected = np.where(table.positive[:, None], (2, 3, 4), (6, 5, 1))
    np.testing.assert_allclose(table.voxel, expected, atol=1e-6)
    assert table.positive.sum() == 10
    assert len(table.of(["1.2.3"]).series) == 2


def test_candidate_world_is_ras_mm(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    table = luna16.candidates(folder).of(["1.2.1"])
    affine = luna16.load(luna16.survey(folder).cases[1]).affine

    np.testing.assert_allclose(table.voxel @ affine[:3, :3].T + affine[:3, 3], table.world)


def test_nodules_are_read_in_ras_mm(tmp_path):
    series, world, diameter = luna16.nodules(tiny_corpora.luna16(tmp_path))

    assert (series[0], diameter[0]) == ("1.2.0", 6.5)
    np.testing.assert_allclose(world[0], (4, 4.5, 1))  # LPS (-4, -4.5, 1)


def test_ct_padding_is_raised_to_air(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    array = tiny_corpora.ct()
    array[0] = -2000
    tiny_corpora.mhd(folder / "subset0" / "1.2.0.mhd", array)

    assert luna16.load(luna16.survey(folder).cases[0]).array.min() == -1024


def test_labels_of_corpora_without_label_volumes_say_where_they_are(tmp_path):
    for name in ("luna16", "adni"):
        folder = tiny_corpora.WRITERS[name](tmp_path / name)
        with pytest.raises(ConfigError, match="Use "):
            CORPORA[name].load_labels(CORPORA[name].cases(folder)[0])


def test_msd_test_volumes_have_no_labels(tmp_path):
    cases = CORPORA["msd_heart"].cases(tiny_corpora.msd_heart(tmp_path))
    test = [case for case in cases if case.group == "test"]

    assert len(test) == 2
    assert all(case.labels is None for case in test)
    with pytest.raises(ConfigError, match="test volume"):
        CORPORA["msd_heart"].load_labels(test[0])


def test_empty_folder_names_the_layout(tmp_path):
    for name in NAMES:
        with pytest.raises(ConfigError, match="layout"):
            CORPORA[name].cases(tmp_path)


def test_unknown_corpus_lists_the_known_ones():
    with pytest.raises(ConfigError, match="luna16, lits2017"):
        get_corpus("luna")


def test_check_command_on_a_clean_corpus(corpus_folder, capsys):
    name, folder = corpus_folder

    assert main(["check", name, str(folder)]) == 0
    text = capsys.readouterr().out
    assert "There" in text
    assert "Used" in text
    assert "  none" in text


def test_check_command_json_counts_the_cases(tmp_path, capsys):
    folder = tiny_corpora.brats2018(tmp_path)

    assert main(["check", "brats2018", str(folder), "--json", "--fast"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["there"]["cases"] == 24
    assert report["used"]["train_cases"] == 16  # 2 of 3 patients of each grade, 4 volumes each
    assert report["used"]["test_subjects"] == 2
    assert report["voxels_checked"] is False
    assert Split.from_json(report["split"]).corpus == "brats2018"


def test_split_command_writes_what_the_library_returns(tmp_path, capsys):
    folder = tiny_corpora.adni(tmp_path / "adni")
    out = tmp_path / "split.json"

    assert main(["split", "adni", str(folder), "-o", str(out)]) == 0
    stored = Split.from_json(json.loads(out.read_text()))
    assert stored == split("adni", CORPORA["adni"].cases(folder))
    assert main(["split", "adni", str(folder), "-o", str(out)]) == 2
    assert "--force" in capsys.readouterr().err


def test_outside_candidates_are_refused_or_dropped(tmp_path):
    folder = tiny_corpora.luna16(tmp_path)
    with (folder / "candidates_V2.csv").open("a") as stream:
        stream.write("1.2.0,500,500,500,0\n")

    with pytest.raises(VolumeError, match=r"1 outside.*1\.2\.0"):
        luna16.candidates(folder)
    with pytest.warns(CorpusWarning, match="dropped"):
        assert len(luna16.candidates(folder, beyond="drop").series) == 20
