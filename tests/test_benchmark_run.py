"""The benchmark at work: runs on small real files, the pool, the whole command."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny_corpora
import torch

from training.benchmark.bench import Bench, make_bench
from training.benchmark.logs import logged
from training.benchmark.plan import Run, load_plan
from training.benchmark.pool import KILLED, open_pool
from training.benchmark.pretraining import Pretraining, run_pretraining
from training.benchmark.rows import build_network, get_row
from training.benchmark.sources import open_source
from training.benchmark.stages import open_bench
from training.benchmark.tasks import TASKS
from training.benchmark.tasks_data import prepare_case
from training.benchmark.tasks_training import open_training
from training.benchmark.trial import Curve, Trial, network_facts, run_trial
from training.config import load_recipe
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json

ROOT = Path(__file__).parent.parent
CORPORA = ("luna16", "brats2018", "mmwhs", "adni")
SMALL = (
    'tables={table_3={rows=["scratch"], trials=1}, '
    'table_5={rows=["scratch"], tasks=["las_ct"], noise=[2.0], trials=1}}',
    'preprocessing.spacing="native"',
    "tasks.las_ct={}",  # on the grid of the others
    "tasks.adc.spacing=[1, 1, 1]",
    "finetune.cube=[8, 8, 8]",
    "tasks.adc.finetune.cube=[8, 8, 24]",
    "tasks.lnc.finetune.cube=[8, 8, 8]",
    "networks.unet3d.width=2",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    """Five tasks on hand-made sets in the real layouts, prepared."""
    root = tmp_path_factory.mktemp("bench")
    plan = load_plan("benchmark_smoke", SMALL)
    work, out = root / "work", root / "out"
    for folder in (work / "checked", out / "runs", out / "logs", out / "failed", out / "examples"):
        folder.mkdir(parents=True)
    sources = {}
    for name in CORPORA:
        tiny_corpora.WRITERS[name](root / name)
        sources[name] = open_source(name, root / name, work)
    made = make_bench(plan, sources, work, out)
    for name in plan.tasks:
        sides = made.source(name).sides(TASKS[name])
        made.prepared(name).mkdir(parents=True)
        cases = [*sides.train, *sides.validation, *(sides.test if name == "lnc" else ())]
        for case in cases:
            prepare_case(TASKS[name], case, plan.task_preprocessing(name), made.prepared(name))
    return made


def result(bench: Bench, run: Run) -> dict:
    run_trial(Trial(bench, run), "cpu")
    return parse_json(bench.result_file(run).read_bytes())


@pytest.mark.parametrize("task", TASKS)
def test_a_run_writes_a_result_that_says_how_it_came_about(bench, task):
    run = Run(0, task, "scratch")
    found = result(bench, run)
    assert found["key"] == bench.key(run)
    assert found["config"] == bench.config(run)
    assert (found["row"], found["task"], found["trial"]) == ("scratch", task, 0)
    assert found["steps"] == found["config"]["finetune"]["steps"] == 4
    assert [point["step"] for point in found["curve"]] == [2, 4]
    assert all(0 <= point["validation"] <= 1 for point in found["curve"])
    assert len(found["losses"]) == 4
    assert found["network"]["parameters"] > 1000
    assert found["network"]["gmac"] > 0
    assert found["pretraining"] is None
    sides = bench.source(task).sides(TASKS[task])
    assert {case["subject"] for case in found["cases"]} == {case.subject for case in sides.test}
    if TASKS[task].kind == "segmentation":
        assert found["metrics"]["dice"] == pytest.approx(
            np.mean([case["dice"] for case in found["cases"]])
        )
        picture = (bench.out / "examples" / f"{task}-scratch.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
    else:
        assert 0 <= found["metrics"]["auc"] <= 1
        assert {case["target"] for case in found["cases"]} == {0, 1}
    assert (bench.out / found["log"]).is_file()
    assert not (bench.work / "trials" / bench.name(run)).exists()


def test_a_finished_run_is_left_alone_and_done_again_it_is_the_same(bench):
    run = Run(0, "las_ct", "scratch")
    first = result(bench, run)
    written = bench.result_file(run).stat().st_mtime_ns
    assert result(bench, run) == first
    assert bench.result_file(run).stat().st_mtime_ns == written
    bench.result_file(run).unlink()
    again = result(bench, run)
    for key in ("metrics", "cases", "losses", "curve"):
        assert again[key] == first[key]


def test_trials_differ_in_start_and_order_and_not_in_their_test_cases(bench):
    one, other = (result(bench, Run(trial, "las_mr", "scratch")) for trial in (0, 1))
    assert one["losses"] != other["losses"]
    assert [case["id"] for case in one["cases"]] == [case["id"] for case in other["cases"]]


def test_noisy_labels_are_measured_and_touch_the_training_alone(bench):
    noisy, clean = (Run(0, "las_ct", "scratch", noise=noise) for noise in (2.0, 0.0))
    training = open_training(bench, noisy, torch.device("cpu"))
    said = training.facts["label_noise"]
    assert said["amplitude_mm"] == 2.0
    assert said["cases"] == 3
    assert 0 < said["dice_least"] <= said["dice_mean"] < 1
    untouched = open_training(bench, clean, torch.device("cpu"))
    assert "label_noise" not in untouched.facts
    model = build_network(get_row("scratch"), TASKS["las_ct"], {"width": 2}, None, 0)
    model.train(False)
    assert training.validate(model) == untouched.validate(model)
    assert training.test(model)[0] == untouched.test(model)[0]


def test_a_run_that_cannot_be_fails_with_its_reason_in_the_log(bench):
    run = Run(7, "bts", "scratch")
    case = bench.source("bts").sides(TASKS["bts"]).train[0]
    record = bench.prepared("bts") / f"{case.id}.json"
    content = record.read_bytes()
    record.write_text("{}")
    try:
        with pytest.raises(OSError, match=case.id):
            run_trial(Trial(bench, run), "cpu")
    finally:
        record.write_bytes(content)
    told = (bench.out / "logs" / f"{bench.name(run)}.log").read_text()
    assert case.id in told
    assert 'File "training/benchmark/trial.py"' in told
    assert str(ROOT / "training") not in told
    assert not bench.is_finished(run)


def test_a_log_tells_warnings_but_not_where_on_the_machine_code_lies(tmp_path):
    log = tmp_path / "logs" / "job.log"
    for _ in range(2):  # the second job of a worker is told, too
        with logged(log) as stream:
            warnings.warn("slow", RuntimeWarning, stacklevel=1)
            print("to stderr", file=sys.stderr)
            print("done", file=stream)
    assert log.read_text().splitlines() == 2 * ["RuntimeWarning: slow", "to stderr", "done"]


def test_a_missing_package_is_told_before_anything_is_written(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="got no monai, scikit-learn, matplotlib"):
        open_bench(bench.plan, {}, tmp_path / "work", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_curve_goes_on_where_its_file_ends(tmp_path):
    model = torch.nn.Linear(1, 1)
    curve = Curve(tmp_path / "curve.json", 100, 4)
    assert curve.due == {25, 50, 75, 100}
    for step in range(1, 61):
        curve.after_step(step, model, lambda _: 0.5)
    again = Curve(tmp_path / "curve.json", 100, 4)
    again.after_step(75, model, lambda net: float(net.training))
    points = [(point["step"], point["validation"]) for point in again.to_json()]
    assert points == [(25, 0.5), (50, 0.5), (75, 0.0)]
    assert model.training


def test_the_cost_of_a_network_is_counted_for_its_own_input(bench):
    training = open_training(bench, Run(0, "lnc", "scratch"), torch.device("cpu"))
    model = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3, padding=1, bias=False))
    facts = network_facts(model, training)
    assert facts == {"parameters": 54, "gmac": round(54 * 8**3 / 1e9, 4), "input": [8, 8, 8]}


def job(number: int, device: str) -> None:
    """What the pool's workers do: the second fails, the third ends its process."""
    if number == 1:
        raise ValueError("of this one alone")
    if number == 2:
        os._exit(9)
    assert torch.get_num_threads() == 1
    assert device == "cpu"


