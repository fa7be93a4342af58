"""One training of a fine-tuning: a network from its start to a model folder.

An arm is what is trained alike from another start: pretrained weights, or from scratch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from universal_model_hub.files import parse_json, write_json
from universal_model_hub.fit.data.cases import NOT_ANNOTATED, Case
from universal_model_hub.fit.data.prepare import Part, Prepared, prepare_cases
from universal_model_hub.fit.request import Plan
from universal_model_hub.fit.training.engine import Process, StopRequest, make_deterministic
from universal_model_hub.fit.training.loop import FitResult, Sampler, fit
from universal_model_hub.fit.training.lora import add_lora, merge_lora
from universal_model_hub.fit.training.losses import batch_loss
from universal_model_hub.fit.training.plan import with_steps
from universal_model_hub.fit.training.sampling import CubeSampler, ScanSampler
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.fit.training.transfer import build_classifier, build_model

RATE_FACTORS = (1 / 3, 1.0, 3.0)  # of the learning rate, where it is tuned
TUNING_SHARE = 4  # each rate is tried for one step in so many of the training's
VALIDATION_CUBES = 32
VALIDATION_SEED = 7_777  # cubes are the same for every arm, rate and seed


@dataclass(frozen=True)
class Training:
    """A trained network and how it came about."""

    model: nn.Module  # in eval mode, adapters merged
    result: FitResult
    learning_rate: float
    rate_scores: dict[str, float]  # validation score of each rate that was tried
    trained_parameters: int
    parameters: int


class Stopped(Exception):
    """A signal ended a training; what was done is saved."""


def train_arm(
    plan: Plan,
    weights: str | Path | None,
    training: Sequence[Case],
    validation: Sequence[Case],
    folder: Path,
    process: Process,
    *,
    stop: StopRequest,
    progress: str | None,
) -> Training:
    """Train one arm, or go on with it.

    Args:
        plan: Of the fine-tuning.
        weights: To start from; None: scratch.
        training: Cases to train on.
        validation: Cases that choose the best weights; within one subject the same ones.
        folder: Of this training: checkpoints, and the rate that was chosen.
        process: This process among several.
        stop: Set by a signal.
        progress: Name of the bar; None shows none.

    Raises:
        Stopped: If a signal ended it.
        CheckpointError: If the loss is not finite, or a checkpoint cannot be used.
    """
    sampler, validate = samplers(plan, training, validation, folder.parent.parent / "cache")
    config = {"plan": plan.to_json(), "from": None if weights is None else "weights"}

    def run(
        settings: FinetuneSettings, where: Path, name: str | None
    ) -> tuple[nn.Module, FitResult, int]:
        make_deterministic(settings.seed, strict=process.device.type == "cpu")
        model = new_model(plan, weights)
        trained = prepare_training(model, settings)
        result = fit(
            model,
            with_settings(sampler, settings),
            settings,
            process=process,
            validate=validate,
            run_folder=where,
            config=config | {"learning_rate": settings.learning_rate, "steps": settings.steps},
            stop=stop,
            progress=name,
        )
        if not result.finished:
            raise Stopped
        return model, result, trained

    settings, tried = plan.settings, {}
    if weights is None:
        settings = replace(settings, train="all")  # a fresh network has nothing to keep
    if plan.request.tune_rate:
        short = with_steps(settings, max(1, settings.steps // TUNING_SHARE))
        for factor in RATE_FACTORS:
            rate = settings.learning_rate * factor
            name = None if progress is None else f"{progress}, rate {rate:.2g}"
            _, result, _ = run(
                replace(short, learning_rate=rate), folder / f"rate-{rate:.3e}", name
            )
            tried[f"{rate:.3e}"] = max(score for _, score in result.scores)
        settings = replace(settings, learning_rate=float(max(tried, key=lambda r: tried[r])))
    model, result, trained = run(settings, folder / "training", progress)
    parameters = sum(p.numel() for p in model.parameters())
    merge_lora(model)
    return Training(model, result, settings.learning_rate, tried, trained, parameters)


def new_model(plan: Plan, weights: str | Path | None) -> nn.Module:
    """Return the network of an arm, with a new head."""
    common: dict[str, Any] = {
        "num_classes": plan.num_classes,
        "seed": plan.settings.seed,
        "arguments": plan.arguments,
        "in_channels": plan.data.num_channels,
    }
    if plan.data.task == "classification":
        return build_classifier(weights, **common)
    return build_model(
        weights, transfer=plan.request.transfer, architecture=plan.architecture, **common
    )


def prepare_training(model: nn.Module, settings: FinetuneSettings) -> int:
    """Put adapters in where they are asked for; return how many parameters train."""
    if settings.train == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return add_lora(model, settings.lora_rank)
    if settings.train == "head":
        head: Any = model.head
        return sum(p.numel() for p in head.parameters())
    return sum(p.numel() for p in model.parameters())


def samplers(
    plan: Plan, training: Sequence[Case], validation: Sequence[Case], cache: Path
) -> tuple[Sampler, Callable[[nn.Module], float] | None]:
    """Return what gives training batches, and what scores a network on the validation cases."""
    within = plan.within_subject

    def prepared(cases: Sequence[Case], part: Part) -> list[Prepared]:
        numbers = plan.numbers
        return prepare_cases(cases, plan.data, plan.preprocessing, numbers, cache, part=part)

    train_cases = prepared(training, "trained" if within else "all")
    judged = prepared(validation, "kept_back" if within else "all")
    if plan.data.task == "classification":
        targets = plan.targets()
        scans = [p.scan(targets[p.case.target or ""]) for p in train_cases]
        held = [(p.scan(targets[p.case.target or ""])) for p in judged]
        sampler: Sampler = ScanSampler(scans, plan.settings, plan.num_classes)
        batches = [
            (torch.from_numpy(np.array(s.image))[None], torch.tensor([s.target])) for s in held
        ]
        return sampler, (lambda model: -mean_loss(model, batches, plan.settings)) if held else None
    sampler = CubeSampler([p.loaded() for p in train_cases], plan.settings, plan.num_classes)
    if not judged:
        return sampler, None
    fixed = replace(plan.settings, augment=False, seed=VALIDATION_SEED, batch_size=1)
    cubes = CubeSampler([p.loaded() for p in judged], fixed, plan.num_classes)
    batches = [cubes.batch(number) for number in range(VALIDATION_CUBES)]
    return sampler, lambda model: cube_dice(model, batches, plan.num_classes)


def with_settings(sampler: Sampler, settings: FinetuneSettings) -> Sampler:
    """Let a sampler draw by other settings, such as another number of steps."""
    vars(sampler)["settings"] = settings
    return sampler


@torch.inference_mode()
def cube_dice(
    model: nn.Module, batches: Sequence[tuple[torch.Tensor, torch.Tensor]], num_classes: int
) -> float:
    """Return the Dice over all cubes together, in the mean over the classes that are there."""
    table = np.zeros((num_classes, num_classes), np.int64)
    device = next(model.parameters()).device
    for images, labels in batches:
        predicted = model(images.to(device)).argmax(dim=1).cpu()
        known = labels != NOT_ANNOTATED
        pairs = labels[known] * num_classes + predicted[known]
        table += np.bincount(pairs.numpy(), minlength=num_classes**2).reshape(table.shape)
    hit = np.diag(table)[1:].astype(np.float64)
    truth, answered = table.sum(axis=1)[1:], table.sum(axis=0)[1:]
    there = truth > 0
    if not there.any():
        return 0.0
    return float((2 * hit[there] / (truth + answered)[there]).mean())


@torch.inference_mode()
def mean_loss(
    model: nn.Module,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    settings: FinetuneSettings,
) -> float:
    """Return the mean loss over scans, each whole."""
    device = next(model.parameters()).device
    losses = [
        float(batch_loss(model(images.to(device)).float().cpu(), targets, settings))
        for images, targets in batches
    ]
    return float(np.mean(losses))


def save_training(training: Training, folder: Path) -> None:
    """Keep what a report says about a training."""
    write_json(
        folder / "training.json",
        {
            "losses": training.result.losses,
            "scores": [list(pair) for pair in training.result.scores],
            "best_step": training.result.best_step,
            "seconds": training.result.seconds,
            "learning_rate": training.learning_rate,
            "rate_scores": training.rate_scores,
            "trained_parameters": training.trained_parameters,
            "parameters": training.parameters,
        },
    )


def read_training(folder: Path) -> dict[str, Any]:
    """Read what ``save_training`` kept."""
    return dict(parse_json((folder / "training.json").read_bytes()))
