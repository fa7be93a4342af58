"""What a benchmark would do, before it does it: runs, pre-trainings, hours, disk.

Nothing is read but the plan and finished results. Hours come from finished runs of the same
network, task and length where there are such, else from a short timing of each network on this
machine; those of a GPU from counted multiply-adds and the assumptions of ``training.estimate``.
"""

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from training.benchmark.plan import Plan, Run
from training.benchmark.rows import UNAVAILABLE, build_network, get_row
from training.benchmark.spent import finished_hours, finished_seconds
from training.benchmark.tasks import TASKS
from training.config import Recipe
from training.corpora import get_corpus
from training.corpora.paper import SPLIT_SIZES
from training.corpora.phantom.scan_files import FRAMES
from training.estimate import PAPER_WIDTH, Assumptions, cpu_tflops, read_cost
from training.plan import columns, duration, size
from training.publish import recipe_sha256
from training.workload import counted, cubes_seen, network_of, store_bytes
from universal_model_hub.fit.training.engine import autocast
from universal_model_hub.fit.training.settings import FinetuneSettings

TIMED_CUBE, TIMED_BATCH = (32, 32, 32), 2  # voxels, and cubes at most, of the short timing
TIMED_STEPS = 5
BACKWARD = 3.0  # forward and backward, in forward passes
# Validation and test beside the steps: in scans, which are not read here. Assumed.
BESIDE_STEPS = 1.3
BYTES_PER_VOXEL = 3  # of a prepared case: an image in half precision and labels
VOLUMES = {"brats2018": 4}  # a subject has, where it is not one
RESULT_BYTES, BYTES_PER_ROW = 30_000, 170  # of a result file, and of a test case in it
LUNA_CANDIDATES = 754_975  # rows of candidates_V2.csv; Source: LUNA16
PHANTOM_CANDIDATES = 18  # of each scan, the test's alone


@dataclass(frozen=True)
class Costs:
    """Seconds of a run on one core and on a GPU, by network and task."""

    core: Mapping[tuple[str, str], float]
    gpu: Mapping[tuple[str, str], float]
    notes: tuple[str, ...]


def describe(plan: Plan, out: Path | None) -> str:
    """Return the plan of a benchmark as text.

    Args:
        plan: What is planned.
        out: Folder of results, whose finished runs give the seconds; None for none.
    """
    found = finished_seconds(out) if out is not None else {}
    hours = finished_hours(out) if out is not None else {}
    costs = run_costs(plan, found)
    runs = plan.runs()
    trained = pretraining_recipes(plan)
    missing = missing_lines(plan)
    sections = [
        [f"Plan of {plan.name}: {plan.title} Nothing is started."],
        ["Runs", *columns(table_rows(plan))],
        *([["Not run", *missing]] if missing else []),
        ["Pre-trainings", *columns(pretraining_rows(trained))],
        ["Hours (estimate)", *hour_lines(runs, trained, costs, hours)],
        ["Disk (estimate)", *disk_lines(plan, trained)],
    ]
    return "\n\n".join("\n".join(section) for section in sections)


def table_rows(plan: Plan) -> list[list[str]]:
    """Count the runs of each table, and those that no table above has."""
    rows = [["table", "", "rows", "tasks", "runs", "new"]]
    seen: set[Run] = set()
    for name, table in plan.tables.items():
        runs = set(table.runs(plan.missing))
        number = str(len({run.row for run in runs}))
        rows.append(
            [name, "", number, str(len(table.tasks)), str(len(runs)), str(len(runs - seen))]
        )
        seen |= runs
    return [*rows, ["all", "", "", "", "", str(len(seen))]]


def missing_lines(plan: Plan) -> list[str]:
    """Name the rows without weights that a table asks for."""
    asked = {row for table in plan.tables.values() for row in table.rows}
    return [f"  {row}: {UNAVAILABLE}" for row in sorted(asked & plan.missing)]


def pretraining_recipes(plan: Plan) -> list[tuple[str, Recipe]]:
    """List the recipe of every pre-training once, with what it is for."""
    found: dict[str, tuple[str, Recipe]] = {}
    for run in plan.runs():
        recipe = plan.recipe(run.row, run.task)
        if recipe is not None:
            found.setdefault(recipe.name, (run.row, recipe))
    return [found[name] for name in sorted(found)]


