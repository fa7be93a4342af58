"""The report of the benchmark: statistics against SciPy and scikit-learn, and what pages say."""

import base64
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from training.benchmark import statistics
from training.benchmark.findings import (
    against_all,
    findings,
    summary,
    summary_against_all,
)
from training.benchmark.report import main, write_report
from training.benchmark.results import Result, read_results
from training.benchmark.statistics import (
    compare,
    corrected,
    detectable_difference,
    mean_interval,
    paired_auc,
    paired_scores,
    pooled_interval,
    power_of,
    rank_auc,
    trials_needed,
)
from training.benchmark.tables import NOTHING, labels_saved, published_scores
from training.benchmark.tables_order import findings_view
from training.benchmark.tasks_scoring import Example
from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.volume import Volume

ROWS = {
    "scratch": "From scratch",
    "genesis": "Models Genesis, in its manner",
    "universal": "Universal Model",
    "i3d_pretrained": "I3D",
}
TASKS = {"bts": "iou", "adc": "auc"}
LEVELS = {"scratch": 0.50, "genesis": 0.60, "universal": 0.70}


def run_name(row: str, task: str, trial: int, share: float = 1.0, noise: float = 0.0) -> str:
    return f"{task}-{row}-{share:g}-{noise:g}-{trial}-0123456789ab"


def segmented(scores: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"id": f"case{i}", "subject": f"s{i}", "iou": v, "dice": v, "hd95_mm": 3.0}
        for i, v in enumerate(scores)
    ]


def classified(targets: Sequence[int], scores: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"id": f"case{i}", "subject": f"s{i}", "target": int(t), "score": float(s)}
        for i, (t, s) in enumerate(zip(targets, scores, strict=True))
    ]