@pytest.mark.slow
def test_jobs_that_fail_or_kill_their_process_do_not_stop_the_others():
    told = []
    with open_pool(["cpu", "cpu"]) as pool:
        outcome = pool.run(
            range(6), job, title="jobs", on_failure=lambda number, problem: told.append(number)
        )
    assert outcome.done == 4
    assert sorted(outcome.failures) == sorted(told) == [1, 2]
    assert "of this one alone" in outcome.failures[1]
    assert outcome.failures[2] == KILLED
    assert outcome.exit_code == 0


def command(tmp_path: Path, out: str, *more: str) -> list[str]:
    tables = 'tables={table_3={rows=["scratch", "universal"], tasks=["las_ct", "lnc"], trials=1}}'
    return [
        sys.executable, "-m", "training.benchmark", "--plan", "benchmark_smoke",
        "-o", str(tmp_path / out), "--work", str(tmp_path / "work"), "--device", "cpu",
        "--set", tables, "--set", "finetune.steps=60", *more,
    ]  # fmt: skip


def metrics(folder: Path) -> dict:
    files = sorted((folder / "runs").glob("*.json"))
    return {path.name: json.loads(path.read_text())["cases"] for path in files}


@pytest.mark.slow
def test_killed_and_resumed_or_on_one_process_the_results_are_the_same(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command(tmp_path, "a", "--processes", "2"), cwd=ROOT, env=environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "work" / "trials").glob("*/*.json")):
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 143, said
    assert "the same command goes on from here" in said
    assert len(metrics(tmp_path / "a")) < 4
    assert list((tmp_path / "work" / "trials").glob("*/checkpoints/step-*"))
    for out, processes in (("a", "2"), ("b", "1")):
        subprocess.run(
            command(tmp_path, out, "--processes", processes), cwd=ROOT, env=environment, check=True
        )
    assert len(metrics(tmp_path / "a")) == 4
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert not list((tmp_path / "a" / "failed").iterdir())
    plan = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert {f"{name}.json" for name in plan["tables"]["table_3"]["runs"]} == set(
        metrics(tmp_path / "a")
    )
    assert plan["synthetic"] is True
    trained = json.loads((tmp_path / "a" / "pretraining.json").read_text())
    assert trained["universal"]["finished"] is True
    probed = [
        {path.stem: json.loads(path.read_text()) for path in (tmp_path / out / "probes").iterdir()}
        for out in ("a", "b")
    ]
    assert set(probed[0]) == {"universal", "random", "handmade"}
    assert probed[0]["universal"]["pretraining"] == trained["universal"]["result"]
    for row, found in probed[0].items():
        assert found["questions"] == probed[1][row]["questions"]
    assert str(tmp_path) not in json.dumps([plan, trained])


def test_a_pretraining_without_its_cubes_names_the_stage_that_cuts_them(tmp_path) -> None:
    one = Pretraining(
        name="compact-0", recipe=load_recipe("compact"), corpora=(), store=tmp_path / "store",
        run_folder=tmp_path / "run", model=tmp_path / "model", key="0", synthetic=True,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="--only data"):
        run_pretraining(one, "cpu")
    assert list(tmp_path.iterdir()) == []