def pretraining_rows(trained: list[tuple[str, Recipe]]) -> list[list[str]]:
    """Return steps and cubes of every pre-training."""
    rows = [["recipe", "row", "steps", "cubes seen", "TFLOP"]]
    for row, recipe in trained:
        rows.append(
            [recipe.name, row, f"{recipe.run.steps:,}", f"{cubes_seen(recipe):,}",
             f"{recipe_tflop(recipe):,.0f}"]
        )  # fmt: skip
    return rows


def recipe_tflop(recipe: Recipe) -> float:
    """Return the operations of a pre-training, in 1e12."""
    return 2 * network_of(recipe).training_gmac / 1000 * cubes_seen(recipe)


def hour_lines(
    runs: list[Run],
    trained: list[tuple[str, Recipe]],
    costs: Costs,
    hours: Mapping[str, float],
) -> list[str]:
    """Return core hours and GPU hours by task, of pre-training, and in all.

    Args:
        runs: What is planned.
        trained: Each pre-training's row and recipe.
        costs: Of the runs.
        hours: Of finished pre-trainings, by the hash of the recipe.
    """
    cost = read_cost()
    given = Assumptions(**cost["estimates"]["assumptions"])
    by_task: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for run in runs:
        key = (get_row(run.row).network, run.task)
        row = by_task[run.task]
        for place, value in enumerate((1.0, costs.core[key], costs.gpu[key])):
            row[place] += value
    core = gpu = 0.0
    for _, recipe in trained:
        tflop = recipe_tflop(recipe)
        known = hours.get(recipe_sha256(recipe))
        estimated = tflop / cpu_tflops(recipe.model.width, cost["measured"])
        core += estimated if known is None else 3600 * known
        gpu += tflop / gpu_tflops(recipe.model.width, given)
    by_task["pre-training"] = [float(len(trained)), core, gpu]
    total = [sum(row[place] for row in by_task.values()) for place in range(3)]
    rows = [["task", "", "runs", "core hours here", "GPU hours"]]
    for name, (count, seconds, on_gpu) in [*by_task.items(), ("all", total)]:
        rows.append([name, "", f"{count:,.0f}", f"{seconds / 3600:,.1f}", f"{on_gpu / 3600:,.1f}"])
    measured = sum(recipe_sha256(recipe) in hours for _, recipe in trained)
    ways = ", ".join(f"{n}: {duration(total[1] / 3600 / n)}" for n in (1, 2, 8))
    return [
        *columns(rows),
        f"  by processes on cores like this one: {ways}",
        *(f"  {note}" for note in costs.notes),
        f"  GPU: {given.notes()[0]}",
        f"  pre-training here: hours of {measured} that are done, of {len(trained) - measured} "
        "operations over the rate in results/training_cost.json",
    ]


def gpu_tflops(width: int, given: Assumptions) -> float:
    """Return the rate that is assumed of the GPU for a network of a width."""
    narrow = given.gpu_narrow_tflops
    return narrow if narrow and width < PAPER_WIDTH else given.gpu_tflops


def run_costs(plan: Plan, found: Mapping[tuple[str, str, int], float]) -> Costs:
    """Return the seconds of a run of each network and task."""
    given = Assumptions(**read_cost()["estimates"]["assumptions"])
    core: dict[tuple[str, str], float] = {}
    gpu: dict[tuple[str, str], float] = {}
    rates: dict[str, float] = {}
    measured = 0
    for run in plan.runs():
        network = get_row(run.row).network
        key, settings = (network, run.task), plan.tasks[run.task].settings
        if key in core:
            continue
        tflop = run_tflop(plan, run)
        width = int(plan.networks.get("unet3d", {}).get("width", PAPER_WIDTH))
        gpu[key] = BESIDE_STEPS * tflop / gpu_tflops(width, given)
        known = found.get((*key, settings.steps))
        if known is not None:
            core[key], measured = known, measured + 1
            continue
        if network not in rates:
            rates[network] = timed_tflops(fresh_network(plan, run), plan.settings(run))
        core[key] = BESIDE_STEPS * tflop / rates[network]
    timed = ", ".join(f"{name} {1000 * rate:.0f}" for name, rate in rates.items())
    notes = [f"{measured} of {len(core)} pairs of network and task: seconds of finished runs"]
    if rates:
        notes.append(
            f"the others: a short timing of one core just now (GFLOP/s: {timed}), and "
            f"{BESIDE_STEPS - 1:.0%} for validation and test, assumed; other work on this machine "
            "counts in"
        )
    return Costs(core, gpu, tuple(notes))


