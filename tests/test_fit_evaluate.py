"""Scores of label maps and of class probabilities, their intervals, and the files of them."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from universal_model_hub.errors import ConfigError, GeometryError, VolumeError
from universal_model_hub.fit.reporting import classification
from universal_model_hub.fit.reporting.classification import (
    CaseAnswer,
    classification_scores,
    rate_differences,
    score_answers,
)
from universal_model_hub.fit.reporting.evaluate import ClassScore, segmentation_scores
from universal_model_hub.fit.reporting.intervals import draw_weights, mean_estimate
from universal_model_hub.fit.reporting.summary import (
    CaseScores,
    answer_rows,
    case_rows,
    paired_difference,
    plain,
    summarize,
    write_metrics,
)

SPACING = (0.8, 1.3, 3.0)


def ball(center, radius_mm, shape=(24, 20, 14), spacing=SPACING):
    """A mask of the voxels within a radius of a center in voxels."""
    grid = np.indices(shape) - np.reshape(center, (3, 1, 1, 1))
    return np.square(grid * np.reshape(spacing, (3, 1, 1, 1))).sum(axis=0) <= radius_mm**2


def surface(mask):
    """The coordinates in mm of mask voxels with a face on the outside, the scan's rim included."""
    padded = np.pad(mask, 1)
    inside = padded.copy()
    for axis in range(3):
        inside &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return (np.argwhere(padded & ~inside) - 1) * np.array(SPACING)


def brute_force_hd95(first, second):
    apart = np.linalg.norm(surface(first)[:, None] - surface(second)[None], axis=2)
    return max(np.percentile(apart.min(axis=1), 95), np.percentile(apart.min(axis=0), 95))


def one(predicted, truth, spacing=SPACING):
    (score,) = segmentation_scores(
        predicted.astype(np.int16), truth.astype(np.int16), spacing, {1: "ball"}
    )
    return score


def score_of(dice, label=1, name="ball"):
    """A class score of which only the Dice is of interest."""
    return ClassScore(
        label=label,
        name=name,
        dice=dice,
        iou=None if dice is None else dice / (2 - dice),
        hd95_mm=1.0 if dice else None,
        sensitivity=dice,
        precision=dice or None,
        truth_ml=1.0,
        predicted_ml=float(bool(dice)),
        truth_voxels=1000,
        predicted_voxels=1000 if dice else 0,
    )


def case_of(name, *dices, subject=None):
    scores = tuple(score_of(d, k, f"class {k}") for k, d in enumerate(dices, start=1))
    return CaseScores(case=name, subject=subject or name, classes=scores)


@pytest.mark.parametrize(
    ("center", "radius"),
    [((11, 9, 6), 6.0), ((13, 11, 7), 5.0), ((4, 6, 2), 7.0), ((20, 17, 12), 2.0)],
)
def test_hd95_equals_brute_force_on_anisotropic_balls(center, radius):
    truth, predicted = ball((11, 9, 7), 6.5), ball(center, radius)
    found = one(predicted, truth).hd95_mm
    assert found == pytest.approx(brute_force_hd95(predicted, truth), rel=1e-5)


def test_overlap_scores_have_their_known_values():
    truth, predicted = np.zeros((10, 4, 4)), np.zeros((10, 4, 4))
    truth[2:6, 1:3, 1:3] = 1  # 16 voxels
    predicted[4:7, 1:3, 1:3] = 1  # 12 voxels, 8 of them hits
    score = one(predicted, truth, (1.0, 2.0, 5.0))
    assert score.dice == pytest.approx(16 / 28)
    assert score.iou == pytest.approx(8 / 20)
    assert score.sensitivity == pytest.approx(8 / 16)
    assert score.precision == pytest.approx(8 / 12)
    assert (score.truth_ml, score.predicted_ml) == pytest.approx((0.16, 0.12))
    assert (score.truth_voxels, score.predicted_voxels, score.flag) == (16, 12, None)
    assert score.hd95_mm == pytest.approx(2.0)


def test_what_is_not_defined_is_none_and_says_why():
    mask, empty = ball((11, 9, 7), 6.0), np.zeros((24, 20, 14))
    absent, missed, extra = one(empty, empty), one(empty, mask), one(mask, empty)
    assert (absent.dice, absent.iou, absent.hd95_mm) == (None, None, None)
    assert "does not count" in absent.flag
    assert (missed.dice, missed.sensitivity, missed.precision, missed.hd95_mm) == (0, 0, None, None)
    assert (extra.dice, extra.sensitivity, extra.precision, extra.hd95_mm) == (0, None, 0, None)
    assert "not predicted" in missed.flag
    assert "not in the truth" in extra.flag


