"""The catalog: names, order, patterns, and rows that promise nothing that is not there."""

import re

import pytest

from universal_model_hub import catalog
from universal_model_hub.catalog import WEIGHTS, Weights, get_weights, list_models
from universal_model_hub.errors import ConfigError


def test_the_default_model_comes_first():
    assert list_models()[0] == "unet3d-compact"


def test_names_after_the_default_are_sorted(monkeypatch: pytest.MonkeyPatch):
    row = WEIGHTS["unet3d"]
    table = dict.fromkeys(("zeta", "beta", "alpha", "gamma"), row)
    monkeypatch.setattr(catalog, "WEIGHTS", table)
    assert list_models() == ["zeta", "alpha", "beta", "gamma"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["unet3d-compact", "unet3d", "unet3d-compact-anatomy", "unet3d-compact-chest"]),
        ("*compact", ["unet3d-compact"]),
        ("unet3d", ["unet3d"]),
        ("UNET3D", []),
        ("resnet*", []),
    ],
)
def test_a_pattern_selects_names(pattern: str, names: list[str]):
    assert list_models(pattern) == names


def test_a_row_is_found_by_its_name():
    row = get_weights("unet3d-compact")
    assert (row.name, row.source, row.arguments) == ("unet3d-compact", "bundled", {"width": 8})


def test_c05_an_unknown_name_lists_the_near_ones():
    with pytest.raises(ConfigError, match="unet3d-compact"):
        get_weights("unet3d-compct")


def test_an_unknown_name_near_nothing_lists_all():
    with pytest.raises(ConfigError, match="Known: unet3d-compact, unet3d"):
        get_weights("xyzzy")


def test_rows_invent_neither_organization_nor_commit():
    for row in WEIGHTS.values():
        assert (row.repo_id is None) == (row.revision is None), row.name
        if row.revision is not None:
            assert re.fullmatch("[0-9a-f]{40}", row.revision), row.name


def test_a_published_or_bundled_row_is_pinned():
    for row in WEIGHTS.values():
        if row.available:
            assert re.fullmatch("[0-9a-f]{64}", row.sha256 or ""), row.name


def test_every_name_is_its_own_key_and_fits_in_a_file_name():
    for name, row in WEIGHTS.items():
        assert row.name == name
        assert re.fullmatch("[a-z0-9][a-z0-9-]*", name)


def test_a_hub_row_is_available_once_published():
    row = Weights(name="x", source="hub", kind="unet", architecture="unet3d", summary="x")
    assert not row.available
    published = Weights(
        name="x",
        source="hub",
        kind="unet",
        architecture="unet3d",
        summary="x",
        repo_id="a/b",
        revision="0" * 40,
    )
    assert published.available
    assert published.folder is None
