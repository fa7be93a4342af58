"""Tables that the paper does not have: fit, probes, runs done twice, and cost."""

from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from training.benchmark.results import Result, Results
from training.benchmark.tables import NOTHING, PENDING, Cell, View

PROBE_TITLES = {"random": "Random weights", "handmade": "Hand-made features"}
GIB = 2**30


def fit_view(results: Results) -> View:
    """Return how far each start has fitted its training cases, by task."""
    rows = []
    runs = [run for run in results.runs.values() if (run.share, run.noise) == (1.0, 0.0)]
    tasks = list(results.plan["tasks"])
    for row in results.plan["rows"]:
        own = {task: [r for r in runs if (r.row, r.task) == (row, task)] for task in tasks}
        if not any(own.values()):
            continue
        cells = [Cell(results.title(row), results.title(row))]
        for task in tasks:
            losses = [run.content["losses"] for run in own[task]]
            cells += [_loss_cell([loss[part] for loss in losses]) for part in (0, -1)]
        rows.append(tuple(cells))
    head = [f"{task}, {part}" for task in tasks for part in ("first", "last")]
    return View(
        title="Fit: training loss",
        note=(
            "Mean loss (that of the task, on augmented cubes) in the first and the last tenth of "
            "the steps with all labels, mean ± standard deviation over trials. A start that ends "
            "above scratch has fitted its training cases less in as many steps: where its test "
            "score is lower too, that is not overfitting."
        ),
        head=("start", *head),
        rows=tuple(rows),
        numeric=tuple(range(1, len(head) + 1)),
    )


def probes_view(results: Results) -> View | None:
    """Return what frozen encoders know, and whether they tell the modality."""
    if not results.probes:
        return None
    questions = list(
        dict.fromkeys(q for probe in results.probes.values() for q in probe["questions"])
    )
    rows = []
    for row in _probe_order(results):
        asked = results.probes[row]["questions"]
        title = results.plan["rows"].get(row, {}).get("title", PROBE_TITLES.get(row, row))
        cells = [Cell(title, title)]
        for question in questions:
            linear = asked.get(question, {}).get("classifiers", {}).get("linear", {})
            score = linear.get("auc")
            cells.append(
                Cell(NOTHING)
                if not score or score.get("mean") is None
                else Cell(
                    f"{score['mean']:.2f} ± {score.get('sd') or 0.0:.2f}", float(score["mean"])
                )
            )
        rows.append(tuple(cells))
    return View(
        title="Frozen encoders, and the leak of modality",
        note=(
            "AUC of a linear probe on the embedding of cubes of test scans, mean ± standard "
            "deviation over splits by subject, which share subjects. modality: CT or MR, which "
            "MIAL wants features not to tell (0.5: they do not); same anatomy: within hearts "
            "alone. For the others more is better."
        ),
        head=("encoder", *(_question_title(question) for question in questions)),
        rows=tuple(rows),
        numeric=tuple(range(1, len(questions) + 1)),
    )


def cost_view(results: Results) -> View:
    """Return what a run of each start costs, by task and machine."""
    rows = []
    runs = [run for run in results.runs.values() if (run.share, run.noise) == (1.0, 0.0)]
    for row in results.plan["rows"]:
        for task in results.plan["tasks"]:
            by_machine: dict[str, list[Result]] = {}
            for run in runs:
                if (run.row, run.task) == (row, task):
                    by_machine.setdefault(run.machine, []).append(run)
            rows += [
                (Cell(results.title(row), results.title(row)), *_cost_cells(task, name, own))
                for name, own in sorted(by_machine.items())
            ]
    return View(
        title="Cost",
        note=(
            "Of one run with all labels: median over the trials on a machine. GMAC (1e9 "
            "multiply-adds) of the forward pass of one training input; seconds of the steps and of "
            "the test; memory is the peak of the process, with the data in it, or that on its GPU. "
            "Runs shared the machine."
        ),
        head=(
            "start", "task", "machine", "runs", "parameters", "GMAC", "input", "seconds, training",
            "seconds, test", "peak memory, GiB", "hours of pre-training",
        ),
        rows=tuple(rows),
        numeric=(3, 4, 5, 7, 8, 9, 10),
    )  # fmt: skip


