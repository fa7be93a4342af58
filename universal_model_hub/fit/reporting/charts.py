"""Charts of a fine-tuning: curves, scores of cases, ROC, confusion. Needs matplotlib.

Each is drawn twice, for a light page and a dark one.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from universal_model_hub.extras import needed
from universal_model_hub.fit.reporting.classification import CaseAnswer, ClassificationScores
from universal_model_hub.fit.reporting.planes import class_color
from universal_model_hub.fit.reporting.summary import CaseScores, ClassSummary

ARM_COLORS = ("#e4572e", "#3d85c6", "#8a7f2f", "#7b4b94")
DPI, CSS_PIXELS = 160, 100  # of an inch
SMOOTH_SHARE = 40  # the loss is drawn as a mean over one part in so many of the steps


@dataclass(frozen=True)
class Chart:
    """A PNG file for a light page, and one for a dark page."""

    light: bytes
    dark: bytes
    width: int  # as it is shown, CSS pixels; the files are finer


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a training of one arm went."""

    name: str  # of the arm
    losses: tuple[float, ...]  # of each step
    scores: tuple[tuple[int, float], ...]  # finished steps, validation
    best_step: int | None = None


def curves_chart(curves: Sequence[Curve], score_name: str) -> Chart:
    """Draw the training loss and the validation score over the steps, a line an arm."""

    def draw(figure: Any, ink: str) -> None:
        left, right = figure.subplots(1, 2)
        for curve, color in zip(curves, _colors(curves), strict=True):
            steps = np.arange(1, len(curve.losses) + 1)
            left.plot(steps, curve.losses, color=color, alpha=0.18, linewidth=0.8)
            left.plot(*_smooth(np.array(curve.losses)), color=color, label=curve.name)
            if curve.scores:
                at, scores = zip(*curve.scores, strict=True)
                marker = "o" if len(at) < 40 else None
                right.plot(at, scores, color=color, marker=marker, markersize=3, label=curve.name)
            best = dict(curve.scores).get(curve.best_step or -1)
            if best is not None:
                right.plot(
                    *(curve.best_step, best),
                    marker="o",
                    markersize=9,
                    markerfacecolor="none",
                    markeredgecolor=color,
                )
        finish_axis(left, ink, "step", "training loss")
        finish_axis(right, ink, "step", score_name)
        show_legend(left, ink)

    return draw_chart(draw, 8.4, 3.1)


