"""A scan's hash is that of its voxels and header, however many files they are in."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from universal_model_hub.errors import VolumeError
from universal_model_hub.files import sha256_of
from universal_model_hub.fit.data.cases import Case, CaseSet
from universal_model_hub.fit.data.prepare import data_sha256, prepare_cases
from universal_model_hub.preprocess import Preprocessing
from universal_model_hub.volume import Volume, save_volume
from universal_model_hub.volume.content import scan_sha256


def voxels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, (8, 8, 8)).astype("<i2")


def dicom(folder: Path, seed: int) -> Path:
    """Write files as a DICOM series lies in its folder, and a hidden one; nobody reads them."""
    folder.mkdir(parents=True)
    for z in range(3):
        (folder / f"{z}.dcm").write_bytes(voxels(seed)[..., z].tobytes())
    (folder / ".DS_Store").write_bytes(bytes(seed))
    return folder


def analyze(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Pair(voxels(seed), np.eye(4)), folder / "scan.hdr")
    return folder / "scan.hdr"


def detached(folder: Path, seed: int, name: str, header: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "scan.raw").write_bytes(voxels(seed).tobytes())
    (folder / name).write_text(header)
    return folder / name


def metaimage(folder: Path, seed: int) -> Path:
    header = "NDims = 3\nDimSize = 8 8 8\nBinaryData = True\nElementDataFile = scan.raw\n"
    return detached(folder, seed, "scan.mhd", header)


def nrrd(folder: Path, seed: int) -> Path:
    header = "NRRD0004\nsizes: 8 8 8\nencoding: raw\ndata file: scan.raw\n"
    return detached(folder, seed, "scan.nhdr", header)


@pytest.mark.parametrize("write", [dicom, analyze, metaimage, nrrd])
def test_scans_whose_headers_or_folders_are_alike_differ_by_their_voxels(tmp_path, write):
    first = scan_sha256(write(tmp_path / "ill" / "scan", 0))
    assert scan_sha256(write(tmp_path / "well" / "scan", 1)) != first
    assert scan_sha256(write(tmp_path / "moved" / "scan", 0)) == first


def test_either_file_names_a_pair_and_a_single_file_is_hashed_as_it_is(tmp_path):
    pair = analyze(tmp_path / "pair", 0)
    assert scan_sha256(pair.with_suffix(".img")) == scan_sha256(pair)
    single = tmp_path / "scan.nii.gz"
    save_volume(Volume(voxels(0), np.eye(4)), single)
    assert scan_sha256(single) == sha256_of(single)


def test_missing_voxels_are_an_error(tmp_path):
    path = metaimage(tmp_path / "scan", 0)
    (tmp_path / "scan" / "scan.raw").unlink()
    with pytest.raises(VolumeError, match=r"data file of scan\.mhd"):
        scan_sha256(path)
    with pytest.raises(VolumeError, match=r"No such file.*gone\.nii"):
        scan_sha256(tmp_path / "gone.nii")


def test_cases_that_are_called_alike_are_prepared_apart(tmp_path):
    cases = [
        Case(id=name, subject=name, images=(analyze(tmp_path / name / "scan", seed),), target=name)
        for seed, name in enumerate(("ill", "well"))
    ]
    data = CaseSet(
        task="classification",
        cases=tuple(cases),
        modalities=("MR",),
        classes=None,
        layout="folders",
        source=tmp_path,
    )
    settings = Preprocessing()
    made = prepare_cases(cases, data, settings, {}, tmp_path / "cache")
    images = [np.load(prepared.image) for prepared in made]
    assert not np.array_equal(*images)
    before = data_sha256(data, settings, {})
    (tmp_path / "well" / "scan" / "scan.img").write_bytes(voxels(2).tobytes())
    assert data_sha256(data, settings, {}) != before