def again_view(results: Results) -> View | None:
    """Return how far runs that were done twice agree: same configuration and seed."""
    pairs: dict[tuple[str, ...], list[tuple[Result, Result]]] = {}
    for first in results.earlier:
        now = results.runs.get(first.name)
        if now is not None:
            weights = "the same" if first.weights == now.weights else "trained again"
            key = (first.row, first.task, first.platform, now.platform, weights)
            pairs.setdefault(key, []).append((first, now))
    rows = []
    for (row, task, before, after, weights), own in sorted(pairs.items()):
        metric = results.metric(task)
        both = [(first.value(metric), now.value(metric)) for first, now in own]
        scores = [(a, b) for a, b in both if a is not None and b is not None]
        if not scores:
            continue
        apart = mean(abs(now - first) for first, now in scores)
        rows.append(
            (
                Cell(results.title(row), results.title(row)),
                Cell(task, task),
                Cell(str(len(scores)), len(scores)),
                *(Cell(text, text) for text in (weights, before, after)),
                *(Cell(f"{mean(side):.2f}", mean(side)) for side in zip(*scores, strict=True)),
                Cell(f"{apart:.2f}", apart),
            )
        )
    if not rows:
        return None
    return View(
        title="Runs done twice",
        note=(
            "The same configuration and seed, done again: test scores in points, and the mean of "
            "the differences without their sign, run by run. Machines and versions of PyTorch "
            "round differently, and training magnifies that: a difference of this size between two "
            "starts may be no more. Where the starting weights were trained again, that training's "
            "rounding counts too. All other tables are of the later runs."
        ),
        head=(
            "start", "task", "runs", "starting weights", "earlier, on", "later, on",
            "mean score, earlier", "mean score, later", "mean difference of a run, without sign",
        ),
        rows=tuple(rows),
        numeric=(2, 6, 7, 8),
    )  # fmt: skip


def _loss_cell(losses: Sequence[float]) -> Cell:
    if not losses:
        return Cell(PENDING)
    middle = mean(losses)
    return Cell(
        f"{middle:.3f} ± {stdev(losses):.3f}" if len(losses) > 1 else f"{middle:.3f}", middle
    )


def _question_title(question: str) -> str:
    """Return a heading that a page can break into lines: "foreground, las_ct"."""
    if question == "modality_same_anatomy":
        return "modality, same anatomy"
    return question.replace("foreground_", "foreground, ")


def _cost_cells(task: str, machine: str, own: Sequence[Result]) -> tuple[Cell, ...]:
    network: Mapping[str, Any] = own[0].content["network"]
    peaks = [r.content["network"]["peak_bytes"] for r in own if r.content["network"]["peak_bytes"]]
    seconds = median(r.content["seconds"] for r in own)
    testing = median(r.content["test_seconds"] for r in own)
    trained = own[0].content["pretraining"]
    peak = median(peaks) / GIB if peaks else None
    hours = None if trained is None else float(trained["hours"])
    return (
        Cell(task, task),
        Cell(machine, machine),
        Cell(str(len(own)), len(own)),
        Cell(f"{network['parameters']:,}", network["parameters"]),
        Cell(f"{network['gmac']:.2f}", network["gmac"]),
        Cell(" x ".join(map(str, network["input"])), str(network["input"])),
        Cell(f"{seconds:.0f}", seconds),
        Cell(f"{testing:.0f}", testing),
        Cell(NOTHING) if peak is None else Cell(f"{peak:.2f}", peak),
        Cell(NOTHING) if hours is None else Cell(f"{hours:.2f}", hours),
    )


def _probe_order(results: Results) -> list[str]:
    known = [row for row in results.plan["rows"] if row in results.probes]
    return [*known, *(row for row in results.probes if row not in known)]
