"""Does a pretrained start reach scratch's final Dice in half of its steps? On synthetic subjects.

    python -m benchmarks.finetune_steps [--output results/finetune_steps.json]

Both arms fine-tune with the engine of ``umh finetune``: the same cubes, schedule and new head; the
pretrained one for half as many steps. Each has its learning rate chosen from the same values, at
its own number of steps, on training subjects that are kept back meanwhile. Test subjects are scored
once, after the last step.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import stamp
from training.release.finetuning import as_trained
from training.release.scans import GridCase, test_cases, training_cases
from training.release.scoring import score
from training.release.tasks import Task, read_tasks
from universal_model_hub.files import write_json
from universal_model_hub.fit.data.cases import LoadedCase
from universal_model_hub.fit.training.loop import fit
from universal_model_hub.fit.training.plan import HEAD_RATE_FACTOR
from universal_model_hub.fit.training.sampling import CubeSampler
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.fit.training.transfer import build_model

ROOT = Path(__file__).parent.parent
TASKS = ("develop_heart_ct", "develop_brain_mr")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
KEPT_BACK = 3  # of ten training subjects, to choose the rate on
TUNING_SEED = 100


def dice_of(
    weights: str | None,
    task: Task,
    settings: FinetuneSettings,
    cases: Sequence[GridCase],
    judged: Sequence[GridCase],
) -> float:
    """Fine-tune on cases and return the Dice of others, in the mean over classes."""
    arguments = {"width": 8}
    model = build_model(
        weights, num_classes=task.num_classes, seed=settings.seed, arguments=arguments
    )
    loaded = [LoadedCase(case.id, case.image[None], case.labels) for case in cases]
    fit(model, CubeSampler(loaded, settings, task.num_classes), settings)
    return float(score(as_trained(model), judged, task.num_classes)["dice"])


def arm(
    weights: str | None, task: Task, steps: int, seeds: int, cases: Sequence[GridCase]
) -> dict[str, Any]:
    """Choose the rate of an arm, then train and score it with every seed."""
    base = FinetuneSettings(
        cube=task.cube,
        steps=steps,
        head_steps=steps // 20,
        head_rate_factor=HEAD_RATE_FACTOR,
        warmup_steps=steps // 20,
    )
    name = weights or "scratch"
    tried = {}
    for rate in RATES:
        settings = replace(base, learning_rate=rate, seed=TUNING_SEED)
        tried[rate] = dice_of(weights, task, settings, cases[KEPT_BACK:], cases[:KEPT_BACK])
        say(f"{task.name}, {name}, rate {rate:g}: Dice {tried[rate]:.3f} on kept-back subjects")
    best = max(tried, key=lambda rate: tried[rate])
    judged = test_cases(task)
    scores = []
    for seed in range(seeds):
        settings = replace(base, learning_rate=best, seed=seed)
        scores.append(dice_of(weights, task, settings, cases, judged))
        say(f"{task.name}, {name}, {steps} steps, seed {seed}: test Dice {scores[-1]:.3f}")
    return {
        "steps": steps,
        "rate": best,
        "kept_back_dice_by_rate": {f"{rate:g}": value for rate, value in tried.items()},
        "test_dice": scores,
        "mean": float(np.mean(scores)),
        "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "test_subjects": len({case.subject for case in judged}),
    }


def compare(task: Task, weights: str, steps: int, seeds: int) -> dict[str, Any]:
    """Train scratch for all steps and the weights for half of them."""
    cases = training_cases(task)
    scratch = arm(None, task, steps, seeds, cases)
    pretrained = arm(weights, task, steps // 2, seeds, cases)
    return {
        "task": task.name,
        "title": task.title,
        "synthetic": True,
        "scratch": scratch,
        "pretrained": pretrained,
        "reached": pretrained["mean"] >= scratch["mean"],
    }


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    print(f"finetune-steps: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "finetune_steps.json")
    parser.add_argument("--weights", default="unet3d-compact")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument(
        "--steps", type=int, default=400, help="of scratch; half of them for the weights"
    )
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = read_tasks().tasks
    results = [
        compare(found[t], options.weights, options.steps, options.seeds) for t in options.tasks
    ]
    settings = {
        "weights": options.weights,
        "rates": RATES,
        "kept_back_subjects": KEPT_BACK,
        "seeds": options.seeds,
    }
    write_json(options.output, {**stamp(), "threads": 1, "settings": settings, "results": results})


if __name__ == "__main__":
    main()
