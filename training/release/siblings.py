"""The ablation's arms: the compact recipe with parts switched off, each at one shorter budget.

    python -m training.release.siblings list
    python -m training.release.siblings train [--only NAME...] [--steps STEPS]

The full objective is among them, so that they differ in the objective and in what they see, not in
length. Cubes, checkpoints and model folders lie in ``$UMH_RUNS/siblings``, outside the package; the
same command goes on where it stopped, and prints what ``training.release.evaluate`` takes.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from training.config import Recipe, load_recipe
from training.corpora.packaged import packaged_folder
from training.corpora.packaged_table import read_table
from training.metrics import runs_folder
from training.pretrain import pretrain
from training.publish import publish
from training.release.prepare import make_store
from training.release.weights import SUBJECTS, data_text, fetch_scans
from universal_model_hub.errors import UniversalModelError

SHARE = 8  # of the released run's steps, as its divisor
NO_MIAL, NO_SC = "objective.modality_weight=0.0", "objective.scale_weight=0.0"
ONE_MODALITY = (NO_MIAL, NO_SC)

# Source: Zhang et al., Table IV. The Genesis manner (Zhou et al., 2019) is CT alone in its own
# voxels at one scale, as many cubes a scan as the three scales have together.
SIBLINGS: dict[str, tuple[str, ...]] = {
    "genesis": (
        'modalities=["CT"]',
        'preprocessing.spacing="native"',
        "cubes.scales=[1.0]",
        "cubes.scale_jitter=0.0",
        "cubes.counts={packaged=[400]}",
        "cubes.default_counts=[24]",
        *ONE_MODALITY,
    ),
    "ct": ('modalities=["CT"]', *ONE_MODALITY),
    "mr": ('modalities=["MR"]', *ONE_MODALITY),
    "multi": (NO_MIAL, NO_SC),
    "multi-mial": (NO_SC,),
    "multi-sc": (NO_MIAL,),
    "full": (),
}
OWN_CUBES = ("genesis",)  # the others share theirs


def overrides_of(name: str, steps: int | None = None) -> tuple[str, ...]:
    """Return the settings of a sibling over the compact recipe.

    Args:
        name: Key of ``SIBLINGS``.
        steps: Of the training; None: an eighth of the released run's.
    """
    recipe = load_recipe("compact")
    steps = steps or recipe.run.steps // SHARE

    def shortened(count: int) -> int:
        return max(1, count * steps // recipe.run.steps)

    return (
        f"name=compact-{name}",
        f"run.steps={steps}",
        f"run.validate_every={steps}",
        f"schedule.warmup_steps={shortened(recipe.schedule.warmup_steps)}",
        f"objective.reversal_delay={shortened(recipe.objective.reversal_delay)}",
        f"objective.reversal_ramp={shortened(recipe.objective.reversal_ramp)}",
        *SIBLINGS[name],
    )


def make_sibling(name: str, recipe: Recipe, work: Path, *, device: str, workers: int) -> int:
    """Prepare what is missing, train and publish one sibling.

    Args:
        name: Key of ``SIBLINGS``.
        recipe: The compact one with the sibling's settings.
        work: Gets ``cubes``, ``runs`` and ``models``.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: Processes that prepare cubes.

    Returns:
        0, or 128 plus the number of the signal that stopped the training.
    """
    own = name in OWN_CUBES
    cubes = work / (f"cubes-{name}" if own else "cubes")
    # The shared cubes are of both modalities, whoever of the siblings comes first.
    settings = recipe if own else load_recipe("compact")
    store = make_store(settings, cubes, subjects=SUBJECTS, workers=workers)
    folder = work / "runs" / name
    code = pretrain(recipe, store, folder, device=device)
    if code == 0:
        data = data_text(read_table(), recipe, SUBJECTS)
        publish(folder, work / "models" / name, dtype="float16", data=data, force=True)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.release.siblings")
    parser.add_argument("action", choices=("list", "train"))
    parser.add_argument("--only", nargs="+", choices=tuple(SIBLINGS), default=list(SIBLINGS))
    parser.add_argument("--steps", type=int, help="of each; default: an eighth of the release's")
    parser.add_argument("--work", type=Path, default=runs_folder() / "siblings")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="to prepare cubes")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps: expected at least 1, got {options.steps}")
    try:
        if options.action == "train":
            fetch_scans(read_table(), packaged_folder())
        for name in options.only:
            overrides = overrides_of(name, options.steps)
            if options.action == "list":
                print(name, *overrides)
                continue
            recipe = load_recipe("compact", overrides)
            code = make_sibling(
                name, recipe, options.work, device=options.device, workers=options.workers
            )
            if code:
                return code
            print(f"{name}={options.work / 'models' / name}")
    except UniversalModelError as error:
        print(f"siblings: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
