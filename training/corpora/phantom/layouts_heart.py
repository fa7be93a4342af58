"""MSD Task02_Heart and MMWHS: file names and formats of the real sets, filled with phantoms."""

from pathlib import Path

import numpy as np

from training.corpora.phantom.render_ct import CT_SCANNERS, render_ct
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
from universal_model_hub.files import write_json
from universal_model_hub.volume import Volume, save_volume

MSD_TRAPS = (
    "apple_double", "empty_label", "geometry_mismatch", "label_out_of_range", "nan_voxels",
)  # fmt: skip
MMWHS_TRAPS = (
    "empty_label", "geometry_mismatch", "label_out_of_range", "nan_voxels", "stray_421",
)  # fmt: skip
_IN_LABELS = ("empty_label", "geometry_mismatch", "label_out_of_range", "stray_421")
_MMWHS_VALUES = {
    "left_ventricle": 500, "right_ventricle": 600, "left_atrium": 420, "right_atrium": 550,
    "myocardium": 205, "aorta": 820, "pulmonary_artery": 850,
}  # fmt: skip
_APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(2)


def is_msd_test(index: int) -> bool:
    """Every third subject, as 10 of the real 30, is a test image without labels."""
    return index % 3 == 2


def write_msd_heart_subject(job: Job) -> Written:
    """Write an image and, for training subjects, its label of the left atrium."""
    rng = subject_rng(job, "msd_heart")
    root = job.folder / "Task02_Heart"
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (root / name).mkdir(parents=True, exist_ok=True)
    subject = framed_subject(job, "msd_heart", "heart", rng, spread=0.06)
    scanner = MR_SCANNERS[str(rng.choice(["north_1.5T", "south_1.5T"]))]
    volume = filed(render_mr(subject, rng, "bSSFP", scanner), job, "LAS")
    volume = Volume(volume.array.astype(np.float32), volume.affine)
    name = f"la_{job.number + 1:03d}.nii.gz"
    if is_msd_test(job.number):
        save_volume(volume, root / "imagesTs" / name)
        return Written({"test": [(f"./imagesTs/{name}",)]}, {})
    image, label = root / "imagesTr" / name, root / "labelsTr" / name
    save_scan(volume, image, job)
    labels = filed(label_volume(subject, {"left_atrium": 1}, np.uint8), job, "LAS")
    save_volume(trapped_labels(labels, job, foreign=2), label)
    hits = planted(job, _IN_LABELS, label) | planted(job, ("nan_voxels",), image)
    if "apple_double" in job.traps:
        for path in (image, label):
            path.with_name(f"._{name}").write_bytes(_APPLE_DOUBLE.ljust(4096, b"\0"))
        hits |= planted(job, ("apple_double",), image.with_name(f"._{name}"))
    return Written({"training": [(f"./imagesTr/{name}", f"./labelsTr/{name}")]}, hits)


def write_msd_heart_tables(folder: Path, rows: dict[str, list[tuple]]) -> None:
    """Write dataset.json with the fields of the real one."""
    training, test = rows.get("training", []), rows.get("test", [])
    write_json(
        folder / "Task02_Heart" / "dataset.json",
        {
            "name": "LeftAtrium",
            "description": "SYNTHETIC phantoms in the layout of MSD Task02_Heart",
            "reference": "none",
            "licence": "Apache-2.0",
            "release": "phantom",
            "tensorImageSize": "3D",
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "left atrium"},
            "numTraining": len(training),
            "numTest": len(test),
            "training": [{"image": image, "label": label} for image, label in training],
            "test": [image for (image,) in test],
        },
    )


def write_mmwhs_subject(job: Job, modality: str) -> Written:
    """Write one image and label; CT and MR subjects are different people."""
    corpus = f"mmwhs_{modality}"
    rng = subject_rng(job, corpus)
    folder = job.folder / f"{modality}_train"
    folder.mkdir(parents=True, exist_ok=True)
    subject = framed_subject(job, corpus, "heart", rng, spread=0.08)
    if modality == "ct":
        scanner = CT_SCANNERS[str(rng.choice(["soft", "sharp", "smooth"]))]
        volume = render_ct(subject, rng, scanner, phase="arterial")
    else:
        choice = str(rng.choice(["north_1.5T", "south_1.5T", "west_3T"]))
        volume = render_mr(subject, rng, "bSSFP", MR_SCANNERS[choice])
    # Orientation varies by file in the real set, axes swapped included.
    order = ("LPS", "RAS", "PIR", "LSA")[job.number % 4]
    stem = f"{modality}_train_{1001 + job.number}"
    image, label = folder / f"{stem}_image.nii.gz", folder / f"{stem}_label.nii.gz"
    save_scan(filed(volume, job, order), image, job)
    labels = filed(label_volume(subject, _MMWHS_VALUES, np.int16), job, order)
    save_volume(trapped_labels(labels, job, foreign=77), label)
    return Written({}, planted(job, _IN_LABELS, label) | planted(job, ("nan_voxels",), image))
