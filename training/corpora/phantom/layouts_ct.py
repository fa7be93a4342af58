"""LUNA16 and LiTS2017: file names, tables and formats of the real sets, filled with phantoms."""

import csv
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from training.corpora.phantom.lungs import Nodule
from training.corpora.phantom.render_ct import CT_SCANNERS, render_ct
from training.corpora.phantom.scan_files import (
    Job,
    Written,
    filed,
    framed_subject,
    label_volume,
    planted,
    save_scan,
    subject_rng,
    trapped_labels,
    world_scale,
)
from training.corpora.phantom.subject import PhantomSubject
from training.corpora.phantom.tissues import TISSUES
from universal_model_hub.volume import Volume, save_volume

LUNA_TRAPS = ("candidate_outside", "unknown_seriesuid")
LITS_TRAPS = (
    "empty_label", "false_spacing", "geometry_mismatch", "label_out_of_range", "nan_voxels",
)  # fmt: skip
_FALSE_CANDIDATES = {"candidates.csv": 40, "candidates_V2.csv": 56}  # a scan
_FALSE_SPACING = range(28, 48)  # LITS-CHALLENGE issue 14
_HEADERS = {
    "annotations.csv": ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"),
    "candidates.csv": ("seriesuid", "coordX", "coordY", "coordZ", "class"),
    "candidates_V2.csv": ("seriesuid", "coordX", "coordY", "coordZ", "class"),
}


def write_luna16_subject(job: Job) -> Written:
    """Write ``subsetK/<uid>.mhd`` and its lungs; return its rows of the three tables."""
    rng = subject_rng(job, "luna16")
    # 2.25 is the root of UIDs made from random numbers: no hospital's.
    series = f"2.25.{int.from_bytes(rng.bytes(15), 'big')}"
    subject = framed_subject(job, "luna16", "chest", rng, spread=0.08,
                             num_nodules=int(rng.integers(1, 7)))  # fmt: skip
    scanner = CT_SCANNERS[str(rng.choice(["sharp", "low_dose", "soft"]))]
    # Most real files run to the patient's left and back; some have a -1 in their matrix.
    order = "RAS" if job.number % 4 == 3 else "LPS"
    volume = filed(render_ct(subject, rng, scanner), job, order)
    for name in ("seg-lungs-LUNA16", *(f"subset{k}" for k in range(10))):
        (job.folder / name).mkdir(parents=True, exist_ok=True)
    # Steps of 7 reach the test subsets (7 to 9) with the first three subjects already.
    path = job.folder / f"subset{7 * job.number % 10}" / f"{series}.mhd"
    _write_mhd(volume, path, compressed=False)
    _write_mhd(filed(_lungs(subject), job, order), job.folder / "seg-lungs-LUNA16" / path.name,
               compressed=True)  # fmt: skip
    rows = _candidate_rows(subject, series, world_scale(job), rng)
    if "candidate_outside" in job.traps:
        rows["candidates_V2.csv"].append((series, "5000.0", "0.0", "0.0", "0"))
    if "unknown_seriesuid" in job.traps:
        rows["candidates_V2.csv"].append(("2.25.404", "0.0", "0.0", "0.0", "0"))
    return Written(rows, planted(job, LUNA_TRAPS, job.folder / "candidates_V2.csv"))


def write_luna16_tables(folder: Path, rows: dict[str, list[tuple]]) -> None:
    """Write annotations and both versions of the candidates, in LPS mm as the real tables."""
    for name, header in _HEADERS.items():
        write_table(folder / name, header, rows.get(name, []))


