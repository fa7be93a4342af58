"""What the paper finds, checked on the runs at hand and stated as found.

Source: Zhang et al., Sec. V-A and V-B: Universal Model above Models Genesis above scratch, several
data sets above one modality, each module a gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from training.benchmark.results import Results, Table
from training.benchmark.statistics import Difference, compare, corrected, spread

# (better, worse) in the paper.
ORDER = (
    ("universal", "genesis"),
    ("genesis", "scratch"),
    ("universal", "scratch"),
    ("model_multi", "model_ct"),
    ("model_multi", "model_mri"),
    ("multi_mial", "model_multi"),
    ("multi_sc", "model_multi"),
    ("universal", "multi_mial"),
    ("universal", "multi_sc"),
)
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One comparison of the paper on one task, as found here."""

    task: str
    better: str  # row, in the paper
    worse: str
    means: tuple[float, float]
    difference: Difference
    p: float | None  # corrected for the number of comparisons of all findings

    @property
    def holds(self) -> bool:
        """Whether the means lie in the paper's order."""
        return self.means[0] > self.means[1]

    @property
    def verdict(self) -> str:
        """Say how sure the paper's order is."""
        return self.told("as in the paper", "the other way", "not found")

    def told(self, above: str, below: str, not_above: str) -> str:
        """Say how sure the order is: by the interval over trials, and by the test over cases.

        Args:
            above: Said where the first row is better.
            below: Where it is worse.
            not_above: Where it is not better, and one trial says no more.
        """
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return f"{above if self.holds else not_above}, one trial"
        if low <= 0 <= high:
            return "within the noise"
        way = above if low > 0 else below
        known = self.p is not None and self.p < SIGNIFICANT
        return way if known else f"{way} over trials, not over cases"


def findings(results: Results, order: Sequence[tuple[str, str]] = ORDER) -> list[Finding]:
    """Check an order of rows on every task; comparisons without runs of both are left out."""
    found: list[Finding] = []
    for task in results.plan["tasks"]:
        for better, worse in order:
            one = _finding(results, task, better, worse)
            if one is not None:
                found.append(one)
    adjusted = corrected([one.difference.p for one in found])
    return [replace(one, p=p) for one, p in zip(found, adjusted, strict=True)]


def against_all(results: Results) -> list[Finding]:
    """Compare Universal with every other start of Table III that was trained."""
    table = results.tables.get("table_3")
    rows = () if table is None else table.rows
    return findings(results, [("universal", row) for row in rows if row != "universal"])


def summary(found: Sequence[Finding], results: Results) -> list[str]:
    """State for each task, and for all of them, how many comparisons lie as in the paper."""
    parts = {task: [one for one in found if one.task == task] for task in results.plan["tasks"]}
    parts = {task: own for task, own in parts.items() if own}
    if len(parts) > 1:
        parts["all tasks"] = list(found)
    lines = []
    for part, own in parts.items():
        held = sum(one.holds for one in own)
        above, below = _certain(own)
        lines.append(
            f"{part}: {held} of {len(own)} comparisons have the paper's order in their means; "
            f"{above} with an interval over trials above zero, {below} with one below."
        )
    return lines


def summary_against_all(found: Sequence[Finding]) -> list[str]:
    """State how Universal compares with all other starts; nothing without comparisons."""
    if not found:
        return []
    above, below = _certain(found)
    return [
        f"Universal Model against every other start: {len(found)} comparisons; {above} with an "
        f"interval over trials above zero, {below} with one below."
    ]


def _certain(found: Sequence[Finding]) -> tuple[int, int]:
    """Return how many intervals over trials lie above zero, and how many below."""
    above = sum(one.difference.low is not None and one.difference.low > 0 for one in found)
    below = sum(one.difference.high is not None and one.difference.high < 0 for one in found)
    return above, below


def noise_of(found: Finding) -> float:
    """Return the standard deviation of a single trial's difference, points; of two at least."""
    return float(np.std(found.difference.by_trial, ddof=1))


def _finding(results: Results, task: str, better: str, worse: str) -> Finding | None:
    table = _table_with(results, task, better, worse)
    if table is None:
        return None
    metric = results.metric(task)
    ours, theirs = table.select(better, task), table.select(worse, task)
    difference = compare(ours, theirs, metric)
    first, second = spread(ours, metric).mean, spread(theirs, metric).mean
    if first is None or second is None or not difference.by_trial:
        return None
    return Finding(
        task=task,
        better=better,
        worse=worse,
        means=(first, second),
        difference=difference,
        p=None,
    )


def _table_with(results: Results, task: str, *rows: str) -> Table | None:
    for name in ("table_4", "table_3"):
        table = results.tables.get(name)
        if table is not None and task in table.tasks and set(rows) <= set(table.rows):
            return table
    return None
