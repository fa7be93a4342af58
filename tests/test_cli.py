"""The commands of ``umh``: results on stdout or in files, one line for an error, exit codes."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from local_hub import LocalHub
from universal_model_hub import __version__, catalog, list_models
from universal_model_hub.cli import list as list_command
from universal_model_hub.cli import messages
from universal_model_hub.cli.main import main
from universal_model_hub.config import read_config
from universal_model_hub.files import sha256_of
from universal_model_hub.loading import load_encoder, load_segmenter, save_pretrained
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.predict import embed, predict
from universal_model_hub.preprocess import preprocess
from universal_model_hub.volume import Volume, load_volume, save_volume


def umh(*arguments: object) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the error: the only line on stderr, with nothing on stdout."""
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("umh: error: ")
    return line


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of model folders of random weights: a segmenter, and one that is untrained."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    segmenter = UNet3D(out_channels=3, width=2, activation=None).eval()
    for name, trained in (("tiny", True), ("untrained", False)):
        labels = {0: "background", 1: "liver", 2: "lung"}
        save_pretrained(
            segmenter, folder / name, name=name, labels=labels, head_trained=trained,
            provenance={"recipe": "none", "seed": 0}, license="apache-2.0",
        )  # fmt: skip
    save_pretrained(UNet3D(width=2).eval(), folder / "unet", name="unet")
    return folder


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CT scan, LPS, anisotropic."""
    voxels = np.random.default_rng(0).integers(-1000, 400, (13, 12, 7)).astype(np.int16)
    path = tmp_path_factory.mktemp("scans") / "scan.nii.gz"
    affine = np.array([[-1.0, 0, 0, 9], [0, -1.5, 0, 4], [0, 0, 2.5, -7], [0, 0, 0, 1]])
    save_volume(Volume(voxels, affine), path)
    return path


@pytest.fixture
def hub(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch):
    """A local Hub with one model, and none of this machine's tokens and caches."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "default"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    files = {path.name: path.read_bytes() for path in (models / "tiny").iterdir()}
    with LocalHub(tmp_path / "hub") as server:
        server.add_repo("org/tiny", files)
        yield server


# list, info


def test_version_is_the_packages(capsys):
    assert umh("--version") == 0
    assert capsys.readouterr().out == f"umh {__version__}\n"


def test_list_shows_the_default_model_first(capsys):
    assert umh("list") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == list_models()