def test_voxels_that_are_not_annotated_count_nowhere():
    truth = ball((11, 9, 7), 6.0).astype(np.int16)
    predicted = truth.copy()
    predicted[:, :, :4] = 1  # wrong, but nobody drew these slices
    annotated = truth.copy()
    annotated[:, :, :4] = -1
    assert one(predicted, annotated).dice == 1.0
    assert one(predicted, annotated).hd95_mm == 0.0
    assert one(predicted, annotated).predicted_voxels == np.count_nonzero(truth[:, :, 4:])
    assert one(predicted, truth).dice < 0.9


def test_each_class_is_scored_alone_and_the_background_too_if_asked():
    truth, predicted = np.zeros((12, 12, 12), np.uint8), np.zeros((12, 12, 12), np.uint8)
    truth[1:4], truth[6:9] = 1, 7
    predicted[1:4], predicted[6:8] = 1, 7
    scores = segmentation_scores(
        predicted, truth, (1, 1, 1), {7: "far", 0: "rest", 1: "near", 9: "absent"}
    )
    assert [(s.label, s.name) for s in scores] == [
        (0, "rest"), (1, "near"), (7, "far"), (9, "absent"),
    ]  # fmt: skip
    assert [s.dice for s in scores] == pytest.approx([12 / 13, 1.0, 0.8, None])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_the_type_of_the_integers_does_not_matter(dtype):
    truth, predicted = ball((11, 9, 7), 6.0), ball((12, 9, 7), 6.0)
    (score,) = segmentation_scores(
        predicted.astype(dtype), truth.astype(dtype), SPACING, {1: "ball"}
    )
    assert score == one(predicted, truth)


def test_a_score_is_the_same_after_a_way_through_json():
    score = one(ball((12, 9, 7), 6.0), ball((11, 9, 7), 6.0))
    assert ClassScore(**json.loads(json.dumps(asdict(score)))) == score


@pytest.mark.parametrize(
    ("predicted", "truth", "spacing", "error", "message"),
    [
        (np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), SPACING, GeometryError, "own grid"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2), int), SPACING, VolumeError, "integer"),
        (np.zeros((2, 2), int), np.zeros((2, 2), int), SPACING, VolumeError, "3D"),
        (np.zeros((2, 2, 2), int), np.zeros((2, 2, 2), int), (1, 0, 1), GeometryError, "positive"),
    ],
)
def test_maps_that_do_not_fit_are_refused(predicted, truth, spacing, error, message):
    with pytest.raises(error, match=message):
        segmentation_scores(predicted, truth, spacing, {1: "ball"})


def test_a_class_of_what_is_not_annotated_is_refused():
    empty = np.zeros((2, 2, 2), int)
    with pytest.raises(ConfigError, match="not annotated"):
        segmentation_scores(empty, empty, SPACING, {-1: "nothing"})


def test_the_mean_over_classes_is_taken_in_each_case_first():
    cases = [case_of("a", 0.8, 0.4), case_of("b", 0.6, None), case_of("c", 0.7, 0.1)]
    first, second, everything = summarize(cases)
    assert first.metrics["dice"].value == pytest.approx(0.7)
    assert first.metrics["dice"].sd == pytest.approx(0.1)
    assert second.metrics["dice"].value == pytest.approx(0.25)
    assert (second.metrics["dice"].n, everything.metrics["dice"].n) == (2, 3)
    assert everything.metrics["dice"].value == pytest.approx((0.6 + 0.6 + 0.4) / 3)
    assert everything.metrics["dice"].median == pytest.approx(0.6)
    assert everything.label is None


def test_missed_and_extra_structures_are_counted():
    cases = [case_of("a", 0.8, 0.0), case_of("b", 0.0, 0.5)]
    first, second, everything = summarize(cases)
    assert (first.missed, second.missed, everything.missed, everything.extra) == (1, 1, 2, 0)
    assert first.metrics["hd95_mm"].n == 1


