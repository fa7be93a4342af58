"""README says what the result files say, and names only what exists."""

import re
from pathlib import Path

from benchmarks.readme import written

ROOT = Path(__file__).parent.parent


def test_the_measured_passages_are_those_of_the_result_files():
    text = (ROOT / "README.md").read_text()
    assert text == written(text), "run python -m benchmarks.readme"


def test_every_make_target_in_readme_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?m)(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_every_link_in_readme_leads_somewhere():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", text)
    assert links
    assert all((ROOT / link).exists() for link in links)
