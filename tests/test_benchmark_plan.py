"""Plans of the benchmark: which runs there are, how they are named, what stops before training."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_corpora
import torch

from training.benchmark.bench import Bench, make_bench
from training.benchmark.dry_run import describe, missing_lines, table_rows, timed_tflops
from training.benchmark.plan import PhantomPlan, Run, load_plan
from training.benchmark.pool import pick_devices
from training.benchmark.rows import ROWS, build_network, get_row
from training.benchmark.run import main
from training.benchmark.sources import (
    corpus_folders,
    fingerprint_files,
    open_source,
    refuse_test_cases,
    stored_split,
    write_phantoms,
)
from training.benchmark.spent import finished_seconds
from training.benchmark.stages import say_rounding
from training.benchmark.tasks import TASKS
from training.config import load_recipe
from training.corpora import get_corpus
from training.corpora.phantom.corpus import MARKER
from training.corpora.splits import split
from training.publish import recipe_sha256
from training.published import PUBLISHED
from universal_model_hub.errors import CheckpointError, ConfigError, WeightsError
from universal_model_hub.files import write_json
from universal_model_hub.fit.training.transfer import build_model
from universal_model_hub.saving import save_pretrained

ROOT = Path(__file__).parent.parent
ONE_TABLE = (
    'tables={table_3={rows=["scratch"], tasks=["las_ct", "lnc"], trials=2}, '
    'table_5={rows=["scratch"], tasks=["las_ct"], noise=[0.0, 4.0], trials=1}}'
)


@pytest.fixture
def bench(tmp_path) -> Bench:
    """A plan of five runs on hand-made sets."""
    plan = load_plan("benchmark_smoke", [ONE_TABLE])
    sources = {}
    for name in ("luna16", "mmwhs"):
        tiny_corpora.WRITERS[name](tmp_path / name)
        (tmp_path / "work" / "checked").mkdir(parents=True, exist_ok=True)
        sources[name] = open_source(name, tmp_path / name, tmp_path / "work")
    return make_bench(plan, sources, tmp_path / "work", tmp_path / "out")


@pytest.mark.parametrize("name", ["benchmark_paper", "benchmark_mini"])
def test_plans_have_every_row_and_task_of_the_papers_tables(name):
    plan = load_plan(name)
    assert set(plan.tables["table_3"].rows) | set(plan.tables["table_4"].rows) == set(ROWS)
    assert plan.tables["table_3"].tasks == plan.tables["table_4"].tasks == tuple(TASKS)
    assert plan.tables["figure_5"].shares == (0.1, 0.3, 0.7, 1.0)
    assert plan.tables["table_5"].tasks == ("bts", "las_ct", "las_mr")
    trials = [plan.tables[table].trials for table in ("table_3", "table_4")]
    assert trials == [5, 5]
    for task in plan.tasks:
        settings = plan.settings(Run(3, task, "scratch"))
        assert (settings.learning_rate, settings.weight_decay, settings.seed) == (1e-3, 0.0, 3)
        assert (settings.train, settings.loss) == ("all", "dice")
        assert settings.head_steps == (0 if plan.name == "benchmark_paper" else 30)
        assert settings.flip_axes == (0, 1, 2)
        assert settings.transpose
        assert not settings.intensities


@pytest.mark.parametrize("name", ["benchmark_mini", "benchmark_smoke"])
def test_a_tasks_own_settings_are_laid_over_those_of_all(name):
    plan = load_plan(name)
    steps = {task: plan.settings(Run(0, task, "scratch")).steps for task in plan.tasks}
    if name == "benchmark_smoke":
        assert set(steps.values()) == {4}
        return
    assert steps == {"bts": 600, "lnc": 800, "las_ct": 600, "las_mr": 900, "adc": 400}
    assert plan.settings(Run(0, "las_mr", "scratch")).cube == (32, 32, 32)
    spacings = {task: plan.task_preprocessing(task).to_json()["spacing"][0] for task in plan.tasks}
    assert spacings == {"bts": 3, "lnc": 3, "las_ct": 4, "las_mr": 4, "adc": 4}


def test_a_network_may_have_a_precision_of_its_own():
    plan = load_plan("benchmark_mini")
    assert plan.settings(Run(0, "bts", "i3d")).precision == "float32"
    assert plan.settings(Run(0, "bts", "scratch")).precision == "bfloat16"
    assert plan.networks["unet3d"] == {"width": 8}
    with pytest.raises(ConfigError, match="precision"):
        load_plan("benchmark_mini", ['networks.i3d.precision="int8"'])


@pytest.mark.parametrize("row", ["i3d", "med3d"])
def test_a_cube_does_not_train_all_weights_of_these_networks(row):
    # One pass over a larger scan would use them: hence the windows of the training cube.
    plan = load_plan("benchmark_mini")
    arguments = plan.networks[get_row(row).network]
    model = build_network(get_row(row), TASKS["bts"], arguments, None, 0)
    cube = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    model(cube).square().sum().backward()
    kernels = [p.grad for p in model.parameters() if p.ndim == 5 and p.grad is not None]
    assert any((grad.abs().sum(dim=(0, 1)) == 0).any() for grad in kernels)


def test_an_overlap_leaves_a_step_to_the_next_window():
    assert load_plan("benchmark_mini").overlap == 0.25
    assert load_plan("benchmark_paper").overlap == 0.5
    with pytest.raises(ConfigError, match="overlap from 0 to below 1"):
        load_plan("benchmark_mini", ["overlap=1.0"])


def test_bfloat16_that_a_processor_rounds_from_float32_is_announced(monkeypatch, capsys):
    monkeypatch.setattr("universal_model_hub.devices.cpu_has_bfloat16", lambda: False)
    runs = ['networks.unet3d.precision="float32"']
    pretrainings = ['pretraining.run.precision="float32"']
    for settings in ([], runs, pretrainings):
        say_rounding(load_plan("benchmark_mini", settings), ["cpu"])
        assert "this processor has no bfloat16 (no AVX-512)" in capsys.readouterr().err
    say_rounding(load_plan("benchmark_mini", [*runs, *pretrainings]), ["cpu"])
    say_rounding(load_plan("benchmark_mini"), ["cuda:0"])
    say_rounding(load_plan("benchmark_smoke"), ["cpu"])
    assert capsys.readouterr().err == ""


def test_phantoms_that_round_otherwise_are_one_set_and_their_own_hash_is_kept(tmp_path):
    folder = tiny_corpora.mmwhs(tmp_path / "mmwhs")
    (folder / MARKER).write_text("synthetic")
    files = open_source("mmwhs", folder, tmp_path).sha256
    known = PhantomPlan(subjects={}, known={"mmwhs": ("canonical", files)})
    source = open_source("mmwhs", folder, tmp_path, known)
    assert (source.sha256, source.files_sha256) == ("canonical", files)
    other = PhantomPlan(subjects={}, known={"mmwhs": ("canonical", "?"), "adni": ("x", files)})
    assert open_source("mmwhs", folder, tmp_path, other).sha256 == files
    (folder / MARKER).unlink()  # a real set is what its files are
    assert open_source("mmwhs", folder, tmp_path, known).sha256 == files


def test_the_mini_plan_knows_the_phantoms_that_its_results_were_made_of():
    stored = json.loads((ROOT / "results/benchmark_mini/plan.json").read_text())["data"]
    known = load_plan("benchmark_mini").phantoms.known
    assert {corpus: hashes[0] for corpus, hashes in known.items()} == stored


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["mmwhs", "msd_heart"])
def test_phantoms_written_here_are_ones_that_the_mini_plan_knows(tmp_path, corpus):
    plan = load_plan("benchmark_mini").phantoms
    write_phantoms(plan, corpus, tmp_path / corpus, 2)
    cases = get_corpus(corpus).cases(tmp_path / corpus)
    found = fingerprint_files(tmp_path / corpus, cases, tmp_path / "files.json")
    assert found in plan.known[corpus]


def test_a_run_that_several_tables_need_is_done_once():
    plan = load_plan("benchmark_mini")
    runs = plan.runs()
    assert len(runs) == len(set(runs))
    rows = {row[0]: row for row in table_rows(plan)}
    assert rows["figure_4"][-1] == "0"
    # Table III: 8 rows can be trained here; IV adds 5 rows, Fig. 5 three shares of two rows, V all.
    assert [rows[t][-1] for t in ("table_3", "table_4", "figure_5", "table_5")] == [
        "200", "125", "90", "27"
    ]  # fmt: skip
    assert rows["all"][-1] == str(len(runs)) == "442"


def test_rows_without_weights_are_planned_only_when_someone_brings_them(tmp_path):
    plan = load_plan("benchmark_paper")
    assert plan.missing == {"i3d_pretrained", "dense_vnet_pretrained", "med3d_pretrained"}
    assert not any(run.row in plan.missing for run in plan.runs())
    assert "i3d_pretrained: weights not available" in "\n".join(missing_lines(plan))
    brought = load_plan("benchmark_paper", [f'rows.i3d.weights="{tmp_path}"'])
    assert sum(run.row == "i3d_pretrained" for run in brought.runs()) == 25
    with pytest.raises(ConfigError, match=r"weights for the rows .*, got genesis"):
        load_plan("benchmark_paper", ['rows.genesis.weights="x"'])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tabels.x=1", "got tabels"),
        ('tables.table_3.rows=["scrach"]', "Expected a row of scratch"),
        ('tables.table_3.tasks=["las"]', "Expected a task of bts"),
        ("tables.figure_5.shares=[0.0]", "shares above 0"),
        ("tables.figure_5.shares=[]", "shares above 0"),
        ("tables.table_5.noise=[]", r"noise from 0 mm \(0.0: none\)"),
        ('tables.table_5.tasks=["lnc"]', "segmentation tasks where labels are noisy, got lnc"),
        ("finetune.seed=1", "the number of the trial"),
        ("finetune.stepps=1", "unknown key stepps"),
        ("pretraining.run.stepps=1", "unknown key stepps"),
        ("phantoms.subjects={luna16=3}", "phantoms.subjects of lits2017"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_its_file(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_plan("benchmark_smoke", [override])
    assert "benchmark_smoke.toml" in str(caught.value)


def test_pretraining_rows_use_the_recipes_of_the_published_rows():
    published = {row.recipe for row in PUBLISHED if row.recipe}
    assert {row.recipe for row in ROWS.values() if row.recipe} == published
    plan = load_plan("benchmark_paper")
    for row in ("genesis", "model_ct", "universal"):
        assert plan.recipe(row) == load_recipe(get_row(row).recipe)  # the paper plan changes none
    rotation = plan.recipe("rotation", "las_mr")
    assert (rotation.corpora, rotation.modalities) == (("mmwhs",), ("MR",))
    mini = load_plan("benchmark_mini").recipe("genesis")
    assert (mini.preprocessing.spacing, mini.cubes.scales) == (None, (1.0,))
    assert mini.objective.modality_weight == 0  # what makes the recipe stays


def test_the_name_of_a_run_follows_everything_that_decides_it_and_no_table(bench):
    run = Run(0, "las_ct", "scratch")
    others = [replace(run, trial=1), replace(run, share=0.5), replace(run, noise=4.0),
              replace(run, task="lnc")]  # fmt: skip
    longer = load_plan("benchmark_smoke", [ONE_TABLE, "finetune.steps=5"])
    wider = load_plan("benchmark_smoke", [ONE_TABLE, "networks.unet3d.width=6"])
    keys = [bench.key(run), *(bench.key(other) for other in others)]
    keys += [replace(bench, plan=plan).key(run) for plan in (longer, wider)]
    assert len(set(keys)) == len(keys)
    tables = ONE_TABLE.replace("table_3", "another").replace("trials=2", "trials=1")
    renamed = load_plan("benchmark_smoke", [tables, 'title="Another"'])
    assert replace(bench, plan=renamed).key(run) == bench.key(run)
    assert bench.name(run) == f"las_ct-scratch-1-0-0-{bench.key(run)[:12]}"


def test_a_result_counts_only_under_its_own_configuration(bench):
    run = Run(0, "las_ct", "scratch")
    path = bench.result_file(run)
    path.parent.mkdir(parents=True)
    assert not bench.is_finished(run)
    write_json(path, {"key": "of another version"})
    assert not bench.is_finished(run)
    write_json(path, {"key": bench.key(run)})
    assert bench.is_finished(run)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=path.name):
        bench.is_finished(run)


def test_devices_are_one_a_process():
    assert pick_devices("cpu", 3) == ["cpu"] * 3


def test_a_missing_set_and_another_layout_stop_with_their_folder(tmp_path):
    paper = load_plan("benchmark_paper")
    given = [f"{name}={tmp_path}" for name in ("luna16", "lits2017", "brats2018", "msd_heart")]
    with pytest.raises(ConfigError, match="got none of mmwhs, adni"):
        corpus_folders(paper, given, tmp_path)
    with pytest.raises(ConfigError, match="corpus=folder with a corpus out of luna16"):
        corpus_folders(paper, ["kits=x"], tmp_path)
    with pytest.raises(ConfigError, match="nowhere"):
        open_source("mmwhs", tmp_path / "nowhere", tmp_path)
    with pytest.raises(ConfigError, match="MMWHS layout"):
        open_source("mmwhs", tmp_path, tmp_path)


def test_a_refused_set_leaves_no_output(tmp_path, capsys):
    tiny_corpora.luna16(tmp_path / "luna16")
    broken_label(tiny_corpora.mmwhs(tmp_path / "mmwhs"))
    out, work = tmp_path / "out", tmp_path / "work"
    sets = [f"{name}={tmp_path / name}" for name in ("luna16", "mmwhs")]
    options = ["--plan", "benchmark_smoke", "--set", ONE_TABLE, "-o", str(out)]
    assert main([*options, "--work", str(work), *sets]) == 2
    assert "ct_train_1002_label.nii.gz" in capsys.readouterr().err
    assert not out.exists()
    assert [path.name for path in work.iterdir()] == ["checked"]


def broken_nan(folder):
    array = tiny_corpora.mr(0).astype(np.float32)
    array[3, 3, 3] = np.nan
    tiny_corpora.nifti(folder / "mr_train" / "mr_train_1003_image.nii.gz", array)
    return "mr_train_1003_image.nii.gz"


def broken_label(folder):
    tiny_corpora.nifti(
        folder / "ct_train" / "ct_train_1002_label.nii.gz", tiny_corpora.labels(420, 77)
    )
    return "ct_train_1002_label.nii.gz"


def broken_grid(folder):
    affine = tiny_corpora.AFFINE @ np.diag([1, 1, 2, 1])
    tiny_corpora.nifti(
        folder / "ct_train" / "ct_train_1001_label.nii.gz", tiny_corpora.labels(420), affine
    )
    return "ct_train_1001_label.nii.gz"


def broken_file(folder):
    (folder / "ct_train" / "ct_train_1004_image.nii.gz").write_bytes(b"no scan")
    return "ct_train_1004_image.nii.gz"


def no_label(folder):
    (folder / "ct_train" / "ct_train_1005_label.nii.gz").unlink()
    return "ct_train_1005"


@pytest.mark.parametrize("damage", [broken_nan, broken_label, broken_grid, broken_file, no_label])
def test_a_damaged_file_stops_before_training_and_is_named(tmp_path, damage):
    name = damage(tiny_corpora.mmwhs(tmp_path / "mmwhs"))
    (tmp_path / "checked").mkdir()
    with pytest.raises(ConfigError, match=name):
        open_source("mmwhs", tmp_path / "mmwhs", tmp_path)
    noted = {path.name for path in (tmp_path / "checked").iterdir()}
    assert noted <= {"mmwhs-files.json"}  # hashes, and nothing that says it is sound


def test_a_series_in_two_subsets_stops_with_its_file(tmp_path):
    tiny_corpora.luna16(tmp_path / "luna16")
    tiny_corpora.mhd(tmp_path / "luna16" / "subset9" / "1.2.0.mhd", tiny_corpora.ct(0))
    with pytest.raises(ConfigError, match=r"1\.2\.0\.mhd: The series is in subset0 and again"):
        open_source("luna16", tmp_path / "luna16", tmp_path)


def test_a_set_is_hashed_by_content_and_only_when_it_changed(tmp_path):
    folder = tiny_corpora.mmwhs(tmp_path / "mmwhs", 2)
    cases = get_corpus("mmwhs").cases(folder)
    cache = tmp_path / "files.json"
    first = fingerprint_files(folder, cases, cache)
    known = json.loads(cache.read_text())
    assert len(known) == 8
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert fingerprint_files(moved, get_corpus("mmwhs").cases(moved), tmp_path / "b") == first
    moved.rename(folder)
    tiny_corpora.nifti(cases[0].volume, tiny_corpora.ct(99))
    assert fingerprint_files(folder, cases, cache) != first


def test_voxels_beside_a_header_count_whatever_their_file_is_called(tmp_path):
    folder = tiny_corpora.luna16(tmp_path / "luna16")
    header = get_corpus("luna16").cases(folder)[0].volume
    header.with_suffix(".raw").rename(voxels := header.with_name("voxels.bin"))
    header.write_text(header.read_text().replace(header.with_suffix(".raw").name, voxels.name))
    cases = get_corpus("luna16").cases(folder)
    first = fingerprint_files(folder, cases, tmp_path / "a")
    assert fingerprint_files(folder, cases, tmp_path / "b") == first
    content = bytearray(voxels.read_bytes())
    content[0] ^= 1
    voxels.write_bytes(content)
    assert fingerprint_files(folder, cases, tmp_path / "c") != first


def test_a_split_is_stored_and_another_or_a_mixed_one_is_refused(tmp_path):
    cases = get_corpus("mmwhs").cases(tiny_corpora.mmwhs(tmp_path / "mmwhs"))
    parts, path = split("mmwhs", cases), tmp_path / "splits" / "mmwhs.json"
    assert stored_split(parts, path) == stored_split(parts, path) == parts
    with pytest.raises(ConfigError, match="Choose another --output"):
        stored_split(split("mmwhs", cases[:-2]), path)
    record = json.loads(path.read_text())
    write_json(path, {**record, "test": [*record["test"], record["train"][0]]})
    with pytest.raises(ConfigError, match=f"{path}, got {record['train'][0]} on two"):
        stored_split(parts, path)
    write_json(path, {**record, "train": record["train"][1:]})
    with pytest.raises(ConfigError, match=f"{path}.*changed by hand"):
        stored_split(parts, path)


def test_pretraining_never_sees_a_test_case(bench):
    source = bench.sources["mmwhs"]
    refuse_test_cases(source.parts.of(source.cases, "train"), bench.sources)
    with pytest.raises(ConfigError, match=source.parts.test[0]):
        refuse_test_cases(source.cases, bench.sources)


def test_weights_of_another_network_are_refused_with_their_folder(tmp_path):
    folder = tmp_path / "unet"
    save_pretrained(build_model(None, num_classes=2, arguments={"width": 2}), folder,
                    license="apache-2.0", head_trained=True)  # fmt: skip
    with pytest.raises(WeightsError, match=f"Expected weights of i3d .*{folder}.* of unet3d"):
        build_network(get_row("i3d_pretrained"), TASKS["bts"], {}, folder, 0)
    same = [build_network(get_row("universal"), TASKS["bts"], {}, folder, s) for s in (0, 0, 1)]
    assert same[0].head.weight.equal(same[1].head.weight)
    assert not same[0].head.weight.equal(same[2].head.weight)


def test_a_dry_run_counts_runs_and_says_where_its_hours_come_from(tmp_path):
    plan = load_plan("benchmark_smoke", [ONE_TABLE])
    text = describe(plan, None)
    total = next(line for line in text.splitlines() if line.startswith("  all "))
    assert total.split() == ["all", "5"]
    assert "0 of 2 pairs of network and task: seconds of finished runs" in text
    assert "a short timing of one core" in text
    runs = tmp_path / "runs"
    runs.mkdir()
    for task, seconds in (("las_ct", 7200.0), ("lnc", 3600.0)):
        result = {"network": {"name": "unet3d"}, "task": task, "steps": 4, "seconds": seconds,
                  "validation_seconds": 0.0, "test_seconds": 0.0}  # fmt: skip
        write_json(runs / f"{task}.json", result)
    assert finished_seconds(tmp_path) == {
        ("unet3d", "las_ct", 4): 7200.0, ("unet3d", "lnc", 4): 3600.0
    }  # fmt: skip
    measured = describe(plan, tmp_path)
    assert "2 of 2 pairs" in measured
    assert "short timing" not in measured
    rows = {line.split()[0]: line.split() for line in measured.split("Hours")[1].splitlines()
            if line.strip()}  # fmt: skip
    assert rows["las_ct"][1:3] == ["3", "6.0"]  # two clean trials and a noisy one, two hours each
    assert rows["lnc"][1:3] == ["2", "2.0"]


@pytest.mark.parametrize(
    ("precision", "batch_size", "timed"),
    [
        ("bfloat16", 6, ("bfloat16", 2)),
        ("float32", 1, ("float32", 1)),
        ("float16", 2, ("float32", 2)),
    ],
)
def test_the_short_timing_trains_as_the_plan_does(precision, batch_size, timed, monkeypatch):
    seen = []

    def recorded(device, precision):
        seen.append(precision)
        return contextlib.nullcontext()

    monkeypatch.setattr("training.benchmark.dry_run.autocast", recorded)
    model = torch.nn.Conv3d(1, 1, 1)
    model.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    settings = load_plan("benchmark_smoke", [ONE_TABLE]).tasks["lnc"].settings
    given = replace(settings, precision=precision, batch_size=batch_size)
    assert timed_tflops(model.train(False), given) > 0
    assert set(seen) == set(timed)


def test_a_dry_run_takes_the_hours_of_pre_trainings_that_are_done(tmp_path):
    table = 'tables={table_3={rows=["universal"], tasks=["lnc"], trials=1}}'
    plan = load_plan("benchmark_smoke", [table])
    assert "hours of 0 that are done, of 1 operations" in describe(plan, None)
    recipe = plan.recipe("universal", "lnc")
    done = {"recipe_sha256": recipe_sha256(recipe), "result": {"hours": 12.5}}
    others = {"genesis": {**done, "recipe_sha256": "f" * 64}, "model_ct": {"recipe_sha256": "e"}}
    write_json(tmp_path / "pretraining.json", {"universal": done, **others})
    text = describe(plan, tmp_path)
    assert "hours of 1 that are done, of 0 operations" in text
    row = next(line for line in text.splitlines() if line.startswith("  pre-training  "))
    assert row.split()[1:3] == ["1", "12.5"]
    (tmp_path / "pretraining.json").write_text('{"universal": {"result": {}}}')
    with pytest.raises(ConfigError, match=r"pretraining\.json"):
        describe(plan, tmp_path)


def test_the_command_ends_with_2_and_one_line_where_the_input_is_at_fault(tmp_path, capsys):
    code = main(["--plan", "benchmark_paper", "-o", str(tmp_path), f"luna16={tmp_path}"])
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("benchmark: error: Expected a folder of each data set")
    assert main(["--plan", "benchmark_none", "-o", str(tmp_path)]) == 2
    assert main(["--plan", "benchmark_smoke"]) == 2
