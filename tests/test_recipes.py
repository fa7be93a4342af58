"""The recipes: paper.toml field by field, and what the others change of it."""

import dataclasses
import re

import numpy as np
import pytest

from training.batches import TaskCubes
from training.config import (
    RECIPES,
    CubesConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Recipe,
    RunConfig,
    ScheduleConfig,
    load_recipe,
    tomllib,
)
from training.pretext import JigsawModel, RotationModel, tile_size
from training.state import TASKS
from training.transforms import CorruptionConfig

PAPER = (RECIPES / "paper.toml").read_text()
OTHER_TABLES = {"packaged_split", "release_tasks"} | {
    f"benchmark_{plan}" for plan in ("paper", "mini", "smoke")
}  # in the same folder, no recipes
NAMES = sorted(p.stem for p in RECIPES.glob("*.toml") if p.stem not in OTHER_TABLES)
SECTIONS = {
    "cubes": CubesConfig,
    "model": ModelConfig,
    "corruption": CorruptionConfig,
    "objective": ObjectiveConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
}
# What a run writes down and how it computes; none of it is the method.
BOOKKEEPING = {
    "channels_last", "compile", "deterministic", "freeze_normalization", "balance", "ema_decay",
    "validation_cubes", "validate_every", "save_every", "save_minutes", "log_every",
    "picture_every", "keep_checkpoints", "workers",
}  # fmt: skip
SOURCES = re.compile(r"Sec\. |Table |Eq\. |open|not in the paper|published|volumes:|rival|source")


@pytest.mark.parametrize("section", SECTIONS)
def test_the_paper_recipe_names_every_field(section):
    named = set(tomllib.loads(PAPER)[section])
    assert named == {field.name for field in dataclasses.fields(SECTIONS[section])}


def test_the_paper_recipe_names_the_length_of_the_run():
    named = set(tomllib.loads(PAPER)["run"])
    assert named == {field.name for field in dataclasses.fields(RunConfig)} - BOOKKEEPING


def test_every_value_of_the_paper_recipe_says_its_source():
    header = ""
    for line in PAPER.splitlines():
        _, _, comment = line.partition("#")
        if line.startswith("["):
            header = comment
        elif re.match(r"\w+ = ", line) and not line.startswith('name = "paper"'):
            assert SOURCES.search(comment or header), line


def test_the_paper_recipe_is_what_the_paper_states():
    recipe = load_recipe("paper")
    stated = [
        (recipe.corpora, ("luna16", "lits2017", "brats2018", "msd_heart")),  # Table I
        (recipe.preprocessing.spacing, (1.0, 1.0, 1.0)),  # Sec. IV-B.1
        (recipe.preprocessing.order, 3),
        (recipe.preprocessing.ct_clip, (-1000.0, 1000.0)),
        (recipe.preprocessing.mr_clip, (0.0, 4000.0)),
        (recipe.cubes.size, (64, 64, 32)),  # Sec. III-C
        (recipe.cubes.scales, (1 / 8, 1 / 4, 1 / 2)),
        (recipe.objective.scale_weight, 1.0),  # Sec. III-D
        (recipe.objective.restoration_weight, 10.0),
        (recipe.objective.scale_hidden, 1024),  # Sec. IV-B.2
        (recipe.optimizer.name, "sgd"),
        (recipe.optimizer.scale_learning_rate, 0.1),
        (recipe.optimizer.modality_learning_rate, 1e-3),
        (recipe.schedule.name, "plateau"),
    ]
    for found, expected in stated:
        assert found == expected
    assert recipe.optimizer.unet_learning_rate == 1.0
    assert (recipe.preprocessing.ct_rescale, recipe.preprocessing.mr_rescale) == ("volume",) * 2
    for small, medium, large in recipe.cubes.counts.values():
        assert small == 2 * medium == 2 * large  # Sec. III-C


def test_the_corruptions_are_the_published_ones():
    published = {
        "flip_probability": 0.4, "max_flips": 3, "shuffle_probability": 0.5,
        "shuffle_windows": 10_000, "shuffle_divisor": 10, "curve_probability": 0.9,
        "invert_probability": 0.5, "paint_probability": 0.9, "outpaint_probability": 0.8,
        "box_probability": 0.95, "max_boxes": 5, "block_probability": 0.0,
        "noise_probability": 0.0, "ramp_share": 0.0,
    }  # fmt: skip
    corruption = dataclasses.asdict(load_recipe("paper").corruption)
    assert {name: corruption[name] for name in published} == published


def test_the_defaults_of_the_dataclasses_are_the_papers_but_for_rescaling_and_length():
    recipe = load_recipe("paper")
    default = Recipe(name="paper", preprocessing=recipe.preprocessing)
    run = dataclasses.replace(recipe.run, steps=default.run.steps)
    assert dataclasses.replace(recipe, run=run) == default


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_loads_under_its_own_name_and_counts_every_scale(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    for corpus in recipe.corpora:
        counts = recipe.cubes.counts.get(corpus, recipe.cubes.default_counts)
        assert len(counts) == len(recipe.cubes.scales)
        assert sum(counts) > 0
    assert recipe.objective.task in TASKS
    assert recipe.run.steps > 0 < recipe.run.batch_size


@pytest.mark.parametrize("name", ["rotation", "jigsaw"])
def test_the_rivals_use_the_target_sets_and_the_prior_works_optimizer(name):
    recipe, paper = load_recipe(name), load_recipe("paper")
    assert recipe.objective.task == name
    assert set(recipe.corpora) == {"brats2018", "luna16", "mmwhs", "adni"}
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.weight_decay) == ("adamw", 0.0)  # Adam
    assert optimizer.unet_learning_rate == 1e-4
    assert recipe.run.batch_size == {"rotation": 4, "jigsaw": 8}[name]
    assert recipe.model == paper.model
    assert recipe.preprocessing == paper.preprocessing


def test_both_rivals_share_one_store_and_see_as_many_cubes():
    rotation, jigsaw = load_recipe("rotation"), load_recipe("jigsaw")
    assert rotation.cubes == jigsaw.cubes
    seen = [recipe.run.steps * recipe.run.batch_size for recipe in (rotation, jigsaw)]
    assert seen[0] == seen[1] == 760 * 1000


def test_rotation_has_cubes_that_can_turn_and_jigsaw_tiles_in_proportion():
    assert len(set(load_recipe("rotation").cubes.size)) == 1
    jigsaw = load_recipe("jigsaw")
    assert tile_size(jigsaw.cubes.size) == (19, 19, 19)
    assert jigsaw.objective.permutations == 100
    assert TASKS["rotation"] is RotationModel
    assert TASKS["jigsaw"] is JigsawModel


@pytest.mark.parametrize(
    ("name", "key", "classes"), [("rotation", "cube", 10), ("jigsaw", "tiles", 100)]
)
def test_a_cube_of_the_rivals_store_becomes_what_their_task_takes(name, key, classes):
    class Store:
        records = (None,)

        def cube(self, number):
            return np.random.default_rng(number).random((64, 64, 64), dtype=np.float32)

    item = TaskCubes(Store(), load_recipe(name))[0, 0]
    shape = {"cube": (1, 64, 64, 64), "tiles": (27, 19, 19, 19)}[key]
    assert item[key].shape == shape
    assert 0 <= int(item["class_id"]) < classes
