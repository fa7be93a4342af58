"""From measured rates to hours: what recipes and very many volumes would take, by what assumptions.

``training.cost`` measures and writes the file that this reads; ``plan.py`` prints from it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import RECIPES, Recipe, load_recipe
from training.published import PUBLISHED
from training.workload import cubes_seen, expected_sources, network_of, store_bytes
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json

COST_FILE = Path(__file__).parent.parent / "results" / "training_cost.json"
# Recipes whose hours are estimated: those of published numbers, and the compact model's if present.
ESTIMATED = (*dict.fromkeys(row.recipe for row in PUBLISHED if row.recipe), "compact")


SLOWEST_BFLOAT16 = 2.0  # times float32's seconds, beyond which its rows are not measured


PAPER_WIDTH = 32


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the extrapolation takes for granted. Source: ours."""

    gpu: str = "one data-center GPU of the A100 class, bfloat16 and channels last"
    gpu_tflops: float = 30.0  # effective; a tenth of that GPU's 312 in bfloat16 matrix products
    gpu_narrow_tflops: float | None = None  # of networks narrower than the paper's, if measured
    gpu_source: str = "a tenth of its peak in matrix products, assumed"
    paper_gpu: str = "GTX 1080 Ti, float32 (the paper's)"
    paper_gpu_tflops: float = 5.0  # effective; somewhat under half of its 11.3
    num_gpus: int = 8
    gpu_scaling: float = 0.9  # of eight times one GPU
    many_volumes: int = 100_000
    preparation_cores: int = 16

    def notes(self) -> list[str]:
        """Return the assumptions as sentences."""
        return [
            f"{self.gpu}: {self.gpu_tflops:g} TFLOP/s effective in training ({self.gpu_source}); "
            + (
                f"networks narrower than 32: {self.gpu_narrow_tflops:g}, without the time of "
                "reading, which then weighs more."
                if self.gpu_narrow_tflops
                else "networks narrower than 32 reach less."
            ),
            f"{self.paper_gpu}: {self.paper_gpu_tflops:g} TFLOP/s effective, assumed.",
            f"{self.num_gpus} GPUs of the first kind do {self.gpu_scaling:.0%} of "
            f"{self.num_gpus} times its work. The batch must then be a multiple of "
            f"{self.num_gpus}; the hours are for the same number of cubes.",
            "This machine: the recipe's operations at the fastest rate measured at the nearest "
            "width; the corruption of cubes keeps up on other cores.",
            "Operations are those of convolutions and linear layers, two for a multiply-add, "
            "three times the forward pass; validation, checkpoints and reading are left out.",
            f"{self.many_volumes:,} volumes: 64 cubes from each, the paper recipe's number of "
            "passes, every volume of the size of a chest CT; reading files is left out.",
            "Rival recipes: the hours of one of their five runs.",
        ]


def measured_gpu(path: Path) -> dict[str, Any]:
    """Return the assumptions that ``training.gpu_check`` has measured, to replace the defaults.

    Raises:
        ConfigError: If the file has no bfloat16 row of the paper's network that passed.
    """
    try:
        result = parse_json(path.read_bytes())
        rates = {
            row["network"]: round(float(row["tflops"]), 1)
            for row in result["training"]
            if (row["precision"], row["compiled"]) == ("bfloat16", False)
        }
        return {
            "gpu": f"one {result['hardware']['gpu']}, bfloat16 and channels last",
            "gpu_tflops": rates["paper"],
            "gpu_narrow_tflops": rates["compact"],
            "gpu_source": "measured by make gpu-check in a few steps, batches already there",
        }
    except (OSError, ValueError, KeyError) as cause:
        raise ConfigError(
            f"Expected the figures of training.gpu_check in {path}, both networks in "
            f"bfloat16, got: {cause!r}. Run make gpu-check on a GPU."
        ) from cause


def extrapolate(measured: Mapping[str, Any], assumptions: Assumptions) -> dict[str, Any]:
    """Return the hours of every recipe, and of very many volumes, from measured rates."""
    names = [name for name in ESTIMATED if (RECIPES / f"{name}.toml").is_file()]
    rows = [recipe_row(load_recipe(name), measured, assumptions) for name in names]
    return {
        "assumptions": dataclasses.asdict(assumptions),
        "notes": assumptions.notes(),
        "recipes": rows,
        "many_volumes": many_volumes_row(load_recipe("paper"), measured, assumptions),
    }


def recipe_row(
    recipe: Recipe, measured: Mapping[str, Any], assumptions: Assumptions
) -> dict[str, Any]:
    """Return the work of one recipe and its hours on each kind of hardware."""
    tflop = 2 * network_of(recipe).training_gmac / 1000
    total = cubes_seen(recipe) * tflop
    return {
        "recipe": recipe.name,
        "steps": recipe.run.steps,
        "cubes_seen": cubes_seen(recipe),
        "tflop_per_cube": round(tflop, 4),
        "hours": hours(recipe, total, measured, assumptions),
    }


def hours(
    recipe: Recipe, tflop: float, measured: Mapping[str, Any], assumptions: Assumptions
) -> dict[str, float]:
    """Return the hours that so many 1e12 operations take, by hardware, to four figures."""
    one = assumptions.gpu_tflops
    if recipe.model.width < PAPER_WIDTH and assumptions.gpu_narrow_tflops:
        one = assumptions.gpu_narrow_tflops
    many = assumptions.num_gpus * assumptions.gpu_scaling * one
    rates = {
        "this_machine": cpu_tflops(recipe.model.width, measured),
        "paper_gpu": assumptions.paper_gpu_tflops,
        "gpu": one,
        "gpus": many,
    }
    return {name: float(f"{tflop / rate / 3600:.4g}") for name, rate in rates.items()}


def cpu_tflops(width: int, measured: Mapping[str, Any]) -> float:
    """Return the fastest measured training rate at the nearest width, in 1e12 operations/s."""
    rows = measured["training"]
    nearest = min((row["width"] for row in rows), key=lambda w: abs(w - width))
    return float(max(row["gflops"] for row in rows if row["width"] == nearest)) / 1000


def many_volumes_row(
    recipe: Recipe, measured: Mapping[str, Any], assumptions: Assumptions
) -> dict[str, Any]:
    """Return what pre-training on very many volumes takes, at the recipe's number of passes."""
    cubes = assumptions.many_volumes * sum(recipe.cubes.default_counts)
    table_1 = sum(source.cubes for source in expected_sources(recipe))
    passes = cubes_seen(recipe) / table_1
    tflop = 2 * network_of(recipe).training_gmac / 1000 * cubes * passes
    preparation = measured["preparation"]
    seconds = preparation["normalize_seconds"] + preparation["cut_seconds"]
    core_hours = assumptions.many_volumes * seconds / 3600
    return {
        "volumes": assumptions.many_volumes,
        "cubes": cubes,
        "passes": round(passes, 1),
        "store_tb": round(store_bytes(cubes, recipe) / 1e12, 2),
        "preparation_core_hours": round(core_hours, 1),
        "preparation_hours": round(core_hours / assumptions.preparation_cores, 1),
        "hours": hours(recipe, tflop, measured, assumptions),
    }


def read_cost(path: Path = COST_FILE) -> dict[str, Any]:
    """Read a cost file.

    Raises:
        ConfigError: If there is none, or it is no cost file.
    """
    try:
        cost = parse_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"No measured cost in {path}. Run python -m training.cost --output {path}."
        ) from error
    if not isinstance(cost, dict) or not {"measured", "estimates"} <= cost.keys():
        raise ConfigError(f"{path} is no cost file. Run python -m training.cost --output {path}.")
    return cost