def test_the_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(0.8, 0.05, 200)
    found = mean_estimate(values.tolist(), [str(i) for i in range(200)])
    half = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert found.interval.low == pytest.approx(values.mean() - half, abs=half / 8)
    assert found.interval.high == pytest.approx(values.mean() + half, abs=half / 8)
    assert "over cases, 2,000 draws" in found.interval.method


def test_one_case_and_one_subject_have_no_interval_and_say_so():
    alone = mean_estimate([0.8, None], ["a", "b"])
    same = mean_estimate([0.8, 0.6], ["a", "a"])
    none = mean_estimate([None], ["a"])
    assert (alone.value, alone.sd, alone.interval) == (0.8, None, None)
    assert alone.note == "n = 1: no interval"
    assert (same.value, same.interval) == (pytest.approx(0.7), None)
    assert same.note == "n = 2, 1 subject: no interval"
    assert (none.value, none.note) == (None, "n = 0: no interval")


def test_cases_of_one_subject_are_drawn_together():
    weights = draw_weights(["a", "b", "a", "c"])
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert set((weights[:, 0] + weights[:, 1] + weights[:, 3]).tolist()) == {3.0}
    values = [0.9, 0.1] * 10
    by_case = mean_estimate(values, [str(i) for i in range(20)])
    by_subject = mean_estimate(values, ["good", "bad"] * 10)
    assert by_subject.interval.high - by_subject.interval.low == pytest.approx(0.8)
    assert by_case.interval.high - by_case.interval.low < 0.5
    assert "over subjects" in by_subject.interval.method


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_an_interval_lies_within_the_scores_and_repeats_with_its_seed(values, seed):
    owners = [str(i) for i in range(len(values))]
    found = mean_estimate(values, owners, seed=seed)
    assert min(values) - 1e-9 <= found.interval.low <= found.interval.high <= max(values) + 1e-9
    assert mean_estimate(values, owners, seed=seed) == found


def test_a_paired_difference_takes_out_how_hard_a_case_is():
    rng = np.random.default_rng(1)
    hard = rng.uniform(0.2, 0.9, 12)
    ours = [case_of(str(i), d + 0.05) for i, d in enumerate(hard)]
    theirs = [case_of(str(i), d) for i, d in reversed(list(enumerate(hard)))]
    found = paired_difference(ours, theirs)
    assert found.value == pytest.approx(0.05)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.05, 0.05))
    assert paired_difference(theirs, ours).value == pytest.approx(-0.05)


def test_a_paired_difference_counts_what_both_arms_have():
    ours = [case_of("a", 0.8, None), case_of("b", 0.5, 0.5), case_of("only ours", 1.0, 1.0)]
    theirs = [case_of("a", 0.6, 0.0), case_of("b", 0.5, 0.3)]
    found = paired_difference(ours, theirs)
    assert found.n == 2
    assert found.value == pytest.approx((0.2 + 0.1) / 2)
    assert paired_difference(ours, theirs, label=2).value == pytest.approx(0.2)


def test_a_case_that_is_there_twice_is_refused():
    with pytest.raises(ConfigError, match="once"):
        summarize([case_of("a", 0.8), case_of("a", 0.8)])


