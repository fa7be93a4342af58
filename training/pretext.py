"""The rivals' proxy tasks, trained in the same loop: 3D rotation and 3D jigsaw.

Source: Taleb et al., "3D Self-Supervised Methods for Medical Imaging", 2020, Sec. 3; the sizes of
their published code are scaled to the cube at hand. Shape letters: N batch, K classes, T tiles.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import ObjectiveConfig
from universal_model_hub.errors import ConfigError
from universal_model_hub.networks.unet3d import UNet3D

GRID = 3  # tiles along each axis
TILES = GRID**3
ROTATIONS = ((0, 0), *((axis, turns) for axis in range(3) for turns in (1, 2, 3)))  # 10 classes
PLANES = ((1, 2), (0, 2), (0, 1))  # the plane that a turn about X, Y or Z moves


class ProxyLosses(NamedTuple):
    """Cross-entropy of a proxy task, and its accuracy; each a scalar."""

    classification: Tensor
    accuracy: Tensor

    def total(self, config: ObjectiveConfig) -> Tensor:
        """The cross-entropy is the whole loss."""
        del config
        return self.classification


def rotate(cube: np.ndarray, class_id: int) -> np.ndarray:
    """Turn a cube (S, S, S) by class: 0 not at all, else 90, 180 or 270 degrees about one axis.

    Raises:
        ConfigError: If the cube is not cubic, since a quarter turn would change its shape.
    """
    if len(set(cube.shape)) != 1:
        raise ConfigError(
            f"3D Rotation needs cubic cubes, got {cube.shape}. Set cubes.size to equal sides."
        )
    axis, turns = ROTATIONS[class_id]
    return np.ascontiguousarray(np.rot90(cube, turns, axes=PLANES[axis]))


def jigsaw_permutations(count: int, seed: int = 0) -> np.ndarray:
    """Draw ``count`` different permutations of the 27 tiles, (count, 27) int64.

    Source: Taleb et al. draw plain random permutations; the file of theirs is not used.
    """
    rng = np.random.default_rng(seed)
    found: dict[bytes, np.ndarray] = {}
    while len(found) < count:
        permutation = rng.permutation(TILES)
        found.setdefault(permutation.tobytes(), permutation)
    return np.stack(list(found.values()))


def tile_size(cube_size: tuple[int, ...]) -> tuple[int, ...]:
    """Sides of a jigsaw tile: a third of the cube, less a jitter in proportion.

    Source: Taleb et al. cut 128 voxels into tiles of 42 and crop 39 of them at random (jitter 3,
    1/14 of the tile).
    """
    return tuple(side // GRID - jitter(side) for side in cube_size)


def jitter(side: int) -> int:
    """Voxels by which a tile may move inside its cell: 3 of 42 in the source."""
    return max(1, round(side // GRID / 14))


def cut_tiles(
    cube: np.ndarray, permutation: np.ndarray, rng: np.random.Generator | None
) -> np.ndarray:
    """Cut a cube (X, Y, Z) into its 27 tiles, in the order of ``permutation``.

    Args:
        cube: (X, Y, Z).
        permutation: (27,); place i gets tile permutation[i].
        rng: Moves each tile inside its cell; None takes the middle, as in validation.

    Returns:
        (27, x, y, z).
    """
    cells = [side // GRID for side in cube.shape]
    sizes = tile_size(cube.shape)
    if min(sizes) < 1:
        raise ConfigError(f"A cube of {cube.shape} is too small for 3 x 3 x 3 tiles.")
    tiles = []
    for tile in permutation:
        where = np.unravel_index(int(tile), (GRID, GRID, GRID))
        window = []
        for place, cell, size in zip(where, cells, sizes, strict=True):
            slack = cell - size
            shift = slack // 2 if rng is None else int(rng.integers(0, slack + 1))
            start = int(place) * cell + shift
            window.append(slice(start, start + size))
        tiles.append(cube[tuple(window)])
    return np.stack(tiles)


class ProxyHead(nn.Module):
    """Two hidden layers with batch norm, then classes.

    Source: Taleb et al. use 2048 and 1024 units on flattened maps, with dropout 0.5. Source: ours:
    half the units on pooled maps, since a compact encoder has 128 channels, and no dropout.
    """

    def __init__(self, in_features: int, num_classes: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden[0]),
            nn.BatchNorm1d(hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.BatchNorm1d(hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, F) to (N, K) logits."""
        return cast("Tensor", self.layers(x))


class RotationModel(nn.Module):
    """Which of ten turns a cube has undergone."""

    def __init__(self, unet: UNet3D, config: ObjectiveConfig) -> None:
        super().__init__()
        del config
        self.unet = unet
        channels = unet.encoder.feature_info[-1].channels
        self.head = ProxyHead(channels, len(ROTATIONS), (1024, 512))
        for part in (unet.decoder, unet.head):
            part.requires_grad_(False)  # the proxy task has no decoder

    def forward(self, batch: Mapping[str, Tensor], step: int) -> ProxyLosses:
        """Compute the loss of ``cube`` (N, 1, S, S, S) and ``class_id`` (N,)."""
        del step
        logits = self.head(self.unet.encoder(batch["cube"])[-1].mean(dim=(2, 3, 4)))
        return proxy_losses(logits, batch["class_id"])


class JigsawModel(nn.Module):
    """Which of the fixed permutations the 27 tiles of a cube have undergone."""

    def __init__(self, unet: UNet3D, config: ObjectiveConfig) -> None:
        super().__init__()
        self.unet = unet
        channels = unet.encoder.feature_info[-1].channels
        self.head = ProxyHead(TILES * channels, config.permutations, (1024, 512))
        for part in (unet.decoder, unet.head):
            part.requires_grad_(False)

    def forward(self, batch: Mapping[str, Tensor], step: int) -> ProxyLosses:
        """Compute the loss of ``tiles`` (N, T, x, y, z) and ``class_id`` (N,)."""
        del step
        tiles = batch["tiles"]
        N, T = tiles.shape[:2]
        deepest = self.unet.encoder(tiles.flatten(0, 1).unsqueeze(1))[-1]
        pooled = deepest.mean(dim=(2, 3, 4)).reshape(N, T * deepest.shape[1])
        return proxy_losses(self.head(pooled), batch["class_id"])


def proxy_losses(logits: Tensor, class_id: Tensor) -> ProxyLosses:
    """Compare (N, K) logits with (N,) classes."""
    accuracy = (logits.argmax(dim=1) == class_id).float().mean()
    return ProxyLosses(F.cross_entropy(logits.float(), class_id), accuracy.detach())
