"""The report of an evaluation as a Markdown page and pictures, written beside its JSON.

What follows the line ``NOTES`` in an existing page is written by hand and kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from training.pictures import new_figure, save_figure
from training.release.earlier import parts
from universal_model_hub.files import write_bytes, write_json

NOTES = "## Notes"
COLORS = ("#5b6770", "#e4572e", "#29a0b1", "#f3a712", "#7b4b94", "#3a7d44")


def write_report(result: Mapping[str, Any], output: Path) -> list[Path]:
    """Write JSON, Markdown (hand-written notes stay) and a picture of curves; return the paths."""
    output.parent.mkdir(parents=True, exist_ok=True)
    page, picture = output.with_suffix(".md"), output.with_name(f"{output.stem}_curves.png")
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    notes = old.partition(NOTES + "\n")[2]
    drawn = [task for task in result["tasks"] if any(c["steps"] for c in task["curves"])]
    if drawn:
        save_figure(curves_figure(drawn), picture)
    write_bytes(page, markdown(result, picture.name if drawn else "", notes).encode())
    write_json(output, result)
    return [output, page, *([picture] if drawn else [])]


def markdown(result: Mapping[str, Any], picture: str, notes: str) -> str:
    """Write the page."""
    lines = [f"# Released weights against scratch: {result['mode']} tasks", ""]
    for part in (made := parts(result)):
        lines += [made_line(part, named=len(made) > 1), ""]
    lines += [
        "Dice on each task's test cases, mean and standard deviation over seeds. Both arms of a "
        "pair take the same steps, the same cubes and the same new head; each has its "
        "learning rate chosen from the same values on a third of its training labels that is kept "
        "back meanwhile. "
        "The difference is paired by seed, with its 95 % t interval **over seeds**: it does not "
        "say how another subject would do. Scores are of the task's working grid.",
        "",
    ]
    for task in result["tasks"]:
        lines += task_lines(task)
    lines += probe_lines(result["probes"])
    if picture:
        lines += [f"![Dice on the test cases over the steps]({picture})", ""]
    if result["failures"]:
        lines += [f"**{len(result['failures'])} runs failed** and are missing above:", ""]
        lines += [f"- {f['run']}: {f['problem']}" for f in result["failures"]] + [""]
    return "\n".join([*lines, NOTES]) + "\n" + notes


def made_line(part: Mapping[str, Any], *, named: bool) -> str:
    """Say which command made a part of the report, where, and which tasks if it is not alone."""
    machine = part["hardware"]
    tasks = f"{', '.join(part['tasks'])}: written" if named else "Written"
    return (
        f"{tasks} by `{part['command']}` at commit {part['commit'][:12]}: "
        f"{part['runs']} runs, {part['process_hours']:.1f} hours of single processes, "
        f"{part['processes']} at a time on {machine['processor']} ({machine['cores']} cores)."
        + runs_on(part.get("runs_on", {}))
    )


def runs_on(counts: Mapping[str, int]) -> str:
    """Say which runs were made on what, where it was not one processor throughout."""
    if len(counts) < 2:
        return ""
    return " Runs by what they ran on: " + ", ".join(f"{n} {d}" for d, n in counts.items()) + "."


def task_lines(task: Mapping[str, Any]) -> list[str]:
    """Write a task: its facts, a row for each share and arm, and the frozen baselines."""
    subjects = task["test_subjects"]
    lines = [
        f"## ({task['letter']}) {task['title']}",
        "",
        f"Classes: {', '.join(task['classes'])}. Test subjects: n = {subjects}. {task['note']}",
        "",
        "| labels | arm | rate | seeds | Dice | difference | IoU difference |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in task["rows"]:
        name = f"{row['arm']}, {row['transfer']}" if row["transfer"] else row["arm"]
        rate = "" if row["rate"] is None else f"{row['rate']:g}"
        lines.append(
            f"| {row['share']} % ({row['slabs']}) | {name} | {rate} | {row['seeds']} "
            f"| {spread(row['dice'])} | {difference(row.get('dice_difference'))} "
            f"| {difference(row.get('iou_difference'))} |"
        )
    for row in task["frozen"]:
        name = "random network" if row["arm"].startswith("scratch") else row["arm"]
        maps = "" if row["arm"] == "hand-made features" else f", {row['maps']}"
        lines.append(
            f"| {row['share']} % | {name}{maps}, frozen + ridge probe | | {row['seeds']} "
            f"| {spread(row['dice'])} | | |"
        )
    lines.append("")
    if len(arrays := task["data_sha256"]) > 1:
        told = ", ".join(f"{runs} of {sha256[:8]}" for sha256, runs in arrays.items())
        lines += [
            f"Its arrays were prepared on different processors, which round: runs {told}.",
            "",
        ]
    lines += ablation_lines(task.get("ablation", []))
    lines += [curve_line(c) for c in task["curves"] if c["transfer"] and c["steps"]]
    for flat in task["plateau"]:
        lines.append(
            f"- At {flat['share']} % of the labels {flat['arm']} still gained {flat['gain']:+.3f} "
            "Dice on kept-back labels over the last third of its steps."
        )
    return [*lines, ""]


def ablation_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the full objective against each sibling, all of one shorter budget."""
    if not rows:
        return []
    lines = [
        "The ablation, one shorter budget each: Dice of the full objective minus that of an arm, "
        "paired by seed.",
        "",
        "| labels | arm | seeds | full minus this |",
        "|---:|---|---:|---:|",
    ]
    for row in rows:
        told = row["full_minus_this"]
        lines.append(
            f"| {row['share']} % | {row['arm']}, {row['transfer']} | {told['seeds']} "
            f"| {difference(told)} |"
        )
    return [*lines, ""]


