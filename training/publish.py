"""From a finished run to a model folder, and from there to the Hub.

    python -m training.publish --run-folder RUN --output MODEL [--metrics FILE.json ...]
    python -m training.publish --run-folder RUN --output MODEL --repo-id org/name

The folder holds the U-Net alone (the discriminator and the scale classifier stay in the run), a
config with the whole provenance, and a card. The catalog row to paste is printed.
"""

import argparse
import datetime
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from training.config import Recipe, recipe_of
from training.metrics import commit, read_lines
from universal_model_hub.catalog import WEIGHTS
from universal_model_hub.config import read_config
from universal_model_hub.errors import CheckpointError, ConfigError, UniversalModelError
from universal_model_hub.files import parse_json, sha256_of
from universal_model_hub.fit.training.checkpoint import list_checkpoints, load_checkpoint
from universal_model_hub.networks import ARCHITECTURES
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.publish import push_to_hub
from universal_model_hub.saving import save_pretrained

LICENSE = "apache-2.0"
UNET_PREFIX = "unet."


def publish(
    run_folder: Path,
    folder: Path,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    average: bool = True,
    dtype: Literal["float32", "float16"] = "float32",
    data: str = "",
    unfinished: bool = False,
    force: bool = False,
) -> Path:
    """Write the model folder of a finished run.

    Args:
        run_folder: Of ``training.pretrain``.
        folder: Where the model folder goes; its name becomes the model's.
        metrics: Measured results beside the run's own validation, as in config.json.
        average: Take the moving average of the weights where the run kept one.
        dtype: How kernels are stored, see ``save_pretrained``.
        data: What the cubes were cut from, with licenses, for the card.
        unfinished: Publish a run that was stopped before its last step; the card then says so.
        force: Overwrite a model that is in the folder.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the run has no usable checkpoint, or has not reached its last step.
    """
    step, state, config = final_checkpoint(run_folder)
    recipe = recipe_of(config["recipe"])
    if step < recipe.run.steps and not unfinished:
        raise CheckpointError(
            f"{run_folder} has reached step {step} of {recipe.run.steps}. Start training.pretrain "
            "again with the same arguments to finish it."
        )
    provenance = provenance_of(run_folder, config, recipe)
    if data:
        provenance["data"] = data
    if step < recipe.run.steps:
        provenance["unfinished"] = f"stopped at step {step} of {recipe.run.steps}"
    unet = unet_of(state, recipe, average=average)
    return save_pretrained(
        unet,
        folder,
        license=LICENSE,
        preprocessing=recipe.preprocessing,
        provenance=provenance,
        metrics=[*validation_metrics(run_folder, recipe), *metrics],
        head_trained=True,
        dtype=dtype,
        force=force,
    )


def final_checkpoint(run_folder: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Load the newest checkpoint of a run: step, state and configuration.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    found = list_checkpoints(run_folder / "checkpoints")
    if not found:
        raise CheckpointError(f"{run_folder} holds no checkpoint. Run training.pretrain first.")
    return load_checkpoint(found[-1])


def unet_of(state: Mapping[str, Any], recipe: Recipe, *, average: bool) -> UNet3D:
    """Build the U-Net of a checkpoint's state, averaged weights where the run kept them."""
    values: Mapping[str, Tensor] = state["model"]
    if average and "ema" in state:
        values = state["ema"]["values"]
    unet = ARCHITECTURES[recipe.model.architecture](
        width=recipe.model.width, normalization=recipe.model.normalization
    )
    own = {
        name.removeprefix(UNET_PREFIX): value
        for name, value in values.items()
        if name.startswith(UNET_PREFIX)
    }
    assert isinstance(unet, UNet3D)
    unet.load_state_dict(own, strict=True)
    unet.eval()
    return unet


def provenance_of(run_folder: Path, config: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Say how a run's weights came to be; hours, hardware and date are kept out of the tensors."""
    summary = parse_json((run_folder / "summary.json").read_bytes())
    return {
        "commit": summary.get("commit") or commit(),  # of the code that trained
        "recipe": f"{recipe.name}.toml",
        "recipe_sha256": recipe_sha256(recipe),
        "data_sha256": config["data_sha256"],
        "seed": recipe.run.seed,
        "versions": {"torch": summary["hardware"]["torch"]},
        "hours": summary["hours"],
        "hardware": json.dumps(summary["hardware"], sort_keys=True),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def recipe_sha256(recipe: Recipe) -> str:
    """Hash of a recipe's values, whatever its file's layout and comments."""
    return hashlib.sha256(json.dumps(recipe.to_json(), sort_keys=True).encode()).hexdigest()


def validation_metrics(run_folder: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the last validation of a run as rows for config.json."""
    lines = [x for x in read_lines(run_folder / "metrics.jsonl") if x["part"] == "validation"]
    if not lines:
        return []
    return [
        {
            "task": "pre-training, held-out cubes",
            "metric": name,
            "value": round(float(value), 6),
            "std": 0.0,
            "n": recipe.run.validation_cubes,
            "seeds": 1,
            "source": f"run of {recipe.name}, step {lines[-1]['step']}",
        }
        for name, value in sorted(lines[-1].items())
        if name not in ("step", "part")
    ]


def catalog_row(folder: Path, *, repo_id: str | None, revision: str | None) -> str:
    """Return the row that pins this model, to paste into the rows of ``catalog.py``.

    A row of that name keeps its summary.
    """
    config = read_config(folder / "config.json")
    weights = folder / "model.safetensors"
    old = WEIGHTS.get(config.name)
    fields = {
        "name": config.name,
        "source": "bundled" if repo_id is None else "hub",
        "kind": config.kind,
        "architecture": config.architecture,
        "arguments": config.to_json()["arguments"],
        "summary": old.summary if old else "3D U-Net, pre-trained by the paper's method",
        "repo_id": repo_id,
        "revision": revision,
        "sha256": sha256_of(weights),
        "size": weights.stat().st_size,
        "license": config.license,
    }
    lines = "".join(f"        {name}={value!r},\n" for name, value in fields.items())
    return f"    Weights(\n{lines}    ),"


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.publish", description=__doc__)
    parser.add_argument("--run-folder", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--output", "-o", type=Path, required=True, help="model folder to write")
    parser.add_argument("--metrics", type=Path, action="append", default=[], help="JSON lists")
    parser.add_argument("--raw", action="store_true", help="last weights, not their average")
    parser.add_argument("--unfinished", action="store_true", help="also if steps are missing")
    parser.add_argument("--repo-id", help="push there, in one commit")
    parser.add_argument("--endpoint", help="another Hub than the default")
    parser.add_argument("--force", action="store_true", help="overwrite the model folder")
    options = parser.parse_args(arguments)
    try:
        metrics = [row for path in options.metrics for row in read_metrics(path)]
        folder = publish(
            options.run_folder,
            options.output,
            metrics=metrics,
            average=not options.raw,
            unfinished=options.unfinished,
            force=options.force,
        )
        revision = None
        if options.repo_id:
            revision = push_to_hub(folder, options.repo_id, endpoint=options.endpoint).revision
    except UniversalModelError as error:
        print(f"publish: error: {error}", file=sys.stderr)
        return error.exit_code
    print(catalog_row(folder, repo_id=options.repo_id, revision=revision))
    return 0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of result rows.

    Raises:
        ConfigError: If the file is missing or is no list of tables.
    """
    try:
        rows = parse_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"The metrics {path} cannot be read: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"Expected a list of result rows in {path}.")
    return rows


if __name__ == "__main__":
    sys.exit(main())
