"""How well cases were told apart: rates over cases with intervals. Needs ``[finetune]``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from universal_model_hub.errors import ConfigError
from universal_model_hub.extras import needed
from universal_model_hub.fit.reporting.intervals import Estimate, draw_weights, percentile_interval

RATES = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "auc": "AUC"}


@dataclass(frozen=True, kw_only=True)
class CaseAnswer:
    """What a model said of a case."""

    case: str
    subject: str
    truth: int  # class number
    probabilities: tuple[float, ...]  # one a class

    @property
    def predicted(self) -> int:
        """The class that the model takes for the likeliest."""
        return int(np.argmax(self.probabilities))


@dataclass(frozen=True, kw_only=True)
class ClassRates:
    """How well one class was told from all others."""

    label: int
    name: str
    cases: int  # of this class
    sensitivity: Estimate
    specificity: Estimate
    auc: Estimate


@dataclass(frozen=True, kw_only=True)
class ClassificationScores:
    """Rates over all cases, and class by class."""

    n: int
    accuracy: Estimate
    balanced_accuracy: Estimate  # mean sensitivity of the classes that are there
    auc: Estimate  # two classes: of the second; more: mean of one against the rest
    classes: tuple[ClassRates, ...]
    confusion: tuple[tuple[int, ...], ...]  # [truth][predicted]


@dataclass(frozen=True)
class _Draws:
    """Every rate of every bootstrap draw; NaN where it is not defined."""

    overall: dict[str, np.ndarray]  # (DRAWS,)
    by_class: dict[str, np.ndarray]  # (K, DRAWS)


def score_answers(
    answers: Sequence[CaseAnswer], classes: Mapping[int, str], *, seed: int = 0
) -> ClassificationScores:
    """Score what a model said of cases; see ``classification_scores``."""
    probabilities = np.array([a.probabilities for a in answers])
    truth = np.array([a.truth for a in answers], dtype=np.int64)
    subjects = [a.subject for a in answers]
    return classification_scores(probabilities, truth, classes, subjects, seed=seed)


def classification_scores(
    probabilities: np.ndarray,
    truth: np.ndarray,
    classes: Mapping[int, str],
    subjects: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> ClassificationScores:
    """Score class probabilities.

    Args:
        probabilities: (cases, K), in [0, 1].
        truth: (cases,), class numbers below K.
        classes: Class number to name, 0 to K - 1.
        subjects: Whose each case is, (cases,); None: each case is of another.
        seed: Of the bootstrap.

    Returns:
        Rates with intervals over cases. What needs a class that is not there is None.

    Raises:
        ConfigError: If the arrays do not fit each other or scikit-learn is not installed.
    """
    _check(probabilities, truth, classes, subjects)
    owners = [str(i) for i in range(len(truth))] if subjects is None else list(subjects)
    metrics = needed("sklearn.metrics")
    K = len(classes)
    confusion = metrics.confusion_matrix(truth, probabilities.argmax(axis=1), labels=range(K))
    areas = [
        float(metrics.roc_auc_score(truth == k, probabilities[:, k]))
        if 0 < np.count_nonzero(truth == k) < len(truth)
        else np.nan
        for k in range(K)
    ]
    values = _rates(confusion[None].astype(np.float64), np.array(areas)[:, None])
    draws = _draws(probabilities, truth, owners, seed)

    def overall(rate: str) -> Estimate:
        return _estimate(values.overall[rate][0], draws.overall[rate], owners)

    def of_class(rate: str, k: int) -> Estimate:
        return _estimate(values.by_class[rate][k, 0], draws.by_class[rate][k], owners)

    rows = tuple(
        ClassRates(
            label=k,
            name=classes[k],
            cases=int(np.count_nonzero(truth == k)),
            sensitivity=of_class("sensitivity", k),
            specificity=of_class("specificity", k),
            auc=of_class("auc", k),
        )
        for k in range(K)
    )
    return ClassificationScores(
        n=len(truth),
        accuracy=overall("accuracy"),
        balanced_accuracy=overall("balanced_accuracy"),
        auc=overall("auc"),
        classes=rows,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def rate_differences(
    ours: Sequence[CaseAnswer], theirs: Sequence[CaseAnswer], *, seed: int = 0
) -> dict[str, Estimate]:
    """Return our rates minus theirs on the cases that both have: the same draws for both.

    Raises:
        ConfigError: If they do not agree on the truth of a case.
    """
    other = {answer.case: answer for answer in theirs}
    pairs = [(answer, other[answer.case]) for answer in ours if answer.case in other]
    if not pairs:
        return {rate: Estimate(value=None, n=0, num_subjects=0) for rate in RATES}
    if odd := [mine.case for mine, its in pairs if mine.truth != its.truth]:
        raise ConfigError(
            f"Expected the same class of a case in both arms, got two of {odd[0]!r}. "
            "Score both on the same data."
        )
    owners = [mine.subject for mine, _ in pairs]
    truth = np.array([mine.truth for mine, _ in pairs])
    both = [np.array([pair[arm].probabilities for pair in pairs]) for arm in (0, 1)]
    once = [_weighted_rates(p, truth, np.ones((1, len(pairs)))).overall for p in both]
    draws = [_draws(p, truth, owners, seed).overall for p in both]
    return {
        rate: _estimate(
            once[0][rate][0] - once[1][rate][0], draws[0][rate] - draws[1][rate], owners
        )
        for rate in RATES
    }


def _draws(
    probabilities: np.ndarray, truth: np.ndarray, owners: Sequence[str], seed: int
) -> _Draws:
    return _weighted_rates(probabilities, truth, draw_weights(owners, seed=seed))


def _weighted_rates(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> _Draws:
    """Count every draw at once: scikit-learn in a loop would take seconds for each rate.

    Args:
        probabilities: (cases, K).
        truth: (cases,).
        weights: (draws, cases), how often each case counts.
    """
    K = probabilities.shape[1]
    cells = np.eye(K * K)[truth * K + probabilities.argmax(axis=1)]  # (cases, K * K)
    confusion = (weights @ cells).reshape(len(weights), K, K)
    areas = [_areas(weights, probabilities[:, k], truth == k) for k in range(K)]
    return _rates(confusion, np.array(areas))


def _rates(confusion: np.ndarray, areas: np.ndarray) -> _Draws:
    """Return the rates of confusion matrices (draws, K, K) and areas (K, draws)."""
    hits = np.diagonal(confusion, axis1=1, axis2=2).T  # (K, draws)
    there, answered = confusion.sum(axis=2).T, confusion.sum(axis=1).T
    total = confusion.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = hits / there
        specificity = (total - there - answered + hits) / (total - there)
        overall = {
            "accuracy": hits.sum(axis=0) / total,
            "balanced_accuracy": _mean_of_known(sensitivity),
            "auc": areas[1] if len(areas) == 2 else _mean_of_known(areas),
        }
    by_class = {"sensitivity": sensitivity, "specificity": specificity, "auc": areas}
    return _Draws(overall, by_class)


def _areas(weights: np.ndarray, scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of each draw: pairs in the right order, ties half."""
    order = np.argsort(scores)
    starts = np.unique(scores[order], return_index=True)[1]  # of cases with the same score
    hits = np.add.reduceat((weights * positive)[:, order], starts, axis=1)
    others = np.add.reduceat((weights * ~positive)[:, order], starts, axis=1)
    below = others.cumsum(axis=1) - others
    with np.errstate(invalid="ignore"):
        ranked = (hits * (below + others / 2)).sum(axis=1)
        return np.asarray(ranked / (hits.sum(axis=1) * others.sum(axis=1)))


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis of what is not NaN."""
    known = np.isfinite(values)
    return np.asarray(np.where(known, values, 0).sum(axis=0) / known.sum(axis=0))


def _estimate(value: float, draws: np.ndarray, owners: Sequence[str]) -> Estimate:
    known = bool(np.isfinite(value))
    return Estimate(
        value=float(value) if known else None,
        n=len(owners),
        num_subjects=len(set(owners)),
        interval=percentile_interval(draws, owners) if known else None,
    )


def _check(
    probabilities: np.ndarray,
    truth: np.ndarray,
    classes: Mapping[int, str],
    subjects: Sequence[str] | None,
) -> None:
    K = len(classes)
    if K < 2 or sorted(classes) != list(range(K)):
        raise ConfigError(
            f"Expected classes numbered from 0, two or more, got {sorted(classes)}. Number them."
        )
    if len(truth) == 0:
        raise ConfigError("Expected at least one case to score, got none. Keep some for the test.")
    if truth.ndim != 1 or probabilities.shape != (len(truth), K):
        raise ConfigError(
            f"Expected probabilities (cases, {K}) and truth (cases,), got {probabilities.shape} "
            f"and {truth.shape}. Pass a row a case, a column a class."
        )
    if not np.isfinite(probabilities).all():
        raise ConfigError("Expected finite probabilities, got NaN or Inf. Check the model.")
    if truth.min() < 0 or truth.max() >= K:
        raise ConfigError(
            f"Expected classes 0 to {K - 1} as truth, got {truth.min()} to {truth.max()}. "
            "Number them alike."
        )
    if subjects is not None and len(subjects) != len(truth):
        raise ConfigError(
            f"Expected a subject for each of {len(truth)} cases, got {len(subjects)}. Name them."
        )
