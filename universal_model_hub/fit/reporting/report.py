"""``report.html``: what a fine-tuning reached, on which cases, and how it looks. One file, no net.

The numbers are those of ``summary`` and ``classification``; nothing is computed here but them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from universal_model_hub.errors import ConfigError
from universal_model_hub.files import write_bytes
from universal_model_hub.fit.data.cases import Finding, Split, Task
from universal_model_hub.fit.reporting.charts import Curve, curves_chart
from universal_model_hub.fit.reporting.classification import CaseAnswer
from universal_model_hub.fit.reporting.page import (
    Markup,
    facts,
    joined,
    legend,
    number,
    page,
    picture,
    table,
    tag,
    text,
)
from universal_model_hub.fit.reporting.planes import DIFFERENCES, UNKNOWN_COLOR, class_color
from universal_model_hub.fit.reporting.results import (
    Results,
    classification_results,
    segmentation_results,
)
from universal_model_hub.fit.reporting.summary import CaseScores

FEW_CASES = 10  # below, bootstrap intervals are known to be too narrow


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training and what it reached on the held-out cases."""

    name: str  # such as "pretrained: unet3d-compact" or "from scratch"
    cases: tuple[CaseScores, ...] = ()  # of segmentation
    answers: tuple[CaseAnswer, ...] = ()  # of classification
    losses: tuple[float, ...] = ()  # of each step
    scores: tuple[tuple[int, float], ...] = ()  # finished steps, validation
    best_step: int | None = None  # whose weights were kept
    seconds: float | None = None  # of training
    facts: Mapping[str, Any] = field(default_factory=dict)  # learning rate, parameters, ...


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What was trained on and judged with."""

    splits: Mapping[Split, tuple[int, int]]  # side of the split: cases, subjects
    class_counts: Mapping[str, int]  # voxels of each class; of classification cases
    findings: tuple[Finding, ...] = ()  # what the check of the data said
    facts: Mapping[str, Any] = field(default_factory=dict)  # spacing, channels, ...


@dataclass(frozen=True)
class Picture:
    """A case as ``three_planes`` draws it."""

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the page says."""

    title: str
    task: Task
    command: str
    classes: Mapping[int, str]  # class number to name; of segmentation without the background
    arms: tuple[Arm, ...]  # one, or two that are compared: the first minus the second
    data: DataSummary
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]  # weights and their sha256, versions, hardware, seed, hours, ...
    score_name: str = "validation Dice"
    judged_on: str = "test cases"  # or "cases held out in 5 folds", ...
    pictures: tuple[Picture, ...] = ()
    caveats: tuple[str, ...] = ()  # beside those that follow from the numbers
    within_subject: bool = False  # trained and judged on parts of the same scan


def write_report(path: Path, report: ReportData) -> None:
    """Write the page, whole or not at all.

    Raises:
        ConfigError: If there is no arm, more than two, or matplotlib is not installed.
    """
    write_bytes(path, report_page(report).encode())


def report_page(report: ReportData) -> str:
    """Return the page as HTML; see ``write_report``."""
    if len(report.arms) not in (1, 2):
        raise ConfigError(
            f"Expected one arm, or two to compare, got {len(report.arms)}. Report them in pairs."
        )
    results = _results(report)
    sections = [
        _header(report, results),
        *_findings(report.data.findings),
        tag("h2", "Results"),
        results.body,
        *_training(report),
        *_pictures(report),
        tag("h2", "Every case"),
        tag("p", "Select a column's name to sort by it.", "soft"),
        results.cases,
        *_data(report),
        *_caveats(report, results),
        tag("h2", "How it was made"),
        tag("pre", report.command),
        facts(report.provenance),
        Markup(f"<details><summary>Settings</summary>{facts(report.settings)}</details>"),
    ]
    return page(report.title, sections)


def _results(report: ReportData) -> Results:
    if report.task == "classification":
        answers = {arm.name: arm.answers for arm in report.arms}
        return classification_results(answers, report.classes)
    return segmentation_results({arm.name: arm.cases for arm in report.arms})


