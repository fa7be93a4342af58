"""Checks that every corpus gets; each problem becomes a Finding, none stops the others.

Finite values, three dimensions, positive spacing, a minimum size, a foreground, integer labels from
the corpus's own set, one grid for a volume and its labels.
"""

import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from tqdm import tqdm

from training.corpora.case import Case, Corpus, Finding, Survey, error, warning
from universal_model_hub.errors import UniversalModelError, VolumeError
from universal_model_hub.volume import Volume, VolumeWarning

# Voxels a side: the smallest cubes are 1/8 of it (Sec. III-C), and a cube needs a voxel.
MIN_SIDE = 8
# Corners of two grids may differ by rounding of a header, as a share of the smallest voxel side.
GRID_TOLERANCE = 0.1
# HU of air, floored; lower values are padding outside the field of view.
LOWEST_HU = -1024
# Every CT scan of a body holds air or lung well below this; one that does not is not in HU.
AIR_HU = -200


@dataclass(frozen=True, eq=False)
class Grid:
    """Where a volume lies, read from its header alone."""

    shape: tuple[int, ...]
    affine: np.ndarray  # (4, 4), voxel index to RAS+ mm

    @property
    def spacing(self) -> np.ndarray:
        """(3,) in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_grid(path: Path) -> Grid:
    """Read shape and affine of a NIfTI, MetaImage or NRRD file without its voxels.

    Raises:
        VolumeError: If the header cannot be read.
    """
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            image = cast(nib.Nifti1Image, nib.load(path))
            grid = Grid(tuple(image.shape), np.asarray(image.affine, float))
        else:
            grid = _itk_grid(path)
    except Exception as cause:  # nibabel and ITK raise a dozen classes for a bad header
        raise VolumeError(
            f"Expected a readable header in {path.name}, got: {str(cause)[:200]}. Fetch it again."
        ) from cause
    shape = grid.shape
    while len(shape) > 3 and shape[-1] == 1:  # a single frame or channel is still a 3D volume
        shape = shape[:-1]
    return replace(grid, shape=shape)


def _itk_grid(path: Path) -> Grid:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    affine = np.eye(4)
    direction = np.reshape(reader.GetDirection(), (reader.GetDimension(),) * 2)[:3, :3]
    affine[:3, :3] = direction * np.asarray(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    return Grid(tuple(reader.GetSize()), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)  # LPS to RAS


def raise_to_air(volume: Volume) -> Volume:
    """Return a CT volume without values below -1024 HU, which are padding, not tissue."""
    if volume.array.min() >= LOWEST_HU:
        return volume
    return replace(volume, array=np.maximum(volume.array, volume.array.dtype.type(LOWEST_HU)))


def grid_findings(case: Case, grid: Grid) -> list[Finding]:
    """Check what a header shows: dimensions, spacing, size."""
    if len(grid.shape) != 3:
        return [
            error("not_3d", f"Expected 3 axes, got shape {grid.shape}.", "Split it.", case=case)
        ]
    findings = []
    spacing = grid.spacing
    if not np.isfinite(grid.affine).all() or spacing.min() <= 0:
        what = f"Expected positive spacing, got {spacing.round(4).tolist()} mm."
        findings.append(
            error("bad_spacing", what, "Repair the header or remove the case.", case=case)
        )
    if min(grid.shape) < MIN_SIDE:
        what = f"Expected at least {MIN_SIDE} voxels a side, got {grid.shape}."
        findings.append(
            error("too_small", what, "Remove the case; no cube fits into it.", case=case)
        )
    return findings


def same_grid(case: Case, grid: Grid, other: Grid, path: Path, what: str) -> list[Finding]:
    """Check that another volume (labels, another sequence) lies on the case's grid."""
    if grid.shape != other.shape:
        text = f"Expected {what} on the volume's grid {grid.shape}, got {other.shape}."
    elif (off := _corner_distance(grid, other)) > GRID_TOLERANCE:
        text = f"Expected {what} on the volume's grid, got corners {off:.2g} voxels away."
    else:
        return []
    fix = "Fetch both files again; if the header is known to be wrong, copy the other one's."
    return [error("geometry_mismatch", text, fix, file=path, case=case)]


def _corner_distance(grid: Grid, other: Grid) -> float:
    corners = [
        (*corner, 1.0) for corner in itertools.product(*((0.0, side - 1.0) for side in grid.shape))
    ]
    off = np.asarray(corners) @ (grid.affine - other.affine).T
    return float(np.linalg.norm(off[:, :3], axis=1).max() / grid.spacing.min())


