"""From the results of single runs to means, paired differences and curves.

Intervals are t intervals over seeds: they say how sure the mean of this training set and these test
subjects is, not how another subject would do.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from training.release.plan import Cell, Rates, cells, has_structures, tuned_cell
from training.release.runs import Run, Setting
from training.release.tasks import Task
from universal_model_hub.errors import CheckpointError

LEVEL = 0.95
FULL = "full"  # name of the sibling with the whole objective
Results = Mapping[Run, Mapping[str, Any]]


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any]:
    """Return the mean difference over the seeds that both have, with its t interval.

    Args:
        ours: Score by seed.
        theirs: Score by seed, of what is compared with.
    """
    seeds = sorted(set(ours) & set(theirs))
    values = np.array([ours[seed] - theirs[seed] for seed in seeds])
    return {"seeds": len(seeds), "by_seed": values.tolist(), **interval(values)}


def interval(values: np.ndarray) -> dict[str, float | None]:
    """Return mean, standard deviation and t interval of values (n,); None where n is too small."""
    n = len(values)
    if n == 0:
        return {"mean": None, "sd": None, "low": None, "high": None}
    mean = float(values.mean())
    if n == 1:
        return {"mean": mean, "sd": None, "low": None, "high": None}
    sd = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * sd / math.sqrt(n)
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def summary(setting: Setting, results: Results, transfers: tuple[str, ...], rates: Rates) -> Any:
    """Return the JSON report of all tasks and probes."""
    tasks = setting.tasks.of(setting.mode)
    return {
        "tasks": [task_summary(task, setting, results, transfers, rates) for task in tasks],
        "probes": probe_summary(setting, results),
    }


def task_summary(
    task: Task, setting: Setting, results: Results, transfers: tuple[str, ...], rates: Rates
) -> dict[str, Any]:
    """Return a task's rows, one for each share and arm, and its curves."""
    own = {run: result for run, result in results.items() if run.task == task.name}
    facts = _facts(task, own)
    mine = [cell for cell in cells(setting, transfers) if cell.task == task.name]
    return {
        "name": task.name,
        "letter": task.letter,
        "title": task.title,
        "note": task.note,
        "classes": list(task.classes),
        **facts,
        "rows": [row(cell, setting, own, rates) for cell in mine],
        "frozen": [entry for share in task.shares for entry in frozen_rows(task, share, own)],
        "ablation": ablation(mine, setting, own),
        "curves": curves(mine, setting, own),
        "plateau": plateau(mine, setting, own, rates),
    }


def row(cell: Cell, setting: Setting, results: Results, rates: Rates) -> dict[str, Any]:
    """Return the scores of a cell and its paired difference from scratch."""
    found = of_cell(cell, results)
    arm = setting.arm(cell.arm)
    entry: dict[str, Any] = {
        "share": cell.share,
        "slabs": setting.tasks.tasks[cell.task].slabs_of(cell.share),
        "arm": cell.arm,
        "transfer": cell.transfer if arm.weights else "",
        "sibling": arm.sibling,
        "rate": rates.get(tuned_cell(cell, setting)),
        "seeds": len(found),
        "seconds": _mean([r["seconds"] for r in found.values()]),
    }
    other = of_cell(cell._replace(arm=arm.against, transfer="full"), results)
    for metric in ("dice", "iou"):
        scores = {seed: result[metric] for seed, result in found.items()}
        entry[metric] = {**interval(np.array(list(scores.values()))), "by_seed": scores}
        if arm.weights:
            against = {seed: result[metric] for seed, result in other.items()}
            entry[f"{metric}_difference"] = paired_difference(scores, against)
    entry["dice_by_class"] = _class_means([r["dice_by_class"] for r in found.values()])
    return entry


def ablation(mine: Sequence[Cell], setting: Setting, results: Results) -> list[dict[str, Any]]:
    """Return by how much the sibling of the full objective is above each of the others.

    Source: Zhang et al., Table IV. Empty where that sibling is not compared.
    """
    siblings = [cell for cell in mine if setting.arm(cell.arm).sibling]
    scores = {
        cell: {seed: result["dice"] for seed, result in of_cell(cell, results).items()}
        for cell in siblings
    }
    return [
        {
            "share": cell.share,
            "arm": cell.arm,
            "transfer": cell.transfer,
            "full_minus_this": paired_difference(scores[full], scores[cell]),
        }
        for cell in siblings
        if cell.arm != FULL and (full := cell._replace(arm=FULL)) in scores
    ]


def of_cell(cell: Cell, results: Results) -> dict[int, Mapping[str, Any]]:
    """Return the compared runs of a cell by seed."""
    return {
        run.seed: result
        for run, result in sorted(results.items(), key=lambda item: item[0].seed)
        if run.kind == "fit"
        and run.part == "test"
        and (run.task, run.share, run.arm, run.transfer) == tuple(cell)
    }


