"""What a fine-tuning leaves: a model folder, metrics as files, and the page."""

import datetime
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from universal_model_hub import __version__
from universal_model_hub.files import parse_json, write_bytes
from universal_model_hub.fit.data.cases import SPLITS, Case
from universal_model_hub.fit.judging import JudgedCase, truth_of
from universal_model_hub.fit.reporting.classification import CaseAnswer, score_answers
from universal_model_hub.fit.reporting.intervals import Estimate
from universal_model_hub.fit.reporting.planes import in_ras, three_planes
from universal_model_hub.fit.reporting.report import (
    Arm,
    DataSummary,
    Picture,
    ReportData,
    write_report,
)
from universal_model_hub.fit.reporting.results import best_median_worst, most_confidently_wrong
from universal_model_hub.fit.reporting.summary import (
    CaseScores,
    answer_rows,
    case_rows,
    paired_difference,
    plain,
    summarize,
    write_metrics,
)
from universal_model_hub.fit.request import Plan
from universal_model_hub.fit.training.engine import Process
from universal_model_hub.fit.training.hardware import hardware
from universal_model_hub.loading import load_classifier, load_segmenter
from universal_model_hub.saving import save_pretrained
from universal_model_hub.volume import Volume, load_volume


@dataclass(frozen=True)
class ArmOutcome:
    """One arm, trained and judged."""

    title: str  # key of ``Plan.arms``
    model: Path  # model folder
    trainings: tuple[dict[str, Any], ...]  # the one, or one a fold
    judged: tuple[JudgedCase, ...]

    @property
    def cases(self) -> tuple[CaseScores, ...]:
        """Scores of a segmentation, case by case."""
        return tuple(one.scores for one in self.judged if one.scores is not None)

    @property
    def answers(self) -> tuple[CaseAnswer, ...]:
        """Answers of a classification, case by case."""
        return tuple(one.answer for one in self.judged if one.answer is not None)


def write_outcome(
    plan: Plan,
    arms: Sequence[ArmOutcome],
    output: Path,
    process: Process,
    *,
    data_sha256: str,
    seconds: float,
) -> None:
    """Write everything that stays; the model comes last, so that a folder with one is complete.

    Args:
        plan: Of the fine-tuning.
        arms: The one whose model stays comes first.
        output: The model folder.
        process: Says on what it ran.
        data_sha256: Of all cases as they were trained on.
        seconds: Of everything, in this start of the run.
    """
    origin = provenance(plan, arms[0], process, data_sha256)
    metrics = metrics_of(plan, arms)
    rows = [row for arm in arms for row in _rows(plan, arm)]
    write_metrics(output, {**metrics, "provenance": origin, "seconds": seconds}, rows)
    write_bytes(output / "split.csv", split_table(plan).encode())
    write_report(output / "report.html", report_data(plan, arms, output, origin))
    load = load_classifier if plan.data.task == "classification" else load_segmenter
    save_pretrained(
        load(arms[0].model, in_channels=None),
        output,
        name=output.resolve().name,
        provenance=origin,
        metrics=metric_rows(plan, arms[0]),
        force=True,  # what may be replaced was settled before anything was trained
    )


def metrics_of(plan: Plan, arms: Sequence[ArmOutcome]) -> dict[str, Any]:
    """Return what metrics.json holds: every arm, and the first against the second."""
    found: dict[str, Any] = {"judged_on": judged_on(plan), "arms": {}}
    for arm in arms:
        trainings = [
            {k: v for k, v in training.items() if k != "losses"} for training in arm.trainings
        ]
        if plan.data.task == "classification":
            result: Any = score_answers(arm.answers, plan.classes)
        else:
            result = summarize(arm.cases)
        found["arms"][arm.title] = {"results": plain(result), "trainings": trainings}
    if len(arms) == 2 and plan.data.task == "segmentation":
        found["difference_dice"] = plain(paired_difference(arms[0].cases, arms[1].cases))
    found["plan"] = plan.to_json()
    return found


