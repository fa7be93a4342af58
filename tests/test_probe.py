"""The probe: what features hold is found, what they do not hold is not; sides stay apart."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import universal_model_hub
from universal_model_hub.errors import ConfigError, GeometryError, VolumeError
from universal_model_hub.job import make_job
from universal_model_hub.networks.unet3d import Encoder, UNet3D
from universal_model_hub.preprocess import Preprocessing, preprocess
from universal_model_hub.probe import curve_picture, probe
from universal_model_hub.probe.arms import (
    ENCODER,
    HAND_MADE,
    RANDOM,
    SETTLED,
    HandMade,
    arm_maps,
    gradient_length,
    local_mean,
    random_weights,
    settle_statistics,
    side_by_side,
)
from universal_model_hub.probe.asking import draw_held_out
from universal_model_hub.probe.classifiers import (
    CLASSIFIERS,
    Lesson,
    area_under_curve,
    balanced_accuracy,
    folds_of,
)
from universal_model_hub.probe.curve import (
    MAJORITY,
    different_draws,
    draw_labels,
    over_subjects,
    spread,
)
from universal_model_hub.probe.encoding import (
    model_voxels,
    scan_features,
    tile_plan,
    voxel_features,
)
from universal_model_hub.probe.samples import Samples, hold_out_slab
from universal_model_hub.probe.voxels import draw_voxels
from universal_model_hub.volume import Volume

AFFINE = np.array([[-1.5, 0, 0, 9], [0, -1.5, 0, 4], [0, 0, 2.0, -7], [0, 0, 0, 1]])  # LPS
LITTLE_MEMORY = 245 << 20  # bytes: the large scan of these tests does not fit in one pass


def encoder(width: int = 4) -> Encoder:
    torch.manual_seed(0)
    model = Encoder(width=width).train(False)
    model.preprocessing = Preprocessing(spacing=None)  # type: ignore[assignment]
    return model


def scan_with_labels(seed: int) -> tuple[Volume, Volume]:
    """A noisy synthetic CT with two bright boxes of different intensity, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((18, 16, 14), np.uint8)
    x, y, z = rng.integers(2, 5, 3)
    labels[x : x + 5, y : y + 5, z : z + 5] = 1
    labels[11:16, y : y + 6, z : z + 6] = 3
    hu = np.choose(labels, [-800, 0, 0, 600]) + rng.normal(0, 20, labels.shape)
    return Volume(hu.astype(np.float32), AFFINE), Volume(labels, AFFINE)


def labeled(count: int) -> tuple[list[Volume], list[Volume]]:
    images, labels = zip(*(scan_with_labels(seed) for seed in range(count)), strict=True)
    return list(images), list(labels)


def samples_of(
    subjects: list[int], classes: list[int], held_out: list[int], width: int = 3
) -> Samples:
    """Samples whose features tell their class apart in the arm ENCODER, and nothing in RANDOM."""
    rng = np.random.default_rng(0)
    found = np.array(classes)
    told = np.eye(max(classes) + 1, width)[found] + rng.normal(0, 0.05, (len(found), width))
    noise = rng.normal(size=(len(found), width))
    return Samples(
        features={ENCODER: told, SETTLED: told, RANDOM: noise, HAND_MADE: noise},
        classes=found,
        subjects=np.array(subjects),
        planes=np.arange(len(found)),
        held_out=np.isin(subjects, held_out),
        names=tuple("abc"[: max(classes) + 1]),
    )


# the whole


def test_classes_that_the_features_hold_are_found_and_majority_is_at_chance():
    images, labels = labeled(4)
    result = probe(encoder(), images, labels=labels, modality="CT", shares=[100], points=40)
    for arm in (ENCODER, HAND_MADE):
        for classifier in CLASSIFIERS:
            assert result.row(arm, classifier, 100).balanced_accuracy.mean > 0.9
    majority = result.row(MAJORITY, None, 100)
    assert majority.balanced_accuracy.mean == pytest.approx(1 / 3)
    assert majority.auc.mean == 0.5
    assert result.classes == ("background", "1", "3")
    assert (result.train_subjects, result.test_subjects) == (3, 1)