def curve_line(curve: Mapping[str, Any]) -> str:
    """Say when an arm reaches scratch's final score."""
    name = f"{curve['arm']}, {curve['transfer']}"
    goal, reached = curve["scratch_final"], curve["steps_to_scratch_final"]
    if goal is None:
        return f"- {name}: no curve of scratch to compare with."
    if reached is None:
        return f"- {name} does not reach scratch's final Dice of {goal:.3f}."
    return (
        f"- {name} reaches scratch's final Dice of {goal:.3f} after {reached:.0f} steps "
        f"({curve['share_of_scratch_steps']:.0%} of scratch's, "
        f"{curve['seconds_to_scratch_final']:.0f} s), means over {curve['seeds']} seeds."
    )


def probe_lines(probes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the accuracies of the probes."""
    if not probes:
        return []
    keys = list(dict.fromkeys(key for probe in probes for key in probe["accuracy"]))
    lines = [
        "## (e) What frozen features know",
        "",
        "Balanced accuracy of a linear and a kNN probe. Modality and region are asked of synthetic "
        "cubes, in which they do not go together, out of fold by subject; structures of single "
        "voxels of the test cases.",
        "",
        "| probe | features | " + " | ".join(keys) + " |",
        "|---|---|" + "---:|" * len(keys),
    ]
    for probe in probes:
        name = "random network" if probe["arm"].startswith("scratch") else probe["arm"]
        values = [probe["accuracy"].get(key) for key in keys]
        shown = ["" if value is None else spread(value) for value in values]
        lines.append(f"| {probe['probe']} | {name}, {probe['maps']} | {' | '.join(shown)} |")
    return [*lines, ""]


def spread(value: Mapping[str, Any]) -> str:
    """Write a mean with its standard deviation."""
    if value["mean"] is None:
        return "missing"
    sd = "" if value["sd"] is None else f" ± {value['sd']:.3f}"
    return f"{value['mean']:.3f}{sd}"


def difference(value: Mapping[str, Any] | None) -> str:
    """Write a paired difference with its interval, bold where the interval is above zero."""
    if value is None:
        return ""
    if value["mean"] is None:
        return "missing"
    if value["low"] is None:
        return f"{value['mean']:+.3f} (one seed)"
    text = f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
    return f"**{text}**" if value["low"] > 0 else text


def curves_figure(tasks: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the mean test score over the steps, a panel for each task and a line for each arm."""
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = new_figure(4.2 * columns, 3.1 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, task in zip(axes, tasks, strict=False):
        for curve, color in zip(task["curves"], COLORS * len(task["curves"]), strict=False):
            name = f"{curve['arm']} {curve['transfer']}".strip()
            axis.plot(
                curve["steps"], curve["dice"], color=color, marker="o", markersize=3, label=name
            )
        axis.set_title(f"({task['letter']}) {task['name'].replace('_', ' ')}", fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel("Dice, test cases", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    return figure
