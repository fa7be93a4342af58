"""Inputs and outputs on the command line: what is refused before work, what a batch survives."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from universal_model_hub.cli import options
from universal_model_hub.cli.main import main
from universal_model_hub.cli.planning import make_plan, scans_of, stem_of
from universal_model_hub.errors import ConfigError
from universal_model_hub.volume import Volume, load_volume, save_volume

NIFTI = (".nii", ".nii.gz")


def umh(*arguments: object) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def dicom(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + bytes(10))


# What an input stands for.


def test_a_file_is_one_scan_whatever_its_name(tmp_path):
    assert scans_of(tmp_path / "no such") == ([tmp_path / "no such"], True)


def test_a_folder_of_scan_files_is_a_batch_even_with_dicom_files_beside(tmp_path):
    touch(tmp_path / "b.nii.gz", tmp_path / "a.NRRD", tmp_path / "c.hdr", tmp_path / "c.img")
    touch(tmp_path / "._b.nii.gz", tmp_path / "notes.txt", tmp_path / "sub" / "d.nii")
    dicom(tmp_path / "0001")
    scans, single = scans_of(tmp_path)
    assert [scan.name for scan in scans] == ["a.NRRD", "b.nii.gz", "c.hdr"]
    assert not single


def test_a_folder_of_dicom_files_is_one_scan(tmp_path):
    dicom(tmp_path / "IM0001")
    touch(tmp_path / "readme.txt")
    assert scans_of(tmp_path) == ([tmp_path], True)


def test_a_folder_of_dicom_folders_is_a_batch(tmp_path):
    dicom(tmp_path / "first" / "1.dcm")
    dicom(tmp_path / "second" / "1.dcm")
    touch(tmp_path / "other" / "notes.txt")
    assert scans_of(tmp_path) == ([tmp_path / "first", tmp_path / "second"], False)


def test_c01_a_folder_without_scans_is_refused(tmp_path):
    touch(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="Got none"):
        scans_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.b.NII", "a.b"),
        ("a b.mha", "a b"),
        ("ä.txt", "ä.txt"),
        (".nii", ".nii"),
    ],
)
def test_an_output_keeps_the_name_of_its_scan(name, stem):
    assert stem_of(Path("folder") / name) == stem


def test_a_dicom_folder_gives_its_name_even_as_a_dot(tmp_path, monkeypatch):
    dicom(tmp_path / "series 7.5" / "1.dcm")
    monkeypatch.chdir(tmp_path / "series 7.5")
    assert stem_of(Path()) == "series 7.5"


# Plans.


def test_one_file_is_written_to_a_file_and_a_folder_of_one_to_a_folder(tmp_path):
    touch(tmp_path / "in" / "a.nii")
    single = make_plan([tmp_path / "in" / "a.nii"], tmp_path / "o.nii", suffixes=NIFTI, force=False)
    assert single.folder is None
    assert single.jobs[0].output == tmp_path / "o.nii"
    batch = make_plan([tmp_path / "in"], tmp_path / "out", suffixes=NIFTI, force=False)
    assert batch.folder == tmp_path / "out"
    assert batch.jobs[0].output == tmp_path / "out" / "a.nii.gz"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "names", [("x.nii", "x.nii.gz"), ("x.nii", "X.nii"), ("ä.nii", "a\u0308.mha")]
)
def test_two_scans_of_one_name_are_found_before_any_work(tmp_path, names):
    first, second = tmp_path / "a" / names[0], tmp_path / "b" / names[1]
    touch(first, second)
    with pytest.raises(ConfigError, match="both") as refused:
        make_plan([first, second], tmp_path / "out", suffixes=NIFTI, force=True)
    assert str(first) in str(refused.value)
    assert str(second) in str(refused.value)


def test_a_scan_that_is_named_twice_is_done_once(tmp_path):
    touch(tmp_path / "in" / "a.nii", tmp_path / "in" / "b.nii")
    inputs = [tmp_path / "in", tmp_path / "in" / "a.nii"]
    plan = make_plan(inputs, tmp_path / "out", suffixes=NIFTI, force=False)
    assert [job.source.name for job in plan.jobs] == ["a.nii", "b.nii"]


def test_c07_existing_outputs_are_done_unless_forced(tmp_path):
    touch(tmp_path / "in" / "a.nii", tmp_path / "in" / "b.nii", tmp_path / "out" / "a.nii.gz")
    plan = make_plan([tmp_path / "in"], tmp_path / "out", suffixes=NIFTI, force=False)
    assert [job.source.name for job in plan.done] == ["a.nii"]
    assert [job.source.name for job in plan.jobs] == ["b.nii"]
    plan = make_plan([tmp_path / "in"], tmp_path / "out", suffixes=NIFTI, force=True)
    assert len(plan.jobs) == 2


def test_c01_a_missing_input_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.nii does not exist"):
        make_plan([tmp_path / "no.nii"], tmp_path / "o.nii", suffixes=NIFTI, force=False)


def test_c01_an_unreadable_input_is_refused(tmp_path, monkeypatch):
    touch(tmp_path / "a.nii")
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith("a.nii"))
    with pytest.raises(ConfigError, match="may not be read"):
        make_plan([tmp_path / "a.nii"], tmp_path / "o.nii", suffixes=NIFTI, force=False)


def refused(tmp_path, output, match, *, force=False, inputs=None):
    inputs = inputs or [tmp_path / "in" / "a.nii"]
    with pytest.raises(ConfigError, match=match):
        make_plan(inputs, output, suffixes=NIFTI, force=force)


def test_c02_an_existing_output_and_an_output_that_is_an_input_are_refused(tmp_path):
    touch(tmp_path / "in" / "a.nii", tmp_path / "o.nii")
    (tmp_path / "link.nii").symlink_to(tmp_path / "in" / "a.nii")
    refused(tmp_path, tmp_path / "o.nii", "exists")
    refused(tmp_path, tmp_path / "in" / "a.nii", "also an input", force=True)
    refused(tmp_path, tmp_path / "link.nii", "also an input", force=True)
    refused(tmp_path, tmp_path / "in", "outside the input folder", inputs=[tmp_path / "in"])


def test_c02_an_output_inside_the_dicom_folder_is_refused(tmp_path):
    dicom(tmp_path / "in" / "1.dcm")
    refused(tmp_path, tmp_path / "in" / "o.nii", "outside", inputs=[tmp_path / "in"])


def test_c03_output_places_that_cannot_work_are_refused(tmp_path, monkeypatch):
    touch(tmp_path / "in" / "a.nii", tmp_path / "in" / "b.nii", tmp_path / "file")
    folder = [tmp_path / "in"]
    refused(tmp_path, tmp_path / "no" / "o.nii", "does not exist")
    refused(tmp_path, tmp_path / "no" / "out", "does not exist", inputs=folder)
    refused(tmp_path, tmp_path / "file", "a folder as output", inputs=folder)
    refused(tmp_path, tmp_path / "o.nii.gz", "a folder as output", inputs=folder)
    refused(tmp_path, tmp_path, "got the folder")
    refused(tmp_path, tmp_path / "o.png", r"\.nii or \.nii\.gz")
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: mode != 2)
        refused(tmp_path, tmp_path / "o.nii", "not writable")
        refused(tmp_path, tmp_path / "out", "not writable", inputs=folder)


def test_c03_a_full_disk_is_found_before_any_work(tmp_path, monkeypatch):
    touch(tmp_path / "in" / "a.nii")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    refused(tmp_path, tmp_path / "o.nii", "bytes free")
    refused(tmp_path, tmp_path / "out", "bytes free", inputs=[tmp_path / "in"])


@pytest.mark.parametrize(
    ("text", "size"),
    [("17", 17), ("2k", 2048), ("4GB", 4 * 10**9), ("4GiB", 4 * 2**30), ("1.5 MB", 1_500_000)],
)
def test_memory_sizes(text, size):
    assert options.memory_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "4 giga", "1e9", "nan"])
def test_what_is_no_memory_size_is_a_usage_error(text, tmp_path, capsys):
    assert umh("embed", "a.nii", "-o", tmp_path / "o.npz", f"--memory-limit={text}") == 2
    assert capsys.readouterr().err.count("\n") == 1


# Batches that run.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a folder with a small segmenter of random weights, declared as trained."""
    from universal_model_hub.loading import save_pretrained
    from universal_model_hub.networks.unet3d import UNet3D

    torch.manual_seed(0)
    segmenter = UNet3D(out_channels=3, width=2, activation=None).eval()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_pretrained(segmenter, folder, name="tiny", labels={1: "liver"}, head_trained=True)


