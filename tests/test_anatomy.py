"""Synthetic anatomy: label cubes, renderings, the terms learned on them, a run that resumes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from training.anatomy import (
    FIRST_SHAPE,
    GROUPS,
    LabelBank,
    anatomy_item,
    bank_of,
    group_table,
    label_cube,
    label_edges,
    make_map,
)
from training.anatomy_objective import AnatomyModel, contrastive_loss, sampled
from training.batches import TaskCubes
from training.config import load_recipe
from training.corpora.case import Case
from training.corpora.phantom import TISSUES
from training.cubes import CubeStore, write_cubes
from training.pretrain import pretrain
from training.publish import publish
from training.rendering import render, render_pair
from universal_model_hub.errors import ConfigError
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.volume import Volume

TINY = (
    "model.width=2", "cubes.size=[16, 16, 16]", "cubes.default_counts=[4, 2, 2]",
    "run.batch_size=2", "run.precision=float32", "run.validation_cubes=4", "run.save_every=2",
    "run.validate_every=4", "corpora=['made-up']", "objective.discriminator_hidden=4",
    "objective.scale_hidden=4",
)  # fmt: skip


@pytest.fixture
def bank(tmp_path):
    """A bank of one map: fat around muscle around bone, in air."""
    labels = np.zeros((40, 40, 40), np.uint8)
    for name, margin in (("fat", 4), ("muscle", 9), ("cortical_bone", 15)):
        labels[margin:-margin, margin:-margin, margin:-margin] = TISSUES[name]
    folder = bank_of(tmp_path / "store")
    folder.mkdir()
    np.save(folder / "made-up000.npy", labels)
    return LabelBank(folder)


@pytest.fixture
def recipe():
    """The recipe, tiny."""
    return load_recipe("compact-anatomy", TINY)


def tiny_store(folder, recipe):
    folder.mkdir(exist_ok=True)
    for number, modality in enumerate(("CT", "MR", "CT", "MR")):
        name = f"s{number}"
        case = Case(corpus="made-up", subject=name, id=name, modality=modality, volume=folder)
        low = -1000 if modality == "CT" else 0
        array = np.random.default_rng(number).integers(low, 900, (40, 40, 40), dtype=np.int16)
        write_cubes(case, Volume(array, np.eye(4)), recipe, folder)
    return CubeStore(folder)


def test_every_tissue_belongs_to_one_group_and_shapes_to_none():
    names = [name for group in GROUPS for name in group]
    assert sorted(names) == sorted(TISSUES)
    table = group_table()
    assert table[: len(TISSUES)].min() == 0
    assert (table[FIRST_SHAPE:] == -1).all()


def test_label_cubes_hold_the_banks_labels_and_repeat_by_seed(bank, recipe):
    allowed = {0, *(TISSUES[n] for n in ("fat", "muscle", "cortical_bone"))}
    for seed in range(6):
        one, other = (label_cube(bank, recipe, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(one, other)
        assert one.shape == (16, 16, 16)
        assert {int(v) for v in np.unique(one) if v < FIRST_SHAPE} <= allowed


def test_edges_are_where_labels_change():
    labels = np.zeros((4, 3, 3), np.uint8)
    labels[2:] = 5
    edges = label_edges(labels)
    assert edges[1:3].all()
    assert not edges[[0, 3]].any()


def test_renderings_are_images_of_their_labels(bank, recipe):
    labels = label_cube(bank, recipe, np.random.default_rng(3))
    before = labels.copy()
    first, second = render_pair(labels, np.random.default_rng(0))
    for image in (first, second):
        assert image.shape == labels.shape
        assert image.dtype == np.float32
        assert 0 <= image.min() < image.max() <= 1
    assert np.abs(first - second).mean() > 0.01
    np.testing.assert_array_equal(labels, before)
    again = render_pair(labels, np.random.default_rng(0))
    np.testing.assert_array_equal(first, again[0])


def test_most_ct_like_images_keep_the_order_of_hu(bank, recipe):
    labels = np.asarray(bank.draw(np.random.default_rng(0)))
    kept = 0
    for seed in range(20):
        image = render(labels, "CT", np.random.default_rng(seed))
        means = [
            image[labels == TISSUES[name]].mean()
            for name in ("air", "fat", "muscle", "cortical_bone")
        ]
        kept += means == sorted(means)
    assert kept >= 12


def test_a_bank_is_made_once_and_a_missing_one_is_refused(tmp_path, recipe, monkeypatch):
    with pytest.raises(ConfigError, match=r"training\.release\.prepare"):
        LabelBank(tmp_path)
    store = tiny_store(tmp_path / "store", recipe)
    with pytest.raises(ConfigError, match="label maps"):
        TaskCubes(store, recipe)
    monkeypatch.setattr("training.anatomy.BANK_SPACING_MM", 8.0)
    make_map(tmp_path, "heart", 0)
    first = (tmp_path / "heart000.npy").read_bytes()
    monkeypatch.setattr("training.anatomy.make_subject", pytest.fail)
    make_map(tmp_path, "heart", 0)
    assert (tmp_path / "heart000.npy").read_bytes() == first


def test_a_voxel_that_finds_itself_costs_less():
    maps = torch.randn(2, 8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    points = torch.arange(0, 64, 4).repeat(2, 1)
    found = sampled(maps, points)
    assert found.shape == (2, 16, 8)
    assert torch.equal(found[1, 3], maps[1].flatten(1)[:, 12])
    assert float(contrastive_loss(found, found)) < 0.1
    assert float(contrastive_loss(found, found.roll(1, dims=1))) > 5


def batch_of(bank, recipe, seeds):
    items = [anatomy_item(bank, recipe, np.random.default_rng(seed)) for seed in seeds]
    batch = {k: torch.from_numpy(np.stack([item[k] for item in items])) for k in items[0]}
    cubes = batch["rendering_a"]
    ids = torch.arange(len(seeds))
    return {**batch, "corrupted": cubes, "original": cubes, "modality_id": ids % 2,
            "scale_id": ids % 3}  # fmt: skip


def test_the_truth_costs_nothing_and_the_total_weighs_each_term(bank, recipe):
    torch.manual_seed(0)
    model = AnatomyModel(UNet3D(width=2), recipe.objective)
    batch = batch_of(bank, recipe, range(2))

    class Oracle(torch.nn.Module):
        def forward(self, maps):
            groups = torch.cat([batch["groups"]] * 2).clamp(min=0)
            named = 40.0 * F.one_hot(groups, len(GROUPS)).movedim(-1, 1).float()
            edges = torch.cat([batch["edges"]] * 2)[:, None] * 80 - 40
            return torch.cat([named, edges], dim=1)

    model.segmentation_head = Oracle()
    with torch.no_grad():
        losses = model(batch, 0)
    assert float(losses.segmentation) < 1e-4
    assert float(losses.edges) < 1e-4
    assert float(losses.segmentation_accuracy) == 1
    config = recipe.objective
    assert float(losses.total(config)) == pytest.approx(
        float(
            losses.modality
            + losses.scale
            + 10 * losses.restoration
            + config.contrast_weight * losses.contrast
        ),
        rel=1e-3,
    )


def test_tissues_are_learned(bank, recipe):
    torch.manual_seed(0)
    model = AnatomyModel(UNet3D(width=4), recipe.objective)
    batch = batch_of(bank, recipe, range(4))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    values = []
    for step in range(30):
        optimizer.zero_grad()
        losses = model(batch, step)
        losses.total(recipe.objective).backward()
        optimizer.step()
        values.append(float(losses.segmentation.detach()))
    assert np.mean(values[-3:]) < 0.4 * values[0]


def test_a_run_resumes_bitwise_and_publishes_the_unet_alone(bank, recipe, tmp_path):
    store = tiny_store(tmp_path / "store", recipe)
    short = load_recipe("compact-anatomy", [*TINY, "run.steps=4"])
    settings = {"device": "cpu", "progress": False}
    assert pretrain(short, store, tmp_path / "whole", **settings) == 0
    pretrain(short, store, tmp_path / "parts", stop_after=2, **settings)
    assert pretrain(short, store, tmp_path / "parts", **settings) == 0
    folders = [publish(tmp_path / name, tmp_path / f"m-{name}") for name in ("whole", "parts")]
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert "segmentation" in json.loads(lines[0])
    one, other = ((folder / "model.safetensors") for folder in folders)
    first, second = load_file(one), load_file(other)
    assert set(first) == set(UNet3D(width=2).state_dict())
    assert all(torch.equal(first[name], second[name]) for name in first)
