"""Resampling agrees with SciPy's splines, and keeps what must be kept."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from universal_model_hub.errors import ConfigError, TooLargeError, VolumeError
from universal_model_hub.resample import axis_weights, resample


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ct_like(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Body in air, with noise, as int16 HU."""
    body = ndimage.gaussian_filter(rng.normal(size=shape), 2.0, mode="reflect")
    tissue = np.where(body > 0, 40.0, -1000.0) + rng.normal(0, 30, shape)
    return tissue.round().clip(-1024, 3071).astype(np.int16)


def by_scipy(array, size, scale, offset, order):
    positions = [
        np.clip(s * np.arange(m) + o, 0, n - 1)
        for n, m, s, o in zip(array.shape, size, scale, offset, strict=True)
    ]
    grid = np.meshgrid(*positions, indexing="ij")
    if order == 0:
        return array[tuple(np.floor(p + 0.5).astype(int) for p in grid)]
    return ndimage.map_coordinates(array.astype(np.float64), grid, order=order, mode="mirror")


CASES = {
    "to 1 mm": ((53, 47, 21), (37, 35, 52), (1 / 0.7, 1 / 0.74, 0.4), (0.2, 0.1, -0.3)),
    "down by far": ((90, 61, 33), (11, 7, 3), (8.3, 9.1, 11.7), (3.1, 2.2, 4.9)),
    "up": ((9, 7, 5), (41, 50, 44), (0.21, 0.133, 0.1), (-0.4, 0.0, 0.3)),
    "outside": ((12, 13, 14), (20, 20, 20), (1.1, 1.3, 0.9), (-4.5, -3.0, 2.6)),
    "one slice": ((31, 30, 1), (22, 40, 9), (1.4, 0.75, 0.125), (0.1, 0.2, -0.5)),
    "one voxel": ((1, 1, 1), (3, 2, 1), (0.5, 0.7, 1.0), (0.0, -0.2, 0.0)),
    "two voxels": ((2, 2, 2), (5, 3, 4), (0.3, 0.4, 0.25), (-0.1, 0.1, 0.125)),
    "many bands": ((150, 3, 40), (200, 2, 41), (0.746, 1.3, 0.97), (0.3, 0.0, 0.1)),
}


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("name", CASES)
def test_equals_scipy_within_a_thousandth_of_a_hounsfield_unit(name, order):
    shape, *grid = CASES[name]
    array = ct_like(np.random.default_rng(1), shape)
    result = resample(array, *grid, order).numpy()
    assert result.shape == grid[0]
    np.testing.assert_allclose(result, by_scipy(array, *grid, order), rtol=0, atol=1e-3)


def test_equals_scipy_zoom_over_the_whole_range_of_ct():
    rng = np.random.default_rng(2)
    array = rng.integers(-1024, 3072, (41, 38, 29)).astype(np.int16)  # noise: the worst case
    size = (57, 23, 44)
    scale = [(n - 1) / (m - 1) for n, m in zip(array.shape, size, strict=True)]
    factors = [m / n for n, m in zip(array.shape, size, strict=True)]
    expected = ndimage.zoom(array.astype(np.float64), factors, order=3, mode="mirror")
    result = resample(array, size, scale, (0, 0, 0), 3).numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=4e-3)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_own_grid_gives_the_voxels_bit_by_bit(order):
    array = np.random.default_rng(3).normal(size=(7, 9, 1)).astype(np.float32)
    result = resample(array, array.shape, (1, 1, 1), (0, 0, 0), order)
    assert np.array_equal(result.numpy(), array)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_every_second_voxel_and_a_shift_are_exact_picks(order):
    array = np.random.default_rng(4).normal(size=(80, 9, 12)).astype(np.float32)
    result = resample(array, (40, 7, 12), (2, 1, 1), (1, 3, 0), order)
    expected = np.pad(array, ((0, 0), (0, 1), (0, 0)), mode="edge")[1::2, 3:]
    assert np.array_equal(result.numpy(), expected)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("value", [0.0, -1000.0, 3071.0])
def test_a_constant_stays_constant(order, value):
    array = np.full((40, 23, 17), value, np.float32)
    result = resample(array, (31, 50, 17), (1.3, 0.47, 0.99), (0.2, -0.1, 0.1), order)
    np.testing.assert_allclose(result.numpy(), value, rtol=5e-7)


