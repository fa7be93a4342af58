"""The rivals' proxy tasks: ten turns, 27 tiles, a hundred permutations."""

import numpy as np
import pytest
import torch

from training.config import ObjectiveConfig
from training.pretext import (
    ROTATIONS,
    JigsawModel,
    RotationModel,
    cut_tiles,
    jigsaw_permutations,
    rotate,
    tile_size,
)
from universal_model_hub.errors import ConfigError
from universal_model_hub.networks.unet3d import UNet3D


def cube_of(side=12):
    return np.random.default_rng(0).random((side, side, side), np.float32)


def test_the_ten_rotations_all_differ_and_the_first_is_the_identity():
    cube = cube_of()
    turned = [rotate(cube, k) for k in range(len(ROTATIONS))]
    assert len(ROTATIONS) == 10
    assert np.array_equal(turned[0], cube)
    assert len({t.tobytes() for t in turned}) == 10


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_four_quarter_turns_are_none(axis):
    quarter = ROTATIONS.index((axis, 1))
    cube = turned = cube_of()
    for _ in range(4):
        turned = rotate(turned, quarter)
    assert np.array_equal(turned, cube)
    # A turn about an axis leaves the sums along the other two where they are.
    other = tuple(k for k in range(3) if k != axis)
    np.testing.assert_allclose(
        rotate(cube, quarter).sum(axis=other), cube.sum(axis=other), rtol=1e-5
    )


def test_a_cube_that_is_not_cubic_cannot_be_rotated():
    with pytest.raises(ConfigError, match="cubic"):
        rotate(np.zeros((8, 8, 4), np.float32), 1)


def test_the_permutations_are_distinct_and_repeatable():
    permutations = jigsaw_permutations(100)
    assert permutations.shape == (100, 27)
    assert len(np.unique(permutations, axis=0)) == 100
    assert np.array_equal(np.sort(permutations, axis=1), np.tile(np.arange(27), (100, 1)))
    assert np.array_equal(permutations, jigsaw_permutations(100))


def test_tiles_of_the_published_cube_have_39_voxels():
    assert tile_size((128, 128, 128)) == (39, 39, 39)


def test_tiles_follow_the_permutation_and_come_from_their_own_cells():
    cells = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    cube = cells.repeat(14, 0).repeat(14, 1).repeat(14, 2)  # every voxel says its cell
    permutation = jigsaw_permutations(1)[0]
    for rng in (None, np.random.default_rng(0)):
        tiles = cut_tiles(cube, permutation, rng)
        assert tiles.shape == (27, 13, 13, 13)
        assert np.array_equal(tiles, np.broadcast_to(permutation[:, None, None, None], tiles.shape))


def test_the_jitter_moves_tiles():
    cube, identity = cube_of(42), np.arange(27)
    drawn = {cut_tiles(cube, identity, np.random.default_rng(k)).tobytes() for k in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        (RotationModel, {"cube": torch.rand(4, 1, 16, 16, 16)}),
        (JigsawModel, {"tiles": torch.rand(4, 27, 8, 8, 8)}),
    ],
)
def test_a_proxy_task_trains_the_encoder_and_leaves_the_decoder(kind, batch):
    torch.manual_seed(0)
    model = kind(UNet3D(width=2), ObjectiveConfig())
    batch = batch | {"class_id": torch.arange(4)}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    first = model(batch, 0)
    for _ in range(30):
        optimizer.zero_grad()
        losses = model(batch, 0)
        losses.total(ObjectiveConfig()).backward()
        optimizer.step()
    assert losses.classification < 0.2 * first.classification
    assert losses.accuracy == 1.0
    assert all(p.grad is None for p in model.unet.decoder.parameters())
