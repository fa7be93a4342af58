"""scan.nii.gz -> labels.nii.gz is right in world space, whatever the grid of the scan."""

import itertools

import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from torch import Tensor, nn

from universal_model_hub.predict import predict
from universal_model_hub.preprocess import Preprocessing, PreprocessWarning
from universal_model_hub.volume import Volume, load_volume, save_volume

THRESHOLD_HU = 100.0
INSIDE_HU, OUTSIDE_HU = 400.0, -200.0


class Threshold(nn.Module):
    """Label 1 above a threshold; logits grow linearly with the intensity, as CT is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocessing = Preprocessing()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, X, Y, Z) in [0, 1] to logits (N, 2, X, Y, Z)."""
        hu = 2000 * x - 1000
        return torch.cat([THRESHOLD_HU - hu, hu - THRESHOLD_HU], dim=1) / 100


def affine_of(spacing, angles=(0.0, 0.0, 0.0), origin=(-31.0, 17.5, 240.0)) -> np.ndarray:
    """Return an affine with voxel axes turned by angles in degrees about x, y and z."""
    rotation = np.eye(3)
    for axis, degrees in enumerate(angles):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        rotation = turn @ rotation
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return (X, Y, Z, 3): the RAS+ mm of every voxel center."""
    index = np.stack(np.indices(shape), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def soft_shape(shape, affine, half_widths_mm, edge_mm=2.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw an ellipsoid in world space with a soft edge, as a scanner shows it.

    Returns:
        Intensities in HU, int16, and the mask above the threshold.
    """
    center = affine[:3, :3] @ ((np.array(shape) - 1) / 2 + 0.3) + affine[:3, 3]
    offset = (world(affine, shape) - center) / half_widths_mm
    radius = np.linalg.norm(offset, axis=-1)
    depth_mm = (1 - radius) * np.min(half_widths_mm)
    share = 1 / (1 + np.exp(-4 * depth_mm / edge_mm))
    hu = OUTSIDE_HU + (INSIDE_HU - OUTSIDE_HU) * share
    return np.round(hu).astype(np.int16), np.round(hu) > THRESHOLD_HU


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def assert_same_place(labels: Volume, scan: Volume, mask: np.ndarray) -> None:
    """Check Dice, and the centroid in world space, to the limits that are promised."""
    assert labels.shape == scan.shape
    assert np.array_equal(labels.affine, scan.affine)
    found = labels.array > 0
    assert dice(found, mask) >= 0.98
    places = world(scan.affine, scan.shape)
    shift = places[found].mean(axis=0) - places[mask].mean(axis=0)
    assert np.abs(np.linalg.solve(scan.affine[:3, :3], shift)).max() <= 0.25


CASES = {
    "one mm": ((40, 33, 27), (1.0, 1.0, 1.0), (0, 0, 0)),
    "fine": ((61, 54, 47), (0.6, 0.6, 0.6), (0, 0, 0)),
    "coarse": ((25, 21, 19), (2.0, 2.0, 2.0), (0, 0, 0)),
    "thick slices": ((51, 47, 15), (0.7, 0.7, 2.5), (0, 0, 0)),
    "very thick slices": ((71, 65, 9), (0.45, 0.45, 5.0), (0, 0, 0)),
    "three spacings": ((39, 31, 13), (0.9, 1.3, 3.7), (0, 0, 0)),
    "oblique": ((45, 37, 29), (0.8, 0.8, 1.25), (17, -23, 11)),
    "oblique, about to tip over": ((45, 37, 29), (0.8, 1.1, 1.25), (44, 40, -43)),
    "odd sizes, long": ((101, 23, 17), (1.1, 0.9, 1.7), (0, 30, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_i13_shapes_come_back_where_they_are(name):
    shape, spacing, angles = CASES[name]
    affine = affine_of(spacing, angles)
    extent = np.array(shape) * spacing
    array, mask = soft_shape(shape, affine, half_widths_mm=np.full(3, 0.3 * extent.min()))
    scan = Volume(array, affine)

    labels = predict(Threshold(), scan, modality="CT")

    assert mask.any(axis=(1, 2)).sum() >= 4  # the shape is at least four voxels wide
    assert_same_place(labels, scan, mask)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.25, 1.25, 3.0), (2.0, 1.5, 4.0)])
