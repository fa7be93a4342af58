"""The state of a data set: what each case is, what all have together, and what is wrong."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from universal_model_hub.fit.data.cases import Finding

PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """What a case without errors is."""

    id: str
    shape: tuple[int, ...]  # (X, Y, Z)
    spacing_mm: tuple[float, ...]
    extent_mm: tuple[float, ...]
    model_shape: tuple[int, ...]  # on the grid of the weights
    modalities: tuple[str, ...]  # as recognized or given, one a channel
    intensities: tuple[tuple[float, ...], ...]  # of each channel its ``PERCENTILES``
    label_voxels: Mapping[int, int] = field(default_factory=dict)
    label_ml: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The state of a data set."""

    findings: tuple[Finding, ...]
    cases: tuple[CaseFacts, ...]
    label_voxels: Mapping[int, int]  # over all cases
    classes: Mapping[int, str]  # names of label values, as far as they are known
    targets: Mapping[str, int]  # cases of each class
    splits: Mapping[str, int]  # cases of each side; "to be drawn" for those without one
    median_spacing_mm: tuple[float, float, float]
    median_shape: tuple[int, int, int]  # on the grid of the weights

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors()

    def errors(self) -> list[Finding]:
        """Return what stops before training."""
        return [finding for finding in self.findings if finding.level == "error"]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "ok": self.ok}

    def text(self) -> str:
        """Return the report for a terminal: what there is, and everything that is wrong."""
        return "\n".join([*_case_lines(self), *_total_lines(self), *_finding_lines(self)])


def _case_lines(report: DataReport) -> Iterator[str]:
    yield f"{'case':<28}{'voxels':>16}{'spacing, mm':>22}{'network':>16}  modality  labels, ml"
    for one in report.cases:
        labels = ", ".join(f"{v}: {ml:g}" for v, ml in one.label_ml.items() if v > 0)
        yield (
            f"{one.id[:27]:<28}{'x'.join(map(str, one.shape)):>16}"
            f"{_numbers(one.spacing_mm):>22}{'x'.join(map(str, one.model_shape)):>16}  "
            f"{','.join(one.modalities):<9} {labels}"
        )


def _total_lines(report: DataReport) -> Iterator[str]:
    for kind, counts in (("cases", report.splits), ("classes", report.targets)):
        if counts:
            yield f"{kind}: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    if not report.cases:
        return
    yield (
        f"median: spacing {_numbers(report.median_spacing_mm)} mm, "
        f"{' x '.join(map(str, report.median_shape))} voxels on the network's grid"
    )
    ends = " / ".join(f"{p:g}" for p in PERCENTILES)
    for channel in range(max(len(one.intensities) for one in report.cases)):
        found = [one.intensities[channel] for one in report.cases if len(one.intensities) > channel]
        low, middle, high = (float(value) for value in np.median(found, axis=0))
        yield (
            f"intensities of channel {channel + 1}, percentiles {ends} of a case, median of the "
            f"cases: {low:.6g} / {middle:.6g} / {high:.6g}"
        )
    for value, count in report.label_voxels.items():
        if value > 0:
            holders = [one for one in report.cases if one.label_voxels.get(value)]
            volume = math.fsum(one.label_ml[value] for one in holders)
            name = f" ({report.classes[value]})" if value in report.classes else ""
            yield f"label {value}{name}: {count} voxels, {volume:g} ml, in {len(holders)} cases"


def _finding_lines(report: DataReport) -> Iterator[str]:
    for level in ("error", "warning"):
        for finding in report.findings:
            if finding.level == level:
                yield f"{level}: {finding.where}: {finding.text}"
    number = len(report.errors())
    counted = "1 error" if number == 1 else f"{number} errors"
    yield f"{counted}: the data cannot be used" if number else "the data can be used"


def _numbers(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
