"""The release evaluation: tasks, cases, scores, probes, plan and report, on synthetic data."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from training.corpora.packaged_table import ids
from training.release import evaluate, plan, scans
from training.release.arms import HAND, Arm, Arms
from training.release.data import prepare_task
from training.release.earlier import joined, read_earlier
from training.release.frozen import (
    Points,
    RidgeSegmenter,
    choose_ridge,
    draw_points,
    fit_ridge,
    frozen_features,
    image_tensor,
    point_features,
    ridge_segmenter,
)
from training.release.handmade import HandFeatures, blurred, derivatives, soft_histogram
from training.release.page import markdown, task_lines, write_report
from training.release.plan import tuning_runs
from training.release.pool import left, run_all
from training.release.probes import cube_accuracy, probe_cubes, structure_accuracy
from training.release.rows import release_rows, update_card
from training.release.runs import Run, Setting, known_result, result_file, run_key
from training.release.scans import GridCase, split_labels
from training.release.scoring import confusion, overlap, score, segment
from training.release.summary import first_step, interval, last_third, paired_difference, summary
from training.release.tasks import Part, Task, read_tasks
from universal_model_hub.config import read_config
from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.saving import save_pretrained
from universal_model_hub.volume import Volume

TINY = """
[modes.develop]
steps = 2
head_steps = 1
head_rate_factor = 1
batch_size = 1
precision = "float32"
class_weights = true
rates = [1e-3, 1e-2]
foreground_share = 0.5
seeds = { 10 = 2, 100 = 2 }
sibling_seeds = 1
frozen_seeds = 1
tuned_at = { 10 = 10, 100 = 10 }
tuning_seeds = 1
curve_share = 10
curve_seeds = 1
curve_points = 2

[tasks.tiny]
mode = "develop"
letter = "f"
title = "A tiny heart"
modality = "CT"
spacing_mm = 8.0
cube = [8, 8, 8]
split_axis = "x"
siblings = true
shares = [10, 100]
[tasks.tiny.classes]
blood = ["left_*", "right_*", "aorta"]
lung = ["lung"]
[tasks.tiny.train]
region = "heart"
seed = 1
field_mm = [128, 128, 96]
slab_axis = "z"
slabs = [[32, 64], [24, 56]]
[tasks.tiny.test]
region = "heart"
first = 500
subjects = 1
seed = 1
field_mm = [128, 128, 96]
"""


@pytest.fixture
def tiny(tmp_path):
    """One task on tiny phantoms, with arms of a network of width 1."""
    path = tmp_path / "tasks.toml"
    path.write_text(TINY)
    scratch = Arm("scratch", arguments=(("normalization", "running"), ("width", 1)))
    folder = tmp_path / "weights"
    ours = replace(scratch, name="ours", weights=folder, sha256="1" * 64, against="scratch")
    sibling = replace(ours, name="sibling", sha256="2" * 64, sibling=True)
    arms = {arm.name: arm for arm in (ours, sibling, scratch)}
    return Setting(
        "develop", read_tasks(path), Arms((ours, sibling), (scratch,), arms), tmp_path / "release"
    )


def grid_case(seed=0, shape=(24, 16, 16), name="case"):
    """A case whose class 1 is bright, class 2 dark, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int16)
    labels[2:9, 3:12, 4:12] = 1
    labels[12:20, 3:12, 4:12] = 2
    image = np.array([0.5, 0.9, 0.1], np.float32)[labels]
    image += rng.normal(0, 0.02, shape).astype(np.float32)
    return GridCase(name, name, np.clip(image, 0, 1), labels)


