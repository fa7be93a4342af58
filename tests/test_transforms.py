"""The corruptions against slow plain versions, written from the published rules."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from training import device_transforms, transforms
from training.transforms import CorruptionConfig, corrupt, strength_at
from universal_model_hub.errors import ConfigError

PUBLISHED = CorruptionConfig()
NOTHING = CorruptionConfig(
    flip_probability=0, shuffle_probability=0, curve_probability=0, paint_probability=0
)
UNLIKELY = 1e-4  # seeds are fixed: a failure is a finding, not chance

BACKENDS = ["numpy", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def many(backend, cube, n, config, seed, strength=1.0):
    """Return n training pairs from one cube: two arrays (n, X, Y, Z)."""
    if backend == "numpy":
        rng = np.random.default_rng(seed)
        pairs = [
            transforms.original_and_corrupted(cube, config, rng, strength=strength)
            for _ in range(n)
        ]
        return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
    generator = torch.Generator(backend).manual_seed(seed)
    batch = torch.from_numpy(cube).to(backend).expand(n, 1, *cube.shape)
    pair = device_transforms.original_and_corrupted_batch(
        batch, config, generator, strength=strength
    )
    return pair[0].cpu().numpy()[:, 0], pair[1].cpu().numpy()[:, 0]


def distinct(shape):
    """Return a cube in which every voxel has its own value."""
    return np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def smooth(shape):
    """Return a cube that looks a little like anatomy: blobs of different gray, some noise."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body = 0.5 * (x**2 + y**2 < 0.8) + 0.2 * ((x - 0.3) ** 2 + y**2 + z**2 < 0.2)
    waves = 0.1 * np.sin(5 * x + 3 * z) + 0.02 * np.random.default_rng(1).random(shape)
    return np.clip(body + waves + 0.05, 0, 1).astype(np.float32)


# The plain versions: one loop a rule.


