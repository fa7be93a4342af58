"""The low-label curve: how well classifiers do that were given only some of the labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from universal_model_hub.extras import needed
from universal_model_hub.inference import progress_bar
from universal_model_hub.probe.arms import ARMS
from universal_model_hub.probe.classifiers import (
    CLASSIFIERS,
    Answer,
    Lesson,
    area_under_curve,
    balanced_accuracy,
    folds_of,
)
from universal_model_hub.probe.results import ProbeRow, Spread
from universal_model_hub.probe.samples import Samples

MAJORITY = "majority class"
LEVEL = 0.95  # of the intervals
BOOTSTRAPS = 2000
TRIES = 50  # to draw labels of two classes, and labels that no other seed has drawn


@dataclass(frozen=True)
class Labeled:
    """The labels that one draw gives away."""

    rows: np.ndarray  # of the samples
    num_subjects: int
    slab: bool  # less than a subject


def low_label_curve(
    samples: Samples,
    percents: Sequence[float],
    num_seeds: int,
    *,
    whole_scans: bool,
    seed: int,
    progress: bool,
) -> list[ProbeRow]:
    """Fit every classifier on every arm for every share and draw of the labels.

    Args:
        samples: With both sides.
        percents: Shares of the labeled training subjects, 0 to 100.
        num_seeds: Draws of each share; equal ones count once.
        whole_scans: Samples are scans: a draw has a subject of every class.
        seed: Of the draws.
        progress: Show a bar on stderr.
    """
    draws = {
        percent: different_draws(samples, percent, num_seeds, whole_scans=whole_scans, seed=seed)
        for percent in percents
    }
    rows = []
    total = sum(map(len, draws.values())) * len(ARMS) * len(CLASSIFIERS)
    with progress_bar(total, "fit", progress) as bar:
        for percent, some in draws.items():
            for arm in ARMS:
                for name in CLASSIFIERS:
                    answers = []
                    for number, labeled in enumerate(some):
                        answers.append(_answer(samples, labeled, arm, name, (seed, number)))
                        bar.update()
                    rows.append(_row(samples, percent, some, answers, (arm, name), seed))
            answers = [_majority(samples, labeled) for labeled in some]
            rows.append(_row(samples, percent, some, answers, (MAJORITY, None), seed))
    return rows


def different_draws(
    samples: Samples, percent: float, num_seeds: int, *, whole_scans: bool, seed: int
) -> list[Labeled]:
    """Draw labels once a seed; where there are few ways to draw, fewer draws come back."""
    found: dict[bytes, Labeled] = {}
    for number in range(num_seeds):
        rng = np.random.default_rng([seed, round(1000 * percent), number])
        for _ in range(TRIES):
            labeled = draw_labels(samples, percent, rng, whole_scans=whole_scans)
            if labeled.rows.tobytes() not in found:
                found[labeled.rows.tobytes()] = labeled
                break
    return list(found.values())


def draw_labels(
    samples: Samples, percent: float, rng: np.random.Generator, *, whole_scans: bool
) -> Labeled:
    """Draw a share of the training subjects, or a slab of one where the share is less than one.

    The labels are of two classes at least, unless many tries gave only one.

    Args:
        samples: With both sides.
        percent: Of the training subjects.
        rng: Draws.
        whole_scans: Samples are scans: at least a subject of every class is drawn.
    """
    train = samples.train
    subjects = np.unique(samples.subjects[train])
    wanted = percent / 100 * len(subjects)
    for _ in range(TRIES):
        if wanted < 1 and not whole_scans:
            rows = _slab(samples, rng.choice(subjects), wanted, rng)
            labeled = Labeled(rows, 1, slab=True)
        else:
            chosen = rng.permutation(subjects)
            if whole_scans:
                chosen = _one_of_each_class_first(samples, chosen)
                wanted = max(wanted, len(np.unique(samples.classes[train])))
            chosen = chosen[: max(1, math.floor(wanted + 0.5))]
            rows = train[np.isin(samples.subjects[train], chosen)]
            labeled = Labeled(rows, len(chosen), slab=False)
        if len(np.unique(samples.classes[labeled.rows])) > 1:
            break
    return labeled


def _slab(samples: Samples, subject: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return neighboring samples of one subject, a share of them, from a random place on."""
    rows = samples.train[samples.subjects[samples.train] == subject]
    count = min(len(rows), max(2, round(share * len(rows))))
    start = int(rng.integers(0, len(rows) - count + 1))
    return rows[start : start + count]


