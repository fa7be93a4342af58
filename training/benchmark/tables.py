"""Tables of the report: numbers of the runs, and those of the paper in columns of their own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from training.benchmark.results import METRICS, NAMES, Result, Results, Table
from training.benchmark.statistics import Spread, spread
from training.published import PUBLISHED

# Names in training.published of the rows here; the paper has no untrained I3D, NiftyNet and Med3D.
APPROACHES = {
    "scratch": "From scratch",
    "i3d_pretrained": "I3D",
    "dense_vnet_pretrained": "NiftyNet",
    "med3d_pretrained": "Med3D",
    "rotation": "3D Rotation",
    "jigsaw": "3D Jigsaw",
    "genesis": "Model Genesis",
    "model_ct": "Model_CT",
    "model_mri": "Model_MRI",
    "model_multi": "Model_Multi",
    "multi_mial": "Model_Multi+MIAL",
    "multi_sc": "Model_Multi+SC",
    "universal": "Universal Model",
}
CORRUPTED = ", corrupted labels"  # of the approaches in Table V
NOTHING = "\N{EN DASH}"
PENDING = "no run yet"
UNDEFINED = "not defined"  # in no trial: nothing was found, say


@dataclass(frozen=True)
class Cell:
    """One cell, and what it is sorted by."""

    text: str
    key: float | str | None = None


@dataclass(frozen=True, kw_only=True)
class View:
    """A table as a page shows it."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: tuple[int, ...] = ()

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rule = ["---:" if i in self.numeric else "---" for i in range(len(self.head))]
        lines = [self.head, rule, *([cell.text for cell in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def result_views(results: Results) -> Iterator[View]:
    """Return Tables III, IV and V, each followed by its other metrics."""
    titles = {
        "table_3": "Table III: ways to start",
        "table_4": "Table IV: parts of the method",
        "table_5": "Table V: noisy labels",
    }
    for name, title in titles.items():
        table = results.tables.get(name)
        if table is not None:
            yield scores_view(results, table, title)
            yield other_metrics_view(results, table, f"{title}, other metrics")


def scores_view(results: Results, table: Table, title: str) -> View:
    """Return the metric that decides each task, beside what the paper reports."""
    head, rows = ["start"], []
    for task in table.tasks:
        metric = NAMES[results.metric(task)]
        head += [f"{task}, {metric} %", f"{task}, reported in the paper"]
    suffix = CORRUPTED if max(table.noise) > 0 else ""
    for row in table.rows:
        cells = [Cell(results.title(row), results.title(row))]
        reported = published_scores(row, suffix)
        for task in table.tasks:
            runs = table.select(row, task)
            own = spread(runs, results.metric(task))
            cells.append(spread_cell(own, runs, table.trials, results.is_missing(row)))
            pair = reported.get(task)
            cells.append(Cell(f"{pair[0]:.2f} ± {pair[1]:.2f}", pair[0]) if pair else Cell(NOTHING))
        rows.append(tuple(cells))
    note = (
        f"Mean ± standard deviation of {trials_of(table)} on test scans "
        f"({len(table.results)} of {table.planned} runs are there)."
    )
    noisy = noise_note(table)
    return View(
        title=title,
        note=f"{note} {noisy}".strip(),
        head=tuple(head),
        rows=tuple(rows),
        numeric=tuple(range(1, len(head))),
    )


def other_metrics_view(results: Results, table: Table, title: str) -> View:
    """Return the metrics beside the one that decides."""
    head, rows = ["start"], []
    others = [(task, name) for task in table.tasks for name in METRICS[results.metric(task)][1:]]
    head += [
        f"{task}, {NAMES[name]}" + ("" if name == "hd95_mm" else " %") for task, name in others
    ]
    for row in table.rows:
        cells = [Cell(results.title(row), results.title(row))]
        for task, name in others:
            runs = table.select(row, task)
            own = spread(runs, name)
            cells.append(spread_cell(own, runs, table.trials, results.is_missing(row)))
        rows.append(tuple(cells))
    note = (
        "HD95 is over the cases in which something was found; accuracy and sensitivity are "
        "those of a probability above one half."
    )
    return View(
        title=title,
        note=note,
        head=tuple(head),
        rows=tuple(rows),
        numeric=tuple(range(1, len(head))),
    )


def trials_of(table: Table) -> str:
    """Return the number of trials of a table, in words."""
    return f"{table.trials} trial" + ("" if table.trials == 1 else "s")


def tasks_view(results: Results) -> View:
    """Return what each task trains and tests on."""
    rows = []
    for name, task in results.plan["tasks"].items():
        people = task["subjects"]
        cells = [Cell(name, name), Cell(task["title"], task["title"])]
        for side in ("train", "validation", "test"):
            cells.append(Cell(str(people[side]), people[side]))
        cells.append(Cell(f"{task['steps']:,}", task["steps"]))
        cells.append(Cell(" x ".join(map(str, task["cube"])), str(task["cube"])))
        cells.append(
            Cell(" x ".join(f"{side:g}" for side in task["spacing_mm"]), str(task["spacing_mm"]))
        )
        rows.append(tuple(cells))
    return View(
        title="Tasks",
        note="Subjects by part. Validation draws curves and chooses nothing; tests are read once.",
        head=("task", "what", "train", "validate", "test", "steps", "cube, voxels", "spacing, mm"),
        rows=tuple(rows),
        numeric=(2, 3, 4, 5),
    )


def noise_note(table: Table) -> str:
    """Say how severe the noise of labels was, as measured; empty without any."""
    measured = [found for result in table.results if (found := result.content.get("label_noise"))]
    if not measured:
        return ""
    middle = mean(found["dice_mean"] for found in measured)
    least = min(found["dice_least"] for found in measured)
    return (
        f"Borders of training labels were moved by up to {max(table.noise):g} mm: their Dice "
        f"against clean labels is {middle:.2f} in the mean, {least:.2f} at least. Tests are clean."
    )


def labels_view(results: Results) -> View | None:
    """Return Fig. 5 in numbers: scores by share of labels, and the labels that are saved."""
    table = results.tables.get("figure_5")
    if table is None:
        return None
    shares = sorted(table.shares)
    head = ["task", "start", *(f"{share:.0%} of subjects" for share in shares), "labels saved"]
    rows = []
    for task in table.tasks:
        metric = results.metric(task)
        for row in table.rows:
            selected = [table.select(row, task, share=share) for share in shares]
            means = [spread(runs, metric) for runs in selected]
            cells = [Cell(task, task), Cell(results.title(row), results.title(row))]
            cells += [
                spread_cell(own, runs, table.trials, results.is_missing(row))
                for own, runs in zip(means, selected, strict=True)
            ]
            goal = spread(table.select("scratch", task, share=shares[-1]), metric).mean
            saved = labels_saved(shares, [own.mean for own in means], goal)
            cells.append(Cell(NOTHING) if saved is None else Cell(f"{saved:.0%}", saved))
            rows.append(tuple(cells))
    note = (
        f"Test scores, mean ± standard deviation of {trials_of(table)}. Labels saved: how many "
        "fewer give the mean score of scratch with all of them, by straight lines between the "
        "shares; a dash where that score is not reached. Scratch's own figure is the control: "
        "above zero, its curve is flat, or noisier than steep, and what a pre-training saves is "
        "not all its own work."
    )
    return View(
        title="Fig. 5: shares of the labels",
        note=note,
        head=tuple(head),
        rows=tuple(rows),
        numeric=tuple(range(2, len(head))),
    )


def labels_saved(
    shares: Sequence[float], scores: Sequence[float | None], goal: float | None
) -> float | None:
    """Return the part of labels that is not needed for a score.

    Args:
        shares: Ascending shares of labels; the last one is all of them.
        scores: Mean score at each; None where there is none.
        goal: Score to reach.

    Returns:
        1 less the first share at which straight lines between the scores reach the goal; None where
        they do not, or a score is missing.
    """
    known = [score for score in scores if score is not None]
    if goal is None or len(known) < len(scores):
        return None
    if known[0] >= goal:
        return 1 - shares[0]
    for i in range(1, len(known)):
        if known[i] >= goal:
            part = (goal - known[i - 1]) / (known[i] - known[i - 1])
            return 1 - (shares[i - 1] + part * (shares[i] - shares[i - 1]))
    return None


def published_scores(row: str, suffix: str = "") -> Mapping[str, tuple[float, float]]:
    """Return what the paper reports of a row: mean and standard deviation in percent, by task."""
    approach = APPROACHES.get(row)
    for entry in PUBLISHED:
        if approach is not None and entry.approach == approach + suffix:
            return entry.scores
    return {}


def spread_cell(own: Spread, runs: Sequence[Result], trials: int, missing: str) -> Cell:
    """Return mean and standard deviation, with their number if trials are missing; or why none."""
    if own.mean is None:
        return Cell(UNDEFINED if runs else missing or PENDING)
    text = f"{own.mean:.2f}" if own.sd is None else f"{own.mean:.2f} ± {own.sd:.2f}"
    return Cell(text if own.n == trials else f"{text} (n = {own.n})", own.mean)
