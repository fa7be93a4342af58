"""Probes of frozen encoders: what they find, what they must not, and how results are kept."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny_corpora
import torch

from training.benchmark import probing, stages
from training.benchmark.bench import Bench, make_bench
from training.benchmark.part import Part
from training.benchmark.plan import load_plan
from training.benchmark.pool import Outcome
from training.benchmark.probing import Probe, arm, embedded, hand_made, probes, run_probe
from training.benchmark.probing_cubes import (
    CubeSet,
    ProbeSettings,
    centered_cubes,
    chosen_cases,
    cut_case,
    cuts,
    drawn_cube,
    probe_settings,
    read_cubes,
    roomy,
)
from training.benchmark.probing_questions import Question, ask, halves, questions
from training.benchmark.sources import open_source
from training.corpora.case import Case
from universal_model_hub.errors import CheckpointError
from universal_model_hub.files import parse_json
from universal_model_hub.preprocess import Preprocessing
from universal_model_hub.probe.encoding import QUANTILES

SETTINGS = ProbeSettings(preprocessing=Preprocessing(spacing=None), cube=(4, 4, 4))
TEST_SETS = (("luna16", "CT"), ("mmwhs", "CT"), ("mmwhs", "MR"), ("brats2018", "MR"))
CUBES = 4  # of a made-up scan


def case(corpus: str, modality: str, number: int, label_class: str | None = None) -> Case:
    name = f"{modality}{number}"
    return Case(
        corpus=corpus, subject=name, id=name, modality=modality, volume=Path(name),
        label_class=label_class,
    )  # fmt: skip


def cube_set(cases: list[Case]) -> CubeSet:
    """Cubes at any place, without voxels: only their scans matter."""
    scan = np.repeat(np.arange(len(cases)), CUBES)
    count = len(scan)
    return CubeSet(
        np.zeros((count, 1, 1, 1), np.float16),
        scan,
        np.full(count, ""),
        np.zeros(count, np.int64),
        tuple(cases),
    )


@pytest.fixture(scope="module")
def made_up() -> CubeSet:
    return cube_set([case(name, mod, n) for name, mod in TEST_SETS for n in range(8)])


def planted(cubes: CubeSet, tells) -> np.ndarray:
    """Features (P, 3): noise, and in the first one what ``tells`` says of a scan."""
    features = np.random.default_rng(1).normal(size=(len(cubes.scan), 3))
    features[:, 0] += [10.0 * tells(cubes.cases[number]) for number in cubes.scan]
    return features.astype(np.float32)


def auc_of(features: np.ndarray, cubes: CubeSet, name: str, classifier: str = "linear") -> float:
    asked, _ = questions(features, cubes, [])
    return ask(asked[name], SETTINGS)["classifiers"][classifier]["auc"]["mean"]


@pytest.mark.parametrize("classifier", ["linear", "knn"])
def test_features_that_leak_the_modality_are_found_out(made_up, classifier):
    features = planted(made_up, lambda scan: scan.modality == "CT")
    for name in ("modality", "modality_same_anatomy"):
        assert auc_of(features, made_up, name, classifier) > 0.97


@pytest.mark.parametrize("classifier", ["linear", "knn"])
def test_constant_features_tell_nothing(made_up, classifier):
    features = np.ones((len(made_up.scan), 6), np.float32)
    asked, skipped = questions(features, made_up, [])
    assert set(asked) == {"modality", "modality_same_anatomy", "anatomy"}
    assert not skipped
    for question in asked.values():
        found = ask(question, SETTINGS)["classifiers"][classifier]
        assert found["auc"]["values"] == [0.5] * SETTINGS.splits
        assert found["balanced_accuracy"]["mean"] == pytest.approx(1 / len(question.names))


def test_the_same_anatomy_keeps_the_region_from_passing_for_the_modality(made_up):
    chest = planted(made_up, lambda scan: {"luna16": 1, "mmwhs": 0}.get(scan.corpus, -1))
    assert auc_of(chest, made_up, "anatomy") > 0.98
    assert auc_of(chest, made_up, "modality") > 0.8  # chests are CT, brains are MR
    assert 0.3 < auc_of(chest, made_up, "modality_same_anatomy") < 0.7


def test_what_marks_single_subjects_is_of_no_use_for_others(made_up):
    """One-hot subjects: cubes of a subject on both sides would be recognized."""
    features = np.eye(len(made_up.cases), dtype=np.float32)[made_up.scan]
    asked, _ = questions(features, made_up, [])
    found = ask(asked["modality"], SETTINGS)["classifiers"]
    assert 0.4 <= found["linear"]["auc"]["mean"] <= 0.6


def test_no_subject_is_on_both_sides_and_both_have_every_class_of_every_corpus(made_up):
    asked, _ = questions(np.zeros((len(made_up.scan), 1), np.float32), made_up, [])
    sides = set()
    for question in asked.values():
        for number in range(5):
            fitted, scored = halves(question, np.random.default_rng(number))
            assert not set(question.subjects[fitted]) & set(question.subjects[scored])
            assert len(fitted) + len(scored) == len(question.classes)
            counts = [
                Counter((s.split("/")[0], int(c)) for s, c in {*zip(*pair, strict=True)})
                for pair in (
                    (question.subjects[rows], question.classes[rows]) for rows in (fitted, scored)
                )
            ]
            assert counts[0] == counts[1]  # 8 subjects of each kind
            sides.add(fitted.tobytes())
    assert len(sides) > 5


def test_the_same_seed_gives_the_same_answer(made_up):
    asked, _ = questions(planted(made_up, lambda scan: 0.1 * (scan.modality == "CT")), made_up, [])
    first, second = (ask(asked["modality"], SETTINGS) for _ in range(2))
    assert first == second
    values = first["classifiers"]["linear"]["auc"]["values"]
    assert first["classifiers"]["linear"]["auc"]["sd"] == pytest.approx(np.std(values, ddof=1))


def test_classes_of_one_subject_are_left_out_and_said():
    cubes = cube_set(
        [case("luna16", "CT", n) for n in range(3)]
        + [case("brats2018", "MR", n) for n in range(2)]
        + [case("mmwhs", modality, 0) for modality in ("CT", "MR")]
        + [case("lits2017", "CT", 9)]
    )
    asked, skipped = questions(np.zeros((len(cubes.scan), 1), np.float32), cubes, ["bts", "adc"])
    assert set(asked) == {"modality", "anatomy"}
    assert asked["anatomy"].names == ("brain", "chest", "heart")  # an abdomen alone
    assert not np.isin("lits2017/CT9", asked["anatomy"].subjects)
    assert "CT 1, MR 1" in skipped["modality_same_anatomy"]
    assert set(skipped) == {"modality_same_anatomy", "foreground_bts", "adc"}


def test_the_diagnosis_is_asked_of_the_mean_of_a_scan():
    cases = [case("adni", "MR", n, "AD" if n % 2 else "NC") for n in range(12)]
    cubes = cube_set(cases)
    features = planted(cubes, lambda scan: scan.label_class == "AD")
    asked, _ = questions(features, cubes, ["adc"])
    question = asked["adc"]
    assert question.names == ("NC", "AD")
    assert question.features.shape == (12, 3)
    np.testing.assert_allclose(question.features[3], features[12:16].mean(axis=0), rtol=1e-6)
    found = ask(question, SETTINGS)
    assert (found["n_cubes"], found["n_subjects"]) == (48, 12)
    assert found["classifiers"]["linear"]["auc"]["mean"] > 0.98


def test_centers_are_foreground_or_not_as_said():
    labels = np.zeros((12, 12, 12), np.float32)
    labels[3:6, 5:8, 0:9] = 1
    elsewhere, inside = centered_cubes(labels, labels > 0, SETTINGS, -1.0, np.random.default_rng(0))
    assert [cube[2, 2, 2] for cube in inside] == [1] * 4
    assert [cube[2, 2, 2] for cube in elsewhere] == [0] * 4
    assert {cube.shape for cube in (*elsewhere, *inside)} == {(4, 4, 4)}
    at_border = np.zeros((12, 12, 12), np.float32)
    at_border[0] = 1  # no cube within the scan has its center there
    assert centered_cubes(at_border, at_border > 0, SETTINGS, -1.0, np.random.default_rng(0)) == (
        [],
        [],
    )


def test_cubes_avoid_air_and_small_scans_are_padded():
    image = np.zeros((40, 6, 6), np.float32)
    image[30:] = 0.5
    nowhere, rng = np.zeros(image.shape, bool), np.random.default_rng(0)
    airy = [
        np.mean(drawn_cube(image, nowhere, SETTINGS, 0.05, rng) <= 0.05) for _ in range(50)
    ]  # a cube in four is not air
    assert np.mean(np.array(airy) <= SETTINGS.air_share) > 0.95
    padded = roomy(np.ones((3, 4, 9)), (4, 4, 4))
    assert padded.shape == (4, 4, 9)
    assert padded.sum() == 3 * 4 * 9


def test_of_many_subjects_some_are_asked_of_each_kind():
    cases = [case("adni", "MR", n, "AD" if n < 60 else "NC") for n in range(70)]
    kept = chosen_cases(cases, SETTINGS)
    assert Counter(one.label_class for one in kept) == {"AD": 40, "NC": 10}
    assert kept == chosen_cases(cases, SETTINGS)


def test_hand_made_features_are_means_and_quantiles():
    x = torch.linspace(0, 1, 1000).reshape(1, 1, 10, 10, 10)
    found = hand_made(torch.cat([x, torch.full_like(x, 0.25)]))
    assert found.shape == (2, 6 + len(QUANTILES))
    np.testing.assert_allclose(found[0, 6:], QUANTILES, atol=1e-5)
    np.testing.assert_allclose(found[1], [0.25, 0.25, 0, 0.25, 0, 0, *[0.25] * 7], atol=1e-3)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    """Small hand-made sets in the real layouts; a row whose pre-training is not finished."""
    root = tmp_path_factory.mktemp("probes")
    tables = 'tables={table_4={rows=["scratch", "universal"], tasks=["las_ct", "adc"], trials=1}}'
    plan = load_plan(
        "benchmark_smoke",
        [tables, 'preprocessing.spacing="native"', "finetune.cube=[8, 8, 8]"],
    )
    work, out = root / "work", root / "out"
    for folder in (work / "checked", *(out / n for n in ("logs", "failed", "probes"))):
        folder.mkdir(parents=True)
    numbers = {"mmwhs": (10,), "adni": (10, 10)}
    sources = {}
    for name in plan.corpora():
        tiny_corpora.WRITERS[name](root / name, *numbers.get(name, ()))
        if name == "mmwhs":
            atrium = np.zeros((tiny_corpora.SIDE,) * 3, np.int16)
            atrium[4:6, 4:6, 4:6] = 420
            for path in (root / name).glob("*/*_label.nii.gz"):
                tiny_corpora.nifti(path, atrium)
        sources[name] = open_source(name, root / name, work)
    return make_bench(plan, sources, work, out)


@pytest.fixture(scope="module")
def cut_bench(bench) -> Bench:
    for job in cuts(bench):
        cut_case(job, "cpu")
    return bench


def test_only_test_subjects_are_asked_about_and_of_brats_flair(bench):
    found = cuts(bench)
    for job in found:
        parts = bench.sources[job.case.corpus].parts
        assert job.case.subject in parts.test
        assert job.case.subject not in parts.train
    kinds = {(job.case.corpus, job.case.modality) for job in found}
    assert {*TEST_SETS, ("adni", "MR")} <= kinds
    assert {job.case.sequence for job in found if job.case.corpus == "brats2018"} == {"flair"}
    assert len({job.file for job in found}) == len(found)


def test_cubes_of_scans_come_back_with_their_scans(cut_bench):
    settings, found = probe_settings(cut_bench), read_cubes(cuts(cut_bench))
    assert found.cubes.shape[1:] == settings.cube == (8, 8, 8)
    assert 0 <= found.cubes.min() <= found.cubes.max() <= 1
    anywhere = Counter(found.scan[found.task == ""].tolist())
    assert set(anywhere.values()) == {settings.cubes}
    assert len(anywhere) == len(found.cases)
    centered = [found.cases[n] for n in found.scan[found.task == "las_ct"]]
    assert {(one.corpus, one.modality) for one in centered} == {("mmwhs", "CT")}
    targets = found.target[found.task == "las_ct"]
    assert Counter(targets.tolist()) == {0: len(targets) // 2, 1: len(targets) // 2}
    assert not found.target[found.task == ""].any()


def test_a_probe_writes_what_it_found_and_a_second_call_does_nothing(cut_bench):
    probe = Probe(cut_bench, "random")
    assert not probe.is_finished
    run_probe(probe, "cpu")
    found = parse_json(probe.file.read_bytes())
    assert set(found) == {
        "version", "key", "row", "synthetic", "pretraining", "commit", "date", "hardware",
        "seconds", "settings", "questions", "skipped", "log",
    }  # fmt: skip
    assert (found["row"], found["key"], found["pretraining"]) == ("random", probe.key, None)
    assert set(found["questions"]) == {
        "modality", "modality_same_anatomy", "anatomy", "foreground_las_ct", "adc",
    }  # fmt: skip
    for question in found["questions"].values():
        assert set(question) == {"n_cubes", "n_subjects", "classes", "classifiers"}
        assert set(question["classifiers"]) == {"linear", "knn"}
        for metrics in question["classifiers"].values():
            assert set(metrics) == {"auc", "balanced_accuracy"}
            for spread in metrics.values():
                assert len(spread["values"]) == 5
                assert 0 <= spread["mean"] <= 1
    written = probe.file.stat().st_mtime_ns
    assert probe.is_finished
    run_probe(probe, "cpu")
    assert probe.file.stat().st_mtime_ns == written
    assert str(cut_bench.out) not in json.dumps(found)


def test_other_data_or_another_network_is_another_key(bench):
    probe = Probe(bench, "random")
    wider = dataclasses.replace(bench.plan, networks={"unet3d": {"width": 6}})
    luna = dataclasses.replace(bench.sources["luna16"], sha256="0" * 64)
    others = (
        dataclasses.replace(bench, plan=wider),
        dataclasses.replace(bench, sources={**bench.sources, "luna16": luna}),
    )
    assert len({probe.key, *(Probe(other, "random").key for other in others)}) == 3
    assert Probe(others[0], "handmade").key == Probe(bench, "handmade").key
    assert cuts(others[1])[0].file.parent != cuts(bench)[0].file.parent


def test_random_weights_are_settled_and_the_same_every_time(cut_bench):
    cubes = read_cubes(cuts(cut_bench)).cubes
    device = torch.device("cpu")
    probe = Probe(cut_bench, "random")
    one, two = (embedded(arm(probe, cubes, device), cubes[:20], device) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (20, 64)
    assert np.mean(one.std(axis=0) > 0) > 0.8  # units fire


def test_an_encoder_that_leaks_the_modality_is_found_out_in_its_file(cut_bench, monkeypatch):
    found = read_cubes(cuts(cut_bench))
    is_ct = [float(found.cases[number].modality == "CT") for number in found.scan]
    monkeypatch.setattr(
        probing, "probe_settings", lambda b: dataclasses.replace(probe_settings(b), splits=2)
    )
    for row, leaked in (("leaky", is_ct), ("silent", [0.0] * len(is_ct))):
        values = np.array(leaked, np.float32)[:, None]
        monkeypatch.setattr(probing, "embedded", lambda *_, values=values: values)
        monkeypatch.setattr(probing, "arm", lambda *_: None)
        run_probe(Probe(cut_bench, row), "cpu")
        asked = parse_json(Probe(cut_bench, row).file.read_bytes())["questions"]
        expected = 1.0 if row == "leaky" else 0.5
        for name in ("modality", "modality_same_anatomy"):
            for metrics in asked[name]["classifiers"].values():
                assert metrics["auc"]["mean"] == pytest.approx(expected)
        Probe(cut_bench, row).file.unlink()


def test_a_damaged_result_is_named(cut_bench):
    probe = Probe(cut_bench, "broken")
    probe.file.write_text("{")
    with pytest.raises(CheckpointError, match="broken"):
        _ = probe.is_finished
    probe.file.unlink()


class Inline:
    """A pool that does jobs here, in their order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def run(self, jobs, work, *, title, on_failure=lambda job, problem: None) -> Outcome:
        """Do all jobs; what they raise is a failure."""
        outcome = Outcome()
        for job in jobs:
            try:
                work(job, "cpu")
                self.done.append(str(job))
                outcome.done += 1
            except Exception as error:
                outcome.failures[job] = repr(error)
                on_failure(job, repr(error))
        return outcome


