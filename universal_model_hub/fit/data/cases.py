"""A user's data as cases: which scans belong together, what their truth is, and whose they are."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

Task = Literal["segmentation", "classification"]
Split = Literal["train", "validation", "test"]
NOT_ANNOTATED = -1  # in a label map
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One examination: its channels on one grid, and what is to be found in it."""

    id: str  # unique in its set
    subject: str  # whose it is: cases of one subject are never on two sides of a split
    images: tuple[Path, ...]  # one a channel, in the set's order
    labels: Path | None = None  # label map; of classification None
    target: str | None = None  # class; of segmentation None
    split: Split | None = None  # None: not said, to be drawn


@dataclass(frozen=True)
class Finding:
    """Something about the data that the user should know."""

    level: Literal["error", "warning"]  # an error stops before training
    where: str  # file, case or subject
    text: str  # what was expected, what was found, what to do


@dataclass(frozen=True, kw_only=True)
class CaseSet:
    """A data set as it was found on disk."""

    task: Task
    cases: tuple[Case, ...]
    modalities: tuple[str, ...]  # CT, MR or auto, one a channel
    classes: Mapping[int, str] | None  # label value to name; None: to be found in the label maps
    layout: str  # folders, csv, bids, nnunet or msd
    source: Path
    findings: tuple[
        Finding, ...
    ] = ()  # what the layout itself showed: files without a partner, ...

    @property
    def num_channels(self) -> int:
        """Scans of each case."""
        return len(self.modalities)

    def of(self, split: Split) -> tuple[Case, ...]:
        """Return the cases of one side of the split."""
        return tuple(case for case in self.cases if case.split == split)

    def with_cases(self, cases: tuple[Case, ...]) -> "CaseSet":
        """Return the same set with other cases, such as after a split."""
        return replace(self, cases=cases)


@dataclass(frozen=True)
class LoadedCase:
    """A preprocessed volume with its labels."""

    id: str
    image: np.ndarray  # (C, X, Y, Z) float32 in [0, 1]; may be memory-mapped
    labels: np.ndarray  # (X, Y, Z) integers; -1 is not annotated


@dataclass(frozen=True)
class LoadedScan:
    """A preprocessed volume with its class."""

    id: str
    image: np.ndarray  # (C, X, Y, Z) float32 in [0, 1]; may be memory-mapped
    target: int
