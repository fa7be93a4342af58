"""Results of the evaluation as rows of a model's config.json, and so of its card.

    python -m training.release.rows

rewrites config and card of the weights in the package from the reports in ``results/``; the weight
files stay as they are.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.release.arms import HAND, SCRATCH
from universal_model_hub.card import model_card
from universal_model_hub.catalog import BUNDLED
from universal_model_hub.config import read_config
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json, sha256_of, write_bytes, write_json

RESULTS = Path(__file__).parent.parent.parent / "results"
DEVELOP, FINAL = "release_develop.json", "release.json"  # of ``training.release.evaluate``


def release_rows(name: str, sha256: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return what the reports in a folder say of weights; none if none speaks of them.

    Args:
        name: Of the weights.
        sha256: Of their file: other weights of that name have other results.
        folder: Of the reports.

    Raises:
        ConfigError: If a report is damaged.
    """
    rows: list[dict[str, Any]] = []
    for file in (DEVELOP, FINAL):
        try:
            for task in tasks_of(folder / file, name, sha256):
                rows += task_rows(task, name, f"results/{file}")
        except (KeyError, TypeError) as cause:
            raise _damaged(folder / file, cause) from cause
    return rows


def verdict(name: str, sha256: str, folder: Path = RESULTS) -> str:
    """Say where the final evaluation finds weights above scratch, and where it does not.

    Arguments and errors are those of ``release_rows``.
    """
    above, not_above = [], []
    try:
        for task in tasks_of(folder / FINAL, name, sha256):
            for row in task["rows"]:
                if row["arm"] != name or row["dice_difference"]["low"] is None:
                    continue
                difference = row["dice_difference"]
                where = f"{task['title']}, {row['share']} % of the labels"
                if difference["low"] > 0:
                    above.append(f"{where} ({difference['mean']:+.3f})")
                else:
                    not_above.append(f"{where} ({difference['mean']:+.3f})")
    except (KeyError, TypeError) as cause:
        raise _damaged(folder / FINAL, cause) from cause
    told = []
    if above:
        told.append(f"Better than scratch, with the 95 % interval above zero: {'; '.join(above)}.")
    if not_above:
        told.append(f"Not shown to be better than scratch: {'; '.join(not_above)}.")
    if told:
        told.append(
            "Dice on test cases, equal steps, each with its own learning rate; intervals are over "
            "seeds, not over subjects."
        )
    return " ".join(told)


def tasks_of(path: Path, name: str, sha256: str) -> list[Mapping[str, Any]]:
    """Return a report's tasks if it speaks of these weights.

    Raises:
        ConfigError: If it is damaged.
    """
    if not path.is_file():
        return []
    try:
        report = parse_json(path.read_bytes())
        known = {(arm["name"], arm["sha256"]) for arm in report["weights"]}
        return list(report["tasks"]) if (name, sha256) in known else []
    except (ValueError, KeyError, TypeError) as cause:
        raise _damaged(path, cause) from cause


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
    return rows + baseline_rows(task, source) + sibling_rows(task, source) if rows else rows


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


def sibling_rows(task: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """Return the rows of the ablation: parts of the method switched off, one short budget each."""
    rows = []
    for row in task["rows"]:
        if not row["sibling"] or not row["seeds"]:
            continue
        title = f"{task['title']}; {row['share']} % of the labels"
        shared = {"n": task["test_subjects"], "seeds": row["seeds"], "source": source}
        above = row["dice_difference"]["mean"]
        told = "" if above is None else f" ({above:+.3f} to scratch)"
        metric = f"Dice of the ablation's '{row['arm']}'{told}, a shorter run"
        rows.append(_row(title, metric, row["dice"], shared))
    return rows


def update_card(folder: Path, results: Path = RESULTS) -> bool:
    """Write into config and card of a model folder what the reports say of just these weights.

    Args:
        folder: Of the model; its weight file stays as it is.
        results: Folder of the reports.

    Returns:
        Whether something is said.
    """
    config = read_config(folder / "config.json")
    sha256 = config.sha256 or sha256_of(folder / "model.safetensors")
    rows = release_rows(config.name, sha256, results)
    own = [row for row in config.metrics if not str(row["source"]).startswith("results/")]
    provenance = {key: value for key, value in config.provenance.items() if key != "verdict"}
    if told := verdict(config.name, sha256, results):
        provenance["verdict"] = told
    config = replace(config, metrics=(*own, *rows), provenance=provenance)
    write_json(folder / "config.json", config.to_json())
    write_bytes(folder / "README.md", model_card(config).encode())
    return bool(rows)


def _damaged(path: Path, cause: Exception) -> ConfigError:
    return ConfigError(
        f"Expected a report of training.release.evaluate in {path}, got: {cause!r}. Write it again."
    )


def _row(
    title: str, metric: str, found: Mapping[str, Any], shared: Mapping[str, Any]
) -> dict[str, Any]:
    values = {"value": round(found["mean"], 4), "std": round(found["sd"] or 0.0, 4)}
    return {"task": title, "metric": metric, **values, **shared}


if __name__ == "__main__":
    for path in sorted(BUNDLED.glob("*/config.json")):
        if update_card(path.parent):
            print(f"{path.parent.name}: results written into config and card", file=sys.stderr)
