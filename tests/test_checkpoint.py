"""Checkpoints come back exactly, survive kills and damage, and refuse another configuration."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.fit.training import checkpoint
from universal_model_hub.fit.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_latest,
    run_lock,
    save_checkpoint,
)

ROOT = Path(__file__).parent.parent
CONFIG = {"model": {"width": 4}, "seed": 0}


def state_of(value: float = 1.0) -> dict:
    return {
        "model": {"a.weight": torch.full((3, 2), value), "steps": torch.tensor(7)},
        "optimizer": {"state": {0: {"step": torch.tensor(2.0), "m": torch.ones(2)}, 1: {}}},
        "best": float("inf"),
        "betas": (0.9, 0.999),
        "names": ["x", None, True],
    }


def assert_same(one, two):
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    else:
        assert one == two


def test_a_state_comes_back_exactly(tmp_path):
    state = state_of()
    save_checkpoint(tmp_path, 12, state, CONFIG)
    step, loaded = load_latest(tmp_path, CONFIG)
    assert step == 12
    assert_same(loaded, state)


def test_an_optimizer_goes_on_from_a_checkpoint_bitwise(tmp_path):
    def network():
        torch.manual_seed(0)
        return torch.nn.Linear(5, 3)

    def steps(model, optimizer, first, last):
        for i in range(first, last):
            x = torch.randn(4, 5, generator=torch.Generator().manual_seed(i))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    whole = network()
    optimizer = torch.optim.AdamW(whole.parameters())
    steps(whole, optimizer, 0, 6)

    half = network()
    optimizer = torch.optim.AdamW(half.parameters())
    steps(half, optimizer, 0, 3)
    save_checkpoint(
        tmp_path, 3, {"model": half.state_dict(), "optimizer": optimizer.state_dict()}, CONFIG
    )
    _, state = load_latest(tmp_path, CONFIG)
    resumed = network()
    resumed.load_state_dict(state["model"])
    optimizer = torch.optim.AdamW(resumed.parameters())
    optimizer.load_state_dict(state["optimizer"])
    steps(resumed, optimizer, 3, 6)
    assert torch.equal(resumed.weight, whole.weight)


def test_no_checkpoint_yet_is_none(tmp_path):
    assert load_latest(tmp_path / "missing", CONFIG) is None


def test_what_cannot_be_stored_without_pickle_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"state\.rng"):
        save_checkpoint(tmp_path, 1, {"rng": object()}, CONFIG)
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "pickle", "delete"])
def test_t06_damage_goes_one_back_and_says_so(tmp_path, name, damage):
    save_checkpoint(tmp_path, 1, state_of(1.0), CONFIG)
    file = save_checkpoint(tmp_path, 2, state_of(2.0), CONFIG) / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-3])
    elif damage == "pickle":
        file.write_bytes(b"\x80\x04cos\nsystem\n.")
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(file.parent)
    with pytest.warns(UserWarning, match="one checkpoint back"):
        step, state = load_latest(tmp_path, CONFIG)
    assert step == 1
    assert state["model"]["a.weight"][0, 0] == 1.0


def test_t06_nothing_left_to_go_back_to(tmp_path):
    path = save_checkpoint(tmp_path, 1, state_of(), CONFIG)
    (path / "manifest.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match="back"),
        pytest.raises(CheckpointError, match="No checkpoint"),
    ):
        load_latest(tmp_path, CONFIG)


def test_t07_another_configuration_is_refused_with_the_differences(tmp_path):
    save_checkpoint(tmp_path, 1, state_of(), CONFIG)
    other = {"model": {"width": 8}, "seed": 0, "new": 1}
    with pytest.raises(CheckpointError, match=r"model\.width: 4 -> 8; new: None -> 1"):
        load_latest(tmp_path, other)
    step, _ = load_latest(tmp_path, other, override=True)
    assert step == 1


def test_t03_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state_of(), CONFIG)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match="free some disk"):
        save_checkpoint(tmp_path, 2, state_of(), CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_t15_old_checkpoints_go_only_after_the_new_one_is_verified(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state_of(), CONFIG, keep=2)

    def damaged(path):
        raise CheckpointError("damaged")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "verify_checkpoint", damaged)
        with pytest.raises(CheckpointError):
            save_checkpoint(tmp_path, 3, state_of(), CONFIG, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]
    save_checkpoint(tmp_path, 3, state_of(), CONFIG, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]


def test_t14_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        run_lock(tmp_path),
        pytest.raises(ConfigError, match="Another run"),
        run_lock(tmp_path),
    ):
        pass
    with run_lock(tmp_path):
        pass


WRITER = """
import sys, torch
from pathlib import Path
from universal_model_hub.fit.training.checkpoint import save_checkpoint
torch.set_num_threads(1)
print("ready", flush=True)
for step in range(1, 1000):
    state = {"a": torch.full((300_000,), float(step)), "step": step}
    save_checkpoint(Path(sys.argv[1]), step, state, {"seed": 0})
"""


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_t01_a_kill_at_any_moment_leaves_a_complete_checkpoint(tmp_path, seed):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    process.stdout.readline()
    while not list_checkpoints(tmp_path):
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0.0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    step, state = load_latest(tmp_path, {"seed": 0})
    assert state["step"] == step
    assert torch.equal(state["a"], torch.full((300_000,), float(step)))
    save_checkpoint(tmp_path, step + 1, state, {"seed": 0})
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_files_hold_no_pickle(tmp_path):
    path = save_checkpoint(tmp_path, 1, state_of(), CONFIG)
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "state.json",
        "tensors.safetensors",
    ]
    json.loads((path / "state.json").read_text())
