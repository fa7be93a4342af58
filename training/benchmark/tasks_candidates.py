"""Task lnc: cubes around nodule candidates, drawn against their imbalance, and scored in batches.

LUNA16 has some 400 candidates that are no nodule for one that is. Training cubes are therefore
drawn by class: a nodule with the plan's ``positive_share``, else another candidate, each of a class
alike. Test and validation are not balanced: every candidate of the test part is scored once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.benchmark.tasks_data import GridCase
from training.corpora import luna16
from training.corpora.luna16_tables import Candidates
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import atomic_path
from universal_model_hub.fit.training.sampling import item_rngs, varied
from universal_model_hub.fit.training.settings import FinetuneSettings

SCORED_TOGETHER = 32  # cubes


@dataclass(frozen=True, eq=False)
class CandidateSet:
    """Candidates of some scans: P rows."""

    images: tuple[np.ndarray, ...]  # (X, Y, Z) each, in [0, 1]
    ids: tuple[str, ...]  # of the scans
    scan: np.ndarray  # (P,) number of the scan
    center: np.ndarray  # (P, 3) voxel of the model grid
    target: np.ndarray  # (P,) 1 where it is a nodule

    def __len__(self) -> int:
        return len(self.target)

    def where(self, rows: np.ndarray) -> "CandidateSet":
        """Return the rows of an index (Q,)."""
        columns = (self.scan, self.center, self.target)
        return CandidateSet(self.images, self.ids, *(column[rows] for column in columns))

    def cube(self, row: int, size: Sequence[int]) -> Tensor:
        """Return the cube (1, X, Y, Z) float32 around a candidate."""
        return around(self.images[self.scan[row]], self.center[row], size)


def read_table(folder: Path, version: str, cache: Path) -> Candidates:
    """Read LUNA16's candidates; a file in ``cache`` spares the next run the slow table.

    Raises:
        ConfigError: If the table is missing or damaged.
        VolumeError: If a candidate lies outside its volume.
    """
    path = cache / f"candidates-{version}.npz"
    if not path.is_file():
        table = luna16.candidates(folder, version=version)
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(
                stream,
                series=table.series,
                world=table.world,
                voxel=table.voxel,
                positive=table.positive,
            )
    with np.load(path, allow_pickle=False) as found:
        columns = {name: found[name] for name in ("series", "world", "voxel", "positive")}
    return Candidates(version, **columns)


def candidate_set(cases: Sequence[GridCase], table: Candidates) -> CandidateSet:
    """Return the candidates of some scans, with their places on the model grid."""
    scans, centers, targets = [], [], []
    for number, case in enumerate(cases):
        own = table.of([case.case.id])
        to_grid = np.linalg.inv(case.record.model_affine)
        centers.append(own.world @ to_grid[:3, :3].T + to_grid[:3, 3])
        scans.append(np.full(len(own.positive), number))
        targets.append(own.positive.astype(np.int64))
    return CandidateSet(
        tuple(case.image for case in cases),
        tuple(case.case.id for case in cases),
        np.concatenate(scans).astype(np.int64),
        np.concatenate(centers).reshape(-1, 3),
        np.concatenate(targets),
    )


def thinned(candidates: CandidateSet, most: int) -> CandidateSet:
    """Keep all nodules, and at most so many others, evenly from the table."""
    others = np.flatnonzero(candidates.target == 0)
    if len(others) > most:
        others = others[np.linspace(0, len(others) - 1, most).astype(int)]
    return candidates.where(np.sort(np.concatenate([np.flatnonzero(candidates.target), others])))


def around(image: np.ndarray, center: np.ndarray, size: Sequence[int]) -> Tensor:
    """Return the cube (1, X, Y, Z) float32 with its middle at a voxel, 0 beyond the scan."""
    cube = np.zeros(tuple(size), np.float32)
    source, target = [], []
    for at, side, full in zip(center, size, image.shape, strict=True):
        start = round(float(at)) - side // 2
        low, high = max(0, start), min(full, start + side)
        source.append(slice(low, max(low, high)))
        target.append(slice(low - start, max(low, high) - start))
    part = image[tuple(source)]
    if part.size:
        cube[tuple(target)] = part
    return torch.from_numpy(cube)[None]


class CandidateSampler:
    """Draws batches of cubes around candidates, nodules and others by their own shares.

    Raises:
        ConfigError: If there is no nodule, or nothing else.
    """

    def __init__(
        self, candidates: CandidateSet, settings: FinetuneSettings, positive_share: float
    ) -> None:
        self.candidates, self.settings = candidates, settings
        self.positive_share = positive_share
        self.rows = [np.flatnonzero(candidates.target == value) for value in (0, 1)]
        if not (len(self.rows[0]) and len(self.rows[1])):
            raise ConfigError(
                f"Expected nodules and other candidates to train on in candidates of LUNA16, got "
                f"{len(self.rows[1])} nodules and {len(self.rows[0])} others. Add scans."
            )

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Return a process's share of a step: cubes (N, 1, X, Y, Z), classes (N,)."""
        cubes, targets = [], []
        for rng in item_rngs(self.settings, step, rank, world_size):
            target = int(rng.random() < self.positive_share)
            row = int(rng.choice(self.rows[target]))
            cube = self.candidates.cube(row, self.settings.cube)
            cubes.append(varied(cube, self.settings, rng))
            targets.append(target)
        return torch.stack(cubes), torch.tensor(targets)

    def describe(self) -> dict[str, Any]:
        """Return what the sampler does, in numbers: how often a candidate is seen in a run."""
        others, nodules = (len(rows) for rows in self.rows)
        drawn = self.settings.steps * self.settings.batch_size
        share = self.positive_share
        return {
            "how": "a nodule with positive_share, else another candidate; each of a class alike",
            "positive_share": share,
            "nodules": nodules,
            "others": others,
            "share_of_nodules": round(nodules / (nodules + others), 6),
            "cubes_drawn": drawn,
            "times_each_nodule": round(drawn * share / nodules, 4),
            "times_each_other": round(drawn * (1 - share) / others, 4),
        }


@torch.inference_mode()
def nodule_scores(
    model: nn.Module, candidates: CandidateSet, size: Sequence[int], device: torch.device
) -> np.ndarray:
    """Return the probability (P,) of each candidate to be a nodule, in order."""
    scores = []
    for start in range(0, len(candidates), SCORED_TOGETHER):
        rows = range(start, min(start + SCORED_TOGETHER, len(candidates)))
        cubes = torch.stack([candidates.cube(row, size) for row in rows]).to(device)
        scores.append(model(cubes).double().softmax(dim=1)[:, 1].cpu().numpy())
    return np.concatenate(scores) if scores else np.zeros(0)
