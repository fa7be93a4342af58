"""The tables of LUNA16: nodule candidates and annotations, in world and in voxel positions.

World coordinates are LPS mm in the files and RAS mm here, as everywhere in this project. They are
mapped to voxels by each volume's full affine, direction included. Letters: P rows.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.corpora.checks import Grid
from universal_model_hub.errors import ConfigError

# The challenge page says of the older file that it "should not be used"; the paper's 551,065
# candidates are its size all the same.
TABLES = {"V2": "candidates_V2.csv", "old": "candidates.csv"}


@dataclass(frozen=True, eq=False)
class Candidates:
    """Places that a detector proposed as nodules: P rows."""

    version: str  # "V2" or "old"
    series: np.ndarray  # (P,) SeriesInstanceUID
    world: np.ndarray  # (P, 3) RAS mm
    voxel: np.ndarray  # (P, 3) position in the file's own voxel order, fractional
    positive: np.ndarray  # (P,) bool

    def of(self, subjects: Iterable[str]) -> "Candidates":
        """Return the rows of some subjects."""
        return self.where(np.isin(self.series, list(subjects)))

    def where(self, rows: np.ndarray) -> "Candidates":
        """Return the rows where ``rows`` (P,) is true."""
        columns = (self.series, self.world, self.voxel, self.positive)
        return Candidates(self.version, *(column[rows] for column in columns))


def read_candidates(root: Path, version: str, grids: Mapping[str, Grid]) -> Candidates:
    """Read a candidate table; ``voxel`` is NaN in rows whose series has no grid.

    Raises:
        ConfigError: If the table is missing or damaged.
    """
    path = root / TABLES[version]
    rows = list(_rows(path, "class"))
    classes = {row[2] for row in rows}
    if not classes <= {0.0, 1.0}:
        raise ConfigError(
            f"Expected class 0 or 1 in {path.name}, got {sorted(classes)[:5]}. Fetch it again."
        )
    world = np.array([row[1] for row in rows], float).reshape(-1, 3)
    series = np.array([row[0] for row in rows], str)
    positive = np.array([row[2] == 1 for row in rows], bool)
    return Candidates(version, series, world, _voxels(series, world, grids), positive)


def read_nodules(root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read annotations.csv: series (P,), center (P, 3) in RAS mm, diameter (P,) in mm.

    Raises:
        ConfigError: If the table is missing or damaged.
    """
    rows = list(_rows(root / "annotations.csv", "diameter_mm"))
    world = np.array([row[1] for row in rows], float).reshape(-1, 3)
    diameter = np.array([row[2] for row in rows], float)
    return np.array([row[0] for row in rows], str), world, diameter


def outside(table: Candidates, grids: Mapping[str, Grid]) -> np.ndarray:
    """(P,) true where a candidate is more than half a voxel beyond its volume's edge."""
    names, rows = np.unique(table.series, return_inverse=True)
    unknown = (np.inf,) * 3
    shapes = np.array([grids[n].shape if n in grids else unknown for n in names], float)
    upper = shapes.reshape(-1, 3)[rows] - 0.5
    return np.any((table.voxel < -0.5) | (table.voxel > upper), axis=1)


def nodules_twice(series: np.ndarray, world: np.ndarray, diameter: np.ndarray) -> int:
    """Count the pairs of annotations that lie closer than their radii: one nodule, twice."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(series):
        groups[name].append(row)
    pairs = 0
    for rows in groups.values():
        distance = np.linalg.norm(world[rows][:, None] - world[rows][None], axis=-1)
        radius = diameter[rows] / 2
        near = distance < np.minimum(radius[:, None], radius[None])
        pairs += int(np.triu(near, k=1).sum())
    return pairs


def _voxels(series: np.ndarray, world: np.ndarray, grids: Mapping[str, Grid]) -> np.ndarray:
    voxel = np.full_like(world, np.nan)
    order = np.argsort(series, kind="stable")
    names, starts = np.unique(series[order], return_index=True)
    for name, rows in zip(names, np.split(order, starts[1:]), strict=False):
        if name in grids:
            inverse = np.linalg.inv(grids[name].affine)
            voxel[rows] = world[rows] @ inverse[:3, :3].T + inverse[:3, 3]
    return voxel


def _rows(path: Path, last: str) -> Iterator[tuple[str, tuple[float, float, float], float]]:
    """Yield series, RAS position in mm and the last column of a LUNA16 table."""
    if not path.is_file():
        raise ConfigError(f"Expected {path.name} in {path.parent}, got none. Fetch it.")
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        if header[:5] != ["seriesuid", "coordX", "coordY", "coordZ", last]:
            raise ConfigError(
                f"Expected columns seriesuid,coordX,coordY,coordZ,{last} in {path.name}, "
                f"got {header[:6]}. Fetch the table again."
            )
        for number, row in enumerate(reader, start=2):
            try:
                x, y, z, value = (float(text) for text in row[1:5])
            except ValueError as error:
                raise ConfigError(
                    f"Expected four numbers in line {number} of {path.name}, got {row[1:5]}. "
                    f"Fetch the table again."
                ) from error
            yield row[0], (-x, -y, z), value  # LPS to RAS
