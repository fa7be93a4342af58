"""Every table and figure of the paper, and probes of the frozen encoders, by one command.

    python -m training.benchmark --plan benchmark_mini -o OUT
    python -m training.benchmark --plan benchmark_paper -o OUT luna16=DIR lits2017=DIR \
        brats2018=DIR msd_heart=DIR mmwhs=DIR adni=DIR

The same command goes on where an interrupted one stopped; SIGTERM and Ctrl-C save first. ``--rows``
and ``--tasks`` do a part of it, which counts for the whole. Exit codes: 0 done; 2 the input is at
fault, and nothing was trained; 4 some runs failed, which the end lists and the next start tries
again; 130 and 143 signals.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from training.benchmark import stages
from training.benchmark.dry_run import describe
from training.benchmark.part import Part
from training.benchmark.plan import Plan, load_plan
from training.benchmark.pool import Outcome, open_pool, pick_devices
from training.benchmark.sources import corpus_folders
from training.metrics import runs_folder
from universal_model_hub.cli.stopping import Stopped, stoppable
from universal_model_hub.errors import ConfigError, UniversalModelError

STAGES = ("data", "pretraining", "runs", "probes", "report")
SOME_FAILED = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    options = _parser().parse_args(arguments)
    try:
        plan = load_plan(options.plan, options.set)
        work = options.work or runs_folder() / plan.name
        if options.dry_run:
            print(describe(plan, options.output))
            return 0
        if options.output is None:
            raise ConfigError("Expected --output FOLDER for the results, got none. Name one.")
        return run(plan, options, work)
    except Stopped as stopped:
        stages.say("stopped; the same command goes on from here")
        return 128 + signal.Signals[str(stopped)]
    except UniversalModelError as error:
        if options.debug:
            raise
        print(f"benchmark: error: {error}", file=sys.stderr)
        return error.exit_code


def run(plan: Plan, options: argparse.Namespace, work: Path) -> int:
    """Do the wanted stages; return the exit code."""
    devices = pick_devices(options.device, options.processes)
    wanted = options.only or STAGES
    part = Part(tuple(options.rows), tuple(options.tasks), options.shard)
    part.check(plan)
    if {"pretraining", "runs"} & set(wanted):
        stages.say_rounding(plan, devices)
    folders = corpus_folders(plan, options.folders, work)
    with stoppable():
        stages.phantoms(plan, folders, len(devices))
        bench = stages.open_bench(plan, folders, work, options.output)
    failures: dict[object, str] = {}
    with open_pool(devices) as pool:
        for stage in STAGES[:-1]:  # the report needs no pool
            if stage not in wanted:
                continue
            if stage == "data":
                outcome: Outcome = stages.prepare(bench, pool, len(devices), part)
            elif stage == "pretraining":
                outcome = stages.pretrain(bench, pool, part)
            elif stage == "runs":
                outcome = stages.fine_tune(bench, pool, part)
            else:
                outcome = stages.probe(bench, pool, part)
            failures |= outcome.failures
            if outcome.exit_code:
                stages.say("stopped; the same command goes on from here")
                return outcome.exit_code
    if "report" in wanted:
        stages.report(options.output)
    for job, problem in failures.items():
        stages.say(f"failed: {job}: {problem.strip().splitlines()[-1]}")
    if failures:
        stages.say(f"{len(failures)} failed; their logs lie in {options.output / 'logs'}")
    return SOME_FAILED if failures else 0


def shard_of(text: str) -> tuple[int, int]:
    """Read ``I/N`` with 1 <= I <= N."""
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, got {text!r}")
    return int(number), int(count)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="*", metavar="CORPUS=FOLDER")
    parser.add_argument("--plan", required=True, help="name in training/recipes, or a TOML file")
    parser.add_argument("--output", "-o", type=Path, help="folder of results, logs and report")
    parser.add_argument(
        "--work", type=Path, help="phantoms, cubes, models, checkpoints (default: $UMH_RUNS/NAME)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and only that")
    parser.add_argument("--only", nargs="+", choices=STAGES, help="these stages alone")
    parser.add_argument("--rows", nargs="+", default=[], help="the jobs of these rows alone")
    parser.add_argument("--tasks", nargs="+", default=[], help="the jobs of these tasks alone")
    parser.add_argument("--shard", type=shard_of, default=(1, 1), metavar="I/N", help="of an array")
    parser.add_argument("--processes", type=int, help="at a time (default: cores, or GPUs)")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