def run_tflop(plan: Plan, run: Run) -> float:
    """Return the operations of a run's steps, in 1e12."""
    settings = plan.tasks[run.task].settings
    model = fresh_network(plan, run).to("meta")
    with torch.no_grad():
        _, gmac = counted(lambda: model(torch.empty(1, 1, *settings.cube, device="meta")))
    return 2 * BACKWARD * gmac / 1000 * settings.steps * settings.batch_size


def fresh_network(plan: Plan, run: Run) -> nn.Module:
    """Return a run's network without weights, in eval mode."""
    row = get_row(run.row)
    arguments = plan.networks.get(row.network, {})
    return build_network(row, TASKS[run.task], arguments, None, 0).train(False)


def timed_tflops(model: nn.Module, settings: FinetuneSettings) -> float:
    """Time a few steps of a network on a few small cubes and one core; return 1e12 operations/s.

    Args:
        model: In eval mode, so that one cube will do.
        settings: How it trains: in batches of no more cubes than that, and in that precision,
            but in float32 where it is float16, which a CPU does not train in.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place: Any = model
    model = place.to(memory_format=torch.channels_last_3d)  # as fine-tuning has it
    cubes = torch.rand(min(TIMED_BATCH, settings.batch_size), 1, *TIMED_CUBE)
    x = cubes.contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        _, gmac = counted(lambda: model(x))
    precision = "float32" if settings.precision == "float16" else settings.precision
    seconds = []
    try:
        for _ in range(1 + TIMED_STEPS):
            started = time.perf_counter()
            _step(model, x, precision)
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return 2 * BACKWARD * gmac / 1000 / median(seconds[1:])


def _step(model: nn.Module, x: Tensor, precision: str) -> None:
    model.zero_grad(set_to_none=True)
    with autocast(x.device, precision):
        y = model(x)
    y.float().square().mean().backward()


def disk_lines(plan: Plan, trained: list[tuple[str, Recipe]]) -> list[str]:
    """Return the sizes of what a benchmark writes, from fields of view and numbers of subjects."""
    stores: dict[str, float] = {}
    for _, recipe in trained:
        cubes = sum(
            subjects_of(plan, corpus, modality)
            * VOLUMES.get(corpus, 1)
            * sum(recipe.cubes.counts.get(corpus, recipe.cubes.default_counts))
            for corpus in recipe.corpora
            for modality in get_corpus(corpus).modalities
            if modality in recipe.modalities
        )
        shared = recipe.name if "-" in recipe.name else str(recipe.cubes)
        stores[shared] = max(stores.get(shared, 0.0), store_bytes(cubes, recipe))
    prepared = 0.0
    for name in plan.tasks:
        task, spacing = TASKS[name], plan.task_preprocessing(name).spacing
        frame = FRAMES[_frame(task.corpus, task.modality)]
        step = spacing or frame.real
        voxels = math.prod(f / s for f, s in zip(frame.field_mm, step, strict=True))
        count = subjects_of(plan, task.corpus, task.modality)
        prepared += voxels * BYTES_PER_VOXEL * count
    return columns(
        [
            ["cubes for pre-training", size(sum(stores.values()))],
            ["training cases on the grids of the tasks", size(prepared)],
            ["results and logs", size(sum(result_bytes(plan, run) for run in plan.runs()))],
        ]
    )


def result_bytes(plan: Plan, run: Run) -> int:
    """Return about how large a result is: lnc lists every candidate of the test."""
    if run.task != "lnc":
        return RESULT_BYTES
    sizes = SPLIT_SIZES["luna16"][""]
    scans = sizes.train + sizes.test
    if plan.phantoms is not None:
        return RESULT_BYTES + PHANTOM_CANDIDATES * BYTES_PER_ROW * plan.phantoms.subjects["luna16"]
    return RESULT_BYTES + round(sizes.test / scans * LUNA_CANDIDATES) * BYTES_PER_ROW


def subjects_of(plan: Plan, corpus: str, modality: str) -> int:
    """Return how many subjects of a data set train, and of LUNA16 all: its test is prepared too."""
    sizes = SPLIT_SIZES[corpus]
    groups = [sizes[modality]] if modality in sizes else list(sizes.values())
    train, test = (sum(getattr(group, side) for group in groups) for side in ("train", "test"))
    if plan.phantoms is not None:
        given = plan.phantoms.subjects.get(corpus, 0)
        return given if corpus == "luna16" else round(given * train / (train + test))
    return train + test if corpus == "luna16" else train


def _frame(corpus: str, modality: str) -> str:
    return f"{corpus}_{modality.lower()}" if corpus == "mmwhs" else corpus