def test_the_stage_leaves_out_the_unfinished_honors_shards_and_does_nothing_twice(
    cut_bench, capsys, monkeypatch
):
    monkeypatch.setattr(probing, "ask", lambda question, settings: {})
    assert [probe.row for probe in probes(cut_bench)] == ["random", "handmade"]
    for file in (cut_bench.out / "probes").iterdir():
        file.unlink()
    done = []
    for shard in ((1, 2), (2, 2), (1, 1)):
        pool = Inline()
        assert not stages.probe(cut_bench, pool, Part(shard=shard)).failures
        done.append(pool.done)
    assert done == [["probes-random"], ["probes-handmade"], []]
    assert "no probes of universal" in capsys.readouterr().err


def test_a_failure_is_recorded_and_stops_no_other(cut_bench, monkeypatch):
    for file in (cut_bench.out / "probes").iterdir():
        file.unlink()
    monkeypatch.setattr(probing, "ask", lambda question, settings: {})
    monkeypatch.setattr(probing, "hand_made", lambda x: x.no_such_thing)
    outcome = stages.probe(cut_bench, Inline(), Part())
    assert (outcome.done, [str(job) for job in outcome.failures]) == (1, ["probes-handmade"])
    record = cut_bench.out / "failed" / "probes-handmade.json"
    found = parse_json(record.read_bytes())
    assert (found["name"], found["row"]) == ("probes-handmade", "handmade")
    assert "no_such_thing" in found["error"]
    assert "no_such_thing" in (cut_bench.out / "logs" / "probes-handmade.log").read_text()
    monkeypatch.setattr(probing, "hand_made", hand_made)
    assert not stages.probe(cut_bench, Inline(), Part()).failures
    assert not record.exists()


