"""The ready segmenter: slabs kept back, classes chosen by them, a folder that says what it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.release import segmenter
from training.release.scans import NOT_ANNOTATED, GridCase
from training.release.segmenter import (
    CLASSES,
    EVERY,
    chest_task,
    make_segmenter,
    only_classes,
    split_slabs,
)
from universal_model_hub import load_segmenter
from universal_model_hub.config import read_config
from universal_model_hub.errors import CheckpointError
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.saving import save_pretrained

SETTINGS = FinetuneSettings(
    cube=(16, 16, 16), steps=60, head_steps=5, learning_rate=1e-2, foreground_share=0.7
)


def case() -> GridCase:
    """Return a bright tube (lungs, 1) in the dark; nothing else is there."""
    image = np.full((24, 24, 48), 0.1, np.float32)
    labels = np.zeros(image.shape, np.int16)
    image[8:16, 8:16], labels[8:16, 8:16] = 0.9, 1
    return GridCase("tube", "tube", image, labels)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    return save_pretrained(UNet3D(width=4), tmp_path / "base")


def test_a_voxel_is_trained_on_or_kept_back_never_both():
    one, two = split_slabs(case())
    first, second = one.labels != NOT_ANNOTATED, two.labels != NOT_ANNOTATED
    assert not (first & second).any()
    assert (first | second).all()
    assert second.mean() == pytest.approx(1 / EVERY, abs=0.1)


def test_chosen_classes_are_renumbered_and_others_become_background():
    labels = np.array([[[-1, 0, 1, 2, 3]]], np.int16)
    given = replace(case(), labels=labels)
    assert only_classes(given, [1, 3]).labels.tolist() == [[[-1, 0, 1, 0, 2]]]


def test_the_task_reads_the_annotated_scan_and_no_test_scan():
    task = chest_task(CLASSES)
    assert (task.train.scan, task.purpose) == ("ct-chest-1", "develop")


def test_the_folder_holds_what_was_learnt_and_says_what_it_is_worth(tmp_path, weights):
    folder = make_segmenter(weights, case(), SETTINGS, tmp_path / "chest", device="cpu")
    config = read_config(folder / "config.json")
    assert config.kind == "segmenter"
    assert config.labels == {0: "background", 1: "lungs"}
    assert config.preprocessing.spacing == (3.0, 3.0, 3.0)
    assert config.provenance["base"]["name"] == "base"
    assert config.metrics[0]["value"] >= segmenter.LEARNT_DICE
    assert "pseudo-labels of one scan" in config.metrics[0]["task"]
    model = load_segmenter(folder)
    assert model.head_trained
    x = torch.from_numpy(case().image)[None, None]
    assert model(x).shape == (1, 2, 24, 24, 48)


def test_a_segmenter_that_learnt_nothing_is_not_written(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(segmenter, "LEARNT_DICE", 1.01)
    few = replace(SETTINGS, steps=1, head_steps=0)
    with pytest.raises(CheckpointError, match="Train longer"):
        make_segmenter(weights, case(), few, tmp_path / "chest", device="cpu")
    assert not (tmp_path / "chest").exists()