def test_random_labels_are_not_found():
    images, _ = labeled(6)
    rng = np.random.default_rng(1)
    labels = [Volume(rng.integers(0, 2, scan.shape, np.uint8), AFFINE) for scan in images]
    result = probe(encoder(), images, labels=labels, modality="CT", shares=[100], points=150)
    for row in result.rows:
        assert row.balanced_accuracy.mean == pytest.approx(0.5, abs=0.08)
        assert row.auc.mean == pytest.approx(0.5, abs=0.08)


def test_whole_scans_are_told_apart_by_their_class():
    rng = np.random.default_rng(0)
    kinds = ["dark", "bright"] * 5
    images = [
        Volume(rng.normal(0, 60, (10, 9, 12)) - 500 * (kind == "dark"), AFFINE) for kind in kinds
    ]
    result = probe(encoder(), images, targets=kinds, modality="CT", shares=[1, 100], levels="all")
    assert result.task == "classification"
    assert result.classes == ("bright", "dark")
    for classifier in CLASSIFIERS:
        assert result.row(ENCODER, classifier, 100).balanced_accuracy.mean == 1
    least = result.row(ENCODER, "linear", 1)
    assert (least.num_subjects, least.num_samples, least.slab) == (2, 2, False)


def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    images, labels = labeled(3)
    model = encoder()

    def run(seed: int):
        return probe(
            model, images, labels=labels, modality="CT", shares=[20], seeds=2, points=10, seed=seed
        )

    first = run(0)
    assert run(0) == first
    assert run(1).rows != first.rows


def test_the_model_is_left_as_it_was():
    images, labels = labeled(3)
    model = UNet3D(width=2)
    model.preprocessing = Preprocessing(spacing=None)  # type: ignore[assignment]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe(model, images, labels=labels, modality="CT", shares=[100], points=10)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert model.encoder.out_indices == (0, 1, 2, 3)


def test_a_lone_subject_is_asked_within_a_slab_and_the_result_says_so():
    images, labels = labeled(1)
    result = probe(encoder(), images, labels=labels, modality="CT", shares=[30], seeds=2, points=60)
    assert result.within_subject
    assert any("within one subject" in note for note in result.notes)
    assert "within one subject" in result.text()
    row = result.row(ENCODER, "linear", 30)
    assert row.slab
    assert row.num_samples == round(0.3 * result.train_samples)
    assert row.balanced_accuracy.subjects_low is None


def test_channels_run_alone_and_their_features_are_joined():
    images, labels = labeled(3)
    pairs = [(scan, Volume(scan.array + 1000, AFFINE)) for scan in images]
    result = probe(encoder(), pairs, labels=labels, modality=("CT", "MR"), shares=[100], points=20)
    assert any("2 channels" in note for note in result.notes)
    assert result.row(ENCODER, "linear", 100).balanced_accuracy.mean > 0.8


def test_the_result_is_json_a_table_and_a_picture():
    images, labels = labeled(3)
    result = probe(
        encoder(), images, labels=labels, modality="CT", shares=[10, 100], points=10, seeds=2,
        label_names={1: "liver"},
    )  # fmt: skip
    found = json.loads(json.dumps(result.to_json()))
    assert found["classes"] == ["background", "liver", "3"]
    assert len(found["rows"]) == 2 * (4 * 2 + 1) == len(result.rows)
    first = found["rows"][0]
    assert first["balanced_accuracy"]["n"] == 2
    text = result.text()
    assert f"{first['balanced_accuracy']['mean']:.3f}" in text
    assert "random weights" in text
    assert "hand-made" in text
    assert "a slab of 1 subject" in text
    assert curve_picture(result).startswith(b"\x89PNG")
    assert b"</svg>" in curve_picture(result, "svg")


# what cannot be asked