def _header(report: ReportData, results: Results) -> Markup:
    names = ", ".join(report.classes.values())
    judged = f"{report.judged_on}, n = {results.num_cases}"
    tiles = [
        joined([tag("span", tile.title), tag("b", tile.value), tag("span", tile.note)])
        for tile in results.tiles
    ]
    return joined(
        [
            tag("div", f"Fine-tuning report: {report.task}", "eyebrow"),
            tag("h1", report.title),
            tag("p", f"Judged on {judged}. Classes: {names}.", "soft"),
            tag("div", joined([tag("div", tile, "tile") for tile in tiles]), "tiles"),
            *(tag("p", sentence) for sentence in results.sentences),
        ]
    )


def _findings(findings: Sequence[Finding]) -> list[Markup]:
    notes = [
        tag("div", joined([tag("b", finding.where), text(": "), text(finding.text)]), "note")
        for finding in findings
    ]
    return [tag("h2", "Warnings about the data"), *notes] if notes else []


def _training(report: ReportData) -> list[Markup]:
    curves = [
        Curve(name=arm.name, losses=arm.losses, scores=arm.scores, best_step=arm.best_step)
        for arm in report.arms
        if arm.losses
    ]
    if not curves:
        return []
    names = list(dict.fromkeys(name for arm in report.arms for name in arm.facts))
    rows = [
        [
            arm.name,
            number(len(arm.losses), 0),
            Markup("last") if arm.best_step is None else number(arm.best_step, 0),
            duration(arm.seconds),
            *(arm.facts.get(name, "") for name in names),
        ]
        for arm in report.arms
    ]
    head = ["arm", "steps", "weights of step", "training time", *names]
    caption = "Left: loss of each step (faint) and its moving mean. Right: " + report.score_name
    ringed = any(arm.best_step is not None for arm in report.arms)
    return [
        tag("h2", "Training"),
        picture(
            curves_chart(curves, report.score_name),
            caption + ("; the ring marks the weights that were kept." if ringed else "."),
        ),
        table(head, rows, numeric=range(1, len(head))),
    ]


def _pictures(report: ReportData) -> list[Markup]:
    if not report.pictures:
        return []
    colors = {}
    if report.task == "segmentation":
        colors = {name: class_color(label) for label, name in sorted(report.classes.items())}
        colors |= DIFFERENCES | {"not annotated": UNKNOWN_COLOR}
    sides = (
        "Voxels are drawn in their true proportions. The subject's left is on the left (L), front "
        "is A, back P, top S, bottom I."
    )
    shown = [
        part
        for one in report.pictures
        for part in (tag("h3", one.title), picture(one.png, one.caption))
    ]
    return [tag("h2", "Pictures"), tag("p", sides, "soft"), legend(colors), *shown]


def _data(report: ReportData) -> list[Markup]:
    data = report.data
    splits = [[name, cases, subjects] for name, (cases, subjects) in data.splits.items()]
    total = sum(data.class_counts.values())
    counts = [
        [name, f"{count:,}", f"{count / total:.2%}" if total else ""]
        for name, count in data.class_counts.items()
    ]
    unit = "cases" if report.task == "classification" else "voxels"
    return [
        tag("h2", "Data"),
        table(["part", "cases", "subjects"], splits, numeric=(1, 2)),
        table(["class", unit, "share"], counts, numeric=(1, 2)),
        *([facts(data.facts)] if data.facts else []),
    ]


def _caveats(report: ReportData, results: Results) -> list[Markup]:
    lines = [*report.caveats]
    if report.within_subject:
        lines.append(
            "Trained and judged on parts of the same scan: this does not say how another subject "
            "would do."
        )
    if results.num_subjects < FEW_CASES:
        lines.append(
            f"Judged on {results.num_subjects} subject{'s' * (results.num_subjects != 1)}: with so "
            "few, means are rough and bootstrap intervals too narrow."
        )
    if len(report.arms) == 2:
        lines.append(
            "The intervals are over cases, for this one training of each arm: another seed would "
            "give other weights."
        )
    lines.append("Research software, not a medical device: not for diagnosis or treatment.")
    return [
        tag("h2", "What these numbers do not say"),
        tag("ul", joined([tag("li", x) for x in lines])),
    ]


def duration(seconds: float | None) -> str:
    """Return seconds as people say them."""
    if seconds is None:
        return "not known"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
