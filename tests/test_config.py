"""config.json: what is read, what is refused, and that a file's claims cost no memory."""

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from universal_model_hub.config import ConfigWarning, ModelConfig, config_from_json, read_config
from universal_model_hub.errors import ConfigError, UniversalModelError
from universal_model_hub.preprocess import Preprocessing

# The example of the contract.
CONTRACT = {
    "schema": 1,
    "name": "unet3d-compact",
    "kind": "unet",
    "architecture": "unet3d",
    "arguments": {"width": 8},
    "preprocessing": {
        "orientation": "RAS",
        "spacing": [1, 1, 1],
        "order": 3,
        "CT": {"clip": [-1000, 1000]},
        "MR": {"clip": [0, 4000]},
    },
    "labels": None,
    "license": "apache-2.0",
    "sha256": "0" * 64,
    "provenance": {"commit": "abc", "seed": 0, "hours": 0.5},
    "metrics": [{"task": "las_ct", "metric": "IoU", "value": 0.5}],
}


def write(folder: Path, value: object) -> Path:
    path = folder / "config.json"
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    path.write_bytes(data)
    return path


def without(name: str) -> dict:
    return {key: value for key, value in CONTRACT.items() if key != name}


def test_the_contracts_example_survives_reading_and_writing(tmp_path):
    config = read_config(write(tmp_path, CONTRACT))
    assert (config.name, config.kind, config.argument("width")) == ("unet3d-compact", "unet", 8)
    assert (config.argument("in_channels"), config.argument("activation")) == (1, "sigmoid")
    assert config.preprocessing == Preprocessing()
    assert config.head_trained
    assert config.to_json() == CONTRACT
    assert config_from_json(config.to_json()) == config


def test_optional_entries_may_be_absent_and_survive_when_present(tmp_path):
    minimal = read_config(
        write(tmp_path, {"schema": 1, "name": "a", "kind": "encoder", "architecture": "unet3d"})
    )
    assert (minimal.labels, minimal.metrics, minimal.seen, minimal.sha256) == (None, (), None, None)
    full = {
        **CONTRACT,
        "kind": "segmenter",
        "arguments": {"width": 8, "out_channels": 3, "activation": None},
        "labels": {"0": "background", "2": "left atrium"},
        "head_trained": False,
        "seen": {"modalities": ["CT"]},
    }
    config = read_config(write(tmp_path, full))
    assert config.labels == {0: "background", 2: "left atrium"}
    assert config.num_outputs == 3
    assert config.to_json() == full


def test_arguments_at_their_default_are_left_out_but_the_width():
    config = config_from_json({**CONTRACT, "arguments": {"width": 32, "in_channels": 1}})
    assert config.to_json()["arguments"] == {"width": 32}


