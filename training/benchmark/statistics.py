"""How sure the differences between rows are: over trials, and paired over test cases.

Trials share data and split: their spread is that of seeds. Whether other patients would tell the
same is asked over the test cases, whose scores are averaged over the trials first.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from training.benchmark.results import Result

LEVEL = 0.95
POWER = 0.8  # chance to see a difference of the size asked about
MOST_TRIALS = 100_000  # beyond which no number is given
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


def pooled_interval(
    groups: Sequence[Sequence[float]],
) -> tuple[float, float | None, float | None]:
    """Return the mean of the groups' means and its interval, each group with a spread of its own.

    The groups weigh the same. Source: Welch 1947, Satterthwaite 1946 for the degrees of freedom.

    Args:
        groups: Differences of trials, of one task each; none is empty.

    Returns:
        Mean, low and high; both None where a group has fewer than two values.
    """
    middle = float(np.mean([np.mean(group) for group in groups]))
    if min(len(group) for group in groups) < 2:
        return middle, None, None
    shares = [float(np.var(group, ddof=1)) / len(group) / len(groups) ** 2 for group in groups]
    total = sum(shares)
    if total == 0:
        return middle, middle, middle
    freedom = total**2 / sum(
        share**2 / (len(group) - 1) for share, group in zip(shares, groups, strict=True)
    )
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * total**0.5
    return middle, middle - reach, middle + reach


def power_of(difference: float, sd: float, trials: int) -> float:
    """Return the chance that the interval over trials lies above 0, for a true difference above 0.

    Args:
        difference: True mean difference, points.
        sd: Standard deviation of the differences of single trials, points, above 0.
        trials: At least 2.
    """
    edge = float(stats.t.ppf((1 + LEVEL) / 2, trials - 1))
    return float(stats.nct.sf(edge, trials - 1, difference * trials**0.5 / sd))


def detectable_difference(sd: float, trials: int) -> float | None:
    """Return the smallest true difference that trials show with a chance of ``POWER``, points.

    None with fewer than two trials; 0 where there is no spread.
    """
    if trials < 2:
        return None
    if sd == 0:
        return 0.0
    most = 100.0  # times the spread: two trials need about 12
    return sd * float(optimize.brentq(lambda d: power_of(d, 1.0, trials) - POWER, 0.0, most))


def trials_needed(difference: float, sd: float) -> int | None:
    """Return how many trials show a true difference with a chance of ``POWER``.

    None where more than ``MOST_TRIALS`` would be needed.
    """
    if sd == 0:
        return 2
    low, high = 1, 2
    while power_of(difference, sd, high) < POWER:
        low, high = high, 2 * high
        if low >= MOST_TRIALS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(difference, sd, middle) >= POWER else (middle, high)
    return high if high <= MOST_TRIALS else None


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
