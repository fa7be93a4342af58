"""Plans and costs: the published counts, arithmetic by hand, and tables that cannot go stale."""

import itertools
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tiny_corpora
import torch

from training import cost, gpu_check, prepare, pretrain
from training.config import load_recipe
from training.corpora.case import Case
from training.cost_table import README, with_tables
from training.cubes import CubeStore, write_cubes
from training.estimate import Assumptions, cpu_tflops, extrapolate, hours, measured_gpu, read_cost
from training.measure import random_batch, time_steps
from training.plan import UNCOUNTED, preparation_plan, pretraining_plan
from training.state import start_training
from training.workload import (
    cubes_seen,
    expected_sources,
    held_out_cubes,
    memory_bytes,
    network_of,
    state_bytes,
    store_bytes,
    stored_sources,
)
from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.training.engine import Process
from universal_model_hub.volume import Volume

CPU = Process(0, 1, torch.device("cpu"))
TINY = ["model.width=2", "cubes.size=[16, 16, 16]", "objective.scale_hidden=8",
        "objective.discriminator_hidden=8", "optimizer.unet_learning_rate=1e-3",
        "run.batch_size=2"]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# Counts.


def test_the_complete_sets_bring_the_cubes_of_table_1():
    sources = expected_sources(load_recipe("paper"))
    found = {s.corpus: (s.modality, s.subjects, s.volumes, s.by_scale) for s in sources}
    assert found == {
        "luna16": ("CT", 623, 623, (19936, 9968, 9968)),
        "lits2017": ("CT", 111, 111, (7104, 3552, 3552)),
        "brats2018": ("MR", 190, 760, (24320, 12160, 12160)),
        "msd_heart": ("MR", 30, 30, (1920, 960, 960)),
    }
    assert sum(s.cubes for s in sources if s.modality == "CT") == 54080
    assert sum(s.cubes for s in sources if s.modality == "MR") == 52480


def test_the_rivals_sets_are_the_training_sides_of_the_target_tasks():
    sources = expected_sources(load_recipe("rotation"))
    found = [(s.corpus, s.modality, s.volumes) for s in sources]
    assert found == [
        ("brats2018", "MR", 760), ("luna16", "CT", 623), ("mmwhs", "CT", 16), ("mmwhs", "MR", 16),
        ("adni", "MR", 82),
    ]  # fmt: skip
    only_ct = load_recipe("rotation", ['modalities=["CT"]', 'corpora=["mmwhs"]'])
    assert [(s.modality, s.volumes) for s in expected_sources(only_ct)] == [("CT", 16)]


def test_packaged_scans_count_by_their_role():
    recipe = load_recipe("paper", ['corpora=["packaged"]'])
    sources = expected_sources(recipe)
    assert {s.modality for s in sources} == {"CT", "MR"}
    assert all(0 < s.subjects <= s.volumes for s in sources)


def test_held_out_subjects_are_a_share_and_at_least_one():
    sources = expected_sources(load_recipe("paper"))
    # 31 of 623, 6 of 111, 10 of 190 (4 volumes each), 2 of 30
    expected = 31 * 64 + 6 * 128 + 10 * 4 * 64 + 2 * 128
    assert held_out_cubes(sources, 0.05) == expected
    assert held_out_cubes(sources, 0.0) == 0
    assert held_out_cubes(sources[-1:], 0.001) == 128


# The network.


def test_the_papers_u_net_has_the_published_parameters_and_operations():
    network = network_of(load_recipe("paper"))
    unet = ("encoder", "decoder", "restoration head")
    assert sum(network.parts[name].parameters for name in unet) == 19_073_665
    assert sum(network.parts[name].gmac for name in unet) == pytest.approx(122.1, abs=0.05)
    assert network.parts["encoder"].gmac == pytest.approx(16.9, abs=0.05)
    assert network.training_gmac == pytest.approx(3 * sum(p.gmac for p in network.parts.values()))