def scan(path: Path, seed: int = 0, spacing: float = 1.0) -> Path:
    voxels = np.random.default_rng(seed).integers(-1000, 400, (9, 8, 7)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_volume(Volume(voxels, np.diag([spacing, spacing, 2 * spacing, 1])), path)
    return path


def test_c07_nine_of_ten_are_embedded_and_the_bad_one_is_reported(tmp_path, model, capsys):
    for k in range(9):
        scan(tmp_path / "in" / f"scan {k}.nii.gz", seed=k)
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"no scan")
    out = tmp_path / "out"
    command = ["embed", tmp_path / "in", "-o", out, "--model", model, "--modality", "CT"]
    assert umh(*command, "--json") == 2
    shown = capsys.readouterr()
    records = json.loads(shown.out)
    assert [r["status"] for r in records] == ["failed"] + 9 * ["done"]
    errors = [line for line in shown.err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert "bad.nii.gz" in errors[0]
    assert "9 done, 1 failed, 0 skipped" in shown.err
    rows = list(csv.DictReader((out / "index.csv").open()))
    assert [row["file"] for row in rows] == [f"scan {k}.npz" for k in range(9)]
    assert {(row["model"], row["spacing_z"]) for row in rows} == {("tiny", "2.0")}

    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    scan(tmp_path / "fixed.nii.gz", seed=11).replace(tmp_path / "in" / "bad.nii.gz")
    assert umh(*command) == 0
    assert "1 done, 0 failed, 9 skipped" in capsys.readouterr().err
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("*.npz")}.items()
    assert len((out / "index.csv").read_text().splitlines()) == 11
    assert sorted(p.name for p in out.iterdir() if p.name.startswith(".")) == []


