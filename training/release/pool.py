"""Many runs in a few processes of one thread each; a run that fails does not stop the others."""

import concurrent.futures
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import torch

from training.release.cost import expected_seconds
from training.release.runs import Run, Setting, execute, known_result

ATTEMPTS = 2  # a run may be lost because another one killed the pool
SAY_EVERY = 30.0  # seconds between lines of progress


@dataclass
class Progress:
    """What is done, and how long the rest takes at the pace seen so far."""

    total: int
    expected: float  # seconds of one process, of all that is left at the start
    processes: int
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    done_expected: float = 0.0
    said: float = 0.0

    def advance(self, seconds: float, text: str) -> None:
        """Count a run that was expected to take ``seconds``; print a line now and then."""
        self.done += 1
        self.done_expected += seconds
        now = time.monotonic()
        if self.done < self.total and now - self.said < SAY_EVERY:
            return
        self.said = now
        say(f"{self.done} of {self.total} runs, {left(self.seconds_left(now))} left; {text}")

    def seconds_left(self, now: float) -> float:
        """Return the expected rest, in seconds of wall time."""
        pace = (now - self.started) / max(self.done_expected, 1e-9)
        return pace * max(0.0, self.expected - self.done_expected)


def run_all(
    runs: Sequence[Run],
    setting: Setting,
    *,
    processes: int,
    work: Callable[[Run, Setting], dict[str, Any]] = execute,
) -> tuple[dict[Run, dict[str, Any]], dict[Run, str]]:
    """Do all runs that were not done before.

    Args:
        runs: In the order in which they start, the long ones best first.
        setting: What they share.
        processes: At a time; 0 runs in this process.
        work: Does one run.

    Returns:
        Results, and for each run that failed its traceback.
    """
    results = {run: found for run in runs if (found := known_result(run, setting)) is not None}
    todo = [run for run in dict.fromkeys(runs) if run not in results]
    expected = {run: expected_seconds(run, setting) for run in todo}
    if results:
        say(f"{len(results)} of {len(set(runs))} runs were done before")
    progress = Progress(len(todo), sum(expected.values()), max(1, processes))
    failures: dict[Run, str] = {}

    def keep(run: Run, result: dict[str, Any], problem: str) -> None:
        if problem:
            failures[run] = problem
            say(f"failed: {run}: {problem.strip().splitlines()[-1]}")
        else:
            results[run] = result
        progress.advance(expected[run], f"last: {run}")

    if processes == 0:
        for run in todo:
            keep(run, *attempt(work, run, setting))
        return results, failures
    for _ in range(ATTEMPTS):
        left_over = [run for run in todo if run not in results and run not in failures]
        _in_pool(left_over, setting, processes, work, keep)
    for run in todo:
        if run not in results and run not in failures:
            failures[run] = "its process was ended from outside: was there enough memory?"
    return results, failures


def attempt(
    work: Callable[[Run, Setting], dict[str, Any]], run: Run, setting: Setting
) -> tuple[dict[str, Any], str]:
    """Do one run; return its result, or its traceback."""
    try:
        return work(run, setting), ""
    except Exception:
        return {}, traceback.format_exc(limit=8)


def _in_pool(
    runs: Sequence[Run],
    setting: Setting,
    processes: int,
    work: Callable[[Run, Setting], dict[str, Any]],
    keep: Callable[[Run, dict[str, Any], str], None],
) -> None:
    """Do runs in processes; those that a dying process takes along are left undone."""
    if not runs:
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        min(processes, len(runs)), context, torch.set_num_threads, (1,)
    )
    jobs = {}
    try:
        jobs = {pool.submit(attempt, work, run, setting): run for run in runs}
        for job in concurrent.futures.as_completed(jobs):
            try:
                keep(jobs[job], *job.result())
            except BrokenProcessPool:
                continue
    except BrokenProcessPool:
        pass  # broken while runs were still handed in
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def left(seconds: float) -> str:
    """Write a duration as people say it."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    print(f"release: {text}", file=sys.stderr, flush=True)
