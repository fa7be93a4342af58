"""Results of the evaluation as rows of a model's config.json, and so of its card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.release.arms import HAND, SCRATCH
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json

RESULTS = Path(__file__).parent.parent.parent / "results"
REPORTS = ("release_develop.json", "release.json")  # of ``training.release.evaluate``


def release_rows(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return what the reports in a folder say of the weights of a name; none if there are none.

    Raises:
        ConfigError: If a report is damaged.
    """
    rows: list[dict[str, Any]] = []
    for file in REPORTS:
        path = folder / file
        if not path.is_file():
            continue
        try:
            report = parse_json(path.read_bytes())
            for task in report["tasks"]:
                rows += task_rows(task, name, f"results/{file}")
        except (ValueError, KeyError, TypeError) as cause:
            raise ConfigError(
                f"Expected a report of training.release.evaluate in {path}, got: {cause!r}. "
                "Write it again."
            ) from cause
    return rows


def task_rows(task: Mapping[str, Any], name: str, source: str) -> list[dict[str, Any]]:
    """Return a task's rows for weights: Dice, its distance from scratch, and what else there was.

    Scratch and the frozen baselines stand beside them, so that a card does not show one side only.
    """
    rows = []
    for row in task["rows"]:
        if row["arm"] != name or not row["seeds"]:
            continue
        title = f"{task['title']}; {row['share']} % of the labels"
        shared = {"n": task["test_subjects"], "seeds": row["seeds"], "source": source}
        rows.append(_row(title, f"Dice, {row['transfer']} transfer", row["dice"], shared))
        difference = row["dice_difference"]
        if difference["low"] is not None:
            interval = f"{difference['low']:+.3f} to {difference['high']:+.3f}"
            metric = f"Dice above scratch (95 % interval over seeds: {interval})"
            rows.append(_row(title, metric, difference, shared))
    return rows + baseline_rows(task, source) if rows else rows


def baseline_rows(task: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """Return the rows of scratch, and of ridge probes on hand-made and random features."""
    rows = []
    for row in (*task["rows"], *task["frozen"]):
        probe = row in task["frozen"]
        names = (HAND, SCRATCH) if probe else (SCRATCH,)
        if row["arm"] not in names or not row["seeds"]:
            continue
        what = "random network" if probe and row["arm"] == SCRATCH else row["arm"]
        shared = {"n": task["test_subjects"], "seeds": row["seeds"], "source": source}
        title = f"{task['title']}; {row['share']} % of the labels"
        how = f"{what}, frozen, ridge probe" if probe else what
        rows.append(_row(title, f"Dice of {how}, not of these weights", row["dice"], shared))
    return rows


def _row(
    title: str, metric: str, found: Mapping[str, Any], shared: Mapping[str, Any]
) -> dict[str, Any]:
    values = {"value": round(found["mean"], 4), "std": round(found["sd"] or 0.0, 4)}
    return {"task": title, "metric": metric, **values, **shared}
