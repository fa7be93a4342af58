"""The results of a report: headline, tables and charts of segmentation and of classification."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from universal_model_hub.fit.reporting.charts import confusion_chart, roc_chart, scores_chart
from universal_model_hub.fit.reporting.classification import (
    RATES,
    CaseAnswer,
    ClassificationScores,
    rate_differences,
    score_answers,
)
from universal_model_hub.fit.reporting.intervals import Estimate
from universal_model_hub.fit.reporting.page import Markup, joined, number, picture, table, tag
from universal_model_hub.fit.reporting.summary import (
    METRICS,
    CaseScores,
    ClassSummary,
    paired_difference,
    summarize,
)

DIGITS = {"hd95_mm": 1}
METRICS_NOTE = (
    "Mean with its 95 % interval over cases (bootstrap). HD95: 95 % of each surface lies within so "
    "many mm of the other; cases in which a structure was missed altogether have none, and are "
    "counted under missed."
)


@dataclass(frozen=True)
class Tile:
    """A number that stands at the top of the page."""

    title: str
    value: Markup
    note: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """The parts of a page on what was reached."""

    tiles: tuple[Tile, ...]
    sentences: tuple[str, ...]
    body: Markup
    cases: Markup  # table of every case
    num_cases: int
    num_subjects: int


def best_median_worst(cases: Sequence[CaseScores]) -> dict[str, CaseScores]:
    """Choose which cases to draw, by the Dice in the mean over classes.

    Returns:
        "best", "median" and "worst"; fewer where there are fewer cases. A case without any score is
        left out.
    """
    means = [(case.mean("dice"), case) for case in cases]
    ranked = [(dice, case) for dice, case in means if dice is not None]
    ranked.sort(key=lambda pair: (-pair[0], pair[1].case))
    if len(ranked) < 3:
        return {name: case for name, (_, case) in zip(("best", "worst"), ranked, strict=False)}
    middle = len(ranked) // 2
    return {"best": ranked[0][1], "median": ranked[middle][1], "worst": ranked[-1][1]}


def most_confidently_wrong(answers: Sequence[CaseAnswer]) -> CaseAnswer | None:
    """Return the case whose wrong class got the highest probability; None if all are right."""
    wrong = [answer for answer in answers if answer.predicted != answer.truth]
    return max(wrong, key=lambda a: a.probabilities[a.predicted], default=None)


def segmentation_results(arms: Mapping[str, Sequence[CaseScores]]) -> Results:
    """Return what the page says of label maps, the first arm minus the second."""
    summaries = {name: summarize(cases) for name, cases in arms.items()}
    overall = {name: rows[-1].metrics["dice"] for name, rows in summaries.items()}
    tiles = [_tile(f"Mean Dice, {name}", estimate) for name, estimate in overall.items()]
    names, all_cases = list(arms), list(arms.values())
    sentences = ["Dice in the mean over the classes of a case, then over cases."]
    if len(arms) == 2:
        difference = paired_difference(all_cases[0], all_cases[1])
        tiles.append(_tile("Difference of Dice, paired by case", difference, sign=True))
        sentences.append(verdict(names[0], names[1], difference, "Dice"))
    charted = {name: (arms[name], summaries[name]) for name in arms}
    body = [
        picture(
            scores_chart(charted, "dice", "Dice"), "Dice of each case and in the mean, by class."
        ),
        *([_dice_table(arms, summaries)] if len(arms) == 2 else []),
        tag("h3", "Every metric"),
        tag("p", METRICS_NOTE, "soft"),
        *(
            part
            for name, rows in summaries.items()
            for part in (tag("h4", name), _metrics_table(rows))
        ),
    ]
    subjects = {case.subject for cases in all_cases for case in cases}
    return Results(
        tiles=tuple(tiles),
        sentences=tuple(sentences),
        body=joined(body),
        cases=_cases_table(arms),
        num_cases=len({case.case for cases in all_cases for case in cases}),
        num_subjects=len(subjects),
    )


def classification_results(
    arms: Mapping[str, Sequence[CaseAnswer]], classes: Mapping[int, str]
) -> Results:
    """Return what the page says of classified cases, the first arm minus the second."""
    scores = {name: score_answers(answers, classes) for name, answers in arms.items()}
    names, all_answers = list(arms), list(arms.values())
    tiles = [_tile(f"AUC, {name}", one.auc) for name, one in scores.items()]
    tiles += [
        _tile(f"Balanced accuracy, {name}", s.balanced_accuracy) for name, s in scores.items()
    ]
    sentences = []
    differences: Mapping[str, Estimate] = {}
    if len(arms) == 2:
        differences = rate_differences(all_answers[0], all_answers[1])
        sentences.append(verdict(names[0], names[1], differences["auc"], "AUC"))
    many = len(classes) > 2
    body = [
        _rates_table(scores, differences),
        picture(
            roc_chart(arms, classes),
            "ROC curves, each class against the rest." if many else f"ROC curve of {classes[1]}.",
        ),
        picture(confusion_chart(scores, classes), "Cases by truth and by predicted class."),
        tag("h3", "Every class"),
        _classes_table(scores),
    ]
    return Results(
        tiles=tuple(tiles),
        sentences=tuple(sentences),
        body=joined(body),
        cases=_answers_table(arms, classes),
        num_cases=len({answer.case for answers in all_answers for answer in answers}),
        num_subjects=len({answer.subject for answers in all_answers for answer in answers}),
    )


def verdict(ours: str, theirs: str, difference: Estimate, metric: str) -> str:
    """Say in a sentence whether two arms differ."""
    if difference.value is None:
        return f"“{ours}” and “{theirs}” have no case in common: no difference can be said."
    side = "above" if difference.value >= 0 else "below"
    start = f"“{ours}” is {abs(difference.value):.3f} {metric} {side} “{theirs}”"
    interval = difference.interval
    if interval is None:
        return f"{start} ({difference.note})."
    if interval.low <= 0 <= interval.high:
        return f"{start}; the interval includes 0, so these cases do not tell the two apart."
    return f"{start}; the interval excludes 0."


def estimate_cell(estimate: Estimate, digits: int = 3, *, sign: bool = False) -> Markup:
    """Return a value with its interval, or without one."""
    if estimate.value is None:
        return number(None)
    interval = estimate.interval
    below = Markup("no interval")
    if interval is not None:
        low, high = (number(end, digits, sign=sign) for end in (interval.low, interval.high))
        below = Markup(f"[{low}, {high}]")
    return joined([number(estimate.value, digits, sign=sign), tag("small", below)])


def _tile(title: str, estimate: Estimate, *, sign: bool = False) -> Tile:
    note = estimate.note
    if estimate.interval is not None:
        low, high = estimate.interval.low, estimate.interval.high
        ends = f"{low:+.3f} to {high:+.3f}" if sign else f"{low:.3f} to {high:.3f}"
        note = f"95 % interval {ends.replace('-', chr(0x2212))}, {note}"
    return Tile(title, number(estimate.value, sign=sign), note)


def _dice_table(
    arms: Mapping[str, Sequence[CaseScores]], summaries: Mapping[str, Sequence[ClassSummary]]
) -> Markup:
    first, second = arms.values()
    rows = [
        [
            row.name,
            *(estimate_cell(by_class[place].metrics["dice"]) for by_class in summaries.values()),
            estimate_cell(paired_difference(first, second, label=row.label), sign=True),
        ]
        for place, row in enumerate(next(iter(summaries.values())))
    ]
    head = ["class", *(f"Dice, {name}" for name in arms), "difference"]
    return table(head, rows, numeric=range(1, len(head)), total_last=True)


def _metrics_table(summaries: Sequence[ClassSummary]) -> Markup:
    rows = [
        [
            row.name,
            row.metrics["dice"].n,
            *(estimate_cell(row.metrics[name], DIGITS.get(name, 3)) for name in METRICS),
            number(row.metrics["dice"].sd),
            number(row.metrics["dice"].median),
            row.missed,
            row.extra,
        ]
        for row in summaries
    ]
    head = ["class", "n", *METRICS.values(), "Dice sd", "Dice median", "missed", "extra"]
    return table(head, rows, numeric=range(1, len(head)), total_last=True)


def _cases_table(arms: Mapping[str, Sequence[CaseScores]]) -> Markup:
    names = {s.label: s.name for cases in arms.values() for case in cases for s in case.classes}
    several = len(arms) > 1
    rows, keys = [], []
    for arm, cases in arms.items():
        for case in cases:
            dice = [case.mean("dice"), *(case.mean("dice", (label,)) for label in sorted(names))]
            distance = case.mean("hd95_mm")
            lead = [case.case, case.subject, *([arm] if several else [])]
            rows.append([*lead, *(number(value) for value in dice), number(distance, 1)])
            keys.append([*lead, *dice, distance])
    classes = [f"Dice {names[label]}" for label in sorted(names)]
    head = ["case", "subject", *(["arm"] if several else []), "mean Dice", *classes]
    head.append("mean HD95, mm")
    return table(head, rows, numeric=range(2 + several, len(head)), sort_keys=keys)


def _rates_table(
    scores: Mapping[str, ClassificationScores], differences: Mapping[str, Estimate]
) -> Markup:
    rows = [
        [
            title,
            *(estimate_cell(getattr(one, rate)) for one in scores.values()),
            *([estimate_cell(differences[rate], sign=True)] if differences else []),
        ]
        for rate, title in RATES.items()
    ]
    head = ["", *scores, *(["difference"] if differences else [])]
    return table(head, rows, numeric=range(1, len(head)))


def _classes_table(scores: Mapping[str, ClassificationScores]) -> Markup:
    rows = [
        [
            row.name,
            arm,
            row.cases,
            estimate_cell(row.sensitivity),
            estimate_cell(row.specificity),
            estimate_cell(row.auc),
        ]
        for arm, one in scores.items()
        for row in one.classes
    ]
    head = ["class", "arm", "cases", "sensitivity", "specificity", "AUC"]
    return table(head, rows, numeric=range(2, len(head)))


def _answers_table(arms: Mapping[str, Sequence[CaseAnswer]], classes: Mapping[int, str]) -> Markup:
    rows, keys = [], []
    for arm, answers in arms.items():
        for answer in answers:
            truth, predicted = classes[answer.truth], classes[answer.predicted]
            right = "yes" if answer.truth == answer.predicted else "no"
            lead = [answer.case, answer.subject, arm, truth, predicted, right]
            rows.append([*lead, *(number(p) for p in answer.probabilities)])
            keys.append([*lead, *answer.probabilities])
    head = ["case", "subject", "arm", "truth", "predicted", "right"]
    head += [f"probability of {classes[label]}" for label in sorted(classes)]
    return table(head, rows, numeric=range(6, len(head)), sort_keys=keys)
