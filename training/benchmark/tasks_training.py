"""What a run trains and validates on, and how it is tested: one small object a task."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from training.benchmark.bench import Bench
from training.benchmark.noise import case_rng, mask_dice, noisy_labels
from training.benchmark.plan import Run
from training.benchmark.tasks import TASKS, Sides, target_of
from training.benchmark.tasks_candidates import (
    CandidateSampler,
    candidate_set,
    nodule_scores,
    read_table,
    thinned,
)
from training.benchmark.tasks_data import GridCase, open_cases
from training.benchmark.tasks_scoring import (
    Example,
    Passes,
    auc,
    scan_score,
    test_scans,
    test_segmentation,
    validation_dice,
)
from universal_model_hub.devices import lacks_bfloat16
from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import NOT_ANNOTATED, LoadedCase, LoadedScan
from universal_model_hub.fit.training.loop import Sampler
from universal_model_hub.fit.training.sampling import CubeSampler, ScanSampler
from universal_model_hub.inference import Precision

GIB = 2**30
NUM_CLASSES = 2

Tested = tuple[list[dict[str, Any]], Example | None]


@dataclass(frozen=True)
class TaskTraining:
    """The data side of a run."""

    sampler: Sampler
    validate: Callable[[nn.Module], float]  # Dice, or AUC
    test: Callable[[nn.Module], Tested]  # reads the test part
    facts: dict[str, Any] = field(default_factory=dict)  # for the result: numbers, noise, sampling


def open_training(bench: Bench, run: Run, device: torch.device) -> TaskTraining:
    """Open a run's cases.

    Raises:
        ConfigError: If there is nothing to train or validate on.
    """
    sides = bench.source(run.task).sides(TASKS[run.task], run.share)
    opened = {"cubes": _cubes, "candidates": _candidates, "scans": _scans}
    training = opened[TASKS[run.task].unit](bench, run, sides, device)
    subjects = {
        name: len({case.subject for case in getattr(sides, name)})
        for name in ("train", "validation", "test")
    }
    return replace(training, facts={**training.facts, "subjects": subjects})


def _cubes(bench: Bench, run: Run, sides: Sides, device: torch.device) -> TaskTraining:
    task, settings = TASKS[run.task], bench.plan.settings(run)
    preprocessing = bench.plan.task_preprocessing(run.task)
    passes = Passes(
        int(bench.plan.memory_gib * GIB),
        settings.cube,
        bench.plan.overlap,
        scoring_precision(settings.precision, device),
        task.stripped,
    )
    trained = open_cases(sides.train, bench.prepared(run.task))
    facts: dict[str, Any] = {}
    labels = [_labels(case) for case in trained]
    if run.noise > 0:
        clean = labels
        labels = [_noisy(case, run) for case in trained]
        dice = [mask_dice(a, b) for a, b in zip(labels, clean, strict=True)]
        facts["label_noise"] = {
            "amplitude_mm": run.noise,
            "dice_mean": float(np.mean(dice)),
            "dice_least": float(np.min(dice)),
            "cases": len(dice),
        }
    if task.stripped:
        labels = [inside_head(case, given) for case, given in zip(trained, labels, strict=True)]
    loaded = [
        LoadedCase(case.case.id, case.image[None], given)
        for case, given in zip(trained, labels, strict=True)
    ]
    validating = open_cases(sides.validation, bench.prepared(run.task))
    pairs = [(case.image, _labels(case)) for case in validating]

    def test(model: nn.Module) -> Tested:
        return test_segmentation(model, task, sides.test, preprocessing, passes)

    return TaskTraining(
        CubeSampler(loaded, settings, NUM_CLASSES),
        lambda model: validation_dice(model, pairs, passes),
        test,
        facts,
    )


def _candidates(bench: Bench, run: Run, sides: Sides, device: torch.device) -> TaskTraining:
    plan, settings = bench.plan.tasks[run.task], bench.plan.settings(run)
    folder = bench.prepared(run.task)
    table = read_table(bench.source(run.task).folder, plan.candidates, folder)
    trained = candidate_set(open_cases(sides.train, folder), table)
    validating = thinned(
        candidate_set(open_cases(sides.validation, folder), table), plan.validation_candidates
    )
    sampler = CandidateSampler(trained, settings, plan.positive_share)
    if len(set(validating.target.tolist())) < 2:
        raise ConfigError(
            "Expected nodules and other candidates in the validation part of lnc, got one of them. "
            "Add scans."
        )

    def validate(model: nn.Module) -> float:
        scores = nodule_scores(model, validating, settings.cube, device)
        return auc(validating.target.tolist(), scores.tolist()) or 0.0

    def test(model: nn.Module) -> Tested:
        tested = candidate_set(open_cases(sides.test, folder), table)
        scores = nodule_scores(model, tested, settings.cube, device)
        rows = [
            {
                "id": str(number),  # the row among the candidates of the test
                "subject": tested.ids[scan],
                "target": int(target),
                "score": float(score),
            }
            for number, (scan, target, score) in enumerate(
                zip(tested.scan, tested.target, scores, strict=True)
            )
        ]
        return rows, None

    return TaskTraining(sampler, validate, test, {"sampling": sampler.describe()})


def _scans(bench: Bench, run: Run, sides: Sides, device: torch.device) -> TaskTraining:
    task, settings = TASKS[run.task], bench.plan.settings(run)
    preprocessing = bench.plan.task_preprocessing(run.task)
    trained = open_cases(sides.train, bench.prepared(run.task))
    validating = open_cases(sides.validation, bench.prepared(run.task))
    loaded = [
        LoadedScan(case.case.id, case.image[None], target_of(task, case.case)) for case in trained
    ]
    targets = [target_of(task, case.case) for case in validating]
    if len(set(targets)) < 2:
        raise ConfigError(f"Expected both classes in the validation part of {task.name}, got one.")

    def validate(model: nn.Module) -> float:
        return auc(targets, [scan_score(model, case.image, device) for case in validating]) or 0.0

    def test(model: nn.Module) -> Tested:
        return test_scans(model, task, sides.test, preprocessing, device), None

    return TaskTraining(ScanSampler(loaded, settings, NUM_CLASSES), validate, test)


def _labels(case: GridCase) -> np.ndarray:
    assert case.labels is not None
    return case.labels


def scoring_precision(training: str, device: torch.device) -> Precision:
    """Return bfloat16 where the run was trained in it and the device has it, else float32.

    Where a processor only emulates it, training rounds and multiplies in float32; ``predict``
    refuses to.
    """
    has_it = training == "bfloat16" and not lacks_bfloat16(device, training)
    return "bfloat16" if has_it else "float32"


def inside_head(case: GridCase, labels: np.ndarray) -> np.ndarray:
    """Return labels (X, Y, Z) int8 that leave out what lies outside the head."""
    return np.where(np.asarray(case.image) == 0, NOT_ANNOTATED, labels.astype(np.int8))


def _noisy(case: GridCase, run: Run) -> np.ndarray:
    spacing = np.linalg.norm(case.record.model_affine[:3, :3], axis=0)
    return noisy_labels(_labels(case), spacing, run.noise, case_rng(run.trial, case.case.id))
