"""Cubes for the evidence run: every region of the body in both modalities, with body masks.

In the paper's corpora region and modality go together (brains are MR, chests are CT), so nothing
measured there can tell them apart. Here each synthetic subject is scanned twice, as CT and as MR.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from training.config import Recipe
from training.corpora.case import Case, Modality
from training.corpora.phantom import (
    CT_SCANNERS,
    KINDS,
    MR_SCANNERS,
    PhantomSubject,
    make_subject,
    render_ct,
    render_mr,
)
from training.cubes import CubeStore, resize, write_cubes
from training.prepare import check_same_recipe
from universal_model_hub.files import atomic_path, parse_json
from universal_model_hub.volume import Volume

REGIONS = tuple(KINDS)
MODALITIES: tuple[Modality, ...] = ("CT", "MR")


@dataclass(frozen=True)
class PhantomJob:
    """One subject to make, scan twice and cut."""

    region: str
    index: int
    recipe: Recipe
    folder: Path  # of the store


def make_store(
    folder: Path, recipe: Recipe, first: int, subjects: int, *, workers: int
) -> CubeStore:
    """Make the cubes of ``subjects`` synthetic subjects of each region, numbered from ``first``.

    Subjects whose files are there are left alone. Beside the store, ``<folder>-bodies`` gets for
    each case the mask of what is body, (n, X, Y, Z) bool, row by row as the cubes.

    Raises:
        ConfigError: If the folder holds cubes of other settings.
    """
    bodies_of(folder).mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    check_same_recipe(folder, recipe)
    jobs = [
        PhantomJob(region, index, recipe, folder)
        for index in range(first, first + subjects)
        for region in REGIONS
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        list(pool.map(make_cases, jobs))
    return CubeStore(folder)


def bodies_of(folder: Path) -> Path:
    """Return the folder of a store's body masks."""
    return folder.with_name(f"{folder.name}-bodies")


def make_cases(job: PhantomJob) -> None:
    """Make one subject, scan it as CT and as MR, cut cubes and body masks."""
    spacing_mm = job.recipe.preprocessing.spacing
    assert spacing_mm is not None
    subject = None
    for stream, modality in enumerate(MODALITIES):
        case = case_of(job, modality)
        mask_file = bodies_of(job.folder) / f"{case.id}.npy"
        if mask_file.is_file():
            continue
        seed = [job.recipe.run.seed, *job.region.encode(), job.index]
        if subject is None:
            subject = make_subject(job.region, np.random.default_rng(seed), spacing_mm)
        scan = scanned(subject, modality, np.random.default_rng([*seed, stream]))
        record = write_cubes(case, scan, job.recipe, job.folder)
        masks = body_cubes(subject.labels > 0, record["cubes"], job.recipe.cubes.size)
        with atomic_path(mask_file) as temporary, temporary.open("wb") as stream_out:
            np.save(stream_out, masks)


def case_of(job: PhantomJob, modality: Modality) -> Case:
    """Name the scan of a subject in one modality; the region stands where a corpus would."""
    subject = f"{job.region}{job.index:03d}"
    return Case(
        corpus=job.region,
        subject=subject,
        id=f"{subject}-{modality}",
        modality=modality,
        volume=job.folder / f"{subject}-{modality}.npy",
    )


def scanned(subject: PhantomSubject, modality: Modality, rng: np.random.Generator) -> Volume:
    """Scan a subject on a random scanner, MR as T1.

    One sequence, because with all of them an MR cube and its inverted copy are equally likely: no
    network could say which one it was given, and every error would be that of the guess. The
    background of the MR scans is set to 0, as masked data sets come: its noise lies above the
    level at which a cube counts as air, and cubes of noise say nothing about either goal.
    """
    if modality == "CT":
        return render_ct(subject, rng, CT_SCANNERS[str(rng.choice(sorted(CT_SCANNERS)))])
    scanner = MR_SCANNERS[str(rng.choice(sorted(MR_SCANNERS)))]
    scan = render_mr(subject, rng, "T1", scanner)
    return Volume(np.where(subject.labels > 0, scan.array, 0).astype(np.int16), scan.affine)


def body_cubes(
    body: np.ndarray, places: list[dict[str, list[int]]], size: tuple[int, int, int]
) -> np.ndarray:
    """Cut the mask of the body where the cubes were cut, (n, *size) bool.

    Args:
        body: (X, Y, Z) bool, on the grid of the preprocessed scan.
        places: The ``cubes`` of a case's record.
        size: Of the cubes, voxels.
    """
    whole = torch.from_numpy(body).float()
    masks = np.zeros((len(places), *size), bool)
    for mask, place in zip(masks, places, strict=True):
        box = tuple(slice(a, a + n) for a, n in zip(place["start"], place["side"], strict=True))
        mask[...] = resize(whole[box], size).numpy() > 0.5
    return masks


def load_bodies(store: CubeStore) -> dict[str, np.ndarray]:
    """Load the body masks of a store by case, each (n, X, Y, Z) bool, memory-mapped."""
    folder = bodies_of(store.folder)
    names = sorted({record.case for record in store.records})
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}


def store_cases(store: CubeStore) -> dict[str, dict[str, object]]:
    """Count volumes and cubes by region and modality, for the report."""
    counts: dict[str, dict[str, object]] = {}
    for header in sorted(store.folder.glob("*-*.json")):
        record = parse_json(header.read_bytes())
        source = record["source"]
        row = counts.setdefault(
            f"{source['corpus']} {source['modality']}", {"volumes": 0, "cubes": 0}
        )
        row["volumes"] = int(str(row["volumes"])) + 1
        row["cubes"] = int(str(row["cubes"])) + len(record["cubes"])
    return counts
