"""The evidence run's numbers against its goals, as JSON, as a table, and as pictures.

A goal that is missed stands in the table as missed. What follows the line ``NOTES`` in an existing
Markdown file is written by hand and kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.config import recipe_of
from training.cubes import CubeStore
from training.pictures import clearest_cubes, new_figure, restored_figure, save_figure
from training.publish import final_checkpoint, unet_of
from training.restoration import CORRUPTION_NAMES
from universal_model_hub.files import write_bytes, write_json

NOTES = "## What was tried"
WITH, WITHOUT = "with MIAL", "without MIAL"
PROBE_COLUMNS = tuple(
    f"{probe} {arm}" for probe in ("modality_auc", "region_accuracy") for arm in (WITH, WITHOUT)
)
SMOOTHING = 20  # steps in one point of a loss curve


@dataclass(frozen=True)
class Goal:
    """A goal, what was measured, and whether it is met."""

    goal: str
    wanted: str
    measured: float
    met: bool
    by_seed: tuple[float, ...] = ()


def report(
    facts: Mapping[str, Any],
    measured: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[Sequence[float]]],
) -> dict[str, Any]:
    """Put facts, goals and all single measurements together."""
    precision = compare_precision(curves["float32"], curves["bfloat16"])
    goals = [*restoration_goals(measured), *feature_goals(measured), precision_goal(precision)]
    return {
        **facts,
        "goals": [asdict(goal) for goal in goals],
        "met": sum(goal.met for goal in goals),
        "of": len(goals),
        "restoration": restoration_rows(measured),
        "probes": probe_rows(measured),
        "precision": precision,
        "runs": [dict(row) for row in measured],
    }


def restoration_goals(measured: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """At least 50 % below the corrupted input's error, 30 % below the median filter's."""
    goals = []
    for name in CORRUPTION_NAMES:
        for against, label, wanted in (
            ("corrupted", "corrupted input", 0.5),
            ("median", "3x3x3 median filter", 0.3),
        ):
            drops = [
                1 - mean_error(run, "restored", name) / mean_error(run, against, name)
                for run in of_arm(measured, WITH)
            ]
            goals.append(
                goal_of(f"{name}: error below the {label}'s", f">= {wanted:.0%}", drops, wanted)
            )
    return goals


def feature_goals(measured: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """Scale accuracy, and what MIAL takes away and leaves; seeds are paired."""
    pairs = list(zip(of_arm(measured, WITH), of_arm(measured, WITHOUT), strict=True))
    drops = [b["modality_auc"] - a["modality_auc"] for a, b in pairs]
    costs = [mean_error(a, "restored") / mean_error(b, "restored") - 1 for a, b in pairs]
    regions = [a["region_accuracy"] - b["region_accuracy"] for a, b in pairs]
    scales = [run["scale_accuracy"] for run in of_arm(measured, WITH)]
    cost, region = float(np.mean(costs)), float(np.mean(regions))
    return [
        goal_of("scale accuracy, clean cubes", "> 90 %", scales, 0.9),
        goal_of("MIAL: drop of the modality probe's AUC on embeddings", ">= 0.1", drops, 0.1),
        Goal("MIAL: restoration error rises by", "<= 10 %", cost, cost <= 0.1, tuple(costs)),
        Goal(
            "MIAL: change of the region probe's accuracy on embeddings",
            "within 2 points",
            region,
            abs(region) <= 0.02,
            tuple(regions),
        ),
    ]


def goal_of(goal: str, wanted: str, values: Sequence[float], least: float) -> Goal:
    """Return a goal that the mean over the seeds has to reach."""
    mean = float(np.mean(values))
    return Goal(goal, wanted, mean, mean >= least, tuple(values))


def of_arm(measured: Sequence[Mapping[str, Any]], arm: str) -> list[Mapping[str, Any]]:
    """Return the runs of one arm in the order of their seeds."""
    return sorted((run for run in measured if run["arm"] == arm), key=lambda run: run["seed"])


def mean_error(run: Mapping[str, Any], what: str, corruption: str | None = None) -> float:
    """Return the mean error over all cubes of a run: one corruption, or all of them."""
    rows = [r for r in run["restoration"] if corruption in (None, r["corruption"])]
    return float(np.average([r[what] for r in rows], weights=[r["cubes"] for r in rows]))


def restoration_rows(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the errors over the seeds, by corruption, modality and arm."""
    rows = []
    for index, first in enumerate(of_arm(measured, WITH)[0]["restoration"]):
        row = {key: first[key] for key in ("corruption", "modality", "cubes")}
        for key in ("corrupted", "median"):
            row[key] = first[key]  # the same for every run
        for arm in (WITH, WITHOUT):
            values = [run["restoration"][index]["restored"] for run in of_arm(measured, arm)]
            row[f"restored {arm}"] = float(np.mean(values))
        rows.append(row)
    return rows


