"""How much ``pip install`` brings beyond torch and numpy: packages and megabytes of wheels.

    python -m benchmarks.package_size [--output results/package_size.json]

Two fresh virtual environments: one with torch and numpy as constraints.txt pins them, one with this
package as well. The difference of their lists is what the package adds. Sizes are those of the
wheels that pip downloads.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.record import stamp
from universal_model_hub.files import write_json

ROOT = Path(__file__).parent.parent
BOUND = {"packages": 18, "megabytes": 20.0}  # of architecture, beyond torch and numpy


def main() -> int:
    """Measure, print and write the result; exit code 1 when it is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "package_size.json")
    options = parser.parse_args()
    constraints = ["-c", str(ROOT / "constraints.txt")]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = install(work / "base", [*constraints, "torch", "numpy"])
        full = install(work / "full", [*constraints, str(ROOT)])
        added = {name: version for name, version in full.items() if name not in base}
        own = added.pop("universal_model_hub", added.pop("universal-model-hub", None))
        sizes = wheel_sizes(work, added)
    result = {
        **stamp(),
        "own_version": own,
        "packages": len(added),
        "megabytes": round(sum(sizes.values()) / 1e6, 2),
        "bound": BOUND,
        "added": {name: {"version": added[name], "bytes": sizes[name]} for name in sorted(added)},
    }
    write_json(options.output, result)
    print(json.dumps({key: result[key] for key in ("packages", "megabytes", "bound")}))
    within = len(added) <= BOUND["packages"] and result["megabytes"] <= BOUND["megabytes"]
    return 0 if within else 1


def install(folder: Path, arguments: list[str]) -> dict[str, str]:
    """Make a virtual environment, install into it, and return its packages with versions."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", *arguments]
    subprocess.run(command, check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    )
    packages = {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}
    return {name: v for name, v in packages.items() if name not in ("pip", "setuptools")}


def wheel_sizes(work: Path, packages: dict[str, str]) -> dict[str, int]:
    """Download the wheels of exactly these versions and return their sizes in bytes."""
    sizes = {}
    for name, version in packages.items():
        target = work / "wheels" / name
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(target), f"{name}=={version}"], check=True)
        sizes[name] = sum(file.stat().st_size for file in target.iterdir())
    return sizes


if __name__ == "__main__":
    sys.exit(main())