def test_multiply_adds_of_one_convolution_by_hand():
    network = network_of(load_recipe("paper", TINY))
    voxels = 16**3
    # E: channels 1 2 4 | 4 4 8 | 8 8 16 | 16 16 32, each level an eighth of the voxels before
    pairs = [((1, 2), (2, 4)), ((4, 4), (4, 8)), ((8, 8), (8, 16)), ((16, 16), (16, 32))]
    expected = sum(
        27 * i * o * voxels // 8**level for level, units in enumerate(pairs) for i, o in units
    )
    assert network.parts["encoder"].gmac == pytest.approx(expected / 1e9)
    assert network.parts["restoration head"].gmac == pytest.approx(4 * voxels / 1e9)


@pytest.mark.parametrize(
    ("name", "trained", "running"),
    [
        ("paper", 5, 5),
        ("model_multi", 3, 3),
        ("multi_mial", 4, 4),
        ("multi_sc", 4, 4),
        ("rotation", 2, 2),  # E and its head
        ("jigsaw", 2, 2),
    ],
)
def test_parts_that_are_switched_off_cost_nothing(name, trained, running):
    parts = network_of(load_recipe(name)).parts.values()
    assert sum(part.trained for part in parts) == trained
    assert sum(part.gmac > 0 for part in parts) == running


def test_jigsaw_costs_its_27_padded_tiles():
    jigsaw, rotation = (network_of(load_recipe(name)) for name in ("jigsaw", "rotation"))
    tiles = 27 * 24**3 / 64**3  # 19 voxels, padded to 24
    ratio = jigsaw.parts["encoder"].gmac / rotation.parts["encoder"].gmac
    assert ratio == pytest.approx(tiles)


def test_checkpointing_costs_a_forward_pass_and_saves_activations():
    plain, saving = (
        network_of(load_recipe("paper", [f"model.checkpointing={flag}"]))
        for flag in ("false", "true")
    )
    unet = plain.parts["encoder"].gmac + plain.parts["decoder"].gmac
    assert saving.training_gmac - plain.training_gmac == pytest.approx(unet)
    assert saving.saved_bytes < plain.saved_bytes / 2


def test_the_alternating_game_costs_the_discriminators_own_steps():
    game = 'objective.adversarial="alternating"'
    once, twice = (
        network_of(load_recipe("paper", [game, f"objective.discriminator_steps={n}"]))
        for n in (1, 2)
    )
    step = once.parts["encoder"].gmac + 3 * once.parts["discriminator D"].gmac
    assert twice.training_gmac - once.training_gmac == pytest.approx(step)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_state_counted_is_the_state_that_a_run_holds(name):
    recipe = load_recipe("paper", [*TINY, f"optimizer.name={name}", "run.ema_decay=0.9"])
    training = start_training(recipe, CPU)
    counted = state_bytes(recipe, network_of(recipe))
    slots = {"sgd": 1, "adamw": 2}[name]
    parameters = sum(p.numel() for p in training.model.parameters())
    assert counted == 4 * parameters * (1 + slots + 1)


