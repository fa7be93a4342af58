"""The fine-tuning loop: first the new head alone, then everything.

Shape letters: N batch, X Y Z axes, K classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from universal_model_hub.errors import CheckpointError
from universal_model_hub.fit.engine import autocast, cosine_factor, pick_device
from universal_model_hub.fit.sampling import NOT_ANNOTATED, CubeSampler
from universal_model_hub.fit.settings import FinetuneSettings

DICE_SMOOTHING = 1e-2  # voxels; keeps a class that a batch lacks from pulling


def fit(
    model: nn.Module,
    sampler: CubeSampler,
    settings: FinetuneSettings,
    *,
    device: str = "cpu",
    after_step: Callable[[int, nn.Module], None] | None = None,
) -> list[float]:
    """Fine-tune a segmentation network in place.

    Args:
        model: Has a ``head``; gives logits (N, K, X, Y, Z).
        sampler: Of training cubes.
        settings: Of the run.
        device: ``auto``, ``cpu`` or ``cuda``; the model is moved there and stays.
        after_step: Called with the number of finished steps and the model, in train mode.

    Returns:
        The loss of each step. The model is left in eval mode.

    Raises:
        CheckpointError: If the loss is not finite.
    """
    place = pick_device(device)
    model.to(place, memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )

    def factor(step: int) -> float:
        return cosine_factor(step, settings.steps, settings.warmup_steps, 0.0)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    for step in range(settings.steps):
        set_trainable(model, head_only=step < settings.head_steps)
        images, labels = (t.to(place, non_blocking=True) for t in sampler.batch(step))
        optimizer.zero_grad(set_to_none=True)
        with autocast(place, settings.precision):
            logits = model(images.contiguous(memory_format=torch.channels_last_3d))
        loss = segmentation_loss(logits.float(), labels)
        if not bool(torch.isfinite(loss)):
            raise CheckpointError(
                f"The loss is not finite at step {step + 1}. Lower the learning rate "
                f"({settings.learning_rate:g})."
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))
        if after_step is not None:
            after_step(step + 1, model)
    set_trainable(model, head_only=False)
    model.train(False)
    return losses


def set_trainable(model: nn.Module, *, head_only: bool) -> None:
    """Freeze all parameters but the head's, or none; batch norm adapts its statistics always."""
    head: Any = model.head
    model.requires_grad_(not head_only)
    head.requires_grad_(True)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice loss over the annotated voxels.

    Source: Dice loss as in Milletari et al. 2016 and Zhang et al., Sec. IV-C, in the mean over the
    classes that the batch's labels have; cross-entropy beside it is ours (steadier at first).

    Args:
        logits: (N, K, X, Y, Z) float32.
        labels: (N, X, Y, Z) int64; -1 does not count.
    """
    cross_entropy = F.cross_entropy(logits, labels, ignore_index=NOT_ANNOTATED)
    known = (labels != NOT_ANNOTATED)[:, None]
    truth = F.one_hot(labels.clamp(min=0), logits.shape[1]).movedim(-1, 1) * known
    predicted = logits.softmax(dim=1) * known
    axes = (0, 2, 3, 4)
    hit = (truth * predicted).sum(axes)[1:]
    both = (truth.sum(axes) + predicted.sum(axes))[1:]
    there = truth.sum(axes)[1:] > 0
    dice = (2 * hit + DICE_SMOOTHING) / (both + DICE_SMOOTHING)
    if not bool(there.any()):
        return cross_entropy
    return cross_entropy + (1 - dice[there]).mean()