def three_classes(n=60, seed=0, decimals=1):
    """Probabilities with many ties, and their truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n)
    logits = rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[truth]
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).round(decimals), truth


def test_rates_equal_those_of_scikit_learn():
    probabilities, truth = three_classes()
    found = classification_scores(probabilities, truth, {0: "no", 1: "small", 2: "large"})
    predicted = probabilities.argmax(axis=1)
    assert found.accuracy.value == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert found.balanced_accuracy.value == pytest.approx(
        metrics.balanced_accuracy_score(truth, predicted)
    )
    areas = [metrics.roc_auc_score(truth == k, probabilities[:, k]) for k in range(3)]
    assert found.auc.value == pytest.approx(np.mean(areas))
    recall = metrics.recall_score(truth, predicted, average=None)
    assert [row.sensitivity.value for row in found.classes] == pytest.approx(recall)
    others = metrics.recall_score(truth != 1, predicted != 1)
    assert found.classes[1].specificity.value == pytest.approx(others)
    assert np.array_equal(found.confusion, metrics.confusion_matrix(truth, predicted))
    assert found.auc.interval.low < found.auc.value < found.auc.interval.high


def test_each_draw_has_the_rates_of_the_cases_it_drew():
    probabilities, truth = three_classes(25)
    weights = draw_weights([str(i) for i in range(25)])[:20]
    found = classification._weighted_rates(probabilities, truth, weights)
    for number, counts in enumerate(weights.astype(int)):
        drawn, scores = np.repeat(truth, counts), np.repeat(probabilities, counts, axis=0)
        area = metrics.roc_auc_score(drawn == 2, scores[:, 2])
        assert found.by_class["auc"][2, number] == pytest.approx(area)
        accuracy = metrics.accuracy_score(drawn, scores.argmax(axis=1))
        assert found.overall["accuracy"][number] == pytest.approx(accuracy)


def test_with_one_class_alone_there_is_no_auc():
    probabilities = np.array([[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    found = classification_scores(probabilities, np.ones(3, int), {0: "no", 1: "yes"})
    assert (found.auc.value, found.auc.interval) == (None, None)
    assert found.accuracy.value == pytest.approx(2 / 3)
    assert found.classes[0].sensitivity.value is None
    assert found.classes[1].specificity.value is None
    assert found.balanced_accuracy.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("probabilities", "truth", "message"),
    [
        (np.zeros((3, 3)), np.zeros(3, int), "a row a case"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), "0 to 1"),
        (np.full((3, 2), np.nan), np.zeros(3, int), "finite"),
        (np.zeros((0, 2)), np.zeros(0, int), "at least one"),
    ],
)
def test_probabilities_that_do_not_fit_are_refused(probabilities, truth, message):
    with pytest.raises(ConfigError, match=message):
        classification_scores(probabilities, truth, {0: "no", 1: "yes"})


def answers_of(chances, truth):
    return [
        CaseAnswer(case=str(i), subject=str(i), truth=t, probabilities=(1 - p, p))
        for i, (p, t) in enumerate(zip(chances, truth, strict=True))
    ]


def test_differences_of_rates_are_paired_by_case():
    truth = [0, 1] * 10
    good = answers_of([0.1 + 0.8 * t for t in truth], truth)
    poor = answers_of([0.1 if i < 4 else 0.1 + 0.8 * t for i, t in enumerate(truth)], truth)
    found = rate_differences(good, list(reversed(poor)))
    assert found["accuracy"].value == pytest.approx(0.1)
    assert found["auc"].value == pytest.approx(0.1)
    assert found["accuracy"].interval.low >= 0
    odd = [replace(poor[0], truth=1), *poor[1:]]
    with pytest.raises(ConfigError, match="same class"):
        rate_differences(good, odd)


def test_metrics_are_written_as_plain_json_and_a_row_a_case_and_class(tmp_path: Path):
    cases = [case_of("a,b", 0.8, None), case_of("c", 0.25, 0.5)]
    write_metrics(tmp_path, {"results": summarize(cases)}, case_rows("pretrained", cases))
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values["results"][0]["metrics"]["dice"]["value"] == pytest.approx(0.525)
    assert values["results"][0]["metrics"]["dice"]["interval"]["level"] == 0.95
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["arm"], r["case"], r["name"], r["dice"]) for r in rows] == [
        ("pretrained", "a,b", "class 1", "0.8"),
        ("pretrained", "a,b", "class 2", ""),
        ("pretrained", "c", "class 1", "0.25"),
        ("pretrained", "c", "class 2", "0.5"),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.csv", "metrics.json"]


def test_classified_cases_have_a_row_a_class(tmp_path: Path):
    answers = answers_of([0.9, 0.2], [1, 1])
    rows = answer_rows("from scratch", answers, {0: "no", 1: "yes"})
    write_metrics(tmp_path, {"scores": score_answers(answers, {0: "no", 1: "yes"})}, rows)
    text = (tmp_path / "metrics.csv").read_text().splitlines()
    assert text[0] == "arm,case,subject,label,name,probability,truth,predicted"
    assert text[2] == "from scratch,0,0,1,yes,0.9,1,1"
    assert len(text) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), Path("scan.nii")])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(value, tmp_path: Path):
    with pytest.raises(ConfigError, match="Expected finite numbers"):
        write_metrics(tmp_path, {"score": [value]}, [])
    assert not list(tmp_path.iterdir())


def test_numpy_values_become_plain_ones():
    values = plain({1: np.float32(0.5), "n": np.int64(3), "row": np.arange(2), "no": np.bool_(0)})
    assert json.dumps(values) == '{"1": 0.5, "n": 3, "row": [0, 1], "no": false}'
