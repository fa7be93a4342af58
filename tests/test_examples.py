"""The three loops of examples/: each trains on scans on disk with other people's machinery."""

from pathlib import Path

import numpy as np
import pytest

from examples import plain_pytorch, with_lightning, with_monai
from universal_model_hub import Volume, load_segmenter, load_volume, predict, save_volume


def write_case(scan: Path, labels: Path | None, seed: int, bright: float = 1.0) -> None:
    """Write a small synthetic CT with a bright ball, and where the ball is."""
    rng = np.random.default_rng(seed)
    grid = np.indices((40, 36, 34)) - np.array([20, 18, 17]).reshape(3, 1, 1, 1)
    ball = np.square(grid).sum(axis=0) < 100
    array = -900 + 900 * bright * ball + rng.normal(0, 30, ball.shape)
    save_volume(Volume(array.astype(np.int16), np.eye(4)), scan)
    if labels is not None:
        save_volume(Volume(ball.astype(np.uint8), np.eye(4)), labels)


@pytest.mark.slow
def test_a_loop_of_ones_own_fine_tunes_and_predicts(tmp_path, monkeypatch):
    write_case(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", 0)
    monkeypatch.chdir(tmp_path)
    plain_pytorch.main([str(tmp_path / "scan.nii.gz"), str(tmp_path / "labels.nii.gz")])
    scan = load_volume(tmp_path / "scan.nii.gz")
    found = predict(load_segmenter(tmp_path / "my-segmenter"), scan)
    np.testing.assert_array_equal(found.array, load_volume(tmp_path / "predicted.nii.gz").array)
    truth = load_volume(tmp_path / "labels.nii.gz").array > 0
    assert 2 * (found.array[truth] == 1).sum() / (truth.sum() + (found.array == 1).sum()) > 0.5


@pytest.mark.slow
def test_lightning_trains_a_classifier(tmp_path):
    for name, bright in (("dark", 0.3), ("bright", 1.0)):
        (tmp_path / name).mkdir()
        for seed in range(2):
            write_case(tmp_path / name / f"{seed}.nii.gz", None, seed, bright)
    module = with_lightning.train(tmp_path, epochs=1)
    assert module.trainer.global_step == 2
    assert module.network.head.linear.out_features == 2
    assert "loss" in module.trainer.callback_metrics


@pytest.mark.slow
def test_monai_crops_scores_and_infers(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for seed in range(2):
        name = f"case{seed}.nii.gz"
        write_case(tmp_path / "images" / name, tmp_path / "labels" / name, seed)
    model, dice = with_monai.train(tmp_path / "images", tmp_path / "labels", epochs=20)
    assert dice > 0.5
    assert not model.training
