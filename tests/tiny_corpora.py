"""Minimal corpora in their real layouts, written by hand: what the readers' tests start from."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SIDE = 10
AFFINE = np.array([[-0.7, 0, 0, 30], [0, -0.7, 0, 20], [0, 0, 2.5, -10], [0, 0, 0, 1.0]])  # LPS


def ct(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-1000, 400, (SIDE,) * 3).astype(np.int16)


def mr(seed: int = 0) -> np.ndarray:
    """A brain: intensities inside, exactly 0 at all corners."""
    array = np.zeros((SIDE,) * 3, np.int16)
    array[2:-2, 2:-2, 2:-2] = np.random.default_rng(seed).integers(50, 900, (SIDE - 4,) * 3)
    return array


def labels(*values: int) -> np.ndarray:
    array = np.zeros((SIDE,) * 3, np.int16)
    for row, value in enumerate(values):
        array[4, 4, row] = value
    return array


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def mhd(path: Path, array: np.ndarray, *, offset=(-5.0, -6.0, -7.0), mirrored=False) -> Path:
    """A MetaImage pair, spacing 0.5 x 0.5 x 2; mirrored as LUNA16's scans with -1 in the matrix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = "-1 0 0 0 -1 0 0 0 1" if mirrored else "1 0 0 0 1 0 0 0 1"
    raw = path.with_suffix(".raw")
    raw.write_bytes(array.astype("<i2").tobytes(order="F"))
    path.write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"CompressedData = False\nTransformMatrix = {matrix}\n"
        f"Offset = {' '.join(map(str, offset))}\nCenterOfRotation = 0 0 0\n"
        f"ElementSpacing = 0.5 0.5 2\nDimSize = {' '.join(map(str, array.shape))}\n"
        f"ElementType = MET_SHORT\nElementDataFile = {raw.name}\n"
    )
    return path


def luna16(folder: Path, num_subsets: int = 10) -> Path:
    """One volume a subset; each has a positive and a negative candidate at known voxels."""
    candidates, nodules = [], []
    for number in range(num_subsets):
        mirrored = number % 2 == 1
        mhd(folder / f"subset{number}" / f"1.2.{number}.mhd", ct(number), mirrored=mirrored)
        for voxel, positive in (((2, 3, 4), 1), ((6, 5, 1), 0)):
            sign = -1 if mirrored else 1
            x, y = (start + sign * 0.5 * v for start, v in zip((-5, -6), voxel[:2], strict=True))
            world = (x, y, -7 + 2 * voxel[2])
            candidates.append(f"1.2.{number},{world[0]},{world[1]},{world[2]},{positive}")
            if positive:
                nodules.append(f"1.2.{number},{world[0]},{world[1]},{world[2]},6.5")
    header = "seriesuid,coordX,coordY,coordZ"
    (folder / "candidates_V2.csv").write_text("\n".join([f"{header},class", *candidates, ""]))
    (folder / "annotations.csv").write_text("\n".join([f"{header},diameter_mm", *nodules, ""]))
    return folder


def lits2017(folder: Path, numbers=range(6)) -> Path:
    for number in numbers:
        nifti(folder / f"volume-{number}.nii", ct(number))
        nifti(folder / f"segmentation-{number}.nii", labels(1, 2))
    return folder


def brats2018(folder: Path, num_hgg: int = 3, num_lgg: int = 3) -> Path:
    root = folder / "MICCAI_BraTS_2018_Data_Training"
    for grade, num in (("HGG", num_hgg), ("LGG", num_lgg)):
        for number in range(num):
            name = f"Brats18_TCIA{'10' if grade == 'LGG' else '02'}_{number}_1"
            for sequence in ("t1", "t1ce", "t2", "flair"):
                nifti(root / grade / name / f"{name}_{sequence}.nii.gz", mr(number))
            nifti(root / grade / name / f"{name}_seg.nii.gz", labels(1, 2, 4))
    return folder


def msd_heart(folder: Path, num_train: int = 3, num_test: int = 2) -> Path:
    root = folder / "Task02_Heart"
    training, test = [], []
    for number in range(num_train):
        nifti(root / "imagesTr" / f"la_{number:03}.nii.gz", mr(number))
        nifti(root / "labelsTr" / f"la_{number:03}.nii.gz", labels(1))
        training.append(
            {
                "image": f"./imagesTr/la_{number:03}.nii.gz",
                "label": f"./labelsTr/la_{number:03}.nii.gz",
            }
        )
    for number in range(num_train, num_train + num_test):
        nifti(root / "imagesTs" / f"la_{number:03}.nii.gz", mr(number))
        test.append(f"./imagesTs/la_{number:03}.nii.gz")
    listing = {"training": training, "test": test, "numTraining": num_train, "numTest": num_test}
    (root / "dataset.json").write_text(json.dumps(listing))
    return folder


def mmwhs(folder: Path, num: int = 5) -> Path:
    for name, array in (("ct_train", ct), ("mr_train", mr)):
        for number in range(1001, 1001 + num):
            nifti(folder / name / f"{name}_{number}_image.nii.gz", array(number))
            nifti(folder / name / f"{name}_{number}_label.nii.gz", labels(205, 420, 500, 850))
    return folder


def adni_scan(folder: Path, subject: str, image: str, date: str = "2006-04-18") -> Path:
    name = "Spatially_Normalized__Masked_and_N3_corrected_T1"
    return nifti(
        folder / "ADNI" / subject / name / date / image / f"ADNI_{subject}_{image}.nii", mr()
    )


def adni(folder: Path, num_ad: int = 5, num_cn: int = 5) -> Path:
    rows = ['"Image Data ID","Subject","Group","Sex","Age"']
    for number in range(num_ad + num_cn):
        subject, image = f"002_S_{number:04}", f"I{100 + number}"
        adni_scan(folder, subject, image)
        rows.append(f'"{image}","{subject}","{"AD" if number < num_ad else "CN"}","F","77"')
    (folder / "search.csv").write_text("\n".join([*rows, ""]))
    return folder


WRITERS = {
    "luna16": luna16,
    "lits2017": lits2017,
    "brats2018": brats2018,
    "msd_heart": msd_heart,
    "mmwhs": mmwhs,
    "adni": adni,
}
