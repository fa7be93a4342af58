"""Gray and white matter from a few annotated slabs: with pretrained weights and from scratch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.release.finetuning import as_trained
from training.release.scans import training_cases
from training.release.scoring import score
from training.release.tasks import read_tasks
from universal_model_hub import get_weights
from universal_model_hub.fit.data.cases import LoadedCase
from universal_model_hub.fit.training.loop import fit
from universal_model_hub.fit.training.plan import HEAD_RATE_FACTOR
from universal_model_hub.fit.training.sampling import CubeSampler
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.fit.training.transfer import build_model

TASK = "develop_brain"
SLABS = 3  # annotated; the scan's other slabs are scored on
STEPS = 80


@dataclass(frozen=True)
class Outcome:
    """One fine-tuning."""

    dice: dict[str, float]  # by class, on slabs that were not trained on
    losses: list[float]  # of each step
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """The same fine-tuning with pretrained weights and from scratch."""

    name: str  # of the weights
    outcomes: dict[str, Outcome]  # "pretrained", "from scratch"

    def __str__(self) -> str:
        classes = list(next(iter(self.outcomes.values())).dice)
        lines = [f"{'Dice':<14}" + "".join(f"{name:>14}" for name in (*classes, "seconds"))]
        for start, outcome in self.outcomes.items():
            scores = "".join(f"{outcome.dice[name]:>14.3f}" for name in classes)
            lines.append(f"{start:<14}{scores}{outcome.seconds:>14.0f}")
        return "\n".join(lines)


def compare(name: str, say: Callable[[str], None]) -> Comparison:
    """Fine-tune a catalog model and the same network from scratch on a few slabs of the T1.

    Args:
        name: In the catalog, with weights.
        say: Gets a line of progress.
    """
    task, row = read_tasks().tasks[TASK], get_weights(name)
    cases = training_cases(task)
    settings = FinetuneSettings(
        cube=task.cube, steps=STEPS, head_steps=8, head_rate_factor=HEAD_RATE_FACTOR
    )
    loaded = [LoadedCase(case.id, case.image[None], case.labels) for case in cases[:SLABS]]
    outcomes = {}
    for start, weights in (("pretrained", name), ("from scratch", None)):
        model = build_model(
            weights,
            num_classes=task.num_classes,
            architecture=row.architecture,
            arguments=row.arguments,
        )
        began = time.perf_counter()
        losses = fit(model, CubeSampler(loaded, settings, task.num_classes), settings).losses
        seconds = time.perf_counter() - began
        found = score(as_trained(model), cases[SLABS:], task.num_classes)["dice_by_class"]
        dice = {label: value or 0.0 for label, value in zip(task.classes, found, strict=True)}
        outcomes[start] = Outcome(dice, losses, seconds)
        say(f"gray and white matter, {start}: {STEPS} steps in {seconds:.0f} s")
    return Comparison(name, outcomes)


def draw_curves(comparison: Comparison) -> Any:
    """Draw the loss of both fine-tunings, averaged over five steps."""
    from matplotlib import pyplot as plt

    drawn, axis = plt.subplots(figsize=(6, 3.5))
    for start, outcome in comparison.outcomes.items():
        smooth = np.convolve(outcome.losses, np.ones(5) / 5, mode="valid")
        axis.plot(np.arange(len(smooth)) + 5, smooth, label=start)
    axis.set_xlabel("step")
    axis.set_ylabel("cross-entropy + Dice loss")
    axis.legend()
    return drawn