def metric_rows(plan: Plan, arm: ArmOutcome) -> list[dict[str, Any]]:
    """Return the metrics for config.json and the card."""
    task = f"{plan.data.task} of the user's own data, {judged_on(plan)}"
    rows: list[tuple[str, str, Estimate]] = []
    if plan.data.task == "classification":
        scores = score_answers(arm.answers, plan.classes)
        rows += [("all", "AUC", scores.auc), ("all", "Accuracy", scores.accuracy)]
    else:
        for summary in summarize(arm.cases):
            rows += [
                (summary.name, "Dice", summary.metrics["dice"]),
                (summary.name, "HD95 mm", summary.metrics["hd95_mm"]),
            ]
    return [
        {
            "task": f"{task}, {name}",
            "metric": metric,
            "value": round(estimate.value, 4),
            "std": round(estimate.sd or 0.0, 4),
            "n": estimate.n,
            "seeds": 1,
            "source": "metrics.json",
        }
        for name, metric, estimate in rows
        if estimate.value is not None
    ]


def provenance(plan: Plan, arm: ArmOutcome, process: Process, data_sha256: str) -> dict[str, Any]:
    """Say from what and how; hours, hardware and date are kept out of the weight file."""
    settings = asdict(plan.settings)
    base = {"name": plan.base.name, "sha256": plan.weights_sha256} if plan.base else None
    training = parse_json((arm.model.parent / "training.json").read_bytes())
    return {
        **({"base": base} if base else {}),
        "recipe": "umh finetune",
        "recipe_sha256": hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest(),
        "data_sha256": data_sha256,
        "seed": plan.settings.seed,
        "versions": {
            "universal_model_hub": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "settings": plain(settings),
        "hours": round(training["seconds"] / 3600, 4),
        "hardware": plain(hardware(process.device)),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def judged_on(plan: Plan) -> str:
    """Say in words what the scores are of."""
    if plan.within_subject:
        return "kept-back slabs of the one scan, within-subject"
    if plan.request.folds:
        return f"cases held out in {plan.request.folds} folds"
    if plan.data.of("test"):
        return "test cases"
    return "validation cases, which also chose the step"


def split_table(plan: Plan) -> str:
    """Return split.csv: which case was on which side."""
    lines = ["case,subject,split"]
    lines += [f'"{_quoted(c.id)}","{_quoted(c.subject)}",{c.split}' for c in plan.data.cases]
    return "\n".join(lines) + "\n"


def report_data(
    plan: Plan, arms: Sequence[ArmOutcome], output: Path, origin: Mapping[str, Any]
) -> ReportData:
    """Return what the page says."""
    segmentation = plan.data.task == "segmentation"
    classes = {k: v for k, v in plan.classes.items() if k > 0 or not segmentation}
    return ReportData(
        title=output.resolve().name,
        task=plan.data.task,
        command=command_of(plan, output),
        classes=classes,
        arms=tuple(_arm(plan, arm) for arm in arms),
        data=_summary(plan),
        settings=plain(asdict(plan.settings)),
        provenance=plain(origin),
        score_name="validation Dice, over cubes" if segmentation else "minus validation loss",
        judged_on=judged_on(plan),
        pictures=tuple(_pictures(plan, arms[0])),
        caveats=_caveats(plan),
        within_subject=plan.within_subject,
    )


def command_of(plan: Plan, output: Path) -> str:
    """Return the command that does the same."""
    request = plan.request
    words = ["umh finetune"]
    for option, value in (
        ("--images", request.images),
        ("--labels", request.labels),
        ("--data", request.data),
        ("--weights", "none" if request.weights is None else request.weights),
    ):
        words += [f"{option} {value}"] if value is not None else []
    words += ["--compare none"] if request.compare_scratch else []
    words += [f"--folds {request.folds}"] if request.folds else []
    words += [f"--seed {plan.settings.seed}", f"--output {output}"]
    return " ".join(words)


def _rows(plan: Plan, arm: ArmOutcome) -> list[dict[str, Any]]:
    if plan.data.task == "classification":
        return answer_rows(arm.title, arm.answers, plan.classes)
    return case_rows(arm.title, arm.cases)


def _arm(plan: Plan, arm: ArmOutcome) -> Arm:
    first = arm.trainings[0]
    name = f"pretrained: {plan.base.name}" if plan.base and arm.title == "pretrained" else arm.title
    share = first["trained_parameters"] / first["parameters"]
    return Arm(
        name=name,
        cases=arm.cases,
        answers=arm.answers,
        losses=tuple(first["losses"]),
        scores=tuple((step, score) for step, score in first["scores"]),
        best_step=first["best_step"],
        seconds=sum(training["seconds"] for training in arm.trainings),
        facts={
            "learning rate": f"{first['learning_rate']:g}",
            "trained parameters": f"{first['trained_parameters']:,} ({share:.1%})",
        },
    )


def _summary(plan: Plan) -> DataSummary:
    cases = plan.data.cases
    sides = {
        side: (len(found), len({case.subject for case in found}))
        for side in SPLITS
        if (found := plan.data.of(side))
    }
    if plan.data.task == "classification":
        counted = Counter(case.target for case in cases)
        counts = {name: counted[name] for name in plan.classes.values()}
    else:
        voxels = plan.report.label_voxels
        counts = {plan.classes[n]: voxels[value] for value, n in plan.numbers.items()}
    warnings = tuple(f for f in plan.report.findings if f.level == "warning")
    facts = {
        "layout": plan.data.layout,
        "channels": plan.data.num_channels,
        "modality": ", ".join(plan.data.modalities),
        "grid of the network, mm": str(plan.preprocessing.spacing),
    }
    return DataSummary(splits=sides, class_counts=counts, findings=warnings, facts=facts)


def _caveats(plan: Plan) -> tuple[str, ...]:
    lines = []
    if not plan.within_subject and not plan.request.folds and not plan.data.of("test"):
        lines.append(
            "The validation cases chose which step's weights were kept, and the scores are of the "
            "same cases: they are a little too good. Mark cases as test to avoid that."
        )
    if plan.request.folds:
        lines.append(
            "The model in this folder was trained on all cases; the scores are those of the folds' "
            "models, on cases that each had not seen but that chose its step."
        )
    return tuple(lines)


def _pictures(plan: Plan, arm: ArmOutcome) -> list[Picture]:
    by_id = {one.case.id: one for one in arm.judged}
    if plan.data.task == "classification":
        wrong = most_confidently_wrong(arm.answers)
        if wrong is None:
            return []
        image, spacing = in_ras(load_volume(by_id[wrong.case].case.images[0]))
        sure = f"{wrong.probabilities[wrong.predicted]:.0%}"
        told = f"{plan.classes[wrong.truth]}, taken for {plan.classes[wrong.predicted]} ({sure})"
        png = three_planes(image, None, None, spacing)
        return [Picture(f"Most confidently wrong: {wrong.case}", told, png)]
    pictures = []
    for name, scores in best_median_worst(arm.cases).items():
        one = by_id[scores.case]
        caption = f"{arm.title}; Dice {scores.mean('dice'):.3f} in the mean over classes"
        title = f"{name[0].upper()}{name[1:]} case: {scores.case}"
        pictures.append(Picture(title, caption, _planes(plan, one.case, one.predicted)))
    return pictures


def _planes(plan: Plan, case: Case, predicted: Path | None) -> bytes:
    assert predicted is not None
    image, spacing = in_ras(load_volume(case.images[0]))
    truth_volume, answer = truth_of(plan, case), load_volume(predicted)
    answer = Volume(answer.array, truth_volume.affine)
    truth, _ = in_ras(_as_labels(truth_volume))
    return three_planes(image, truth, in_ras(_as_labels(answer))[0], spacing)


def _as_labels(volume: Volume) -> Volume:
    return Volume(np.asarray(volume.array).astype(np.int16), volume.affine)


def _quoted(text: str) -> str:
    return text.replace('"', '""')
