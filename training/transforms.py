"""Corruptions of a cube, on CPU workers: what the network sees while it learns to restore.

Order: flip (original and corrupted alike), local shuffling, non-linear intensity, painting; then,
off by default, block masking and noise. All take a cube (X, Y, Z) float32 in [0, 1] and a random
generator, and leave the cube alone. ``device_transforms`` does the same to whole batches in torch.
"""

from dataclasses import dataclass

import numpy as np

from universal_model_hub.errors import ConfigError

CURVE_SAMPLES = 1000  # points on a Bezier curve; straight lines between them
CURVE_LEVELS = 1 << 16  # gray values told apart when a curve is applied on the CPU
PAINT_MARGIN = 3  # voxels between a painted box and the cube's faces
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class CorruptionConfig:
    """Which corruptions, how often, how strong; the defaults are the published ones.

    Source: Zhang et al., Sec. III-A, which takes the transformations of Models Genesis; the
    probabilities and sizes are those of Models Genesis' published settings. The fields from
    ``block_probability`` on are ours: with the published settings a short run learns less than
    copying its input would score, gentler ones are learned.
    """

    flip_probability: float = 0.4  # of one more flip, up to max_flips
    max_flips: int = 3
    # Models Genesis draws among channel, X and Y, so a third of the draws flips nothing and Z
    # never flips; ("x", "y", "z") for all three.
    flip_axes: tuple[str, ...] = ("none", "x", "y")
    shuffle_probability: float = 0.5
    shuffle_windows: int = 10_000
    shuffle_divisor: int = 10  # a window's side: 1 to the cube's side // this
    curve_probability: float = 0.9
    invert_probability: float = 0.5  # of a falling curve, given a curve
    paint_probability: float = 0.9  # of in- or out-painting
    outpaint_probability: float = 0.8  # of out-painting, given painting
    box_probability: float = 0.95  # of one more box, up to max_boxes
    max_boxes: int = 5
    block_probability: float = 0.0  # of replacing whole blocks of a grid by noise
    block_side: int = 8  # voxels
    block_share: tuple[float, float] = (0.3, 0.6)  # of the cube's blocks, least and most
    noise_probability: float = 0.0  # of added Gaussian noise
    noise_sigma: float = 0.1  # the largest; drawn uniformly from 0
    ramp_share: float = 0.0  # of the run, in which inversion and out-painting rise from never

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith(("_probability", "_share")):
                shares = value if isinstance(value, tuple) else (value,)
                if not all(0 <= share <= 1 for share in shares):
                    raise ConfigError(f"Expected {name} between 0 and 1, got {value}.")
        if self.block_share[0] > self.block_share[1]:
            raise ConfigError(f"Expected block_share as (least, most), got {self.block_share}.")
        if not self.flip_axes or set(self.flip_axes) - {"none", "x", "y", "z"}:
            raise ConfigError(
                f'Expected flip_axes out of "none", "x", "y", "z", got {self.flip_axes}.'
            )
        if min(self.shuffle_divisor, self.block_side) < 1:
            raise ConfigError("Expected shuffle_divisor and block_side of at least 1.")
        if min(self.shuffle_windows, self.max_flips, self.max_boxes, self.noise_sigma) < 0:
            raise ConfigError("Expected no negative number of windows, flips, boxes, or sigma.")


def strength_at(progress: float, config: CorruptionConfig) -> float:
    """Return how often inversion and out-painting happen by now, as a share of their probability.

    Args:
        progress: Share of the run that is done, 0 to 1.
        config: Its ``ramp_share`` is the share of the run after which the strength is 1.
    """
    return 1.0 if progress >= config.ramp_share else max(progress, 0.0) / config.ramp_share