def test_activations_are_those_that_autograd_keeps():
    recipe = load_recipe("paper", TINY)
    training = start_training(recipe, CPU)
    kept = {}
    owned = {p.data_ptr() for p in training.model.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    batch = random_batch(recipe, torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training.model(batch, 0)
    real = sum(s.nbytes() for key, s in kept.items() if key not in owned)
    counted = 2 * network_of(recipe).saved_bytes  # two cubes
    assert counted == pytest.approx(real, rel=0.02)


def test_memory_falls_with_processes_and_half_precision():
    recipe = load_recipe("paper", ["run.batch_size=8"])
    network = network_of(recipe)
    one, eight = (memory_bytes(recipe, network, n)["activations"] for n in (1, 8))
    assert one == 8 * eight == 8 * network.saved_bytes
    half = load_recipe("paper", ["run.batch_size=8", "run.precision=bfloat16"])
    assert memory_bytes(half, network)["activations"] == one // 2


def test_sizes_and_lengths():
    recipe = load_recipe("paper")
    assert cubes_seen(recipe) == 6_000_000
    assert store_bytes(106_560, recipe) == 106_560 * 64 * 64 * 32 * 2


# Estimates.

MEASURED = {
    "training": [{"width": 8, "gflops": 20.0}, {"width": 8, "gflops": 25.0},
                 {"width": 32, "gflops": 50.0}],
    "preparation": {"normalize_seconds": 1.0, "cut_seconds": 0.8, "shape": [512, 512, 238]},
    "hardware": {"processor": "a processor", "threads": 1},
}  # fmt: skip


def test_the_fastest_rate_of_the_nearest_width_counts():
    assert cpu_tflops(8, MEASURED) == 0.025
    assert cpu_tflops(12, MEASURED) == 0.025
    assert cpu_tflops(32, MEASURED) == 0.05


def test_hours_are_operations_over_rates():
    given = Assumptions(gpu_tflops=10.0, paper_gpu_tflops=2.0, num_gpus=4, gpu_scaling=0.5)
    found = hours(load_recipe("paper"), 36_000, MEASURED, given)
    assert found == {"this_machine": 200.0, "paper_gpu": 5.0, "gpu": 1.0, "gpus": 0.5}


def test_a_hundred_thousand_volumes():
    row = extrapolate(MEASURED, Assumptions())["many_volumes"]
    assert row["cubes"] == 6_400_000
    assert row["store_tb"] == pytest.approx(6.4e6 * 262_144 / 1e12, abs=0.01)
    assert row["passes"] == pytest.approx(6_000_000 / 106_560, abs=0.05)
    assert row["preparation_core_hours"] == 50.0
    paper = next(
        r for r in extrapolate(MEASURED, Assumptions())["recipes"] if r["recipe"] == "paper"
    )
    ratio = row["hours"]["gpu"] / paper["hours"]["gpu"]
    assert ratio == pytest.approx(6_400_000 / 106_560, rel=0.01)


def test_the_committed_estimates_follow_from_the_committed_measurements():
    found = read_cost()
    known = {row["recipe"] for row in found["estimates"]["recipes"]}
    again = extrapolate(found["measured"], Assumptions(**found["estimates"]["assumptions"]))
    again["recipes"] = [row for row in again["recipes"] if row["recipe"] in known]
    assert again == found["estimates"], "run: python -m training.cost --reuse, then --readme"


def test_the_readme_says_what_the_cost_file_says():
    text = README.read_text(encoding="utf-8")
    assert with_tables(text, read_cost()) == text, "run: python -m training.cost --readme"


def test_the_readme_names_only_recipes_and_modules_that_exist():
    text = README.read_text(encoding="utf-8")
    words = text.replace("`", " ").replace(",", " ").split()
    recipes = {b for a, b in itertools.pairwise(words) if a == "--recipe"}
    assert recipes >= {"paper", "smoke", "genesis", "rotation"}
    for name in recipes:
        load_recipe(name)
    root = Path(README).parent.parent
    for module in {b for a, b in itertools.pairwise(words) if a == "-m"}:
        path = root / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_missing_markers_are_said():
    with pytest.raises(ConfigError, match="<!-- published -->"):
        with_tables("no markers", read_cost())


def test_a_missing_or_foreign_cost_file_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"Run python -m training\.cost"):
        read_cost(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ConfigError, match="no cost file"):
        read_cost(tmp_path / "other.json")


def test_reuse_keeps_the_measurements_and_takes_a_measured_gpu(tmp_path, capsys):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(read_cost()))
    assert cost.main(["--reuse", "--gpu-tflops", "30", "-o", str(path)]) == 0
    old = read_cost(path)
    assert cost.main(["--reuse", "--gpu-tflops", "60", "-o", str(path)]) == 0
    capsys.readouterr()
    new = read_cost(path)
    assert new["measured"] == old["measured"]
    ours, theirs = (c["estimates"]["recipes"][0]["hours"]["gpu"] for c in (new, old))
    assert ours == pytest.approx(theirs / 2, rel=1e-3)
    assert cost.main(["--reuse", "-o", str(path)]) == 0
    assert read_cost(path) == new  # the rate that was assumed is kept
    assert cost.main(["--reuse", "-o", str(tmp_path / "none.json")]) == 2


def test_timed_steps_train():
    recipe = load_recipe("paper", TINY)
    seconds, losses = time_steps(recipe, CPU, 3)
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert 0 < losses["restoration"] < 1


# Plans.


def test_a_dry_run_needs_no_data_and_prints_the_plan(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(["--recipe", "paper", "--dry-run"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "luna16     CT      623  19,936   9,968   9,968   39,872",
        "all        CT      734                           54,080",
        "all              1,524                          106,560",
        "1,000,000 steps: 6,000,000 cubes seen",
        "6 cubes a step, 16,832 steps an epoch",
        "U-Net               19,073,665         122.1",
        "training: 534.8 GMAC a cube",
        "store of cubes, uint16: 27.9 GB",
        "Memory of one process",
        "--recipe paper --cubes STORE",
        "assumed:",
    ):
        assert expected in text
    assert list(tmp_path.iterdir()) == []


def test_a_run_still_needs_cubes(capsys):
    with pytest.raises(SystemExit) as stopped:
        pretrain.main(["--recipe", "paper"])
    assert stopped.value.code == 2
    assert "--cubes is needed" in capsys.readouterr().err
    assert pretrain.main(["--recipe", "paper", "--dry-run", "--cubes", "/nowhere"]) == 2


def small_store(folder, recipe):
    folder.mkdir()
    for number, (corpus, modality) in enumerate([("luna16", "CT"), ("luna16", "CT"),
                                                 ("msd_heart", "MR")]):  # fmt: skip
        case = Case(corpus=corpus, subject=f"s{number}", id=f"c{number}", modality=modality,
                    volume=Path("none"))  # fmt: skip
        array = np.random.default_rng(number).integers(-900 if modality == "CT" else 0, 900,
                                                       (30, 30, 30), dtype=np.int16)  # fmt: skip
        write_cubes(case, Volume(array, np.eye(4)), recipe, folder)
    return CubeStore(folder)


def test_a_plan_with_a_store_counts_what_is_in_it(tmp_path):
    recipe = load_recipe(
        "paper",
        [*TINY, "cubes.counts.luna16=[4, 2, 2]", "cubes.counts.msd_heart=[2, 1, 1]"],
    )
    store = small_store(tmp_path / "store", recipe)
    found = {s.corpus: (s.subjects, s.volumes, s.by_scale) for s in stored_sources(store, recipe)}
    assert found == {"luna16": (2, 2, (8, 4, 4)), "msd_heart": (1, 1, (2, 1, 1))}
    text = pretraining_plan(recipe, "paper", store)
    # one of the two CT subjects validates, the only MR one trains
    assert "training on about 12 cubes, validating on subjects with 8 " in text
    assert "Cubes of the store" in text
    assert "other settings" not in text


def test_a_store_of_other_settings_is_pointed_out(tmp_path, monkeypatch):
    recipe = load_recipe("paper", [*TINY, "cubes.counts.luna16=[4, 2, 2]"])
    store = small_store(tmp_path / "store", recipe)
    prepare.check_same_recipe(tmp_path / "store", recipe)
    assert "NOTE" not in pretraining_plan(recipe, "paper", store)
    other = load_recipe("paper", [*TINY, "run.seed=1"])
    assert "cut by other settings: cubes, seed" in pretraining_plan(other, "paper", store)


def test_the_plan_of_a_rival_says_that_every_target_set_has_its_own_run():
    text = pretraining_plan(load_recipe("rotation"), "rotation")
    assert "one store and run for each of brats2018, luna16, mmwhs, adni" in text
    assert "64 x 64 x 64" in text
    assert "not run" in text


def test_the_plan_of_a_preparation_counts_cases_and_disk(tmp_path, capsys):
    folder = tiny_corpora.luna16(tmp_path / "luna16")
    store = tmp_path / "store"
    arguments = ["--recipe", "paper", "--dry-run", "-o", str(store), f"luna16={folder}"]
    assert prepare.main(arguments) == 0
    text = capsys.readouterr().out
    assert "luna16 CT 7 224 112 112 448" in " ".join(text.split())
    assert "117 MB" in text
    assert not store.exists()


def test_a_full_disk_is_said_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=5))
    cases = prepare.cases_of(
        load_recipe("paper"), [f"luna16={tiny_corpora.luna16(tmp_path / 'luna16')}"]
    )
    text = preparation_plan(load_recipe("paper"), cases, tmp_path / "new" / "store", 2)
    assert "NOT ENOUGH" in text


