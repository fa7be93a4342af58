"""The package is built in layers: a module imports only from lower ones, or from its left."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "universal_model_hub"

# Lowest first; within a line, left to right.
LAYERS = [
    ["errors", "files", "extras", "devices", "rounding"],
    ["volume", "resample", "preprocess"],
    ["networks", "heads"],
    ["config", "tensors", "catalog", "hub", "card"],
    ["source", "assemble", "saving", "loading", "publish"],
    ["tiles", "canvas", "memory", "inference", "windows", "job", "features"],
    ["predict", "viewer", "probe", "convert", "export", "picture"],
    ["fit"],
    ["cli"],
]
FIT_PARTS = ["data", "training", "reporting"]  # of fit/, lowest first; above them its modules
RANK = {name: rank for rank, name in enumerate(name for layer in LAYERS for name in layer)}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(path: Path) -> list[str]:
    """Return dotted names of what a module imports; ``from a.b import c`` is a.b.c."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def imported_parts(path: Path, within: str = "universal_model_hub.") -> set[str]:
    rests = [name[len(within) :] for name in imported_names(path) if name.startswith(within)]
    return {rest.split(".")[0] for rest in rests if not rest.startswith("_")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_left_and_below(path: Path):
    part = part_of(path)
    if part == "__main__":
        return
    assert part in RANK, f"{part} has no place in LAYERS: give it one"
    upward = {p for p in imported_parts(path) if RANK[p] > RANK[part]}
    assert not upward, f"{path.name} imports from later stages: {sorted(upward)}"


@pytest.mark.parametrize("part", FIT_PARTS)
def test_the_parts_of_fit_import_only_from_those_before_them(part: str):
    allowed = set(FIT_PARTS[: FIT_PARTS.index(part) + 1])
    paths = list((PACKAGE / "fit" / part).rglob("*.py"))
    assert len(paths) > 1
    for path in paths:
        later = imported_parts(path, "universal_model_hub.fit.") - allowed
        assert not later, f"{path.name} imports from later parts: {sorted(later)}"


def test_the_package_never_imports_training():
    for path in PACKAGE.rglob("*.py"):
        assert not any(name.split(".")[0] == "training" for name in imported_names(path)), path


def test_importing_the_package_loads_no_heavy_module():
    code = (
        "import sys, universal_model_hub; "
        "heavy = {'torch', 'nibabel', 'numpy', 'huggingface_hub'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_resolves():
    import universal_model_hub

    for home in set(universal_model_hub._HOME_OF.values()):
        importlib.import_module(f"universal_model_hub.{home}")  # a module must not hide a function
    for name in set(universal_model_hub.__all__) - {"__version__"}:
        assert callable(getattr(universal_model_hub, name)), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = universal_model_hub.no_such_name


FORBIDDEN = ("pickle.", "import pickle", "torch.load(", "yaml.load(", "eval(", "shell=True")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_in_the_package_can_run_code_from_a_file(path: Path):
    if path.name == "convert.py":
        return
    for line in path.read_text().splitlines():
        code = line.split("#")[0].replace(".eval()", "").replace("literal_eval(", "")
        hits = [word for word in FORBIDDEN if word in code]
        assert not hits, f"{path.name}: {line.strip()}"
