"""A finished run becomes a model folder that loads, says where it comes from, and is reproduced."""

import dataclasses
import json
import shutil

import pytest
import torch
from test_pretrain import RECIPE, with_run, write_store

from training.pretrain import pretrain
from training.publish import catalog_row, final_checkpoint, publish, recipe_sha256
from training.reproduce import compare, reproduce
from universal_model_hub import load_encoder, load_unet
from universal_model_hub.catalog import Weights
from universal_model_hub.errors import CheckpointError, ConfigError, IntegrityError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    work = tmp_path_factory.mktemp("finished")
    store = write_store(work / "store")
    pretrain(RECIPE, store, work / "run", progress=False)
    publish(work / "run", work / "model")
    return work, store


def test_the_published_network_is_the_runs_moving_average(finished):
    work, _ = finished
    _, state, _ = final_checkpoint(work / "run")
    unet = load_unet(str(work / "model"))
    for name, value in unet.state_dict().items():
        assert torch.equal(value, state["ema"]["values"][f"unet.{name}"]), name
    assert load_encoder(str(work / "model")).embed(torch.rand(1, 1, 8, 8, 8)).shape == (1, 32)


def test_the_raw_weights_can_be_published_instead(finished, tmp_path):
    work, _ = finished
    publish(work / "run", tmp_path / "raw", average=False)
    _, state, _ = final_checkpoint(work / "run")
    unet = load_unet(str(tmp_path / "raw"))
    assert torch.equal(unet.head.weight, state["model"]["unet.head.weight"])


def test_the_config_says_where_the_weights_come_from(finished):
    work, store = finished
    config = json.loads((work / "model" / "config.json").read_text())
    provenance = config["provenance"]
    assert provenance["recipe_sha256"] == recipe_sha256(RECIPE)
    assert provenance["data_sha256"] == store.sha256
    assert provenance["seed"] == 0
    assert {"hours", "hardware", "date", "commit", "versions"} <= provenance.keys()
    assert {row["metric"] for row in config["metrics"]} >= {"restoration", "scale_accuracy"}
    assert (work / "model" / "README.md").read_text().startswith("---\n")


def test_equal_runs_give_equal_files(finished, tmp_path):
    work, store = finished
    pretrain(RECIPE, store, tmp_path / "run", progress=False)
    publish(tmp_path / "run", tmp_path / "model")
    one, two = (p / "model" / "model.safetensors" for p in (work, tmp_path))
    assert one.read_bytes() == two.read_bytes()


def test_an_unfinished_run_is_not_published(finished, tmp_path):
    _, store = finished
    pretrain(RECIPE, store, tmp_path / "run", progress=False, stop_after=3)
    with pytest.raises(CheckpointError, match="step 3 of 12"):
        publish(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_catalog_row_can_be_pasted_and_pins_the_file(finished):
    work, _ = finished
    text = catalog_row(work / "model", repo_id="org/name", revision="a" * 40)
    (row,) = eval(f"({text.strip()})", {"Weights": Weights})  # as in catalog.py
    config = json.loads((work / "model" / "config.json").read_text())
    assert (row.name, row.sha256, row.license) == ("model", config["sha256"], "apache-2.0")
    assert (row.source, row.repo_id, row.revision) == ("hub", "org/name", "a" * 40)
    assert row.size == (work / "model" / "model.safetensors").stat().st_size


def test_a_card_is_reproduced_to_the_bit(finished, tmp_path):
    work, store = finished
    result = reproduce(work / "model", RECIPE, store, tmp_path / "again", tolerance=0.01)
    assert result["same_weights"]
    assert all(row["difference"] == 0 for row in result["metrics"])


def test_another_recipe_or_other_cubes_are_not_compared(finished, tmp_path):
    work, store = finished
    other = dataclasses.replace(with_run(steps=3))
    with pytest.raises(ConfigError, match="other recipe"):
        reproduce(work / "model", other, store, tmp_path / "a", tolerance=0.01)
    smaller = write_store(tmp_path / "store", subjects=3)
    with pytest.raises(ConfigError, match="other cubes"):
        reproduce(work / "model", RECIPE, smaller, tmp_path / "b", tolerance=0.01)
    assert not (tmp_path / "a").exists()


def test_a_card_that_promises_more_is_not_reproduced(finished, tmp_path):
    work, store = finished
    config = json.loads((work / "model" / "config.json").read_text())
    for row in config["metrics"]:
        row["value"] *= 0.5
    model = tmp_path / "model"
    shutil.copytree(work / "model", model)
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="restoration"):
        reproduce(model, RECIPE, store, tmp_path / "again", tolerance=0.05)


def test_losses_are_compared_relatively_and_accuracies_by_difference():
    stated = [
        {"task": "t", "metric": "restoration", "value": 0.010},
        {"task": "t", "metric": "scale_accuracy", "value": 0.50},
    ]
    found = [
        {"task": "t", "metric": "restoration", "value": 0.011},
        {"task": "t", "metric": "scale_accuracy", "value": 0.54},
    ]
    rows = compare(stated, found, tolerance=0.05)
    assert [row["within"] for row in rows] == [False, True]
    assert [round(row["difference"], 6) for row in rows] == [0.1, 0.04]
