"""Does pre-training do what it claims? Measured on held-out synthetic subjects.

    python -m training.evidence --output results/train_evidence.json

Phantoms, cubes, runs with and without the modality discriminator (MIAL) for every seed, short runs
in float32 and bfloat16, measurements, report. Each stage is left out when its output is there, and
an interrupted run goes on where it stopped: the same command finishes the work.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.config import Recipe, load_recipe, recipe_of
from training.cubes import CubeStore
from training.evidence_phantoms import load_bodies, make_store, store_cases
from training.evidence_probes import (
    pooled_features,
    probe_rows,
    scale_accuracy,
)
from training.evidence_report import report, write_report
from training.metrics import commit, read_lines, runs_folder
from training.publish import final_checkpoint, recipe_sha256
from training.restoration import restoration_errors
from training.state import start_training
from universal_model_hub.errors import ConfigError, UniversalModelError
from universal_model_hub.files import parse_json, write_json
from universal_model_hub.fit.training.engine import Process, pick_device
from universal_model_hub.fit.training.hardware import hardware

ROOT = Path(__file__).parent.parent
RECIPE, PRECISION_RECIPE = "evidence", "evidence_precision"
FIRST_HELD_OUT = 1000  # number of the first held-out subject; training subjects start at 0
ARMS = {"with MIAL": (), "without MIAL": ("objective.modality_weight=0.0",)}
PRECISIONS = ("float32", "bfloat16")
PRECISION_SUBJECTS = 4  # of each region


@dataclass(frozen=True)
class Run:
    """One pre-training run of the evidence."""

    arm: str  # key of ARMS, or one of PRECISIONS
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    folder: Path

    def load_recipe(self) -> Recipe:
        """Return the recipe with this run's settings."""
        return load_recipe(self.recipe, self.overrides)


def planned_runs(work: Path, seeds: Sequence[int], overrides: Sequence[str]) -> list[Run]:
    """List all runs, the long ones first."""
    arms = [(arm, RECIPE, extra) for arm, extra in ARMS.items()]
    arms += [(p, PRECISION_RECIPE, (f"run.precision={p}",)) for p in PRECISIONS]
    return [
        Run(
            arm=arm,
            seed=seed,
            recipe=recipe,
            overrides=(*overrides, *extra, f"run.seed={seed}"),
            folder=work / "runs" / f"{arm.replace(' ', '-').lower()}-{seed}",
        )
        for arm, recipe, extra in arms
        for seed in seeds
    ]


def is_finished(run: Run) -> bool:
    """Whether the run has reached its last step by the same recipe."""
    try:
        summary = parse_json((run.folder / "summary.json").read_bytes())
        written = parse_json((run.folder / "recipe.json").read_bytes())["recipe"]
    except FileNotFoundError:
        return False
    same = json.dumps(written, sort_keys=True) == json.dumps(
        run.load_recipe().to_json(), sort_keys=True
    )
    return same and summary["step"] == summary["steps"]


