"""One fine-tuning of the evaluation, with the engine that users fine-tune with.

The last step's weights are scored, never the best one's: test scores on the way are for the curve
alone, and choose nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from training.release.arms import Arm
from training.release.scans import GridCase
from training.release.scoring import score
from training.release.tasks import ModeSettings, Task
from universal_model_hub.fit.data.cases import LoadedCase
from universal_model_hub.fit.training.loop import fit
from universal_model_hub.fit.training.plan import class_weights
from universal_model_hub.fit.training.sampling import CubeSampler
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.fit.training.transfer import build_model


def fine_tune(
    arm: Arm,
    task: Task,
    settings: ModeSettings,
    cases: Sequence[GridCase],
    judged: Sequence[GridCase],
    *,
    transfer: str,
    rate: float,
    seed: int,
    curve: bool,
    device: str = "cpu",
) -> dict[str, Any]:
    """Fine-tune an arm on a task and score it.

    Args:
        arm: Weights, or scratch of the same network.
        task: Its cube and classes.
        settings: Steps, batch and shares.
        cases: Training cases with the labels to fit.
        judged: Cases with the labels to score on.
        transfer: ``full`` or ``encoder``.
        rate: Learning rate.
        seed: Of what is new in the network, and of the cubes: arms of one seed see the same ones.
        curve: Score at ``settings.curve_points`` steps on the way, too.
        device: ``cpu`` or ``cuda``; scores are computed there, too.

    Returns:
        What ``score`` returns at the last step, ``seconds`` of training alone, the mean ``loss`` of
        the last tenth of the steps, and the ``curve`` (``step``, ``dice``), empty without one.
    """
    details = FinetuneSettings(
        cube=task.cube,
        batch_size=settings.batch_size,
        precision=settings.precision,
        steps=settings.steps,
        head_steps=settings.head_steps,
        head_rate_factor=settings.head_rate_factor,
        learning_rate=rate,
        foreground_share=settings.foreground_share,
        seed=seed,
    )
    model = build_model(
        arm.weights,
        num_classes=task.num_classes,
        transfer=transfer,
        seed=seed,
        architecture=arm.architecture,
        arguments=dict(arm.arguments),
    )
    loaded = [LoadedCase(case.id, case.image[None], case.labels) for case in cases]
    sampler = CubeSampler(loaded, details, task.num_classes)
    if settings.class_weights:
        details = replace(details, class_weights=class_weights(sampler.voxels.tolist()))
    stops = curve_steps(settings) if curve else []
    points: list[dict[str, float]] = []
    scoring_seconds = 0.0

    def after_step(step: int, unet: nn.Module) -> None:
        nonlocal scoring_seconds
        if step in stops and step < settings.steps:
            began = time.monotonic()
            unet.train(False)
            found = score(as_trained(unet), judged, task.num_classes)
            points.append({"step": step, "dice": found["dice"]})
            unet.train(True)
            scoring_seconds += time.monotonic() - began

    began = time.monotonic()
    losses = fit(model, sampler, details, device=device, after_step=after_step).losses
    seconds = time.monotonic() - began - scoring_seconds
    result = score(as_trained(model), judged, task.num_classes)
    if curve:
        points.append({"step": settings.steps, "dice": result["dice"]})
    last = losses[-max(1, len(losses) // 10) :]
    return {**result, "seconds": seconds, "loss": sum(last) / len(last), "curve": points}


def curve_steps(settings: ModeSettings) -> list[int]:
    """Return the steps at which a curve has its points, the last one included."""
    count = settings.curve_points
    return sorted({max(1, round(settings.steps * k / count)) for k in range(1, count + 1)})


def as_trained(model: nn.Module) -> nn.Module:
    """Say that the model's head is trained, or ``predict`` refuses it."""
    vars(model)["head_trained"] = True
    return model