def test_a_cubic_spline_is_exact_on_cubic_polynomials_far_from_the_border():
    x = np.arange(60.0)
    cubic = ((x - 30) ** 3 / 100 - (x - 30) ** 2 / 7 + x)[:, None, None]
    position = 0.37 * np.arange(60) + 19.1
    result = resample(cubic, (60, 1, 1), (0.37, 1, 1), (19.1, 0, 0), 3)[:, 0, 0]
    expected = (position - 30) ** 3 / 100 - (position - 30) ** 2 / 7 + position
    np.testing.assert_allclose(result.numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("order", [1, 3])
def test_it_is_linear_in_the_voxels(order):
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 20, 21, 22)).astype(np.float32)
    grid = ((15, 30, 22), (1.37, 0.71, 0.93), (0.3, -0.2, 0.4))
    whole = resample(2 * a - 3 * b, *grid, order)
    parts = 2 * resample(a, *grid, order) - 3 * resample(b, *grid, order)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)


def test_turning_the_axes_turns_the_result():
    array = ct_like(np.random.default_rng(6), (45, 30, 20))
    size, scale, offset = (32, 41, 50), (1.4, 0.7, 0.4), (0.2, -0.1, 0.0)
    expected = resample(array, size, scale, offset, 3).numpy()
    for order in itertools.permutations(range(3)):
        grid = [[values[axis] for axis in order] for values in (size, scale, offset)]
        turned = resample(array.transpose(order), *grid, 3).numpy()
        np.testing.assert_allclose(turned, expected.transpose(order), rtol=0, atol=2e-3)


def test_memory_order_and_strides_change_no_bit():
    array = ct_like(np.random.default_rng(7), (40, 37, 29))
    grid = ((29, 30, 60), (1.37, 1.21, 0.48), (0.3, -0.2, 0.1))
    expected = resample(array, *grid, 3)
    stored = {
        "columns first": np.asfortranarray(array),
        "middle first": np.ascontiguousarray(array.transpose(0, 2, 1)).transpose(0, 2, 1),
        "mirrored": np.ascontiguousarray(array[::-1, :, ::-1])[::-1, :, ::-1],
        "columns first, mirrored": np.asfortranarray(array[:, ::-1])[:, ::-1],
        "every second": np.repeat(np.asfortranarray(array), 2, axis=0)[::2],
        "other bytes": array.astype(array.dtype.newbyteorder()),
        "a tensor": torch.from_numpy(array),
    }
    for name, version in stored.items():
        assert torch.equal(resample(version, *grid, 3), expected), name


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float64"]
)
@pytest.mark.parametrize("memory", ["C", "F"])
def test_every_dtype_is_read(dtype, memory):
    array = np.random.default_rng(8).integers(0, 2, (9, 8, 7)).astype(dtype, order=memory)
    grid = ((11, 5, 9), (0.8, 1.4, 0.7), (0.1, 0.3, 0.2))
    expected = by_scipy(array.astype(np.float64), *grid, 3)
    np.testing.assert_allclose(resample(array, *grid, 3).numpy(), expected, atol=1e-5)


def test_bfloat16_tensors_are_read():
    array = torch.arange(60.0).view(3, 4, 5)
    grid = ((2, 3, 4), (1.3, 1.2, 1.1), (0.1, 0.2, 0.3))
    assert torch.equal(resample(array.bfloat16(), *grid, 3), resample(array, *grid, 3))
    assert resample(array.bfloat16(), *grid, 0).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("memory", ["C", "F"])
def test_nearest_keeps_labels_and_their_dtype(dtype, memory):
    labels = np.random.default_rng(9).integers(0, 120, (17, 12, 9)).astype(dtype, order=memory)
    grid = ((25, 7, 9), (0.66, 1.7, 1.0), (0.1, 0.4, 0.0))
    result = resample(labels, *grid, 0)
    assert result.is_contiguous()
    assert result.numpy().dtype == dtype
    assert np.array_equal(result.numpy(), by_scipy(labels, *grid, 0))


def test_large_labels_are_exact():
    labels = np.full((2, 2, 2), 2**24 + 1, np.int32)
    assert resample(labels, (3, 3, 3), (0.5,) * 3, (0,) * 3, 0).unique().tolist() == [2**24 + 1]


