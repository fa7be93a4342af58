"""Tables of the paper's order as found here: by task, over all tasks, and what trials can show."""

from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from training.benchmark.findings import ORDER, Finding, noise_of
from training.benchmark.results import Results
from training.benchmark.statistics import (
    POWER,
    detectable_difference,
    pooled_interval,
    trials_needed,
)
from training.benchmark.tables import NOTHING, Cell, View, published_scores


def findings_view(found: Sequence[Finding], results: Results) -> View:
    """Return the order that the paper finds, as found here."""
    contrary = any((gap := _reported_gap(one)) is not None and gap < 0 for one in found)
    return _comparisons(
        found,
        title="The order that the paper finds",
        note=_note(found)
        + (
            " Where the difference reported is negative, the paper's own scores of that task are "
            "the other way than its order."
            if contrary
            else ""
        ),
        named=("in the paper", lambda o: f"{results.title(o.better)} > {results.title(o.worse)}"),
        said=("found here", lambda one: one.verdict),
    )


def against_all_view(found: Sequence[Finding], results: Results) -> View | None:
    """Return Universal against every other start; None without comparisons."""
    if not found:
        return None
    return _comparisons(
        found,
        title="Universal Model against every other start",
        note=(
            f"Universal less the other. {_note(found)} The paper has I3D, NiftyNet and Med3D with "
            "the weights of their authors alone: it reports no difference from them from scratch."
        ),
        named=("the other", lambda one: results.title(one.worse)),
        said=("Universal is", lambda one: one.told("above", "below", "not above")),
    )


def _comparisons(
    found: Sequence[Finding],
    *,
    title: str,
    note: str,
    named: tuple[str, Callable[[Finding], str]],
    said: tuple[str, Callable[[Finding], str]],
) -> View:
    """Return comparisons line by line; two columns are named and filled by the caller."""
    rows = []
    for one in found:
        gap, name, verdict = one.difference, named[1](one), said[1](one)
        rows.append(
            (
                Cell(one.task, one.task),
                Cell(name, name),
                Cell(f"{gap.mean:+.1f}", gap.mean),
                interval_cell(gap.low, gap.high),
                Cell(str(len(gap.by_trial)), len(gap.by_trial)),
                p_cell(one.p),
                Cell(verdict, verdict),
                _reported_cell(one),
            )
        )
    return View(
        title=title,
        note=note,
        head=(
            "task", named[0], "difference", "95 % interval", "trials", "p, corrected", said[0],
            "difference, reported in the paper",
        ),
        rows=tuple(rows),
        numeric=(2, 3, 4, 5, 7),
    )  # fmt: skip


def _reported_cell(one: Finding) -> Cell:
    reported = _reported_gap(one)
    return Cell(NOTHING) if reported is None else Cell(f"{reported:+.2f}", reported)


def _note(found: Sequence[Finding]) -> str:
    tests = sorted({one.difference.test for one in found if one.p is not None})
    return (
        "Difference of means in points, paired by trial, with its 95 % interval over trials "
        "(Student). p is over test cases, corrected for all comparisons of this table (Benjamini "
        f"and Hochberg): {'; '.join(tests) or 'none could be made'}. All trials of a start share "
        "its pre-training, the data and the split: what another pre-training would give is "
        "neither in the interval nor in p."
    )


def over_tasks_view(found: Sequence[Finding], results: Results) -> View | None:
    """Return the same order over all tasks together; None where no comparison has two tasks."""
    rows = []
    for pair in ORDER:
        own = [one for one in found if (one.better, one.worse) == pair]
        if len(own) < 2:
            continue
        middle, low, high = pooled_interval([one.difference.by_trial for one in own])
        reported = [gap for one in own if (gap := _reported_gap(one)) is not None]
        held = sum(one.holds for one in own)
        said = "one trial" if low is None or high is None else verdict_over_tasks(low, high)
        rows.append(
            (
                Cell(f"{results.title(pair[0])} > {results.title(pair[1])}", pair[0]),
                Cell(f"{middle:+.1f}", middle),
                interval_cell(low, high),
                Cell(f"{held} of {len(own)}", held),
                Cell(said, said),
                Cell(f"{np.mean(reported):+.2f}", float(np.mean(reported)))
                if len(reported) == len(own)
                else Cell(NOTHING),
            )
        )
    if not rows:
        return None
    return View(
        title="The order over all tasks",
        note=(
            "Mean of the tasks' differences in points, each task weighing the same (IoU and AUC "
            "alike), with its 95 % interval over trials: each task with its own spread (Welch and "
            "Satterthwaite), not corrected for the number of comparisons. It says nothing of other "
            "tasks, nor of other patients."
        ),
        head=(
            "in the paper", "difference", "95 % interval", "tasks with this order in the means",
            "found here", "difference, reported in the paper",
        ),
        rows=tuple(rows),
        numeric=(1, 2, 3, 5),
    )  # fmt: skip


def power_view(found: Sequence[Finding], results: Results) -> View | None:
    """Return how large a difference the trials could show; None with one trial."""
    rows = []
    for task in results.plan["tasks"]:
        own = [one for one in found if one.task == task and len(one.difference.by_trial) > 1]
        if not own:
            continue
        trials = min(len(one.difference.by_trial) for one in own)
        sd = median(noise_of(one) for one in own)
        least = detectable_difference(sd, trials)
        cells = [Cell(task, task), Cell(str(trials), trials), Cell(f"{sd:.1f}", sd)]
        cells.append(Cell(NOTHING) if least is None else Cell(f"{least:.1f}", least))
        reported = [abs(gap) for one in own if (gap := _reported_gap(one)) is not None]
        if reported:
            large, middle = sum(gap >= (least or 0.0) for gap in reported), median(reported)
            needed = trials_needed(middle, sd)
            cells.append(Cell(f"{large} of {len(reported)}", large))
            cells.append(Cell(f"{middle:.2f}", middle))
            cells.append(Cell(NOTHING) if needed is None else Cell(f"{needed:,}", needed))
        else:
            cells += [Cell(NOTHING)] * 3
        rows.append(tuple(cells))
    if not rows:
        return None
    return View(
        title="What the trials can show",
        note=(
            "Spread: standard deviation of a single trial's difference, points, median over the "
            "comparisons of the task. From it, for an interval as above that leaves out 0 with a "
            f"chance of {100 * POWER:.0f} %: the smallest true difference that so many trials "
            "show; how many of the differences reported in the paper are that large; and how many "
            "trials would show their median. What is within the noise here may thus be there all "
            "the same."
        ),
        head=(
            "task", "trials", "spread", "shown from", "reported differences as large",
            "median difference, reported in the paper", "trials for their median",
        ),
        rows=tuple(rows),
        numeric=(1, 2, 3, 4, 5, 6),
    )  # fmt: skip


def verdict_over_tasks(low: float, high: float) -> str:
    """Say what an interval over all tasks tells of the paper's order."""
    if low <= 0 <= high:
        return "within the noise"
    return "as in the paper" if low > 0 else "the other way"


def interval_cell(low: float | None, high: float | None) -> Cell:
    """Return an interval in points, sorted by its low end."""
    if low is None or high is None:
        return Cell(NOTHING)
    return Cell(f"{low:+.1f} to {high:+.1f}", low)


def p_cell(p: float | None) -> Cell:
    """Return a p-value; small ones as a bound."""
    if p is None:
        return Cell(NOTHING)
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p)


def _reported_gap(one: Finding) -> float | None:
    ours, theirs = (published_scores(row).get(one.task) for row in (one.better, one.worse))
    return None if ours is None or theirs is None else ours[0] - theirs[0]
