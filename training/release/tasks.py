"""The tasks on which weights are compared: ``recipes/release_tasks.toml``, typed and checked."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.config import RECIPES
from training.corpora.case import Modality
from training.corpora.packaged_table import Purpose
from universal_model_hub.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TASKS_FILE = RECIPES / "release_tasks.toml"
AXES = "xyz"

Mode = Literal["develop", "final"]
Slab = tuple[float, float]  # mm from the low face of the field of view
Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ModeSettings:
    """How the runs of a mode are trained and counted."""

    steps: int
    head_steps: int  # of these; the rest of the network is frozen meanwhile
    head_rate_factor: float  # of the learning rate in these
    batch_size: int
    precision: str
    rates: tuple[float, ...]  # each arm takes its best on the kept-back training labels
    foreground_share: float
    class_weights: bool  # of the cross-entropy: those that umh finetune would plan
    seeds: Mapping[int, int]  # by share of the labels in percent
    sibling_seeds: int  # of the ablation's weights, at all labels
    frozen_seeds: int
    tuned_at: Mapping[int, int]  # the share whose labels choose the rate, by share
    tuning_seeds: int
    curve_share: int  # runs of this share are also scored on the way
    curve_seeds: int
    curve_points: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where the training or the test cases of a task come from: a packaged scan, or phantoms."""

    scan: str = ""
    labels: str = ""  # label set of the scan; "" is its first
    half: Literal["", "left", "right"] = ""  # of the head; the right one is mirrored
    ignore: tuple[str, ...] = ()  # patterns of labels that count neither way
    slice_mm: float = 0.0  # slices of a scan are averaged to this thickness first; 0: as they are
    slab_axis: Literal["x", "y", "z"] = "z"
    slabs: tuple[Slab, ...] = ()  # what is annotated; of phantoms one slab a subject
    region: str = ""  # of phantoms, key of KINDS
    subjects: int = 0  # phantoms without slabs: as many, wholly annotated
    first: int = 0  # number of the first phantom
    seed: int = 0  # of the phantoms, with their number
    phase: str = "plain"  # contrast agent of phantoms in CT
    sequence: str = "T1"  # of phantoms in MR
    field_mm: tuple[float, float, float] | None = None

    @property
    def num_cases(self) -> int:
        """Cases before anything is read: slabs, subjects, or one whole scan."""
        return len(self.slabs) or self.subjects or 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """One segmentation task: training labels, test labels, and the grid it is worked on."""

    name: str
    mode: Mode
    letter: str  # of the list in the report
    title: str
    modality: Modality
    spacing_mm: float  # of the working grid, the same along each axis
    cube: Triple  # voxels
    split_axis: Literal["x", "y", "z"]
    classes: Mapping[str, Mapping[str, tuple[str, ...]]]  # class: {"train", "test": patterns}
    train: Part
    test: Part
    shares: tuple[int, ...] = (10, 30, 100)  # percent of the annotated slabs
    seeds: Mapping[int, int] = field(default_factory=dict)  # by share, where not the mode's
    siblings: bool = False  # whether the ablation's weights are compared on it
    note: str = ""

    @property
    def num_classes(self) -> int:
        """Classes with background, which is 0."""
        return len(self.classes) + 1

    @property
    def purpose(self) -> Purpose:
        """What the loader of packaged scans is told."""
        return "evaluation" if self.mode == "final" else "develop"

    @property
    def is_phantom(self) -> bool:
        """Whether its subjects are synthetic."""
        return bool(self.train.region)

    def seeds_of(self, share: int, settings: ModeSettings) -> int:
        """Return how many seeds a share of the labels is compared with."""
        return self.seeds.get(share, settings.seeds[share])

    def slabs_of(self, share: int) -> int:
        """Return how many of the training cases a share of the labels is, at least one."""
        return max(1, round(self.train.num_cases * share / 100))

    def to_json(self) -> dict[str, Any]:
        """Return all that defines the data and the training of this task."""
        values = dataclasses.asdict(self)
        for part in (values["train"], values["test"]):
            if not part["slice_mm"]:
                del part["slice_mm"]  # results from before this field keep their names
        return values


@dataclass(frozen=True)
class Tasks:
    """The content of release_tasks.toml."""

    modes: Mapping[str, ModeSettings]
    tasks: Mapping[str, Task] = field(default_factory=dict)

    def of(self, mode: Mode) -> tuple[Task, ...]:
        """Return the tasks of a mode in the order of the file."""
        return tuple(task for task in self.tasks.values() if task.mode == mode)


def read_tasks(path: Path = TASKS_FILE) -> Tasks:
    """Read the tasks.

    Raises:
        ConfigError: If a field is unknown or missing, or a share has no seeds.
    """
    with path.open("rb") as stream:
        content = tomllib.load(stream)
    try:
        modes = {name: _settings(values) for name, values in content["modes"].items()}
        tasks = {name: _task(name, values) for name, values in content["tasks"].items()}
    except (KeyError, TypeError, ValueError) as cause:
        raise ConfigError(
            f"Expected the fields of a task or a mode in {path.name}, got: {cause}. Correct it."
        ) from cause
    for task in tasks.values():
        _check(task, modes[task.mode], path)
    return Tasks(modes, tasks)


def _settings(values: Mapping[str, Any]) -> ModeSettings:
    values = dict(values)
    for name in ("seeds", "tuned_at"):
        values[name] = {int(share): int(count) for share, count in values[name].items()}
    return ModeSettings(**{**values, "rates": tuple(values["rates"])})


def _task(name: str, values: Mapping[str, Any]) -> Task:
    values = dict(values)
    values["classes"] = {label: _patterns(found) for label, found in values["classes"].items()}
    values["seeds"] = {int(share): count for share, count in values.get("seeds", {}).items()}
    for part in ("train", "test"):
        values[part] = _part(values[part])
    for key in ("cube", "shares"):
        if key in values:
            values[key] = tuple(values[key])
    return Task(name=name, **values)


def _part(values: Mapping[str, Any]) -> Part:
    values = dict(values)
    if "slabs" in values:
        values["slabs"] = tuple((float(low), float(high)) for low, high in values["slabs"])
    for key in ("ignore", "field_mm"):
        if key in values:
            values[key] = tuple(values[key])
    return Part(**values)


def _patterns(found: Any) -> dict[str, tuple[str, ...]]:
    if isinstance(found, list):
        found = {"train": found, "test": found}
    return {"train": tuple(found["train"]), "test": tuple(found["test"])}


def _check(task: Task, settings: ModeSettings, path: Path) -> None:
    """Refuse a task whose runs would not be defined.

    Raises:
        ConfigError: If so.
    """
    for part in (task.train, task.test):
        if bool(part.scan) == bool(part.region):
            raise ConfigError(
                f"Expected either scan or region for {task.name} in {path.name}, got "
                f"{part.scan!r} and {part.region!r}. Give one."
            )
        if any(low >= high for low, high in part.slabs):
            raise ConfigError(f"Expected slabs as [low, high] for {task.name} in {path.name}.")
    for share in task.shares:
        tuned = settings.tuned_at.get(share, 0)
        if share not in settings.seeds or not 0 < tuned <= share:
            raise ConfigError(
                f"Expected seeds and tuned_at (at most the share itself) for {share} % of "
                f"{task.name} in {path.name}. Give both."
            )