def plain_shuffle(cube, config, rng):
    shuffled = cube.copy()
    for _ in range(config.shuffle_windows):
        sides = [rng.integers(1, max(n // config.shuffle_divisor, 1) + 1) for n in cube.shape]
        window = tuple(
            slice(start, start + side)
            for side, start in (
                (side, rng.integers(0, n - side + 1))
                for side, n in zip(sides, cube.shape, strict=True)
            )
        )
        shuffled[window] = rng.permutation(cube[window].reshape(-1)).reshape(sides)
    return shuffled


def plain_curve(cube, points, invert):
    t = np.linspace(0, 1, 100_000)
    x, y = (
        3 * (1 - t) ** 2 * t * points[0, k] + 3 * (1 - t) * t**2 * points[1, k] + t**3
        for k in (0, 1)
    )
    x, y = x[::-1], y[::-1]
    return np.interp(cube, np.sort(x), y if invert else np.sort(y))


def plain_box(shape, least, most, rng):
    sides = [rng.integers(a, b + 1) for a, b in zip(least, most, strict=True)]
    starts = [rng.integers(3, n - side - 3 + 1) for n, side in zip(shape, sides, strict=True)]
    return tuple(slice(a, a + b) for a, b in zip(starts, sides, strict=True))


def plain_paint(cube, outside, rng):
    painted = rng.random(cube.shape) if outside else cube.copy()
    left = 5
    while left > 0 and ((outside and left == 5) or rng.random() < 0.95):
        if outside:
            least = [n - 4 * n // 7 for n in cube.shape]
            most = [n - 3 * n // 7 for n in cube.shape]
            box = plain_box(cube.shape, least, most, rng)
            painted[box] = cube[box]
        else:
            least, most = [n // 6 for n in cube.shape], [n // 3 for n in cube.shape]
            box = plain_box(cube.shape, least, most, rng)
            painted[box] = rng.random(painted[box].shape)
        left -= 1
    return painted


def plain_corrupt(cube, config, rng):
    if rng.random() < 0.5:
        cube = plain_shuffle(cube, config, rng)
    if rng.random() < 0.9:
        cube = plain_curve(cube, rng.random((2, 2)), rng.random() < 0.5)
    if rng.random() < 0.9:
        cube = plain_paint(cube, rng.random() < 0.8, rng)
    return cube


# Shuffling.


def shuffle_outcomes(shape, num_windows):
    """Return every possible shuffled cube of few voxels and its exact probability."""
    writes = []  # (voxels, source voxels, probability)
    all_sides = list(itertools.product(*[range(1, n + 1) for n in shape]))
    index = np.arange(np.prod(shape)).reshape(shape)
    for sides in all_sides:
        places = list(
            itertools.product(*[range(n - s + 1) for n, s in zip(shape, sides, strict=True)])
        )
        for place in places:
            window = tuple(slice(a, a + s) for a, s in zip(place, sides, strict=True))
            voxels = tuple(index[window].reshape(-1))
            orders = list(itertools.permutations(voxels))
            share = 1 / len(all_sides) / len(places) / len(orders)
            writes += [(voxels, order, share) for order in orders]
    outcomes = Counter()
    for sequence in itertools.product(writes, repeat=num_windows):
        result = list(range(index.size))
        for voxels, sources, _ in sequence:
            for voxel, source in zip(voxels, sources, strict=True):
                result[voxel] = source  # from the original, over what was there
        outcomes[tuple(result)] += np.prod([share for _, _, share in sequence])
    return outcomes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "num_windows"), [((3, 1, 1), 1), ((2, 1, 2), 2)])
def test_shuffling_has_the_exact_distribution(backend, shape, num_windows):
    outcomes = shuffle_outcomes(shape, num_windows)
    config = replace(NOTHING, shuffle_probability=1, shuffle_windows=num_windows, shuffle_divisor=1)
    n = 8000
    _, corrupted = many(backend, distinct(shape), n, config, seed=0)
    sources = np.rint(corrupted.reshape(n, -1) * (np.prod(shape) - 1)).astype(int)
    seen = Counter(map(tuple, sources))
    assert set(seen) <= set(outcomes)
    likely = [o for o in outcomes if outcomes[o] * n >= 5]
    observed = [seen[o] for o in likely]
    expected = [outcomes[o] * n for o in likely]
    observed.append(n - sum(observed))
    expected.append(n - sum(expected))
    keep = slice(None) if expected[-1] >= 5 else slice(-1)
    expected = np.array(expected[keep]) * sum(observed[keep]) / sum(expected[keep])
    assert stats.chisquare(observed[keep], expected).pvalue > UNLIKELY


def moves(shuffled, shape):
    """Return how far each voxel came, (3, X, Y, Z), and the share of voxels that moved."""
    sources = np.rint(shuffled.astype(np.float64) * (np.prod(shape) - 1)).astype(int)
    origin = np.stack(np.unravel_index(sources, shape))
    distance = np.abs(origin - np.indices(shape))
    return distance, float((distance.sum(0) > 0).mean())


@pytest.mark.parametrize("backend", BACKENDS)
def test_shuffling_moves_voxels_as_far_as_the_plain_version(backend):
    shape = (64, 64, 32)
    config = replace(NOTHING, shuffle_probability=1)
    n = 6
    _, fast = many(backend, distinct(shape), n, config, seed=3)
    rng = np.random.default_rng(4)
    slow = [plain_shuffle(distinct(shape), PUBLISHED, rng) for _ in range(3)]
    statistics = []
    for group in (fast, slow):
        rows = []
        for shuffled in group:
            distance, moved = moves(shuffled, shape)
            assert distance.max(axis=(1, 2, 3)).tolist() == [5, 5, 2]  # sides 6, 6 and 3
            duplicates = 1 - len(np.unique(shuffled)) / shuffled.size
            came = distance.sum(0) > 0
            faces = [came[0], came[-1], came[:, 0], came[:, -1], came[:, :, 0], came[:, :, -1]]
            edge = np.mean([face.mean() for face in faces])  # fewer windows reach the faces
            rows.append([moved, duplicates, edge, *distance.mean(axis=(1, 2, 3))])
        statistics.append(np.mean(rows, axis=0))
    assert statistics[0] == pytest.approx(statistics[1], rel=0.02)


# Curves.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("invert", [False, True])
def test_curves_equal_the_plain_version(backend, invert):
    rng = np.random.default_rng(5)
    cube = rng.random((16, 16, 16), dtype=np.float32)
    corners = [p.reshape(2, 2) for p in np.array([[0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0.0]])]
    points = np.stack([*rng.random((20, 2, 2)), *corners])
    if backend == "numpy":
        curved = np.stack([transforms.apply_curve(cube, p, invert=invert) for p in points])
    else:
        curved = device_transforms.apply_curve_batch(
            torch.from_numpy(cube).to(backend).expand(len(points), 1, *cube.shape),
            torch.from_numpy(points).float().to(backend),
            torch.full((len(points),), invert, device=backend),
        )
        curved = curved.cpu().numpy()[:, 0]
    plain = np.stack([plain_curve(cube, p, invert) for p in points])
    error = np.abs(curved - plain)
    assert error[:20].max() < 2e-4
    assert error.mean() < 1e-5
    assert error.max() < 0.05  # where a curve of the corner cases rises straight up


@pytest.mark.parametrize("backend", BACKENDS)
def test_curves_are_monotone_between_0_and_1(backend):
    ramp = np.linspace(0, 1, 4096, dtype=np.float32).reshape(16, 16, 16)
    for invert in (0.0, 1.0):
        config = replace(NOTHING, curve_probability=1, invert_probability=invert)
        _, curved = many(backend, ramp, 50, config, seed=6)
        steps = np.diff(curved.reshape(50, -1), axis=1) * (-1 if invert else 1)
        assert steps.min() > -1e-6
        ends = curved.reshape(50, -1)[:, [0, -1]]
        assert np.allclose(ends, [invert, 1 - invert], atol=1e-6)
        assert np.unique(curved[:, 8, 0, 0]).size == 50  # each cube its own curve


# Painting.


def box_of(mask):
    """Return start and side along each axis of the box that a mask fills."""
    spans = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    return [(span[0], span[-1] - span[0] + 1) for span in spans]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("outpaint", "sides"),
    [(0, [(10, 21), (10, 21), (5, 10)]), (1, [(28, 37), (28, 37), (14, 19)])],
)
def test_boxes_have_the_published_sides_and_places(backend, outpaint, sides):
    config = replace(
        NOTHING,
        paint_probability=1,
        outpaint_probability=outpaint,
        max_boxes=1,
        box_probability=1,
    )
    cube, n = np.full((64, 64, 32), 2, np.float32), 250  # 2: no noise voxel equals it
    _, painted = many(backend, cube, n, config, seed=7)
    changed = painted != 2
    boxes = np.array([box_of(c ^ bool(outpaint)) for c in changed])  # (n, 3, 2)
    assert all(
        (c ^ bool(outpaint)).sum() == b[:, 1].prod() for c, b in zip(changed, boxes, strict=True)
    )
    rng = np.random.default_rng(8)
    least, most = zip(*sides, strict=True)
    plain = [plain_box(cube.shape, least, most, rng) for _ in range(n)]
    for axis, (low, high) in enumerate(sides):
        starts, lengths = boxes[:, axis].T
        counts = np.bincount(lengths - low, minlength=high - low + 1)
        assert len(counts) == high - low + 1
        assert stats.chisquare(counts).pvalue > UNLIKELY
        assert starts.min() == 3
        assert (starts + lengths).max() == cube.shape[axis] - 3
        expected = [box[axis].start for box in plain]
        assert stats.ks_2samp(starts, expected).pvalue > UNLIKELY


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("outpaint", [0, 1])
def test_the_painted_share_equals_the_plain_version(backend, outpaint):
    config = replace(NOTHING, paint_probability=1, outpaint_probability=outpaint)
    cube, n = np.full((32, 32, 16), 2, np.float32), 500
    _, painted = many(backend, cube, n, config, seed=9)
    rng = np.random.default_rng(10)
    plain = np.stack([plain_paint(cube, bool(outpaint), rng) for _ in range(n)])
    shares = [(p != 2).mean(axis=(1, 2, 3)) for p in (painted, plain)]
    assert stats.ks_2samp(*shares).pvalue > UNLIKELY
    noise = painted[painted != 2]
    assert stats.kstest(noise[::97], "uniform").pvalue > UNLIKELY
    assert noise.min() >= 0
    assert noise.max() < 1
    everywhere = (painted != 2).mean(0).reshape(-1) - (plain != 2).mean(0).reshape(-1)
    assert np.abs(everywhere).max() < 5 * np.sqrt(2 * 0.25 / n)


# Which corruption, how often.


def assert_rate(hits, probability):
    assert stats.binomtest(int(np.sum(hits)), len(hits), probability).pvalue > UNLIKELY


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_branch_has_its_published_probability(backend):
    n, shape = 1200, (16, 16, 16)
    shuffle_only = replace(NOTHING, shuffle_probability=0.5, shuffle_divisor=4, shuffle_windows=50)
    _, corrupted = many(backend, distinct(shape), 500, shuffle_only, seed=11)
    assert_rate((corrupted != distinct(shape)).any(axis=(1, 2, 3)), 0.5)

    curve_only = replace(NOTHING, curve_probability=0.9)
    _, corrupted = many(backend, np.full(shape, 0.5, np.float32), n, curve_only, seed=12)
    assert_rate(corrupted[:, 0, 0, 0] != 0.5, 0.9)
    zeros = np.zeros(shape, np.float32)  # a falling curve takes 0 to 1
    _, corrupted = many(backend, zeros, n, curve_only, seed=13)
    assert_rate(corrupted[:, 0, 0, 0] > 0.5, 0.45)

    paint_only = replace(NOTHING, paint_probability=0.9)
    _, corrupted = many(backend, zeros, n, paint_only, seed=14)
    outside = corrupted[:, 0, 0, 0] != 0  # boxes keep off the faces
    inside = ~outside & (corrupted != 0).any(axis=(1, 2, 3))
    assert_rate(outside, 0.72)
    assert_rate(inside, 0.18 * 0.95)  # one in twenty has no box


@pytest.mark.parametrize("backend", BACKENDS)
def test_strength_ramps_inversion_and_outpainting_only(backend):
    n, zeros = 2000, np.zeros((16, 16, 16), np.float32)
    config = replace(NOTHING, curve_probability=0.9)
    _, corrupted = many(backend, zeros, n, config, seed=15, strength=0.5)
    assert_rate(corrupted[:, 0, 0, 0] > 0.5, 0.225)
    config = replace(NOTHING, paint_probability=0.9)
    _, corrupted = many(backend, zeros, n, config, seed=16, strength=0.25)
    outside = corrupted[:, 0, 0, 0] != 0
    assert_rate(outside, 0.18)
    assert_rate(~outside & (corrupted != 0).any(axis=(1, 2, 3)), 0.18 * 0.95)


def test_strength_rises_over_the_ramp_and_stays():
    ramp = replace(PUBLISHED, ramp_share=0.5)
    assert [strength_at(p, ramp) for p in (0, 0.25, 0.5, 1)] == [0, 0.5, 1, 1]
    assert strength_at(0, PUBLISHED) == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axes", [("none", "x", "y"), ("x", "y", "z")])
def test_flips_have_the_exact_distribution(backend, axes):
    expected = Counter()  # by the parity of flips along x, y, z
    for flips in range(4):
        share = 0.4**flips * (0.6 if flips < 3 else 1)
        for drawn in itertools.product(axes, repeat=flips):
            expected[tuple(drawn.count(a) % 2 for a in "xyz")] += share / len(axes) ** flips
    cube, n = distinct((2, 2, 2)), 5000
    config = replace(NOTHING, flip_probability=0.4, flip_axes=axes)
    original, corrupted = many(backend, cube, n, config, seed=17)
    assert np.array_equal(original, corrupted)
    seen = Counter()
    for flipped in original:
        where = np.unravel_index(int(flipped.argmin()), (2, 2, 2))
        assert np.array_equal(np.flip(flipped, [a for a in range(3) if where[a]]), cube)
        seen[tuple(map(int, where))] += 1
    assert set(seen) == set(expected)
    counts = [seen[k] for k in expected]
    assert stats.chisquare(counts, [n * v for v in expected.values()]).pvalue > UNLIKELY


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_whole_corruption_is_as_strong_as_the_plain_version(backend):
    cube, n = smooth((32, 32, 16)), 150
    config = replace(PUBLISHED, flip_probability=0, shuffle_windows=500)
    _, fast = many(backend, cube, n, config, seed=18)
    rng = np.random.default_rng(19)
    slow = np.stack([plain_corrupt(cube, config, rng) for _ in range(n)])
    for statistic in (
        lambda c: np.abs(c - cube).mean(axis=(1, 2, 3)),
        lambda c: (np.abs(c - cube) > 0.01).mean(axis=(1, 2, 3)),
        lambda c: np.abs(np.diff(c, axis=1)).mean(axis=(1, 2, 3)),
        lambda c: c.mean(axis=(1, 2, 3)),
    ):
        assert stats.ks_2samp(statistic(fast), statistic(slow)).pvalue > UNLIKELY


# The gentle additions.


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_blocks_lie_on_the_grid_and_have_the_stated_share(backend):
    cube, n = np.full((20, 16, 8), 2, np.float32), 300
    config = replace(NOTHING, block_probability=0.5, block_side=4, block_share=(0.3, 0.6))
    _, masked = many(backend, cube, n, config, seed=20)
    blocks = (masked != 2).reshape(n, 5, 4, 4, 4, 2, 4).mean(axis=(2, 4, 6))
    assert set(np.unique(blocks)) == {0, 1}
    shares = blocks.mean(axis=(1, 2, 3))
    assert_rate(shares > 0, 0.5)
    assert shares[shares > 0].min() >= 0.3
    assert shares.max() <= 0.6
    assert stats.kstest(shares[shares > 0], "uniform", (0.2875, 0.325)).pvalue > UNLIKELY


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_has_a_sigma_of_its_own_in_each_cube(backend):
    cube, n = np.full((16, 16, 16), 0.5, np.float32), 400
    config = replace(NOTHING, noise_probability=0.2, noise_sigma=0.1)
    _, noisy = many(backend, cube, n, config, seed=21)
    sigma = noisy.std(axis=(1, 2, 3))
    assert_rate(sigma > 0, 0.2)
    assert stats.kstest(sigma[sigma > 0], "uniform", (0, 0.1)).pvalue > UNLIKELY


# Promises.


HARSH = replace(PUBLISHED, block_probability=0.5, noise_probability=0.5, shuffle_windows=200)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(64, 64, 32), (33, 9, 7), (1, 2, 3), (1, 1, 1)])
def test_any_size_stays_in_range_and_the_input_is_left_alone(backend, shape):
    cube = distinct(shape)
    kept = cube.copy()
    original, corrupted = many(backend, cube, 8, HARSH, seed=22)
    assert np.array_equal(cube, kept)
    assert corrupted.shape == original.shape == (8, *shape)
    assert corrupted.dtype == original.dtype == np.float32
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_seed_gives_one_result(backend):
    cube = smooth((20, 18, 16))
    first, again = (many(backend, cube, 8, HARSH, seed=23)[1] for _ in range(2))
    other = many(backend, cube, 8, HARSH, seed=24)[1]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_pair_can_become_tensors():
    original, corrupted = transforms.original_and_corrupted(
        smooth((16, 16, 16)), replace(PUBLISHED, flip_probability=1), np.random.default_rng(0)
    )
    assert torch.from_numpy(original).is_contiguous()
    assert torch.from_numpy(corrupted).is_contiguous()


def test_corruption_without_any_probability_is_a_copy():
    cube = smooth((16, 16, 16))
    corrupted = corrupt(cube, NOTHING, np.random.default_rng(0))
    assert np.array_equal(corrupted, cube)
    assert not np.shares_memory(corrupted, cube)


@pytest.mark.parametrize(
    "wrong",
    [
        {"paint_probability": 1.2},
        {"ramp_share": -0.1},
        {"block_share": (0.6, 0.3)},
        {"flip_axes": ("x", "w")},
        {"flip_axes": ()},
        {"shuffle_divisor": 0},
        {"noise_sigma": -1.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="Expected"):
        CorruptionConfig(**wrong)
