"""One run of the evaluation: what it is, the name of its result file, and doing it.

A result is kept under a hash of everything that decides it (task, settings, weights, seed), so that
the same command goes on where it stopped, and weights seen before are not evaluated again. The
hardware is recorded and not hashed: it rounds otherwise, which 500 steps can amplify as far as
another seed would, but favors no arm.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from training.release.arms import HAND, Arm, Arms
from training.release.data import VERSION as DATA_VERSION
from training.release.data import TaskData, fingerprint, open_task
from training.release.finetuning import fine_tune
from training.release.frozen import frozen_features, ridge_segmenter
from training.release.probes import cube_accuracy, probe_cubes, structure_accuracy
from training.release.scans import GridCase, split_labels
from training.release.scoring import score
from training.release.tasks import AXES, Mode, ModeSettings, Task, Tasks
from universal_model_hub.errors import CheckpointError
from universal_model_hub.files import parse_json, write_json
from universal_model_hub.fit.training.hardware import hardware

VERSION = 3  # of what a run does: raise it when results would differ
KEPT_BACK = 1 / 3  # of the foreground of the training labels, where something is chosen
PROBE_SEEDS = {"develop": 6201, "final": 6101}  # of the synthetic subjects of the cube probes
PROBE_SUBJECTS = 12  # of each region

# Fields of a task that change no single run.
NOT_DECIDING = ("mode", "letter", "title", "note", "shares", "seeds", "siblings")

Kind = Literal["fit", "ridge", "structure", "cubes"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run; its fields are what differs between runs of an evaluation."""

    kind: Kind
    arm: str
    seed: int
    task: str = ""  # none for the cube probes
    share: int = 100  # percent of the annotated slabs
    transfer: str = "full"
    rate: float = 0.0  # learning rate of a fit
    part: Literal["tuning", "test"] = "test"
    curve: bool = False  # score on the way, too

    def __str__(self) -> str:
        facts = [self.kind, self.part, self.task, f"{self.share} %", self.arm, self.transfer]
        return ", ".join([*facts, f"rate {self.rate:g}", f"seed {self.seed}"])


@dataclass(frozen=True)
class Setting:
    """What all runs of an evaluation share."""

    mode: Mode
    tasks: Tasks
    arms: Arms
    root: Path  # of data and results
    kept: Path | None = None  # where results of runs are kept; None: under the root
    device: str = "cpu"  # of fine-tuning; probes run on the CPU

    @property
    def mode_settings(self) -> ModeSettings:
        """Return how the runs of this mode are trained and counted."""
        return self.tasks.modes[self.mode]

    def arm(self, name: str) -> Arm:
        """Return an arm by name; hand-made features belong to no weights."""
        return Arm(HAND) if name == HAND else self.arms[name]


def result_file(run: Run, setting: Setting) -> Path:
    """Return where the result of a run is kept."""
    folder = setting.kept or setting.root / "runs"
    return folder / f"{run_key(run, setting)}.json"


def probe_file(setting: Setting) -> Path:
    """Return where the cubes of the modality and region probes are kept."""
    name = f"probe_cubes-{PROBE_SEEDS[setting.mode]}-{PROBE_SUBJECTS}.npz"
    return setting.root / "data" / name


def run_key(run: Run, setting: Setting) -> str:
    """Return the hash of everything that decides a run's result."""
    arm = setting.arm(run.arm)
    values: dict[str, Any] = {**asdict(run), "version": VERSION, "arm": arm.to_json()}
    values["hand"] = run.arm == HAND
    if run.task:
        task = setting.tasks.tasks[run.task]
        values["task"] = {
            key: value for key, value in task.to_json().items() if key not in NOT_DECIDING
        }
        values["share"] = task.slabs_of(run.share)
    else:
        values["subjects"] = (PROBE_SEEDS[setting.mode], PROBE_SUBJECTS)
    if run.kind == "fit":
        kept = (
            *("steps", "head_steps", "head_rate_factor", "batch_size", "precision"),
            *("foreground_share", "class_weights"),
        )
        settings = asdict(setting.mode_settings)
        values["fit"] = {name: settings[name] for name in kept}
        values["points"] = settings["curve_points"] if run.curve else 0
    return fingerprint(values)


