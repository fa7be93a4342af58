"""Train a published model's recipe again and compare with what its card says.

    python -m training.reproduce --model MODEL --recipe smoke --cubes STORE --run-folder RUN

under ``torchrun`` where the run itself was, since each process normalizes its own share of a batch.

The recipe and the cubes must be those of the card (by hash). The new run's validation is compared
with the card's, metric by metric; a difference above the tolerance ends with exit code 4. On the
same machine and versions a CPU run gives the very same weights, and this is said when it does.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from training.config import Recipe, load_recipe
from training.cubes import CubeStore
from training.metrics import runs_folder
from training.pretrain import pretrain
from training.publish import publish, recipe_sha256, validation_metrics
from universal_model_hub.config import ModelConfig, read_config
from universal_model_hub.errors import ConfigError, IntegrityError, UniversalModelError
from universal_model_hub.tensors import inspect_tensors, read_tensors

WEIGHTS = "model.safetensors"
TOLERANCE = 0.05  # relative, for losses; absolute, for accuracies. Source: ours


def check_same_source(config: ModelConfig, recipe: Recipe, store: CubeStore) -> None:
    """Refuse to compare runs of different recipes or different cubes.

    Raises:
        ConfigError: Saying which of the two differs.
    """
    for what, stated, found in (
        ("recipe", config.provenance.get("recipe_sha256"), recipe_sha256(recipe)),
        ("cubes", config.provenance.get("data_sha256"), store.sha256),
    ):
        if stated != found:
            raise ConfigError(
                f"The card of {config.name} names other {what} (sha256 {stated}) than these "
                f"({found}). Use the {what} that it was trained with."
            )


def compare(
    stated: list[dict[str, Any]], found: list[dict[str, Any]], tolerance: float
) -> list[dict[str, Any]]:
    """Compare two lists of result rows by task and metric.

    Accuracies are compared by their difference, everything else relative to the stated value.

    Returns:
        A row for each metric of ``found`` that the card states: both values, the difference, and
        whether it is within the tolerance.

    Raises:
        ConfigError: If there is nothing to compare.
    """
    values = {(row["task"], row["metric"]): float(row["value"]) for row in stated}
    rows = []
    for row in found:
        key = (row["task"], row["metric"])
        if key not in values:
            continue
        difference = abs(float(row["value"]) - values[key])
        if not row["metric"].endswith("accuracy"):
            difference /= max(abs(values[key]), 1e-12)
        rows.append(
            {
                "task": row["task"],
                "metric": row["metric"],
                "stated": values[key],
                "found": float(row["value"]),
                "difference": difference,
                "within": difference <= tolerance,
            }
        )
    if not rows:
        raise ConfigError("The card and the new run have no metric in common.")
    return rows


def same_tensors(one: Path, two: Path) -> bool:
    """Whether two weight files hold the same tensors, bit by bit."""
    names = list(inspect_tensors(one))
    if names != list(inspect_tensors(two)):
        return False
    first, second = read_tensors(one, names), read_tensors(two, names)
    return all(torch.equal(first[name], second[name]) for name in names)


def reproduce(
    model: Path, recipe: Recipe, store: CubeStore, run_folder: Path, *, tolerance: float
) -> dict[str, Any] | None:
    """Train again and compare.

    Returns:
        The rows of ``compare``, and whether the weights are the same bit by bit; None in every
        process but the first.

    Raises:
        ConfigError: If recipe or cubes are not the card's.
        IntegrityError: If a metric differs by more than the tolerance.
    """
    config = read_config(model / "config.json")
    check_same_source(config, recipe, store)
    code = pretrain(recipe, store, run_folder)
    if code:
        raise ConfigError(f"The run was stopped (exit code {code}). Start again to go on.")
    if int(os.environ.get("RANK", "0")) > 0:
        return None  # the first process compares
    stated = [dict(row) for row in config.metrics]
    rows = compare(stated, validation_metrics(run_folder, recipe), tolerance)
    with tempfile.TemporaryDirectory() as folder:
        again = publish(run_folder, Path(folder) / config.name)
        same = same_tensors(model / WEIGHTS, again / WEIGHTS)
    result = {"model": config.name, "tolerance": tolerance, "same_weights": same, "metrics": rows}
    outside = [row["metric"] for row in rows if not row["within"]]
    if outside:
        raise IntegrityError(
            f"{config.name} was not reproduced: {', '.join(outside)} differ by more than "
            f"{tolerance} from the card. " + json.dumps(result)
        )
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.reproduce", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model folder with its card")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--cubes", type=Path, required=True)
    parser.add_argument(
        "--run-folder", type=Path, help="run folder (default: $UMH_RUNS/NAME-again)"
    )
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.set)
        run = options.run_folder or runs_folder() / f"{recipe.name}-again"
        store = CubeStore(options.cubes)
        result = reproduce(options.model, recipe, store, run, tolerance=options.tolerance)
    except UniversalModelError as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return error.exit_code
    if result is not None:
        print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
