"""The READMEs say what the result files say, and name only what exists."""

import re
from pathlib import Path

import pytest

from benchmarks.readme import PASSAGES, written

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", PASSAGES)
def test_the_measured_passages_are_those_of_the_result_files(name):
    text = (ROOT / name).read_text()
    assert text == written(name, text), "run python -m benchmarks.readme"
    assert text.count(": begin -->") >= len(PASSAGES[name])


def test_every_make_target_in_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?m)(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named
    assert named <= targets


@pytest.mark.parametrize("name", PASSAGES)
def test_every_link_in_readme_leads_somewhere(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", text)
    assert links
    assert all(((ROOT / name).parent / link).exists() for link in links)
