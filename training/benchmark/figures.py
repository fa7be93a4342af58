"""Figures of the report: validation curves, shares of labels, segmentations in three planes."""

from typing import Any

import numpy as np

from training.benchmark.results import NAMES, Results, Table
from training.benchmark.rows import SHOWN_ROWS
from training.benchmark.statistics import spread
from universal_model_hub.errors import CheckpointError
from universal_model_hub.fit.reporting.charts import Chart, draw_chart, finish_axis

COLORS = {"scratch": "#8a8a8a", "genesis": "#3d85c6", "universal": "#e4572e"}
PANEL_INCHES, ACROSS = 2.9, 3  # side of a panel, panels in a row
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def curves_figure(results: Results) -> Chart | None:
    """Draw Fig. 4: the validation score over the steps, a panel a task; bands are of trials."""
    table = results.tables.get("figure_4")
    if table is None or not table.results:
        return None

    def draw(figure: Any, ink: str) -> None:
        for axis, task in _panels(figure, table):
            for row in table.rows:
                runs = table.select(row, task)
                if not runs:
                    continue
                steps = [point["step"] for point in runs[0].curve]
                values = np.array([[100 * p["validation"] for p in run.curve] for run in runs])
                middle = values.mean(axis=0)
                sd = values.std(axis=0, ddof=min(1, len(values) - 1))
                color = COLORS.get(row)
                axis.plot(steps, middle, color=color, marker="o", markersize=3,
                          label=results.title(row))  # fmt: skip
                axis.fill_between(steps, middle - sd, middle + sd, color=color, alpha=0.15, lw=0)
            score = "Dice" if results.metric(task) == "iou" else "AUC"
            finish_axis(axis, ink, "step", f"validation {score}, %")
            axis.set_title(task, color=ink, fontsize=9)
        _show_legend(figure, ink)

    return draw_chart(draw, *_size(table))


def labels_figure(results: Results) -> Chart | None:
    """Draw Fig. 5: the test score over the share of labels, a panel a task."""
    table = results.tables.get("figure_5")
    if table is None or not table.results:
        return None

    def draw(figure: Any, ink: str) -> None:
        for axis, task in _panels(figure, table):
            metric = results.metric(task)
            for row in table.rows:
                cells = [spread(table.select(row, task, share=s), metric) for s in table.shares]
                known = [
                    (100 * share, cell.mean, cell.sd or 0.0)
                    for share, cell in zip(table.shares, cells, strict=True)
                    if cell.mean is not None
                ]
                if known:
                    shares, means, sds = zip(*known, strict=True)
                    axis.errorbar(shares, means, yerr=sds, color=COLORS.get(row), marker="o",
                                  markersize=4, capsize=3, label=results.title(row))  # fmt: skip
            finish_axis(axis, ink, "labeled subjects, %", f"test {NAMES[metric]}, %")
            axis.set_title(task, color=ink, fontsize=9)
        _show_legend(figure, ink)

    return draw_chart(draw, *_size(table))


def example_pictures(results: Results) -> list[tuple[str, str, bytes]]:
    """Read Figs. 3 and 6: the first test case of each segmentation, by task and row.

    Returns:
        Task, row and PNG file of each.

    Raises:
        CheckpointError: If a file is damaged.
    """
    pictures = []
    for task in results.plan["tasks"]:
        for row in SHOWN_ROWS:
            path = results.folder / "examples" / f"{task}-{row}.png"
            if not path.is_file():
                continue
            png = path.read_bytes()
            if not (png.startswith(PNG_START) and png.endswith(PNG_END)):
                raise CheckpointError(
                    f"Expected a picture of a test case in {path}, got a damaged file. Delete it "
                    "and the result of that run, and start again."
                )
            pictures.append((task, row, png))
    return pictures


def _panels(figure: Any, table: Table) -> list[tuple[Any, str]]:
    rows = -(-len(table.tasks) // ACROSS)
    across = min(ACROSS, len(table.tasks))
    axes = figure.subplots(rows, across, squeeze=False).ravel()
    for axis in axes[len(table.tasks) :]:
        axis.set_axis_off()
    return list(zip(axes, table.tasks, strict=False))


def _show_legend(figure: Any, ink: str) -> None:
    """Show one legend for all panels, below them, where it hides nothing."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=max(1, len(entries)),
        frameon=False, fontsize=8, labelcolor=ink,
    )  # fmt: skip


def _size(table: Table) -> tuple[float, float]:
    rows = -(-len(table.tasks) // ACROSS)
    return PANEL_INCHES * min(ACROSS, len(table.tasks)), 0.9 * PANEL_INCHES * rows
