"""torch.hub: clean interpreters, with and without the package installed."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from universal_model_hub import loading
from universal_model_hub.networks.unet3d import UNet3D

ROOT = Path(__file__).parent.parent
ENTRY_POINTS = ["load_classifier", "load_encoder", "load_segmenter", "load_unet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = UNet3D(out_channels=2, width=1, activation=None)
    return loading.save_pretrained(model, tmp_path_factory.mktemp("hub") / "tiny")


def python(code: str, *arguments: object, cwd: Path, path: str | None = None) -> str:
    """Run code in a new interpreter that finds this project only through what ``code`` does.

    The project as an entry of sys.path, or as an editable install, is taken away first.
    """
    hide = (
        "import sys; sys.path[:] = [p for p in sys.path if p != sys.argv[1]];"
        "sys.meta_path[:] = [f for f in sys.meta_path if '__editable__' not in repr(f)];\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide + code, str(ROOT), *map(str, arguments)],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), **({"PYTHONPATH": path} if path else {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_entry_points_are_the_contracts_four():
    spaces: dict = {}
    exec(compile((ROOT / "hubconf.py").read_text(), "hubconf.py", "exec"), spaces)
    public = sorted(n for n, v in spaces.items() if callable(v) and not n.startswith("_"))
    assert public == ENTRY_POINTS


def test_help_names_shapes_license_and_a_pinned_trusted_example():
    spaces: dict = {}
    exec(compile((ROOT / "hubconf.py").read_text(), "hubconf.py", "exec"), spaces)
    for name in ENTRY_POINTS:
        text = spaces[name].__doc__
        for part in ("(N, ", "Apache-2.0", "trust_repo=True", ":v0.1.0", f'"{name}"', "Example:"):
            assert part in text, (name, part)


def test_the_top_imports_only_the_standard_library():
    tree = ast.parse((ROOT / "hubconf.py").read_text())
    imported = {
        name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [node.names[0].name])
    }
    assert imported <= {"re", "warnings", "pathlib", "typing"}


def test_dependencies_are_import_names_of_what_is_required():
    tree = ast.parse((ROOT / "hubconf.py").read_text())
    (value,) = [n.value for n in tree.body if isinstance(n, ast.Assign)]
    required = (ROOT / "setup.cfg").read_text().split("install_requires =")[1].split("\n\n")[0]
    packages = [line.split(">")[0].strip() for line in required.strip().splitlines()]
    assert ast.literal_eval(value) == packages  # each is imported by its own name


def test_a_clean_interpreter_without_the_package_gives_the_same_tensors(tmp_path, folder):
    code = """
import json, torch
entries = {"load_encoder": {}, "load_unet": {}, "load_segmenter": {},
           "load_classifier": {"num_classes": 3}}
out = {}
for entry, options in entries.items():
    torch.manual_seed(5)
    model = torch.hub.load(sys.argv[1], entry, source="local", name=sys.argv[2], **options)
    out[entry] = {name: value.double().sum().item() for name, value in model.state_dict().items()}
import universal_model_hub
print(json.dumps([universal_model_hub.__file__, sys.argv[1] in sys.path, out]))
"""
    file, on_path, sums = json.loads(python(code, folder, cwd=tmp_path).splitlines()[-1])
    assert Path(file).parent.parent == ROOT
    assert not on_path
    for entry, theirs in sums.items():
        torch.manual_seed(5)
        options = {"num_classes": 3} if entry == "load_classifier" else {}
        ours = getattr(loading, entry)(folder, **options)
        assert theirs == {n: v.double().sum().item() for n, v in ours.state_dict().items()}


@pytest.fixture
def installed(tmp_path) -> Path:
    """A folder with a copy of the package, as pip would leave it, of another version."""
    site = tmp_path / "site"
    copy = site / "universal_model_hub"
    shutil.copytree(
        ROOT / "universal_model_hub", copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    text = (copy / "__init__.py").read_text()
    (copy / "__init__.py").write_text(text.replace('__version__ = "', '__version__ = "99.'))
    return site


@pytest.mark.parametrize("imported_before", [False, True])
def test_an_installed_copy_of_another_version_wins_only_if_imported_and_is_named(
    tmp_path, folder, installed, imported_before
):
    code = """
import torch
if sys.argv[3] == "True":
    import universal_model_hub
torch.hub.load(sys.argv[1], "load_encoder", source="local", name=sys.argv[2])
import universal_model_hub
print("version", universal_model_hub.__version__)
"""
    out = python(code, folder, imported_before, cwd=tmp_path, path=str(installed))
    assert ("is imported already and is used" in out) == imported_before
    assert ("version 99." in out) == imported_before
