"""Which runs an evaluation consists of: rates first, then the runs that are compared."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from training.release.arms import HAND, Arm
from training.release.cost import expected_seconds
from training.release.pool import left
from training.release.runs import Run, Setting
from training.release.tasks import Task

FIRST_TUNING_SEED = 1000  # tuning runs are nobody's pair
STRUCTURE_CLASSES = 3  # tasks with fewer ask no probe for a structure
PROBE_SEEDS = 3  # of random networks and of drawn voxels


class Cell(NamedTuple):
    """Runs that differ in their seed alone."""

    task: str
    share: int
    arm: str
    transfer: str


Rates = Mapping[Cell, float]  # of the cell whose share the rate was chosen at


def cells(setting: Setting, transfers: tuple[str, ...]) -> list[Cell]:
    """List what is fine-tuned: every task, share and arm; siblings on few tasks at all labels."""
    found = []
    for task in setting.tasks.of(setting.mode):
        for share in task.shares:
            for arm in (*setting.arms.scratch, *setting.arms.weights):
                if arm.sibling and not (task.siblings and share == max(task.shares)):
                    continue
                found += [Cell(task.name, share, arm.name, t) for t in ways(arm, transfers)]
    return found


def ways(arm: Arm, transfers: tuple[str, ...]) -> tuple[str, ...]:
    """Return what of an arm is transferred: of scratch nothing, which is called full."""
    if arm.weights is None:
        return ("full",)
    return transfers if arm.has_decoder else ("encoder",)


def tuned_cell(cell: Cell, setting: Setting) -> Cell:
    """Return the cell whose labels choose this one's rate: never more than its own."""
    return cell._replace(share=setting.mode_settings.tuned_at[cell.share])


def tuning_runs(setting: Setting, transfers: tuple[str, ...]) -> list[Run]:
    """List the runs that choose the learning rates, all of them scored on the way."""
    settings = setting.mode_settings
    tuned = dict.fromkeys(tuned_cell(cell, setting) for cell in cells(setting, transfers))
    return [
        Run(
            kind="fit",
            part="tuning",
            seed=FIRST_TUNING_SEED + number,
            rate=rate,
            curve=True,
            **cell._asdict(),
        )
        for number in range(settings.tuning_seeds)
        for cell in tuned
        for rate in settings.rates
    ]


def chosen_rates(
    results: Mapping[Run, Mapping[str, Any]], setting: Setting, transfers: tuple[str, ...]
) -> dict[Cell, float]:
    """Return the rate with the best mean score on kept-back labels, cell by cell.

    A cell of which every run failed has none, and is left out of what follows.
    """
    scores: dict[Cell, dict[float, list[float]]] = {}
    for run in tuning_runs(setting, transfers):
        if run in results:
            cell = Cell(run.task, run.share, run.arm, run.transfer)
            by_rate = scores.setdefault(cell, {})
            by_rate.setdefault(run.rate, []).append(results[run]["dice"])
    return {
        cell: max(by_rate, key=lambda rate: float(np.mean(by_rate[rate])))
        for cell, by_rate in scores.items()
    }


def test_runs(setting: Setting, transfers: tuple[str, ...], rates: Rates) -> list[Run]:
    """List the runs that are compared; of one seed all arms see the same cubes."""
    return [
        run
        for cell in cells(setting, transfers)
        if (rate := rates.get(tuned_cell(cell, setting))) is not None
        for run in runs_of(cell, rate, setting)
    ]


test_runs.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


def runs_of(cell: Cell, rate: float, setting: Setting) -> Iterator[Run]:
    """Yield the runs of a cell, one for each seed."""
    settings = setting.mode_settings
    count = setting.tasks.tasks[cell.task].seeds_of(cell.share, settings)
    if setting.arm(cell.arm).sibling:
        count = min(count, settings.sibling_seeds)
    for seed in range(count):
        curve = cell.share == settings.curve_share and seed < settings.curve_seeds
        yield Run(kind="fit", seed=seed, rate=rate, curve=curve, **cell._asdict())


def frozen_runs(setting: Setting, transfers: tuple[str, ...]) -> list[Run]:
    """List the probes of frozen features: of the weights, of random networks, hand-made."""
    settings = setting.mode_settings
    arms = [arm for arm in (*setting.arms.weights, *setting.arms.scratch) if not arm.sibling]
    sides = [(arm, way) for arm in arms for way in _frozen_ways(arm, transfers)]
    sides.append((Arm(HAND), "encoder"))
    runs = []
    for arm, way in sides:
        own: dict[str, Any] = {"arm": arm.name, "transfer": way}
        for task in setting.tasks.of(setting.mode):
            for share in task.shares:
                runs += [
                    Run(kind="ridge", task=task.name, share=share, seed=seed, **own)
                    for seed in range(settings.frozen_seeds)
                ]
            if has_structures(task):
                runs += [
                    Run(kind="structure", task=task.name, seed=seed, **own)
                    for seed in range(PROBE_SEEDS)
                ]
        drawn = PROBE_SEEDS if arm.weights is None and arm.name != HAND else 1
        runs += [Run(kind="cubes", seed=seed, **own) for seed in range(drawn)]
    return runs


def has_structures(task: Task) -> bool:
    """Whether a probe is asked for the task's structures: those of real scans."""
    return len(task.classes) >= STRUCTURE_CLASSES and not task.is_phantom


def _frozen_ways(arm: Arm, transfers: tuple[str, ...]) -> tuple[str, ...]:
    """Return which maps are probed; of a random network the same as of the weights."""
    if arm.weights is None:
        return transfers
    return ways(arm, transfers)


def describe(setting: Setting, transfers: tuple[str, ...], processes: int) -> str:
    """Write the plan with its expected time; no scan is read for it."""
    placeholder = {
        tuned_cell(cell, setting): setting.mode_settings.rates[0]
        for cell in cells(setting, transfers)
    }
    parts = {
        "to choose learning rates": tuning_runs(setting, transfers),
        "compared": test_runs(setting, transfers, placeholder),
        "of frozen features": frozen_runs(setting, transfers),
    }
    lines = [f"{setting.mode} evaluation, {processes} processes of one thread each:"]
    total = 0.0
    for title, runs in parts.items():
        seconds = sum(expected_seconds(run, setting) for run in runs)
        total += seconds
        lines.append(f"  {len(runs):4d} runs {title}: {left(seconds / processes)}")
        for task in setting.tasks.of(setting.mode):
            own = [run for run in runs if run.task == task.name]
            needed = sum(expected_seconds(run, setting) for run in own) / processes
            lines.append(f"         {len(own):4d} of {task.name}: {left(needed)}")
    lines.append(f"  in all about {left(total / processes)}, less what was done before")
    return "\n".join(lines)
