"""The results of a benchmark as the report reads them: one file a run, and what belongs to all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.files import parse_json

# Metrics of each kind of task: the first decides, in percent but for distances.
METRICS = {"iou": ("iou", "dice", "hd95_mm"), "auc": ("auc", "accuracy", "sensitivity")}
NAMES = {
    "iou": "IoU",
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "auc": "AUC",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
}
PERCENT = frozenset(NAMES) - {"hd95_mm"}


@dataclass(frozen=True, eq=False)
class Result:
    """One finished run."""

    name: str  # of its file
    row: str
    task: str
    trial: int
    share: float
    noise: float  # mm
    metrics: Mapping[str, float | None]
    cases: Sequence[Mapping[str, Any]]
    curve: Sequence[Mapping[str, float]]  # step, validation
    content: Mapping[str, Any]  # of the whole file
    weights: str | None = None  # it started from: a hash of the tensors, or of the file

    @property
    def machine(self) -> str:
        """The GPU or processor that the run was computed on; its instructions where noted."""
        hardware = self.content["hardware"]
        if hardware.get("gpu"):
            return str(hardware["gpu"])
        noted = [hardware[name] for name in ("processor", "instructions") if hardware.get(name)]
        return ", ".join(noted).replace("(R)", "") or "unknown"

    @property
    def platform(self) -> str:
        """The machine, and the version of PyTorch there."""
        return f"{self.machine}, torch {self.content['hardware'].get('torch', '?')}"

    def value(self, metric: str) -> float | None:
        """Return a metric: percent, or mm of a distance."""
        found = self.metrics[metric]
        if found is None:
            return None
        return 100 * found if metric in PERCENT else found


@dataclass(frozen=True, eq=False)
class Table:
    """What a table of the plan asks for, with the runs that are there."""

    name: str
    rows: tuple[str, ...]
    tasks: tuple[str, ...]
    shares: tuple[float, ...]
    noise: tuple[float, ...]  # mm
    trials: int
    planned: int
    results: tuple[Result, ...]

    def select(
        self, row: str, task: str, *, share: float | None = None, noise: float | None = None
    ) -> list[Result]:
        """Return the runs of a cell in the order of their trials."""
        wanted = (
            (share if share is not None else max(self.shares)),
            (noise if noise is not None else max(self.noise)),
        )
        found = [
            result
            for result in self.results
            if (result.row, result.task) == (row, task) and (result.share, result.noise) == wanted
        ]
        return sorted(found, key=lambda result: result.trial)


@dataclass(frozen=True, eq=False)
class Results:
    """A folder of results."""

    folder: Path
    plan: Mapping[str, Any]  # plan.json
    runs: Mapping[str, Result]  # by name; of this plan alone
    earlier: tuple[Result, ...]  # of the same runs, done before
    failed: tuple[Mapping[str, Any], ...]
    probes: Mapping[str, Mapping[str, Any]]  # by row
    pretraining: Mapping[str, Mapping[str, Any]]

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Return the tables by their names."""
        return {
            name: Table(
                name=name,
                rows=tuple(table["rows"]),
                tasks=tuple(table["tasks"]),
                shares=tuple(table["shares"]),
                noise=tuple(table["noise_mm"]),
                trials=int(table["trials"]),
                planned=len(table["runs"]),
                results=tuple(self.runs[run] for run in table["runs"] if run in self.runs),
            )
            for name, table in self.plan["tables"].items()
        }

    @property
    def planned(self) -> int:
        """Number of runs of the whole plan."""
        return len({run for table in self.plan["tables"].values() for run in table["runs"]})

    @property
    def is_synthetic(self) -> bool:
        """Whether any of the data are phantoms."""
        return bool(self.plan["synthetic"])

    def title(self, row: str) -> str:
        """Return the name of a row as tables show it."""
        return str(self.plan["rows"][row]["title"])

    def metric(self, task: str) -> str:
        """Return the metric that decides a task."""
        return str(self.plan["tasks"][task]["metric"])

    def is_missing(self, row: str) -> str:
        """Return why a row has no runs at all; empty where it may have."""
        return str(self.plan["rows"][row]["note"])


def read_results(folder: Path) -> Results:
    """Read a folder of results; files of another configuration than the plan's are left alone.

    Raises:
        ConfigError: If the folder has no plan.
        CheckpointError: If a file is damaged.
    """
    if not (folder / "plan.json").is_file():
        raise ConfigError(
            f"Expected the results of a benchmark in {folder}, got no plan.json. Run the benchmark "
            "with this folder as --output first."
        )
    plan = _read(folder / "plan.json")
    names = {run for table in plan["tables"].values() for run in table["runs"]}
    failed = [_read(path) for path in sorted((folder / "failed").glob("*.json"))]
    pretraining = _pretraining(folder / "pretraining.json")
    tensors = _tensors(pretraining)
    return Results(
        folder=folder,
        plan=plan,
        runs=_results(folder / "runs", names, tensors),
        earlier=tuple(
            _result(path.stem, path, tensors)
            for path in sorted((folder / "earlier").rglob("*.json"))
            if path.stem in names
        ),
        failed=tuple(record for record in failed if _concerns(record, names)),
        probes={p.stem: _read(p) for p in sorted((folder / "probes").glob("*.json"))},
        pretraining=pretraining,
    )


def _concerns(record: Mapping[str, Any], names: set[str]) -> bool:
    return "task" not in record or record["name"] in names


def _pretraining(path: Path) -> dict[str, Any]:
    return _read(path) if path.is_file() else {}


def _tensors(pretraining: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the hash of the tensors of each file of weights that is known by them."""
    known = [record["result"] for record in pretraining.values() if "result" in record]
    return {
        sha256: result["tensors_sha256"]
        for result in known
        if "tensors_sha256" in result
        for sha256 in (result["sha256"], *result.get("files_sha256", {}))
    }


def _results(folder: Path, names: set[str], tensors: Mapping[str, str]) -> dict[str, Result]:
    files = {name: folder / f"{name}.json" for name in sorted(names)}
    return {name: _result(name, path, tensors) for name, path in files.items() if path.is_file()}


def _result(name: str, path: Path, tensors: Mapping[str, str]) -> Result:
    content = _read(path)
    try:
        start = content["pretraining"]
        weights = None
        if start is not None:
            weights = start.get("tensors_sha256") or tensors.get(start["sha256"], start["sha256"])
        return Result(
            name=name,
            row=content["row"],
            task=content["task"],
            trial=int(content["trial"]),
            share=float(content["share"]),
            noise=float(content["noise"]),
            metrics=content["metrics"],
            cases=content["cases"],
            curve=content["curve"],
            content=content,
            weights=weights,
        )
    except (KeyError, TypeError, ValueError) as cause:
        raise CheckpointError(
            f"Expected a result in {path}, got one without {cause}. Delete it and start again."
        ) from cause


def _read(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except (ConfigError, ValueError) as cause:
        raise CheckpointError(
            f"Expected JSON in {path}, got a damaged file. Delete it and start again."
        ) from cause
    return dict(value)
