"""To the model grid and back: every place in the world, every voxel, every orientation."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from universal_model_hub.preprocess import Preprocessing, preprocess
from universal_model_hub.volume import Volume

LINEAR = Preprocessing(mr_clip=(-10, 2000), mr_rescale="window")  # nothing is cut off
FLIPS = list(itertools.product([1, -1], repeat=3))
ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), FLIPS))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def oblique(spacing, degrees=(17, -23, 31), origin=(-40.0, 25.0, 700.0)) -> np.ndarray:
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    affine[:3, :3] = rotation * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def stored_otherwise(volume: Volume, axes, signs) -> Volume:
    """Return the same scan with its voxels in another order."""
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        to_old[old, new] = sign
        to_old[old, 3] = 0 if sign > 0 else volume.shape[old] - 1
    array = volume.array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    return Volume(np.ascontiguousarray(array), volume.affine @ to_old)


def in_world(affine, index) -> np.ndarray:
    return affine[:3, :3] @ index + affine[:3, 3]


def dice(a, b) -> float:
    return 2 * np.sum(a & b) / max(1, a.sum() + b.sum())


# All 48 orientations


@pytest.mark.parametrize("order", [0, 1, 3])
def test_i13_the_same_scan_in_any_of_48_orientations_is_bitwise_the_same(order):
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 1500, (23, 19, 11)).astype(np.int16)
    volume = Volume(array, oblique((0.7, 0.9, 2.4)))
    settings = Preprocessing(order=order)
    expected, first = preprocess(volume, settings)
    answer = rng.random(first.model_shape).astype(np.float32)
    for axes, signs in ORIENTATIONS:
        version = stored_otherwise(volume, axes, signs)
        cube, record = preprocess(version, settings)
        assert torch.equal(cube, expected), (axes, signs)
        np.testing.assert_allclose(record.model_affine, first.model_affine, atol=1e-9)
        back = Volume(first.back(answer).numpy(), volume.affine)
        again = stored_otherwise(back, axes, signs)
        assert np.array_equal(record.back(answer).numpy(), again.array), (axes, signs)


def test_unorient_leads_each_voxel_back_bit_by_bit():
    array = np.random.default_rng(1).normal(size=(5, 4, 3)).astype(np.float32)
    volume = Volume(array, np.eye(4))
    native = Preprocessing(spacing=None, mr_clip=(-9, 9), mr_rescale="window")
    for axes, signs in ORIENTATIONS:
        version = stored_otherwise(volume, axes, signs)
        cube, record = preprocess(version, native, "MR")
        own = preprocess(volume, native, "MR")[0][0, 0].numpy()
        assert np.array_equal(cube[0, 0].numpy(), own)
        assert np.array_equal(record.unorient(array), version.array)
        channels = np.stack([array, -array])
        assert np.array_equal(record.unorient(channels)[1], -version.array)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPR", "AIL"])
def test_any_model_orientation_leads_back(codes):
    labels = np.random.default_rng(2).integers(0, 5, (6, 5, 4)).astype(np.uint8)
    volume = Volume(labels, oblique((1, 1, 1)))
    cube, record = preprocess(volume, Preprocessing(codes, None, mr_clip=(0, 10)), "MR")
    assert np.array_equal(record.back(cube[0, 0] * 4, order=0).numpy(), labels)


# Places in the world

GRIDS = {
    "anisotropic": ((48, 44, 17), (0.7, 0.75, 2.5)),
    "odd sizes": ((33, 31, 29), (1.3, 0.9, 1.1)),
    "thick slices": ((45, 47, 9), (0.8, 0.8, 6.0)),
    "fine": ((61, 53, 57), (0.5, 0.45, 0.4)),
    "coarse": ((15, 13, 11), (2.9, 3.1, 3.3)),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("degrees", [(0, 0, 0), (17, -23, 31), (44, 3, -80)])
def test_i13_a_smooth_blob_stays_where_it_is_in_the_world_there_and_back(name, degrees):
    shape, spacing = GRIDS[name]
    affine = oblique(spacing, degrees)
    rng = np.random.default_rng(3)
    middle = (np.array(shape) - 1) / 2 + rng.uniform(-0.5, 0.5, 3)
    at = np.indices(shape) - middle[:, None, None, None]
    distance = at * np.reshape(spacing, (3, 1, 1, 1))  # mm along the own axes
    width = np.maximum(2.0, np.array(spacing)).reshape(3, 1, 1, 1)
    blob = 1000 * np.exp(-((distance / width) ** 2).sum(axis=0) / 2)
    cube, record = preprocess(Volume(blob.astype(np.float32), affine), LINEAR, "MR")
    values = cube[0, 0].numpy() * 2010 - 10
    there = in_world(record.model_affine, np.array(ndimage.center_of_mass(values)))
    # In voxels of the own grid, along its axes.
    shift = np.linalg.solve(affine[:3, :3], there - in_world(affine, middle))
    assert np.abs(shift * np.array(spacing)).max() < 0.25 * min(1.0, *spacing)
    back = record.back(torch.from_numpy(values)).numpy()
    assert back.shape == shape
    assert np.abs(np.array(ndimage.center_of_mass(back)) - middle).max() < 0.25
    exact = record.back(torch.from_numpy(values), order=3).numpy()
    assert np.abs(exact - blob).max() < 25


def test_positions_of_the_two_grids_invert_each_other():
    volume = Volume(np.zeros((31, 20, 9), np.int16), oblique((0.7, 1.4, 5)))
    _, record = preprocess(volume, Preprocessing("SPL"), "MR")
    for own in ((0, 0, 0), (3, 7, 11), (8, 30, 19)):
        model = np.multiply(record.back_scale, own) + record.back_offset
        np.testing.assert_allclose(np.multiply(record.scale, model) + record.offset, own, atol=1e-9)
        in_source = np.empty(3)
        for k, (axis, flip) in enumerate(zip(record.axes, record.flips, strict=True)):
            in_source[axis] = volume.shape[axis] - 1 - own[k] if flip else own[k]
        np.testing.assert_allclose(
            in_world(record.model_affine, model), in_world(volume.affine, in_source), atol=1e-9
        )


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((1, 1, 1), (1, 1, 1)),
        ((1, 1, 1), (9, 0.2, 3)),
        ((40, 30, 1), (0.7, 0.7, 8)),
        ((1, 20, 30), (0.3, 0.3, 0.3)),
        ((2, 3, 2), (0.3, 0.3, 0.3)),
        ((2, 2, 2), (3, 4, 5)),
    ],
)
def test_f02_one_slice_and_tiny_volumes_come_back_in_their_own_shape(shape, spacing):
    rng = np.random.default_rng(4)
    array = rng.integers(0, 1000, shape).astype(np.int16)
    volume = Volume(array, oblique(spacing))
    cube, record = preprocess(volume, LINEAR, "MR")
    assert cube.isfinite().all()
    for order in (0, 1, 3):
        back = record.back(cube[0, 0], order)
        assert back.shape == shape
        assert back.isfinite().all()
        if min(spacing) >= 1:  # no voxel is lost between the model's
            np.testing.assert_allclose(back * 2010 - 10, array, atol=1000 if order == 0 else 400)


def test_several_channels_come_back_as_each_alone():
    _, record = preprocess(
        Volume(np.zeros((9, 8, 7), np.int16), oblique((0.7, 1, 3))), LINEAR, "MR"
    )
    logits = torch.randn(3, *record.model_shape, generator=torch.Generator().manual_seed(0))
    together = record.back(logits)
    assert together.shape == (3, 9, 8, 7)
    assert all(torch.equal(together[k], record.back(logits[k])) for k in range(3))


# A model that thresholds


def thresholded(mask_like: np.ndarray, affine: np.ndarray, order: int) -> np.ndarray:
    """Threshold on 1 mm at 0 HU: logits led back by a spline of an order, then decided."""
    volume = Volume((mask_like * 1000 - 500).astype(np.float32), affine)
    cube, record = preprocess(volume, Preprocessing(), "CT")
    return record.back(cube[0, 0] - 0.5, order).numpy() > 0


def shapes(shape, kind, least, rng):
    """Yield ellipsoids and boxes of at least ``least`` voxels a side: 1 inside, 0 outside."""
    for _ in range(8):
        sides = np.minimum(np.asarray(least) + rng.uniform(0, 4, 3), np.array(shape) - 1.0)
        center = [rng.uniform(s / 2, n - 1 - s / 2) for s, n in zip(sides, shape, strict=True)]
        at = np.indices(shape) - np.reshape(center, (3, 1, 1, 1))
        reach = np.abs(at) / (sides.reshape(3, 1, 1, 1) / 2)
        if kind == "box":
            inside = 1 - reach.max(axis=0)
        else:
            inside = 1 - np.sqrt((reach**2).sum(axis=0))
        yield (inside > 0) * 1.0


@pytest.mark.parametrize("kind", ["ellipsoid", "box"])
@pytest.mark.parametrize(
    ("spacing", "least", "order"),
    [
        ((1, 1, 1), 4, 1),
        ((1.5, 1.5, 1.5), 4, 1),
        ((1, 1.2, 5), 4, 1),
        ((3, 3, 10), 4, 1),
        ((0.8, 0.8, 3), 6, 1),
        ((0.85, 0.85, 3), 4, 3),
        ((0.9, 0.95, 1.2), 4, 3),
    ],
)
@pytest.mark.filterwarnings("ignore::universal_model_hub.preprocess.PreprocessWarning")
def test_sharp_shapes_of_4_voxels_come_back_where_the_model_grid_resolves_them(
    spacing, least, order, kind
):
    affine = oblique(spacing)
    for given in shapes((27, 25, 19), kind, least, np.random.default_rng(5)):
        mask = given > 0.5
        found = thresholded(given, affine, order)
        assert dice(mask, found) >= 0.98
        centers = [np.array(ndimage.center_of_mass(m)) for m in (mask, found)]
        assert np.abs(centers[0] - centers[1]).max() < 0.25


@pytest.mark.parametrize("spacing", [(0.4, 0.4, 0.5), (0.5, 0.5, 2), (0.6, 0.6, 1)])
@pytest.mark.filterwarnings("ignore::universal_model_hub.preprocess.PreprocessWarning")
def test_smooth_shapes_of_6_mm_come_back_to_a_grid_finer_than_the_models(spacing):
    shape, rng = (41, 39, 25), np.random.default_rng(6)
    for _ in range(8):
        middle = (np.array(shape) - 1) / 2 + rng.uniform(-1, 1, 3)
        at = (np.indices(shape) - middle.reshape(3, 1, 1, 1)) * np.reshape(spacing, (3, 1, 1, 1))
        width = rng.uniform(2.6, 4, (3, 1, 1, 1))  # mm; at half height 2.35 times as wide
        given = np.exp(-((at / width) ** 2).sum(axis=0) / 2)
        mask = given > 0.5
        found = thresholded(given, oblique(spacing), 3)
        assert dice(mask, found) >= 0.98
        centers = [np.array(ndimage.center_of_mass(m)) for m in (mask, found)]
        assert np.abs(centers[0] - centers[1]).max() < 0.25


@pytest.mark.filterwarnings("ignore::universal_model_hub.preprocess.PreprocessWarning")
def test_f02_a_shape_in_one_slice_comes_back():
    affine = oblique((1.0, 1.1, 8.0))
    for given in shapes((40, 35, 9), "ellipsoid", (5, 5, 8), np.random.default_rng(7)):
        disk = given[:, :, 4:5]
        assert disk.any()
        assert dice(disk > 0.5, thresholded(disk, affine, 1)) >= 0.98