def train(run: Run, store: Path, device: str = "cpu", workers: int = 0) -> None:
    """Train one run in a process of its own, with one thread and ``workers`` loader processes.

    Raises:
        ConfigError: If training fails; its own message is above.
    """
    if is_finished(run):
        return
    arguments = ["--recipe", run.recipe, "--cubes", str(store), "--run-folder", str(run.folder)]
    for override in run.overrides:
        arguments += ["--set", override]
    arguments += ["--device", device, "--workers", str(workers), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "training.pretrain", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise ConfigError(
            f"The run {run.folder} ended with {done.returncode}. Start the same command again to "
            "go on, or choose another --work if its recipe has changed."
        )


def measure(run: Run, held_out: Path, num_cubes: int) -> dict[str, Any]:
    """Measure a finished run on held-out cubes, or return what was measured before.

    Args:
        run: One of ARMS.
        held_out: Store of held-out cubes, with body masks beside it.
        num_cubes: Cubes for restoration, drawn once for all runs; the probes take all.
    """
    torch.set_num_threads(1)
    store = CubeStore(held_out)
    step, state, config = final_checkpoint(run.folder)
    key = {"step": step, "data_sha256": store.sha256, "cubes": num_cubes}
    path = run.folder / "measured.json"
    if path.is_file() and (found := parse_json(path.read_bytes()))["key"] == key:
        return dict(found)
    recipe = recipe_of(config["recipe"])
    cpu = Process(rank=0, world_size=1, device=torch.device("cpu"))
    model: Any = start_training(recipe, cpu).model
    model.load_state_dict(state["ema"]["values"] if "ema" in state else state["model"])
    model.eval()
    numbers = np.random.default_rng(0).permutation(len(store))[:num_cubes].tolist()
    bodies = load_bodies(store)
    errors = restoration_errors(model.unet, store, bodies, numbers, recipe.corruption)
    probes = probe_rows(pooled_features(model.unet.encoder, store), store)
    embedding = next(row for row in reversed(probes) if row["level"] is not None)
    result = {
        "key": key,
        "arm": run.arm,
        "seed": run.seed,
        "hours": parse_json((run.folder / "summary.json").read_bytes())["hours"],
        "restoration": [dataclasses.asdict(row) for row in errors],
        "scale_accuracy": scale_accuracy(model, store),
        "modality_auc": embedding["modality_auc"],
        "region_accuracy": embedding["region_accuracy"],
        "probes": probes,
    }
    write_json(path, result)
    return result


def restoration_curve(run: Run) -> list[float]:
    """Return a run's restoration loss, step by step."""
    lines = read_lines(run.folder / "metrics.jsonl")
    return [line["restoration"] for line in lines if line["part"] == "train"]


def run_all(options: argparse.Namespace) -> None:
    """Run every stage and write the report."""
    started = time.monotonic()
    recipe = load_recipe(RECIPE, options.set)
    precision_recipe = load_recipe(PRECISION_RECIPE, options.set)
    work: Path = options.work
    train_subjects, held_out_subjects = options.subjects
    training = make_store(work / "train", recipe, 0, train_subjects, workers=options.processes)
    held_out = make_store(
        work / "held_out", recipe, FIRST_HELD_OUT, held_out_subjects, workers=options.processes
    )
    precision = make_store(
        work / "precision", precision_recipe, 0, PRECISION_SUBJECTS, workers=options.processes
    )
    say(f"{len(training)} training and {len(held_out)} held-out cubes are there", started)
    runs = planned_runs(work, options.seeds, options.set)
    with concurrent.futures.ThreadPoolExecutor(options.processes) as threads:
        folders = {RECIPE: training.folder, PRECISION_RECIPE: precision.folder}
        where = (options.device, options.workers)
        jobs = {threads.submit(train, run, folders[run.recipe], *where): run for run in runs}
        for job in concurrent.futures.as_completed(jobs):
            job.result()
            say(f"{jobs[job].folder.name} is trained", started)
    context = multiprocessing.get_context("spawn")
    long_runs = [run for run in runs if run.arm in ARMS]
    with concurrent.futures.ProcessPoolExecutor(options.processes, context) as pool:
        todo = [pool.submit(measure, r, held_out.folder, options.cubes) for r in long_runs]
        measured = [job.result() for job in todo]
    say("everything is measured", started)
    curves = {
        precision: [restoration_curve(run) for run in runs if run.arm == precision]
        for precision in PRECISIONS
    }
    facts = {
        "command": "python -m training.evidence --output " + str(options.output),
        "settings": list(options.set),
        "commit": commit(),
        "recipe": f"{RECIPE}.toml",
        "recipe_sha256": recipe_sha256(recipe),
        "precision_recipe": f"{PRECISION_RECIPE}.toml",
        "seeds": list(options.seeds),
        "steps": recipe.run.steps,
        "batch_size": recipe.run.batch_size,
        "training_scans": store_cases(training),
        "held_out_scans": store_cases(held_out),
        "hardware": hardware(pick_device(options.device))
        | {"threads": 1, "processes": options.processes},
    }
    picture_run = next(run for run in long_runs if run.arm == "with MIAL")
    write_report(report(facts, measured, curves), options.output, picture_run.folder, held_out)


def say(text: str, started: float) -> None:
    """Print a line of progress on stderr."""
    minutes = (time.monotonic() - started) / 60
    print(f"train-evidence: {minutes:5.1f} min: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.evidence", description=__doc__)
    parser.add_argument("--output", "-o", type=Path, required=True, help="JSON; .md, .png beside")
    parser.add_argument("--work", type=Path, default=runs_folder() / "evidence")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or auto")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each run")
    parser.add_argument(
        "--subjects", type=int, nargs=2, default=[24, 12], help="of each region: training, held out"
    )
    parser.add_argument("--cubes", type=int, default=600, help="held-out cubes for restoration")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    try:
        run_all(parser.parse_args(arguments))
    except UniversalModelError as error:
        print(f"evidence: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