def original_and_corrupted(
    cube: np.ndarray, config: CorruptionConfig, rng: np.random.Generator, *, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return a training pair: the flipped cube, and its corrupted copy; each (X, Y, Z) float32."""
    original = flip(cube, config, rng)
    return original, corrupt(original, config, rng, strength=strength)


def flip(cube: np.ndarray, config: CorruptionConfig, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of the cube, flipped along no, one or several axes; (X, Y, Z) float32."""
    for _ in range(config.max_flips):
        if rng.random() >= config.flip_probability:
            break
        axis = config.flip_axes[rng.integers(len(config.flip_axes))]
        if axis != "none":
            cube = np.flip(cube, "xyz".index(axis))
    return np.array(cube, np.float32, order="C")


def corrupt(
    cube: np.ndarray, config: CorruptionConfig, rng: np.random.Generator, *, strength: float = 1.0
) -> np.ndarray:
    """Return a corrupted copy of the cube.

    Args:
        cube: (X, Y, Z), in [0, 1].
        config: Probabilities and sizes.
        rng: Source of every random number.
        strength: Factor of the probabilities of inversion and out-painting; see ``strength_at``.

    Returns:
        (X, Y, Z), float32 in [0, 1].
    """
    corrupted = np.array(cube, np.float32, order="C")
    if rng.random() < config.shuffle_probability:
        corrupted = shuffle_locally(corrupted, config, rng)
    if rng.random() < config.curve_probability:
        invert = rng.random() < config.invert_probability * strength
        corrupted = apply_curve(corrupted, rng.random((2, 2)), invert=bool(invert))
    painting = rng.random()
    outpaint_share = config.paint_probability * config.outpaint_probability
    if painting < outpaint_share * strength:
        corrupted = outpaint(corrupted, config, rng)
    elif outpaint_share <= painting < config.paint_probability:
        corrupted = inpaint(corrupted, config, rng)
    if rng.random() < config.block_probability:
        corrupted = mask_blocks(corrupted, config, rng)
    if rng.random() < config.noise_probability:
        corrupted = add_noise(corrupted, config, rng)
    return corrupted


def shuffle_locally(
    cube: np.ndarray, config: CorruptionConfig, rng: np.random.Generator
) -> np.ndarray:
    """Permute the voxels inside many small windows, each by a permutation of its own.

    Every window takes its voxels from the given cube, not from what earlier windows left, and
    where windows overlap the last one shows. Windows of one size are permuted together.

    Args:
        cube: (X, Y, Z) float32.
        config: Number of windows, and the divisor that bounds their sides.
        rng: Source of sizes, places and permutations.

    Returns:
        (X, Y, Z), float32.
    """
    dims = np.array(cube.shape)
    largest = np.maximum(dims // config.shuffle_divisor, 1)
    sides = rng.integers(1, largest + 1, size=(config.shuffle_windows, 3))
    corners = rng.integers(0, dims - sides + 1)
    first_voxel = np.ravel_multi_index(tuple(corners.T), cube.shape)
    ends = np.cumsum(sides.prod(axis=1))
    begins = ends - sides.prod(axis=1)  # where a window's writes begin, in the order of windows
    written = np.empty(ends[-1] if len(ends) else 0, np.intp)
    values = np.empty(len(written), np.float32)
    flat = cube.reshape(-1)

    size_code = np.ravel_multi_index(tuple(sides.T - 1), tuple(largest))
    by_size = np.argsort(size_code, kind="stable")
    for group in np.split(by_size, np.flatnonzero(np.diff(size_code[by_size])) + 1):
        if not len(group):
            continue
        offsets = np.ravel_multi_index(tuple(np.indices(sides[group[0]])), cube.shape).reshape(-1)
        voxels = first_voxel[group, None] + offsets  # (windows of this size, voxels in one)
        slots = begins[group, None] + np.arange(len(offsets))
        written[slots] = voxels
        values[slots] = rng.permuted(flat[voxels], axis=1)

    shuffled = flat.copy()
    shuffled[written] = values  # NumPy keeps the last of repeated indices
    return shuffled.reshape(cube.shape)


def apply_curve(cube: np.ndarray, points: np.ndarray, *, invert: bool) -> np.ndarray:
    """Map intensities by a monotone cubic Bezier curve between (0, 0) and (1, 1).

    Args:
        cube: (X, Y, Z), in [0, 1].
        points: (2, 2) in [0, 1], the two inner control points, each (x, y).
        invert: Take the falling curve: the same x, with y from the other end.

    Returns:
        (X, Y, Z), float32 in [0, 1], exact to a gray step of 1 / 65535.
    """
    x, y = bezier(points)
    # Inner control points in [0, 1] make x and y rise with t, so reversing y is all that the
    # published sorting does.
    levels = np.linspace(0, 1, CURVE_LEVELS)
    table = np.interp(levels, x, y[::-1] if invert else y).astype(np.float32)
    index = np.rint(cube * np.float32(CURVE_LEVELS - 1)).astype(np.uint16)
    return table[index]


def bezier(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of a Bezier curve from (0, 0) to (1, 1), each (CURVE_SAMPLES,), rising."""
    t = np.linspace(0, 1, CURVE_SAMPLES)
    weights = np.stack([3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2])  # of the inner points
    x, y = points.T @ weights + t**3
    return x, y


def inpaint(cube: np.ndarray, config: CorruptionConfig, rng: np.random.Generator) -> np.ndarray:
    """Replace up to ``max_boxes`` boxes, a sixth to a third of the cube a side, by noise."""
    painted = cube.copy()
    for _ in range(config.max_boxes):
        if rng.random() >= config.box_probability:
            break
        box = random_box([(dim // 6, dim // 3) for dim in cube.shape], cube.shape, rng)
        painted[box] = rng.random(painted[box].shape, np.float32)
    return painted


def outpaint(cube: np.ndarray, config: CorruptionConfig, rng: np.random.Generator) -> np.ndarray:
    """Replace all but 1 to ``max_boxes`` boxes, about half the cube a side, by noise."""
    painted = rng.random(cube.shape, np.float32)
    for k in range(config.max_boxes):
        if k > 0 and rng.random() >= config.box_probability:
            break
        ranges = [(dim - 4 * dim // 7, dim - 3 * dim // 7) for dim in cube.shape]
        box = random_box(ranges, cube.shape, rng)
        painted[box] = cube[box]
    return painted


def random_box(
    ranges: list[tuple[int, int]], shape: tuple[int, ...], rng: np.random.Generator
) -> Box:
    """Return a box with sides drawn from inclusive ranges, 3 voxels away from the faces.

    In cubes too small for that margin (under 14 voxels a side) the margin shrinks. Source: ours.
    """
    box = []
    for (least, most), dim in zip(ranges, shape, strict=True):
        side = int(rng.integers(max(least, 1), max(most, 1) + 1))
        margin = min(PAINT_MARGIN, (dim - side) // 2)
        start = int(rng.integers(margin, dim - side - margin + 1))
        box.append(slice(start, start + side))
    return (box[0], box[1], box[2])


def mask_blocks(cube: np.ndarray, config: CorruptionConfig, rng: np.random.Generator) -> np.ndarray:
    """Replace a random share of the blocks of a regular grid by noise. Source: ours."""
    grid = tuple(-(-dim // config.block_side) for dim in cube.shape)
    keys = rng.random(grid)
    count = round(rng.uniform(*config.block_share) * keys.size)
    chosen = keys.reshape(-1).argsort().argsort().reshape(grid) < count
    for axis in range(3):
        chosen = chosen.repeat(config.block_side, axis)
    X, Y, Z = cube.shape
    return np.where(chosen[:X, :Y, :Z], rng.random(cube.shape, np.float32), cube)


def add_noise(cube: np.ndarray, config: CorruptionConfig, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of a random sigma and clip to [0, 1]. Source: ours."""
    sigma = np.float32(rng.uniform(0, config.noise_sigma))
    return np.clip(cube + sigma * rng.standard_normal(cube.shape, np.float32), 0, 1)
