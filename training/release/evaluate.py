"""Do released weights help? Fine-tuned against scratch on packaged scans and phantoms.

    python -m training.release.evaluate --weights FOLDER... --output results/release.json
    python -m training.release.evaluate --develop --weights NAME=FOLDER --output GATE.json
    python -m training.release.evaluate --dry-run --weights FOLDER...

The develop tasks choose recipes and read no test scan. Without ``--develop`` the test scans are
read: once, at the end. Finished runs are kept, so the same command goes on where it stopped.
"""

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.metrics import commit, runs_folder
from training.release.arms import find_arms
from training.release.data import prepare_task
from training.release.earlier import check_alike, joined, read_earlier
from training.release.page import write_report
from training.release.plan import chosen_rates, describe, frozen_runs, test_runs, tuning_runs
from training.release.pool import left, run_all, say
from training.release.probes import probe_cubes
from training.release.runs import (
    PROBE_SEEDS,
    PROBE_SUBJECTS,
    Run,
    Setting,
    known_result,
    probe_file,
)
from training.release.summary import summary
from training.release.tasks import TASKS_FILE, Mode, Tasks, read_tasks
from universal_model_hub.devices import lacks_bfloat16, torch_device
from universal_model_hub.errors import ConfigError, UniversalModelError
from universal_model_hub.fit.training.engine import DTYPES, WITHOUT_BFLOAT16
from universal_model_hub.fit.training.hardware import hardware

TRANSFERS = {"full": ("full",), "encoder": ("encoder",), "both": ("full", "encoder")}


def evaluate(setting: Setting, transfers: tuple[str, ...], *, processes: int) -> dict[str, Any]:
    """Prepare the data, do all runs and sum them up.

    Raises:
        ConfigError: If a scan's role forbids its use, or its labels do not fit.
    """
    started = time.monotonic()
    for task in setting.tasks.of(setting.mode):
        data = prepare_task(task, setting.root)
        say(f"{task.name}: {len(data.train)} training and {len(data.test)} test cases are there")
    seed = PROBE_SEEDS[setting.mode]
    probe_cubes(probe_file(setting), seed=seed, subjects=PROBE_SUBJECTS)
    first = [*tuning_runs(setting, transfers), *frozen_runs(setting, transfers)]
    say_rounding(first, setting)
    results, failures = run_all(first, setting, processes=processes)
    rates = chosen_rates(results, setting, transfers)
    then = test_runs(setting, transfers, rates)
    compared, failed = run_all(then, setting, processes=processes)
    results, failures = {**results, **compared}, {**failures, **failed}
    say(f"all runs ended after {left(time.monotonic() - started)}; {len(failures)} failed")
    return {
        "mode": setting.mode,
        "runs": len(results),
        "runs_on": dict(Counter(result.get("hardware", "unknown") for result in results.values())),
        "process_hours": sum(result["total_seconds"] for result in results.values()) / 3600,
        "weights": weights_of(setting),
        **summary(setting, results, transfers, rates),
        "failures": [failure(run, problem) for run, problem in failures.items()],
    }


def weights_of(setting: Setting) -> list[dict[str, Any]]:
    """Return what a report says of the weights that it compares."""
    return [
        {"name": arm.name, "sha256": arm.sha256, "sibling": arm.sibling}
        for arm in setting.arms.weights
    ]


def say_rounding(runs: Sequence[Run], setting: Setting) -> None:
    """Say so where fits in bfloat16 take longer: on a processor without it."""
    fits = [run for run in runs if run.kind == "fit" and known_result(run, setting) is None]
    if fits and lacks_bfloat16(torch.device(setting.device), setting.mode_settings.precision):
        say(WITHOUT_BFLOAT16)


def failure(run: Run, problem: str) -> dict[str, str]:
    """Return what the report says of a failed run: the last line of its traceback."""
    return {"run": str(run), "problem": problem.strip().splitlines()[-1]}


