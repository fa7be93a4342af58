"""Runs the jobs of a plan: of several, a bad one is reported and the others go on."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from universal_model_hub.cli import messages
from universal_model_hub.cli.planning import Job, Plan
from universal_model_hub.errors import ConfigError


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    job: Job
    status: Literal["done", "skipped", "failed"]
    error: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record that ``--json`` prints."""
        record = {
            "input": str(self.job.source),
            "output": str(self.job.output),
            "status": self.status,
        }
        return record | ({"error": self.error} if self.error else {}) | dict(self.details)


def run_plan(
    plan: Plan, args: argparse.Namespace, work: Callable[[Job], Mapping[str, Any]]
) -> list[Outcome]:
    """Do every job of a plan.

    Args:
        plan: What is to be made from what.
        args: Of the command line.
        work: Makes one output and returns what ``--json`` shows of it.

    Returns:
        One outcome a job, in the order of the inputs' names.

    Raises:
        UniversalModelError: If the only job of a plan without a folder fails.
        ConfigError: If the output folder cannot be made.
    """
    if plan.folder is None:
        (job,) = plan.jobs
        outcomes = [Outcome(job, "done", details=work(job))]
        if not args.quiet:
            messages.say(f"wrote {job.output}")
        return outcomes
    try:
        plan.folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Expected to make the folder {plan.folder}, got {error.strerror}. Choose another."
        ) from error
    outcomes = [Outcome(job, "skipped") for job in plan.done]
    for number, job in enumerate(plan.jobs, start=1):
        if not args.quiet:
            messages.say(f"[{number}/{len(plan.jobs)}] {job.source}")
        outcomes.append(_attempt(job, work, debug=args.debug))
    return sorted(outcomes, key=lambda outcome: outcome.job.output.name)


def shows_progress(plan: Plan, args: argparse.Namespace) -> bool:
    """Whether a bar within one scan helps: for a single scan, on a terminal."""
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    return plan.folder is None and on_terminal and not args.quiet


def _attempt(job: Job, work: Callable[[Job], Mapping[str, Any]], *, debug: bool) -> Outcome:
    try:
        return Outcome(job, "done", details=work(job))
    except Exception as error:  # a bug that one scan shows must not cost the others
        if debug:
            messages.write(messages.redacted(traceback.format_exc()))
        text = messages.one_line(messages.redacted(messages.describe(error, debug=debug)))
        messages.error(f"{job.source}: {text}")
        return Outcome(job, "failed", error=text)


def finish(plan: Plan, outcomes: list[Outcome], args: argparse.Namespace) -> int:
    """Print records and a summary; return the exit code: 2 if any job failed."""
    if args.json:
        records = [outcome.to_json() for outcome in outcomes]
        print(json.dumps(records[0] if plan.folder is None else records, indent=2))
    statuses = [outcome.status for outcome in outcomes]
    failed = statuses.count("failed")
    if plan.folder is not None and (failed or not args.quiet):
        skipped = statuses.count("skipped")
        note = " (made earlier; --force makes them again)" if skipped else ""
        messages.say(
            f"{plan.folder}: {statuses.count('done')} done, {failed} failed, {skipped} skipped"
            + note
        )
    return 2 if failed else 0
