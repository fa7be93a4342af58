"""The part of a benchmark that one command does, and what it leaves alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_corpora

from training.benchmark import stages
from training.benchmark.bench import Bench, make_bench
from training.benchmark.part import Part
from training.benchmark.plan import load_plan
from training.benchmark.pool import Outcome
from training.benchmark.probing import Probe
from training.benchmark.run import main, shard_of
from training.benchmark.sources import open_source
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import write_json

ROWS = '["scratch", "rotation", "universal"]'
TABLE = f'tables={{table_3={{rows={ROWS}, tasks=["las_ct", "adc"], trials=1}}}}'


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Bench:
    root = tmp_path_factory.mktemp("part")
    plan = load_plan("benchmark_smoke", [TABLE])
    (root / "work" / "checked").mkdir(parents=True)
    sources = {}
    for name in plan.corpora():
        tiny_corpora.WRITERS[name](root / name)
        sources[name] = open_source(name, root / name, root / "work")
    return make_bench(plan, sources, root / "work", root / "out")


@pytest.fixture
def bench(opened, tmp_path) -> Bench:
    """A plan of six runs and four pre-trainings, nothing of it done."""
    for name in ("runs", "probes"):
        (tmp_path / name).mkdir()
    return replace(opened, out=tmp_path)


class Counting:
    """A pool that does nothing but name its jobs."""

    def __init__(self) -> None:
        self.jobs: list[str] = []

    def run(self, jobs, work, **_) -> Outcome:
        """Name the jobs."""
        self.jobs += [str(job).rsplit("-", 1)[0] for job in jobs]
        return Outcome()


def pretrained_by(bench: Bench, part: Part) -> list[str]:
    pool = Counting()
    stages.pretrain(bench, pool, part)
    return sorted(pool.jobs)


def finish(bench: Bench, *rows: str) -> None:
    for run in bench.plan.runs():
        if run.row in rows:
            write_json(bench.result_file(run), {"key": bench.key(run)})


def test_shards_share_all_runs_and_none_twice():
    runs = load_plan("benchmark_mini").runs()
    parts = [Part(shard=(number, 7)).of_shard(runs) for number in range(1, 8)]
    assert sorted(run for part in parts for run in part) == runs
    assert shard_of("3/7") == (3, 7)
    for text in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(Exception, match="expected I/N"):
            shard_of(text)


def test_rows_and_tasks_choose_jobs_and_leave_their_keys(bench):
    pool = Counting()
    stages.fine_tune(bench, pool, Part(rows=("scratch", "rotation"), tasks=("adc",)))
    assert [job.split("-", 1)[0] for job in pool.jobs] == ["adc", "adc"]
    assert pretrained_by(bench, Part(rows=("rotation",), tasks=("adc",))) == ["rotation-adc"]
    assert pretrained_by(bench, Part(rows=("universal",))) == ["paper"]
    assert pretrained_by(bench, Part()) == ["paper", "rotation-adc", "rotation-las_ct"]


def test_a_pretraining_is_done_only_for_runs_and_probes_that_are_not(bench):
    finish(bench, "rotation", "universal")
    assert pretrained_by(bench, Part()) == ["paper"]  # its probe is not there
    write_json(Probe(bench, "universal").file, {"key": Probe(bench, "universal").key})
    assert pretrained_by(bench, Part()) == []


def test_what_is_known_of_a_pretraining_outlives_its_model(bench):
    pretrained_by(bench, Part())
    listed = bench.out / "pretraining.json"
    known = json.loads(listed.read_text())
    assert set(known) == {"universal", "rotation-adc", "rotation-las_ct"}
    assert not any(entry["finished"] for entry in known.values())
    known["universal"] |= {"finished": True, "result": {"hours": 1.5}}
    known["rotation-adc"] |= {"finished": True, "name": "rotation-adc-of-another-recipe"}
    write_json(listed, known)
    pretrained_by(bench, Part(rows=("rotation",)))
    found = json.loads(listed.read_text())
    assert found["universal"] == known["universal"]
    assert found["rotation-adc"]["finished"] is False


def test_a_probe_that_is_there_is_not_called_missing(bench, capsys):
    stages.probe(bench, Counting(), Part(rows=("rotation",)))
    assert "no probes of" not in capsys.readouterr().err
    stages.probe(bench, Counting(), Part())
    assert "no probes of universal" in capsys.readouterr().err
    write_json(Probe(bench, "universal").file, {"key": Probe(bench, "universal").key})
    stages.probe(bench, Counting(), Part())
    assert "no probes of" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Part(rows=("genesis",)), "a row that the plan benchmark_smoke trains.*got genesis"),
        (Part(tasks=("lnc",)), "a task that the plan benchmark_smoke trains, .*las_ct.*got lnc"),
    ],
)
def test_a_row_or_task_without_runs_is_refused(bench, part, said):
    with pytest.raises(ConfigError, match=said):
        part.check(bench.plan)


def test_the_command_refuses_it_before_anything_is_written(tmp_path: Path, capsys):
    code = main(["--plan", "benchmark_smoke", "-o", str(tmp_path / "out"), "--work",
                 str(tmp_path / "work"), "--device", "cpu", "--rows", "universe"])  # fmt: skip
    assert code == 2
    assert "got universe" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