def result(
    row: str, task: str, trial: int, cases: list[dict[str, Any]], **given: Any
) -> dict[str, Any]:
    if TASKS[task] == "iou":
        mean = float(np.mean([case["iou"] for case in cases]))
        metrics: dict[str, Any] = {"iou": mean, "dice": mean, "hd95_mm": 3.0}
    else:
        targets = [case["target"] for case in cases]
        area = roc_auc_score(targets, [case["score"] for case in cases])
        metrics = {"auc": float(area), "accuracy": 0.5, "sensitivity": None}
    return {
        "row": row, "task": task, "trial": trial, "share": 1.0, "noise": 0.0,
        "metrics": metrics, "cases": cases, "losses": [0.9, 0.7, 0.5],
        "curve": [{"step": 5, "validation": 0.1}, {"step": 10, "validation": 0.4}],
        "network": {"name": "unet3d", "parameters": 1234, "gmac": 0.5, "peak_bytes": 2**30,
                    "input": [8, 8, 8]},
        "config": {}, "pretraining": None, "commit": "c" * 40,
        "date": "2026-01-01", "log": "logs/x.log",
        "hardware": {"processor": "some CPU", "torch": "2"},
        "seconds": 7200.0, "validation_seconds": 0.0, "test_seconds": 0.0, **given,
    }  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder of results with two tasks, three trials, and a planted order on bts."""
    rng = np.random.default_rng(0)
    targets = np.arange(24) % 2
    for folder in ("runs", "failed", "examples", "probes"):
        (tmp_path / folder).mkdir()
    names = []
    for trial in range(3):
        common = rng.normal(0, 0.02, 12)
        for row, level in LEVELS.items():
            names += [run_name(row, "bts", trial), run_name(row, "adc", trial)]
            noise = rng.normal(0, 0.005, 12)
            write(tmp_path, result(row, "bts", trial, segmented(level + common + noise)))
            write(tmp_path, result(row, "adc", trial, classified(targets, rng.random(24))))
    table = {"rows": list(ROWS), "tasks": list(TASKS), "shares": [1.0], "noise_mm": [0.0],
             "trials": 3, "runs": names}  # fmt: skip
    plan = {
        "name": "benchmark_test", "title": "A test <of> the report.", "synthetic": True,
        "tables": {"table_3": table, "table_4": table, "figure_4": table, "figure_5": table},
        "rows": {
            row: {"title": title, "note": "weights not available" if "i3d" in row else ""}
            for row, title in ROWS.items()
        },
        "tasks": {
            name: {"title": name, "metric": metric, "steps": 10, "cube": [8, 8, 8],
                   "subjects": {"train": 3, "validation": 1, "test": 12}, "spacing_mm": [3, 3, 3]}
            for name, metric in TASKS.items()
        },
        "data": {"brats2018": "0" * 64},
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return tmp_path


def write(out: Path, content: Mapping[str, Any]) -> None:
    place = [content[key] for key in ("row", "task", "trial", "share", "noise")]
    name = run_name(*place)
    (out / "runs" / f"{name}.json").write_text(json.dumps(content))


def as_result(content: Mapping[str, Any]) -> Result:
    keys = ("row", "task", "trial", "share", "noise", "metrics", "cases", "curve")
    return Result(name="x", content=content, **{key: content[key] for key in keys})


def test_the_mean_interval_is_students() -> None:
    values = [1.0, 2.5, 0.5, 3.0]
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((wanted.low, wanted.high))
    assert mean_interval([1.0]) == (None, None)


def test_trials_are_paired_by_number() -> None:
    ours = [as_result(result("a", "bts", t, segmented([0.5 + t / 10]))) for t in (0, 1, 3)]
    theirs = [as_result(result("b", "bts", t, segmented([0.4 + t / 10]))) for t in (3, 2, 1)]
    difference = compare(ours, theirs, "iou")
    assert difference.by_trial == pytest.approx((10.0, 10.0))  # trials 1 and 3


def test_cases_are_tested_on_their_means_over_trials() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 2, 9))
    ours = [as_result(result("a", "bts", t, segmented(a[t]))) for t in range(2)]
    theirs = [as_result(result("b", "bts", t, segmented(b[t]))) for t in range(2)]
    cases, p, _ = paired_scores(ours, theirs, "iou")
    assert cases == 9
    assert p == pytest.approx(stats.wilcoxon(a.mean(0) - b.mean(0)).pvalue)


def test_equal_scores_are_no_difference_and_few_cases_no_test() -> None:
    same = [as_result(result("a", "bts", 0, segmented([0.5] * 9)))]
    assert paired_scores(same, same, "iou")[1] == 1.0
    few = [as_result(result("a", "bts", 0, segmented([0.5] * 4)))]
    assert paired_scores(few, few, "iou")[1] is None


def test_rank_auc_is_scikit_learns() -> None:
    rng = np.random.default_rng(2)
    truth, scores = rng.integers(0, 2, 50), rng.integers(0, 6, 50).astype(float)  # with ties
    auc = roc_auc_score(truth, scores)
    assert rank_auc(truth, scores) == pytest.approx(auc)
    assert rank_auc(truth, np.stack([scores, -scores])) == pytest.approx([auc, 1 - auc])


def test_the_draws_of_a_permutation_test_do_not_hang_on_how_many_are_ranked_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, truth = np.random.default_rng(4), np.arange(60) % 2
    one = [as_result(result("a", "adc", 0, classified(truth, truth + rng.normal(0, 1, 60))))]
    other = [as_result(result("b", "adc", 0, classified(truth, rng.random(60))))]
    whole = paired_auc(one, other, "auc")
    monkeypatch.setattr(statistics, "SCORES_AT_ONCE", 60 * 7)
    assert paired_auc(one, other, "auc") == whole
    assert whole[1] is not None
    assert 0 < whole[1] < 1


def test_a_real_difference_of_auc_is_found_and_chance_is_not() -> None:
    rng = np.random.default_rng(3)
    truth = np.arange(60) % 2
    good = [as_result(result("a", "adc", 0, classified(truth, truth + rng.normal(0, 0.3, 60))))]
    chance = [as_result(result("b", "adc", 0, classified(truth, rng.random(60))))]
    other = [as_result(result("c", "adc", 0, classified(truth, rng.random(60))))]
    found, unclear = paired_auc(good, chance, "auc")[1], paired_auc(chance, other, "auc")[1]
    assert found is not None
    assert found < 0.01
    assert unclear is not None
    assert unclear > 0.05
    assert paired_auc(good, good, "auc")[1] == 1.0


def test_p_values_are_corrected_among_those_that_are_there() -> None:
    assert corrected([0.01, None, 0.04]) == [pytest.approx(0.02), None, pytest.approx(0.04)]
    assert corrected([None]) == [None]


@pytest.mark.parametrize(
    ("scores", "goal", "saved"),
    [
        ([0.5, 0.7, 0.9], 0.8, 0.35),  # midway from 30 to 100 %
        ([0.5, 0.7, 0.9], 0.4, 0.9),  # the least share does
        ([0.5, 0.7, 0.9], 0.95, None),
        ([0.5, None, 0.9], 0.8, None),
        ([0.5, 0.7, 0.9], None, None),
    ],
)
def test_labels_saved(scores: list[float | None], goal: float | None, saved: float | None) -> None:
    assert labels_saved([0.1, 0.3, 1.0], scores, goal) == (
        None if saved is None else pytest.approx(saved)
    )


@pytest.mark.parametrize(("fewer", "own"), [(0.30, "0%"), (0.90, "50%")])
def test_scratch_saves_labels_where_its_curve_is_flat(out: Path, fewer: float, own: str) -> None:
    # Half of the labels give scratch clearly less than all of them, or more.
    plan = json.loads((out / "plan.json").read_text())
    table = {**plan["tables"]["figure_5"], "shares": [0.5, 1.0], "tasks": ["bts"]}
    for row, level in {"scratch": fewer, "universal": 0.95}.items():
        write(out, result(row, "bts", 0, segmented([level] * 12), share=0.5))
        table["runs"] = [*table["runs"], run_name(row, "bts", 0, 0.5)]
    plan["tables"]["figure_5"] = table
    (out / "plan.json").write_text(json.dumps(plan))
    write_report(out)
    text = (out / "report.md").read_text()
    lines = text.split("## Fig. 5: shares of the labels")[1].split("\n## ")[0].splitlines()
    saved = {row: line.split("|")[-2].strip() for line in lines for row in ROWS.values()
             if f"| {row} |" in line}  # fmt: skip
    assert saved[ROWS["scratch"]] == own
    assert saved[ROWS["universal"]] == "50%"
    assert saved[ROWS["genesis"]] == NOTHING


def test_the_fit_of_each_start_is_told_from_first_and_last_losses(out: Path) -> None:
    for trial, last in enumerate((0.2, 0.3, 0.4)):
        cases = segmented(np.full(12, 0.5))
        write(out, result("universal", "bts", trial, cases, losses=[0.8, 0.1, last]))
    write_report(out)
    text = (out / "report.md").read_text()
    section = text.split("## Fit: training loss")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head = [cell.strip() for cell in lines[0].split("|")]
    told = {line.split("|")[1].strip(): line.split("|") for line in lines[2:]}
    universal, scratch = told[ROWS["universal"]], told[ROWS["scratch"]]
    first, last = head.index("bts, first"), head.index("bts, last")
    assert (universal[first].strip(), universal[last].strip()) == ("0.800 ± 0.000", "0.300 ± 0.100")
    assert scratch[last].strip() == "0.500 ± 0.000"
    assert set(told) == {title for row, title in ROWS.items() if row in LEVELS}


def test_a_planted_order_is_found_and_chance_is_called_noise(out: Path) -> None:
    found = {(one.task, one.better, one.worse): one for one in findings(read_results(out))}
    planted = found["bts", "universal", "scratch"]
    assert planted.verdict == "as in the paper"
    assert planted.difference.mean == pytest.approx(20, abs=1)
    assert found["adc", "universal", "scratch"].verdict == "within the noise"
    assert ("bts", "model_multi", "model_ct") not in found  # not planned


def test_an_order_the_other_way_is_said(out: Path) -> None:
    for trial in range(3):
        write(out, result("scratch", "bts", trial, segmented([0.9 + trial / 1000] * 12)))
    results = read_results(out)
    verdicts = {(one.task, one.better, one.worse): one.verdict for one in findings(results)}
    assert verdicts["bts", "universal", "scratch"] == "the other way"
    said, *_, of_all = summary(findings(results), results)
    assert "1 of 3 comparisons have the paper's order" in said
    below = [pair for pair, verdict in verdicts.items() if verdict.startswith("the other way")]
    assert said.endswith(f"{len([pair for pair in below if pair[0] == 'bts'])} with one below.")
    assert of_all.startswith("all tasks: ")
    assert of_all.endswith(f"{len(below)} with one below.")
    assert f" of {len(verdicts)} comparisons" in of_all


def test_where_the_papers_own_scores_lie_the_other_way_is_said(out: Path) -> None:
    results = read_results(out)
    found = findings(results)
    assert "Where the difference reported is negative" not in findings_view(found, results).note
    for row in ("multi_sc", "model_multi"):
        results.plan["rows"][row] = {"title": row, "note": ""}
    contrary = replace(found[0], task="las_ct", better="multi_sc", worse="model_multi")
    view = findings_view([*found, contrary], results)
    assert view.rows[-1][-1].text == "-1.11"
    assert "Where the difference reported is negative" in view.note


def test_universal_is_compared_with_every_other_start_that_was_trained(out: Path) -> None:
    results = read_results(out)
    others = against_all(results)
    assert {(one.task, one.worse) for one in others} == {
        (task, row) for task in TASKS for row in ("scratch", "genesis")
    }
    told = [one.told("above", "below", "not above") for one in others if one.task == "bts"]
    assert told == ["above", "above"]
    (said,) = summary_against_all(others)
    above = sum((one.difference.low or 0) > 0 for one in others)
    below = sum((one.difference.high or 0) < 0 for one in others)
    assert f"4 comparisons; {above} with an interval over trials above zero, {below} with" in said
    assert summary_against_all([]) == []
    write_report(out)
    text = (out / "report.md").read_text()
    section = text.split("## Universal Model against every other start")[1].split("\n## ")[0]
    assert section.count("| above |") >= 2
    assert said in text


@pytest.mark.parametrize(
    ("interval", "p", "verdict"),
    [
        ((1.0, 3.0), 0.01, "as in the paper"),
        ((1.0, 3.0), 0.2, "as in the paper over trials, not over cases"),
        ((1.0, 3.0), None, "as in the paper over trials, not over cases"),
        ((-3.0, -1.0), 0.01, "the other way"),
        ((-3.0, -1.0), 0.2, "the other way over trials, not over cases"),
        ((-3.0, 1.0), 0.01, "within the noise"),
        ((None, None), 0.01, "as in the paper, one trial"),
    ],
)
def test_a_verdict_needs_trials_and_cases_on_either_side(out, interval, p, verdict) -> None:
    one = next(iter(findings(read_results(out))))
    low, high = interval
    told = replace(
        one, p=p, means=(2.0, 1.0), difference=replace(one.difference, low=low, high=high)
    )
    assert told.verdict == verdict


def test_the_interval_over_groups_is_welchs() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(3, 1, 5), rng.normal(-1, 4, 8)
    welch = stats.ttest_ind(one, -other, equal_var=False).confidence_interval(0.95)
    middle, low, high = pooled_interval([one, other])
    assert middle == pytest.approx((one.mean() + other.mean()) / 2)
    assert (low, high) == pytest.approx((welch.low / 2, welch.high / 2))
    assert pooled_interval([one, [1.0]])[1:] == (None, None)
    assert pooled_interval([[1.0, 1.0], [3.0, 3.0]]) == (2.0, 2.0, 2.0)


def test_power_is_how_often_simulated_trials_show_the_difference() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(8.0, 6.0, (20_000, 5))
    test = stats.ttest_1samp(draws, 0.0, axis=1)
    shown = np.mean((test.pvalue < 0.05) & (test.statistic > 0))
    assert power_of(8.0, 6.0, 5) == pytest.approx(shown, abs=0.01)


@pytest.mark.parametrize(("effect", "trials"), [(1.0, 10), (0.5, 34), (0.2, 199)])
def test_trials_needed_are_those_of_textbooks(effect: float, trials: int) -> None:
    # Cohen 1988, one-sample t test, 5 % two-sided, power 0.80.
    assert trials_needed(2 * effect, 2.0) == trials
    least = detectable_difference(2.0, trials)
    assert least is not None
    assert 0.95 * 2 * effect < least <= 2 * effect
    assert trials_needed(1e-9, 2.0) is None
    assert (trials_needed(1.0, 0.0), detectable_difference(0.0, 5)) == (2, 0.0)
    assert detectable_difference(2.0, 1) is None


def one_pair(one: Any) -> str:
    return f"{ROWS[one.better]} > {ROWS[one.worse]}"


def test_the_order_is_also_told_over_all_tasks(out: Path) -> None:
    write_report(out)
    text = (out / "report.md").read_text()
    section = text.split("## The order over all tasks")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if " > " in line]
    assert len(rows) == 3
    found = findings(read_results(out))
    for cells in rows:
        own = [one.difference for one in found if one_pair(one) == cells[0].strip("| ")]
        assert float(cells[1]) == pytest.approx(np.mean([gap.mean for gap in own]), abs=0.06)


def test_the_report_tells_what_differences_its_trials_could_show(out: Path) -> None:
    write_report(out)
    text = (out / "report.md").read_text()
    section = text.split("## What the trials can show")[1].split("\n## ")[0]
    told = {
        line.split("|")[1].strip(): line.split("|") for line in section.splitlines()[4:] if line
    }
    gaps = [one.difference.by_trial for one in findings(read_results(out)) if one.task == "adc"]
    spread = float(np.median([np.std(gap, ddof=1) for gap in gaps]))
    assert float(told["adc"][3]) == pytest.approx(spread, abs=0.06)
    assert float(told["adc"][4]) == pytest.approx(detectable_difference(spread, 3), abs=0.06)
    assert float(told["bts"][4]) < 5 < float(told["adc"][4])


def test_ours_and_the_papers_numbers_stand_in_columns_of_their_own(out: Path) -> None:
    write_report(out)
    text = (out / "report.md").read_text()
    table = text[text.index("## Table III") :].splitlines()
    head = next(line for line in table if line.startswith("| start"))
    row = next(line for line in table if line.startswith("| Universal Model"))
    cells = dict(zip(head.split("|"), row.split("|"), strict=True))
    assert re.match(r" (69|70)\.\d\d ± ", cells[" bts, IoU % "])
    assert cells[" bts, reported in the paper "] == " 72.10 ± 0.67 "
    rival = next(line for line in table if line.startswith("| I3D"))
    cells = dict(zip(head.split("|"), rival.split("|"), strict=True))
    assert cells[" bts, IoU % "] == " weights not available "
    assert cells[" bts, reported in the paper "] == " 67.83 ± 0.75 "


def test_every_published_row_is_known_here() -> None:
    assert published_scores("universal")["adc"] == (86.44, 1.09)
    assert published_scores("genesis", ", corrupted labels")["bts"] == (67.45, 1.51)
    assert published_scores("i3d") == {}  # from scratch: the paper has no such row


def test_missing_runs_are_named_and_other_configurations_left_alone(out: Path) -> None:
    (out / "runs" / f"{run_name('genesis', 'bts', 0)}.json").unlink()
    for trial in (1, 2):
        (out / "runs" / f"{run_name('genesis', 'bts', trial)}.json").unlink()
    stray = out / "runs" / "bts-genesis-1-0-0-ffffffffffff.json"
    stray.write_text(json.dumps(result("genesis", "bts", 0, segmented([1.0] * 12))))
    write_report(out)
    text = (out / "report.md").read_text()
    assert "15 of 18 planned runs are there" in text
    row = next(line for line in text.splitlines() if line.startswith("| Models Genesis"))
    assert "no run yet" in row
    assert "100.00" not in row


def test_a_mean_of_fewer_trials_than_planned_says_so(out: Path) -> None:
    write_report(out)
    assert "(n = " not in (out / "report.md").read_text()
    (out / "runs" / f"{run_name('genesis', 'bts', 0)}.json").unlink()
    write_report(out)
    table = (out / "report.md").read_text().split("\n## Table III: ways to start\n")[1]
    genesis = next(line for line in table.splitlines() if line.startswith("| Models Genesis"))
    assert genesis.count("(n = 2)") == 1
    assert "(n = " not in next(line for line in table.splitlines() if "| Universal" in line)


def test_it_says_how_scans_were_segmented(out: Path) -> None:
    write_report(out)
    assert "windows of the training cube" not in (out / "report.md").read_text()
    path = out / "runs" / f"{run_name('scratch', 'bts', 1)}.json"
    content = json.loads(path.read_text()) | {
        "config": {"windows": {"overlap": 0.25}, "task": {"name": "bts", "stripped": True}}
    }
    path.write_text(json.dumps(content))
    write_report(out)
    text = (out / "report.md").read_text()
    assert "windows of the training cube, of which 25% overlap" in text
    assert "bts: what is exactly 0 lies outside the stripped head" in text


def test_the_cost_of_a_start_stands_by_machine(out: Path) -> None:
    path = out / "runs" / f"{run_name('scratch', 'bts', 1)}.json"
    elsewhere = {"gpu": "some GPU", "processor": "some CPU", "instructions": "AVX2", "torch": "2"}
    content = json.loads(path.read_text()) | {"hardware": elsewhere, "seconds": 60.0}
    path.write_text(json.dumps(content))
    slower = {"processor": "some CPU", "instructions": "AVX2", "torch": "2"}
    path = out / "runs" / f"{run_name('scratch', 'bts', 2)}.json"
    content = json.loads(path.read_text()) | {"hardware": slower, "seconds": 9000.0}
    path.write_text(json.dumps(content))
    write_report(out)
    cost = json.loads((out / "report.json").read_text())["tables"]["Cost"]
    rows = [dict(zip(cost["head"], row, strict=True)) for row in cost["rows"]]
    assert [
        (row["machine"], row["seconds, training"], row["runs"])
        for row in rows
        if (row["start"], row["task"]) == ("From scratch", "bts")
    ] == [("some CPU", "7200", "1"), ("some CPU, AVX2", "9000", "1"), ("some GPU", "60", "1")]


def test_hours_are_of_the_runs_and_of_each_pretraining_once(out: Path) -> None:
    done = {"result": {"hours": 0.25}, "finished": True}
    trainings = {"universal": done, "genesis": done, "jigsaw-bts": {"finished": False}}
    (out / "pretraining.json").write_text(json.dumps(trainings))
    write_report(out)
    runs = sum(
        json.loads(path.read_text())[part]
        for path in (out / "runs").glob("*.json")
        for part in ("seconds", "validation_seconds", "test_seconds")
    )
    said = f"they took {runs / 3600:,.1f} hours of a core or GPU, and pre-training 0.5"
    assert said in (out / "report.md").read_text()


def test_runs_done_twice_are_compared_and_the_later_ones_count(out: Path) -> None:
    write_report(out)
    before = json.loads((out / "report.json").read_text())["tables"]
    (out / "earlier").mkdir()
    for trial, score in enumerate((0.2, 0.9)):
        name = run_name("scratch", "bts", trial)
        own = result("scratch", "bts", trial, segmented([score] * 12))
        own["hardware"] = {"gpu": "some GPU", "torch": "1"}
        (out / "earlier" / f"{name}.json").write_text(json.dumps(own))
        write(out, result("scratch", "bts", trial, segmented([0.5] * 12)))
    stray = result("scratch", "bts", 0, segmented([0.0] * 12))
    (out / "earlier" / "bts-scratch-1-0-0-ffffffffffff.json").write_text(json.dumps(stray))
    write_report(out)
    after = json.loads((out / "report.json").read_text())["tables"]
    assert "Runs done twice" not in before
    twice = after["Runs done twice"]
    assert len(twice["rows"]) == 1
    row = dict(zip(twice["head"], twice["rows"][0], strict=True))
    assert (row["start"], row["task"], row["runs"]) == ("From scratch", "bts", "2")
    assert row["earlier, on"] == "some GPU, torch 1"
    assert (row["mean score, earlier"], row["mean score, later"]) == ("55.00", "50.00")
    assert row["mean difference of a run, without sign"] == "35.00"
    assert row["starting weights"] == "the same"
    assert after["Cost"] == before["Cost"]


def test_runs_done_twice_from_other_weights_are_told_from_those_of_the_same(out: Path) -> None:
    (out / "earlier" / "before_that").mkdir(parents=True)
    for trial, digest in enumerate("aab"):
        own = result("universal", "bts", trial, segmented([0.5] * 12))
        weights = {"recipe": "paper", "hours": 1.0, "steps": 2}
        write(out, {**own, "pretraining": {**weights, "sha256": "a"}})
        earlier = json.dumps({**own, "pretraining": {**weights, "sha256": digest}})
        folder = out / "earlier" / ("before_that" if digest == "b" else "")
        (folder / f"{run_name('universal', 'bts', trial)}.json").write_text(earlier)
    write_report(out)
    twice = json.loads((out / "report.json").read_text())["tables"]["Runs done twice"]
    rows = [dict(zip(twice["head"], row, strict=True)) for row in twice["rows"]]
    assert [(row["runs"], row["starting weights"]) for row in rows] == [
        ("2", "the same"),
        ("1", "trained again"),
    ]


def test_failures_are_listed_also_those_of_probes(out: Path) -> None:
    (out / "failed" / "probes-universal.json").write_text(
        json.dumps({"name": "probes-universal", "row": "universal", "error": "E: no <cubes>"})
    )
    write_report(out)
    page = (out / "report.html").read_text()
    assert "probes-universal: E: no &lt;cubes&gt;" in page
    assert "1 failed" in page


def test_the_page_says_synthetic_loads_nothing_and_links_to_every_run(out: Path) -> None:
    write_report(out)
    page = (out / "report.html").read_text()
    assert "All scans are synthetic phantoms" in page
    assert "A test &lt;of&gt; the report." in page
    assert "http" not in re.sub(r"http-equiv", "", page)
    links = re.findall(r"href='(runs/[^']+)'", page)
    assert len(links) == 18
    assert all((out / link).is_file() for link in links)
    assert page.count("class='sortable'") >= 7
    assert "data:image/png" in page


def test_a_segmentation_is_drawn_for_each_row(out: Path) -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[4:8, 4:8, 4:8] = 1
    volume = Volume(np.random.default_rng(0).random((12, 12, 12)).astype(np.float32), np.eye(4))
    picture = out / "examples" / "bts-universal.png"
    picture.write_bytes(Example(volume, labels, np.roll(labels, 1, 0)).draw())
    write_report(out)
    page = (out / "report.html").read_text()
    assert "bts: Universal Model, trial 0" in page
    assert base64.b64encode(picture.read_bytes()).decode() in page
    picture.write_bytes(picture.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"bts-universal\.png"):
        write_report(out)


def test_a_picture_is_the_same_however_the_scan_lies() -> None:
    """Letters mark the sides: voxels that run to the left, or another axis first, are turned."""
    rng = np.random.default_rng(0)
    array = rng.random((10, 12, 14)).astype(np.float32)
    truth = np.zeros(array.shape, np.uint8)
    truth[2:6, 3:8, 5:9] = 1
    predicted = np.roll(truth, 2, 0)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    turned = affine[:, [2, 0, 1, 3]] @ np.diag([1, -1, 1, 1])

    def turn(a: np.ndarray) -> np.ndarray:
        return a.transpose(2, 0, 1)[:, ::-1]

    straight = Example(Volume(array, affine), truth, predicted).draw()
    assert Example(Volume(turn(array), turned), turn(truth), turn(predicted)).draw() == straight
    assert Example(Volume(turn(array), affine), turn(truth), turn(predicted)).draw() != straight


def test_damaged_and_missing_files_are_named(out: Path, tmp_path: Path) -> None:
    path = out / "runs" / f"{run_name('universal', 'bts', 1)}.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match=path.name):
        write_report(out)
    path.write_text('{"row": "universal"}')
    with pytest.raises(CheckpointError, match=path.name):
        write_report(out)
    shutil.rmtree(out / "runs")
    with pytest.raises(ConfigError, match=r"plan\.json"):
        write_report(out / "failed")
    assert main([str(out / "failed")]) == ConfigError.exit_code


def test_the_report_is_the_same_twice(out: Path) -> None:
    write_report(out)
    names = ("report.html", "report.md", "report.json")
    first = [(out / name).read_bytes() for name in names]
    write_report(out)
    assert [(out / name).read_bytes() for name in names] == first


@pytest.mark.parametrize("hashes", ["aaa", "aba"])
def test_runs_from_two_trainings_of_one_recipe_are_named(out, hashes) -> None:
    for trial, letter in enumerate(hashes):
        trained = {"recipe": "paper", "sha256": letter * 64, "hours": 0.1}
        cases = segmented(np.full(12, 0.5))
        write(out, result("universal", "bts", trial, cases, pretraining=trained))
    write_report(out)
    said = "weights aaaaaaaa, bts (100% of the labels); weights bbbbbbbb, bts (100% of the labels)."
    for file in ("report.md", "report.html"):
        assert (said in (out / file).read_text()) == (len(set(hashes)) > 1)


def test_two_files_of_the_same_tensors_are_one_training(out: Path) -> None:
    record = {"sha256": "b" * 64, "tensors_sha256": "t" * 64, "hours": 0.1}
    record["files_sha256"] = {"a" * 64: "commit"}
    (out / "pretraining.json").write_text(json.dumps({"universal": {"result": record}}))
    (out / "earlier").mkdir()
    for trial, letter in enumerate("aab"):
        trained = {"recipe": "paper", "sha256": letter * 64, "hours": 0.1}
        run = result("universal", "bts", trial, segmented([0.5] * 12), pretraining=trained)
        write(out, run)
        before = {**run, "pretraining": {**trained, "sha256": "b" * 64}}
        (out / "earlier" / f"{run_name('universal', 'bts', trial)}.json").write_text(
            json.dumps(before)
        )
    write_report(out)
    assert "trainings of the recipe" not in (out / "report.md").read_text()
    twice = json.loads((out / "report.json").read_text())["tables"]["Runs done twice"]
    assert [row[twice["head"].index("starting weights")] for row in twice["rows"]] == ["the same"]