def probe_rows(measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the probes over the seeds, by level and arm."""
    rows = []
    for index, first in enumerate(of_arm(measured, WITH)[0]["probes"]):
        row: dict[str, Any] = {"level": first["level"]}
        for key in ("modality_auc", "region_accuracy"):
            for arm in (WITH, WITHOUT):
                values = [run["probes"][index][key] for run in of_arm(measured, arm)]
                row[f"{key} {arm}"] = float(np.mean(values))
        rows.append(row)
    return rows


def compare_precision(
    float32: Sequence[Sequence[float]], bfloat16: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Compare smoothed loss curves: bfloat16's distance from float32's, against the seeds' spread.

    Runs of one seed start from the same weights and see the same cubes, so their distance is
    precision alone; the spread is what the seed does to float32 runs.

    Args:
        float32: Loss by step for each seed.
        bfloat16: The same for the same seeds.
    """
    wide, narrow = smoothed(float32), smoothed(bfloat16)  # (seeds, points)
    spread = wide.max(axis=0) - wide.min(axis=0)
    distance = np.abs(wide - narrow).max(axis=0)
    return {
        "steps_per_point": SMOOTHING,
        "float32": wide.tolist(),
        "bfloat16": narrow.tolist(),
        "largest_distance": float(distance.max()),
        "mean_distance": float(distance.mean()),
        "largest_spread": float(spread.max()),
        "mean_spread": float(spread.mean()),
        "points_within_spread": float((distance <= spread).mean()),
    }


def smoothed(curves: Sequence[Sequence[float]]) -> np.ndarray:
    """Average curves over ``SMOOTHING`` steps, (curves, points); a shorter rest is left out."""
    array = np.array(curves, np.float64)
    points = array.shape[1] // SMOOTHING or 1
    width = min(SMOOTHING, array.shape[1])
    return array[:, : points * width].reshape(len(array), points, width).mean(axis=2)


def precision_goal(precision: Mapping[str, Any]) -> Goal:
    """The largest distance over all points and seeds stays below the largest spread."""
    ratio = precision["largest_distance"] / precision["largest_spread"]
    return Goal(
        "bfloat16 loss curve's distance, of the seeds' spread", "<= 100 %", ratio, ratio <= 1
    )


def markdown(result: Mapping[str, Any], picture: str, notes: str) -> str:
    """Write the report as a short page."""
    lines = [
        "# Evidence from held-out synthetic subjects",
        "",
        f"{result['met']} of {result['of']} goals met. Written by `{result['command']}` at commit "
        f"{result['commit'][:12]}; {len(result['seeds'])} seeds, {result['steps']} steps of "
        f"{result['batch_size']} cubes; numbers by seed are in the JSON file.",
        "",
        "| goal | wanted | measured | |",
        "|---|---|---:|---|",
    ]
    for goal in result["goals"]:
        value = goal["measured"]
        shown = f"{value:.3f}" if "AUC" in goal["goal"] else f"{value:.1%}"
        lines.append(
            f"| {goal['goal']} | {goal['wanted']} | {shown} | "
            f"{'met' if goal['met'] else '**missed**'} |"
        )
    lines += [
        "",
        "Mean squared errors inside the body (x 1000), each corruption alone and always:",
        "",
        "| corruption | modality | cubes | corrupted | median filter | restored | without MIAL |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["restoration"]:
        errors = [
            row[k] for k in ("corrupted", "median", f"restored {WITH}", f"restored {WITHOUT}")
        ]
        cells = " | ".join(f"{1000 * error:.2f}" for error in errors)
        lines.append(f"| {row['corruption']} | {row['modality']} | {row['cubes']} | {cells} |")
    lines += [
        "",
        "Linear probes on the mean-pooled maps of each level, means over the seeds. The embedding "
        "is that of level 3; the adversary sees all levels.",
        "",
        "| level | modality AUC | without MIAL | region accuracy | without MIAL |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["probes"]:
        cells = " | ".join(f"{row[key]:.3f}" for key in PROBE_COLUMNS)
        lines.append(f"| {'all' if row['level'] is None else row['level']} | {cells} |")
    lines += ["", f"![Original, corrupted and restored cubes]({picture})", "", NOTES]
    return "\n".join(lines) + "\n" + notes


def write_report(
    result: Mapping[str, Any], output: Path, run_folder: Path, held_out: CubeStore
) -> None:
    """Write JSON, Markdown (hand-written notes stay) and pictures beside each other."""
    page = output.with_suffix(".md")
    old = page.read_text() if page.is_file() else ""
    notes = old.partition(NOTES + "\n")[2]
    output.parent.mkdir(parents=True, exist_ok=True)
    _, state, config = final_checkpoint(run_folder)
    recipe = recipe_of(config["recipe"])
    unet = unet_of(state, recipe, average=True)
    cubes = clearest_cubes(held_out, range(len(held_out)))
    picture = output.with_name(f"{output.stem}_restored.png")
    save_figure(restored_figure(unet, cubes, recipe.corruption), picture)
    save_figure(
        precision_figure(result["precision"]), output.with_name(f"{output.stem}_precision.png")
    )
    write_bytes(page, markdown(result, picture.name, notes).encode())
    write_json(output, result)


def precision_figure(precision: Mapping[str, Any]) -> Any:
    """Draw the smoothed loss curves of both precisions, one line a seed."""
    figure = new_figure(6, 3.6)
    axis = figure.subplots()
    for name, color in (("float32", "#29a0b1"), ("bfloat16", "#e4572e")):
        for seed, values in enumerate(precision[name]):
            steps = (np.arange(len(values)) + 0.5) * precision["steps_per_point"]
            axis.plot(steps, values, color=color, linewidth=1.2, label=name if seed == 0 else None)
    axis.set_xlabel("step")
    axis.set_ylabel("restoration loss")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure
