"""The loop: it learns, resumes bitwise, survives kills, and is the same on two processes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from training.batches import split_cubes, training_stream
from training.config import (
    CubesConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Recipe,
    RunConfig,
    ScheduleConfig,
)
from training.cubes import FULL_SCALE, CubeStore
from training.pretrain import pretrain
from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.files import sha256_of, write_json
from universal_model_hub.fit.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_latest,
)

ROOT = Path(__file__).parent.parent
SIDE = 16

RECIPE = Recipe(
    name="test",
    corpora=("CT", "MR"),
    cubes=CubesConfig(size=(SIDE, SIDE, SIDE)),
    model=ModelConfig(width=2),
    objective=ObjectiveConfig(scale_hidden=16, discriminator_hidden=8),
    optimizer=OptimizerConfig(
        name="adamw", unet_learning_rate=1e-3, scale_learning_rate=1e-3
    ),
    schedule=ScheduleConfig(name="cosine", warmup_steps=2),
    run=RunConfig(
        steps=12, batch_size=4, save_every=4, validate_every=6, validation_cubes=8,
        validation_share=0.25, log_every=1, ema_decay=0.9, workers=0,
    ),
)  # fmt: skip


def write_store(folder: Path, subjects: int = 4, cubes: int = 6) -> CubeStore:
    """A synthetic store: noise cubes of two modalities and three scales."""
    folder.mkdir(parents=True, exist_ok=True)
    for modality in ("CT", "MR"):
        for subject in range(subjects):
            name = f"{modality}-{subject}"
            rng = np.random.default_rng([subject, len(modality), ord(modality[0])])
            array = (rng.random((cubes, SIDE, SIDE, SIDE)) * FULL_SCALE).astype(np.uint16)
            np.save(folder / f"{name}.npy", array)
            source = {"corpus": modality, "subject": name, "case": name, "modality": modality}
            places = [
                {"scale_id": i % 3, "start": [0, 0, 0], "side": [8, 8, 8], "row": i}
                for i in range(cubes)
            ]
            record = {
                "source": source,
                "sha256": sha256_of(folder / f"{name}.npy"),
                "left_out_as_air": 0,
                "cubes": places,
            }
            write_json(folder / f"{name}.json", record)
    return CubeStore(folder, verify=True)


@pytest.fixture
def store(tmp_path):
    torch.set_num_threads(1)
    return write_store(tmp_path / "store")


def with_run(recipe=RECIPE, **changes):
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, **changes))


def final_state(folder: Path, recipe=None):
    path = list_checkpoints(folder / "checkpoints")[-1]
    config = json.loads((path / "state.json").read_text())["config"]
    return load_latest(folder / "checkpoints", config)


def assert_same_tensors(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_a_run_ends_with_checkpoint_metrics_and_summary(store, tmp_path):
    assert pretrain(RECIPE, store, tmp_path / "run", progress=False) == 0
    step, state = final_state(tmp_path / "run")
    assert step == 12
    assert set(state) >= {"model", "optimizer", "scheduler", "ema", "seconds"}
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {"restoration", "modality", "scale", "modality_accuracy", "scale_accuracy"}
    assert [line["step"] for line in lines if line["part"] == "train"] == list(range(1, 13))
    assert all(names <= line.keys() for line in lines)
    assert [line["step"] for line in lines if line["part"] == "validation"] == [6, 12]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["step"] == summary["steps"] == 12
    assert summary["hours"] >= 0


@pytest.mark.parametrize("task", ["restoration", "rotation", "jigsaw"])
def test_t04_a_resumed_run_is_bitwise_the_uninterrupted_one(store, tmp_path, task):
    objective = dataclasses.replace(RECIPE.objective, task=task, permutations=5)
    recipe = dataclasses.replace(RECIPE, objective=objective)
    pretrain(recipe, store, tmp_path / "whole", progress=False)
    half = tmp_path / "half"
    assert pretrain(recipe, store, half, progress=False, stop_after=5) == 128 + signal.SIGTERM
    assert load_latest(half / "checkpoints", {}, override=True)[0] == 5
    assert pretrain(recipe, store, half, progress=False) == 0
    whole_state, half_state = final_state(tmp_path / "whole")[1], final_state(half)[1]
    assert_same_tensors(whole_state["model"], half_state["model"])
    assert_same_tensors(whole_state["ema"]["values"], half_state["ema"]["values"])
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "half")]
    assert texts[0] == texts[1]


def test_the_number_of_loader_processes_changes_nothing(store, tmp_path):
    for workers in (0, 2):
        pretrain(with_run(steps=4, workers=workers), store, tmp_path / str(workers), progress=False)
    states = [final_state(tmp_path / str(workers))[1]["model"] for workers in (0, 2)]
    assert_same_tensors(*states)


def test_t07_another_recipe_does_not_resume(store, tmp_path):
    pretrain(with_run(steps=2), store, tmp_path / "run", progress=False)
    other = dataclasses.replace(with_run(steps=2), model=ModelConfig(width=4))
    with pytest.raises(CheckpointError, match=r"recipe\.model\.width: 2 -> 4"):
        pretrain(other, store, tmp_path / "run", progress=False)


def test_t11_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(store, tmp_path):
    pretrain(with_run(steps=4), store, tmp_path / "run", progress=False)
    wild = dataclasses.replace(
        with_run(steps=20, save_every=100),
        objective=dataclasses.replace(RECIPE.objective, restoration_weight=1e39),
    )
    with pytest.raises(CheckpointError, match="not finite at step 5"):
        pretrain(wild, store, tmp_path / "run", override=True, progress=False)
    step, state = final_state(tmp_path / "run")
    assert step == 4
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_every_cube_comes_once_an_epoch_and_groups_take_turns(store):
    numbers, _ = split_cubes(store, RECIPE)
    stream = training_stream(store, numbers, RECIPE)
    drawn = [stream.key(position)[1] for position in range(2 * len(numbers))]
    assert sorted(drawn[: len(numbers)]) == sorted(drawn[len(numbers) :]) == numbers
    assert drawn[: len(numbers)] != drawn[len(numbers) :]
    balanced = training_stream(store, numbers, with_run(balance=("modality", "scale")))
    kinds = [
        (store.records[n].modality, store.records[n].scale_id)
        for n in (balanced.key(position)[1] for position in range(12))
    ]
    assert len(set(kinds[:6])) == 6
    assert kinds[:6] == kinds[6:]


def test_only_corpora_of_the_recipe_are_trained_on(store):
    only = dataclasses.replace(RECIPE, corpora=("CT",))
    numbers, validation = split_cubes(store, only)
    assert {store.records[n].corpus for n in numbers + validation} == {"CT"}
    with pytest.raises(ConfigError, match="from luna16"):
        training_stream(store, [], dataclasses.replace(RECIPE, corpora=("luna16",)))


def test_cubes_of_other_settings_are_refused(store, tmp_path):
    settings = RECIPE.to_json() | {"seed": 3}
    write_json(store.folder / "store.json", {"recipe": settings})
    pretrain(with_run(steps=1), CubeStore(store.folder), tmp_path / "same", progress=False)
    settings["cubes"] = settings["cubes"] | {"air_share": 0.5}
    write_json(store.folder / "store.json", {"recipe": settings})
    with pytest.raises(ConfigError, match=r"cubes\.air_share: 0\.5 -> 0\.98"):
        pretrain(with_run(steps=1), CubeStore(store.folder), tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


def test_no_subject_is_on_both_sides_of_the_split(store):
    numbers, validation = split_cubes(store, RECIPE)
    sides = [{store.records[n].subject for n in part} for part in (numbers, validation)]
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[1]) == 2  # one of four of each modality


def test_t10_a_batch_that_cannot_be_shared_is_refused(store):
    from training.batches import TaskCubes, training_batches

    numbers, _ = split_cubes(store, RECIPE)
    stream = training_stream(store, numbers, RECIPE)
    with pytest.raises(ConfigError, match="batch_size 4 cannot be shared by 3"):
        next(training_batches(TaskCubes(store, RECIPE), stream, 0, rank=0, world_size=3))


def test_accumulated_batches_give_the_gradient_of_the_whole(store, tmp_path):
    frozen = with_run(steps=3, freeze_normalization=1.0)
    halves = dataclasses.replace(
        with_run(frozen, batch_size=2),
        optimizer=dataclasses.replace(RECIPE.optimizer, accumulate=2),
    )
    pretrain(frozen, store, tmp_path / "whole", progress=False)
    pretrain(halves, store, tmp_path / "halves", progress=False)
    one, two = (final_state(tmp_path / name)[1]["model"] for name in ("whole", "halves"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-5)


def command(tmp_path, run, recipe_text, processes):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text)
    script = ["-m", "training.pretrain", "--recipe", str(recipe), "--quiet"]
    script += ["--cubes", str(tmp_path / "store"), "--run-folder", str(tmp_path / run)]
    if processes == 1:
        return [sys.executable, *script]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*start, f"--nproc-per-node={processes}", *script]


TOML = """
corpora = ["CT", "MR"]
[cubes]
size = [16, 16, 16]
[model]
width = 2
[objective]
scale_hidden = 16
adversarial = "{adversarial}"
[optimizer]
name = "sgd"
unet_learning_rate = 0.01
scale_learning_rate = 0.01
momentum = 0.0
[schedule]
name = "constant"
[run]
steps = {steps}
batch_size = 4
freeze_normalization = 1.0
workers = 0
save_every = 5
validate_every = 100000
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", ["reversal", "alternating"])
def test_two_processes_give_the_weights_of_one(store, tmp_path, adversarial):
    text = TOML.format(adversarial=adversarial, steps=3)
    for processes in (1, 2):
        done = subprocess.run(
            command(tmp_path, str(processes), text, processes),
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (final_state(tmp_path / str(n))[1]["model"] for n in (1, 2))
    moved = False
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-5)
        moved |= one[name].is_floating_point() and bool(one[name].abs().sum() > 0)
    assert moved