def test_a_scan_that_cannot_be_cut_is_the_failure_of_the_rows(bench, monkeypatch, tmp_path):
    elsewhere = dataclasses.replace(bench, work=tmp_path, out=tmp_path)
    for name in ("failed", "probes", "logs"):
        (tmp_path / name).mkdir()

    def cut(job, device):
        raise ValueError(f"no voxels in {job.case.id}")

    monkeypatch.setattr(stages, "cut_case", cut)
    outcome = stages.probe(elsewhere, Inline(), Part())
    assert len(outcome.failures) == len(cuts(elsewhere))
    for row in ("random", "handmade"):
        error = parse_json((tmp_path / "failed" / f"probes-{row}.json").read_bytes())["error"]
        assert "no voxels in" in error
    assert not list((tmp_path / "probes").glob("*.json"))


def test_subjects_of_both_classes_are_halved():
    subjects = np.repeat([f"brats2018/{n}" for n in range(6)], 4)
    classes = np.tile([0, 0, 1, 1], 6)
    rng = np.random.default_rng(0)
    features = (classes[:, None] + 0.1 * rng.normal(size=(24, 3))).astype(np.float32)
    question = Question(features, classes, subjects, ("no", "yes"), np.ones(24, np.int64))
    fitted, scored = halves(question, rng)
    assert len(fitted) == len(scored) == 12
    assert not set(subjects[fitted]) & set(subjects[scored])
    assert ask(question, SETTINGS)["classifiers"]["linear"]["auc"]["mean"] > 0.98
