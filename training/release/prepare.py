"""The cubes of the released weights: packaged real scans and synthetic subjects in one store.

    python -m training.release.prepare --recipe compact --output STORE

Every synthetic subject is scanned as CT and as MR, so that region and modality do not go together
as they do in the packaged scans. What is there is left alone: the same command goes on.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from training.anatomy import bank_of, make_bank
from training.config import Recipe, load_recipe
from training.corpora.case import Case, Modality
from training.corpora.packaged import packaged_folder, pretraining_cases
from training.corpora.phantom import (
    CT_SCANNERS,
    KINDS,
    MR_SCANNERS,
    SEQUENCES,
    PhantomSubject,
    make_subject,
    render_ct,
    render_mr,
)
from training.cubes import CubeStore, write_cubes
from training.prepare import check_same_recipe, prepare
from universal_model_hub.errors import UniversalModelError
from universal_model_hub.volume import Volume

MODALITIES: tuple[Modality, ...] = ("CT", "MR")
MAPS = 24  # label maps of each region for the anatomy recipe
SPACING_MM = 1.5  # of the synthetic scans: finer ones take minutes each


@dataclass(frozen=True)
class SubjectJob:
    """One synthetic subject to make, scan twice and cut."""

    region: str  # key of KINDS
    index: int
    recipe: Recipe
    folder: Path  # of the store


def make_store(recipe: Recipe, folder: Path, *, subjects: int, workers: int) -> CubeStore:
    """Make the store of cubes: all packaged pre-training scans, and the synthetic subjects.

    Args:
        recipe: Its corpora are ``packaged`` and regions of synthetic subjects.
        folder: Of the store.
        subjects: Synthetic subjects of each region.
        workers: Processes.

    Raises:
        ConfigError: If the folder holds cubes of other settings, or a scan was not fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_same_recipe(folder, recipe)
    if "packaged" in recipe.corpora:
        cases = pretraining_cases(packaged_folder())
        wanted = [case for case in cases if case.modality in recipe.modalities]
        prepare(wanted, recipe, folder, workers=workers)
    regions = [region for region in KINDS if region in recipe.corpora]
    jobs = [SubjectJob(region, i, recipe, folder) for i in range(subjects) for region in regions]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, torch.set_num_threads, (1,)
    ) as pool:
        done = pool.map(make_cases, jobs)
        for _ in tqdm(done, total=len(jobs), desc="synthetic subjects", unit="subject"):
            pass
    if recipe.objective.task == "anatomy":
        make_bank(bank_of(folder), subjects=MAPS, workers=workers)
    return CubeStore(folder)


def make_cases(job: SubjectJob) -> None:
    """Make one synthetic subject, scan it in the recipe's modalities, and cut cubes of each."""
    name = f"{job.region}{job.index:03d}"
    seed = [job.recipe.run.seed, *job.region.encode(), job.index]
    subject = None
    for stream, modality in enumerate(MODALITIES):
        case = Case(
            corpus=job.region,
            subject=name,
            id=f"{name}-{modality}",
            modality=modality,
            volume=job.folder / f"{name}-{modality}.npy",
        )
        if modality not in job.recipe.modalities or (job.folder / f"{case.id}.json").is_file():
            continue
        if subject is None:
            subject = make_subject(job.region, np.random.default_rng(seed), SPACING_MM)
        scan = scanned(subject, modality, np.random.default_rng([*seed, stream]))
        write_cubes(case, scan, job.recipe, job.folder)


def scanned(subject: PhantomSubject, modality: Modality, rng: np.random.Generator) -> Volume:
    """Scan a subject on a random scanner; MR with a random sequence."""
    if modality == "CT":
        return render_ct(subject, rng, CT_SCANNERS[str(rng.choice(sorted(CT_SCANNERS)))])
    scanner = MR_SCANNERS[str(rng.choice(sorted(MR_SCANNERS)))]
    return render_mr(subject, rng, str(rng.choice(SEQUENCES)), scanner)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.release.prepare", description=__doc__)
    parser.add_argument("--recipe", default="compact")
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder of the store")
    parser.add_argument("--subjects", type=int, default=12, help="synthetic ones of each region")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.set)
        store = make_store(
            recipe, options.output, subjects=options.subjects, workers=options.workers
        )
    except UniversalModelError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{len(store)} cubes in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