def frozen_rows(task: Task, share: int, results: Results) -> list[dict[str, Any]]:
    """Return the ridge probes of one share of the labels."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run, result in results.items():
        if run.kind == "ridge" and run.share == share and run.task == task.name:
            groups.setdefault((run.arm, run.transfer), []).append(result)
    return [
        {
            "share": share,
            "arm": arm,
            "maps": transfer,
            "seeds": len(found),
            "dice": interval(np.array([r["dice"] for r in found])),
            "iou": interval(np.array([r["iou"] for r in found])),
        }
        for (arm, transfer), found in groups.items()
    ]


def curves(mine: Sequence[Cell], setting: Setting, results: Results) -> list[dict[str, Any]]:
    """Return mean test scores over the steps, and when each arm reaches scratch's final one."""
    share = setting.mode_settings.curve_share
    wanted = [cell for cell in mine if cell.share == share]
    means = {cell: mean_curve(cell, results) for cell in wanted}
    found = []
    for cell in wanted:
        steps, scores, seconds, seeds = means[cell]
        arm = setting.arm(cell.arm)
        base = means.get(cell._replace(arm=arm.against or cell.arm, transfer="full"))
        goal = base[1][-1] if base and base[1] else None
        reached = None if goal is None or not steps else first_step(steps, scores, goal)
        found.append(
            {
                "arm": cell.arm,
                "transfer": cell.transfer if arm.weights else "",
                "seeds": seeds,
                "steps": steps,
                "dice": scores,
                "scratch_final": goal,
                "steps_to_scratch_final": reached,
                "share_of_scratch_steps": reached / steps[-1] if reached and steps else None,
                "seconds_to_scratch_final": reached / steps[-1] * seconds if reached else None,
            }
        )
    return found


def mean_curve(cell: Cell, results: Results) -> tuple[list[int], list[float], float, int]:
    """Return steps, mean scores, mean training seconds and seeds of a cell's curves."""
    found = [result for result in of_cell(cell, results).values() if result.get("curve")]
    if not found:
        return [], [], 0.0, 0
    steps = [point["step"] for point in found[0]["curve"]]
    scores = np.mean([[point["dice"] for point in r["curve"]] for r in found], axis=0)
    return steps, scores.tolist(), _mean([r["seconds"] for r in found]) or 0.0, len(found)


def first_step(steps: Sequence[int], scores: Sequence[float], goal: float) -> float | None:
    """Return where a curve first reaches a score, interpolated; it starts at (0, 0)."""
    last_step, last_score = 0, 0.0
    for step, score in zip(steps, scores, strict=True):
        if score >= goal:
            share = 1.0 if score <= last_score else (goal - last_score) / (score - last_score)
            return last_step + max(0.0, share) * (step - last_step)
        last_step, last_score = step, score
    return None


def plateau(
    mine: Sequence[Cell], setting: Setting, results: Results, rates: Rates
) -> list[dict[str, Any]]:
    """Return what scratch still gained on kept-back labels over the last third of its steps."""
    found = []
    for cell in mine:
        tuned = tuned_cell(cell, setting)
        if setting.arm(cell.arm).weights or tuned != cell:
            continue
        ends = [
            last_third(result["curve"])
            for run, result in results.items()
            if run.part == "tuning"
            and (run.task, run.share, run.arm, run.transfer) == tuple(cell)
            and run.rate == rates.get(cell)
        ]
        if ends:
            found.append({"share": cell.share, "arm": cell.arm, "gain": _mean(ends)})
    return found


def last_third(curve: Sequence[Mapping[str, float]]) -> float:
    """Return how much a curve rose over the last third of its steps."""
    steps = [point["step"] for point in curve]
    scores = [point["dice"] for point in curve]
    return float(scores[-1] - np.interp(steps[-1] * 2 / 3, steps, scores))


def probe_summary(setting: Setting, results: Results) -> list[dict[str, Any]]:
    """Return the accuracies of linear and kNN probes, averaged over seeds."""
    groups: dict[tuple[str, str, str], list[Mapping[str, float]]] = {}
    for run, result in results.items():
        if run.kind in ("structure", "cubes"):
            groups.setdefault((run.task, run.arm, run.transfer), []).append(result["accuracy"])
    titles = {t.name: t.title for t in setting.tasks.of(setting.mode) if has_structures(t)}
    return [
        {
            "probe": titles.get(task, "modality and region of synthetic cubes"),
            "task": task,
            "arm": arm,
            "maps": transfer,
            "seeds": len(found),
            "accuracy": {key: interval(np.array([r[key] for r in found])) for key in found[0]},
        }
        for (task, arm, transfer), found in groups.items()
    ]


def _facts(task: Task, results: Results) -> dict[str, Any]:
    """Return what the results say of their data: subjects, and how many runs had which arrays.

    Another processor prepares arrays that differ in rounding, and so in their hash (seen: by
    1.8e-7 of a range of 1); what decides them is in a run's name, but for the version.

    Raises:
        CheckpointError: If they are of different versions.
    """
    versions = {result.get("data_version", 1) for result in results.values()}
    if len(versions) > 1:
        raise CheckpointError(
            f"Expected all results of {task.name} to be of one way to its arrays, got versions "
            f"{sorted(versions)}. Delete the folders data and runs under --work."
        )
    tests = [result for run, result in results.items() if run.part == "test"]
    return {
        "test_subjects": tests[0]["test_subjects"] if tests else None,
        "data_sha256": dict(Counter(result["data_sha256"] for result in results.values())),
    }


def _class_means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [_mean([v for v in column if v is not None]) for column in zip(*rows, strict=True)]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
