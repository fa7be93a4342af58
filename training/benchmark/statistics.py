"""How sure the differences between rows are: over trials, and paired over test cases.

Trials share data and split: their spread is that of seeds. Whether other patients would tell the
same is asked over the test cases, whose scores are averaged over the trials first.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from training.benchmark.results import Result

LEVEL = 0.95
DRAWS, LEAST_DRAWS = 1999, 199
MOST_RANKED = 2e8  # scores in all draws of a permutation test, beyond which there are fewer draws
SCORES_AT_ONCE = 1_000_000  # of the draws that are ranked together: memory
FEWEST_PAIRS = 5  # below which no test is made


@dataclass(frozen=True)
class Spread:
    """Values of trials."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of trials."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Mean over the trials."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over the trials, of a sample."""
        return float(np.std(self.values, ddof=1)) if self.n > 1 else None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row less another, on the same task."""

    by_trial: tuple[float, ...]  # points; the same trial of both
    low: float | None  # of the mean's interval over trials; None with fewer than two
    high: float | None
    cases: int
    p: float | None  # two-sided, over cases; None with too few
    test: str

    @property
    def mean(self) -> float | None:
        """Mean over the trials, points."""
        return float(np.mean(self.by_trial)) if self.by_trial else None


def spread(results: Sequence[Result], metric: str) -> Spread:
    """Collect a metric over trials; trials in which it is not defined do not count."""
    values = [result.value(metric) for result in results]
    return Spread(tuple(value for value in values if value is not None))


def compare(ours: Sequence[Result], theirs: Sequence[Result], metric: str) -> Difference:
    """Compare two rows in the trials that both have.

    Args:
        ours: Runs of one row and one task.
        theirs: Runs of another row.
        metric: ``iou`` or ``auc``.
    """
    pairs = _pairs(ours, theirs)
    differences = []
    for one, other in pairs:
        a, b = one.value(metric), other.value(metric)
        if a is not None and b is not None:
            differences.append(a - b)
    low, high = mean_interval(differences)
    cases, p, test = 0, None, "none: no trial that both have"
    if pairs:
        shared = [a for a, _ in pairs], [b for _, b in pairs]
        cases, p, test = (paired_auc if metric == "auc" else paired_scores)(*shared, metric)
    return Difference(by_trial=tuple(differences), low=low, high=high, cases=cases, p=p, test=test)


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return Student's interval of a mean; (None, None) with fewer than two values."""
    if len(values) < 2:
        return None, None
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    middle = float(np.mean(values))
    return middle - reach, middle + reach


def paired_scores(
    one: Sequence[Result], other: Sequence[Result], metric: str
) -> tuple[int, float | None, str]:
    """Wilcoxon's signed-rank test over test cases, each one's score averaged over the trials.

    Returns:
        Number of cases, p, and the name of the test.
    """
    ours, theirs = _case_means(one, metric), _case_means(other, metric)
    shared = sorted(set(ours) & set(theirs))
    gaps = np.array([ours[case] - theirs[case] for case in shared])
    name = "Wilcoxon signed-rank over cases"
    if len(gaps) < FEWEST_PAIRS:
        return len(gaps), None, f"none: {len(gaps)} cases"
    if not gaps.any():
        return len(gaps), 1.0, name
    return len(gaps), float(stats.wilcoxon(gaps).pvalue), name


def paired_auc(
    one: Sequence[Result], other: Sequence[Result], metric: str
) -> tuple[int, float | None, str]:
    """Permutation test of two AUCs: the rows' scores are swapped at random, subject by subject.

    Scores are ranked within each trial and averaged over the trials first, so that neither a row's
    scale nor its offset counts.

    Returns:
        Number of subjects, p, and the name of the test.
    """
    del metric
    truth = np.array([case["target"] for case in one[0].cases])
    subjects = np.array([case["subject"] for case in one[0].cases])
    names, owner = np.unique(subjects, return_inverse=True)
    if len(names) < FEWEST_PAIRS or len(set(truth.tolist())) < 2:
        return len(names), None, f"none: {len(names)} subjects"
    ours, theirs = _mean_ranks(one), _mean_ranks(other)
    observed = abs(rank_auc(truth, ours) - rank_auc(truth, theirs))
    draws = int(np.clip(MOST_RANKED / (2 * len(truth)), LEAST_DRAWS, DRAWS))
    rng = np.random.default_rng(0)
    reached = 0
    at_once = max(1, SCORES_AT_ONCE // len(truth))  # draws
    for first in range(0, draws, at_once):
        size = (min(at_once, draws - first), len(names))
        swapped = rng.integers(0, 2, size).astype(bool)[:, owner]  # (draws, P)
        a, b = np.where(swapped, theirs, ours), np.where(swapped, ours, theirs)
        apart = np.abs(rank_auc(truth, a) - rank_auc(truth, b))
        reached += int(np.count_nonzero(apart >= observed - 1e-12))
    return len(names), (reached + 1) / (draws + 1), f"permutation over subjects, {draws} draws"


def rank_auc(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve from ranks: (P,), (..., P) to (...); ties count half."""
    positive = truth == 1
    n, m = int(positive.sum()), int((~positive).sum())
    total = stats.rankdata(scores, axis=-1)[..., positive].sum(axis=-1)
    return (total - n * (n + 1) / 2) / (n * m)


def corrected(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values of one table for their number (Benjamini and Hochberg); None stays."""
    known = [p for p in p_values if p is not None]
    if not known:
        return list(p_values)
    adjusted = iter(stats.false_discovery_control(known).tolist())
    return [None if p is None else float(next(adjusted)) for p in p_values]


def _pairs(ours: Sequence[Result], theirs: Sequence[Result]) -> list[tuple[Result, Result]]:
    by_trial = {result.trial: result for result in theirs}
    return [(result, by_trial[result.trial]) for result in ours if result.trial in by_trial]


def _case_means(results: Sequence[Result], metric: str) -> dict[str, float]:
    """Average a case's score over trials; a structure that is missed altogether scores 0."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for result in results:
        for case in result.cases:
            found[case["id"]].append(100 * (case[metric] or 0.0))
    return {case: float(np.mean(values)) for case, values in found.items()}


def _mean_ranks(results: Sequence[Result]) -> np.ndarray:
    ranks = [stats.rankdata([case["score"] for case in result.cases]) for result in results]
    return np.asarray(np.mean(ranks, axis=0))
