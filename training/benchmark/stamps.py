"""The same weights under other commits: the file's hash holds the commit that published it.

    python -m training.benchmark.stamps MODEL SHA256

A pre-training that is done again on the same kind of processor gives the same tensors, and another
hash of the file. This finds the commit from which a model folder's tensors would have had a hash.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from universal_model_hub.errors import CheckpointError, ConfigError, UniversalModelError
from universal_model_hub.files import parse_json
from universal_model_hub.tensors import read_metadata, read_tensors, tensor_bytes

WEIGHTS = "model.safetensors"


def tensors_sha256(model: Path) -> str:
    """Return a hash of a model folder's tensors alone: names, shapes, dtypes and values."""
    return hashlib.sha256(tensor_bytes(read_tensors(model / WEIGHTS), {})).hexdigest()


def same_files(model: Path, hashes: Iterable[str], commits: Sequence[str]) -> dict[str, str]:
    """Return those hashes that a model folder's tensors have under the stamp of a commit.

    Args:
        model: Folder as a pre-training publishes it.
        hashes: SHA-256 of weights' files.
        commits: Stamps to try.

    Returns:
        The commit of each hash that is found; other tensors have none.

    Raises:
        CheckpointError: If the weights carry no commit, or are not stored in full precision.
    """
    path = model / WEIGHTS
    tensors, metadata = read_tensors(path), read_metadata(path)
    provenance = json.loads(metadata.get("provenance", "{}"))
    if "commit" not in provenance:
        raise CheckpointError(f"Expected weights that name their commit in {path}, got none.")
    stamp = json.dumps(provenance, sort_keys=True)
    data = tensor_bytes(tensors, {"provenance": stamp})
    if data != path.read_bytes():
        raise CheckpointError(f"Expected float32 weights as published in {path}, got others.")
    wanted = set(hashes)
    found: dict[str, str] = {}
    for commit in dict.fromkeys([provenance["commit"], *commits]):
        if not wanted - set(found):
            break
        told = json.dumps({**provenance, "commit": commit}, sort_keys=True)
        sha256 = hashlib.sha256(tensor_bytes(tensors, {"provenance": told})).hexdigest()
        if sha256 in wanted:
            found[sha256] = commit
    return found


def hashes_in(out: Path) -> dict[str, set[str]]:
    """Return the hashes of weights that the results in a folder start from, by their recipe's."""
    found: dict[str, set[str]] = {}
    for path in (*out.glob("runs/*.json"), *out.glob("earlier/**/*.json")):
        try:
            known = parse_json(path.read_bytes())["pretraining"]
            if known is not None:
                found.setdefault(known["recipe_sha256"], set()).add(known["sha256"])
        except (KeyError, TypeError, ValueError) as cause:
            raise ConfigError(f"Expected a result in {path}, got {cause!r}. Delete it.") from cause
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring. Exit 1 if no commit fits."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmark.stamps")
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("sha256", help="hash of a file of weights")
    options = parser.parse_args(arguments)
    try:
        found = same_files(options.model, [options.sha256], history())
        tensors = tensors_sha256(options.model)
    except UniversalModelError as error:
        print(f"stamps: error: {error}", file=sys.stderr)
        return error.exit_code
    if options.sha256 not in found:
        print(f"other tensors than {tensors}, or published from no commit of this history")
        return 1
    print(f"the tensors {tensors}, published from {found[options.sha256]}")
    return 0


def history() -> list[str]:
    """List the commits of the repository that this file is in, newest first."""
    try:
        listed = subprocess.run(
            ["git", "log", "--all", "--format=%H"],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as cause:
        raise ConfigError(
            "Expected a git checkout, whose commits are tried, got none. Clone the repository."
        ) from cause
    return listed.stdout.split()


if __name__ == "__main__":
    raise SystemExit(main())
