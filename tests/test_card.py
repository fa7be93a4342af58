"""Model cards: valid for the Hub, complete for people, safe against odd text."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard

import universal_model_hub
from universal_model_hub.card import eval_results, model_card
from universal_model_hub.config import ModelConfig
from universal_model_hub.preprocess import Preprocessing

METRIC = {
    "task": "LAS_CT",
    "metric": "IoU",
    "value": 0.8125,
    "std": 0.0125,
    "n": 12,
    "seeds": 5,
    "source": "results/las_ct.json",
}


def config_of(**changes: Any) -> ModelConfig:
    entries: dict[str, Any] = {
        "name": "tiny",
        "kind": "segmenter",
        "architecture": "unet3d",
        "arguments": {"width": 8, "out_channels": 2, "activation": None},
        "preprocessing": Preprocessing(),
        "labels": {0: "background", 1: "left atrium"},
        "license": "apache-2.0",
        "provenance": {"commit": "abc123", "recipe": "compact.toml", "seed": 0, "hours": 1.5},
        "metrics": (METRIC,),
    }
    return ModelConfig(**{**entries, **changes})


def front_matter(text: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert match
    value = yaml.safe_load(match[1])
    assert isinstance(value, dict)
    return value


def test_the_front_matter_says_what_the_hub_asks_for():
    data = front_matter(model_card(config_of()))
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "universal_model_hub"
    assert data["pipeline_tag"] == "image-segmentation"
    assert {"medical", "ct", "mri", "3d", "safetensors"} <= set(data["tags"])


def test_the_client_reads_the_metrics_back_from_the_front_matter():
    card = ModelCard(model_card(config_of()))
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_name, result.metric_value) == (
        "LAS_CT",
        "IoU",
        0.8125,
    )


def test_a_license_that_the_hub_does_not_know_is_named():
    data = front_matter(model_card(config_of(license="LicenseRef-Hospital-1")))
    assert (data["license"], data["license_name"]) == ("other", "LicenseRef-Hospital-1")
    assert "license" not in front_matter(model_card(config_of(license=None)))


@pytest.mark.parametrize(
    ("kind", "tag"),
    [
        ("unet", "image-segmentation"),
        ("encoder", "image-feature-extraction"),
        ("segmenter", "image-segmentation"),
        ("classifier", "image-classification"),
    ],
)
def test_every_kind_has_its_task_and_a_snippet_of_public_names(kind: str, tag: str):
    arguments = {"num_classes": 2} if kind == "classifier" else {}
    config = config_of(kind=kind, arguments=arguments, labels=None)
    text = model_card(config, repo_id="org/tiny")
    assert front_matter(text)["pipeline_tag"] == tag
    snippet, hub_snippet = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippet.strip().splitlines()) - snippet.strip().splitlines().count("") == 3
    assert "hf-hub:org/tiny" in snippet
    assert "trust_repo=True" in hub_snippet
    ast.parse(hub_snippet)
    names = {
        node.attr
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert f"load_{kind}" in names
    assert names <= set(universal_model_hub.__all__)


def test_the_card_says_what_people_must_know():
    text = model_card(config_of())
    assert "Not a medical device" in text
    assert "License of the weights: `apache-2.0`" in text
    assert '"orientation": "RAS"' in text
    assert "| 1 | left atrium |" in text
    assert "| LAS_CT | IoU | 0.8125 | 0.0125 | 12 | 5 | results/las_ct.json |" in text
    assert "| commit | abc123 |" in text
    assert "training.reproduce" in text
    assert "--recipe compact " in text


def test_what_is_not_known_is_said():
    text = model_card(config_of(metrics=(), provenance={}, license=None, head_trained=False))
    assert "Nothing was measured" in text
    assert "Not recorded" in text
    assert "not stated" in text
    assert "head is not trained" in text


def test_odd_text_breaks_neither_front_matter_nor_tables():
    odd = "a|b\n---\n`x` <script> {{ jinja }} : # '\""
    metric = {**METRIC, "task": odd, "source": odd}
    text = model_card(config_of(labels={0: odd}, metrics=(metric,), provenance={"note": odd}))
    assert front_matter(text)["model-index"][0]["results"][0]["dataset"]["name"] == odd
    assert "<script>" not in text.split("\n---\n", 1)[1]
    rows = [line for line in text.splitlines() if line.startswith("| 0 |")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3


def test_metrics_that_are_no_numbers_stay_out_of_the_hubs_formats():
    config = config_of(metrics=({"task": "x", "note": "failed"}, {**METRIC, "value": "high"}))
    assert "model-index" not in front_matter(model_card(config))
    assert eval_results(config) == {}


def test_eval_results_parse_with_the_client():
    parse = getattr(huggingface_hub, "parse_eval_result_entries", None)
    if parse is None:
        pytest.skip("this client is older than the format")
    second = {**METRIC, "metric": "Dice", "value": 0.9}
    online = {**METRIC, "task": "bts", "dataset": "org/brats", "source": "https://x.org/run"}
    files = eval_results(config_of(metrics=(METRIC, second, online)))
    assert sorted(files) == [".eval_results/LAS_CT.yaml", ".eval_results/bts.yaml"]
    one, two = parse(yaml.safe_load(files[".eval_results/LAS_CT.yaml"]))
    assert (one.dataset_id, one.task_id, one.value) == ("LAS_CT", "LAS_CT", 0.8125)
    assert one.notes == "IoU, std 0.0125, n 12, seeds 5, source results/las_ct.json"
    assert two.value == 0.9
    (three,) = parse(yaml.safe_load(files[".eval_results/bts.yaml"]))
    assert (three.dataset_id, three.source_url) == ("org/brats", "https://x.org/run")


@pytest.mark.parametrize("task", ["../../etc/passwd", ".", "/abs", "a b", "ü", "x" * 500])
def test_no_task_leads_out_of_the_results_folder(task: str):
    (path,) = eval_results(config_of(metrics=({**METRIC, "task": task},)))
    assert re.fullmatch(r"\.eval_results/[A-Za-z0-9_-]{1,200}\.yaml", path)


def test_the_card_of_a_bundled_model_loads_by_its_name():
    text = model_card(config_of(name="unet3d-compact"))
    assert "umh.load_segmenter('unet3d-compact')" in text
    assert "'path/to/this/folder'" not in text


def test_a_config_read_from_disk_makes_the_same_card(tmp_path: Path):
    from universal_model_hub.config import read_config

    config = config_of()
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert model_card(read_config(tmp_path / "config.json")) == model_card(config)


def test_an_unfinished_run_is_not_said_to_be_reproducible():
    told = {"recipe": "compact.toml", "unfinished": "stopped at step 2 of 3"}
    config = config_of(provenance=told)
    card = model_card(config)
    assert "stopped at step 2 of 3" in card.partition("## Input")[0]
    assert "training.reproduce" not in card