@pytest.mark.slow
@pytest.mark.parametrize(("number", "processes"), [("SIGTERM", 1), ("SIGKILL", 1), ("SIGTERM", 2)])
def test_t02_a_stopped_run_goes_on_bitwise(store, tmp_path, number, processes):
    text = TOML.format(adversarial="reversal", steps=60)
    text = text.replace("validate_every = 100000", "validate_every = 100000\nlog_every = 1")
    whole = subprocess.run(command(tmp_path, "whole", text, processes), env=ENVIRONMENT)
    assert whole.returncode == 0
    process = subprocess.Popen(command(tmp_path, "cut", text, processes), env=ENVIRONMENT)
    log = tmp_path / "cut" / "metrics.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 8):
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    code = process.wait(timeout=60)
    if processes == 1:
        assert code == (143 if number == "SIGTERM" else -signal.SIGKILL)
    assert code != 0
    again = subprocess.run(command(tmp_path, "cut", text, processes), env=ENVIRONMENT)
    assert again.returncode == 0
    one, two = (final_state(tmp_path / name)[1] for name in ("whole", "cut"))
    assert_same_tensors(one["model"], two["model"])


def test_a_signal_to_the_whole_group_of_processes_is_left_to_the_loop(store, tmp_path):
    text = TOML.format(adversarial="reversal", steps=100000)
    process = subprocess.Popen(
        [*command(tmp_path, "run", text, 1), "--workers", "2"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and (not log.exists() or not log.read_text()):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    problems = process.communicate(timeout=60)[1]
    assert process.returncode == 143, problems
    step = load_latest(tmp_path / "run" / "checkpoints", {}, override=True)[0]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == step


@pytest.mark.slow
def test_t08_a_dead_rank_ends_the_job_and_the_checkpoint_stays_whole(store, tmp_path):
    text = TOML.format(adversarial="reversal", steps=100000)
    process = subprocess.Popen(
        command(tmp_path, "run", text, 2), env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "run" / "checkpoints"
    while process.poll() is None and not list_checkpoints(checkpoints):
        time.sleep(0.05)
    os.kill(int((tmp_path / "run" / "lock").read_text()), signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    assert load_latest(checkpoints, {}, override=True)[0] >= 5


def test_batch_norm_keeps_its_running_values_in_the_frozen_end_of_a_run(store, tmp_path):
    recipe = with_run(steps=4, freeze_normalization=0.5, save_every=1, keep_checkpoints=9)
    pretrain(recipe, store, tmp_path / "run", progress=False)
    steps = list_checkpoints(tmp_path / "run" / "checkpoints")
    means = [
        load_checkpoint(path)[1]["model"]["unet.encoder.levels.0.units.0.norm.running_mean"]
        for path in steps[-4:]
    ]
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[2])
    assert torch.equal(means[2], means[3])