def scores_chart(
    arms: Mapping[str, tuple[Sequence[CaseScores], Sequence[ClassSummary]]], metric: str, name: str
) -> Chart:
    """Draw the score of each case, and beside it the mean with its interval, a row a class.

    Args:
        arms: Name of each arm to its cases and their summary.
        metric: Of the score.
        name: Of the score, for the axis.
    """
    rows = next(iter(arms.values()))[1]

    def draw(figure: Any, ink: str) -> None:
        axis = figure.subplots()
        for number, (arm, (cases, summaries)) in enumerate(arms.items()):
            color = ARM_COLORS[number % len(ARM_COLORS)]
            for place, summary in enumerate(summaries):
                shift = (number + 0.5) / len(arms) - 0.5
                y = place + 0.7 * shift
                labels = None if summary.label is None else (summary.label,)
                values = [v for case in cases if (v := case.mean(metric, labels)) is not None]
                axis.plot(
                    *(values, [y] * len(values)),
                    linestyle="none",
                    marker="o",
                    markersize=4,
                    markeredgewidth=0,
                    color=color,
                    alpha=0.4,
                )
                _mean_with_interval(axis, summary, metric, y, color, ink)
            axis.plot([], [], "o", color=color, label=arm)
        axis.set_yticks(range(len(rows)), [row.name for row in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_xlim(-0.02, 1.02)
        finish_axis(axis, ink, f"{name} (dots: cases; diamond: mean; bar: 95 % interval)", "")
        axis.grid(visible=False, axis="y")
        if len(arms) > 1:
            show_legend(axis, ink, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(arms))

    return draw_chart(draw, 8.4, 1.1 + (0.22 + 0.2 * len(arms)) * len(rows))


def roc_chart(arms: Mapping[str, Sequence[CaseAnswer]], classes: Mapping[int, str]) -> Chart:
    """Draw ROC curves, a panel an arm: of two classes the second, of more each from the rest."""
    metrics = needed("sklearn.metrics")
    shown = [1] if len(classes) == 2 else sorted(classes)

    def draw(figure: Any, ink: str) -> None:
        panels = figure.subplots(1, len(arms), squeeze=False)[0]
        for axis, (arm, answers) in zip(panels, arms.items(), strict=True):
            axis.plot([0, 1], [0, 1], color=ink, alpha=0.35, linestyle=":", linewidth=1)
            for label in shown:
                truth = np.array([answer.truth == label for answer in answers])
                scores = [answer.probabilities[label] for answer in answers]
                if not 0 < truth.sum() < len(truth):
                    continue  # a curve needs cases on both sides
                wrong, right, _ = metrics.roc_curve(truth, scores)
                axis.plot(wrong, right, color=class_color(label + 1), label=classes[label])
            finish_axis(axis, ink, "1 - specificity", "sensitivity")
            axis.set_title(arm, color=ink, fontsize=9)
            axis.set_box_aspect(1)
            show_legend(axis, ink, loc="lower right")

    return draw_chart(draw, 3.7 * len(arms), 3.9)


def confusion_chart(arms: Mapping[str, ClassificationScores], classes: Mapping[int, str]) -> Chart:
    """Draw how many cases of each class were taken for which, a panel an arm."""
    names = [classes[label] for label in sorted(classes)]
    side = max(2.6, 0.5 * len(names) + 1.4)

    def draw(figure: Any, ink: str) -> None:
        panels = figure.subplots(1, len(arms), squeeze=False)[0]
        for axis, (arm, scores) in zip(panels, arms.items(), strict=True):
            counts = np.array(scores.confusion)
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for (row, column), count in np.ndenumerate(counts):
                color = "white" if shares[row, column] > 0.55 else "#222222"
                axis.text(column, row, str(count), ha="center", va="center", color=color)
            axis.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0)
            axis.set_yticks(range(len(names)), names)
            finish_axis(axis, ink, "predicted", "truth")
            axis.grid(visible=False)
            axis.set_title(arm, color=ink, fontsize=9)

    return draw_chart(draw, (side + 0.6) * len(arms), side)


def _mean_with_interval(
    axis: Any, summary: ClassSummary, metric: str, y: float, color: str, ink: str
) -> None:
    estimate = summary.metrics[metric]
    if estimate.interval is not None:
        ends = [estimate.interval.low, estimate.interval.high]
        axis.plot(ends, [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
    if estimate.value is not None:
        axis.plot(*(estimate.value, y), marker="D", markersize=6, color=color, markeredgecolor=ink)


def _smooth(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and the mean of the losses up to them, over a short window."""
    width = max(1, len(losses) // SMOOTH_SHARE)
    if len(losses) < 2 * width:
        return np.arange(1, len(losses) + 1), losses
    means = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    return np.arange(width, len(losses) + 1), means


def draw_chart(draw: Callable[[Any, str], None], width: float, height: float) -> Chart:
    """Draw for a light page and for a dark one, each on a figure of its own, in inches."""
    figures = needed("matplotlib.figure", "matplotlib")
    pictures = []
    for ink in ("#333333", "#d6d6d6"):
        figure = figures.Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        draw(figure, ink)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", transparent=True, metadata={"Software": None})
        pictures.append(stream.getvalue())
    return Chart(pictures[0], pictures[1], round(width * CSS_PIXELS))


def finish_axis(axis: Any, ink: str, across: str, along: str) -> None:
    """Name the axes and draw all but the data in ``ink``."""
    axis.set_xlabel(across, color=ink, fontsize=8)
    axis.set_ylabel(along, color=ink, fontsize=8)
    axis.tick_params(colors=ink, labelsize=8, length=3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(ink)
    axis.grid(color=ink, alpha=0.12, linewidth=0.7)
    axis.set_axisbelow(True)


def show_legend(axis: Any, ink: str, **place: Any) -> None:
    """Show the legend of an axis that has entries."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8, labelcolor=ink, **place)


def _colors(curves: Sequence[Curve]) -> list[str]:
    return [ARM_COLORS[i % len(ARM_COLORS)] for i in range(len(curves))]
