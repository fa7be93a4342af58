"""``finetune(...)``: from a folder of scans to a model, a score and a page of pictures.

Reads and checks all data first; trains; judges on cases that were held out, each on its own grid;
writes a model folder with its report. The same call goes on where an interrupted one stopped.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.extras import refuse_missing
from universal_model_hub.files import parse_json, write_json
from universal_model_hub.fit.arms import Stopped, new_model, prepare_training, samplers
from universal_model_hub.fit.data.cases import Task
from universal_model_hub.fit.data.check import check_space
from universal_model_hub.fit.data.prepare import data_sha256
from universal_model_hub.fit.outcome import write_outcome
from universal_model_hub.fit.request import DEFAULT_WEIGHTS, Plan, Request, make_plan
from universal_model_hub.fit.stages import run_plan, sides
from universal_model_hub.fit.training.checkpoint import config_differences, run_lock
from universal_model_hub.fit.training.engine import (
    Process,
    from_main,
    process_group,
    stop_on_signals,
    wait_for_all,
)
from universal_model_hub.fit.training.plan import seconds_a_step, steps_within, with_steps
from universal_model_hub.saving import FILES

WORK, PLAN = "work", "plan.json"  # of an unfinished run
METRICS = "metrics.json"


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning made."""

    folder: Path  # a model folder, with report.html, metrics.json, metrics.csv and split.csv
    metrics: Mapping[str, Any]  # what metrics.json holds
    is_new: bool = True  # False: the same run had ended in this folder before

    def text(self) -> str:
        """Return the scores as a table for a terminal."""
        lines = [f"Judged on {self.metrics['judged_on']}.", ""]
        for title, arm in self.metrics["arms"].items():
            lines.append(title)
            lines += [f"  {name:<24} {_told(found)}" for name, found in _scores(arm["results"])]
        if "difference_dice" in self.metrics:
            told = _told(self.metrics["difference_dice"], "+.3f")
            lines += ["", f"Dice, {' minus '.join(self.metrics['arms'])}: {told}"]
        return "\n".join(lines)


def finetune(
    output: str | Path,
    *,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    data: str | Path | None = None,
    task: Task | None = None,
    modality: str | Sequence[str] = "auto",
    label_names: Mapping[int, str] | None = None,
    weights: str | Path | None = DEFAULT_WEIGHTS,
    transfer: str = "full",
    compare_scratch: bool = False,
    spacing: Sequence[float] | None = None,
    folds: int = 0,
    tune_rate: bool = False,
    budget_seconds: float | None = None,
    device: str = "auto",
    force: bool = False,
    progress: bool = True,
    **settings: Any,
) -> FinetuneResult:
    """Fine-tune weights on your own scans, for segmentation or classification.

    Either ``images`` and ``labels``, two folders with files of the same names (for classification
    ``images`` alone, with a folder a class), or ``data``: a CSV, a ``dataset.json`` of the Medical
    Segmentation Decathlon, an nnU-Net raw folder or a BIDS-like tree.

    Args:
        output: Model folder to make. While it runs, ``work/`` in it keeps what resuming needs.
        images: Folder of scans.
        labels: Folder of label maps; in them -1 is "not annotated".
        data: A data set in one of the other layouts.
        task: ``segmentation`` or ``classification``; None: what the data are made for.
        modality: CT, MR or auto; one for all, or one a channel.
        label_names: Names of label values.
        weights: Name or folder of weights to start from; None starts from scratch.
        transfer: ``full``, or ``encoder`` to start a U-Net's decoder afresh.
        compare_scratch: Train the same from scratch beside it, and report both.
        spacing: (x, y, z) of the model grid in mm; None: that of the weights, or a coarser one
            where a cube would see too little and the labels bear it; for classification so coarse
            that whole scans fit.
        folds: Of a cross-validation by subject. The model is then trained on all cases, and the
            scores are those of the folds' models on the cases that each did not see.
        tune_rate: Try three learning rates on the validation part first, in each arm alike.
        budget_seconds: Choose the number of steps so that all of it takes about so long.
        device: ``auto``, ``cpu`` or ``cuda``; several processes come from ``torchrun``.
        force: Replace a model in ``output``, and forget an unfinished run there. Without it the
            model of the very same run is left as it is, and its result returned.
        progress: Show bars on stderr.
        **settings: Fields of ``FinetuneSettings``; what is left out adapts to the data.

    Returns:
        The folder and its metrics.

    Raises:
        ConfigError: If an option or the data cannot be used: everything that is wrong at once, and
            nothing is written; or if what the ``[finetune]`` extra brings is not installed.
        CheckpointError: If the loss is not finite, or an unfinished run in ``output`` was for
            something else.
        KeyboardInterrupt: If a signal ended it; the same call goes on from there.
    """
    request = Request(
        images=_path(images),
        labels=_path(labels),
        data=_path(data),
        task=task,
        modality=modality if isinstance(modality, str) else tuple(modality),
        label_names=label_names,
        weights=weights,
        transfer=transfer,
        compare_scratch=compare_scratch,
        spacing=None if spacing is None else _three(spacing),
        folds=folds,
        tune_rate=tune_rate,
        budget_seconds=budget_seconds,
        settings=settings,
    )
    with process_group(device) as process:
        return run_request(request, Path(output), process, force=force, progress=progress)