def facts(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what is recorded beside the numbers."""
    return {
        "command": "python -m training.release.evaluate " + shlex.join(_public(arguments)),
        "commit": commit(),
        "hardware": hardware(torch.device(options.device)) | {"threads": 1},
        "processes": options.processes,
        "transfer": options.transfer,
    }


def chosen_tasks(tasks: Tasks, names: Sequence[str], mode: Mode, precision: str | None) -> Tasks:
    """Keep the named tasks of a mode, where no name keeps all; set the precision if one is given.

    Raises:
        ConfigError: If the mode has no task of a name.
    """
    known = [task.name for task in tasks.tasks.values() if task.mode == mode]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"Expected tasks of {', '.join(known)}, got {', '.join(unknown)}.")
    kept: Mapping[str, Any] = {
        name: task for name, task in tasks.tasks.items() if not names or name in names
    }
    if precision is None:
        return Tasks(tasks.modes, kept)
    return Tasks({**tasks.modes, mode: replace(tasks.modes[mode], precision=precision)}, kept)


def run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Do what the command line asks for; return the exit code."""
    mode: Mode = "develop" if options.develop else "final"
    setting = Setting(
        mode=mode,
        tasks=chosen_tasks(read_tasks(options.tasks_file), options.tasks, mode, options.precision),
        arms=find_arms(options.weights, options.siblings),
        root=options.work.resolve(),
        kept=options.runs and options.runs.resolve(),
        device=str(torch_device(options.device)),
    )
    transfers = TRANSFERS[options.transfer or ("both" if options.develop else "full")]
    print(describe(setting, transfers, max(1, options.processes)), file=sys.stderr)
    if options.dry_run:
        return 0
    if options.output is None:
        raise ConfigError("Expected --output, the JSON file to write. Or pass --dry-run.")
    earlier = read_earlier(options.output) if options.keep else None
    if earlier is not None:
        check_alike({"mode": mode, "weights": weights_of(setting)}, earlier)
    torch.set_num_threads(1)
    result = evaluate(setting, transfers, processes=options.processes)
    report = {**facts(options, arguments), **result}
    if earlier is not None:
        report = joined(report, earlier)
    for path in write_report(report, options.output):
        print(path)
    return 2 if result["failures"] else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m training.release.evaluate")
    parser.add_argument(
        "--weights", nargs="+", required=True, metavar="[NAME=]FOLDER", help="released weights"
    )
    parser.add_argument(
        "--siblings", nargs="+", default=[], metavar="[NAME=]FOLDER", help="of the ablation"
    )
    parser.add_argument("--output", "-o", type=Path, help="JSON; .md and .png beside")
    parser.add_argument("--develop", action="store_true", help="choose recipes; no test scan")
    parser.add_argument("--transfer", choices=sorted(TRANSFERS), help="develop: both; else full")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="only these")
    parser.add_argument("--keep", action="store_true", help="--output's other tasks, done before")
    parser.add_argument("--tasks-file", type=Path, default=TASKS_FILE)
    parser.add_argument("--processes", type=int, default=2, help="at a time, one thread each")
    parser.add_argument("--device", default="cpu", help="of fine-tuning: cpu or cuda")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="of it; else the tasks file's")
    parser.add_argument("--work", type=Path, default=runs_folder() / "release")
    parser.add_argument("--runs", type=Path, help="results of single runs (default: WORK/runs)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its time only")
    options = parser.parse_args(given)
    try:
        return run(options, given)
    except UniversalModelError as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return error.exit_code


def _public(arguments: Sequence[str]) -> list[str]:
    """Leave the folders of this machine out of a command: their last names are enough."""
    return [
        "=".join(part if "/" not in part else f".../{Path(part).name}" for part in a.split("="))
        if Path(a.rpartition("=")[2]).is_absolute()
        else a
        for a in arguments
    ]


if __name__ == "__main__":
    sys.exit(main())
