"""The tables of ``training/README.md``: published numbers, and what a run costs.

They are written between markers from ``results/training_cost.json`` and ``published.py``, so that
no number is typed twice; a test compares.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.estimate import SLOWEST_BFLOAT16
from training.published import METRICS, PUBLISHED, TASKS, Published
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import write_bytes

README = Path(__file__).parent / "README.md"


def write_tables(readme: Path, cost: Mapping[str, Any]) -> None:
    """Replace the generated parts of a README.

    Raises:
        ConfigError: If a marker is missing.
    """
    text = with_tables(readme.read_text(encoding="utf-8"), cost)
    write_bytes(readme, text.encode())


def with_tables(text: str, cost: Mapping[str, Any]) -> str:
    """Return a README's text with its generated parts made anew.

    Raises:
        ConfigError: If a marker is missing.
    """
    for name, table in (("published", published_table(cost)), ("cost", cost_tables(cost))):
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, found, rest = text.partition(start)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ConfigError(f"Expected {start.strip()} and {end} in the README. Put them back.")
        text = f"{head}{start}{table}\n{end}{tail}"
    return text


def published_table(cost: Mapping[str, Any]) -> str:
    """Return a row for each published approach: command, data, hours, and its scores."""
    hours = {row["recipe"]: row["hours"] for row in cost["estimates"]["recipes"]}
    header = [
        "table", "approach", "pre-training", "its data", "hours, one GPU*", "hours, eight GPUs*",
        *(f"{task} {METRICS[task]}" for task in TASKS),
    ]  # fmt: skip
    return table(header, [published_row(row, hours) for row in PUBLISHED])


def published_row(row: Published, hours: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the cells of one published approach."""
    scores = [
        f"{row.scores[task][0]:.2f} ± {row.scores[task][1]:.2f}" if task in row.scores else "-"
        for task in TASKS
    ]
    if row.recipe is None:
        own = row.data.startswith("the authors")
        return [row.table, row.approach, "bring their file" if own else "none", row.data,
                "-", "-", *scores]  # fmt: skip
    spent = hours[row.recipe]
    times = "5 x " if row.recipe in ("rotation", "jigsaw") else ""
    return [
        row.table,
        row.approach,
        f"`--recipe {row.recipe}`",
        row.data,
        f"{times}{rounded(spent['gpu'])}",
        f"{times}{rounded(spent['gpus'])}",
        *scores,
    ]


def cost_tables(cost: Mapping[str, Any]) -> str:
    """Return what was measured, what follows from it, and by which assumptions."""
    measured, estimates = cost["measured"], cost["estimates"]
    hardware, load = measured["hardware"], measured["load_average"]
    corruption, preparation = measured["corruption"], measured["preparation"]
    x, y, z = preparation["shape"]
    lines = [
        f"Measured on {hardware['processor']}, {hardware['threads']} of "
        f"{hardware['cores']} cores used, torch {hardware['torch']}, {cost['date']}, commit "
        f"`{cost['commit'][:12]}`; load average {load['before']} before and {load['after']} after"
        f"{shared(hardware['cores'], load)}.",
        "",
        table(
            ["width", "precision", "cubes a step", "steps/s", "cubes/s", "GFLOP/s", "peak memory"],
            [measured_row(row) for row in measured["training"]],
        ),
        "",
        bfloat16_note(measured["bfloat16_slowdown"]),
        "",
        f"On one core: corrupting a cube of 64 x 64 x 32 takes {corruption['ms_per_cube']:.1f} ms; "
        f"normalizing a CT of {x} x {y} x {z} takes {preparation['normalize_seconds']:.1f} s and "
        f"cutting its {preparation['cubes']} cubes {preparation['cut_seconds']:.1f} s, at most "
        f"{preparation['peak_memory_mib'] or 0:,} MiB.",
        "",
        "Estimates:",
        "",
        table(
            ["recipe", "steps", "cubes seen", "TFLOP a cube", "this machine, days",
             "GTX 1080 Ti, hours", "one GPU, hours", "eight GPUs, hours"],
            [recipe_row(row) for row in estimates["recipes"]],
        ),
        "",
        many_volumes(estimates["many_volumes"], estimates["assumptions"]),
        "",
        "Assumptions:",
        "",
        *(f"- {note}" for note in estimates["notes"]),
    ]  # fmt: skip
    return "\n".join(lines)


def shared(cores: int, load: Mapping[str, float]) -> str:
    """Say so when other work ran beside the measurement."""
    busy = load["before"] > cores / 2
    return " (other work ran beside it: an idle machine is faster)" if busy else ""


def bfloat16_note(slowdown: float) -> str:
    """Say what bfloat16 does on the measured processor."""
    if slowdown <= SLOWEST_BFLOAT16:
        return f"On this processor a tiny step in bfloat16 takes {slowdown} of float32's time."
    return (
        f"This processor is no match for bfloat16: a tiny step takes {slowdown:.0f} times "
        "float32's time, so its rows are left out."
    )


def measured_row(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one measured training row."""
    layout = ", channels last" if row["channels_last"] else ""
    return [
        str(row["width"]),
        row["precision"] + layout,
        str(row["batch"]),
        f"{row['steps_per_second']:.2g}",
        f"{row['cubes_per_second']:.2g}",
        f"{row['gflops']:.0f}",
        f"{row['peak_memory_mib'] or 0:,} MiB",
    ]


def recipe_row(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one recipe's estimate."""
    hours = row["hours"]
    return [
        f"`{row['recipe']}`",
        f"{row['steps']:,}",
        f"{row['cubes_seen']:,}",
        f"{row['tflop_per_cube']:.3g}",
        rounded(hours["this_machine"] / 24),
        rounded(hours["paper_gpu"]),
        rounded(hours["gpu"]),
        rounded(hours["gpus"]),
    ]


def many_volumes(row: Mapping[str, Any], assumptions: Mapping[str, Any]) -> str:
    """Return the sentence on very many volumes."""
    return (
        f"{row['volumes']:,} volumes: {row['cubes']:,} cubes, {row['store_tb']:.1f} TB of store, "
        f"{row['preparation_core_hours']:,.0f} core hours of preparation "
        f"({row['preparation_hours']:,.0f} hours on {assumptions['preparation_cores']} cores), and "
        f"for {row['passes']:.0f} passes {row['hours']['gpu']:,.0f} hours on one GPU or "
        f"{row['hours']['gpus']:,.0f} on eight."
    )


def rounded(value: float) -> str:
    """Write an estimate with two figures at most after its size, so that it claims no more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