BAD = {
    "not JSON": (b"weights", "JSON"),
    "a web page": (b"<html></html>", "JSON"),
    "empty": (b"", "JSON"),
    "a list": ([], "object"),
    "nothing in it": ({}, "schema"),
    "not UTF-8": (b'{"schema": 1, "name": "\xff"}', "JSON"),
    "100k deep": (b"[" * 100_000, "JSON"),
    "100k deep, closed": (b"[" * 100_000 + b"]" * 100_000, "JSON"),
    "NaN": (b'{"schema": NaN}', "finite"),
    "Infinity": (b'{"schema": -Infinity}', "finite"),
    "1e999": (b'{"schema": 1e999}', "finite"),
    "an endless integer": (b'{"schema": ' + b"9" * 10_000 + b"}", "JSON"),
    "an entry twice": (b'{"schema": 1, "name": "a", "name": "b"}', "'name' twice"),
    "over 1 MB": (b" " * 2_000_000, "1 MB"),
    "no kind": (without("kind"), "kind"),
    "no name": (without("name"), "name"),
    "schema a string": ({**CONTRACT, "schema": "1"}, "schema"),
    "schema true": ({**CONTRACT, "schema": True}, "schema"),
    "schema 0": ({**CONTRACT, "schema": 0}, "schema"),
    "an unknown kind": ({**CONTRACT, "kind": "gan"}, "kind"),
    "an unknown architecture": ({**CONTRACT, "architecture": "vit"}, "architecture"),
    "arguments a list": ({**CONTRACT, "arguments": [8]}, "arguments"),
    "an unknown argument": ({**CONTRACT, "arguments": {"exec": 1}}, "exec"),
    "1e9 channels": ({**CONTRACT, "arguments": {"width": 10**9}}, "width"),
    "1e9 classes": ({**CONTRACT, "arguments": {"out_channels": 10**9}}, "out_channels"),
    "no channels": ({**CONTRACT, "arguments": {"width": 0}}, "width"),
    "half a channel": ({**CONTRACT, "arguments": {"width": 8.0}}, "width"),
    "width true": ({**CONTRACT, "arguments": {"width": True}}, "width"),
    "an unknown norm": ({**CONTRACT, "arguments": {"normalization": []}}, "normalization"),
    "a classifier of nothing": ({**CONTRACT, "kind": "classifier"}, "num_classes"),
    "preprocessing null": ({**CONTRACT, "preprocessing": None}, "preprocessing"),
    "preprocessing junk": ({**CONTRACT, "preprocessing": {"spacing": [0, 1, 1]}}, "spacing"),
    "labels a list": ({**CONTRACT, "labels": ["a"]}, "labels"),
    "labels not numbered": ({**CONTRACT, "labels": {"liver": "1"}}, "labels"),
    "one label twice": ({**CONTRACT, "labels": {"0": "a", "00": "b"}}, "label"),
    "a label out of range": ({**CONTRACT, "labels": {"7": "a"}}, "labels below"),
    "a label not a string": ({**CONTRACT, "labels": {"0": 1}}, "label 0"),
    "sha256 short": ({**CONTRACT, "sha256": "abc"}, "sha256"),
    "metrics an object": ({**CONTRACT, "metrics": {}}, "metrics"),
    "a metric a number": ({**CONTRACT, "metrics": [1]}, "metric"),
    "head_trained 1": ({**CONTRACT, "head_trained": 1}, "head_trained"),
    "license a list": ({**CONTRACT, "license": []}, "license"),
    "provenance null": ({**CONTRACT, "provenance": None}, "provenance"),
}


@pytest.mark.parametrize("case", BAD)
def test_w13_a_bad_config_is_refused_by_name(tmp_path, case):
    value, message = BAD[case]
    path = write(tmp_path, value)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_w13_a_huge_file_costs_no_memory(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as stream:
        stream.truncate(10 * 2**30)  # sparse
    tracemalloc.start()
    with pytest.raises(ConfigError, match="1 MB"):
        read_config(path)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_w13_a_missing_config_names_the_path(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="cannot read"):
        read_config(tmp_path)


def test_w14_a_newer_schema_asks_for_an_upgrade():
    with pytest.raises(ConfigError, match="Upgrade"):
        config_from_json({**CONTRACT, "schema": 2, "kind": {"new": "shape"}})


def test_w15_an_unknown_entry_is_named_and_left_out():
    with pytest.warns(ConfigWarning, match="color"):
        config = config_from_json({**CONTRACT, "color": "blue"})
    assert config.to_json() == CONTRACT


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", ".hidden", "", "a b", "x" * 300])
def test_w16_a_name_that_is_a_path_is_refused(name):
    with pytest.raises(ConfigError, match="name"):
        config_from_json({**CONTRACT, "name": name})


def test_a_config_made_in_python_is_checked_too():
    with pytest.raises(ConfigError, match="width"):
        ModelConfig(
            name="a",
            kind="unet",
            architecture="unet3d",
            arguments={"width": 0},
            preprocessing=Preprocessing(),
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=8,
)


@pytest.mark.filterwarnings("ignore::universal_model_hub.config.ConfigWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_property_only_our_errors_escape_from_a_mutated_config(tmp_path, data):
    mutated = dict(CONTRACT)
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.sampled_from(list(CONTRACT)) | st.text(max_size=5))] = data.draw(JSON)
    text = bytearray(json.dumps(mutated).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        config = read_config(write(tmp_path, bytes(text)))
    except UniversalModelError:
        return
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config
