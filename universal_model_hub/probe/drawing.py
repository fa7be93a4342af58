"""The low-label curve as a picture: what each kind of features reaches with few labels."""

import io

from universal_model_hub.extras import needed
from universal_model_hub.probe.arms import ARMS
from universal_model_hub.probe.classifiers import CLASSIFIERS
from universal_model_hub.probe.curve import MAJORITY
from universal_model_hub.probe.results import ProbeResult

COLORS = dict(zip(ARMS, ("#e4572e", "#7b4b94", "#3d85c6", "#8a7f2f"), strict=True))
INK, DPI = "#333333", 160
ASIDE = 1.04  # each kind of features is drawn a little to the right, so that bars stay apart


def curve_picture(result: ProbeResult, kind: str = "png") -> bytes:
    """Draw balanced accuracy over the share of labels, a panel a classifier.

    Bars are the 95 % interval over draws of the labels; dashed: always the majority class.

    Args:
        result: Of a probe.
        kind: ``"png"`` or ``"svg"``.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    figure = needed("matplotlib.figure", "matplotlib").Figure(
        figsize=(8.4, 3.4), dpi=DPI, layout="constrained"
    )
    percents = list(dict.fromkeys(row.percent for row in result.rows))
    for axis, classifier in zip(figure.subplots(1, 2, sharey=True), CLASSIFIERS, strict=True):
        for number, (arm, color) in enumerate(COLORS.items()):
            scores = [result.row(arm, classifier, p).balanced_accuracy for p in percents]
            below = [s.mean - (s.mean if s.low is None else s.low) for s in scores]
            above = [(s.mean if s.high is None else s.high) - s.mean for s in scores]
            axis.errorbar(
                *([p * ASIDE**number for p in percents], [s.mean for s in scores]),
                yerr=(below, above),
                color=color,
                marker="o",
                markersize=4,
                capsize=3,
                label=arm,
            )
        chance = [result.row(MAJORITY, None, p).balanced_accuracy.mean for p in percents]
        axis.plot(percents, chance, color=INK, linestyle="--", linewidth=1, label=MAJORITY)
        axis.set_xscale("log")
        axis.set_xticks(percents, [f"{p:g}" for p in percents])
        axis.minorticks_off()
        axis.set_ylim(-0.02, 1.02)
        axis.set_title(classifier, fontsize=9, color=INK)
        axis.set_xlabel("labeled training subjects, %", fontsize=8, color=INK)
        axis.tick_params(labelsize=8, colors=INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=INK, alpha=0.12, linewidth=0.7)
    figure.axes[0].set_ylabel("balanced accuracy, held out", fontsize=8, color=INK)
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, frameon=False, fontsize=8, loc="outside lower center", ncols=5)
    stream = io.BytesIO()
    metadata = {"Software": None} if kind == "png" else {"Date": None}
    figure.savefig(stream, format=kind, metadata=metadata)
    return stream.getvalue()