def write_lits2017_subject(job: Job) -> Written:
    """Write ``volume-N.nii`` and ``segmentation-N.nii``."""
    rng = subject_rng(job, "lits2017")
    subject = framed_subject(job, "lits2017", "abdomen", rng, spread=0.08)
    scanner = CT_SCANNERS[str(rng.choice(["soft", "smooth"]))]
    volume = render_ct(subject, rng, scanner, phase="portal")
    values = {"liver": 1, "liver_vessel": 1, "liver_lesion": 2}
    order = ("RAS", "LPS", "LAS")[job.number % 3]  # orientations differ in the real set too
    labels = trapped_labels(
        filed(label_volume(subject, values, np.uint8), job, order), job, foreign=3
    )
    volume = filed(volume, job, order)
    number = job.number + (_FALSE_SPACING.start - 1 if "false_spacing" in job.traps else 0)
    if "false_spacing" in job.traps and number in _FALSE_SPACING:
        volume, labels = Volume(volume.array, np.eye(4)), Volume(labels.array, np.eye(4))
    path = job.folder / f"volume-{number}.nii"
    segmentation = job.folder / f"segmentation-{number}.nii"
    save_scan(volume, path, job)
    save_volume(labels, segmentation)
    in_labels = ("empty_label", "geometry_mismatch", "label_out_of_range")
    hits = planted(job, in_labels, segmentation) | planted(job, ("nan_voxels",), path)
    if number in _FALSE_SPACING:
        hits |= planted(job, ("false_spacing",), path)
    return Written({}, hits)


def write_table(path: Path, header: tuple, rows: list[tuple]) -> None:
    """Write a CSV table with one header line."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def _lungs(subject: PhantomSubject) -> Volume:
    """Lung labels as the real set's: 3 left, 4 right, 5 trachea and bronchi."""
    inside = np.isin(
        subject.labels,
        [TISSUES[name] for name in ("lung", "lung_vessel", "nodule", "ground_glass")],
    )
    x = subject.affine[0, 3] + subject.spacing[0] * np.arange(subject.labels.shape[0])
    side = np.where(x < 0, 3, 4).astype(np.uint8).reshape(-1, 1, 1)
    lungs = inside * side
    lungs[subject.labels == TISSUES["airway"]] = 5
    return Volume(lungs, subject.affine)


def _candidate_rows(
    subject: PhantomSubject, series: str, scale: float, rng: np.random.Generator
) -> dict[str, list[tuple]]:
    nodules: list[Nodule] = subject.facts["nodules"]
    centers = np.array([nodule.center for nodule in nodules]).reshape(-1, 3)
    rows: dict[str, list[tuple]] = {
        "annotations.csv": [
            _row(series, scale * center, f"{scale * nodule.diameter:.6f}")
            for center, nodule in zip(centers, nodules, strict=True)
        ]
    }
    for table, count in _FALSE_CANDIDATES.items():
        found = []
        for center, nodule in zip(centers, nodules, strict=True):
            # The newer detectors find a nodule more than once.
            for _ in range(1 if table == "candidates.csv" else int(rng.integers(1, 3))):
                near = center + rng.normal(0, 0.08 * nodule.diameter, 3)
                found.append(_row(series, scale * near, "1"))
        for place in _false_places(subject, nodules, count, rng):
            found.append(_row(series, scale * place, "0"))
        order = rng.permutation(len(found))
        rows[table] = [found[i] for i in order]
    return rows


def _false_places(
    subject: PhantomSubject, nodules: list[Nodule], count: int, rng: np.random.Generator
) -> np.ndarray:
    """Places that look like nodules but are none, (P, 3) mm: vessels, chest wall, airways."""
    places = []
    for tissues, share in ((("lung_vessel",), 0.7), (("airway_wall", "cortical_bone"), 0.3)):
        voxels = np.flatnonzero(np.isin(subject.labels, [TISSUES[name] for name in tissues]))
        if len(voxels):
            drawn = rng.choice(voxels, round(share * count))
            index = np.stack(np.unravel_index(drawn, subject.labels.shape), axis=1)
            places.append(index @ subject.affine[:3, :3].T + subject.affine[:3, 3])
    found = np.concatenate(places) if places else np.zeros((0, 3))
    for nodule in nodules:
        found = found[np.linalg.norm(found - nodule.center, axis=1) > nodule.diameter]
    return found


def _row(series: str, ras_mm: np.ndarray, last: str) -> tuple:
    x, y, z = ras_mm * (-1, -1, 1)
    return series, f"{x:.6f}", f"{y:.6f}", f"{z:.6f}", last


def _write_mhd(volume: Volume, path: Path, *, compressed: bool) -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine  # RAS to LPS, ITK's convention
    image = sitk.GetImageFromArray(volume.array.transpose(2, 1, 0))
    image.SetSpacing(volume.spacing)
    image.SetOrigin(tuple(float(v) for v in affine[:3, 3]))
    image.SetDirection((affine[:3, :3] / np.array(volume.spacing)).ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=compressed)
