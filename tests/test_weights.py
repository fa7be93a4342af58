"""Released weights: made by one command that may be killed, stored in half, bundled and pinned."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from training.config import load_recipe
from training.corpora.packaged_table import ids, read_table
from training.prepare import store_settings
from training.release import siblings, weights
from training.release.weights import fetch_scans, main, work_folder
from universal_model_hub import catalog, load_encoder, load_unet
from universal_model_hub.catalog import WEIGHTS, Weights
from universal_model_hub.config import read_config
from universal_model_hub.errors import ConfigError, IntegrityError, WeightsError
from universal_model_hub.files import sha256_of
from universal_model_hub.fit.training.checkpoint import list_checkpoints
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.saving import save_pretrained
from universal_model_hub.tensors import inspect_tensors, read_metadata

ROOT = Path(__file__).parent.parent
BUNDLED_ROWS = [row for row in WEIGHTS.values() if row.source == "bundled"]


def compact(seed: int = 0) -> UNet3D:
    """Return a compact U-Net whose batch norm has seen something."""
    torch.manual_seed(seed)
    unet = UNet3D(width=8).train()
    with torch.no_grad():
        for _ in range(3):
            unet(torch.rand(2, 1, 16, 16, 16))
    return unet.eval()


# make weights


def start(work: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "training.release.weights", "--short", "--device", "cpu"]
    return subprocess.Popen(
        [*command, "--workers", "1", "--output", str(work / "out")],
        cwd=ROOT,
        env={**os.environ, "UMH_RUNS": str(work)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_weights_of_a_killed_and_restarted_command_are_bitwise_those_of_one_run(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    process = start(killed)
    checkpoints = killed / "weights" / "compact-short" / "run" / "checkpoints"
    while process.poll() is None and not list_checkpoints(checkpoints):
        time.sleep(0.05)
    time.sleep(random.SystemRandom().uniform(0, 4))  # any moment will do
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (killed / "out").exists()
    assert start(killed).wait() == 0
    hashes = [
        sha256_of(work / "out" / "unet3d-compact" / "model.safetensors") for work in (whole, killed)
    ]
    assert hashes[0] == hashes[1]
    kept = read_metadata(whole / "out" / "unet3d-compact" / "model.safetensors")["provenance"]
    assert not any(word in kept for word in ("hours", "hardware", 'date"'))


def test_the_short_form_does_not_write_into_the_package(capsys):
    with pytest.raises(SystemExit):
        main(["--short"])
    assert "--short needs --output" in capsys.readouterr().err


def test_short_and_whole_runs_do_not_share_checkpoints():
    assert work_folder("compact", short=True) != work_folder("compact", short=False)


@pytest.mark.parametrize("name", siblings.SIBLINGS)
def test_siblings_differ_from_the_compact_recipe_in_parts_and_length_alone(name):
    compact = load_recipe("compact")
    recipe = load_recipe("compact", siblings.overrides_of(name, 750))
    assert recipe.run.steps == 750
    assert recipe.schedule.warmup_steps == compact.schedule.warmup_steps // 10
    assert recipe.objective.reversal_ramp == compact.objective.reversal_ramp // 10
    weights_of_parts = (recipe.objective.modality_weight > 0, recipe.objective.scale_weight > 0)
    assert weights_of_parts == (
        name in ("full", "multi-mial"),
        name in ("full", "multi-sc"),
    )
    modalities = {"genesis": ("CT",), "ct": ("CT",), "mr": ("MR",)}
    assert recipe.modalities == modalities.get(name, ("CT", "MR"))
    same_cubes = store_settings(recipe) == store_settings(compact)
    assert same_cubes == (name not in siblings.OWN_CUBES)


def test_the_card_names_the_scans_of_a_recipe_s_modalities_alone():
    table = read_table()
    both = weights.data_text(table, load_recipe("compact"), 12)
    assert "9 real scans" in both
    assert both.endswith("heart, as CT and as MR.")
    ct = weights.data_text(table, load_recipe("compact", siblings.overrides_of("ct")), 12)
    assert "ct-chest-1" in ct
    assert "mr-" not in ct
    assert ct.endswith("heart, as CT.")


def test_every_pretraining_scan_may_be_trained_on():
    table = read_table()
    assert all(table.scans[scan_id].released for scan_id in ids("pretrain", table=table))


def test_a_pretraining_scan_that_is_not_for_release_is_refused(tmp_path):
    from dataclasses import replace

    table = read_table()
    first = table.scans[ids("pretrain", table=table)[0]]
    scans = {**table.scans, first.id: replace(first, released=False)}
    with pytest.raises(ConfigError, match=first.id):
        fetch_scans(replace(table, scans=scans), tmp_path)


# Half precision


def test_half_precision_halves_the_file_and_keeps_the_features(tmp_path):
    unet = compact()
    full = save_pretrained(unet, tmp_path / "full")
    half = save_pretrained(unet, tmp_path / "half", dtype="float16")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (full, half)]
    assert sizes[1] < 0.52 * sizes[0]
    cube = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        pairs = zip(load_encoder(full)(cube), load_encoder(half)(cube), strict=True)
        for exact, rounded in pairs:
            assert float((exact - rounded).abs().max() / exact.abs().max()) < 1e-3


def test_half_precision_is_only_in_the_file(tmp_path):
    folder = save_pretrained(compact(), tmp_path / "half", dtype="float16")
    infos = inspect_tensors(folder / "model.safetensors")
    assert {info.dtype for info in infos.values()} == {"F16", "F32", "I64"}
    assert all(len(info.shape) > 1 for info in infos.values() if info.dtype == "F16")
    dtypes = {value.dtype for value in load_unet(folder).state_dict().values()}
    assert dtypes == {torch.float32, torch.int64}


def test_saving_loaded_half_weights_again_keeps_what_is_said_of_them(tmp_path):
    claims = {"provenance": {"commit": "abc"}, "metrics": [{"task": "t", "value": 1.0}]}
    first = save_pretrained(compact(), tmp_path / "first", dtype="float16", **claims)
    again = read_config(save_pretrained(load_unet(first), tmp_path / "b") / "config.json")
    assert (again.name, again.provenance) == ("first", {"commit": "abc"})
    unet = load_unet(first)
    with torch.no_grad():
        unet.head.weight.mul_(1 + 1e-5)  # less than float16 tells apart
    changed = save_pretrained(unet, tmp_path / "c")
    assert read_config(changed / "config.json").provenance["base"]["name"] == "first"


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    unet = compact()
    with torch.no_grad():
        unet.head.weight.fill_(1e5)
    with pytest.raises(WeightsError, match="finite"):
        save_pretrained(unet, tmp_path / "a", dtype="float16")
    with pytest.raises(ConfigError, match="float32 or float16"):
        save_pretrained(unet, tmp_path / "a", dtype="int8")  # type: ignore[arg-type]


# Bundled


def test_a_bundled_model_loads_by_its_name_and_is_pinned(tmp_path, monkeypatch):
    folder = save_pretrained(compact(), tmp_path / "unet3d-compact", dtype="float16")
    file = folder / "model.safetensors"
    row = Weights(
        name="unet3d-compact",
        source="bundled",
        kind="unet",
        architecture="unet3d",
        arguments={"width": 8},
        summary="",
        sha256=sha256_of(file),
        size=file.stat().st_size,
    )
    monkeypatch.setattr(catalog, "BUNDLED", tmp_path)
    monkeypatch.setitem(WEIGHTS, row.name, row)
    assert load_encoder("unet3d-compact").load_report.verified == "pinned"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError):
        load_encoder("unet3d-compact")


@pytest.mark.parametrize("row", BUNDLED_ROWS, ids=lambda row: row.name)
def test_files_in_the_package_are_those_of_the_catalog(row):
    if not row.available:
        pytest.skip("not trained yet")
    file = row.folder / "model.safetensors"
    assert (sha256_of(file), file.stat().st_size) == (row.sha256, row.size)
    encoder = load_encoder(row.name)
    assert encoder.load_report.verified == "pinned"
    config = read_config(row.folder / "config.json")
    assert (config.name, config.kind) == (row.name, row.kind)
    assert dict(config.to_json()["arguments"]) == dict(row.arguments)


def test_the_bundled_models_leave_room_in_the_wheel():
    files = [path for path in catalog.BUNDLED.glob("*/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12 << 20  # the wheel stays under 16 MB