def run_request(
    request: Request, output: Path, process: Process, *, force: bool, progress: bool
) -> FinetuneResult:
    """Do what is asked for; each of several processes runs this."""
    refuse_missing()
    check_output(output, force=force)
    progress = progress and process.is_main
    plan = make_plan(request, process.device, progress=progress)
    began = time.monotonic()
    work = output / WORK
    if not force:
        if (metrics := finished_metrics(plan, output)) is not None:
            if process.is_main and work.is_dir():
                with run_lock(work):  # not from under a run that another process has there
                    shutil.rmtree(work)
            return FinetuneResult(output, metrics, is_new=False)
        refuse_model(output)
    if process.is_main:
        start_work(plan, work, force=force)
    wait_for_all(process)
    with run_lock(work) if process.is_main else contextlib.nullcontext():
        with stop_on_signals() as stop:
            try:
                plan = with_budget(plan, work, process)
                arms = run_plan(plan, work, process, stop, progress=progress)
            except Stopped:
                arms = None
        if arms is None:
            signal.raise_signal(stop.signal or signal.SIGTERM)  # the old handlers are back in place
            raise KeyboardInterrupt
        if process.is_main:
            write_outcome(
                plan,
                arms,
                output,
                process,
                data_sha256=data_sha256(plan.data, plan.preprocessing, plan.numbers),
                seconds=time.monotonic() - began,
            )
            shutil.rmtree(work)
    wait_for_all(process)
    return FinetuneResult(output, parse_json((output / METRICS).read_bytes()))


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an output folder that could not be written, or holds a model of other origin.

    Raises:
        ConfigError: If so.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"Expected a folder for the model, {output} is a file. Choose another.")
    if not force and not (output / METRICS).is_file():
        refuse_model(output)
    nearest = next(folder for folder in (output, *output.resolve().parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise ConfigError(f"Expected a folder that can be written, got {nearest}.")


def refuse_model(output: Path) -> None:
    """Refuse a folder that holds a model, but for one in which a run is unfinished.

    Raises:
        ConfigError: If so.
    """
    there = [name for name in FILES if (output / name).exists()]
    if there and not (output / WORK / PLAN).is_file():
        raise ConfigError(
            f"The folder {output} holds {', '.join(there)} already. Choose another, or pass force "
            "(--force) to replace it."
        )


def finished_metrics(plan: Plan, output: Path) -> Mapping[str, Any] | None:
    """Return the metrics of the same run if it ended in this folder; None if it did not.

    A run can be stopped when its model is written and its process is still there: repeated, it
    has nothing left to do. The same is the same plan, the same data and the model of these metrics.
    """
    try:
        metrics = parse_json((output / METRICS).read_bytes())
        origin = metrics["provenance"]
        written = parse_json((output / "config.json").read_bytes())["provenance"]
        if plan.request.budget_seconds is not None:
            steps = int(metrics["plan"]["settings"]["steps"])  # found by timing, once
            plan = replace(plan, settings=with_steps(plan.settings, steps))
        found = data_sha256(plan.data, plan.preprocessing, plan.numbers)
        same = (
            all((output / name).is_file() for name in FILES)
            and not config_differences(metrics["plan"], plan.to_json())
            and origin["data_sha256"] == found
            and all(written.get(name) == value for name, value in origin.items())
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # no such files, or of other origin
    return metrics if same else None


def start_work(plan: Plan, work: Path, *, force: bool) -> None:
    """Make the folder of an unfinished run, or check that the one there was for the same.

    Raises:
        CheckpointError: If it was for something else; the differences are listed.
        ConfigError: If the prepared scans do not fit on the disk.
    """
    stored = work / PLAN
    if stored.is_file():
        differences = config_differences(parse_json(stored.read_bytes()), plan.to_json())
        if not differences:
            return
        if not force:
            raise CheckpointError(
                f"The unfinished run in {work} was for something else: "
                f"{'; '.join(differences[:10])}. Repeat its command, choose another folder, or "
                "pass force (--force) to forget it."
            )
        shutil.rmtree(work)
    check_space(plan.report, plan.preprocessing, work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(stored, plan.to_json())


def with_budget(plan: Plan, work: Path, process: Process) -> Plan:
    """Fit the number of steps to the time budget; a resumed run keeps what was found first."""
    seconds = plan.request.budget_seconds
    if seconds is None:
        return plan
    path = work / "budget.json"
    steps = 0
    if process.is_main:
        if not path.is_file():
            training, validation = sides(plan)
            sampler, _ = samplers(plan, training, validation, work / "cache")
            model = new_model(plan, plan.request.weights)
            prepare_training(model, plan.settings)
            step_seconds = seconds_a_step(model, sampler, plan.settings, process)
            runs = len(plan.arms) * (1 + plan.request.folds)
            found = steps_within(seconds, step_seconds, runs, plan.settings)
            write_json(path, {"seconds_a_step": step_seconds, "steps": found})
        steps = parse_json(path.read_bytes())["steps"]
    settings = with_steps(plan.settings, int(from_main(steps, process)))
    return replace(plan, settings=settings)


def _scores(results: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and estimate of what a terminal shows: Dice by class, or rates."""
    if isinstance(results, Mapping):
        return [(name, results[name]) for name in ("auc", "accuracy", "balanced_accuracy")]
    return [(f"Dice {row['name']}", row["metrics"]["dice"]) for row in results]


def _told(estimate: Mapping[str, Any], form: str = ".3f") -> str:
    if estimate["value"] is None:
        return "no case counts"
    interval = estimate["interval"]
    ends = "" if interval is None else f" [{interval['low']:{form}}, {interval['high']:{form}}]"
    return f"{estimate['value']:{form}}{ends}  (n = {estimate['n']})"


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ConfigError(f"Expected a spacing of three numbers in mm, got {values!r}.")
    x, y, z = (float(value) for value in values)
    return x, y, z