def test_sharp_boxes_of_four_voxels_come_back(spacing):
    array = np.full((23, 21, 19), -200, np.int16)
    array[9:13, 8:12, 7:11] = 400
    scan = Volume(array, affine_of(spacing))

    labels = predict(Threshold(), scan, modality="CT")

    assert_same_place(labels, scan, array > THRESHOLD_HU)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((48, 40, 1), (0.8, 0.8, 8.0)),
        ((1, 40, 37), (8.0, 1.0, 1.0)),
        ((64, 64, 1), (0.5, 0.5, 1.0)),
        ((40, 41, 3), (0.7, 0.7, 8.0)),
        ((5, 5, 5), (1.0, 1.0, 1.0)),
        ((6, 4, 5), (0.9, 2.0, 1.1)),
    ],
)
def test_f02_one_slice_and_tiny_volumes(shape, spacing):
    affine = affine_of(spacing, (5, 0, 10))
    half = 0.32 * max(n * s for n, s in zip(shape, spacing, strict=True))
    if min(shape) < 4:
        # A cylinder through the slices: the shape goes on where the volume ends.
        places = np.stack(np.indices(shape), axis=-1) * spacing
        thin = int(np.argmin(shape))
        offset = places - places.reshape(-1, 3).mean(axis=0)
        offset[..., thin] = 0
        share = 1 / (1 + np.exp(-2 * (half - np.linalg.norm(offset, axis=-1))))
        array = np.round(OUTSIDE_HU + (INSIDE_HU - OUTSIDE_HU) * share).astype(np.int16)
    else:
        array = np.full(shape, -200, np.int16)
        array[:4, :4, :4] = 400
    scan = Volume(array, affine)

    labels = predict(Threshold(), scan, modality="CT")

    assert_same_place(labels, scan, array > THRESHOLD_HU)


def test_one_voxel():
    scan = Volume(np.array([[[400]]], np.int16), affine_of((3.0, 3.0, 3.0)))
    with pytest.warns(PreprocessWarning, match="no Hounsfield units"):
        labels = predict(Threshold(), scan, modality="CT")
    assert labels.array.tolist() == [[[1]]]


ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(["RL", "AP", "SI"])
    for codes in itertools.product(*order)
]


@pytest.fixture(scope="module")
def oblique_scan() -> tuple[Volume, np.ndarray]:
    affine = affine_of((0.9, 1.3, 2.2), (8, -12, 5))
    array, _ = soft_shape((27, 22, 13), affine, half_widths_mm=np.array([7.0, 9.0, 11.0]))
    noise = np.random.default_rng(0).normal(0, 150, array.shape)
    array = (array + noise).astype(np.int16)
    return Volume(array, affine), predict(Threshold(), Volume(array, affine), modality="CT").array


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_i13_labels_are_bitwise_the_same_in_all_48_orientations(oblique_scan, orientation):
    scan, expected = oblique_scan
    transform = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    turned = Volume(
        np.ascontiguousarray(reoriented(scan.array, transform)),
        scan.affine @ inv_ornt_aff(transform, scan.shape),
    )

    labels = predict(Threshold(), turned, modality="CT")

    assert turned.orientation == orientation
    assert np.array_equal(labels.array, reoriented(expected, transform))
    assert np.array_equal(labels.affine, turned.affine)


def reoriented(array: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Permute and flip the axes of an array as a nibabel orientation transform says."""
    flips = tuple(slice(None, None, int(sign)) for sign in transform[:, 1])
    return array[flips].transpose(np.argsort(transform[:, 0]))


def test_the_whole_way_through_files(tmp_path):
    affine = affine_of((0.8, 0.8, 2.5), (10, 20, -15))
    affine[:, :2] *= -1  # LPS, as scanners write it
    array, mask = soft_shape((45, 39, 15), affine, half_widths_mm=np.array([9.0, 7.0, 11.0]))
    save_volume(Volume(array, affine), tmp_path / "scan.nii.gz")

    labels = predict(Threshold(), tmp_path / "scan.nii.gz", modality="CT")
    save_volume(labels, tmp_path / "labels.nii.gz")

    scan, read = load_volume(tmp_path / "scan.nii.gz"), load_volume(tmp_path / "labels.nii.gz")
    assert read.array.dtype == np.uint8
    assert_same_place(read, scan, mask)
    np.testing.assert_array_equal(read.affine, scan.affine)


def test_probabilities_lie_on_the_scans_own_grid_and_sum_to_one():
    affine = affine_of((0.8, 1.2, 2.5), (10, 20, -15)) @ np.diag([-1, 1, 1, 1])
    array, mask = soft_shape((33, 28, 15), affine, half_widths_mm=np.array([9.0, 7.0, 11.0]))
    scan = Volume(array, affine)

    maps = predict(Threshold(), scan, modality="CT", output="probabilities")

    assert list(maps) == [0, 1]
    np.testing.assert_allclose(maps[0].array + maps[1].array, 1, atol=1e-6)
    assert all(value.array.dtype == np.float32 for value in maps.values())
    assert_same_place(Volume((maps[1].array > 0.5).astype(np.uint8), affine), scan, mask)
    # Logits are linear in HU, so probabilities are known at voxels that resampling keeps.
    labels = predict(Threshold(), scan, modality="CT")
    assert np.array_equal(labels.array > 0, maps[1].array > maps[0].array)


def test_scan_and_model_are_left_as_they_are():
    array, _ = soft_shape((21, 20, 9), affine_of((1, 1, 3)), np.array([6.0, 6.0, 9.0]))
    scan = Volume(array, affine_of((1, 1, 3)))
    before, affine_before = array.copy(), scan.affine.copy()
    model = Threshold().train()

    predict(model, scan, modality="CT")

    assert np.array_equal(scan.array, before)
    assert np.array_equal(scan.affine, affine_before)
    assert model.training
