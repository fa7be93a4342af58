"""How sure a score is: bootstrap intervals over cases, by subject where a subject has several.

A draw is a weight for each case, how often it was drawn: so a statistic of all draws is one array
expression, and two arms on the same cases get the same draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from universal_model_hub.errors import ConfigError

LEVEL = 0.95
DRAWS = 2000
MOST_UNDEFINED = 0.5  # share of draws without a value, above which there is no interval


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a score of other cases of this kind would lie."""

    low: float
    high: float
    level: float = LEVEL
    method: str  # how it was found, in words


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score over cases: a mean with its spread, or a rate."""

    value: float | None  # None: no case counts
    n: int  # cases that count
    num_subjects: int
    interval: Interval | None = None
    sd: float | None = None  # between cases; None of a rate, or with n < 2
    median: float | None = None  # None of a rate

    @property
    def note(self) -> str:
        """Say from how many cases it is, and why there is no interval."""
        several = "" if self.num_subjects == self.n else f", {self.num_subjects} subjects"
        if self.num_subjects == 1 and self.n > 1:
            several = ", 1 subject"
        missing = ": no interval" if self.interval is None else ""
        return f"n = {self.n}{several}{missing}"


def draw_weights(subjects: Sequence[str], *, seed: int = 0) -> np.ndarray:
    """Draw subjects with replacement, each with all of its cases.

    Args:
        subjects: Whose each case is, (cases,).
        seed: Of the draws.

    Returns:
        (DRAWS, cases) float64: how often each case was drawn.
    """
    names, owner = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    return counts[:, owner].astype(np.float64)


def percentile_interval(draws: np.ndarray, subjects: Sequence[str]) -> Interval | None:
    """Return the interval that holds the middle of the draws.

    Args:
        draws: (DRAWS,), the statistic of each; NaN where it is not defined.
        subjects: Whose each case is, (cases,).

    Returns:
        None with fewer than two subjects, or where too few draws have a value.
    """
    num_subjects = len(set(subjects))
    known = draws[np.isfinite(draws)]
    if num_subjects < 2 or len(known) < (1 - MOST_UNDEFINED) * len(draws):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    unit = "cases" if num_subjects == len(subjects) else "subjects"
    left_out = len(draws) - len(known)
    undefined = f", {left_out:,} of them undefined and left out" if left_out else ""
    method = f"percentile bootstrap over {unit}, {len(draws):,} draws{undefined}"
    return Interval(low=float(low), high=float(high), method=method)


def mean_estimate(
    values: Sequence[float | None], subjects: Sequence[str], *, seed: int = 0
) -> Estimate:
    """Return the mean over cases with its interval.

    Args:
        values: Score of each case; None does not count.
        subjects: Whose each case is.
        seed: Of the draws.

    Raises:
        ConfigError: If there are not as many subjects as values.
    """
    if len(values) != len(subjects):
        raise ConfigError(
            f"Expected a subject for each of {len(values)} scores, got {len(subjects)}. "
            "Name the subject of each case."
        )
    counted = [(v, s) for v, s in zip(values, subjects, strict=True) if v is not None]
    if not counted:
        return Estimate(value=None, n=0, num_subjects=0)
    scores = np.array([value for value, _ in counted], dtype=np.float64)
    owners = [subject for _, subject in counted]
    weights = draw_weights(owners, seed=seed)
    draws = weights @ scores / weights.sum(axis=1)
    return Estimate(
        value=float(scores.mean()),
        n=len(scores),
        num_subjects=len(set(owners)),
        interval=percentile_interval(draws, owners),
        sd=float(scores.std(ddof=1)) if len(scores) > 1 else None,
        median=float(np.median(scores)),
    )
