"""Defaults that adapt to the data and the machine."""

import math

import pytest
import torch

from universal_model_hub.fit.training.plan import (
    class_weights,
    classification_spacing,
    cube_for,
    plan_settings,
    steps_within,
    with_steps,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("shape", "cube"),
    [
        ((300, 300, 300), (40, 40, 40)),
        ((300, 300, 20), (48, 56, 24)),
        ((30, 30, 30), (32, 32, 32)),
        ((5, 300, 300), (16, 64, 64)),
    ],
)
def test_a_cube_is_as_even_as_the_scan_allows(shape, cube):
    assert sorted(cube_for(shape, 2**16)) == sorted(cube)
    assert all(side % 8 == 0 for side in cube_for(shape, 2**16))


def test_rare_classes_weigh_more_but_within_bounds():
    weights = class_weights([10**9, 10**6, 10**3])
    assert weights is not None
    assert weights[0] < weights[1] < weights[2]
    assert weights[2] / weights[0] < 8.01
    assert math.isclose(sum(weights) / 3, 1, abs_tol=1e-3)
    assert class_weights([100, 110, 90]) is None
    assert class_weights([100, 0]) is None


def test_what_the_user_sets_goes_before_every_rule():
    given = {"cube": (16, 16, 16), "steps": 40, "seed": 3}
    settings = plan_settings("segmentation", (200, 200, 200), [100, 10], CPU, given)
    assert (settings.cube, settings.steps, settings.seed) == ((16, 16, 16), 40, 3)
    assert settings.head_steps == 4
    assert settings.validate_every == 4


def test_a_time_budget_gives_steps_and_what_follows_from_them():
    settings = plan_settings("segmentation", (64, 64, 64), [100, 10], CPU, {})
    steps = steps_within(600, seconds_a_step=0.5, runs=2, settings=settings)
    assert steps == 450
    shorter = with_steps(settings, steps)
    assert shorter.steps == 450
    assert shorter.head_steps <= 45
    assert steps_within(10, seconds_a_step=60, runs=1, settings=settings) == 10


def test_whole_scans_for_classification_get_a_grid_that_fits():
    spacing = classification_spacing((256, 256, 256), (1, 1, 1))
    assert spacing == (4.0, 4.0, 4.0)
    assert classification_spacing((32, 32, 32), (1, 1, 1)) == (1, 1, 1)
