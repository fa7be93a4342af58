"""The fine-tuning loop: resume, averages, early stop, several processes."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.fit.data.cases import LoadedCase, LoadedScan
from universal_model_hub.fit.training.engine import (
    Process,
    StopRequest,
    check_bfloat16,
)
from universal_model_hub.fit.training.loop import Batches, fit
from universal_model_hub.fit.training.losses import batch_loss, dice_loss
from universal_model_hub.fit.training.sampling import CubeSampler, ScanSampler
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.fit.training.transfer import build_classifier, build_model

ROOT = Path(__file__).parent.parent
SETTINGS = FinetuneSettings(
    cube=(8, 8, 8), steps=8, head_steps=2, ema_decay=0.9, validate_every=2, learning_rate=1e-2
)


def ball_case(channels: int = 1, seed: int = 0) -> LoadedCase:
    """A bright ball in a dark, noisy cube of 16 voxels a side."""
    grid = np.indices((16, 16, 16)) - 7.5
    labels = (np.square(grid).sum(axis=0) < 16).astype(np.int16)
    noise = np.random.default_rng(seed).normal(0, 0.05, (channels, 16, 16, 16))
    return LoadedCase("ball", (0.2 + 0.6 * labels + noise).clip(0, 1).astype(np.float32), labels)


def new_model(channels: int = 1):
    return build_model(None, num_classes=2, arguments={"width": 2}, in_channels=channels)


def loss_score(model) -> float:
    """Minus the loss on one fixed batch: higher is better."""
    images, labels = CubeSampler([ball_case()], replace(SETTINGS, seed=9), 2).batch(0)
    with torch.inference_mode():
        return -float(batch_loss(model(images), labels, SETTINGS))


def same(first, second) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_a_run_that_was_stopped_goes_on_to_bitwise_the_same_end(tmp_path, stop_after):
    sampler = CubeSampler([ball_case()], SETTINGS, 2)
    whole, parts = new_model(), new_model()
    expected = fit(whole, sampler, SETTINGS, validate=loss_score)
    stop = StopRequest()
    stop.after = stop_after
    first = fit(parts, sampler, SETTINGS, validate=loss_score, run_folder=tmp_path, stop=stop)
    assert not first.finished
    assert len(first.losses) == stop_after
    again = new_model()
    torch.manual_seed(12345)  # must not matter
    second = fit(again, sampler, SETTINGS, validate=loss_score, run_folder=tmp_path)
    assert second.finished
    assert second.losses == expected.losses
    assert second.scores == expected.scores
    assert same(again, whole)


def test_a_finished_run_is_not_run_again(tmp_path):
    sampler = CubeSampler([ball_case()], SETTINGS, 2)
    model = new_model()
    fit(model, sampler, SETTINGS, validate=loss_score, run_folder=tmp_path)
    steps = []
    again = new_model()
    result = fit(
        again,
        sampler,
        SETTINGS,
        validate=loss_score,
        run_folder=tmp_path,
        after_step=lambda step, _: steps.append(step),
    )
    assert not steps
    assert result.finished
    assert same(again, model)


def test_a_checkpoint_of_other_settings_is_refused_with_the_difference(tmp_path):
    sampler = CubeSampler([ball_case()], SETTINGS, 2)
    fit(new_model(), sampler, SETTINGS, run_folder=tmp_path, config={"rate": 1})
    with pytest.raises(CheckpointError, match="rate: 1 -> 2"):
        fit(new_model(), sampler, SETTINGS, run_folder=tmp_path, config={"rate": 2})


def test_the_weights_of_the_best_validation_are_kept():
    scores = iter([0.1, 0.9, 0.3, 0.2])
    kept = {}

    def validate(model):
        score = next(scores)
        kept[score] = [p.detach().clone() for p in model.parameters()]
        return score

    model = new_model()
    result = fit(model, CubeSampler([ball_case()], SETTINGS, 2), SETTINGS, validate=validate)
    assert result.best_step == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept[0.9], strict=True))


def test_training_stops_early_when_validation_gets_no_better():
    settings = replace(SETTINGS, steps=40, patience=2)
    scores = iter([0.5, 0.6, 0.4, 0.3])
    sampler = CubeSampler([ball_case()], settings, 2)
    result = fit(new_model(), sampler, settings, validate=lambda _: next(scores))
    assert result.finished
    assert len(result.losses) == 8
    assert result.best_step == 4


def test_an_average_of_the_weights_is_what_is_judged_and_kept():
    settings = replace(SETTINGS, validate_every=0)
    judged = []

    def validate(model):
        judged.append([p.detach().clone() for p in model.parameters()])
        return 0.0

    last = {}
    model = new_model()
    fit(
        model,
        CubeSampler([ball_case()], settings, 2),
        settings,
        validate=validate,
        after_step=lambda _, m: last.update(p=[p.detach().clone() for p in m.parameters()]),
    )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), judged[0], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), last["p"], strict=True))


def test_several_channels_are_trained_on():
    sampler = CubeSampler([ball_case(channels=2)], SETTINGS, 2)
    result = fit(new_model(channels=2), sampler, SETTINGS)
    assert len(result.losses) == SETTINGS.steps


def test_scans_are_classified_without_padding():
    rng = np.random.default_rng(0)
    scans = [
        LoadedScan(str(i), (0.2 + 0.5 * (i % 2) + rng.normal(0, 0.02, (1, 12, 10 + i, 9))), i % 2)
        for i in range(4)
    ]
    settings = replace(SETTINGS, task="classification", cube=(16, 16, 16), batch_size=4, steps=40)
    sampler = ScanSampler(scans, settings, 2)
    images, targets = sampler.batch(0)
    assert images.shape[2] == 12
    assert images.shape[4] == 9
    assert images.shape[3] <= 13
    assert targets.shape == (4,)
    model = build_classifier(None, num_classes=2, arguments={"width": 2})
    result = fit(model, sampler, replace(settings, augment=False))
    assert np.mean(result.losses[-10:]) < 0.5 * np.mean(result.losses[:5])


def test_a_class_without_training_scans_is_refused():
    scan = LoadedScan("one", np.zeros((1, 8, 8, 8), np.float32), 0)
    with pytest.raises(ConfigError, match=r"none of \[1\]"):
        ScanSampler([scan], SETTINGS, 2)
    with pytest.raises(ConfigError, match="target of 0 to 0 for one"):
        ScanSampler([replace(scan, target=1)], SETTINGS, 1)


def test_a_batch_is_the_same_however_many_processes_share_it():
    sampler = CubeSampler([ball_case()], replace(SETTINGS, batch_size=4), 2)
    whole = sampler.batch(3)[0]
    shares = [sampler.batch(3, rank, 2)[0] for rank in range(2)]
    assert torch.equal(whole[0::2], shares[0])
    assert torch.equal(whole[1::2], shares[1])
    with pytest.raises(ConfigError, match="3 processes"):
        sampler.batch(3, 0, 3)


def test_batches_drawn_ahead_are_the_same():
    sampler, alone = CubeSampler([ball_case()], SETTINGS, 2), Process(0, 1, torch.device("cpu"))
    with Batches(sampler, 6, alone, ahead=3) as batches:
        for step in range(2, 6):
            assert torch.equal(batches(step)[0], sampler.batch(step)[0])
        assert not batches.drawn


def test_a_batch_without_annotation_gives_no_gradient_and_no_nan():
    logits = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    labels = torch.full((1, 4, 4, 4), -1)
    for loss in ("dice_ce", "dice", "cross_entropy"):
        value = batch_loss(logits, labels, replace(SETTINGS, loss=loss))
        assert value.item() == 0
    background = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    assert dice_loss(logits, background).item() == 0


def test_class_weights_count_in_the_cross_entropy():
    logits = torch.zeros(1, 2, 2, 2, 2)
    logits[:, 0] = 2.0
    labels = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    labels[..., 0] = 1
    even = batch_loss(logits, labels, replace(SETTINGS, loss="cross_entropy"))
    rare = replace(SETTINGS, loss="cross_entropy", class_weights=(0.5, 1.5))
    assert float(batch_loss(logits, labels, rare)) > float(even)


TWO_PROCESSES = """
    import sys, torch
    from dataclasses import replace
    sys.path.insert(0, "tests")
    from test_fit_loop import SETTINGS, ball_case, new_model
    from universal_model_hub.fit.training.engine import process_group
    from universal_model_hub.fit.training.loop import fit
    from universal_model_hub.fit.training.sampling import CubeSampler

    settings = replace(SETTINGS, batch_size=4, steps=4)
    with process_group("cpu") as process:
        model = new_model()
        result = fit(model, CubeSampler([ball_case()], settings, 2), settings, process=process,
                     validate=lambda _: float(process.rank))
        sums = torch.stack([p.detach().double().sum() for p in model.parameters()])
        others = [torch.empty_like(sums) for _ in range(2)]
        torch.distributed.all_gather(others, sums)
        assert torch.equal(others[0], others[1]), "processes disagree"
        assert all(score == 0 for _, score in result.scores), "the first process judges"
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_bfloat16_is_refused_on_a_cpu_where_maps_would_be_too_small():
    settings = replace(SETTINGS, cube=(32, 32, 16), precision="bfloat16")
    model = new_model()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ConfigError, match=r"at least 24 voxels.*\[32, 32, 16\].*float32"):
        fit(model, CubeSampler([ball_case()], settings, 2), settings)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    check_bfloat16(torch.device("cpu"), "bfloat16", (24, 24, 24))
    check_bfloat16(torch.device("cpu"), "float32", (8, 8, 8))
    check_bfloat16(torch.device("cuda"), "bfloat16", (8, 8, 8))