def voxel_findings(case: Case, volume: Volume) -> list[Finding]:
    """Check the intensities that every volume of this modality must have."""
    low, high = float(volume.array.min()), float(volume.array.max())
    if low == high:
        what = f"Expected an image, got {low:g} in every voxel."
        return [error("empty_volume", what, "Fetch the file again or remove the case.", case=case)]
    if case.modality == "CT" and low > AIR_HU:
        what = f"Expected HU, with air near -1000, got values from {low:g} to {high:g}."
        return [
            warning("not_hu", what, "Look at it; subtract the offset if there is one.", case=case)
        ]
    if case.modality == "MR" and low < 0:
        what = f"Expected MR intensities of 0 and more, got {low:g}."
        return [warning("negative_mr", what, "Values below 0 are clipped to 0.", case=case)]
    return []


def label_findings(case: Case, labels: Volume, allowed: Iterable[int]) -> list[Finding]:
    """Check a label volume: whole numbers, from the corpus's set, not all background."""
    values = np.unique(labels.array)
    if not np.isfinite(values).all() or not np.array_equal(values, np.round(values)):
        what = "Expected whole numbers as labels, got fractions or NaN."
        fix = "Fetch the file again; labels must be resampled by nearest neighbor."
        return [error("label_not_integer", what, fix, file=case.labels, case=case)]
    expected = sorted(allowed)
    foreign = sorted({int(value) for value in values} - set(expected))
    if foreign:
        what = f"Expected labels from {expected}, got also {foreign[:8]}."
        fix = "Fetch the file again; correct the labels or remove the case."
        return [error("label_out_of_range", what, fix, file=case.labels, case=case)]
    if not values.any():
        what = "Expected a foreground, got labels of 0 only."
        return [error("empty_label", what, "Remove the case.", file=case.labels, case=case)]
    return []


def inspect(corpus: Corpus, folder: Path, *, fast: bool = False, progress: bool = False) -> Survey:
    """Check a whole corpus and collect every finding.

    Args:
        corpus: Which corpus the folder holds.
        folder: The corpus folder.
        fast: Read file lists, tables and headers only, no voxels.
        progress: Show a bar on stderr.

    Raises:
        ConfigError: If the folder does not hold this corpus.
    """
    survey = corpus.check_corpus(folder, corpus.survey(folder))
    findings = list(survey.findings)
    checked: set[Path] = set()  # labels shared by several volumes are read once
    for case in tqdm(survey.cases, desc=corpus.name, unit="volume", disable=not progress):
        findings += _case_findings(corpus, case, checked, fast=fast)
    return replace(survey, findings=tuple(relative(finding, folder) for finding in findings))


def used(cases: Sequence[Case], findings: Iterable[Finding]) -> tuple[Case, ...]:
    """Return the cases of subjects without an error, less those that are left out by rule."""
    wrong = {finding.case for finding in findings if finding.severity == "error"}
    subjects = {case.subject for case in cases if case.id in wrong}
    return tuple(c for c in cases if c.subject not in subjects and not c.left_out)


def relative(finding: Finding, folder: Path) -> Finding:
    """Return the finding with its file named from the corpus folder on: no home, no host."""
    path = Path(finding.file)
    if finding.file and path.is_absolute() and path.is_relative_to(folder.absolute()):
        return replace(finding, file=path.relative_to(folder.absolute()).as_posix())
    if finding.file and path.is_relative_to(folder):
        return replace(finding, file=path.relative_to(folder).as_posix())
    return finding


def _case_findings(corpus: Corpus, case: Case, checked: set[Path], *, fast: bool) -> list[Finding]:
    try:
        grid = read_grid(case.volume)
        findings = grid_findings(case, grid)
        if case.labels:
            findings += same_grid(case, grid, read_grid(case.labels), case.labels, "labels")
        if fast or findings or case.left_out:
            return findings
        volume, findings = _loaded(corpus, case)
        findings += voxel_findings(case, volume)
        if not any(finding.severity == "error" for finding in findings):
            findings += corpus.check_case(case, volume)
        if case.labels and case.labels not in checked:
            checked.add(case.labels)
            findings += label_findings(case, corpus.load_labels(case), corpus.label_names)
        return findings
    except (UniversalModelError, OSError) as cause:
        return [
            error("unreadable", str(cause), "Fetch the file again or remove the case.", case=case)
        ]


def _loaded(corpus: Corpus, case: Case) -> tuple[Volume, list[Finding]]:
    """Load a volume, and what was guessed or repaired on the way as findings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VolumeWarning)
        volume = corpus.load(case)
    findings = []
    for entry in caught:
        text = str(entry.message)
        if "NaN or Inf" not in text:
            findings.append(warning("volume_warning", text, "Look at the volume.", case=case))
        elif corpus.masked_by_nan:
            fix = "Nothing to do: they lie outside the mask and are read as the lowest value."
            findings.append(warning("nan_voxels", text, fix, case=case))
        else:
            fix = "Fetch the file again or remove the case."
            findings.append(error("nan_voxels", text, fix, case=case))
    return volume, findings