class Threshold(nn.Module):
    """Gives class 1 where the cube is above one half."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        """Return two logits."""
        return torch.cat([0.5 - x, self.scale * x - 0.5], dim=1)


# ---- tasks -------------------------------------------------------------------------------------


def test_no_develop_task_names_a_test_scan():
    for task in read_tasks().of("develop"):
        for part in (task.train, task.test):
            assert part.scan not in ids("test")
            assert not part.scan or "develop" in ids_roles(part.scan)


def ids_roles(scan):
    return {role for role in ("pretrain", "develop", "demo", "test") if scan in ids(role)}


def test_final_tasks_are_judged_on_test_scans_or_phantoms():
    found = read_tasks().of("final")
    assert {task.letter for task in found} == {"a", "b", "c", "d", "f"}
    for task in found:
        assert task.test.region or task.test.scan in ids("test")
        assert task.purpose == "evaluation"


def test_shares_count_annotated_slabs():
    task = read_tasks().tasks["chest"]
    assert [task.slabs_of(share) for share in (10, 30, 100)] == [1, 3, 10]


def test_phantoms_of_training_test_and_other_modes_differ():
    seen: set[tuple[str, int, int]] = set()
    for task in read_tasks().tasks.values():
        if task.is_phantom:
            for part in (task.train, task.test):
                numbers = range(part.first, part.first + part.num_cases)
                own = {(part.region, part.seed, number) for number in numbers}
                assert not own & seen
                seen |= own


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tuned_at = { 10 = 10,", "tuned_at = { 10 = 100,", "at most the share"),
        ("seeds = { 10 = 2,", "seeds = { 30 = 2,", "seeds"),
        ('region = "heart"\nseed', 'region = "heart"\nscan = "ct-chest-1"\nseed', "either scan"),
        ("[24, 56]", "[56, 24]", "low, high"),
        ("split_axis", "split_plane", "fields of a task"),
    ],
)
def test_a_task_that_is_not_defined_is_refused(tmp_path, old, new, message):
    path = tmp_path / "tasks.toml"
    path.write_text(TINY.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_tasks(path)


# ---- cases -------------------------------------------------------------------------------------


def scan_task(**train):
    part = {"scan": "made-up", "slab_axis": "z", **train}
    return Task(
        name="t",
        mode="develop",
        letter="a",
        title="",
        modality="MR",
        spacing_mm=2.0,
        cube=(8, 8, 8),
        split_axis="x",
        classes={"one": {"train": ("a*",), "test": ("a*",)}},
        train=Part(**part),
        test=Part(scan="made-up"),
    )


def test_labels_become_classes_by_name():
    task = scan_task(ignore=("v*",))
    table = scans.class_table(task, "train", {1: "a1", 2: "a2", 5: "vermis", 7: "other"})
    assert table == {1: 1, 2: 1, 5: -1}
    found = scans.class_labels(np.array([[[0, 1, 2, 5, 7]]]), table)
    assert found.tolist() == [[[0, 1, 1, -1, 0]]]


def test_a_class_without_labels_is_refused():
    with pytest.raises(ConfigError, match=r"a\*"):
        scans.class_table(scan_task(), "train", {1: "b"})


def test_labels_on_another_grid_are_found_by_their_place():
    labels = Volume(np.arange(1, 9, dtype=np.uint8).reshape(2, 2, 2), np.diag([2, 2, 2, 1.0]))
    affine = np.diag([2.0, -2.0, 2.0, 1.0])
    affine[:3, 3] = (0, 2, -2)  # y mirrored, one voxel more below
    volume = Volume(np.zeros((2, 2, 3), np.float32), affine)
    found = scans.on_grid_of(labels, volume)
    assert found[:, :, 0].tolist() == [[0, 0], [0, 0]]
    np.testing.assert_array_equal(found[:, :, 1:], labels.array[:, ::-1])


def test_scans_and_labels_come_to_the_working_grid(monkeypatch):
    asked = []
    array = np.zeros((20, 24, 28), np.float32)
    array[4:10, 6:12, 8:16] = 100.0

    def load(scan, *, purpose):
        asked.append(purpose)
        return Volume(array, np.eye(4))

    monkeypatch.setattr(scans, "load_packaged", load)
    monkeypatch.setattr(
        scans, "load_packaged_labels", lambda s, w, *, purpose: Volume(array / 100, np.eye(4))
    )
    monkeypatch.setattr(scans, "label_names", lambda s, w: {1: "a"})
    monkeypatch.setattr(scans, "get_scan", lambda s, p: replace(Part(), scan="x") and _Subject())
    task = scan_task(slabs=((12.0, 16.0), (20.0, 24.0)))
    cases = scans.training_cases(task)
    assert asked == ["develop"]
    assert [case.id for case in cases] == ["made-up-slab0", "made-up-slab1"]
    assert cases[0].image.shape == (10, 12, 8)  # as thick as the cube
    annotated = (cases[0].labels >= 0).any(axis=(0, 1))
    assert annotated.sum() == 2  # 4 mm of 2 mm voxels
    assert set(np.unique(cases[0].labels)) == {-1, 0, 1}
    whole = scans.test_cases(task)[0]
    assert whole.image.max() > 0.9
    assert whole.labels.sum() == 3 * 3 * 4


class _Subject:
    subject = "somebody"


def test_thin_slices_become_thick_ones_at_their_centers():
    array = np.arange(11, dtype=np.float32) * np.ones((2, 2, 1), np.float32)
    affine = np.diag([1.0, 1.0, 2.5, 1.0])
    affine[:3, 3] = (3, 4, 100)
    labels = np.arange(11) * np.ones((2, 2, 1), np.int16)
    volume, found = scans.thick_slices(Volume(array, affine), labels, 10.0)
    assert volume.array[0, 0].tolist() == [1.5, 5.5]  # what does not fill a slice is left out
    assert volume.spacing == (1.0, 1.0, 10.0)
    assert volume.affine[:3, 3].tolist() == [3, 4, 100 + 1.5 * 2.5]
    assert found[0, 0].tolist() == [2, 6]
    same, _ = scans.thick_slices(Volume(array, affine), labels, 1.0)
    assert same.shape == (2, 2, 11)


def test_a_field_that_is_not_used_leaves_results_their_names(tiny):
    task = next(iter(tiny.tasks.tasks.values()))
    assert "slice_mm" not in task.to_json()["test"]
    thick = replace(task, test=replace(task.test, slice_mm=10.0))
    assert thick.to_json()["test"]["slice_mm"] == 10.0


def test_halves_are_apart_and_the_right_one_is_mirrored():
    task = scan_task()
    array = np.arange(12, dtype=np.float32).reshape(12, 1, 1) * np.ones((12, 4, 4), np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[0, 3] = -11.0  # voxels at -11, -9, ..., 11 mm
    image, labels, record = scans.to_grid(task, Volume(array, affine), np.zeros(array.shape))
    case = GridCase("c", "c", image, labels)
    left_half = scans.half_of(case, record, "left")
    right_half = scans.half_of(case, record, "right")
    np.testing.assert_array_equal(left_half.image, image[:6])
    np.testing.assert_array_equal(right_half.image, image[6:][::-1])


def test_a_slab_outside_the_scan_is_refused():
    assert scans.slab_voxels((12.0, 16.0), 2.0, 20) == slice(6, 8)
    with pytest.raises(ConfigError, match="within 40 mm"):
        scans.slab_voxels((50.0, 60.0), 2.0, 20)


def test_kept_back_labels_are_a_third_and_apart_from_the_rest():
    labels = np.zeros((30, 4, 4), np.int16)
    labels[:, 1:3, 1:3] = 1
    labels[:, :, 3] = -1
    fit_on, judge = split_labels(labels, 0, 1 / 3)
    assert not ((fit_on >= 0) & (judge >= 0)).any()
    np.testing.assert_array_equal((fit_on >= 0) | (judge >= 0), labels >= 0)
    assert (judge == 1).sum() / (labels == 1).sum() == pytest.approx(1 / 3, abs=0.04)


def test_data_are_prepared_once_and_named_by_their_task(tiny, monkeypatch):
    task = tiny.tasks.tasks["tiny"]
    data = prepare_task(task, tiny.root)
    assert [case.image.shape for case in data.train] == [(16, 16, 8)] * 2
    assert data.test[0].image.shape == (16, 16, 12)
    assert data.test_subjects == 1
    assert {1, 2} <= set(np.unique(data.test[0].labels))
    assert data.train[0].subject != data.test[0].subject
    monkeypatch.setattr("training.release.data.training_cases", pytest.fail)
    assert prepare_task(task, tiny.root).sha256 == data.sha256
    monkeypatch.undo()
    other = prepare_task(replace(task, train=replace(task.train, seed=2)), tiny.root)
    assert other.sha256 != data.sha256


# ---- scores ------------------------------------------------------------------------------------


def test_dice_and_iou_of_a_known_table():
    truth = np.array([0, 1, 1, 1, 2, -1])
    predicted = np.array([0, 1, 1, 0, 1, 2])
    dice, iou = overlap(confusion(predicted, truth, 4))
    np.testing.assert_allclose(dice, [2 * 2 / 6, 0, np.nan])
    np.testing.assert_allclose(iou, [2 / 4, 0, np.nan])


def test_scores_are_means_over_subjects_of_voxels_counted_together():
    bright = np.full((8, 8, 8), 0.9, np.float32)
    labels = np.zeros((8, 8, 8), np.int16)
    labels[:4] = 1  # everything is segmented: Dice 2/3
    cases = [
        GridCase("1", "a", bright, labels),
        GridCase("2", "a", bright, np.ones((8, 8, 8), np.int16)),
        GridCase("3", "b", bright, labels),
    ]
    result = score(Threshold(), cases, 2)
    a = 2 * 768 / (768 + 1024)
    assert result["dice_by_subject"] == pytest.approx({"a": a, "b": 2 / 3})
    assert result["dice"] == pytest.approx((a + 2 / 3) / 2)
    assert result["dice_by_class"] == pytest.approx([(a + 2 / 3) / 2])


def test_segmenting_reads_the_working_grid_as_it_is():
    model = Threshold()
    vars(model)["preprocessing"] = "own"
    image = np.random.default_rng(0).random((9, 11, 13)).astype(np.float32)
    np.testing.assert_array_equal(segment(model, image), image > 0.5)
    assert model.preprocessing == "own"


# ---- frozen features ---------------------------------------------------------------------------


def test_blurring_keeps_constants_and_the_mass_of_a_point():
    flat = torch.full((1, 2, 9, 9, 9), 0.3)
    torch.testing.assert_close(blurred(flat, 2.0), flat)
    point = torch.zeros(1, 1, 15, 15, 15)
    point[0, 0, 7, 7, 7] = 1
    assert float(blurred(point, 1.0).sum()) == pytest.approx(1, abs=1e-5)


def test_derivatives_of_known_fields():
    x = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(1, 1, 6, 6, 6)
    gradient, laplacian = derivatives(x)
    assert gradient[0, 0, 2, 3, 3] == 1
    assert laplacian[0, 0, 2, 3, 3] == 0
    _, curved = derivatives(x**2)
    assert curved[0, 0, 2, 3, 3] == 2


def test_the_soft_histogram_shares_each_voxel_out():
    x = torch.rand(1, 1, 5, 5, 5)
    torch.testing.assert_close(soft_histogram(x).sum(dim=1), torch.ones(1, 5, 5, 5))


@pytest.mark.parametrize("name", ["scratch", HAND])
@pytest.mark.parametrize("transfer", ["encoder", "full"])
def test_a_ridge_segmenter_gives_its_probe_at_every_voxel(name, transfer):
    case = grid_case(shape=(17, 12, 14))  # no multiples of the stride
    arm = Arm(name, arguments=(("width", 1),))
    features = frozen_features(arm, transfer, 0, [case])
    places = np.argwhere(case.labels >= 0)[::37]
    rows = point_features(features, case, places)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, rows.shape[1])).astype(np.float32)
    bias = rng.normal(size=3).astype(np.float32)
    model = RidgeSegmenter(features, weight, bias)
    scores = model(image_tensor(case))[0].numpy()[:, places[:, 0], places[:, 1], places[:, 2]]
    np.testing.assert_allclose(scores.T, rows @ weight.T + bias, atol=1e-4)
    with torch.no_grad():
        np.testing.assert_array_equal(
            segment(model, case.image), model(image_tensor(case))[0].numpy().argmax(axis=0)
        )


def test_random_features_are_drawn_by_their_seed_and_normalized():
    case = grid_case()
    arm = Arm("scratch", arguments=(("width", 2),))
    one, again, other = (frozen_features(arm, "full", seed, [case]) for seed in (0, 0, 1))
    places = np.argwhere(case.labels >= 0)
    rows = [point_features(f, case, places) for f in (one, again, other)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert np.abs(rows[0] - rows[2]).max() > 0.1
    assert rows[0].shape[1] == 2 * 2 * (1 + 2 + 4 + 8) + 2 * 2 * (1 + 2 + 4)


def test_drawn_voxels_stand_for_all_of_their_class():
    case = grid_case()
    points = draw_points(
        HandFeatures(), [case, case], [case.labels] * 2, np.random.default_rng(0), limit=100
    )
    counts = np.bincount(case.labels.ravel())
    np.testing.assert_allclose(np.bincount(points.labels, points.weights), 2 * counts, rtol=1e-6)
    assert np.bincount(points.labels).max() <= 101


def test_ridge_finds_a_linear_rule_and_balances_classes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4)).astype(np.float32) * (1, 10, 0.1, 1) + (5, 0, 0, 0)
    labels = (x[:, 0] > 6).astype(np.int64)
    points = Points(x.astype(np.float32), labels, np.ones(600))
    found = [fit_ridge(points, 2, 1.0, balance) for balance in (0.0, 1.0)]
    shares = [((x @ w.T + b).argmax(axis=1)[labels == 1] == 1).mean() for w, b in found]
    assert shares[1] > 0.95 > shares[0]
    assert choose_ridge(points, points, 2)[0] < 1e6  # so much shrinking would find nothing


def test_hand_made_features_segment_what_intensity_tells():
    train, test = grid_case(0), grid_case(1, name="other")
    model, chosen = ridge_segmenter(
        HandFeatures(),
        [train],
        [split_labels(train.labels, 1, 1 / 3)],
        3,
        np.random.default_rng(0),
    )
    assert score(model, [test], 3)["dice"] > 0.9
    assert set(chosen) == {"alpha", "balance"}


def test_structures_are_told_by_separable_features():
    found = structure_accuracy(
        HandFeatures(), [grid_case(0)], [grid_case(1)], np.random.default_rng(0)
    )
    assert found["structure, linear"] > 0.9
    assert found["structure, kNN"] > 0.9


class Brightness(nn.Module):
    """Features that are the intensity."""

    stride = 1

    def forward(self, x):
        """Return one map."""
        return [x]


def test_cube_probes_tell_modality_by_brightness_and_not_the_region(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)

    def cubes(region, generator, number):
        noise = rng.normal(0, 0.05, (3, 8, 8, 8)).astype(np.float32)
        levels = {"CT": np.float32(0.2), "MR": np.float32(0.8)}
        name = f"{region}{number}"
        return [(level + cube, m, region, name) for m, level in levels.items() for cube in noise]

    monkeypatch.setattr("training.release.probes.subject_cubes", cubes)
    found = probe_cubes(tmp_path / "data" / "cubes.npz", seed=0, subjects=6)
    again = probe_cubes(tmp_path / "data" / "cubes.npz", seed=0, subjects=6)
    np.testing.assert_array_equal(found.cubes, again.cubes)
    accuracy = cube_accuracy(Brightness(), found)
    assert accuracy["modality, linear"] == 1
    assert accuracy["modality, kNN"] == 1
    assert accuracy["region, linear"] < 0.5


def test_cubes_of_one_body_come_from_the_same_places_in_both_modalities():
    from training.release.probes import subject_cubes

    rows = subject_cubes("brain", np.random.default_rng(0), 0)
    assert [row[1] for row in rows] == ["CT"] * 4 + ["MR"] * 4
    assert {row[0].shape for row in rows} == {(32, 32, 32)}
    assert {row[3] for row in rows} == {"brain0"}


# ---- runs and plan -----------------------------------------------------------------------------


def test_a_result_is_named_by_what_decides_it(tiny):
    run = Run(kind="fit", task="tiny", share=10, arm="ours", seed=0, rate=1e-3)
    key = run_key(run, tiny)
    assert run_key(replace(run, seed=1), tiny) != key
    assert run_key(replace(run, arm="sibling"), tiny) != key
    arms = tiny.arms
    renamed = replace(arms["ours"], name="renamed", weights=Path("elsewhere"))
    other = replace(tiny, arms=Arms((renamed,), arms.scratch, {"renamed": renamed}))
    assert run_key(replace(run, arm="renamed"), other) == key
    task = replace(tiny.tasks.tasks["tiny"], title="Another title")
    retitled = replace(tiny, tasks=replace(tiny.tasks, tasks={"tiny": task}))
    assert run_key(run, retitled) == key


def test_rates_are_never_chosen_on_more_labels_than_a_run_has(tiny):
    chosen = plan.tuning_runs(tiny, ("full", "encoder"))
    assert {run.share for run in chosen} == {10}
    assert {run.rate for run in chosen} == {1e-3, 1e-2}
    assert {run.seed for run in chosen} & {0, 1} == set()
    results = {run: {"dice": run.rate if run.arm == "ours" else -run.rate} for run in chosen}
    rates = plan.chosen_rates(results, tiny, ("full", "encoder"))
    assert rates[plan.Cell("tiny", 10, "ours", "encoder")] == 1e-2
    assert rates[plan.Cell("tiny", 10, "scratch", "full")] == 1e-3


def test_pairs_share_their_seeds_and_siblings_have_fewer(tiny):
    transfers = ("full", "encoder")
    rates = {plan.tuned_cell(c, tiny): 1e-3 for c in plan.cells(tiny, transfers)}
    found = plan.test_runs(tiny, transfers, rates)
    seeds: dict[tuple[str, int, str], list[int]] = {}
    for run in found:
        seeds.setdefault((run.arm, run.share, run.transfer), []).append(run.seed)
    assert seeds["scratch", 10, "full"] == seeds["ours", 10, "full"] == [0, 1]
    assert seeds["ours", 100, "encoder"] == [0, 1]
    assert seeds["sibling", 100, "full"] == [0]
    assert ("sibling", 10, "full") not in seeds
    assert ("scratch", 10, "encoder") not in seeds
    assert {run.share for run in found if run.curve} == {10}


def test_the_plan_of_the_final_evaluation_fits_a_night():
    scratch = Arm("scratch", arguments=(("normalization", "running"), ("width", 8)))
    ours = [
        replace(scratch, name=name, weights=Path(name), sha256=name, against="scratch")
        for name in ("compact", "anatomy")
    ]
    arms = Arms(tuple(ours), (scratch,), {arm.name: arm for arm in (*ours, scratch)})
    setting = Setting("final", read_tasks(), arms, Path("nowhere"))
    text = plan.describe(setting, ("full",), 2)
    total = text.splitlines()[-1]
    hours = int(total.partition("about ")[2].partition(" h")[0])
    assert 3 <= hours <= 8, total


# ---- pool --------------------------------------------------------------------------------------


def fake_work(run, setting):
    """Stand in for a run; the scores rise with the rate, and ours are better."""
    if run.seed == 1 and run.arm == "ours" and run.share == 100:
        raise RuntimeError("no more memory")
    known = known_result(run, setting)
    assert known is None, "it was done before"
    dice = 0.5 + 0.1 * (run.arm == "ours") + run.rate + 0.01 * run.seed
    result = {
        "dice": dice,
        "iou": dice / 2,
        "dice_by_class": [dice, None],
        "seconds": 10.0,
        "total_seconds": 12.0,
        "test_subjects": 1,
        "data_sha256": "0" * 64,
        "accuracy": {"structure, linear": 0.7},
        "curve": [{"step": s, "dice": dice * s / 6} for s in (2, 4, 6)] if run.curve else [],
    }
    path = result_file(run, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def test_a_failing_run_stops_no_other_and_is_tried_again(tiny, capsys):
    chosen = [
        Run(kind="fit", task="tiny", share=100, arm=arm, seed=seed, rate=1e-3)
        for arm in ("ours", "scratch")
        for seed in (0, 1)
    ]
    results, failures = run_all(chosen, tiny, processes=0, work=fake_work)
    assert len(results) == 3
    assert [(run.arm, run.seed) for run in failures] == [("ours", 1)]
    assert "no more memory" in next(iter(failures.values()))
    assert "left" in capsys.readouterr().err
    again, failures = run_all(chosen, tiny, processes=0, work=fake_work)
    assert again == results
    assert len(failures) == 1


def test_a_result_is_found_again_whatever_device_made_it(tiny):
    run = Run(kind="fit", task="tiny", arm="ours", seed=0)
    assert result_file(run, replace(tiny, device="cuda")) == result_file(run, tiny)


def test_a_damaged_result_is_named(tiny):
    run = Run(kind="fit", task="tiny", arm="ours", seed=0)
    path = result_file(run, tiny)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=path.name):
        known_result(run, tiny)


def die(run, setting):
    """Take the process along, as a system out of memory does."""
    import os

    if run.seed == 0:
        os._exit(9)
    return {"dice": 1.0}


@pytest.mark.slow
def test_a_process_that_dies_is_a_failure_of_its_run_alone(tiny):
    chosen = [Run(kind="fit", task="tiny", arm="ours", seed=seed, rate=1e-3) for seed in (0, 1)]
    results, failures = run_all(chosen, tiny, processes=1, work=die)
    assert 0 in {run.seed for run in failures}
    assert len(results) + len(failures) == 2


def test_time_left_is_written_as_people_say_it():
    assert [left(s) for s in (20, 90, 5400)] == ["20 s", "2 min", "1 h 30 min"]


# ---- report ------------------------------------------------------------------------------------


def test_the_interval_is_that_of_a_t_test():
    ours, theirs = {0: 0.6, 1: 0.7, 2: 0.65, 9: 0.1}, {0: 0.5, 1: 0.66, 2: 0.6}
    found = paired_difference(ours, theirs)
    values = np.array([0.1, 0.04, 0.05])
    truth = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found["seeds"] == 3
    assert (found["low"], found["high"]) == pytest.approx((truth.low, truth.high))
    assert interval(np.array([0.3])) == {"mean": 0.3, "sd": None, "low": None, "high": None}


def test_steps_to_a_score_are_interpolated():
    assert first_step([10, 20, 30], [0.2, 0.4, 0.6], 0.5) == 25
    assert first_step([10, 20], [0.2, 0.4], 0.1) == 5
    assert first_step([10, 20], [0.2, 0.4], 0.5) is None
    curve = [{"step": s, "dice": d} for s, d in ((10, 0.2), (20, 0.5), (30, 0.6))]
    assert last_third(curve) == pytest.approx(0.1)


def fake_results(setting, transfers=("full",)):
    chosen = plan.tuning_runs(setting, transfers)
    results, _ = run_all(chosen, setting, processes=0, work=fake_work)
    rates = plan.chosen_rates(results, setting, transfers)
    more = [*plan.test_runs(setting, transfers, rates), *plan.frozen_runs(setting, transfers)]
    found, failures = run_all(more, setting, processes=0, work=fake_work)
    return {**results, **found}, failures, rates


def test_the_summary_pairs_arms_and_counts_steps_to_scratch(tiny):
    results, _, rates = fake_results(tiny)
    task = summary(tiny, results, ("full",), rates)["tasks"][0]
    by_arm = {(row["arm"], row["share"]): row for row in task["rows"]}
    row = by_arm["ours", 10]
    assert row["dice_difference"]["mean"] == pytest.approx(0.1)
    assert row["dice_difference"]["low"] == pytest.approx(0.1)
    assert row["rate"] == 1e-2
    assert row["seeds"] == 2
    assert row["slabs"] == 1
    assert "dice_difference" not in by_arm["scratch", 10]
    assert by_arm["ours", 100]["dice_difference"]["seeds"] == 1  # its other run failed
    curve = next(c for c in task["curves"] if c["arm"] == "ours")
    assert curve["share_of_scratch_steps"] == pytest.approx(0.51 / 0.61)
    assert curve["seconds_to_scratch_final"] == pytest.approx(10 * 0.51 / 0.61)
    assert task["plateau"][0]["gain"] == pytest.approx((0.5 + 0.01 + 10) / 3)


def test_the_full_objective_is_paired_with_each_sibling(tiny):
    sibling = tiny.arms["sibling"]
    full = replace(sibling, name="full", sha256="3" * 64)
    arms = Arms((*tiny.arms.weights, full), tiny.arms.scratch, {**tiny.arms.by_name, "full": full})
    setting = replace(tiny, arms=arms)
    results, _, rates = fake_results(setting)
    task = summary(setting, results, ("full",), rates)["tasks"][0]
    (row,) = task["ablation"]
    assert (row["arm"], row["share"], row["full_minus_this"]["seeds"]) == ("sibling", 100, 1)
    by_arm = {r["arm"]: r["dice"]["mean"] for r in task["rows"] if r["share"] == 100}
    expected = by_arm["full"] - by_arm["sibling"]
    assert row["full_minus_this"]["mean"] == pytest.approx(expected)
    assert "| 100 % | sibling, full | 1 |" in "\n".join(task_lines(task))


def test_arrays_of_another_version_are_not_mixed_and_other_rounding_is_told(tiny):
    results, _, rates = fake_results(tiny)
    run = next(run for run in results if run.part == "test")
    results[run] = {**results[run], "data_sha256": "otherwise"}
    task = summary(tiny, results, ("full",), rates)["tasks"][0]
    assert len(task["data_sha256"]) == 2
    assert "runs " in (text := "\n".join(task_lines(task)))
    assert "1 of otherwis" in text
    results[run] = {**results[run], "data_version": 2}
    with pytest.raises(CheckpointError, match=r"tiny.*\[1, 2\]"):
        summary(tiny, results, ("full",), rates)


def test_the_page_names_seeds_subjects_and_failures_and_keeps_notes(tiny, tmp_path):
    results, failures, rates = fake_results(tiny)
    report = {
        "command": "evaluate",
        "commit": "0" * 40,
        "mode": "develop",
        "hardware": {"processor": "a chip", "cores": 2},
        "processes": 2,
        "runs": len(results),
        "runs_on": {"a chip": 3, "a GPU": 5},
        "process_hours": 1.0,
        **summary(tiny, results, ("full",), rates),
        "failures": [evaluate.failure(run, text) for run, text in failures.items()],
    }
    output = tmp_path / "results" / "release.json"
    paths = write_report(report, output)
    assert [path.name for path in paths] == ["release.json", "release.md", "release_curves.png"]
    page = output.with_suffix(".md")
    text = page.read_text()
    assert "Test subjects: n = 1" in text
    assert "over seeds" in text
    assert "3 a chip, 5 a GPU." in text
    assert "| 10 % (1) | ours, full | 0.01 | 2 |" in text
    assert "**+0.100 [+0.100, +0.100]**" in text
    assert "(one seed)" in text
    assert "no more memory" in text
    page.write_text(text + "\nA human remark.\n")
    write_report(report, output)
    assert page.read_text().endswith("A human remark.\n")
    assert json.loads(output.read_text())["runs"] == len(results)


EARLIER_FACTS = {
    "command": "evaluate --tasks old", "commit": "1" * 40, "processes": 2, "runs": 7,
    "hardware": {"processor": "a chip", "cores": 2}, "runs_on": {"a chip": 7}, "process_hours": 0.5,
}  # fmt: skip


def two_reports(setting):
    """Return a report of the task "tiny" and an earlier one of "tiny" and "other"."""
    results, _, rates = fake_results(setting)
    new = {
        **EARLIER_FACTS, "command": "evaluate --tasks tiny", "commit": "2" * 40, "mode": "develop",
        "weights": [{"name": "ours", "sha256": "a" * 64, "sibling": False}],
        **summary(setting, results, ("full",), rates), "failures": [],
    }  # fmt: skip
    task = new["tasks"][0]
    other = {**task, "name": "other", "letter": "z", "title": "Another task"}
    probes = [{**probe, "task": "other"} for probe in new["probes"] if probe["task"] == "tiny"]
    sibling = {"name": "sibling", "sha256": "b" * 64, "sibling": True}
    old = {
        **new, **EARLIER_FACTS, "weights": [*new["weights"], sibling],
        "tasks": [task, other], "probes": [*new["probes"], *probes],
    }  # fmt: skip
    return new, old


def test_a_report_of_some_tasks_keeps_those_of_an_earlier_one(tiny, tmp_path):
    new, old = two_reports(tiny)
    (tmp_path / "release.json").write_text(json.dumps(old))
    report = joined(new, read_earlier(tmp_path / "release.json"))
    assert [task["name"] for task in report["tasks"]] == ["tiny", "other"]
    assert [arm["name"] for arm in report["weights"]] == ["ours", "sibling"]
    assert len(report["probes"]) == len(old["probes"])
    page = markdown(report, "", "")
    assert "other: written by `evaluate --tasks old` at commit 111111111111: 7 runs" in page
    assert "tiny: written by `evaluate --tasks tiny` at commit 222222222222" in page
    again = joined({**new, "tasks": [{**old["tasks"][1]}], "probes": []}, report)
    assert [part["tasks"] for part in again["earlier"]] == [["tiny"]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mode": "final"}, "earlier report of the develop tasks"),
        ({"weights": [{"name": "ours", "sha256": "c" * 64, "sibling": False}]}, "same ours"),
        ({"weights": [{"name": "gone", "sha256": "c" * 64, "sibling": False}]}, "Expected gone"),
    ],
)
def test_reports_of_other_weights_or_tasks_are_not_joined(tiny, change, problem):
    new, old = two_reports(tiny)
    with pytest.raises(ConfigError, match=problem):
        joined(new, {**old, **change})


def test_an_earlier_report_that_cannot_be_kept_is_refused(tiny, tmp_path):
    _, old = two_reports(tiny)
    path = tmp_path / "release.json"
    with pytest.raises(ConfigError, match="got none"):
        read_earlier(path)
    for damaged, problem in (
        ("no JSON", "Write it again"),
        ("[]", "Write it again"),
        (json.dumps({**old, "failures": [{"run": "x", "problem": "y"}]}), "with failed runs"),
        (json.dumps({k: v for k, v in old.items() if k != "probes"}), "got no probes"),
    ):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match=problem):
            read_earlier(path)


OWN_ROW = {
    "task": "pre-training", "metric": "restoration", "value": 0.1, "std": 0.0, "n": 1, "seeds": 1,
    "source": "run of x",
}  # fmt: skip


def write_results(setting, folder):
    results, _, rates = fake_results(setting)
    weights = [{"name": "ours", "sha256": "a" * 64}]
    report = {"weights": weights, **summary(setting, results, ("full",), rates)}
    (folder / "release.json").write_text(json.dumps(report))


def test_a_card_gets_dice_and_its_distance_from_scratch(tiny, tmp_path):
    write_results(tiny, tmp_path)
    rows = release_rows("ours", "a" * 64, tmp_path)
    assert [row["metric"].partition(" (")[0] for row in rows[:2]] == [
        "Dice, full transfer",
        "Dice above scratch",
    ]
    assert rows[1]["value"] == pytest.approx(0.1)
    assert "+0.100 to +0.100" in rows[1]["metric"]
    assert rows[0]["seeds"] == 2
    assert rows[0]["source"] == "results/release.json"
    assert any(row["metric"] == "Dice of scratch, not of these weights" for row in rows)
    assert any("hand-made features, frozen" in row["metric"] for row in rows)
    assert any("ablation's 'sibling'" in row["metric"] for row in rows)
    assert release_rows("nobody", "a" * 64, tmp_path) == []
    assert release_rows("ours", "b" * 64, tmp_path) == []  # other weights of that name
    known = json.dumps({"weights": [{"name": "ours", "sha256": "a" * 64}], "tasks": 3})
    for damaged in ("{}", "no JSON", known):
        (tmp_path / "release.json").write_text(damaged)
        with pytest.raises(ConfigError, match=r"release\.json"):
            release_rows("ours", "a" * 64, tmp_path)


def test_a_card_says_where_weights_are_not_better_than_scratch(tiny, tmp_path):
    folder = save_pretrained(
        UNet3D(width=2), tmp_path / "ours", name="ours", license="apache-2.0",
        provenance={"recipe": "x"}, metrics=[OWN_ROW],
    )  # fmt: skip
    before = (folder / "model.safetensors").read_bytes()
    write_results(tiny, tmp_path)
    assert not update_card(folder, tmp_path)  # the report is of other weights
    assert "verdict" not in read_config(folder / "config.json").provenance
    path = tmp_path / "release.json"
    report = json.loads(path.read_text())
    report["weights"][0]["sha256"] = read_config(folder / "config.json").sha256
    row = next(r for r in report["tasks"][0]["rows"] if r["arm"] == "ours" and r["share"] == 100)
    row["dice_difference"] |= {"mean": 0.02, "low": -0.01, "high": 0.05}
    path.write_text(json.dumps(report))
    for _ in range(2):  # written again, nothing stands there twice
        assert update_card(folder, tmp_path)
        config = read_config(folder / "config.json")
        assert [r["source"] for r in config.metrics].count("run of x") == 1
        card = (folder / "README.md").read_text()
        assert card.count("Better than scratch, with the 95 % interval above zero: ") == 1
        assert "Not shown to be better than scratch: " in card
        assert "100 % of the labels (+0.020)" in card
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_missing_arm_is_written_as_missing(tiny):
    results, _, rates = fake_results(tiny)
    kept = {run: r for run, r in results.items() if not (run.arm == "ours" and run.share == 10)}
    found = summary(tiny, kept, ("full",), rates)
    report = {
        "command": "",
        "commit": "",
        "mode": "develop",
        "hardware": {"processor": "", "cores": 1},
        "processes": 1,
        "runs": 0,
        "process_hours": 0.0,
        **found,
        "failures": [],
    }
    assert "| missing | missing |" in markdown(report, "", "")


# ---- command -----------------------------------------------------------------------------------


def test_a_dry_run_reads_no_scan(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "find_arms", lambda *a: tiny.arms)
    monkeypatch.setattr(evaluate, "prepare_task", pytest.fail)
    for name in ("load_packaged", "load_packaged_labels"):
        monkeypatch.setattr(scans, name, pytest.fail)
    assert evaluate.main(["--weights", "somewhere", "--dry-run"]) == 0
    assert "in all about" in capsys.readouterr().err


def test_fits_that_a_processor_would_round_are_announced_and_known_ones_are_read(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("universal_model_hub.devices.cpu_has_bfloat16", lambda: False)
    tasks = evaluate.chosen_tasks(tiny.tasks, (), tiny.mode, "bfloat16")
    setting = replace(tiny, tasks=tasks, kept=tmp_path)
    fits = tuning_runs(setting, ("full",))
    float32 = evaluate.chosen_tasks(tasks, (), tiny.mode, "float32")
    evaluate.say_rounding(fits, replace(setting, tasks=float32))
    evaluate.say_rounding(fits, replace(setting, device="cuda"))
    assert capsys.readouterr().err == ""
    evaluate.say_rounding(fits, setting)
    assert "no bfloat16 (no AVX-512)" in capsys.readouterr().err
    for run in fits:
        result_file(run, setting).write_text("{}")
    evaluate.say_rounding(fits, setting)
    assert capsys.readouterr().err == ""


def test_unknown_tasks_and_a_missing_output_are_refused(tiny, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "find_arms", lambda *a: tiny.arms)
    assert evaluate.main(["--weights", "x", "--develop", "--tasks", "chest"]) == 2
    assert "Expected tasks of develop_chest" in capsys.readouterr().err
    assert evaluate.main(["--weights", "x", "--develop"]) == 2
    assert "--output" in capsys.readouterr().err
