"""A trained model on held-out cases: each whole, through the same door as a user's scans."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from universal_model_hub.files import parse_json, write_json
from universal_model_hub.fit.data.cases import Case
from universal_model_hub.fit.data.prepare import Part, class_labels, only_part
from universal_model_hub.fit.reporting.classification import CaseAnswer
from universal_model_hub.fit.reporting.evaluate import ClassScore, segmentation_scores
from universal_model_hub.fit.reporting.summary import CaseScores
from universal_model_hub.fit.request import Plan
from universal_model_hub.loading import load_classifier, load_segmenter
from universal_model_hub.predict import predict
from universal_model_hub.preprocess import preprocess_channels
from universal_model_hub.volume import Volume, load_volume, save_volume


@dataclass(frozen=True)
class JudgedCase:
    """What a model said of a case."""

    case: Case
    scores: CaseScores | None  # of a segmentation
    answer: CaseAnswer | None  # of a classification
    predicted: Path | None  # label map on the scan's own grid, in class numbers


def judge_cases(
    plan: Plan,
    model_folder: Path,
    cases: Sequence[Case],
    folder: Path,
    *,
    device: torch.device,
    progress: str | None,
) -> list[JudgedCase]:
    """Judge a saved model; what is in ``folder`` already is not done again.

    Args:
        plan: Of the fine-tuning.
        model_folder: The model, as it would be loaded by anyone.
        cases: Held out from its training.
        folder: Gets a result a case, and its predicted label map.
        device: Where to run.
        progress: Name of a bar on stderr; None shows none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    judged = []
    model: Any = None
    numbers = {case.id: number for number, case in enumerate(plan.data.cases)}
    for case in tqdm(cases, desc=progress, unit="case", disable=progress is None):
        name = f"{numbers[case.id]:05d}"
        result = folder / f"{name}.json"
        predicted = folder / f"{name}.nii.gz" if case.labels is not None else None
        if not result.is_file():
            model = model or _load(plan, model_folder, device)
            write_json(result, _judge(plan, model, case, predicted))
        judged.append(_judged(plan, case, parse_json(result.read_bytes()), predicted))
    return judged


def truth_of(plan: Plan, case: Case) -> Volume:
    """Return a case's labels as class numbers on the scan's own grid; -1 does not count."""
    assert case.labels is not None
    volume = load_volume(case.labels)
    part: Part = "kept_back" if plan.within_subject else "all"
    return Volume(only_part(class_labels(volume.array, plan.numbers), volume, part), volume.affine)


def _load(plan: Plan, model_folder: Path, device: torch.device) -> Any:
    if plan.data.task == "classification":
        return load_classifier(model_folder, in_channels=None, device=device)
    return load_segmenter(model_folder, in_channels=None, device=device)


def _judged(plan: Plan, case: Case, found: dict[str, Any], predicted: Path | None) -> JudgedCase:
    if predicted is None:
        truth, probabilities = plan.targets()[case.target or ""], tuple(found["probabilities"])
        answer = CaseAnswer(
            case=case.id, subject=case.subject, truth=truth, probabilities=probabilities
        )
        return JudgedCase(case, None, answer, None)
    classes = tuple(ClassScore(**score) for score in found["classes"])
    scores = CaseScores(case=case.id, subject=case.subject, classes=classes)
    return JudgedCase(case, scores, None, predicted)


def _judge(plan: Plan, model: Any, case: Case, predicted: Path | None) -> dict[str, Any]:
    scans = [load_volume(path) for path in case.images]
    if predicted is None:
        image, _ = preprocess_channels(scans, model, plan.data.modalities)
        with torch.inference_mode():
            logits = model(image.to(next(model.parameters()).device))[0]
        return {"probabilities": logits.double().softmax(dim=0).tolist()}
    answer = predict(model, scans, modality=plan.data.modalities)
    save_volume(answer, predicted, force=True)
    truth = truth_of(plan, case)
    scores = segmentation_scores(
        np.asarray(answer.array).astype(np.int16),
        np.asarray(truth.array),
        truth.spacing,
        {number: name for number, name in plan.classes.items() if number > 0},
    )
    return {"classes": [asdict(score) for score in scores]}
