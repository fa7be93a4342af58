"""What a fine-tuning will do: settings that adapt to the data and the machine.

Every choice is a plain value that the user can set instead; the plan is shown by ``--check`` and
stored with the result. Source of the rules: ours.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from universal_model_hub.fit.data.cases import Task
from universal_model_hub.fit.training.engine import Process, autocast
from universal_model_hub.fit.training.loop import Sampler
from universal_model_hub.fit.training.losses import batch_loss
from universal_model_hub.fit.training.settings import FinetuneSettings

CPU_VOXELS, GPU_VOXELS = 2**16, 2**19  # of a segmentation cube: a second or less a step either way
SCAN_VOXELS = 2**18  # of a scan to be classified, on its model grid
SMALLEST, LARGEST = 16, 160  # sides of a cube
CPU_STEPS, GPU_STEPS = 1000, 2500
CPU_BATCH, GPU_BATCH = 2, 4
VALIDATIONS = 10  # over a run
HEAD_RATE_FACTOR = 10.0  # a head that is behind the rest undoes what was transferred
STRIDE = 8
WEIGHT_RANGE = (0.5, 4.0)  # of the cross-entropy's class weights
WARM_STEPS, TIMED_STEPS = 2, 4
TRAINING_SHARE = 0.75  # of a time budget; the rest prepares and scores


def plan_settings(
    task: Task,
    shape: Sequence[int],
    class_voxels: Sequence[int],
    device: torch.device,
    given: Mapping[str, Any],
) -> FinetuneSettings:
    """Return the settings of a fine-tuning.

    Args:
        task: Segmentation or classification.
        shape: Median (X, Y, Z) of the scans on the model grid.
        class_voxels: Annotated voxels of each class of a segmentation, background first.
        device: Where it will run.
        given: What the user has set; it goes before every rule.
    """
    on_gpu = device.type == "cuda"
    steps = int(given.get("steps", GPU_STEPS if on_gpu else CPU_STEPS))
    planned: dict[str, Any] = {
        "task": task,
        "steps": steps,
        "batch_size": GPU_BATCH if on_gpu else CPU_BATCH,
        "head_steps": steps // 10,
        "head_rate_factor": HEAD_RATE_FACTOR,
        "warmup_steps": min(50, steps // 10),
        "validate_every": max(1, steps // VALIDATIONS),
        "precision": "bfloat16" if on_gpu else "float32",
    }
    if task == "segmentation":
        planned["cube"] = cube_for(shape, cube_voxels(device))
        planned["class_weights"] = class_weights(class_voxels)
        planned["foreground_share"] = 0.6
    else:
        planned["cube"] = cube_for(shape, 4 * SCAN_VOXELS)
        planned["batch_size"] = 4
    return FinetuneSettings(**{**planned, **given})


def cube_voxels(device: torch.device) -> int:
    """Return about how many voxels a segmentation cube has on a device."""
    return GPU_VOXELS if device.type == "cuda" else CPU_VOXELS


def cube_for(shape: Sequence[int], voxels: int) -> tuple[int, int, int]:
    """Return the sides of a cube of at most about ``voxels``, none much beyond the scan's.

    A cube as high as wide, cut down to the scan where that is thinner; the other sides then grow.

    Args:
        shape: (X, Y, Z) of a usual scan on the model grid.
        voxels: Of the cube.
    """
    limits = [min(LARGEST, max(SMALLEST, math.ceil(side / STRIDE) * STRIDE)) for side in shape]
    sides = [0, 0, 0]
    left, open_axes = float(voxels), [0, 1, 2]
    for axis in sorted(open_axes, key=lambda a: limits[a]):
        even = left ** (1 / len(open_axes))
        sides[axis] = int(min(limits[axis], max(SMALLEST, even // STRIDE * STRIDE)))
        left /= sides[axis]
        open_axes.remove(axis)
    return sides[0], sides[1], sides[2]


def class_weights(voxels: Sequence[int]) -> tuple[float, ...] | None:
    """Return weights of the cross-entropy: rare classes count more, within bounds; mean 1.

    The square root of the inverse frequency, for whole inverses make a small class spill over.
    Where no class differs much from another there are no weights.
    """
    counts = np.asarray(voxels, np.float64)
    if len(counts) < 2 or (counts <= 0).any():
        return None
    weights = np.clip(np.sqrt(np.median(counts) / counts), *WEIGHT_RANGE)
    weights /= weights.mean()
    if weights.max() / weights.min() < 1.5:
        return None
    return tuple(round(float(weight), 4) for weight in weights)


def classification_spacing(
    shape: Sequence[int], spacing: Sequence[float]
) -> tuple[float, float, float]:
    """Return the spacing in mm at which a usual scan has about ``SCAN_VOXELS`` voxels.

    Args:
        shape: (X, Y, Z) of a usual scan on the grid of the weights.
        spacing: Of that grid, in mm; it is not made finer.
    """
    factor = max(1.0, (math.prod(shape) / SCAN_VOXELS) ** (1 / 3))
    x, y, z = (round(factor * s, 2) for s in spacing)
    return x, y, z


def with_steps(settings: FinetuneSettings, steps: int) -> FinetuneSettings:
    """Return the settings with another number of steps, and what follows from it."""
    return replace(
        settings,
        steps=steps,
        head_steps=min(settings.head_steps, steps // 10),
        warmup_steps=min(settings.warmup_steps, steps // 10),
        validate_every=max(1, steps // VALIDATIONS) if settings.validate_every else 0,
    )


def steps_within(
    budget_seconds: float, seconds_a_step: float, runs: int, settings: FinetuneSettings
) -> int:
    """Return how many steps each of ``runs`` trainings may take within a time budget."""
    steps = int(TRAINING_SHARE * budget_seconds / (seconds_a_step * runs))
    return max(10, min(steps, 100 * settings.steps))


def seconds_a_step(
    model: nn.Module, sampler: Sampler, settings: FinetuneSettings, process: Process
) -> float:
    """Time a few whole training steps of a network that is not needed afterwards."""
    model.to(process.device).train()
    times = []
    for step in range(WARM_STEPS + TIMED_STEPS):
        began = time.perf_counter()
        images, targets = (t.to(process.device) for t in sampler.batch(step))
        with autocast(process.device, settings.precision):
            logits = model(images.contiguous(memory_format=torch.channels_last_3d))
        loss = batch_loss(logits.float(), targets, settings)
        loss.backward()
        float(loss.detach())  # waits for the device
        times.append(time.perf_counter() - began)
    return float(np.median(times[WARM_STEPS:]))
