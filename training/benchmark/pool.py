"""Many jobs in a few processes of one thread each; a job that fails does not stop the others.

A worker is a fresh process with a device of its own. SIGINT and SIGTERM reach the parent alone, for
workers are sessions of their own: it hands out nothing more and passes the signal on, so that each
running job saves and ends.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tqdm import tqdm

from training.release.pool import left
from universal_model_hub.fit.training.engine import StopRequest, stop_on_signals

KILLED = "its process was ended from outside: was there enough memory?"


class Stopped(Exception):
    """A job ended early because a signal asked for it; it can go on."""


@dataclass
class Outcome:
    """What became of jobs."""

    done: int = 0
    failures: dict[Any, str] = field(default_factory=dict)  # job: traceback, or why there is none
    exit_code: int = 0  # 128 plus the signal's number if one came


@dataclass
class Worker:
    """One process, and what it is busy with."""

    process: BaseProcess
    connection: Connection
    device: str
    job: Any = None


class Pool:
    """Processes that do jobs; one pool serves every stage of a benchmark."""

    def __init__(self, devices: Sequence[str], stop: StopRequest) -> None:
        self.stop = stop
        self.context = multiprocessing.get_context("spawn")
        self.devices = list(devices)  # one a worker
        self.workers: list[Worker] = []

    def run(
        self,
        jobs: Sequence[Any],
        work: Callable[[Any, str], None],
        *,
        title: str,
        expected: Callable[[Any], float] = lambda job: 1.0,
        on_failure: Callable[[Any, str], None] = lambda job, problem: None,
    ) -> Outcome:
        """Do all jobs, in their order.

        Args:
            jobs: Values that can be pickled and hashed.
            work: Does one job on a device, in a worker; what it raises is a failure.
            title: Of the progress bar.
            expected: Seconds of a job, or anything in proportion, for the time left.
            on_failure: Called in this process with the job and its traceback.
        """
        outcome = Outcome(exit_code=self.stop.exit_code)
        if outcome.exit_code:
            return outcome
        queue, total = deque(jobs), sum(expected(job) for job in jobs)
        started, finished = time.monotonic(), 0.0
        with tqdm(total=len(jobs), desc=title, unit="job", disable=not jobs) as bar:
            told = False
            self._assign(queue, work)
            while busy := [worker for worker in self.workers if worker.job is not None]:
                if self.stop.signal is not None and not told:
                    told = True
                    queue.clear()
                    for worker in busy:
                        os.kill(worker.process.pid or 0, signal.SIGTERM)
                for ready in wait([worker.connection for worker in busy], timeout=0.2):
                    worker = next(worker for worker in busy if worker.connection is ready)
                    job, problem = worker.job, self._collect(worker)
                    if self.stop.signal is not None and problem is not None:
                        continue
                    if problem is not None:
                        outcome.failures[job] = problem
                        on_failure(job, problem)
                        bar.write(f"failed: {job}: {problem.strip().splitlines()[-1]}", sys.stderr)
                    outcome.done += problem is None
                    finished += expected(job)
                    bar.update()
                    pace = (time.monotonic() - started) / max(finished, 1e-9)
                    bar.set_postfix_str(f"{left(pace * max(0.0, total - finished))} left")
                self._assign(queue, work)
        outcome.exit_code = self.stop.exit_code
        return outcome

    def _assign(self, queue: deque[Any], work: Callable[[Any, str], None]) -> None:
        """Give every idle worker a job, starting workers as long as there are jobs for them."""
        while queue:
            worker = next((worker for worker in self.workers if worker.job is None), None)
            if worker is None:
                if len(self.workers) == len(self.devices):
                    return
                worker = self._start()
            worker.job = queue.popleft()
            worker.connection.send((work, worker.job))

    def _start(self) -> Worker:
        taken = [worker.device for worker in self.workers]
        free = list(self.devices)
        for device in taken:
            free.remove(device)
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(theirs, free[0]))
        process.start()
        theirs.close()
        worker = Worker(process, ours, free[0])
        self.workers.append(worker)
        return worker

    def _collect(self, worker: Worker) -> str | None:
        """Return what went wrong with a worker's job, or None; a dead worker leaves the pool."""
        try:
            problem: str | None = worker.connection.recv()
            worker.job = None
        except (EOFError, OSError):
            worker.process.join()
            self.workers.remove(worker)
            problem = KILLED
        return problem

    def close(self) -> None:
        """Let the workers end, those that are still busy at once."""
        for worker in self.workers:
            worker.connection.close()
            if worker.job is not None:
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join()
        self.workers.clear()


@contextlib.contextmanager
def open_pool(devices: Sequence[str]) -> Iterator[Pool]:
    """Open a pool with a worker a device, which catches SIGINT and SIGTERM while it is open."""
    with stop_on_signals() as stop:
        pool = Pool(devices, stop)
        try:
            yield pool
        finally:
            pool.close()


def serve(connection: Connection, device: str) -> None:
    """Do jobs until the other end is closed: the life of a worker."""
    import torch

    os.setsid()  # Ctrl-C in a terminal is for the parent
    torch.set_num_threads(1)
    while True:
        try:
            work, job = connection.recv()
        except EOFError:
            return
        problem = None
        try:
            work(job, device)
        except Exception:
            problem = traceback.format_exc(limit=12)
        try:
            connection.send(problem)
        except OSError:  # the parent is gone
            return


def pick_devices(device: str, processes: int | None) -> list[str]:
    """Return the device of each worker: CPU cores, or GPUs in turn.

    Args:
        device: ``cpu``, ``cuda`` or ``auto``.
        processes: Workers; None takes one a core or a GPU.
    """
    import torch

    gpus = torch.cuda.device_count() if device in ("cuda", "auto") else 0
    if device == "cuda" or (device == "auto" and gpus):
        return [f"cuda:{number % max(1, gpus)}" for number in range(processes or max(1, gpus))]
    return ["cpu"] * (processes or os.cpu_count() or 1)
