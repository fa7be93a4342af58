"""The evidence run: honest numbers, honest goals, nothing done twice."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import CubesConfig, Recipe, RunConfig
from training.cubes import CubeRecord, CubeStore, cut_cubes
from training.evidence import ARMS, FIRST_HELD_OUT, is_finished, main, planned_runs
from training.evidence_phantoms import (
    REGIONS,
    PhantomJob,
    body_cubes,
    load_bodies,
    make_cases,
    store_cases,
)
from training.evidence_probes import modality_auc, out_of_fold, region_accuracy
from training.evidence_report import (
    NOTES,
    SMOOTHING,
    compare_precision,
    markdown,
    precision_goal,
    report,
)
from training.restoration import CORRUPTION_NAMES, corrupt_alone, restoration_errors
from training.transforms import CorruptionConfig
from universal_model_hub.preprocess import Preprocessing

FACTS = {
    "command": "python -m training.evidence", "commit": "0" * 40, "seeds": [0, 1],
    "steps": 5, "batch_size": 2,
}  # fmt: skip
PUBLISHED = CorruptionConfig()
COARSE = Recipe(
    name="coarse",
    preprocessing=Preprocessing(spacing=(9, 9, 9)),
    cubes=CubesConfig(size=(16, 16, 16), default_counts=(2, 1, 1)),
    run=RunConfig(seed=3),
)


class _Fake:
    """A store of given cubes."""

    def __init__(self, cubes: np.ndarray, records: list[CubeRecord]) -> None:
        self.cubes, self.records = cubes, records

    def __len__(self) -> int:
        return len(self.records)

    def cube(self, number: int) -> np.ndarray:
        return self.cubes[number]


class _Constant(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, self.value)


def record(
    row: int, *, subject: str = "s", modality: str = "CT", region: str = "chest"
) -> CubeRecord:
    return CubeRecord(
        region, subject, f"{subject}-{modality}", modality, row % 3, (0, 0, 0), (1, 1, 1), row
    )


def store_of(subjects: int, cubes: int, modalities=("CT", "MR")) -> _Fake:
    records = [
        record(row, subject=f"s{s}", modality=m, region=REGIONS[s % 4])
        for s in range(subjects)
        for m in modalities
        for row in range(cubes)
    ]
    return _Fake(np.zeros((len(records), 1, 1, 1), np.float32), records)


def measured_run(arm: str, seed: int, *, restored: float, auc: float, region: float = 0.7):
    rows = [
        {
            "corruption": name, "modality": modality, "cubes": 10,
            "corrupted": 0.10, "median": 0.06, "restored": restored,
        }
        for name in CORRUPTION_NAMES
        for modality in ("CT", "MR")
    ]  # fmt: skip
    return {
        "arm": arm, "seed": seed, "restoration": rows, "scale_accuracy": 0.95,
        "modality_auc": auc, "region_accuracy": region,
        "probes": [
            {"level": level, "modality_auc": auc, "region_accuracy": region} for level in (3, None)
        ],
    }  # fmt: skip


def report_of(restored: float = 0.04, auc: float = 0.8, region: float = 0.7):
    runs = [measured_run("with MIAL", s, restored=restored, auc=auc, region=region) for s in (0, 1)]
    runs += [measured_run("without MIAL", s, restored=0.04, auc=0.99) for s in (1, 0)]
    curves = {"float32": [[1.0] * 40, [1.2] * 40], "bfloat16": [[1.01] * 40, [1.21] * 40]}
    return report(FACTS, runs, curves)


def goal(result, words: str):
    (found,) = [g for g in result["goals"] if words in g["goal"]]
    return found


def test_each_corruption_is_always_applied():
    cube = np.random.default_rng(0).random((24, 24, 24), np.float32)
    gentle = CorruptionConfig(shuffle_probability=0, curve_probability=0, paint_probability=0)
    for name in CORRUPTION_NAMES:
        corrupted = corrupt_alone(name, cube, gentle, np.random.default_rng(1))
        assert not np.array_equal(corrupted, cube), name


def test_errors_of_a_network_that_copies_are_those_of_the_corrupted_cube():
    cubes = np.random.default_rng(0).random((3, 20, 20, 20), np.float32)
    store = _Fake(cubes, [record(row) for row in range(3)])
    bodies = {"s-CT": np.ones(cubes.shape, bool)}
    rows = restoration_errors(torch.nn.Identity(), store, bodies, [0, 1, 2], PUBLISHED)
    assert [row.corruption for row in rows] == list(CORRUPTION_NAMES)
    for row in rows:
        assert row.cubes == 3
        assert row.restored == row.corrupted > 0


def test_errors_are_measured_inside_the_body_alone():
    cube = np.full((1, 16, 16, 16), 0.9, np.float32)
    cube[:, :4] = 0.2  # the body
    bodies = {"s-CT": cube == np.float32(0.2)}
    store = _Fake(cube, [record(0)])
    for row in restoration_errors(_Constant(0.3), store, bodies, [0], PUBLISHED):
        assert row.restored == pytest.approx(0.01, rel=1e-4)


def test_a_cube_almost_without_body_is_passed_over():
    cubes = np.random.default_rng(0).random((2, 16, 16, 16), np.float32)
    masks = np.ones(cubes.shape, bool)
    masks[0] = False
    masks[0, 0, 0, :10] = True
    store = _Fake(cubes, [record(0), record(1)])
    rows = restoration_errors(_Constant(0.5), store, {"s-CT": masks}, [0, 1], PUBLISHED)
    assert {row.cubes for row in rows} == {1}


def test_every_network_gets_the_same_corrupted_cubes():
    cubes = np.random.default_rng(0).random((4, 16, 16, 16), np.float32)
    store = _Fake(cubes, [record(row) for row in range(4)])
    bodies = {"s-CT": np.ones(cubes.shape, bool)}
    first = restoration_errors(_Constant(0.1), store, bodies, [0, 1, 2, 3], PUBLISHED)
    again = restoration_errors(_Constant(0.9), store, bodies, [3, 2, 1, 0], PUBLISHED)
    for a, b in zip(first, again, strict=True):
        assert a.corrupted == pytest.approx(b.corrupted)
        assert a.median == pytest.approx(b.median)
        assert a.restored != b.restored


def test_probe_finds_what_features_hold():
    store = store_of(8, 6)
    is_ct = np.array([r.modality == "CT" for r in store.records], float)
    region = np.array([[r.corpus == name for name in REGIONS] for r in store.records], float)
    noise = np.random.default_rng(0).normal(0, 0.1, (len(store), 4))
    assert modality_auc(np.column_stack([is_ct, noise]), store) == 1.0
    assert region_accuracy(np.column_stack([region, noise]), store) == 1.0


def test_probe_is_at_chance_on_noise():
    store = store_of(40, 10)
    noise = np.random.default_rng(0).normal(size=(len(store), 5))
    assert modality_auc(noise, store) == pytest.approx(0.5, abs=0.06)
    assert region_accuracy(noise, store) == pytest.approx(0.25, abs=0.06)


def test_probe_cannot_learn_subjects_by_heart():
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(60), 4)
    own = rng.normal(size=(60, 100))[subjects]  # names the subject and says nothing else
    truth = (np.arange(60) % 2 == 0)[subjects]
    predicted = out_of_fold(own, truth, subjects.tolist(), "predict")
    assert (predicted == truth).mean() < 0.7  # folds by cube would give 1.0


def test_goals_are_ratios_of_mean_errors():
    result = report_of(restored=0.04)
    below = goal(result, "out-painting: error below the corrupted")
    median = goal(result, "out-painting: error below the 3x3x3 median")
    assert below["measured"] == pytest.approx(0.6)
    assert median["measured"] == pytest.approx(1 / 3)
    assert below["met"]
    assert median["met"]
    assert result["met"] == result["of"] == 13


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"restored": 0.051}, "in-painting: error below the corrupted"),
        ({"restored": 0.0445}, "restoration error rises"),
        ({"auc": 0.9}, "modality probe"),
        ({"region": 0.67}, "region probe"),
        ({"region": 0.73}, "region probe"),
    ],
)
def test_a_missed_goal_stands_as_missed(change, words):
    result = report_of(**change)
    assert not goal(result, words)["met"]
    assert result["met"] < result["of"]
    assert "**missed**" in markdown(result, "x.png", "")


def test_seeds_are_paired_whatever_the_order_of_the_runs():
    runs = [measured_run("with MIAL", s, restored=0.04, auc=0.5 + s / 10) for s in (1, 0)]
    runs += [measured_run("without MIAL", s, restored=0.04, auc=0.9 + s / 20) for s in (0, 1)]
    curves = {name: [[1.0] * 20, [2.0] * 20] for name in ("float32", "bfloat16")}
    by_seed = goal(report(FACTS, runs, curves), "modality probe")["by_seed"]
    assert by_seed == pytest.approx((0.4, 0.35))


def test_equal_curves_have_no_distance():
    curves = np.random.default_rng(0).random((3, 60)).tolist()
    found = compare_precision(curves, curves)
    assert found["largest_distance"] == 0
    assert found["largest_spread"] > 0
    assert precision_goal(found).met


def test_a_curve_beyond_the_spread_is_seen():
    seeds = np.array([[1.0] * 60, [1.1] * 60, [1.2] * 60])
    worse = seeds.copy()
    worse[1, 40:] += 0.3
    found = compare_precision(seeds, worse)
    assert found["largest_distance"] == pytest.approx(0.3)
    assert found["largest_spread"] == pytest.approx(0.2)
    assert found["points_within_spread"] == pytest.approx(2 / 3)
    assert not precision_goal(found).met


def test_curves_are_averaged_over_steps():
    flat = [[0.0] * SMOOTHING + [2.0, 0.0] * (SMOOTHING // 2)]
    assert compare_precision(flat, flat)["float32"] == [[0.0, 1.0]]


def test_arms_differ_in_the_discriminator_alone():
    runs = planned_runs(Path("work"), [0, 1, 2], [])
    long_runs = [run for run in runs if run.arm in ARMS]
    assert len(long_runs) == 6
    assert len({run.folder for run in runs}) == len(runs) == 12
    with_mial, without = (
        next(r for r in long_runs if r.arm == arm and r.seed == 1).load_recipe().to_json()
        for arm in ARMS
    )
    assert with_mial["objective"].pop("modality_weight") > 0
    assert without["objective"].pop("modality_weight") == 0
    assert with_mial == without


def test_precisions_differ_in_precision_alone():
    runs = [run for run in planned_runs(Path("work"), [5], []) if run.arm not in ARMS]
    wide, narrow = (run.load_recipe().to_json() for run in runs)
    assert (wide["run"].pop("precision"), narrow["run"].pop("precision")) == ("float32", "bfloat16")
    assert wide == narrow


def test_a_run_of_another_recipe_is_not_finished(tmp_path):
    run = planned_runs(tmp_path, [0], [])[0]
    run.folder.mkdir(parents=True)
    recipe = run.load_recipe().to_json()
    assert not is_finished(run)
    (run.folder / "summary.json").write_text(json.dumps({"step": 7, "steps": 7}))
    (run.folder / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    assert is_finished(run)
    recipe["run"]["seed"] = 9
    (run.folder / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    assert not is_finished(run)


def test_body_masks_lie_where_the_cubes_lie():
    body = np.zeros((30, 30, 30), bool)
    body[:15] = True
    volume = torch.from_numpy(body.astype(np.float32))
    config = CubesConfig(size=(8, 8, 8))
    cubes, places, _ = cut_cubes(volume, config, (3, 3, 3), 0.05, np.random.default_rng(0))
    masks = body_cubes(body, places, config.size)
    assert masks.shape == cubes.shape
    assert np.array_equal(masks, cubes > 0.5)


def test_a_subject_is_scanned_in_both_modalities_and_only_once(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store-bodies").mkdir()
    job = PhantomJob("heart", FIRST_HELD_OUT, COARSE, tmp_path / "store")
    make_cases(job)
    store = CubeStore(job.folder, verify=True)
    assert {r.modality for r in store.records} == {"CT", "MR"}
    assert {r.subject for r in store.records} == {"heart1000"}
    bodies = load_bodies(store)
    for number, one in enumerate(store.records):
        body = bodies[one.case][one.row]
        assert body.shape == store.cube(number).shape
        if one.modality == "MR" and not body.all():
            assert store.cube(number)[~body].mean() < store.cube(number)[body].mean()
    assert store_cases(store)["heart CT"]["volumes"] == 1
    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npy")}
    make_cases(job)
    assert written == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npy")}


@pytest.mark.slow
def test_the_whole_evidence_run_and_what_it_keeps(tmp_path, capsys):
    output = tmp_path / "evidence.json"
    output.with_suffix(".md").write_text(f"old\n{NOTES}\nby hand\n")
    arguments = ["-o", str(output), "--work", str(tmp_path / "work"), "--seeds", "0", "1"]
    arguments += ["--subjects", "1", "1", "--cubes", "8", "--processes", "1"]
    for override in (
        "preprocessing.spacing=[9, 9, 9]", "cubes.size=[24, 24, 24]", "model.width=2",
        "run.steps=3", "run.batch_size=6", "cubes.default_counts=[2, 2, 2]",
    ):  # fmt: skip
        arguments += ["--set", override]
    assert main(arguments) == 0
    result = json.loads(output.read_text())
    assert result["of"] == 13
    assert {run["seed"] for run in result["runs"]} == {0, 1}
    page = output.with_suffix(".md").read_text()
    assert page.endswith("by hand\n")
    assert "old" not in page
    assert (tmp_path / "evidence_restored.png").is_file()
    weights = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("checkpoints/*")}
    assert main(arguments) == 0
    assert weights == {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("checkpoints/*")}
