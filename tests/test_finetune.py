"""Fine-tuning from folders on disk to a model folder, its metrics and its page."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import universal_model_hub as umh
from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.fit.data.prepare import class_labels, slabs_kept_back
from universal_model_hub.fit.finetuning import finetune
from universal_model_hub.fit.training.checkpoint import run_lock
from universal_model_hub.fit.training.transfer import build_model

ROOT = Path(__file__).parent.parent
SPACING = np.diag([2.0, 2.0, 2.0, 1.0])
QUICK = {"steps": 4, "cube": (16, 16, 16), "spacing": (2, 2, 2), "device": "cpu"}


def write_case(folder: Path, name: str, seed: int, *, values=(0, 1, 2)) -> None:
    """Write a synthetic CT with two balls, and where they are."""
    rng = np.random.default_rng(seed)
    array = rng.normal(-900, 30, (24, 22, 20))
    labels = np.full(array.shape, values[0], np.int16)
    for value, hu in zip(values[1:], (50, 400), strict=True):
        center = rng.uniform(7, 13, 3).reshape(3, 1, 1, 1)
        ball = np.square(np.indices(array.shape) - center).sum(axis=0) < 25
        array[ball], labels[ball] = hu, value
    for part, content in (("images", array.astype(np.int16)), ("labels", labels)):
        (folder / part).mkdir(exist_ok=True)
        umh.save_volume(umh.Volume(content, SPACING), folder / part / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    model = build_model(None, num_classes=1, arguments={"width": 2}, seed=3)
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    return umh.save_pretrained(model, folder, license="apache-2.0")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    for number in range(4):
        write_case(tmp_path, f"case{number}", number)
    return {"images": tmp_path / "images", "labels": tmp_path / "labels"}


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_folders_become_a_model_that_segments_with_scores_and_a_page(tmp_path, folders, weights):
    out = tmp_path / "out"
    names = {1: "soft", 2: "dense"}
    result = finetune(
        out, **folders, weights=weights, label_names=names, compare_scratch=True, progress=False,
        **QUICK,
    )  # fmt: skip
    files = {path.name for path in out.iterdir()}
    assert files == {
        *("model.safetensors", "config.json", "README.md"),
        *("metrics.json", "metrics.csv", "split.csv", "report.html"),
    }
    assert set(result.metrics["arms"]) == {"pretrained", "from scratch"}
    model = umh.load_segmenter(out)
    assert model.config.labels == {0: "background", 1: "soft", 2: "dense"}
    assert model.config.provenance["base"]["name"] == "tiny"
    assert model.head_trained
    found = umh.predict(model, folders["images"] / "case0.nii.gz")
    assert found.array.shape == (24, 22, 20)
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    judged = {row["case"] for row in csv.DictReader((out / "split.csv").open())
              if row["split"] == "validation"}  # fmt: skip
    assert {row["case"] for row in rows} == judged
    page = (out / "report.html").read_text()
    assert "soft" in page
    assert "<img" in page
    assert "pretrained" in result.text()


def test_an_interrupted_run_ends_bitwise_as_an_uninterrupted_one(tmp_path, folders, weights):
    options = {**folders, "weights": weights, "progress": False, **QUICK, "steps": 6}
    finetune(tmp_path / "whole", **options)
    command = [
        *(sys.executable, "-m", "universal_model_hub", "finetune", "--weights", str(weights)),
        *("--images", str(folders["images"]), "--labels", str(folders["labels"])),
        *("--steps", "6", "--cube", "16", "--spacing", "2", "--device", "cpu", "--quiet"),
        *("--output", str(tmp_path / "parts")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    plan = tmp_path / "parts" / "work" / "plan.json"
    while not plan.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert not (tmp_path / "parts" / "config.json").exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = [umh.load_segmenter(tmp_path / name).state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in loaded), strict=True))


def test_an_unfinished_run_for_something_else_is_refused_with_the_difference(
    tmp_path, folders, weights
):
    out = tmp_path / "out"
    (out / "work").mkdir(parents=True)
    (out / "work" / "plan.json").write_text(json.dumps({"folds": 7}))
    with pytest.raises(CheckpointError, match="folds: 7 -> 0"):
        finetune(out, **folders, weights=weights, progress=False, **QUICK)
    finetune(out, **folders, weights=weights, progress=False, force=True, **QUICK)
    assert not (out / "work").exists()


def test_bad_data_is_told_all_at_once_and_nothing_is_written(tmp_path, folders, weights):
    labels = umh.load_volume(folders["labels"] / "case0.nii.gz")
    umh.save_volume(
        umh.Volume(labels.array[:-1], labels.affine), folders["labels"] / "case0.nii.gz", force=True
    )
    (folders["images"] / "case1.nii.gz").write_bytes(b"no scan")
    (folders["labels"] / "case2.nii.gz").unlink()
    with pytest.raises(ConfigError) as caught:
        finetune(tmp_path / "out", **folders, weights=weights, progress=False, **QUICK)
    for name in ("case0", "case1", "case2"):
        assert name in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_told_before_anything_is_trained(
    tmp_path, folders, weights, monkeypatch
):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "monai" else found(name)
    )
    with pytest.raises(ConfigError, match=r"got no monai\. .*universal_model_hub\[finetune\]"):
        finetune(tmp_path / "out", **folders, weights=weights, progress=False, **QUICK)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_model_is_not_overwritten(tmp_path, folders, weights):
    before = weights_of(weights)
    with pytest.raises(ConfigError, match=r"holds model\.safetensors"):
        finetune(weights, **folders, progress=False, **QUICK)
    assert weights_of(weights) == before


def test_one_scan_alone_is_scored_on_slabs_that_were_kept_back(tmp_path, weights):
    write_case(tmp_path, "only", 0)
    result = finetune(
        tmp_path / "out", images=tmp_path / "images", labels=tmp_path / "labels", weights=weights,
        progress=False, **QUICK,
    )  # fmt: skip
    assert "within-subject" in result.metrics["judged_on"]
    truth = sum(int(row["truth_voxels"]) for row in csv.DictReader((tmp_path / "out" / "metrics.csv").open()))  # fmt: skip  # noqa: E501
    labels = umh.load_volume(tmp_path / "labels" / "only.nii.gz")
    kept = slabs_kept_back(labels)
    assert 0 < truth == int(((labels.array > 0) & kept).sum())


def test_label_values_become_classes_and_stay_named(tmp_path, weights):
    for number in range(3):
        write_case(tmp_path, f"case{number}", number, values=(0, 420, 850))
    out = tmp_path / "out"
    finetune(out, images=tmp_path / "images", labels=tmp_path / "labels", weights=weights,
             progress=False, **QUICK)  # fmt: skip
    assert umh.load_segmenter(out).config.labels == {0: "background", 1: "420", 2: "850"}
    with pytest.raises(ConfigError, match="got 7"):
        class_labels(np.array([[[0, 7]]]), {420: 1})


def test_folds_judge_every_case_once_and_the_model_sees_all(tmp_path, folders, weights):
    out = tmp_path / "out"
    result = finetune(out, **folders, weights=weights, folds=2, progress=False, **QUICK)
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert sorted({row["case"] for row in rows}) == [f"case{n}" for n in range(4)]
    assert len(rows) == 8
    assert "2 folds" in result.metrics["judged_on"]
    assert len(result.metrics["arms"]["pretrained"]["trainings"]) == 2


@pytest.mark.parametrize("train", ["head", "lora"])
def test_a_part_of_the_network_can_be_trained_alone(tmp_path, folders, weights, train):
    out = tmp_path / "out"
    finetune(out, **folders, weights=weights, train=train, progress=False, **QUICK)
    tuned, start = umh.load_encoder(out), umh.load_encoder(weights)
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        moved = float((tuned.embed(x) - start.embed(x)).abs().max() / start.embed(x).abs().max())
    assert (moved < 1e-5) == (train == "head")


def write_classes(folder: Path) -> None:
    """Write six synthetic CTs of 2 mm, dark and bright, in a folder of each class."""
    for number in range(6):
        rng = np.random.default_rng(number)
        array = rng.normal(-900 + 800 * (number % 2), 30, (20, 18, 16)).astype(np.int16)
        own = folder / ("bright" if number % 2 else "dark")
        own.mkdir(parents=True, exist_ok=True)
        umh.save_volume(umh.Volume(array, SPACING), own / f"scan{number}.nii.gz")


def test_scans_are_classified_by_folder(tmp_path, weights):
    write_classes(tmp_path / "scans")
    out = tmp_path / "out"
    result = finetune(
        out, images=tmp_path / "scans", task="classification", modality="CT", weights=weights,
        progress=False, **QUICK,
    )  # fmt: skip
    assert set(result.metrics["arms"]["pretrained"]["results"]) >= {"auc", "accuracy"}
    model = umh.load_classifier(out)
    assert model.config.labels == {0: "bright", 1: "dark"}


def test_a_classifier_from_weights_of_native_spacing_has_one_grid_for_all_scans(tmp_path):
    write_classes(tmp_path / "scans")
    native = umh.save_pretrained(
        build_model(None, num_classes=1, arguments={"width": 2}, seed=3),
        tmp_path / "native",
        license="apache-2.0",
        preprocessing=umh.Preprocessing(spacing=None),
    )
    finetune(
        tmp_path / "out", images=tmp_path / "scans", task="classification", modality="CT",
        weights=native, progress=False, steps=2, device="cpu",
    )  # fmt: skip
    model = umh.load_classifier(tmp_path / "out")
    assert model.preprocessing.spacing == (2.0, 2.0, 2.0)


def test_a_time_budget_chooses_the_steps(tmp_path, folders, weights):
    options = {k: v for k, v in QUICK.items() if k != "steps"}
    result = finetune(
        tmp_path / "out", **folders, weights=weights, budget_seconds=10, progress=False, **options
    )
    assert result.metrics["arms"]["pretrained"]["trainings"][0]["scores"][-1][0] >= 10
    with pytest.raises(ConfigError, match="at least 10 seconds"):
        finetune(tmp_path / "other", **folders, budget_seconds=1)


def test_the_rate_is_tuned_alike_in_both_arms(tmp_path, folders, weights):
    result = finetune(
        tmp_path / "out", **folders, weights=weights, tune_rate=True, compare_scratch=True,
        progress=False, **QUICK,
    )  # fmt: skip
    tried = [set(arm["trainings"][0]["rate_scores"]) for arm in result.metrics["arms"].values()]
    assert tried[0] == tried[1]
    assert len(tried[0]) == 3


def command_of(folders: dict[str, Path], weights: Path, out: Path) -> list[str]:
    return [
        *("finetune", "--weights", str(weights), "--output", str(out), "--quiet"),
        *("--images", str(folders["images"]), "--labels", str(folders["labels"])),
        *("--steps", "8", "--cube", "16", "--spacing", "2", "--device", "cpu", "--compare", "none"),
    ]


def same_files(first: Path, second: Path) -> bool:
    same_scores = (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()
    loaded = [umh.load_segmenter(folder).state_dict().values() for folder in (first, second)]
    return same_scores and all(torch.equal(a, b) for a, b in zip(*loaded, strict=True))


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_bitwise_as_an_uninterrupted_one(
    tmp_path, folders, weights
):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "universal_model_hub"]
    whole = command_of(folders, weights, tmp_path / "whole")
    began = time.monotonic()
    subprocess.run([*start, *whole], cwd=ROOT, env=environment, check=True)
    seconds = time.monotonic() - began
    rng = np.random.default_rng(0)
    command = [*start, *command_of(folders, weights, tmp_path / "parts")]
    for share in (*rng.uniform(0.3, 0.95, 5), None):  # now and then the last comes to its end
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        try:
            _, told = process.communicate(timeout=None if share is None else share * seconds)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    assert process.returncode == 0, told
    assert same_files(tmp_path / "whole", tmp_path / "parts")
    assert not (tmp_path / "parts" / "work").exists()


@pytest.mark.slow
def test_two_processes_train_one_model_and_the_first_reports_it(tmp_path, folders, weights):
    out = tmp_path / "out"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "universal_model_hub", *command_of(folders, weights, out)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Judged on") == 1
    assert umh.load_segmenter(out).head_trained
    assert not (out / "work").exists()


def test_the_same_run_once_more_finds_itself_done_and_another_is_refused(
    tmp_path, folders, weights
):
    # As after a kill between the last file and the end of the process, or while it tidied up.
    options = {**folders, "weights": weights, "progress": False, **QUICK}
    out = tmp_path / "out"
    first = finetune(out, **options)
    kept = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "work" / "cache").mkdir(parents=True)
    with run_lock(out / "work"), pytest.raises(ConfigError, match="Another run"):
        finetune(out, **options)
    again = finetune(out, **options)
    assert not (out / "work").exists()
    assert (first.is_new, again.is_new) == (True, False)
    assert again.metrics == first.metrics
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == kept
    with pytest.raises(ConfigError, match=r"holds model\.safetensors"):
        finetune(out, **{**options, "seed": 1})
    for part in folders.values():
        (part / "case3.nii.gz").unlink()
    write_case(tmp_path, "case3", 7)  # other data under the same name
    with pytest.raises(ConfigError, match=r"holds model\.safetensors"):
        finetune(out, **options)
    assert finetune(out, **options, force=True).is_new


def test_an_old_model_beside_new_metrics_is_not_taken_for_the_end_of_a_run(
    tmp_path, folders, weights, monkeypatch
):
    options = {**folders, "weights": weights, "progress": False, **QUICK}
    finetune(tmp_path / "out", **options)
    before = weights_of(tmp_path / "out")

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr("universal_model_hub.fit.outcome.save_pretrained", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path / "out", **options, seed=2, force=True)
    assert weights_of(tmp_path / "out") == before
    assert finetune(tmp_path / "out", **options, seed=2).is_new
    assert weights_of(tmp_path / "out") != before


def test_a_run_stopped_while_it_tidied_up_is_brought_to_its_end(
    tmp_path, folders, weights, monkeypatch
):
    options = {**folders, "weights": weights, "progress": False, **QUICK}
    remove = shutil.rmtree

    def stop_at_work(path, *rest, **more):
        if Path(path).name == "work":
            raise KeyboardInterrupt
        remove(path, *rest, **more)

    with monkeypatch.context() as stopped:
        stopped.setattr("shutil.rmtree", stop_at_work)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path / "out", **options)
    before = weights_of(tmp_path / "out")
    finetune(tmp_path / "out", **options)
    assert weights_of(tmp_path / "out") == before
    assert not (tmp_path / "out" / "work").exists()
