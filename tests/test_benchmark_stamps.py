"""Weights that are the same tensors under another commit's stamp."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from training.benchmark import stamps
from training.benchmark.pretraining import Pretraining, record_pretrainings
from training.benchmark.stamps import hashes_in, history, main, same_files, tensors_sha256
from training.config import load_recipe
from training.publish import recipe_sha256
from universal_model_hub import save_pretrained
from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.files import write_json
from universal_model_hub.networks.unet3d import UNet3D

OLD, NEW = "a" * 40, "b" * 40


def published(folder: Path, commit: str, *, seed: int = 0, **given) -> Path:
    torch.manual_seed(seed)
    provenance = {"commit": commit, "recipe": "x.toml", "hours": 1.0, "recipe_sha256": "0" * 64}
    return save_pretrained(UNet3D(width=2), folder, provenance=provenance, **given)


def file_sha256(model: Path) -> str:
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


def test_a_hash_under_another_commits_stamp_is_found_and_other_tensors_are_not(tmp_path) -> None:
    new, old = published(tmp_path / "new", NEW), published(tmp_path / "old", OLD)
    other = published(tmp_path / "other", OLD, seed=1)
    hashes = [file_sha256(model) for model in (new, old, other)]
    assert len(set(hashes)) == 3
    assert same_files(new, hashes, [OLD]) == {hashes[0]: NEW, hashes[1]: OLD}
    assert same_files(new, hashes, []) == {hashes[0]: NEW}
    assert tensors_sha256(new) == tensors_sha256(old) != tensors_sha256(other)


@pytest.mark.parametrize("dtype", ["float16", None])
def test_weights_without_a_commit_or_in_half_precision_are_refused(tmp_path, dtype) -> None:
    if dtype:
        model = published(tmp_path / "m", NEW, dtype=dtype)
    else:
        model = save_pretrained(UNet3D(width=2), tmp_path / "m")
    with pytest.raises(CheckpointError, match="as published" if dtype else "name their commit"):
        same_files(model, ["0" * 64], [OLD])


def test_the_command_names_the_commit_or_ends_with_1(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(stamps, "history", lambda: [OLD])
    new, old = published(tmp_path / "new", NEW), published(tmp_path / "old", OLD)
    assert main([str(new), file_sha256(old)]) == 0
    assert capsys.readouterr().out.strip().endswith(f"published from {OLD}")
    assert main([str(new), "0" * 64]) == 1
    assert "other tensors" in capsys.readouterr().out
    assert main([str(tmp_path / "none"), "0" * 64]) > 1
    assert "stamps: error:" in capsys.readouterr().err


def test_outside_a_checkout_there_is_no_history(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(stamps, "__file__", str(tmp_path / "stamps.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ConfigError, match="git checkout"):
        history()


def test_a_damaged_result_is_named(tmp_path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"x\.json"):
        hashes_in(tmp_path)


def test_a_training_done_again_lists_the_same_weights_of_earlier_results(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("training.benchmark.pretraining.history", lambda: [OLD])
    recipe = load_recipe("compact")
    model, old = published(tmp_path / "model", NEW), published(tmp_path / "old", OLD)
    for name, sha256 in {"runs/a": file_sha256(old), "earlier/b": "0" * 64}.items():
        start = {"recipe_sha256": recipe_sha256(recipe), "sha256": sha256}
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_json(tmp_path / f"{name}.json", {"pretraining": start})
    one = Pretraining(
        name="compact-0", recipe=recipe, corpora=(), store=tmp_path, run_folder=tmp_path,
        model=model, key="0", synthetic=True,
    )  # fmt: skip
    for _ in range(2):  # then once more, from the file
        record_pretrainings(tmp_path, {"compact": one})
        told = json.loads((tmp_path / "pretraining.json").read_text())["compact"]["result"]
        assert told["files_sha256"] == {file_sha256(old): OLD}
        assert told["tensors_sha256"] == tensors_sha256(old)
        monkeypatch.setattr("training.benchmark.pretraining.history", list)
