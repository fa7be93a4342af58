"""Cubes: three scales in the stated numbers, none of air, stored exactly, resumable."""

import json

import numpy as np
import pytest
import torch

from training.config import CubesConfig, load_recipe
from training.cubes import cut_cubes, draw_box, resize
from universal_model_hub.errors import ConfigError

SMALL = CubesConfig(size=(16, 16, 8), default_counts=(8, 4, 4), counts={})


def body(side=64):
    """A synthetic volume: air in one half, texture in the other."""
    volume = torch.zeros(side, side, side)
    volume[: side // 2] = torch.rand(
        side // 2, side, side, generator=torch.Generator().manual_seed(0)
    )
    return volume


def test_a_box_has_about_its_share_of_each_side_and_lies_inside():
    rng = np.random.default_rng(0)
    for share in (0.125, 0.25, 0.5):
        for _ in range(200):
            start, side = draw_box((300, 200, 100), (300, 200, 100), share, 0.1, rng)
            for n, a, b in zip((300, 200, 100), start, side, strict=True):
                assert abs(b - share * n) <= 0.1 * share * n + 1
                assert 0 <= a <= a + b <= n


def test_boxes_reach_both_ends_of_the_volume():
    rng = np.random.default_rng(0)
    boxes = [draw_box((20, 20, 20), (20, 20, 20), 0.5, 0.0, rng) for _ in range(500)]
    starts = {start[0] for start, _ in boxes}
    assert starts == set(range(11))


def test_cubes_come_in_the_counts_of_each_scale_and_none_is_air():
    cubes, places, left_out = cut_cubes(body(), SMALL, (8, 4, 4), 0.05, np.random.default_rng(0))
    assert cubes.shape == (16, 16, 16, 8)
    assert cubes.dtype == np.float32
    assert [p["scale_id"] for p in places] == [0] * 8 + [1] * 4 + [2] * 4
    assert left_out == 0
    assert all((cube > 0.05).mean() >= 0.02 for cube in cubes)


def test_a_volume_of_air_gives_no_cubes_and_says_how_many():
    cubes, places, left_out = cut_cubes(
        torch.zeros(32, 32, 32), SMALL, (8, 4, 4), 0.05, np.random.default_rng(0)
    )
    assert (len(cubes), places, left_out) == (0, [], 16)


def test_the_genesis_manner_cuts_native_voxels():
    config = CubesConfig(size=(16, 16, 8), scales=(1.0,), cut="voxels", scale_jitter=0.0)
    volume = body()
    cubes, places, _ = cut_cubes(volume, config, (5,), 0.05, np.random.default_rng(0))
    for cube, place in zip(cubes, places, strict=True):
        assert tuple(place["side"]) == (16, 16, 8)
        x, y, z = place["start"]
        assert np.array_equal(cube, volume[x : x + 16, y : y + 16, z : z + 8].numpy())


def test_resizing_keeps_constants_and_averages_what_shrinks():
    constant = torch.full((37, 20, 11), 0.25)
    assert torch.allclose(resize(constant, (16, 16, 8)), torch.tensor(0.25))
    box = torch.rand(32, 32, 16, generator=torch.Generator().manual_seed(0))
    small = resize(box, (16, 16, 8))
    expected = box.reshape(16, 2, 16, 2, 8, 2).mean(dim=(1, 3, 5))
    torch.testing.assert_close(small, expected)


def test_table_1_in_cubes():
    counts, volumes = CubesConfig().counts, {"luna16": 623, "lits2017": 111}
    volumes |= {"brats2018": 760, "msd_heart": 30}
    totals = {name: n * sum(counts[name]) for name, n in volumes.items()}
    assert totals == {"luna16": 39872, "lits2017": 14208, "brats2018": 48640, "msd_heart": 3840}
    by_scale = [tuple(volumes[name] * c for c in counts[name]) for name in counts]
    assert by_scale == [
        (19936, 9968, 9968), (7104, 3552, 3552), (24320, 12160, 12160), (1920, 960, 960)
    ]  # fmt: skip


def test_the_paper_recipe_is_the_papers():
    recipe = load_recipe("paper")
    assert recipe.cubes.size == (64, 64, 32)
    assert recipe.cubes.scales == (1 / 8, 1 / 4, 1 / 2)
    objective = recipe.objective
    weights = (objective.restoration_weight, objective.scale_weight, objective.modality_weight)
    assert weights == (10.0, 1.0, 1.0)
    optimizer = recipe.optimizer
    rates = (optimizer.unet_learning_rate, optimizer.scale_learning_rate)
    assert (*rates, optimizer.modality_learning_rate) == (1.0, 0.1, 1e-3)
    assert (optimizer.name, recipe.schedule.name) == ("sgd", "plateau")
    assert recipe.model.width == 32


@pytest.mark.parametrize(
    ("name", "modalities", "weights"),
    [
        ("model_ct", ("CT",), (1, 0, 0)),
        ("model_mri", ("MR",), (1, 0, 0)),
        ("model_multi", ("CT", "MR"), (1, 0, 0)),
        ("multi_mial", ("CT", "MR"), (10, 0, 1)),
        ("multi_sc", ("CT", "MR"), (10, 1, 0)),
        ("genesis", ("CT",), (1, 0, 0)),
    ],
)
def test_each_arm_of_table_4_differs_from_the_paper_as_it_says(name, modalities, weights):
    recipe, paper = load_recipe(name), load_recipe("paper")
    assert recipe.modalities == modalities
    objective = recipe.objective
    found = (objective.restoration_weight, objective.scale_weight, objective.modality_weight)
    assert found == weights
    assert recipe.optimizer == paper.optimizer
    assert recipe.corruption == paper.corruption
    if name == "genesis":
        assert recipe.preprocessing.spacing is None
        assert recipe.cubes.scales == (1.0,)


def test_one_value_can_be_set_and_a_wrong_one_is_refused():
    assert load_recipe("paper", ["run.steps=7", "model.width=8"]).run.steps == 7
    for wrong, word in [
        ("run.stepz=7", "unknown key stepz"),
        ("run.steps=often", "steps"),
        ("optimizer.name=lion", "expected one of"),
        ("run", "section.key=value"),
        ("cubes.size=[1, 2]", "expected 3 values"),
    ]:
        with pytest.raises(ConfigError, match=word):
            load_recipe("paper", [wrong])
    with pytest.raises(ConfigError, match=r"Available: .*paper"):
        load_recipe("no-such-recipe")


def test_a_recipe_equals_its_own_json_round_trip():
    record = load_recipe("paper").to_json()
    assert json.loads(json.dumps(record)) == record