def test_clipping_happens_before_the_spline():
    array = np.zeros((30, 4, 4), np.int16)
    array[:10] = -3024  # padding
    grid = ((60, 4, 4), (0.5, 1, 1), (0.25, 0, 0))
    clipped = resample(np.clip(array, -1000, 1000), *grid, 3)
    assert torch.equal(resample(array, *grid, 3, clip=(-1000, 1000)), clipped)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_input_is_left_alone(order):
    array = np.random.default_rng(10).normal(0, 2000, (12, 11, 10)).astype(np.float32)
    before = array.copy()
    array.flags.writeable = False
    result = resample(array, (9, 11, 20), (1.3, 1, 0.5), (0, 0, 0), order, clip=(-1, 1))
    result.zero_()
    assert np.array_equal(array, before)


def test_the_result_never_shares_memory_with_the_input():
    array = torch.ones(4, 4, 4)
    resample(array, (4, 4, 4), (1, 1, 1), (0, 0, 0), 3).zero_()
    resample(array, (4, 4, 4), (1, 1, 1), (0, 0, 0), 0).zero_()
    assert array.sum() == 64


def test_f10_the_number_of_threads_changes_nothing_that_counts():
    array = ct_like(np.random.default_rng(11), (70, 60, 50))
    grid = ((49, 42, 125), (1.43, 1.43, 0.4), (0.2, 0.2, -0.3))
    one = resample(array, *grid, 3)
    torch.set_num_threads(3)
    several = resample(array, *grid, 3)
    torch.testing.assert_close(one, several, rtol=1e-5, atol=1e-2)


def test_lower_precision_asked_for_elsewhere_does_not_reach_the_spline():
    array = ct_like(np.random.default_rng(12), (40, 40, 40))
    grid = ((55, 55, 55), (0.71, 0.71, 0.71), (0.1, 0.1, 0.1))
    expected = by_scipy(array, *grid, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_allclose(resample(array, *grid, 3).numpy(), expected, atol=1e-3)
    torch.set_float32_matmul_precision("medium")
    try:
        np.testing.assert_allclose(resample(array, *grid, 3).numpy(), expected, atol=1e-3)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_weights_of_each_output_voxel_sum_to_one():
    for order, taps in ((0, 1), (1, 2), (3, 26)):
        index, weights = axis_weights(9, 50, 0.19, -0.3, order)
        assert index.shape == weights.shape == (50, taps)
        assert index.min() >= 0
        assert index.max() <= 8
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-14)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 3)),
        np.zeros((3, 0, 3)),
        np.zeros((2, 2, 2), complex),
        np.full((1, 1, 1), "a"),
        torch.zeros(2, 2, 2, dtype=torch.complex64),
    ],
)
def test_what_is_no_volume_is_refused(array):
    with pytest.raises(VolumeError, match="3D array of real numbers"):
        resample(array, (1, 1, 1), (1, 1, 1), (0, 0, 0), 1)


@pytest.mark.parametrize(
    ("size", "scale", "offset", "order", "word"),
    [
        ((2, 2, 2), (1, 1, 1), (0, 0, 0), 2, "order"),
        ((2, 0, 2), (1, 1, 1), (0, 0, 0), 1, "voxel"),
        ((2, 2, 2), (1, 0, 1), (0, 0, 0), 1, "scales"),
        ((2, 2, 2), (1, -1, 1), (0, 0, 0), 1, "scales"),
        ((2, 2, 2), (1, np.nan, 1), (0, 0, 0), 1, "scales"),
        ((2, 2, 2), (1, 1, 1), (0, np.inf, 0), 1, "offsets"),
        ((2, 2), (1, 1, 1), (0, 0, 0), 1, "three"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(size, scale, offset, order, word):
    with pytest.raises(ConfigError, match=word):
        resample(np.zeros((3, 3, 3)), size, scale, offset, order)


def test_a_result_beyond_the_limit_is_refused_before_it_is_made():
    with pytest.raises(
        TooLargeError, match=r"at most 8.0 GiB, got a grid of 4,000,000 x .* needs .* GiB"
    ):
        resample(np.zeros((2, 2, 2)), (4_000_000,) * 3, (1e-6,) * 3, (0,) * 3, 3)
    grid = ((10, 10, 10), (0.2,) * 3, (0,) * 3)
    assert resample(np.zeros((2, 2, 2)), *grid, 3, max_bytes=4000).shape == (10, 10, 10)
    with pytest.raises(TooLargeError):
        resample(np.zeros((2, 2, 2)), *grid, 3, max_bytes=3999)
    assert resample(np.zeros((2, 2, 2), np.uint8), *grid, 0, max_bytes=1000).numel() == 1000