def test_embeddings_of_other_weights_in_the_folder_are_not_passed_off(tmp_path, model, capsys):
    scan(tmp_path / "in" / "a.nii")
    command = ["embed", tmp_path / "in", "-o", tmp_path / "out", "--model", model]
    assert umh(*command, "--modality", "CT") == 0
    stored = dict(np.load(tmp_path / "out" / "a.npz"))
    np.savez(tmp_path / "out" / "a.npz", **{**stored, "sha256": "0" * 64})
    capsys.readouterr()
    assert umh(*command) == 2
    assert "other weights" in capsys.readouterr().err
    (tmp_path / "out" / "a.npz").write_bytes(b"no archive")
    assert umh(*command) == 2
    assert umh(*command, "--force") == 0
    assert str(np.load(tmp_path / "out" / "a.npz")["sha256"]) == str(stored["sha256"])


def test_an_index_that_is_not_ours_is_left_alone(tmp_path, model, capsys):
    scan(tmp_path / "in" / "a.nii")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.csv").write_text("patient,age\n")
    command = ["embed", tmp_path / "in", "-o", tmp_path / "out", "--model", model]
    assert umh(*command) == 2
    assert "index" in capsys.readouterr().err
    assert (tmp_path / "out" / "index.csv").read_text() == "patient,age\n"
    assert not (tmp_path / "out" / "a.npz").exists()


def test_a_batch_of_labels_keeps_every_scans_own_grid(tmp_path, model, capsys):
    for k in range(2):
        scan(tmp_path / "in" / f"{k}.nii", seed=k, spacing=1 + k)
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--modality", "CT"]
    assert umh("segment", *arguments, "--quiet") == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    for k in range(2):
        source = load_volume(tmp_path / "in" / f"{k}.nii")
        labels = load_volume(tmp_path / "out" / f"{k}.nii.gz")
        assert labels.shape == source.shape
        assert np.array_equal(labels.affine, source.affine)
        assert labels.array.max() <= 2


def test_a_bug_in_one_scan_does_not_cost_the_others(tmp_path, model, capsys, monkeypatch):
    import universal_model_hub.volume as package

    def load(path):
        if path.name == "b.nii":
            raise RuntimeError("token hf_abcdefgh123\nsecond line")
        return load_volume(path)

    for name in "abc":
        scan(tmp_path / "in" / f"{name}.nii")
    monkeypatch.setattr(package, "load_volume", load)
    out = tmp_path / "out"
    assert umh("preprocess", tmp_path / "in", "-o", out, "--model", model, "--modality", "CT") == 2
    assert sorted(path.name for path in out.iterdir()) == ["a.nii.gz", "c.nii.gz"]
    shown = capsys.readouterr().err
    assert "Unexpected RuntimeError" in shown
    assert "hf_abc" not in shown


def test_a_disk_that_fills_up_fails_its_file_and_keeps_the_others(
    tmp_path, model, capsys, monkeypatch
):
    from universal_model_hub import files

    def write(path, data):
        if path.name == "b.npz":
            raise OSError(28, "No space left on device", str(path))
        return write_bytes(path, data)

    write_bytes = files.write_bytes
    monkeypatch.setattr(files, "write_bytes", write)
    for name in "abc":
        scan(tmp_path / "in" / f"{name}.nii")
    out = tmp_path / "out"
    assert umh("embed", tmp_path / "in", "-o", out, "--model", model, "--modality", "CT") == 2
    assert sorted(path.name for path in out.iterdir()) == ["a.npz", "c.npz", "index.csv"]
    assert "b.nii: No space left on device" in capsys.readouterr().err


def test_i21_difficult_names_come_through(tmp_path, model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["-dash.nii", "zwei Wörter.nii.gz", "quote'\".nii", "a.b.c.nii"]
    for k, name in enumerate(names):
        scan(Path(name), seed=k)
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.b.c.nii")
    out = ["-o", "out", "--model", model, "--modality", "CT", "--json"]
    assert umh("preprocess", *out, "--", *names, "link.nii") == 0
    records = json.loads(capsys.readouterr().out)
    assert {r["input"] for r in records} == {*names, "link.nii"}
    assert all(Path(r["output"]).is_file() for r in records)
    assert umh("preprocess", "-dash.nii", *out) == 2
    assert "./-NAME" in capsys.readouterr().err
    assert umh("preprocess", "./-dash.nii", "-o", "o.nii", *out[2:]) == 0


def test_all_done_earlier_needs_no_model(tmp_path, capsys):
    scan(tmp_path / "in" / "a.nii")
    touch(tmp_path / "out" / "a.nii.gz")
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--model", "nonsense"]
    assert umh("segment", *arguments) == 0
    assert "0 done, 0 failed, 1 skipped" in capsys.readouterr().err
