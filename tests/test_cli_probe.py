"""``umh probe``: from a folder of scans or a CSV to a table, JSON and a curve."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from universal_model_hub.cli.main import main
from universal_model_hub.loading import save_pretrained
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.preprocess import Preprocessing
from universal_model_hub.volume import Volume, save_volume

SUBJECTS = 5
FAST = ("--shares", "40,100", "--seeds", "2", "--points", "15")


def umh(*arguments: object) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    network = UNet3D(width=2).train(False)
    return save_pretrained(network, folder, name="tiny", preprocessing=Preprocessing(spacing=None))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic CT scans with one bright box each, in images/ and labels/; and classes.csv."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    rows = ["image,class,subject"]
    for number in range(2 * SUBJECTS):
        rng = np.random.default_rng(number)
        labels = np.zeros((14, 13, 12), np.uint8)
        x, y, z = rng.integers(2, 6, 3)
        labels[x : x + 6, y : y + 6, z : z + 6] = 1
        hu = np.choose(labels, [-700, 100]) + rng.normal(0, 20, labels.shape) - 200 * (number % 2)
        name = f"p{number:02}.nii.gz"
        save_volume(Volume(hu.astype(np.int16), np.eye(4)), folder / "images" / name)
        if number < SUBJECTS:
            save_volume(Volume(labels, np.eye(4)), folder / "labels" / name)
        rows.append(f"images/{name},{'ill' if number % 2 else 'well'},p{number:02}")
    (folder / "classes.csv").write_text("\n".join(rows) + "\n")
    few = folder / "few"
    few.mkdir()
    for number in range(SUBJECTS):
        name = f"p{number:02}.nii.gz"
        (few / name).write_bytes((folder / "images" / name).read_bytes())
    return folder


def pair(data: Path) -> tuple[object, ...]:
    return ("--images", data / "few", "--labels", data / "labels", "--modality", "CT")


def test_a_folder_pair_gives_a_table_on_stdout_and_progress_on_stderr(data, model, capsys):
    assert umh("probe", *pair(data), "--model", model, *FAST) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Probe of tiny: 2 classes (background, 1)\n")
    for words in ("encoder", "random weights", "hand-made", "majority class", "linear", "kNN"):
        assert words in shown.out
    assert "scan" in shown.err
    assert "Probe of" not in shown.err


def test_output_is_json_with_the_curve_beside_it(data, model, tmp_path, capsys):
    out = tmp_path / "probe.json"
    options = ("--model", model, *FAST, "--quiet", "--json", "--label-names", "1=liver")
    assert umh("probe", *pair(data), *options, "-o", out) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    found = json.loads(out.read_text())
    assert json.loads(shown.out) == found
    assert found["classes"] == ["background", "liver"]
    assert {row["percent"] for row in found["rows"]} == {40, 100}
    assert found["train_subjects"] + found["test_subjects"] == SUBJECTS
    best = [r for r in found["rows"] if r["features"] == "hand-made" and r["percent"] == 100]
    assert all(row["balanced_accuracy"]["mean"] > 0.9 for row in best)
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_a_csv_of_classes_describes_whole_scans(data, model, capsys):
    options = ("--modality", "CT", "--model", model, *FAST, "--levels", "all", "--json", "--quiet")
    assert umh("probe", "--data", data / "classes.csv", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["classes"]) == ("classification", ["ill", "well"])
    full = [r for r in found["rows"] if r["features"] == "hand-made" and r["percent"] == 100]
    assert all(row["balanced_accuracy"]["mean"] == 1 for row in full)


def test_the_split_of_a_csv_is_kept(data, model, capsys):
    lines = (data / "classes.csv").read_text().splitlines()
    parts = ["split", *["train"] * 6, *["test"] * 4]
    table = "\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True))
    path = data / "split.csv"
    path.write_text(table + "\n")
    options = ("--modality", "CT", "--model", model, "--shares", "100", "--json", "--quiet")
    assert umh("probe", "--data", path, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["train_subjects"], found["test_subjects"]) == (6, 4)


def test_one_subject_alone_is_probed_within_it(data, model, tmp_path, capsys):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "p00.nii.gz").write_bytes((data / kind / "p00.nii.gz").read_bytes())
    folders = ("--images", tmp_path / "images", "--labels", tmp_path / "labels")
    options = ("--modality", "CT", "--model", model, *FAST, "--json", "--quiet")
    assert umh("probe", *folders, *options) == 0
    assert json.loads(capsys.readouterr().out)["within_subject"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shares", "0"), "shares above 0"),
        (("--shares", "ten"), "expected percents such as"),
        (("--seeds", "0"), "seeds to be a whole number"),
        (("--modality", "PET"), "CT, MR or auto"),
        (("--model", "no-such-model"), "no-such-model"),
        (("--device", "abacus"), "abacus"),
        (("-o", "probe.txt"), "named .json"),
        (("-o", "no/such/folder/probe.json"), "does not exist"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(data, model, capsys, options, message):
    assert umh("probe", *pair(data), "--model", model, "--quiet", *options) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("umh: error: ")
    assert message in line


def test_an_output_that_exists_is_kept_unless_forced(data, model, tmp_path, capsys):
    out = tmp_path / "probe.json"
    out.write_text("mine")
    options = ("--model", model, *FAST, "-o", out)
    assert umh("probe", *pair(data), *options) == 2
    assert out.read_text() == "mine"
    assert umh("probe", *pair(data), *options, "--force") == 0
    assert json.loads(out.read_text())["model"] == "tiny"
