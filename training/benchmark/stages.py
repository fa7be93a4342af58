"""The stages of a benchmark in their order: data, pre-training, runs, probes, report.

Each is left out when its output is there, and goes on where it stopped.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.benchmark.bench import Bench, make_bench
from training.benchmark.part import Part
from training.benchmark.plan import Plan, Run
from training.benchmark.pool import Outcome, Pool
from training.benchmark.pretraining import (
    Pretraining,
    make_stores,
    record_pretrainings,
    run_pretraining,
)
from training.benchmark.probing import Probe, pretrained_rows, probes, run_probe
from training.benchmark.probing_cubes import cut_case, cuts
from training.benchmark.report import write_report
from training.benchmark.rows import ROWS, UNAVAILABLE, build_network, get_row
from training.benchmark.sources import Source, open_source, stored_split, write_phantoms
from training.benchmark.tasks import TASKS, TargetTask
from training.benchmark.tasks_data import prepare_case
from training.benchmark.trial import Trial, run_trial
from training.corpora.case import Case
from training.metrics import commit
from universal_model_hub.cli.stopping import stoppable
from universal_model_hub.devices import lacks_bfloat16
from universal_model_hub.errors import ConfigError
from universal_model_hub.extras import refuse_missing
from universal_model_hub.files import write_json
from universal_model_hub.fit.training.engine import WITHOUT_BFLOAT16
from universal_model_hub.preprocess import Preprocessing

OUT_FOLDERS = ("runs", "failed", "logs", "splits", "examples", "probes")
WORK_FOLDERS = ("data", "checked", "prepared", "stores", "pretraining", "models/.unfinished")


@dataclass(frozen=True)
class PreparedCase:
    """One case to bring to the grid of a task."""

    task: TargetTask
    case: Case
    preprocessing: Preprocessing
    folder: Path

    def __hash__(self) -> int:
        return hash((self.task.name, self.case.id))

    def __str__(self) -> str:
        return f"{self.task.name} {self.case.id}"


def open_bench(plan: Plan, folders: Mapping[str, Path], work: Path, out: Path) -> Bench:
    """Check all data and everything that runs depend on, before anything trains.

    Raises:
        ConfigError: If a data set is missing, damaged or split otherwise before, or a package that
            the tests need is not installed.
        WeightsError: If weights that the user brought are of another network.
    """
    refuse_missing()
    sources = {
        name: open_source(name, folder, work, plan.phantoms) for name, folder in folders.items()
    }
    bench = make_bench(plan, sources, work, out)
    for task in plan.tasks:
        for share in sorted({run.share for run in plan.runs() if run.task == task}):
            bench.source(task).sides(TASKS[task], share)
    check_networks(bench)
    for name, source in sources.items():
        stored_split(source.parts, out / "splits" / f"{name}.json")
    for folder, names in ((out, OUT_FOLDERS), (work, WORK_FOLDERS)):  # no input refused from here
        for name in names:
            (folder / name).mkdir(parents=True, exist_ok=True)
    write_json(out / "plan.json", describe_plan(bench))
    return bench


def say_rounding(plan: Plan, devices: Sequence[str]) -> None:
    """Say so where the plan's bfloat16 takes longer than planned: on a processor without it."""
    precisions = {plan.settings(run).precision for run in plan.runs()}
    recipes = [plan.recipe(run.row, run.task) for run in plan.runs()]
    precisions |= {recipe.run.precision for recipe in recipes if recipe is not None}
    if any(lacks_bfloat16(torch.device(devices[0]), precision) for precision in precisions):
        say(WITHOUT_BFLOAT16)


def phantoms(plan: Plan, folders: Mapping[str, Path], workers: int) -> None:
    """Write the synthetic data sets of a plan that are not there."""
    if plan.phantoms is None:
        return
    for name, folder in folders.items():
        if not folder.is_dir():
            say(f"writing {plan.phantoms.subjects[name]} phantoms of {name}")
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_phantoms(plan.phantoms, name, folder, workers)


def check_networks(bench: Bench) -> None:
    """Build every network once: its arguments fit, and brought weights are of that network."""
    seen = set()
    for run in bench.plan.runs():
        row = get_row(run.row)
        brought = bench.plan.brought.get(run.row)
        kind = (row.network, TASKS[run.task].kind, brought)
        if kind in seen:
            continue
        seen.add(kind)
        weights = None if brought is None else Path(brought)
        build_network(row, TASKS[run.task], bench.arguments(run), weights, 0)


def prepare(bench: Bench, pool: Pool, workers: int, part: Part) -> Outcome:
    """Bring training cases to the model grid, and cut the cubes for pre-trainings to do.

    Raises:
        ConfigError: If a case cannot be prepared; it is named.
    """
    jobs = []
    for name in filter(part.has_task, bench.plan.tasks):
        task, folder = TASKS[name], bench.prepared(name)
        folder.mkdir(parents=True, exist_ok=True)
        sides = bench.source(name).sides(task)
        cases = [*sides.train, *sides.validation]
        if task.unit == "candidates":
            cases += sides.test  # its candidates are cut on the model grid
        jobs += [
            PreparedCase(task, case, bench.plan.task_preprocessing(name), folder)
            for case in cases
            if not (folder / f"{case.id}.json").is_file()
        ]
    outcome = pool.run(jobs, _prepare, title="preparing")
    if outcome.failures:
        job, problem = next(iter(outcome.failures.items()))
        raise ConfigError(
            f"Expected every case on the model grid, got {len(outcome.failures)} failure(s), the "
            f"first {job.case.volume}: {problem.strip().splitlines()[-1]}"
        )
    if not outcome.exit_code:
        with stoppable():
            make_stores(part.pretrainings(bench), bench.sources, workers)
    return outcome


