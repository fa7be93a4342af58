"""The corruptions of ``transforms`` on a whole batch in torch, on the batch's own device.

Same distributions, other random numbers: every cube of the batch draws its own. Batches are
(N, 1, X, Y, Z) float32 in [0, 1]; the generator lives on the same device. B counts the cubes of
the batch that one corruption touches.
"""

import torch
from torch import Tensor

from training.transforms import CURVE_SAMPLES, PAINT_MARGIN, CorruptionConfig


def original_and_corrupted_batch(
    cubes: Tensor, config: CorruptionConfig, generator: torch.Generator, *, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return a training batch: the flipped cubes and their corrupted copies, (N, 1, X, Y, Z)."""
    original = flip_batch(cubes, config, generator)
    return original, corrupt_batch(original, config, generator, strength=strength)


def flip_batch(cubes: Tensor, config: CorruptionConfig, generator: torch.Generator) -> Tensor:
    """Return a copy in which each cube is flipped along no, one or several axes."""
    N = len(cubes)
    shape = (N, config.max_flips)
    draws = torch.rand(shape, generator=generator, device=cubes.device)
    goes_on = (draws < config.flip_probability).cumprod(dim=1).bool()
    axes = torch.randint(
        len(config.flip_axes), shape, generator=generator, device=cubes.device
    )  # (N, flips)
    flipped = cubes.clone()
    for k, axis in enumerate(config.flip_axes):
        if axis == "none":
            continue
        odd = ((axes == k) & goes_on).sum(dim=1) % 2 == 1
        turned = flipped.flip(2 + "xyz".index(axis))
        flipped = torch.where(odd.view(N, 1, 1, 1, 1), turned, flipped)
    return flipped


def corrupt_batch(
    cubes: Tensor, config: CorruptionConfig, generator: torch.Generator, *, strength: float = 1.0
) -> Tensor:
    """Return a corrupted copy of a batch.

    Args:
        cubes: (N, 1, X, Y, Z), in [0, 1].
        config: Probabilities and sizes.
        generator: Source of every random number, on the batch's device.
        strength: Factor of the probabilities of inversion and out-painting.

    Returns:
        (N, 1, X, Y, Z), float32 in [0, 1].
    """

    def uniform() -> Tensor:
        return torch.rand(len(cubes), generator=generator, device=cubes.device)

    corrupted = cubes.float().clone()
    chosen = uniform() < config.shuffle_probability
    corrupted[chosen] = shuffle_locally_batch(corrupted[chosen], config, generator)

    chosen = uniform() < config.curve_probability
    points = torch.rand(len(cubes), 2, 2, generator=generator, device=cubes.device)
    invert = uniform() < config.invert_probability * strength
    corrupted[chosen] = apply_curve_batch(corrupted[chosen], points[chosen], invert[chosen])

    painting = uniform()
    outpaint_share = config.paint_probability * config.outpaint_probability
    outside = painting < outpaint_share * strength
    inside = (outpaint_share <= painting) & (painting < config.paint_probability)
    chosen = outside | inside
    corrupted[chosen] = paint_batch(corrupted[chosen], outside[chosen], config, generator)

    chosen = uniform() < config.block_probability
    corrupted[chosen] = mask_blocks_batch(corrupted[chosen], config, generator)
    chosen = uniform() < config.noise_probability
    corrupted[chosen] = add_noise_batch(corrupted[chosen], config, generator)
    return corrupted


def shuffle_locally_batch(
    cubes: Tensor, config: CorruptionConfig, generator: torch.Generator
) -> Tensor:
    """Permute the voxels inside many small windows of each cube; see ``shuffle_locally``.

    All windows of all cubes are laid end to end. One sort by (window, random key) gives every
    window its own permutation, and the largest write number at a voxel is the last window there.

    Args:
        cubes: (B, 1, X, Y, Z).
        config: Number of windows, and the divisor that bounds their sides.
        generator: Source of sizes, places and permutations.

    Returns:
        (B, 1, X, Y, Z).
    """
    device = cubes.device
    dims = torch.tensor(cubes.shape[2:], device=device)
    num_windows = len(cubes) * config.shuffle_windows
    if num_windows == 0:
        return cubes.clone()
    ones = torch.ones(num_windows, 3, dtype=torch.long, device=device)
    sides = random_integers(ones, ones * (dims // config.shuffle_divisor).clamp(min=1), generator)
    corners = random_integers(ones * 0, dims - sides, generator)

    volumes = sides.prod(dim=1)
    window = torch.repeat_interleave(torch.arange(num_windows, device=device), volumes)
    write = torch.arange(len(window), device=device)
    within = write - (volumes.cumsum(0) - volumes)[window]  # 0 .. voxels of the window - 1
    size_y, size_z = sides[window, 1], sides[window, 2]
    x = corners[window, 0] + within // (size_y * size_z)
    y = corners[window, 1] + within // size_z % size_y
    z = corners[window, 2] + within % size_z
    _, _, X, Y, Z = cubes.shape
    voxel = ((window // config.shuffle_windows * X + x) * Y + y) * Z + z

    # 30 random bits: two of a window's at most some hundred voxels share a key almost never.
    keys = torch.randint(1 << 30, window.shape, generator=generator, device=device)
    values = cubes.reshape(-1)[voxel[(window * (1 << 30) + keys).argsort()]]
    last = torch.full((cubes.numel(),), -1, device=device)
    last.scatter_reduce_(0, voxel, write, "amax")
    shuffled = torch.where(last >= 0, values[last.clamp(min=0)], cubes.reshape(-1))
    return shuffled.reshape(cubes.shape)


def apply_curve_batch(cubes: Tensor, points: Tensor, invert: Tensor) -> Tensor:
    """Map intensities by a monotone cubic Bezier curve of each cube's own; see ``apply_curve``.

    Args:
        cubes: (B, 1, X, Y, Z), in [0, 1].
        points: (B, 2, 2) in [0, 1], the inner control points, each (x, y).
        invert: (B,) bool, take the falling curve.

    Returns:
        (B, 1, X, Y, Z), in [0, 1].
    """
    t = torch.linspace(0, 1, CURVE_SAMPLES, device=cubes.device)
    weights = torch.stack([3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2])  # of the inner points
    x, y = ((points.transpose(1, 2) @ weights) + t**3).unbind(1)  # (B, samples) each
    x, y = x.contiguous(), torch.where(invert[:, None], y.flip(1), y)
    flat = cubes.flatten(1).contiguous()
    right = torch.searchsorted(x, flat).clamp(1, CURVE_SAMPLES - 1)
    x0, x1 = x.gather(1, right - 1), x.gather(1, right)
    y0, y1 = y.gather(1, right - 1), y.gather(1, right)
    # A curve may rise so slowly that two samples share one x: then the position between is moot.
    position = ((flat - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1)
    return (y0 + position * (y1 - y0)).clamp(0, 1).reshape(cubes.shape)


def paint_batch(
    cubes: Tensor, outside: Tensor, config: CorruptionConfig, generator: torch.Generator
) -> Tensor:
    """Fill boxes with noise, or all but boxes; see ``inpaint`` and ``outpaint``.

    Args:
        cubes: (B, 1, X, Y, Z).
        outside: (B,) bool: out-painting where true, in-painting elsewhere.
        config: Number of boxes.
        generator: Source of boxes and noise.

    Returns:
        (B, 1, X, Y, Z).
    """
    B, device = len(cubes), cubes.device
    dims = torch.tensor(cubes.shape[2:], device=device).expand(B, 3)
    out = outside[:, None]
    least = torch.where(out, dims - 4 * dims // 7, (dims // 6).clamp(min=1))
    most = torch.where(out, dims - 3 * dims // 7, (dims // 3).clamp(min=1))
    goes_on = torch.ones(B, dtype=torch.bool, device=device)
    in_boxes = torch.zeros(B, *cubes.shape[2:], dtype=torch.bool, device=device)
    for k in range(config.max_boxes):
        another = torch.rand(B, generator=generator, device=device) < config.box_probability
        goes_on = goes_on & (another | outside if k == 0 else another)
        sides = random_integers(least, most, generator)
        margin = ((dims - sides) // 2).clamp(max=PAINT_MARGIN)
        starts = random_integers(margin, dims - sides - margin, generator)
        in_boxes |= inside_boxes(starts, sides, cubes.shape[2:]) & goes_on.view(B, 1, 1, 1)
    noise = torch.rand(cubes.shape, generator=generator, device=device)
    painted = in_boxes ^ outside.view(B, 1, 1, 1)
    return torch.where(painted[:, None], noise, cubes)


def mask_blocks_batch(
    cubes: Tensor, config: CorruptionConfig, generator: torch.Generator
) -> Tensor:
    """Replace a random share of the blocks of a regular grid by noise; see ``mask_blocks``."""
    B, device = len(cubes), cubes.device
    grid = [-(-dim // config.block_side) for dim in cubes.shape[2:]]
    keys = torch.rand(B, *grid, generator=generator, device=device).flatten(1)
    least, most = config.block_share
    share = least + (most - least) * torch.rand(B, 1, generator=generator, device=device)
    chosen = keys.argsort(1).argsort(1) < (share * keys.shape[1]).round()
    chosen = chosen.reshape(B, 1, *grid)
    for axis in (2, 3, 4):
        chosen = chosen.repeat_interleave(config.block_side, axis)
    X, Y, Z = cubes.shape[2:]
    noise = torch.rand(cubes.shape, generator=generator, device=device)
    return torch.where(chosen[:, :, :X, :Y, :Z], noise, cubes)


def add_noise_batch(cubes: Tensor, config: CorruptionConfig, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise, of a sigma drawn for each cube, and clip to [0, 1]."""
    device = cubes.device
    sigma = config.noise_sigma * torch.rand(len(cubes), generator=generator, device=device)
    noise = torch.randn(cubes.shape, generator=generator, device=device)
    return (cubes + sigma.view(-1, 1, 1, 1, 1) * noise).clamp(0, 1)


def random_integers(least: Tensor, most: Tensor, generator: torch.Generator) -> Tensor:
    """Return integers uniform between two integer tensors of one shape, both ends included."""
    draws = torch.rand(least.shape, generator=generator, device=least.device)
    return least + (draws * (most - least + 1)).long()


def inside_boxes(starts: Tensor, sides: Tensor, shape: torch.Size) -> Tensor:
    """Return which voxels lie in a box: starts and sides (B, 3) in voxels -> (B, X, Y, Z) bool."""
    inside = torch.ones(len(starts), 1, 1, 1, dtype=torch.bool, device=starts.device)
    for axis, dim in enumerate(shape):
        position = torch.arange(dim, device=starts.device)
        on_axis = (position >= starts[:, axis, None]) & (position < (starts + sides)[:, axis, None])
        view = [len(starts), 1, 1, 1]
        view[1 + axis] = dim
        inside = inside & on_axis.view(view)
    return inside
