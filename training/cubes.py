"""Cubes: sub-volumes of three scales, cut from preprocessed scans into a memory-mapped store.

Source: Zhang et al., Sec. III-C, Fig. 2, Table I. A store is a folder with, for each case, a
``<case>.npy`` of (n, X, Y, Z) uint16 (0 to 65535 stands for 0 to 1) and a ``<case>.json`` that
says where each cube comes from; both are written atomically, so that an interrupted preparation
goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from training.config import CubesConfig, Recipe
from training.corpora import CORPORA
from training.corpora.case import Case
from universal_model_hub.errors import ConfigError, IntegrityError
from universal_model_hub.files import atomic_path, sha256_of, write_json
from universal_model_hub.fit.training.checkpoint import config_differences
from universal_model_hub.preprocess import preprocess
from universal_model_hub.volume import Volume

FULL_SCALE = 65535
AIR_LEVEL = {"CT": 0.05, "MR": 0.02}  # in [0, 1]; CT: -900 HU. Source: ours
MAX_TRIES = 20  # cuts for a cube that is not air. Source: ours
CASE_STREAM = 3


@dataclass(frozen=True)
class CubeRecord:
    """Where one cube of a store comes from."""

    corpus: str
    subject: str
    case: str
    modality: str
    scale_id: int  # 0 is the smallest
    start: tuple[int, int, int]  # voxels of the preprocessed scan
    side: tuple[int, int, int]  # voxels before resizing
    row: int  # in the case's array


class CubeStore:
    """A folder of prepared cubes, read through memory maps.

    Raises:
        ConfigError: If the folder is no store or is empty.
        IntegrityError: With ``verify=True``, if an array differs from its record.
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        self.folder = folder
        # A killed preparation can leave a hidden temporary file, which this pattern matches too.
        found = (p for p in folder.glob("*.json") if not p.name.startswith("."))
        headers = sorted(p for p in found if p.name != "store.json")
        if not headers:
            raise ConfigError(
                f"{folder} holds no prepared cubes. Run python -m training.prepare first."
            )
        self.records: list[CubeRecord] = []
        digest = hashlib.sha256()
        for header in headers:
            record = json.loads(header.read_text())
            digest.update(record["sha256"].encode())
            if verify and sha256_of(header.with_suffix(".npy")) != record["sha256"]:
                raise IntegrityError(
                    f"The cubes {header.with_suffix('.npy')} are damaged. Delete both files of "
                    "this case and prepare again."
                )
            for cube in record["cubes"]:
                fields: dict[str, Any] = {**record["source"], **cube}
                fields |= {key: tuple(cube[key]) for key in ("start", "side")}
                self.records.append(CubeRecord(**fields))
        summary = folder / "store.json"
        self.settings: dict[str, Any] = {}  # of the recipe that the cubes were prepared by
        if summary.is_file():
            self.settings = json.loads(summary.read_text()).get("recipe", {})
        self.sha256 = digest.hexdigest()  # of all arrays, in the order of their names
        self._maps: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records)

    def require(self, recipe: Recipe) -> None:
        """Refuse a recipe that would have prepared other cubes.

        Raises:
            ConfigError: Listing the settings that differ.
        """
        wanted = recipe.to_json()
        differences = [
            line
            for part in ("preprocessing", "cubes")
            if part in self.settings
            for line in config_differences(self.settings[part], wanted[part], part)
        ]
        if differences:
            raise ConfigError(
                f"The cubes in {self.folder} were prepared by other settings than the recipe "
                f"{recipe.name} has: {'; '.join(differences[:10])}. Prepare cubes for this recipe."
            )

    def cube(self, number: int) -> np.ndarray:
        """Return one cube, (X, Y, Z) float32 in [0, 1]."""
        record = self.records[number]
        array = self._maps.get(record.case)
        if array is None:
            array = np.load(self.folder / f"{record.case}.npy", mmap_mode="r")
            self._maps[record.case] = array
        return array[record.row].astype(np.float32) / np.float32(FULL_SCALE)