def _prepare(job: PreparedCase, device: str) -> None:
    del device  # resampling runs on a core
    prepare_case(job.task, job.case, job.preprocessing, job.folder)


def pretrain(bench: Bench, pool: Pool, part: Part) -> Outcome:
    """Do the pre-trainings that a part's runs and probes wait for, the longest first."""
    wanted = sorted(part.pretrainings(bench), key=lambda p: (-_length(p), p.name))
    mine = [p for p in part.of_shard(wanted) if not p.is_finished]
    outcome = pool.run(mine, run_pretraining, title="pre-training", expected=_length)
    names = {
        f"{row}-{task}" if get_row(row).by_task else row: pretraining
        for (row, task), pretraining in sorted(bench.pretrained.items())
    }
    record_pretrainings(bench.out, names)
    return outcome


def fine_tune(bench: Bench, pool: Pool, part: Part) -> Outcome:
    """Do the runs of a part that have no result yet, trial by trial."""
    runs = part.of_shard([run for run in bench.plan.runs() if part.has(run)])
    todo = [run for run in runs if not bench.is_finished(run)]
    if len(todo) < len(runs):
        say(f"{len(runs) - len(todo)} of {len(runs)} runs were done before")

    def failed(trial: Trial, problem: str) -> None:
        name = bench.name(trial.run)
        record = {"name": name, **_identity(trial.run), "error": problem}
        write_json(bench.out / "failed" / f"{name}.json", record)

    return pool.run(
        [Trial(bench, run) for run in todo],
        run_trial,
        title="runs",
        expected=lambda trial: _voxels(bench.plan, trial.run),
        on_failure=failed,
    )


def probe(bench: Bench, pool: Pool, part: Part) -> Outcome:
    """Ask the frozen encoders of a part, and cut the cubes that they are asked about before."""
    for row, pretraining in pretrained_rows(bench).items():
        if part.has_row(row) and not (pretraining.is_finished or Probe(bench, row).is_finished):
            say(f"no probes of {row}: its pre-training is not finished")
    wanted = [probe for probe in probes(bench) if part.has_row(probe.row) or not probe.pretraining]
    todo = [probe for probe in part.of_shard(wanted) if not probe.is_finished]

    def failed(probe: Probe, problem: str) -> None:
        record = {"name": probe.name, "row": probe.row, "error": problem}
        write_json(bench.out / "failed" / f"{probe.name}.json", record)

    missing = [cut for cut in cuts(bench) if not cut.file.is_file()] if todo else []
    outcome = pool.run(missing, cut_case, title="cutting")
    if outcome.failures:
        for probe in todo:
            failed(probe, next(iter(outcome.failures.values())))
    if outcome.failures or outcome.exit_code:
        return outcome
    return pool.run(todo, run_probe, title="probes", on_failure=failed)


def report(out: Path) -> None:
    """Write the report of what is there."""
    write_report(out)
    say(f"report: {out / 'report.html'}")


def describe_plan(bench: Bench) -> dict[str, Any]:
    """Return ``OUT/plan.json``: what the report must know of the plan."""
    plan = bench.plan
    return {
        "name": plan.name,
        "title": plan.title,
        "synthetic": bench.is_synthetic,
        "commit": commit(),
        "tables": {
            name: {
                "rows": list(table.rows),
                "tasks": list(table.tasks),
                "shares": list(table.shares),
                "noise_mm": list(table.noise),
                "trials": table.trials,
                "runs": [bench.name(run) for run in table.runs(plan.missing)],
            }
            for name, table in plan.tables.items()
        },
        "rows": {
            name: {
                "title": row.title,
                "network": row.network,
                "recipe": row.recipe,
                "note": UNAVAILABLE if name in plan.missing else "",
            }
            for name, row in ROWS.items()
        },
        "tasks": {
            name: {
                "title": TASKS[name].title,
                "metric": TASKS[name].metric,
                "subjects": _numbers(bench.source(name), TASKS[name]),
                "steps": plan.tasks[name].settings.steps,
                "cube": list(plan.tasks[name].settings.cube),
                "spacing_mm": plan.task_preprocessing(name).to_json()["spacing"],
            }
            for name in plan.tasks
        },
        "data": {name: source.sha256 for name, source in bench.sources.items()},
    }


def _numbers(source: Source, task: TargetTask) -> dict[str, int]:
    sides = source.sides(task)
    return {
        name: len({case.subject for case in getattr(sides, name)})
        for name in ("train", "validation", "test")
    }


def _identity(run: Run) -> dict[str, Any]:
    return {
        "row": run.row,
        "task": run.task,
        "trial": run.trial,
        "share": run.share,
        "noise": run.noise,
    }


def _voxels(plan: Plan, run: Run) -> float:
    """Return what a run trains on, in voxels: in proportion to its time, for the time left."""
    settings = plan.tasks[run.task].settings
    return float(settings.steps * settings.batch_size * math.prod(settings.cube))


def _length(pretraining: Pretraining) -> float:
    run = pretraining.recipe.run
    return float(run.steps * run.batch_size)


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    print(f"benchmark: {text}", file=sys.stderr, flush=True)