def test_what_is_not_counted_is_about_what_was_measured():
    rows = [r for r in read_cost()["measured"]["training"] if r["precision"] == "float32"]
    assert rows
    for row in rows:
        recipe = load_recipe(
            "paper", [f"model.width={row['width']}", f"run.batch_size={row['batch']}",
                      f"run.precision={row['precision']}"]
        )  # fmt: skip
        counted = sum(memory_bytes(recipe, network_of(recipe)).values()) / 2**20
        libraries = 500  # MiB, a process that has imported PyTorch and nothing else, generously
        assert counted < row["peak_memory_mib"] < UNCOUNTED * counted + libraries


# The GPU check, as far as a processor can go.


def test_gpu_check_says_in_one_line_that_there_is_no_gpu():
    done = subprocess.run(
        [sys.executable, "-m", "training.gpu_check"],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "gpu-check: PyTorch sees no CUDA GPU here. Nothing was checked."
    ]


def test_gpu_check_refuses_wrong_arguments(capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(["--steps", "many"])
    assert stopped.value.code == 2


@pytest.mark.filterwarnings("ignore:This processor has no bfloat16")
def test_every_check_runs_on_a_processor_and_a_failure_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "NETWORKS", {"tiny": (2, 2)})
    monkeypatch.setattr(gpu_check, "SAFE_RATE", "cubes.size=[24, 24, 24]")

    def steps(recipe, device, number):
        if recipe.run.compile:
            raise RuntimeError("no compiler")
        return real(recipe, device, number)

    real = gpu_check.check_steps
    monkeypatch.setattr(gpu_check, "check_steps", steps)
    result = gpu_check.run_checks(torch.device("cpu"), 1)
    rows = {(row["precision"], row["compiled"]): row for row in result["training"]}
    assert rows["float32", False]["passed"]
    assert rows["float32", False]["cubes_per_second"] > 0
    assert rows["bfloat16", False]["passed"]
    assert rows["bfloat16", True] == {
        "network": "tiny", "precision": "bfloat16", "compiled": True, "passed": False,
        "error": "RuntimeError: no compiler",
    }  # fmt: skip
    assert "needs a GPU" in rows["float16", False]["error"]
    assert result["resume"]["step"] == 8
    assert result["predict"] == {"passed": True, "largest_difference": 0.0, "tolerance": 1e-3}
    assert not result["passed"]
    assert math.isfinite(rows["float32", False]["tflops"])
    json.dumps(result)


def test_a_rate_measured_on_a_gpu_replaces_the_assumed_one(tmp_path):
    rows = [
        {"network": name, "precision": precision, "compiled": compiled, "tflops": tflops}
        for name, precision, compiled, tflops in (
            ("compact", "bfloat16", False, 4.04),
            ("paper", "float32", False, 5.0),
            ("paper", "bfloat16", False, 20.0),
            ("paper", "bfloat16", True, 30.0),
        )
    ]
    path = tmp_path / "gpu_check.json"
    path.write_text(json.dumps({"hardware": {"gpu": "A chip"}, "training": rows}))
    given = Assumptions(**measured_gpu(path))
    assert (given.gpu_tflops, given.gpu_narrow_tflops) == (20.0, 4.0)
    assert "A chip" in given.notes()[0]
    path.write_text(json.dumps({"hardware": {"gpu": "A chip"}, "training": rows[1:]}))
    with pytest.raises(ConfigError, match="gpu-check"):
        measured_gpu(path)