def known_result(run: Run, setting: Setting) -> dict[str, Any] | None:
    """Return the result of a run that was done before, or None.

    Raises:
        CheckpointError: If its file is damaged.
    """
    path = result_file(run, setting)
    try:
        return dict(parse_json(path.read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError as cause:
        raise CheckpointError(
            f"Expected a result in {path}, got a damaged file. Delete it and start again."
        ) from cause


def execute(run: Run, setting: Setting) -> dict[str, Any]:
    """Do a run and keep its result; one that was done before is read."""
    if (known := known_result(run, setting)) is not None:
        return known
    started = time.monotonic()
    if run.kind == "cubes":
        result = _cubes(run, setting)
    else:
        task = setting.tasks.tasks[run.task]
        data = open_task(task, setting.root)
        result = {
            **_DO[run.kind](run, setting, task, data),
            "data_sha256": data.sha256,
            "data_version": DATA_VERSION,
            "test_subjects": data.test_subjects,
        }
    result = {
        "run": asdict(run),
        **result,
        "total_seconds": time.monotonic() - started,
        "hardware": _hardware_of(run, setting),
    }
    path = result_file(run, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result


def annotated(task: Task, data: TaskData, share: int) -> list[GridCase]:
    """Return the training cases of a share of the labels."""
    return list(data.train[: task.slabs_of(share)])


def kept_back(task: Task, cases: list[GridCase]) -> tuple[list[GridCase], list[GridCase]]:
    """Return cases with the labels to fit while something is chosen, and those to choose by."""
    splits = [split_labels(c.labels, AXES.index(task.split_axis), KEPT_BACK) for c in cases]
    sides = zip(*splits, strict=True)
    fit_on, judge = (
        [replace(case, labels=labels) for case, labels in zip(cases, side, strict=True)]
        for side in sides
    )
    return fit_on, judge


def _hardware_of(run: Run, setting: Setting) -> str:
    facts = hardware(torch.device(setting.device if run.kind == "fit" else "cpu"))
    return str(facts.get("gpu", facts["processor"]))


def _fit(run: Run, setting: Setting, task: Task, data: TaskData) -> dict[str, Any]:
    cases, judged = annotated(task, data, run.share), list(data.test)
    if run.part == "tuning":
        cases, judged = kept_back(task, cases)
    return fine_tune(
        setting.arm(run.arm),
        task,
        setting.mode_settings,
        cases,
        judged,
        transfer=run.transfer,
        rate=run.rate,
        seed=run.seed,
        curve=run.curve,
        device=setting.device,
    )


def _ridge(run: Run, setting: Setting, task: Task, data: TaskData) -> dict[str, Any]:
    cases = annotated(task, data, run.share)
    fit_on, judge = kept_back(task, cases)
    splits = [(a.labels, b.labels) for a, b in zip(fit_on, judge, strict=True)]
    features = frozen_features(setting.arm(run.arm), run.transfer, run.seed, cases)
    rng = np.random.default_rng(run.seed)
    model, chosen = ridge_segmenter(features, cases, splits, task.num_classes, rng)
    return {**score(model, data.test, task.num_classes), **chosen}


def _structure(run: Run, setting: Setting, task: Task, data: TaskData) -> dict[str, Any]:
    cases = annotated(task, data, run.share)
    features = frozen_features(setting.arm(run.arm), run.transfer, run.seed, cases)
    rng = np.random.default_rng(run.seed)
    return {"accuracy": structure_accuracy(features, cases, data.test, rng)}


def _cubes(run: Run, setting: Setting) -> dict[str, Any]:
    seed = PROBE_SEEDS[setting.mode]
    cubes = probe_cubes(probe_file(setting), seed=seed, subjects=PROBE_SUBJECTS)
    every = [
        GridCase(str(i), str(subject), cube, np.zeros(cube.shape, np.int16))
        for i, (cube, subject) in enumerate(zip(cubes.cubes, cubes.subject, strict=True))
    ]
    features = frozen_features(setting.arm(run.arm), run.transfer, run.seed, every)
    return {"accuracy": cube_accuracy(features, cubes), "cubes": len(every)}


_DO = {"fit": _fit, "ridge": _ridge, "structure": _structure}
