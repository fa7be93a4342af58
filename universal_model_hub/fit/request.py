"""What a user asks a fine-tuning for, and what will be done: ``--check`` shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from universal_model_hub.catalog import list_models
from universal_model_hub.config import ModelConfig, read_config
from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import SPLITS, CaseSet, Finding, Task
from universal_model_hub.fit.data.check import cache_bytes, check_cases, raise_if_bad
from universal_model_hub.fit.data.data_report import DataReport
from universal_model_hub.fit.data.grid import Grid, segmentation_grid
from universal_model_hub.fit.data.layouts import read_cases
from universal_model_hub.fit.data.splits import split_cases
from universal_model_hub.fit.training.plan import (
    classification_spacing,
    cube_voxels,
    plan_settings,
)
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.hub import LocalModel, resolve_model
from universal_model_hub.preprocess import Preprocessing

DEFAULT_WEIGHTS = list_models()[0]
SCRATCH_ARCHITECTURE, SCRATCH_ARGUMENTS = "unet3d", {"width": 8}  # without any weights


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; None leaves the choice to the data."""

    images: Path | None = None
    labels: Path | None = None
    data: Path | None = None
    task: Task | None = None
    modality: str | tuple[str, ...] = "auto"
    label_names: Mapping[int, str] | None = None
    weights: str | Path | None = DEFAULT_WEIGHTS  # None: from scratch
    transfer: str = "full"  # or "encoder": a U-Net's decoder then starts fresh
    compare_scratch: bool = False
    spacing: tuple[float, float, float] | None = None  # of the model grid, mm; None: by the data
    folds: int = 0  # of a cross-validation beside the model; 0: none
    tune_rate: bool = False  # try three learning rates on the validation part, in every arm alike
    budget_seconds: float | None = None
    settings: Mapping[str, Any] | None = None  # fields of ``FinetuneSettings``

    def __post_init__(self) -> None:
        if self.folds == 1 or self.folds < 0:
            raise ConfigError(f"Expected 0 folds, or 2 and more, got {self.folds}.")
        if self.budget_seconds is not None and self.budget_seconds < 10:
            raise ConfigError(
                f"Expected a budget of at least 10 seconds, got {self.budget_seconds:g}."
            )
        train = (self.settings or {}).get("train", "all")
        if train != "all" and self.weights is None:
            raise ConfigError(
                f"Expected weights to start from, for --train {train} leaves most of the network "
                "as it is: from scratch that is noise. Use --train all."
            )
        if train != "all" and self.transfer == "encoder" and self.task != "classification":
            raise ConfigError(
                f"Expected --transfer full with --train {train}: a fresh decoder would stay as it "
                "is. Use --train all, or --transfer full."
            )
        if self.compare_scratch and self.weights is None:
            raise ConfigError(
                "Expected weights to compare with training from scratch, got none. Leave one of "
                "--weights none and --compare none out."
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be done with which data."""

    request: Request
    data: CaseSet  # every case with its side of the split
    report: DataReport
    classes: Mapping[int, str]  # class number of the head to name, background included
    numbers: Mapping[int, int]  # value in the label maps to class number
    within_subject: bool  # one subject alone: slabs of its scan are kept back
    base: ModelConfig | None  # of the weights
    weights_sha256: str | None
    preprocessing: Preprocessing
    settings: FinetuneSettings
    labels_kept: float | None = None  # Dice of labels after the grid, where it was chosen by them

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return len(self.classes)

    @property
    def architecture(self) -> str:
        """Of the network, whatever it starts from."""
        return self.base.architecture if self.base else SCRATCH_ARCHITECTURE

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What builds the network, as the weights have it."""
        return self.base.arguments if self.base else SCRATCH_ARGUMENTS

    @property
    def arms(self) -> dict[str, str | Path | None]:
        """What is trained alike from different starts: title and weights, the asked-for first."""
        weights = self.request.weights
        if weights is None:
            return {"from scratch": None}
        arms: dict[str, str | Path | None] = {"pretrained": weights}
        return arms | {"from scratch": None} if self.request.compare_scratch else arms

    def targets(self) -> dict[str, int]:
        """Class number of each target of a classification."""
        return {name: number for number, name in self.classes.items()}

    def text(self) -> str:
        """Return the plan for a terminal."""
        settings = self.settings
        sides = ", ".join(f"{len(found)} {s}" for s in SPLITS if (found := self.data.of(s)))
        cubes = settings.steps * settings.batch_size
        judged = "test cases, else validation cases"
        lines = {
            "task": f"{self.data.task} into {', '.join(self.classes.values())}",
            "cases": sides,
            "scored on": "every fourth slab of the scan" if self.within_subject else judged,
            "starts from": ", ".join(str(w or "scratch") for w in self.arms.values()),
            "model grid": f"{self.preprocessing.spacing} mm"
            + (
                ""
                if self.labels_kept is None
                else f", on which labels keep a Dice of {self.labels_kept:.2f}"
            ),
            "cube": " x ".join(map(str, settings.cube)) + " voxels",
            "training": f"{settings.steps} steps of {settings.batch_size} cubes ({cubes:,} in "
            f"all), rate {settings.learning_rate:g}, {settings.precision}",
            "what trains": settings.train,
            "validation": f"every {settings.validate_every} steps",
            "class weights": str(settings.class_weights or "none"),
            "folds": str(self.request.folds or "none"),
            "disk space": f"{cache_bytes(self.report, self.preprocessing) / 1e9:.2g} GB for "
            "prepared scans, while it runs",
        }
        if self.request.budget_seconds is not None:
            lines["budget"] = f"{self.request.budget_seconds:g} s: the steps will follow from it"
        return "\n".join(f"{name:<14} {value}" for name, value in lines.items())

    def to_json(self) -> dict[str, Any]:
        """Return what must agree for an interrupted run to go on; no path, no time budget."""
        return {
            "task": self.data.task,
            "classes": {str(k): v for k, v in self.classes.items()},
            "numbers": {str(k): v for k, v in self.numbers.items()},
            "modalities": list(self.data.modalities),
            "split": {case.id: case.split for case in self.data.cases},
            "within_subject": self.within_subject,
            "weights_sha256": self.weights_sha256,
            "transfer": self.request.transfer,
            "compare_scratch": self.request.compare_scratch,
            "folds": self.request.folds,
            "tune_rate": self.request.tune_rate,
            "preprocessing": self.preprocessing.to_json(),
            "settings": _jsonable(asdict(self.settings)),
        }


def make_plan(request: Request, device: torch.device, *, progress: bool = False) -> Plan:
    """Read and check the data, and decide everything that the user left open.

    Raises:
        ConfigError: If the data cannot be used; names everything that is wrong with it.
        WeightsError, DownloadError: If the weights cannot be used.
    """
    plan, report = draft_plan(request, device, progress=progress)
    raise_if_bad(report)
    assert plan is not None
    return plan


def draft_plan(
    request: Request, device: torch.device, *, progress: bool = False
) -> tuple[Plan | None, DataReport]:
    """Return what ``make_plan`` does, without stopping at data that is wrong: the plan is None."""
    base, digest = _weights(request)
    preprocessing = _preprocessing(request, base)
    data = read_cases(
        images=request.images,
        labels=request.labels,
        data=request.data,
        task=request.task,
        modality=request.modality,
        label_names=request.label_names,
    )
    _check_kind(request, data, base)
    report = check_cases(data, preprocessing=preprocessing, progress=progress)
    if not report.ok:
        return None, report
    seed = int((request.settings or {}).get("seed", 0))
    data = split_cases(data, seed=seed)
    within = len({case.subject for case in data.cases}) == 1
    if within and data.task == "classification":
        finding = Finding(
            "error",
            str(data.source),
            "Expected scans of several subjects to train a classifier and to judge it, got one.",
        )
        return None, replace(report, findings=(*report.findings, finding))
    shape = report.median_shape
    kept = None
    if request.spacing is None:
        own = preprocessing.spacing or report.median_spacing_mm
        grid = _grid(request, data, own, shape, device)
        # Weights of native spacing keep it for a segmentation, unless a coarser grid was chosen.
        if data.task == "classification" or grid.spacing != own:
            x, y, z = (
                max(1, round(float(side))) for side in np.multiply(shape, own) / grid.spacing
            )
            shape, kept = (x, y, z), grid.labels_kept
            preprocessing = replace(preprocessing, spacing=grid.spacing)
    numbers, classes = _classes(data, report)
    voxels = [report.label_voxels.get(0, 0), *(report.label_voxels[v] for v in numbers)]
    settings = plan_settings(data.task, shape, voxels, device, request.settings or {})
    plan = Plan(
        request=request,
        data=data,
        report=report,
        classes=classes,
        numbers=numbers,
        within_subject=within,
        base=base,
        weights_sha256=digest,
        preprocessing=preprocessing,
        settings=settings,
        labels_kept=kept,
    )
    return plan, report


def _grid(
    request: Request,
    data: CaseSet,
    spacing: tuple[float, float, float],
    shape: Sequence[int],
    device: torch.device,
) -> Grid:
    """Choose the spacing of the model grid, from that of the weights or of the scans up."""
    if data.task == "classification":
        return Grid(classification_spacing(shape, spacing))
    given = (request.settings or {}).get("cube")
    side = max(given) if given else round(cube_voxels(device) ** (1 / 3))
    return segmentation_grid(data.of("train"), spacing, shape, side)


def _weights(request: Request) -> tuple[ModelConfig | None, str | None]:
    if request.weights is None:
        return None, None
    model: LocalModel = resolve_model(request.weights)
    return read_config(model.config), model.sha256


def _preprocessing(request: Request, base: ModelConfig | None) -> Preprocessing:
    preprocessing = base.preprocessing if base else Preprocessing()
    return replace(preprocessing, spacing=request.spacing) if request.spacing else preprocessing


def _check_kind(request: Request, data: CaseSet, base: ModelConfig | None) -> None:
    """Refuse weights that have no decoder where one is to be transferred, before anything is read.

    Raises:
        ConfigError: If so.
    """
    if data.task == "classification" or base is None or request.transfer == "encoder":
        return
    if base.kind not in ("unet", "segmenter"):
        raise ConfigError(
            f"Expected weights with a decoder (kind unet or segmenter), {base.name} is of kind "
            f"{base.kind}. Use --transfer encoder, or other weights."
        )


def _classes(data: CaseSet, report: DataReport) -> tuple[dict[int, int], dict[int, str]]:
    """Return value to class number, and class number to name."""
    if data.task == "classification":
        names = sorted({case.target for case in data.cases if case.target is not None})
        return {}, dict(enumerate(names))
    known = dict(data.classes or {})
    values = sorted(value for value, count in report.label_voxels.items() if value > 0 and count)
    numbers = {value: number for number, value in enumerate(values, start=1)}
    names_of = {0: known.get(0, "background")}
    return numbers, names_of | {n: known.get(value, str(value)) for value, n in numbers.items()}


def _jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
