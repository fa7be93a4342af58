"""Raw corpora to a store of cubes: the counts, going on, broken cases, damage, who may be seen."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_corpora
import torch

from training import prepare as stage
from training.config import CubesConfig, ObjectiveConfig, Recipe
from training.corpora.splits import evaluation_cases
from training.cubes import CubeStore
from training.prepare import cases_of, prepare
from universal_model_hub.errors import ConfigError, IntegrityError, TooLargeError

ROOT = Path(__file__).parent.parent
RECIPE = Recipe(
    name="test",
    cubes=CubesConfig(
        size=(8, 8, 8), scales=(0.25, 0.5, 0.75), counts={"luna16": (4, 2, 2)},
        default_counts=(2, 1, 1),
    ),
)  # fmt: skip


class Threads(concurrent.futures.ThreadPoolExecutor):
    """Stands in for fresh processes, each of which would spend seconds on importing torch."""

    def __init__(self, workers, context, initializer, arguments):
        del context
        super().__init__(workers, "cubes", initializer, arguments)


@pytest.fixture
def threads(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Threads)


@pytest.fixture
def folders(tmp_path):
    names = ("luna16", "lits2017", "brats2018")
    return [f"{name}={tiny_corpora.WRITERS[name](tmp_path / name)}" for name in names]


def contents(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_a_store_holds_the_counts_of_every_corpus_and_scale(tmp_path, folders, threads):
    cases = cases_of(RECIPE, folders)
    summary = prepare(cases, RECIPE, tmp_path / "store", workers=2)
    assert summary["failed"] == {}
    luna, lits, brats = (summary["corpora"][n] for n in ("luna16", "lits2017", "brats2018"))
    assert luna == {
        "volumes": 7, "by_scale": {"0": 28, "1": 14, "2": 14}, "left_out_as_air": 0,
        "modality": "CT",
    }  # fmt: skip
    assert (lits["volumes"], lits["by_scale"]) == (5, {"0": 10, "1": 5, "2": 5})
    assert (brats["volumes"], brats["modality"]) == (16, "MR")  # 4 subjects, 4 sequences each
    assert sum(brats["by_scale"].values()) + brats["left_out_as_air"] == 64
    store = CubeStore(tmp_path / "store", verify=True)
    assert len(store) == 56 + 20 + sum(brats["by_scale"].values())
    assert store.cube(0).shape == (8, 8, 8)
    assert 0 <= store.cube(0).min() < store.cube(0).max() <= 1


def test_the_record_of_a_case_says_where_every_cube_is_from(tmp_path, folders, threads):
    case = cases_of(RECIPE, folders)[0]
    prepare([case], RECIPE, tmp_path / "store")
    record = json.loads((tmp_path / "store" / f"{case.id}.json").read_text())
    assert record["source"] == {
        "corpus": "luna16", "subject": case.subject, "case": case.id, "modality": "CT",
    }  # fmt: skip
    assert [cube["row"] for cube in record["cubes"]] == list(range(8))
    assert [cube["scale_id"] for cube in record["cubes"]] == [0, 0, 0, 0, 1, 1, 2, 2]
    array = np.load(tmp_path / "store" / f"{case.id}.npy")
    assert (array.dtype, array.shape) == (np.uint16, (8, 8, 8, 8))
    shape = (5, 5, 20)  # 10 voxels of 0.5 x 0.5 x 2 mm, at 1 mm
    for cube in record["cubes"]:
        for start, side, limit in zip(cube["start"], cube["side"], shape, strict=True):
            assert 0 <= start < start + side <= limit
    settings = json.loads((tmp_path / "store" / "store.json").read_text())["recipe"]
    assert settings == stage.store_settings(RECIPE)


def test_a_second_call_leaves_every_cube_untouched(tmp_path, folders, threads):
    cases = cases_of(RECIPE, folders)[:6]
    first = prepare(cases[:3], RECIPE, tmp_path / "store")
    before = contents(tmp_path / "store")
    second = prepare(cases, RECIPE, tmp_path / "store")
    after = contents(tmp_path / "store")
    del before["store.json"]
    assert before.items() <= after.items()
    assert first["corpora"]["luna16"]["volumes"] == 3
    assert second["corpora"]["luna16"]["volumes"] == 6
    assert prepare(cases, RECIPE, tmp_path / "store") == second


def test_equal_calls_give_equal_stores_whatever_the_order(tmp_path, folders, threads):
    cases = cases_of(RECIPE, folders)[:4]
    prepare(cases, RECIPE, tmp_path / "one", workers=2)
    prepare(cases[::-1], RECIPE, tmp_path / "two", workers=1)
    assert CubeStore(tmp_path / "one").sha256 == CubeStore(tmp_path / "two").sha256


def test_another_recipe_may_not_go_into_the_same_folder(tmp_path, folders, threads):
    cases = cases_of(RECIPE, folders)[:1]
    prepare(cases, RECIPE, tmp_path / "store")
    other = Recipe(name="other", cubes=CubesConfig(size=(8, 8, 4)))
    with pytest.raises(ConfigError, match="other settings than the recipe other"):
        prepare(cases, other, tmp_path / "store")


def write_recipe(path, corpora):
    path.write_text(
        f"name = 'tiny'\ncorpora = {corpora}\n[cubes]\nsize = [8, 8, 8]\n"
        "scales = [0.25, 0.5, 0.75]\ndefault_counts = [2, 1, 1]\n[cubes.counts]\n"
    )
    return path


def test_a_broken_case_is_listed_and_the_others_are_done(tmp_path, threads, capsys):
    corpus = tiny_corpora.lits2017(tmp_path / "lits")
    recipe = write_recipe(tmp_path / "tiny.toml", '["lits2017"]')
    broken = cases_of(RECIPE, [f"lits2017={corpus}"])[0]
    broken.volume.write_bytes(broken.volume.read_bytes()[:400])
    arguments = ["--recipe", str(recipe), "-o", str(tmp_path / "store"), "--workers", "2"]
    assert stage.main([*arguments, f"lits2017={corpus}"]) == 2
    summary = json.loads(capsys.readouterr().out)
    assert list(summary["failed"]) == [broken.id]
    assert broken.volume.name in summary["failed"][broken.id]
    assert summary["corpora"]["lits2017"]["volumes"] == 4
    assert len(CubeStore(tmp_path / "store", verify=True)) == 16
    repaired = tiny_corpora.lits2017(corpus)
    assert stage.main([*arguments, f"lits2017={repaired}"]) == 0
    assert len(CubeStore(tmp_path / "store", verify=True)) == 20


def test_damage_is_found_and_named(tmp_path, folders, threads):
    case = cases_of(RECIPE, folders)[0]
    prepare([case], RECIPE, tmp_path / "store")
    array = tmp_path / "store" / f"{case.id}.npy"
    data = bytearray(array.read_bytes())
    data[-1] ^= 1
    array.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{case.id}.npy are damaged"):
        CubeStore(tmp_path / "store", verify=True)
    CubeStore(tmp_path / "store")  # hashing 28 GB is for those who ask


def test_what_a_killed_preparation_leaves_behind_is_not_read(tmp_path, folders, threads):
    cases = cases_of(RECIPE, folders)[:2]
    prepare(cases, RECIPE, tmp_path / "store")
    whole = CubeStore(tmp_path / "store").sha256
    half = (tmp_path / "store" / f"{cases[0].id}.json").read_bytes()[:50]
    (tmp_path / "store" / f".0a1b2c.tmp.{cases[0].id}.json").write_bytes(half)
    assert CubeStore(tmp_path / "store", verify=True).sha256 == whole


def test_only_the_training_side_of_the_right_sets_is_cut(tmp_path, folders):
    tested = {case.id for case in evaluation_cases("luna16", tmp_path / "luna16")}
    cases = cases_of(RECIPE, folders)
    assert len(tested) == 3
    assert not tested & {case.id for case in cases}
    with pytest.raises(ConfigError, match="does not use mmwhs"):
        cases_of(RECIPE, [f"mmwhs={tmp_path}"])
    with pytest.raises(ConfigError, match="corpus=folder"):
        cases_of(RECIPE, [str(tmp_path)])


def test_a_process_killed_for_lack_of_memory_is_said_plainly(tmp_path, folders, monkeypatch):
    def die(case, recipe, folder):
        raise concurrent.futures.process.BrokenProcessPool("abruptly")

    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(stage, "prepare_case", die)
    with pytest.raises(TooLargeError, match="fewer --workers"):
        prepare(cases_of(RECIPE, folders)[:2], RECIPE, tmp_path / "store")


@pytest.mark.parametrize("task", ["rotation", "jigsaw"])
def test_the_rivals_train_on_the_training_side_of_a_target_set(tmp_path, task):
    folder = tiny_corpora.mmwhs(tmp_path / "mmwhs")
    rival = Recipe(
        name="rival",
        corpora=("mmwhs", "lits2017"),
        modalities=("MR",),
        objective=ObjectiveConfig(task=task),
    )
    cases = cases_of(rival, [f"mmwhs={folder}"])
    tested = {case.id for case in evaluation_cases("mmwhs", folder)}
    assert len(cases) == 4
    assert {case.modality for case in cases} == {"MR"}
    assert not tested & {case.id for case in cases}
    universal = Recipe(name="universal", corpora=("mmwhs",))
    with pytest.raises(ConfigError, match="uses for pretraining"):
        cases_of(universal, [f"mmwhs={folder}"])
    with pytest.raises(ConfigError, match="uses for fine-tuning"):
        cases_of(rival, [f"lits2017={tmp_path}"])


def test_a_preparation_killed_hard_goes_on_to_the_same_store(tmp_path, threads):
    corpus = tiny_corpora.lits2017(tmp_path / "lits", range(60))
    recipe = write_recipe(tmp_path / "tiny.toml", '["lits2017"]')
    store = tmp_path / "store"
    command = [sys.executable, "-m", "training.prepare", "--recipe", str(recipe), "-o", str(store)]
    process = subprocess.Popen(
        [*command, "--workers", "1", f"lits2017={corpus}"],
        cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and len(list(store.glob("volume*.json"))) < 3:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(CubeStore(store, verify=True)) // 4
    assert done >= 3
    arguments = ["--recipe", str(recipe), "--workers", "1", f"lits2017={corpus}", "-o"]
    assert stage.main([*arguments, str(store)]) == 0
    assert stage.main([*arguments, str(tmp_path / "other")]) == 0
    assert CubeStore(store, verify=True).sha256 == CubeStore(tmp_path / "other").sha256
