"""The part of a benchmark that one command does; the plan, and with it every key, stays whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from training.benchmark.bench import Bench
from training.benchmark.plan import Plan, Run
from training.benchmark.pretraining import Pretraining
from training.benchmark.probing import Probe, pretrained_rows
from universal_model_hub.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Rows and tasks to do, and which share of the jobs in them."""

    rows: tuple[str, ...] = ()  # none named: all
    tasks: tuple[str, ...] = ()  # none named: all
    shard: tuple[int, int] = (1, 1)  # one job of an array, from 1, and how many there are

    def check(self, plan: Plan) -> None:
        """Raise ConfigError if the plan has no run of a named row or task."""
        runs = plan.runs()
        for what, given, known in (
            ("row", self.rows, dict.fromkeys(run.row for run in runs)),
            ("task", self.tasks, dict.fromkeys(run.task for run in runs)),
        ):
            for name in given:
                if name not in known:
                    raise ConfigError(
                        f"Expected a {what} that the plan {plan.name} trains, one of "
                        f"{', '.join(known)}; got {name}."
                    )

    def has(self, run: Run) -> bool:
        """Whether a run is of a wanted row and task."""
        return self.has_row(run.row) and self.has_task(run.task)

    def has_row(self, row: str) -> bool:
        """Whether a row is wanted."""
        return not self.rows or row in self.rows

    def has_task(self, task: str) -> bool:
        """Whether a task is wanted."""
        return not self.tasks or task in self.tasks

    def of_shard(self, jobs: Sequence[T]) -> list[T]:
        """Return every N-th job from the I-th on."""
        number, count = self.shard
        return list(jobs[number - 1 :: count])

    def pretrainings(self, bench: Bench) -> list[Pretraining]:
        """Return the pre-trainings that a wanted run or probe still waits for, each once.

        Raises:
            CheckpointError: If a result file is damaged.
        """
        needed = {
            (run.row, run.task)
            for run in bench.plan.runs()
            if self.has(run) and (run.row, run.task) in bench.pretrained
            if not bench.is_finished(run)
        }
        found = {pretraining.name: pretraining
                 for place, pretraining in bench.pretrained.items() if place in needed}  # fmt: skip
        for row, pretraining in pretrained_rows(bench).items():
            if self.has_row(row) and not Probe(bench, row).is_finished:
                found[pretraining.name] = pretraining
        return list(found.values())
