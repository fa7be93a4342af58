"""One fine-tuning of the benchmark, from a row's weights to a result file.

The last step's weights are tested, once. Validation draws the curve of Fig. 4 and chooses nothing,
so that a run with a tenth of the labels is not helped by more of them.
"""

import contextlib
import copy
import datetime
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.benchmark.bench import Bench
from training.benchmark.logs import log_traceback, logged
from training.benchmark.plan import Run
from training.benchmark.pool import Stopped
from training.benchmark.rows import SHOWN_ROWS, build_network, get_row
from training.benchmark.tasks import TASKS
from training.benchmark.tasks_scoring import (
    Example,
    classification_metrics,
    segmentation_metrics,
)
from training.benchmark.tasks_training import TaskTraining, open_training
from training.measure import peak_memory_mib
from training.metrics import commit
from training.workload import counted
from universal_model_hub.files import parse_json, write_bytes, write_json
from universal_model_hub.fit.training.checkpoint import run_lock
from universal_model_hub.fit.training.engine import pick_device, stop_on_signals
from universal_model_hub.fit.training.hardware import hardware
from universal_model_hub.fit.training.loop import FitResult, fit

LOSS_PARTS = 10  # of a run, whose mean losses are kept
MIB = 2**20


@dataclass(frozen=True)
class Trial:
    """A run with all it needs, as a worker gets it."""

    bench: Bench
    run: Run

    def __hash__(self) -> int:
        return hash(self.run)

    def __str__(self) -> str:
        return str(self.run)


class Curve:
    """Validation scores of a run, kept beside its checkpoints for when it is resumed."""

    def __init__(self, path: Path, steps: int, count: int) -> None:
        self.path = path
        self.due = {max(1, round(steps * k / count)) for k in range(1, count + 1)}
        found = parse_json(path.read_bytes()) if path.is_file() else []
        self.points: dict[int, dict[str, float]] = {point["step"]: point for point in found}

    def after_step(
        self, step: int, model: nn.Module, validate: Callable[[nn.Module], float]
    ) -> None:
        """Validate the model where a point is due; it is left in train mode."""
        if step not in self.due:
            return
        began = time.monotonic()
        model.train(False)
        score = validate(model)
        model.train(True)
        seconds = time.monotonic() - began
        self.points[step] = {"step": step, "validation": score, "seconds": seconds}
        write_json(self.path, self.to_json())

    def to_json(self) -> list[dict[str, float]]:
        """Return the points in the order of their steps."""
        return [self.points[step] for step in sorted(self.points)]


def run_trial(trial: Trial, device: str) -> None:
    """Fine-tune, test, and write the result; what is there already is left alone.

    Raises:
        Stopped: If a signal came; the next start goes on from the checkpoint.
        UniversalModelError: If something does not fit; the log has the traceback.
    """
    bench, run = trial.bench, trial.run
    if bench.is_finished(run):
        return
    name = bench.name(run)
    log = bench.out / "logs" / f"{name}.log"
    folder = bench.work / "trials" / name
    with logged(log) as stream:
        try:
            with run_lock(folder):
                result, example = fine_tune(bench, run, folder, device)
        except Stopped:
            raise
        except Exception:
            log_traceback()
            raise
        print(f"{name}: {result['metrics']}", file=stream)
    is_first = (run.trial, run.share, run.noise) == (0, 1.0, 0.0)
    if example is not None and is_first and run.row in SHOWN_ROWS:
        write_bytes(bench.out / "examples" / f"{run.task}-{run.row}.png", example.draw())
    write_json(bench.result_file(run), {**result, "log": f"logs/{name}.log"})
    (bench.out / "failed" / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(folder)  # its checkpoints have served


def fine_tune(
    bench: Bench, run: Run, folder: Path, device: str
) -> tuple[dict[str, Any], Example | None]:
    """Do one run.

    Args:
        bench: Plan, data, folders.
        run: What is fine-tuned.
        folder: Gets checkpoints and validation scores.
        device: ``cpu`` or ``cuda:0``.

    Returns:
        The content of the result file, and a test case of a segmentation for a picture.

    Raises:
        Stopped: If a signal came.
    """
    task, settings = TASKS[run.task], bench.plan.settings(run)
    chosen = pick_device(device)
    torch.manual_seed(run.trial)  # what dropout draws
    training = open_training(bench, run, chosen)
    model = build_network(
        get_row(run.row), task, bench.arguments(run), bench.weights(run), run.trial
    )
    network = network_facts(model, training)
    curve = Curve(folder / "curve.json", settings.steps, bench.plan.curve_points)
    reset_peak(chosen)
    with stop_on_signals() as stop:
        fitted = fit(
            model,
            training.sampler,
            settings,
            device=device,
            after_step=lambda step, net: curve.after_step(step, net, training.validate),
            run_folder=folder,
            config={"key": bench.key(run)},
            stop=stop,
        )
    if not fitted.finished:
        raise Stopped(f"{run} was stopped at a checkpoint.")
    peak = peak_bytes(chosen)
    began = time.monotonic()
    cases, example = training.test(model)
    spent = {"test_seconds": round(time.monotonic() - began, 3)}
    result = _result(bench, run, fitted, curve, chosen)
    result["network"] = {"name": get_row(run.row).network, **network, "peak_bytes": peak}
    summarize = segmentation_metrics if task.kind == "segmentation" else classification_metrics
    return {
        **result,
        **spent,
        **training.facts,
        "metrics": summarize(cases),
        "cases": cases,
    }, example


def _result(
    bench: Bench, run: Run, fitted: FitResult, curve: Curve, device: torch.device
) -> dict[str, Any]:
    """Return the part of a result that is the same for every task."""
    validating = sum(point["seconds"] for point in curve.to_json())
    losses = [
        float(np.mean(part)) for part in np.array_split(fitted.losses, LOSS_PARTS) if len(part)
    ]
    pretraining = bench.pretrained.get((run.row, run.task))
    return {
        "key": bench.key(run),
        "row": run.row,
        "task": run.task,
        "trial": run.trial,
        "share": run.share,
        "noise": run.noise,
        "synthetic": bench.is_synthetic,
        "config": bench.config(run),
        "files_sha256": bench.source(run.task).files_sha256,
        "commit": commit(),
        "hardware": hardware(device),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "seconds": round(fitted.seconds - validating, 3),  # of the steps alone
        "validation_seconds": round(validating, 3),
        "steps": len(fitted.losses),
        "pretraining": None if pretraining is None else pretraining.facts(),
        "losses": losses,
        "curve": [{k: point[k] for k in ("step", "validation")} for point in curve.to_json()],
    }


def network_facts(model: nn.Module, training: TaskTraining) -> dict[str, Any]:
    """Count parameters, and the multiply-adds in 1e9 of one training input's forward pass."""
    image = training.sampler.batch(0)[0]
    fake = copy.deepcopy(model).to("meta").train(False)
    with torch.no_grad():
        _, gmac = counted(lambda: fake(torch.empty(1, *image.shape[1:], device="meta")))
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "gmac": round(gmac, 4), "input": list(image.shape[2:])}


def reset_peak(device: torch.device) -> None:
    """Start to measure the peak of memory anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int | None:
    """Return the peak of memory since ``reset_peak``: of the process, or on its GPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = peak_memory_mib()
    return None if peak is None else peak * MIB