def test_one_class_only_is_refused():
    images, _ = labeled(3)
    labels = [Volume(np.zeros(scan.shape, np.uint8), AFFINE) for scan in images]
    with pytest.raises(ConfigError, match="two classes in the data, got background"):
        probe(encoder(), images, labels=labels, modality="CT")


def test_one_class_on_a_side_is_refused():
    images, _ = labeled(3)
    with pytest.raises(ConfigError, match="two classes in the training subjects, got a"):
        probe(
            encoder(), images, targets=["a", "a", "b"], modality="CT", held_out=[False, False, True]
        )


def test_a_subject_on_both_sides_is_refused():
    images, labels = labeled(3)
    with pytest.raises(ConfigError, match="got p1 among those"):
        probe(
            encoder(), images, labels=labels, subjects=["p1", "p2", "p1"],
            held_out=[True, False, False],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "labels .* or targets"),
        ({"labels": [], "targets": []}, "labels .* or targets"),
        ({"targets": ["a"]}, "targets for 3 scans, got 1"),
        ({"targets": ["a", "b", "a"], "subjects": ["p"] * 3}, "at least two subjects, got 1"),
        ({"targets": ["a", "b", "a"], "held_out": [False] * 3}, "got 0 of 3 held out"),
        ({"targets": ["a", "b", "a"], "shares": [0, 5]}, "shares above 0"),
        ({"targets": ["a", "b", "a"], "shares": [101]}, "up to 100"),
        ({"targets": ["a", "b", "a"], "seeds": 0}, "seeds to be a whole number"),
        ({"targets": ["a", "b", "a"], "levels": "finest"}, "levels to be one of"),
        ({"targets": ["a", "b", "a"], "modality": ("CT", "MR")}, "1. channels and 2 modalities"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(options, message):
    images, _ = labeled(3)
    with pytest.raises(ConfigError, match=message):
        probe(encoder(), images, **options)


def test_labels_off_their_scan_are_refused():
    images, labels = labeled(2)
    cropped = [Volume(volume.array[1:], AFFINE) for volume in labels]
    with pytest.raises(GeometryError, match="scan's shape"):
        probe(encoder(), images, labels=cropped, modality="CT")
    moved = AFFINE.copy()
    moved[2, 3] += 3
    with pytest.raises(GeometryError, match="up to 2 voxels off"):
        probe(encoder(), images, labels=[Volume(v.array, moved) for v in labels], modality="CT")


def test_a_scan_in_place_of_a_label_map_is_refused():
    images, _ = labeled(2)
    with pytest.raises(VolumeError, match="Expected a label map"):
        probe(encoder(), images, labels=images, modality="CT")


def test_a_missing_extra_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    images, labels = labeled(2)
    with pytest.raises(ConfigError, match=r"pip install 'universal_model_hub\[finetune\]'"):
        probe(encoder(), images, labels=labels)


def test_the_function_is_the_packages_and_is_not_hidden_by_its_module():
    assert universal_model_hub.probe is probe


# encoding


@pytest.mark.parametrize("memory_limit", [None, LITTLE_MEMORY])
def test_voxel_features_equal_those_of_whole_maps(memory_limit):
    rng = np.random.default_rng(0)
    scan = Volume(rng.normal(0, 300, (60, 50, 150)).astype(np.float32), AFFINE)
    model = encoder()
    network = side_by_side(model, deepest_only=False, seed=1)
    options = {"device": None, "precision": "float32", "tile_batch": 1, "progress": False}
    job = make_job(model, network, scan, modality="CT", memory_limit=memory_limit, **options)
    index = np.stack([rng.integers(0, n, 200) for n in scan.shape], axis=1)
    found = voxel_features(job, index)

    grid, record = preprocess(scan, model, "CT")
    at = model_voxels(record, index)
    with torch.inference_mode():
        for arm, maps in arm_maps(network.train(False)(grid)).items():
            whole = []
            for level, features in enumerate(maps):
                x, y, z = (at // 2**level).T
                whole.append(features[0].numpy()[:, x, y, z].T)
            assert np.allclose(found[arm], np.concatenate(whole, axis=1), atol=1e-4), arm


def test_a_small_memory_limit_cuts_the_scan_into_tiles():
    scan = Volume(np.zeros((60, 50, 150), np.float32), AFFINE)
    model = encoder()
    network = side_by_side(model, deepest_only=False, seed=1)
    options = {"device": None, "precision": "float32", "tile_batch": 1, "progress": False}
    job = make_job(model, network, scan, modality="CT", memory_limit=LITTLE_MEMORY, **options)
    _, _, bytes_per_voxel = job.probe()
    budget = job.budget(bytes_per_voxel, 0, answer=0)
    assert len(tile_plan(job).tiles(budget.voxels(bytes_per_voxel))) > 1


def test_own_voxels_are_led_to_where_they_lie_on_the_model_grid():
    rng = np.random.default_rng(0)
    scan = Volume(rng.normal(0, 300, (9, 8, 7)).astype(np.float32), AFFINE)
    _, record = preprocess(scan, Preprocessing(spacing=(1.0, 1.0, 1.0)), "CT")
    index = np.stack([rng.integers(0, n, 50) for n in scan.shape], axis=1)
    at = model_voxels(record, index)
    world = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    reached = at @ record.model_affine[:3, :3].T + record.model_affine[:3, 3]
    assert np.abs(world - reached).max() <= 0.5 + 1e-9  # half a voxel of 1 mm


def test_scan_features_are_the_means_of_whole_maps_and_quantiles_beside():
    rng = np.random.default_rng(0)
    scan = Volume(rng.normal(0, 300, (30, 26, 22)).astype(np.float32), AFFINE)
    model = encoder()
    network = side_by_side(model, deepest_only=True, seed=1)
    options = {"device": None, "precision": "float32", "tile_batch": 1, "progress": False}
    job = make_job(model, network, scan, modality="CT", memory_limit=None, **options)
    found = scan_features(job)
    grid, _ = preprocess(scan, model, "CT")
    with torch.inference_mode():
        assert np.allclose(found[ENCODER], model.embed(grid)[0].numpy(), atol=1e-5)
        means = HandMade()(grid).mean(dim=(2, 3, 4))[0].numpy()
    assert np.allclose(found[HAND_MADE][:6], means, atol=1e-5)
    assert found[HAND_MADE][9] == pytest.approx(float(np.quantile(grid.numpy(), 0.5)), abs=1e-6)


def test_local_means_and_gradients_equal_brute_force():
    x = torch.rand(1, 1, 6, 7, 5, generator=torch.Generator().manual_seed(0))
    mean = local_mean(x, 5)
    assert float(mean[0, 0, 0, 3, 4]) == pytest.approx(float(x[0, 0, :3, 1:6, 2:].mean()), rel=1e-5)
    ramp = 3 * torch.arange(6.0).view(1, 1, 6, 1, 1) + 4 * torch.arange(5.0)
    inner = gradient_length(ramp.expand(1, 1, 6, 4, 5).contiguous())[0, 0, 1:-1, :, 1:-1]
    assert torch.allclose(inner, torch.full_like(inner, 5.0))


def test_a_random_network_differs_from_the_encoder_and_comes_back_with_its_seed():
    model = encoder()
    one, same, other = (random_weights(model, seed) for seed in (1, 1, 2))
    name = "levels.0.units.0.conv.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], model.state_dict()[name])


def test_settled_statistics_are_those_of_the_cubes():
    norm = torch.nn.Sequential(torch.nn.BatchNorm3d(1))
    cubes = [torch.full((1, 1, 2, 2, 2), value) for value in (1.0, 3.0)]
    settle_statistics(norm, cubes)
    assert float(norm[0].running_mean) == 2.0
    assert not norm.training
    assert norm[0].momentum == 0.1


def test_an_encoder_with_foreign_statistics_is_mended_by_those_of_the_scans():
    images, labels = labeled(4)
    model = encoder()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_mean += 5  # of other scans: no unit fires any more
    result = probe(model, images, labels=labels, modality="CT", shares=[100], points=40)
    foreign, settled = (
        result.row(arm, "linear", 100).balanced_accuracy.mean for arm in (ENCODER, SETTLED)
    )
    assert foreign < 0.6
    assert settled > 0.9


def test_an_encoder_without_initialization_is_refused():
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

    with pytest.raises(ConfigError, match=r"reset_parameters\(\)"):
        random_weights(Bare(), 0)


# drawing


@pytest.mark.parametrize("order", ["C", "F"])
def test_drawn_voxels_have_their_labels_and_none_is_drawn_twice(order):
    rng = np.random.default_rng(0)
    labels = np.asarray(rng.integers(-1, 3, (7, 8, 9)), dtype=np.int16, order=order)
    labels[3, 3, :4] = 60
    drawn = draw_voxels(labels, 20, rng)
    assert np.array_equal(labels[tuple(drawn.index.T)], drawn.values)
    assert len(np.unique(drawn.index, axis=0)) == len(drawn.index)
    counts = dict(zip(*np.unique(drawn.values, return_counts=True), strict=True))
    assert counts == {0: 20, 1: 20, 2: 20, 60: 4}
    assert len(drawn.at_most(5).values) == 3 * 5 + 4
    assert (np.diff(drawn.along(2).index[:, 2]) >= 0).all()


def test_every_voxel_of_a_label_is_as_likely_to_be_drawn():
    labels = np.zeros((3, 4, 5), np.uint8)
    hits = np.zeros(labels.shape)
    for seed in range(2000):
        index = draw_voxels(labels, 6, np.random.default_rng(seed)).index
        hits[tuple(index.T)] += 1
    assert np.abs(hits / 2000 - 0.1).max() < 0.03


def test_fractions_are_no_labels():
    with pytest.raises(VolumeError, match="got fractions"):
        draw_voxels(np.full((3, 3, 3), 0.4), 5, np.random.default_rng(0))


@pytest.mark.parametrize(("percent", "count"), [(10, 1), (25, 3), (100, 10)])
def test_shares_are_honored_in_whole_subjects_and_never_touch_those_held_out(percent, count):
    subjects = [s for s in range(12) for _ in range(6)]
    samples = samples_of(subjects, [0, 1, 2] * 24, [3, 7])
    for draw in different_draws(samples, percent, 4, whole_scans=False, seed=0):
        used = set(samples.subjects[draw.rows].tolist())
        assert len(used) == draw.num_subjects == count
        assert not draw.slab
        assert not used & {3, 7}
        assert len(draw.rows) == 6 * count


def test_less_than_a_subject_is_a_contiguous_slab_of_one():
    subjects = [s for s in range(4) for _ in range(40)]
    samples = samples_of(subjects, [0, 1] * 80, [0])
    draw = draw_labels(samples, 10, np.random.default_rng(0), whole_scans=False)
    assert draw.slab
    assert draw.num_subjects == 1
    assert len(draw.rows) == round(0.1 * 3 * 40)
    assert (np.diff(draw.rows) == 1).all()
    assert len(set(samples.subjects[draw.rows].tolist())) == 1


def test_few_ways_to_draw_give_few_draws_and_all_labels_give_one():
    subjects = [s for s in range(4) for _ in range(6)]
    samples = samples_of(subjects, [0, 1] * 12, [0])
    one_of_three = different_draws(samples, 34, 8, whole_scans=False, seed=0)
    assert len({draw.rows.tobytes() for draw in one_of_three}) == len(one_of_three) == 3
    assert len(different_draws(samples, 100, 8, whole_scans=False, seed=0)) == 1


def test_whole_scans_are_drawn_with_a_subject_of_every_class():
    samples = samples_of(list(range(20)), [0] * 15 + [1] * 3 + [2] * 2, [0, 15, 18])
    for draw in different_draws(samples, 1, 5, whole_scans=True, seed=0):
        assert sorted(samples.classes[draw.rows].tolist()) == [0, 1, 2]


def test_held_out_subjects_keep_all_their_scans_together_and_have_each_class():
    subjects = [f"p{k // 2}" for k in range(24)]
    targets = ["a" if k < 16 else "b" for k in range(24)]
    sides = draw_held_out(subjects, targets, np.random.default_rng(0))
    for name in set(subjects):
        assert (
            len({side for side, owner in zip(sides, subjects, strict=True) if owner == name}) == 1
        )
    assert {t for t, side in zip(targets, sides, strict=True) if side} == {"a", "b"}
    assert sum(sides) == 2 * (2 + 1)


def test_the_slab_that_is_held_out_has_both_classes_and_leaves_both():
    classes = [0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1]
    held = hold_out_slab(replace(samples_of([0] * 12, classes, []), planes=np.arange(12)))
    planes = held.planes[held.test]
    assert planes.max() - planes.min() + 1 == len(planes) == 3
    for side in (held.test, held.train):
        assert set(held.classes[side].tolist()) == {0, 1}


# classifiers and scores


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_learn_what_is_there_and_cope_with_one_class(name):
    samples = samples_of([k // 6 for k in range(60)], [0, 1, 2] * 20, [8, 9])
    rows = samples.train
    folds = folds_of(samples.classes[rows], samples.subjects[rows], np.random.default_rng(0))
    features = samples.features[ENCODER]
    asked, truth = features[samples.test], samples.classes[samples.test]
    answer = CLASSIFIERS[name](Lesson(features[rows], samples.classes[rows], folds, 3), asked)
    assert balanced_accuracy(truth, answer.predicted) == 1
    assert area_under_curve(truth, answer.scores) == 1
    lone = rows[samples.classes[rows] == 1]
    answer = CLASSIFIERS[name](Lesson(features[lone], samples.classes[lone], [], 3), asked)
    assert set(answer.predicted.tolist()) == {1}
    assert area_under_curve(truth, answer.scores) == 0.5


def test_folds_keep_subjects_whole_and_cover_all_rows():
    subjects = np.repeat(np.arange(7), 4)
    classes = np.tile([0, 1], 14)
    folds = folds_of(classes, subjects, np.random.default_rng(0))
    assert sorted(np.concatenate([judged for _, judged in folds]).tolist()) == list(range(28))
    for learned, judged in folds:
        assert not set(subjects[learned]) & set(subjects[judged])


def test_folds_of_one_subject_are_blocks_and_those_of_one_class_are_left_out():
    folds = folds_of(np.tile([0, 1], 30), np.zeros(60, int), np.random.default_rng(0))
    assert len(folds) == 3
    assert all(np.isin(judged // 10, np.unique(judged // 10)).all() for _, judged in folds)
    assert folds_of(np.array([0, 1]), np.array([0, 1]), np.random.default_rng(0)) == []


def test_scores_equal_known_answers():
    truth, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert balanced_accuracy(truth, predicted) == pytest.approx((2 / 3 + 1) / 2)
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.5, 0.5]])
    assert area_under_curve(truth, scores) == pytest.approx(2 / 3)


def test_the_interval_over_draws_is_students():
    found = spread([0.6, 0.7, 0.8], None)
    assert (found.mean, found.sd) == (pytest.approx(0.7), pytest.approx(0.1))
    assert found.high == pytest.approx(0.7 + 4.302653 * 0.1 / np.sqrt(3))
    assert spread([0.7], None).low is None


def test_the_interval_over_subjects_brackets_the_score_and_needs_two():
    truth = np.tile([0, 1], 40)
    subjects = np.repeat(np.arange(8), 10)
    predicted = np.where(subjects % 4 == 0, 1 - truth, truth)[None]  # two of eight all wrong
    low, high = over_subjects(truth, predicted, subjects, 0)
    assert low < 0.75 < high < 1.01
    assert over_subjects(truth, predicted, np.zeros(80, int), 0) is None