def test_list_json_is_the_catalog(capsys):
    assert umh("list", "*compact*", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list_models("*compact*")
    row = catalog.WEIGHTS["unet3d-compact"]
    assert rows[0]["arguments"] == row.arguments
    assert rows[0]["available"] == row.available


def test_list_of_nothing_is_empty(capsys):
    assert umh("list", "nothing*", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_info_json_is_config_json(models, capsys):
    assert umh("info", models / "tiny", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((models / "tiny" / "config.json").read_text())
    assert shown["labels"]["1"] == "liver"


def test_info_shows_file_provenance_and_how_far_it_is_verified(models, capsys):
    assert umh("info", f"local-dir:{models / 'tiny'}") == 0
    shown = capsys.readouterr().out
    assert sha256_of(models / "tiny" / "model.safetensors") in shown
    assert "verified: local" in shown
    assert "recipe: none" in shown


def test_info_shows_every_metric_of_a_task(capsys):
    config = read_config(catalog.BUNDLED / "unet3d-compact" / "config.json")
    assert umh("info", "unet3d-compact") == 0
    lines = capsys.readouterr().out.partition("\nMetrics:\n")[2].splitlines()
    tasks = {metric["task"] for metric in config.metrics}
    assert len(lines) == len(config.metrics) + len(tasks)
    row = config.metrics[-1]
    assert lines[-1].startswith(
        f"    {row['metric']}: {row['value']} +- {row['std']} (n {row['n']}"
    )


@pytest.mark.parametrize("name", catalog.WEIGHTS)
def test_info_of_a_catalog_row_says_whether_there_are_weights(name, capsys):
    row = catalog.WEIGHTS[name]
    if row.available and row.source == "hub":
        pytest.skip("would ask the Hub")
    assert umh("info", name) == 0
    assert ("not trained or not published yet" in capsys.readouterr().out) == (not row.available)


# verify, download


def test_verify_finds_a_flipped_bit(models, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (models / "tiny").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert umh("verify", folder, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["sha256"] == sha256_of(folder / "model.safetensors")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert umh("verify", folder) == 4
    assert "hash to" in error_line(capsys)


def test_verify_says_when_nothing_states_the_hash(models, tmp_path, capsys):
    config = json.loads((models / "tiny" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sha256": None}))
    weights = (models / "tiny" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert umh("verify", tmp_path) == 0
    assert capsys.readouterr().out.startswith("unknown")


def test_a_model_is_downloaded_into_a_folder_and_verified(hub, tmp_path, capsys):
    command = ["download", "hf-hub:org/tiny", "--endpoint", hub.url, "--cache-dir", tmp_path / "c"]
    out = tmp_path / "model"
    assert umh(*command, "-o", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert {path.name for path in out.iterdir()} >= {"model.safetensors", "config.json"}
    assert umh("verify", out) == 0
    capsys.readouterr()
    assert umh(*command, "-o", out) == 2
    assert "--force" in error_line(capsys)
    assert umh(*command, "-o", out, "--force", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["verified"], record["repo_id"]) == ("hub", "org/tiny")


def test_a_downloaded_model_verifies_offline_until_a_bit_flips(hub, tmp_path, capsys):
    cache = ["--cache-dir", tmp_path / "c"]
    assert umh("download", "hf-hub:org/tiny", "--endpoint", hub.url, *cache) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert umh("verify", "hf-hub:org/tiny", *cache) == 0
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").resolve().write_bytes(weights)
    capsys.readouterr()
    assert umh("verify", "hf-hub:org/tiny", *cache) == 4
    error_line(capsys)


def test_a_corrupting_server_is_an_integrity_error(hub, tmp_path, capsys):
    hub.add_fault("corrupt", path="*.safetensors")
    command = ["download", "hf-hub:org/tiny", "--endpoint", hub.url, "--cache-dir", tmp_path / "c"]
    assert umh(*command, "-o", tmp_path / "model") == 4
    assert "hash to" in error_line(capsys)
    assert not (tmp_path / "model").exists()


def test_c06_without_a_network_the_line_says_what_to_download(hub, tmp_path, scan, capsys):
    arguments = ["--offline", "--cache-dir", tmp_path / "c"]
    output = tmp_path / "o.npz"
    assert umh("embed", scan, "-o", output, "--model", "hf-hub:org/tiny", *arguments) == 3
    assert "umh download" in error_line(capsys)
    assert not output.exists()


# embed, segment, preprocess


def test_an_embedding_is_that_of_the_package(models, scan, tmp_path, capsys):
    output = tmp_path / "scan.npz"
    arguments = ["-o", output, "--model", models / "unet", "--modality", "CT"]
    assert umh("embed", scan, *arguments, "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {
        "input": str(scan), "output": str(output), "status": "done", "features": 32,
    }  # fmt: skip
    stored = np.load(output, allow_pickle=False)
    assert set(stored) == {"embedding", "model", "sha256", "spacing"}
    volume = load_volume(scan)
    expected = embed(load_encoder(models / "unet"), volume, modality="CT")
    assert stored["embedding"].dtype == np.float32
    np.testing.assert_allclose(stored["embedding"], expected, atol=1e-6)
    assert str(stored["model"]) == "unet"
    assert str(stored["sha256"]) == sha256_of(models / "unet" / "model.safetensors")
    assert stored["spacing"].tolist() == [1.0, 1.5, 2.5]
    first = output.read_bytes()
    assert umh("embed", scan, *arguments, "--force") == 0
    assert output.read_bytes() == first


def test_labels_are_those_of_the_package(models, scan, tmp_path, capsys):
    output = tmp_path / "labels.nii.gz"
    arguments = ["-o", output, "--model", models / "tiny", "--modality", "CT"]
    assert umh("segment", scan, *arguments, "--json") == 0
    labels = load_volume(output)
    model = load_segmenter(models / "tiny")
    expected = predict(model, load_volume(scan), modality="CT")
    assert np.array_equal(labels.array, expected.array)
    assert np.array_equal(labels.affine, load_volume(scan).affine)
    table = json.loads(capsys.readouterr().out)["labels"]
    for label, row in table.items():
        assert row["voxels"] == int((labels.array == int(label)).sum())
        assert row["ml"] == pytest.approx(row["voxels"] * 1.0 * 1.5 * 2.5 / 1000)
        assert row["name"] == {"1": "liver", "2": "lung"}[label]


def test_a_preprocessed_scan_is_what_the_model_sees(models, scan, tmp_path, capsys):
    output = tmp_path / "cube.nii"
    arguments = ["-o", output, "--model", models / "tiny", "--modality", "CT", "--json"]
    assert umh("preprocess", scan, *arguments) == 0
    cube, _ = preprocess(load_volume(scan), load_segmenter(models / "tiny"), "CT")
    written = load_volume(output)
    assert np.array_equal(written.array, cube[0, 0].numpy())
    assert written.orientation == "RAS"
    assert written.spacing == pytest.approx((1, 1, 1), abs=0.1)
    record = json.loads(capsys.readouterr().out)
    assert record["shape"] == [13, 18, 18]
    assert record["modality"] == "CT"


def test_preprocess_needs_no_weights(scan, tmp_path):
    for name in list_models():
        assert umh("preprocess", scan, "-o", tmp_path / f"{name}.nii", "--model", name) == 0


def test_an_untrained_head_is_refused(models, scan, tmp_path, capsys):
    output = tmp_path / "labels.nii"
    assert umh("segment", scan, "-o", output, "--model", models / "untrained") == 2
    assert "untrained" in error_line(capsys)
    assert not output.exists()


def test_weights_that_are_not_there_yet_are_named_plainly(scan, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(catalog, "BUNDLED", tmp_path)
    for name in ("unet3d-compact", "unet3d"):
        assert umh("embed", scan, "-o", tmp_path / "o.npz", "--model", name) == 2
        assert "yet" in error_line(capsys)


# Errors.


@pytest.mark.parametrize("command", ["info", "verify", "download"])
def test_c05_an_unknown_model_lists_the_near_names(command, capsys):
    assert umh(command, "unet3d-compct") == 2
    assert "unet3d-compact" in error_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["segmnt"],
        ["segment"],
        ["embed", "a.nii"],
        ["embed", "a.nii", "-o", "b.npz", "--modality", "PET"],
        ["embed", "a.nii", "-o", "b.npz", "--precision", "int8"],
        ["list", "--unknown"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, capsys):
    assert umh(*arguments) == 2
    assert "--help" in error_line(capsys)


@pytest.mark.parametrize("command", ["embed", "segment", "preprocess"])
def test_c01_c02_c03_are_found_before_the_model_is(command, scan, tmp_path, capsys):
    suffix = ".npz" if command == "embed" else ".nii"
    there = tmp_path / f"there{suffix}"
    there.write_bytes(b"precious")
    model = ["--model", "no-such-model"]
    assert umh(command, tmp_path / "no.nii", "-o", tmp_path / f"o{suffix}", *model) == 2
    assert "no.nii does not exist" in error_line(capsys)
    assert umh(command, scan, "-o", there, *model) == 2
    assert "exists" in error_line(capsys)
    assert umh(command, scan, "-o", tmp_path / "no" / f"o{suffix}", *model) == 2
    assert "does not exist" in error_line(capsys)
    assert there.read_bytes() == b"precious"


def test_i01_a_truncated_scan_is_an_error_and_leaves_nothing(models, scan, tmp_path, capsys):
    whole = gzip.decompress(scan.read_bytes())
    (tmp_path / "cut.nii").write_bytes(whole[:-100])
    output = tmp_path / "o.nii"
    assert umh("segment", tmp_path / "cut.nii", "-o", output, "--model", models / "tiny") == 2
    assert "cut.nii" in error_line(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"cut.nii"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("command", ["embed", "segment"])
@pytest.mark.parametrize("device", ["cuda", "warp"])
def test_c08_a_device_that_is_not_there(command, device, models, scan, tmp_path, capsys):
    output = tmp_path / ("o.npz" if command == "embed" else "o.nii")
    arguments = ["-o", output, "--model", models / "tiny", "--device", device]
    assert umh(command, scan, *arguments) == 2
    assert device in error_line(capsys)


def test_f04_a_memory_limit_that_cannot_hold_names_need_and_limit(models, scan, tmp_path, capsys):
    arguments = ["-o", tmp_path / "o.nii", "--model", models / "tiny", "--memory-limit", "1kB"]
    assert umh("segment", scan, *arguments, "--modality", "CT") == 2
    assert "MiB" in error_line(capsys)


def test_f06_weights_that_overflow_write_no_file(models, scan, tmp_path, capsys):
    torch.manual_seed(0)
    model = UNet3D(out_channels=3, width=2, activation=None).eval()
    with torch.no_grad():
        model.head.weight.mul_(1e38)
        for parameter in model.decoder.parameters():
            parameter.mul_(1e6)
    save_pretrained(model, tmp_path / "huge", name="huge", head_trained=True)
    output = tmp_path / "o.nii"
    arguments = ["-o", output, "--model", tmp_path / "huge", "--modality", "CT"]
    assert umh("segment", scan, *arguments) == 2
    assert "NaN or infinity" in error_line(capsys)
    assert not output.exists()


def test_f07_an_empty_mask_is_written_with_a_note(models, scan, tmp_path, capsys):
    model = UNet3D(out_channels=2, width=2, activation=None).eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 0.0]))
    save_pretrained(model, tmp_path / "empty", name="empty", head_trained=True)
    output = tmp_path / "o.nii"
    arguments = ["-o", output, "--model", tmp_path / "empty", "--modality", "CT", "--json"]
    assert umh("segment", scan, *arguments) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["labels"] == {}
    assert "umh: warning: " in shown.err
    assert not load_volume(output).array.any()


def test_an_unexpected_error_is_one_line_without_the_token(monkeypatch, capsys):
    token = "hf_" + "a1B2" * 8
    monkeypatch.setenv("HF_TOKEN", "another-secret")

    def run(args):
        raise RuntimeError(f"Bearer {token}\nand another-secret at https://me:pass@host/")

    monkeypatch.setattr(list_command, "run", run)
    assert umh("list") == 1
    line = error_line(capsys)
    assert "--debug" in line
    assert umh("list", "--debug") == 1
    traceback = capsys.readouterr().err
    assert "Traceback" in traceback
    for text in (line, traceback):
        assert "RuntimeError" in text
        for secret in (token, "another-secret", "me:pass"):
            assert secret not in text


def test_a_full_stdout_is_one_line(monkeypatch, capsys):
    def run(args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(list_command, "run", run)
    assert umh("list") == 2
    assert "No space left" in error_line(capsys)


def test_an_error_of_a_library_keeps_its_traceback_for_debug_only(capsys):
    assert umh("info", "nonsense", "--debug") == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith("umh: error: ")


@pytest.mark.parametrize(
    ("text", "line"), [("a\n  b\r\nc", "a b c"), ("x\x1b[2Jy\ta  b", "x?[2Jy?a  b")]
)
def test_a_message_is_one_line_and_cannot_drive_the_terminal(text, line):
    assert messages.one_line(text) == line


def test_warnings_are_lines_on_stderr_unless_quiet(scan, models, tmp_path, capsys):
    zeros = Volume(np.zeros((8, 8, 8), np.float32), np.eye(4))
    save_volume(zeros, tmp_path / "zeros.nii")
    arguments = ["--model", models / "tiny", "--modality", "CT"]
    assert umh("preprocess", tmp_path / "zeros.nii", "-o", tmp_path / "a.nii", *arguments) == 0
    shown = capsys.readouterr().err
    assert any(line.startswith("umh: warning: ") for line in shown.splitlines())
    quiet = [*arguments, "--quiet"]
    assert umh("preprocess", tmp_path / "zeros.nii", "-o", tmp_path / "b.nii", *quiet) == 0
    assert capsys.readouterr().err == ""
