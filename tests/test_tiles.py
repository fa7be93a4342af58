"""Tiles cover everything once, read what they need, and blend to the same result."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from universal_model_hub.canvas import Canvas, between, label_dtype
from universal_model_hub.errors import WeightsError
from universal_model_hub.inference import (
    Runner,
    context_of,
    fill_exact,
    normalizes_by_window,
    prepare,
    run_exact,
)
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.tiles import (
    Context,
    exact_tiles,
    gaussian_weights,
    own_positions,
    smallest_tile_voxels,
    split_axis,
    tiles_of,
    window_starts,
)
from universal_model_hub.windows import fill_gaussian

CPU = torch.device("cpu")


def runner_of(model: nn.Module) -> Runner:
    return Runner(prepare(model, CPU), CPU, "float32")


def grids(shape, own_shape=None):
    own_shape = own_shape or shape
    return [
        own_positions(n, m, n / m, (n / m - 1) / 2) for n, m in zip(shape, own_shape, strict=True)
    ]


def random_unet(width=4, out_channels=3, seed=0) -> UNet3D:
    """Return a U-Net in which distant voxels count: default initialization fades within a few."""
    torch.manual_seed(seed)
    model = UNet3D(width=width, out_channels=out_channels, activation=None)
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.eval()


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 90),
    own_size=st.integers(1, 120),
    blocks=st.integers(1, 12),
    stride=st.sampled_from([1, 2, 8]),
    halo=st.integers(0, 6),
)
def test_spans_answer_every_own_voxel_once_with_full_context(size, own_size, blocks, stride, halo):
    positions = own_positions(size, own_size, size / own_size, (size / own_size - 1) / 2)

    spans = split_axis(size, blocks * stride, Context(stride, halo * stride), positions)

    answered = [i for span in spans for i in range(*span.own)]
    assert answered == list(range(own_size))
    for span in spans:
        inside = positions[slice(*span.own)]
        assert span.keep[0] <= inside.min()
        assert inside.max() <= span.keep[1] - 1
        assert span.read[0] % stride == 0
        assert span.read[1] == size or span.read[1] % stride == 0
        assert span.read[0] == 0 or span.keep[0] - span.read[0] >= halo * stride
        assert span.read[1] == size or span.read[1] - span.keep[1] >= halo * stride


def test_equal_grids_need_no_voxel_of_the_next_core():
    spans = split_axis(32, 16, Context(8, 8), np.arange(32.0))

    assert [span.keep for span in spans] == [(0, 16), (16, 32)]
    assert [span.read for span in spans] == [(0, 24), (8, 32)]


def test_coarse_own_grids_skip_cores_without_voxels():
    spans = split_axis(24, 8, Context(8, 0), np.array([3.5, 20.5]))

    assert [span.keep for span in spans] == [(2, 6), (19, 23)]


def test_chosen_tiles_fit_and_are_the_cheapest():
    shape, context = (64, 40, 24), Context(8, 16)
    positions = grids(shape)

    whole = exact_tiles(shape, positions, context, 64 * 40 * 24)
    split = exact_tiles(shape, positions, context, 64 * 40 * 24 - 1)

    assert len(whole) == 1
    assert whole[0].read_shape == shape
    assert max(math.prod(tile.read_shape) for tile in split) < 64 * 40 * 24
    # Two tiles along X read 2 * 48; along Y or Z halves would save less than their halo costs.
    assert [tile.read_shape for tile in split] == [(48, 40, 24), (48, 40, 24)]


def test_no_tiles_where_the_smallest_do_not_fit():
    shape, context = (64, 64, 64), Context(8, 16)
    positions = grids(shape)
    smallest = smallest_tile_voxels(shape, positions, context)

    assert smallest == 40**3
    assert exact_tiles(shape, positions, context, smallest - 1) == []
    assert len(exact_tiles(shape, positions, context, smallest)) == 512


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 200), window=st.integers(1, 70))
def test_windows_cover_the_axis_and_their_weights_sum_to_one(size, window):
    starts = window_starts(size, window, 0.5)
    window_fit = min(window, size)

    total = np.zeros(size)
    for start, weight in zip(starts, gaussian_weights(size, window, starts), strict=True):
        total[start : start + window_fit] += weight

    assert starts[0] == 0
    assert starts[-1] + window_fit == size
    assert all(b - a <= max(1, window_fit // 2) for a, b in itertools.pairwise(starts))
    np.testing.assert_allclose(total, 1, atol=1e-6)


def keys_kernel(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -1/2, written piece by piece."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def test_interpolation_is_cubic_convolution():
    rng = np.random.default_rng(0)
    block = rng.normal(size=(2, 7, 3, 4)).astype(np.float32)
    at = np.array([0.0, 0.25, 1.5, 5.75, 6.0])

    result = between(torch.from_numpy(block), at, axis=1).numpy()

    extended = np.pad(block, [(0, 0), (2, 2), (0, 0), (0, 0)], mode="edge")
    kernel = keys_kernel(at[:, None] - np.arange(-2, 9))  # (positions, voxels)
    expected = np.einsum("pv,kvyz->kpyz", kernel, extended)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_interpolation_keeps_straight_lines():
    line = torch.arange(9.0).view(1, 9, 1, 1)
    at = np.linspace(1, 7, 13)
    np.testing.assert_allclose(between(line, at, axis=1)[0, :, 0, 0], at, atol=1e-6)


def test_positions_on_centers_return_the_voxels_bit_by_bit():
    block = torch.rand(2, 5, 3, 3)
    assert torch.equal(between(block, np.arange(5.0), axis=1), block)


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, "uint8"), (2, "uint8"), (256, "uint8"), (257, "uint16")]
)
def test_f08_labels_get_a_dtype_that_holds_them(channels, dtype):
    assert label_dtype(channels) == dtype


def test_f08_label_300_survives_the_canvas():
    logits = torch.zeros(301, 1, 1, 2)
    logits[300, 0, 0, 1] = 1
    canvas = Canvas(grids((1, 1, 2)), 301, probabilities=False)

    canvas.fill(logits, (0, 0, 0), (slice(0, 1), slice(0, 1), slice(0, 2)))

    assert canvas.array.tolist() == [[[0, 300]]]


@pytest.fixture(scope="module")
def unet_and_answer():
    """A U-Net of width 4, an odd grid, and the logits of one pass."""
    torch.set_num_threads(1)
    model = random_unet()
    grid = torch.rand(1, 1, 131, 60, 29, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model, grid, model(grid)[0]


@pytest.mark.parametrize("core", [(8, 64, 32), (40, 32, 32), (64, 24, 16)])
def test_exact_tiles_equal_one_pass(unet_and_answer, core):
    model, grid, expected = unet_and_answer
    shape = grid.shape[2:]
    positions, context = grids(shape), context_of(model)
    axes = [split_axis(n, c, context, p) for n, c, p in zip(shape, core, positions, strict=True)]
    tiles = tiles_of(axes)
    if core[0] == 8:
        tiles = tiles[::4]  # enough of them: borders and interior

    worst = 0.0
    for tile, logits in run_exact(runner_of(model), grid, tiles, tile_batch=2, progress=False):
        where = tuple(slice(*span.keep) for span in tile.spans)
        difference = logits[(slice(None), *tile.kept)] - expected[(slice(None), *where)]
        worst = max(worst, difference.abs().max().item())

    assert len(tiles) > 3
    assert worst <= 1e-5


def test_too_small_a_halo_is_not_exact(unet_and_answer):
    # Shows that the test above can fail: at 24 voxels the difference is plain.
    model, grid, expected = unet_and_answer
    shape = grid.shape[2:]
    positions = grids(shape)
    axes = [split_axis(n, 64, Context(8, 24), p) for n, p in zip(shape, positions, strict=True)]

    tile, logits = next(
        run_exact(runner_of(model), grid, tiles_of(axes), tile_batch=1, progress=False)
    )

    where = tuple(slice(*span.keep) for span in tile.spans)
    difference = logits[(slice(None), *tile.kept)] - expected[(slice(None), *where)]
    assert difference.abs().max() > 1e-4


def test_f10_tile_batch_and_threads_do_not_change_the_answer():
    model = random_unet()
    grid = torch.rand(1, 1, 40, 24, 17, generator=torch.Generator().manual_seed(2))
    shape, own_shape = grid.shape[2:], (55, 21, 17)
    axes = [
        split_axis(n, 24, Context(8, 8), p)
        for n, p in zip(shape, grids(shape, own_shape), strict=True)
    ]
    results = []
    for tile_batch, threads in [(1, 1), (4, 1), (1, 2)]:
        torch.set_num_threads(threads)
        canvas = Canvas(grids(shape, own_shape), 3, probabilities=True)
        fill_exact(
            canvas,
            run_exact(
                runner_of(model), grid, tiles_of(axes), tile_batch=tile_batch, progress=False
            ),
        )
        results.append(canvas.array)
    torch.set_num_threads(1)

    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-5)
        assert np.array_equal(other.argmax(0), results[0].argmax(0))


class Affine(nn.Module):
    """Two logits that are affine in the intensity: blending must not change them."""

    def forward(self, x):  # noqa: D102
        return torch.cat([0.5 - x, 3 * x - 1], dim=1)


@pytest.mark.parametrize("own_shape", [(50, 33, 21), (71, 20, 21), (9, 33, 40)])
@pytest.mark.parametrize("window", [(16, 16, 16), (7, 40, 5), (64, 64, 64)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_gaussian_windows_of_a_pointwise_network_equal_one_pass(own_shape, window, overlap):
    grid = torch.rand(1, 1, 50, 33, 21, generator=torch.Generator().manual_seed(3))
    shape = grid.shape[2:]
    whole = Canvas(grids(shape, own_shape), 2, probabilities=True)
    blended = Canvas(grids(shape, own_shape), 2, probabilities=True)
    tiles = exact_tiles(shape, whole.positions, Context(1, 0), 10**6)

    fill_exact(whole, run_exact(runner_of(Affine()), grid, tiles, tile_batch=1, progress=False))
    options = {"overlap": overlap, "tile_batch": 3, "progress": False}
    fill_gaussian(blended, runner_of(Affine()), grid, window, **options)

    np.testing.assert_allclose(blended.array, whole.array, atol=1e-5)


class Where(nn.Module):
    """One logit, the index along X within the window: what blending averages is known."""

    def forward(self, x):  # noqa: D102
        ramp = torch.arange(x.shape[2], dtype=torch.float32).view(1, 1, -1, 1, 1)
        return (ramp - 3.4).expand(x.shape)


def test_gaussian_windows_are_averaged_with_their_weights():
    grid = torch.zeros(1, 1, 12, 2, 2)
    canvas = Canvas(grids((12, 2, 2)), 1, probabilities=True)
    starts = window_starts(12, 8, 0.5)
    expected = np.zeros(12)
    for start, weight in zip(starts, gaussian_weights(12, 8, starts), strict=True):
        expected[start : start + 8] += weight * (np.arange(8) - 3.4)

    options = {"overlap": 0.5, "tile_batch": 1, "progress": False}
    fill_gaussian(canvas, runner_of(Where()), grid, (8, 8, 8), **options)

    assert starts == [0, 4]
    np.testing.assert_allclose(canvas.array[0, :, 0, 0], 1 / (1 + np.exp(-expected)), atol=1e-6)


def test_f06_a_tile_with_nan_logits_is_named():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.where(x > 0.5, torch.nan, x)

    grid = torch.zeros(1, 1, 32, 8, 8)
    grid[0, 0, 20] = 1
    canvas = Canvas(grids((32, 8, 8)), 1, probabilities=False)
    tiles = tiles_of([split_axis(n, 16, Context(8, 0), p) for n, p in
                      zip((32, 8, 8), canvas.positions, strict=True)])  # fmt: skip

    with pytest.raises(WeightsError, match=r"tile \[16:32, 0:8, 0:8\]"):
        fill_exact(
            canvas, run_exact(runner_of(Broken()), grid, tiles, tile_batch=1, progress=False)
        )
    options = {"overlap": 0.5, "tile_batch": 1, "progress": False}
    with pytest.raises(WeightsError, match=r"tile \[8:24"):
        fill_gaussian(canvas, runner_of(Broken()), grid, (16, 8, 8), **options)


def test_context_is_taken_from_the_network_or_from_what_it_is_made_of():
    assert context_of(UNet3D(width=2)) == Context(8, 48)
    assert context_of(Affine()) == Context(1, 0)
    assert context_of(nn.Conv3d(1, 2, 1)) == Context(1, 0)
    assert context_of(nn.Conv3d(1, 2, 3)) is None
    assert context_of(nn.Sequential(nn.AvgPool3d(2))) is None


def test_statistics_of_the_window_are_recognized():
    assert normalizes_by_window(UNet3D(width=2, normalization="batch"))
    assert normalizes_by_window(nn.InstanceNorm3d(2))
    assert normalizes_by_window(nn.BatchNorm3d(2, track_running_stats=False))
    assert not normalizes_by_window(UNet3D(width=2))


def test_f09_preparing_leaves_the_model_alone():
    model = UNet3D(width=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    network = prepare(model, CPU)
    with torch.inference_mode():
        network(torch.rand(1, 1, 8, 8, 8))

    assert model.training
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