def _one_of_each_class_first(samples: Samples, subjects: np.ndarray) -> np.ndarray:
    """Move subjects to the front so that the first few have scans of every class."""
    train = samples.train
    first: list[int] = []
    for number in np.unique(samples.classes[train]):
        having = samples.subjects[train[samples.classes[train] == number]]
        if not np.isin(first, having).any():
            first.append(int(subjects[np.isin(subjects, having)][0]))
    return np.array(first + [int(s) for s in subjects if s not in first])


def _answer(
    samples: Samples, labeled: Labeled, arm: str, name: str, key: tuple[int, int]
) -> Answer:
    features, rows = samples.features[arm], labeled.rows
    classes = samples.classes[rows]
    folds = folds_of(classes, samples.subjects[rows], np.random.default_rng(key))
    asked = features[samples.test]
    lesson = Lesson(features[rows], classes, folds, len(samples.names))
    return CLASSIFIERS[name](lesson, asked)


def _majority(samples: Samples, labeled: Labeled) -> Answer:
    counts = np.bincount(samples.classes[labeled.rows], minlength=len(samples.names))
    scores = np.tile(counts / counts.sum(), (len(samples.test), 1))
    return Answer(scores.argmax(axis=1), scores)


def _row(
    samples: Samples,
    percent: float,
    draws: Sequence[Labeled],
    answers: Sequence[Answer],
    names: tuple[str, str | None],
    seed: int,
) -> ProbeRow:
    truth = samples.classes[samples.test]
    predicted = np.stack([answer.predicted for answer in answers])
    interval = over_subjects(truth, predicted, samples.subjects[samples.test], seed)
    accuracies = [balanced_accuracy(truth, one) for one in predicted]
    areas = [area_under_curve(truth, answer.scores) for answer in answers]
    return ProbeRow(
        percent=percent,
        num_subjects=draws[0].num_subjects,
        num_samples=round(float(np.mean([len(draw.rows) for draw in draws]))),
        slab=draws[0].slab,
        features=names[0],
        classifier=names[1],
        balanced_accuracy=spread(accuracies, interval),
        auc=spread(areas, None),
    )


def spread(values: Sequence[float], over: tuple[float, float] | None) -> Spread:
    """Return mean, standard deviation and t interval of the mean over draws.

    Args:
        values: The score of each draw.
        over: Interval over subjects.
    """
    n, mean = len(values), float(np.mean(values))
    below, above = (None, None) if over is None else over
    sd, low, high = None, None, None
    if n > 1:
        sd = float(np.std(values, ddof=1))
        reach = float(needed("scipy.stats").t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
        low, high = max(0.0, mean - reach), min(1.0, mean + reach)
    return Spread(
        mean=mean, sd=sd, low=low, high=high, n=n, subjects_low=below, subjects_high=above
    )


def over_subjects(
    truth: np.ndarray, predicted: np.ndarray, subjects: np.ndarray, seed: int
) -> tuple[float, float] | None:
    """Return the bootstrap interval of the balanced accuracy over the subjects asked about.

    Args:
        truth: (P,) class numbers.
        predicted: (D, P) of every draw of labels; their mean is bootstrapped.
        subjects: (P,) whose each sample is, drawn with all of its samples.
        seed: Of the bootstrap.

    Returns:
        None of a single subject.
    """
    names, owner = np.unique(subjects, return_inverse=True)
    if len(names) < 2:
        return None
    classes = np.unique(truth)
    asked = np.zeros((len(names), len(classes)))
    right = np.zeros((len(predicted), len(names), len(classes)))
    for column, number in enumerate(classes):
        mine = truth == number
        asked[:, column] = np.bincount(owner[mine], minlength=len(names))
        for draw, one in enumerate(predicted):
            hits = owner[mine & (one == number)]
            right[draw, :, column] = np.bincount(hits, minlength=len(names))
    rng = np.random.default_rng([seed, len(names)])
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAPS)
    totals = weights @ asked  # (BOOTSTRAPS, classes); a class that was not drawn does not count
    recall = np.where(totals > 0, weights @ right / np.maximum(totals, 1), 0)
    scores = (recall.sum(axis=2) / (totals > 0).sum(axis=1)).mean(axis=0)
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
