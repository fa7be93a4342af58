"""BraTS2018 and ADNI: file names, tables and formats of the real sets, filled with phantoms."""

from pathlib import Path

import numpy as np

from training.corpora.phantom.layouts_ct import write_table
from training.corpora.phantom.render_mr import MR_SCANNERS, render_mr
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
)
from universal_model_hub.volume import Volume, save_volume

BRATS_TRAPS = (
    "empty_label", "geometry_mismatch", "label_out_of_range", "missing_modality", "nan_voxels",
)  # fmt: skip
ADNI_TRAPS = ("duplicate_subject", "nan_voxels")
_SEQUENCES = {"t1": "T1", "t1ce": "T1c", "t2": "T2", "flair": "FLAIR"}
_BRATS_VALUES = {"tumor_core": 1, "edema": 2, "enhancing_tumor": 4}
_DESCRIPTION = "Spatially Normalized, Masked and N3 corrected T1"
_ADNI_COLUMNS = (
    "Image Data ID", "Subject", "Group", "Sex", "Age", "Visit", "Modality", "Description", "Type",
    "Acq Date", "Format", "Downloaded",
)  # fmt: skip


def write_brats2018_subject(job: Job) -> Written:
    """Write the five files of one patient; three of four are HGG, as 210 of the real 285."""
    rng = subject_rng(job, "brats2018")
    grade = "LGG" if job.number % 4 == 3 else "HGG"
    name = f"Brats18_PHANTOM{job.number:03d}_1"
    root = job.folder / "MICCAI_BraTS_2018_Data_Training"
    for other in ("HGG", "LGG"):
        (root / other).mkdir(parents=True, exist_ok=True)
    folder = root / grade / name
    folder.mkdir()
    subject = framed_subject(job, "brats2018", "brain", rng, tumor=grade)
    scanner = MR_SCANNERS[str(rng.choice(list(MR_SCANNERS)))]
    for file_name, sequence in _SEQUENCES.items():
        if file_name == "t2" and "missing_modality" in job.traps:
            continue
        volume = _at_corner(filed(render_mr(subject, rng, sequence, scanner, stripped=True),
                                  job, "LPS"))  # fmt: skip
        path = folder / f"{name}_{file_name}.nii.gz"
        save_scan(volume, path, job._replace(traps=job.traps if file_name == "t1" else frozenset()))
    labels = _at_corner(filed(label_volume(subject, _BRATS_VALUES, np.uint8), job, "LPS"))
    path = folder / f"{name}_seg.nii.gz"
    save_volume(trapped_labels(labels, job, foreign=3), path)
    hits = planted(job, ("empty_label", "geometry_mismatch", "label_out_of_range"), path)
    hits |= planted(job, ("nan_voxels",), folder / f"{name}_t1.nii.gz")
    hits |= planted(job, ("missing_modality",), folder)
    survival = (name, f"{rng.uniform(30, 80):.3f}", int(rng.integers(30, 1500)))
    return Written({"survival": [survival] if grade == "HGG" else []}, hits)


def write_brats2018_tables(folder: Path, rows: dict[str, list[tuple]]) -> None:
    """Write survival_data.csv, whose numbers mean nothing here."""
    path = folder / "MICCAI_BraTS_2018_Data_Training" / "survival_data.csv"
    write_table(path, ("BraTS18ID", "Age", "Survival"), rows.get("survival", []))


def write_adni_subject(job: Job) -> Written:
    """Write one normalized, masked T1 scan; patients (AD) and controls (CN) take turns."""
    rng = subject_rng(job, "adni")
    patient = job.number % 2 == 0
    atrophy = draw_atrophy(patient, rng)
    subject = framed_subject(job, "adni", "brain", rng, atrophy=atrophy, normalized=True)
    age, sex = rng.uniform(60, 88), str(rng.choice(["F", "M"]))
    # No real site has the number 999, no real scan is of the year 1900.
    identity = f"999_S_{job.number + 1:04d}"
    rows: list[tuple] = []
    hits: dict[str, str] = {}
    described = _DESCRIPTION.replace(",", "_").replace(" ", "_")
    for visit in range(2 if "duplicate_subject" in job.traps else 1):
        scanner = MR_SCANNERS[str(rng.choice(list(MR_SCANNERS)))]
        volume = filed(
            render_mr(subject, rng, "T1", scanner, stripped=True, unbiased=True), job, "LAS"
        )
        image_id = f"I{9_000_000 + 10 * job.number + visit}"
        month = 1 + 6 * visit
        date = f"1900-{month:02d}-01_00_00_00.0"
        folder = job.folder / "ADNI" / identity / described / date / image_id
        folder.mkdir(parents=True)
        path = folder / f"ADNI_{identity}_MR_{described}_Br_1900{month:02d}01_{image_id}.nii"
        save_scan(Volume(volume.array.astype(np.float32), volume.affine), path, job)
        group, visit_code = "AD" if patient else "CN", f"m{6 * visit:02d}"
        rows.append((image_id, identity, group, sex, round(age), visit_code, "MRI", _DESCRIPTION,
                     "Processed", f"{month}/01/1900", "NiFTI", ""))  # fmt: skip
        hits |= planted(job, ADNI_TRAPS, path)
    return Written({"search": rows}, hits)


def draw_atrophy(patient: bool, rng: np.random.Generator) -> float:
    """Draw the atrophy of an AD patient or a control, 0 to 1; the two groups overlap."""
    return float(np.clip(rng.normal(0.56 if patient else 0.26, 0.15), 0, 1))


def write_adni_tables(folder: Path, rows: dict[str, list[tuple]]) -> None:
    """Write the search table of the LONI archive."""
    write_table(folder / "ADNI_phantom_search.csv", _ADNI_COLUMNS, rows.get("search", []))


def _at_corner(volume: Volume) -> Volume:
    """Return the volume with the origin that all real BraTS files share: (0, 239, 0) at 1 mm."""
    affine = volume.affine.copy()
    affine[:3, 3] = (0, (volume.shape[1] - 1) * volume.spacing[1], 0)
    return Volume(volume.array, affine)
