"""The ablation's arms: the compact recipe with parts switched off, each at one shorter budget.

    python -m training.release.siblings list
    python -m training.release.siblings train --cubes STORE --runs FOLDER [--only NAME...]

An eighth of the released run each, the full objective too, so that they differ in the objective
and in what they see, not in length. Their files stay outside the package.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from training.config import load_recipe
from training.metrics import runs_folder

SHARE = 8  # of the released run's steps, as its divisor
NO_MIAL, NO_SC = "objective.modality_weight=0.0", "objective.scale_weight=0.0"

# Source: Zhang et al., Table IV; the Genesis manner needs cubes of its own and is made elsewhere.
SIBLINGS: dict[str, tuple[str, ...]] = {
    "ct": ("modalities=['CT']", NO_MIAL, NO_SC),
    "mr": ("modalities=['MR']", NO_MIAL, NO_SC),
    "multi": (NO_MIAL, NO_SC),
    "multi-mial": (NO_SC,),
    "multi-sc": (NO_MIAL,),
    "full": (),
}


def overrides_of(name: str) -> tuple[str, ...]:
    """Return the settings of a sibling over the compact recipe."""
    recipe = load_recipe("compact")
    steps = recipe.run.steps // SHARE
    return (
        f"name='compact-{name}'",
        f"run.steps={steps}",
        f"run.validate_every={steps}",
        f"schedule.warmup_steps={recipe.schedule.warmup_steps // SHARE}",
        f"objective.reversal_delay={recipe.objective.reversal_delay // SHARE}",
        f"objective.reversal_ramp={recipe.objective.reversal_ramp // SHARE}",
        *SIBLINGS[name],
    )


def command_of(name: str, cubes: Path, runs: Path, device: str, workers: int) -> list[str]:
    """Return the command that trains a sibling; it resumes."""
    command = [sys.executable, "-m", "training.pretrain", "--recipe", "compact", "--quiet"]
    command += ["--cubes", str(cubes), "--run-folder", str(runs / f"compact-{name}")]
    command += ["--device", device, "--workers", str(workers)]
    for override in overrides_of(name):
        command += ["--set", override]
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.release.siblings")
    parser.add_argument("action", choices=("list", "train"))
    parser.add_argument("--only", nargs="+", choices=sorted(SIBLINGS), default=list(SIBLINGS))
    parser.add_argument("--cubes", type=Path, help="store of the compact recipe")
    parser.add_argument("--runs", type=Path, default=runs_folder() / "siblings")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    options = parser.parse_args(arguments)
    if options.action == "list":
        for name in options.only:
            print(name, *overrides_of(name))
        return 0
    if options.cubes is None:
        parser.error("--cubes is needed to train")
    for name in options.only:
        code = subprocess.run(
            command_of(name, options.cubes, options.runs, options.device, options.workers)
        ).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