def prepare_case(case: Case, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Cut the cubes of one case and write them; a case that is already there is left alone.

    Returns:
        The case's record: source, sha256, cubes, and how many cuts were left out as air.
    """
    header = folder / f"{case.id}.json"
    if header.is_file() and header.with_suffix(".npy").is_file():
        return dict(json.loads(header.read_text()))
    return write_cubes(case, CORPORA[case.corpus].load(case), recipe, folder)


def write_cubes(case: Case, scan: Volume, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Cut the cubes of a scan that is already loaded, write them, and return their record."""
    header = folder / f"{case.id}.json"
    volume, _ = preprocess(scan, recipe.preprocessing, modality=case.modality)
    rng = np.random.default_rng([recipe.run.seed, CASE_STREAM, *case.id.encode()])
    counts = recipe.cubes.counts.get(case.corpus, recipe.cubes.default_counts)
    level = AIR_LEVEL[case.modality]
    cubes, places, left_out = cut_cubes(volume[0, 0], recipe.cubes, counts, level, rng)
    with atomic_path(header.with_suffix(".npy")) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.round(cubes * FULL_SCALE).astype(np.uint16))
    record = {
        "source": {
            "corpus": case.corpus,
            "subject": case.subject,
            "case": case.id,
            "modality": case.modality,
        },
        "sha256": sha256_of(header.with_suffix(".npy")),
        "left_out_as_air": left_out,
        "cubes": places,
    }
    write_json(header, record)
    return record


def cut_cubes(
    volume: torch.Tensor,
    config: CubesConfig,
    counts: Sequence[int],
    air_level: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[dict[str, Any]], int]:
    """Cut random cubes at every scale and resize them to one size.

    Source: Zhang et al., Sec. III-C. A cut with more than ``air_share`` of its voxels at or below
    ``air_level`` is drawn again; after 20 draws that cube is left out and counted.

    Args:
        volume: (X, Y, Z) float32 in [0, 1].
        config: Size, scales and rules.
        counts: Cubes of each scale, in the order of ``config.scales``.
        air_level: Intensity in [0, 1].
        rng: Draws sides and places.

    Returns:
        Cubes (n, *config.size) float32 in [0, 1]; for each its row, scale, start and side in
        voxels; the number of cubes left out.
    """
    cubes: list[np.ndarray] = []
    places: list[dict[str, Any]] = []
    for scale_id, (share, count) in enumerate(zip(config.scales, counts, strict=True)):
        for _ in range(count):
            for _ in range(MAX_TRIES):
                whole = volume.shape if config.cut == "volume" else config.size
                start, side = draw_box(volume.shape, whole, share, config.scale_jitter, rng)
                box = volume[tuple(slice(a, a + b) for a, b in zip(start, side, strict=True))]
                if (box <= air_level).float().mean() <= config.air_share:
                    break
            else:
                continue
            place = {"scale_id": scale_id, "start": start, "side": side, "row": len(cubes)}
            cubes.append(resize(box, config.size).numpy())
            places.append(place)
    array = np.stack(cubes) if cubes else np.zeros((0, *config.size), np.float32)
    return array, places, sum(counts) - len(cubes)


def draw_box(
    shape: Sequence[int],
    whole: Sequence[int],
    share: float,
    jitter: float,
    rng: np.random.Generator,
) -> tuple[list[int], list[int]]:
    """Draw start and side of a box inside ``shape``: about ``share`` of ``whole``, in voxels."""
    factor = share * (1 + rng.uniform(-jitter, jitter))
    side = [min(n, max(1, round(w * factor))) for n, w in zip(shape, whole, strict=True)]
    start = [int(rng.integers(0, n - s + 1)) for n, s in zip(shape, side, strict=True)]
    return start, side


def resize(box: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize a box (X, Y, Z) to ``size``: whole-voxel averages where it shrinks, then trilinear.

    Source: ours; the paper does not name the interpolation. The averages keep a large cube from
    aliasing.
    """
    factors = [max(1, n // target) for n, target in zip(box.shape, size, strict=True)]
    x = F.avg_pool3d(box[None, None], factors, ceil_mode=True, count_include_pad=False)
    x = F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)
    return x[0, 0].clamp(0, 1)
