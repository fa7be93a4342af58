"""A report of some tasks, joined with an earlier report of others.

Tasks are evaluated on their own, so a report can grow by tasks: siblings of the ablation, which
only some tasks compare, need not be at hand again for the others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json

PARTS = ("mode", "weights", "tasks", "probes")
# What a report says of how it was made; for tasks that were kept, it is said of them apart.
FACTS = ("command", "commit", "hardware", "processes", "runs", "runs_on", "process_hours")


def read_earlier(path: Path) -> dict[str, Any]:
    """Read the report that is to be kept.

    Raises:
        ConfigError: If there is none, or it is damaged.
    """
    try:
        report = dict(parse_json(path.read_bytes()))
        missing = [key for key in (*FACTS, *PARTS) if key not in report]
    except FileNotFoundError as cause:
        raise ConfigError(
            f"Expected a report to keep tasks of in {path}, got none. Leave out --keep."
        ) from cause
    except (ValueError, TypeError) as cause:
        raise ConfigError(
            f"Expected a report of training.release.evaluate in {path}, got: {cause!r}. "
            "Write it again without --keep."
        ) from cause
    if missing or report.get("failures"):
        problem = f"no {', '.join(missing)}" if missing else "one with failed runs"
        raise ConfigError(
            f"Expected a whole report in {path}, got {problem}. Write it again without --keep."
        )
    return report


def joined(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new report with the tasks of an earlier one that it does not have itself.

    Tasks stand in the order of their letters. ``earlier`` says how the kept ones were made.

    Args:
        new: Report, as ``write_report`` takes it.
        old: Report from ``read_earlier``.

    Raises:
        ConfigError: If they are of different modes, or of different weights of one name, or the new
            one leaves weights out that the earlier one compares throughout.
    """
    check_alike(new, old)
    fresh = {task["name"] for task in new["tasks"]}
    probed = {probe["task"] for probe in new["probes"]}
    weights = {arm["name"]: arm for arm in (*old["weights"], *new["weights"])}
    kept = [without(part, fresh) for part in parts(old)]
    return {
        **new,
        "earlier": [part for part in kept if part["tasks"]],
        "weights": list(weights.values()),
        "tasks": sorted(
            [*(task for task in old["tasks"] if task["name"] not in fresh), *new["tasks"]],
            key=lambda task: str(task["letter"]),
        ),
        "probes": [*(p for p in old["probes"] if p["task"] not in probed), *new["probes"]],
    }


def check_alike(new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """Refuse to join reports that do not compare the same.

    Raises:
        ConfigError: If modes or weights differ.
    """
    if new["mode"] != old["mode"]:
        raise ConfigError(
            f"Expected an earlier report of the {new['mode']} tasks to keep, got one of the "
            f"{old['mode']} tasks. Choose another --output."
        )
    ours = {arm["name"]: arm for arm in new["weights"]}
    for arm in old["weights"]:
        name = arm["name"]
        if name in ours and ours[name]["sha256"] != arm["sha256"]:
            raise ConfigError(
                f"Expected the earlier report to be of the same {name}, got other weights of that "
                f"name ({arm['sha256'][:12]}). Evaluate all tasks again, without --keep."
            )
        if name not in ours and not arm["sibling"]:
            raise ConfigError(
                f"Expected {name} among --weights, as in the earlier report, got none. Add it."
            )


def parts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how a report's tasks were made: facts for each command, the newest last."""
    earlier = [dict(part) for part in report.get("earlier", [])]
    known = {name for part in earlier for name in part["tasks"]}
    own = [task["name"] for task in report["tasks"] if task["name"] not in known]
    return [*earlier, {"tasks": own, **{key: report[key] for key in FACTS if key in report}}]


def without(part: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Return a part's facts without some of its tasks."""
    return {**part, "tasks": [name for name in part["tasks"] if name not in names]}
