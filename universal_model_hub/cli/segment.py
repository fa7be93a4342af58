"""``umh segment``: scans to label maps on the scans' own voxels."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from universal_model_hub.cli import messages, options
from universal_model_hub.cli.batch import finish, run_plan, shows_progress
from universal_model_hub.cli.planning import Job, make_plan

if TYPE_CHECKING:
    from universal_model_hub.config import ModelConfig
    from universal_model_hub.networks import SegmentationNetwork
    from universal_model_hub.volume import Volume


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    options.add_scans(
        parser, output=".nii or .nii.gz file", model="the first trained segmenter of the catalog"
    )
    options.add_network(parser)
    options.add_hub(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Label every scan; check inputs, outputs, device and model before the first is read."""
    suffixes = (".nii", ".nii.gz")
    channels = options.num_channels(args)
    plan = make_plan(
        args.inputs, args.output, suffixes=suffixes, force=args.force, channels=channels
    )
    if not plan.jobs:
        return finish(plan, run_plan(plan, args, lambda job: {}), args)
    from universal_model_hub.predict import predict
    from universal_model_hub.volume import save_volume

    model = load_model(args)
    names = cast("ModelConfig", model.config).labels or {}

    def work(job: Job) -> Mapping[str, Any]:
        labels = predict(
            model,
            job.scans,
            modality=args.modality,
            memory_limit=args.memory_limit,
            device=args.device,
            precision=args.precision,
            progress=shows_progress(plan, args),
        )
        save_volume(labels, job.output, force=args.force)
        return {"labels": label_table(labels, names)}

    return finish(plan, run_plan(plan, args, work), args)


def load_model(args: argparse.Namespace) -> "SegmentationNetwork":
    """Load the segmenter, on the device that was asked for.

    Raises:
        ConfigError: If the device cannot be used, or no model is named and the catalog has none.
        WeightsError: If the model's head is untrained.
    """
    from universal_model_hub.devices import torch_device
    from universal_model_hub.errors import WeightsError
    from universal_model_hub.loading import load_segmenter

    torch_device(args.device)
    name = args.model or default_segmenter()
    model = load_segmenter(name, in_channels=None, device=args.device, **options.hub_options(args))
    if not model.head_trained:
        raise WeightsError(
            f"Expected a segmenter with a trained head, that of {name} is untrained. Train it "
            "first, then save it with head_trained=True."
        )
    if args.verbose:
        messages.say(str(model.load_report))
    return model


def default_segmenter() -> str:
    """Return the first segmenter of the catalog that has weights.

    Raises:
        ConfigError: If there is none.
    """
    from universal_model_hub.catalog import get_weights, list_models
    from universal_model_hub.errors import ConfigError

    for name in list_models():
        row = get_weights(name)
        if row.kind == "segmenter" and row.available:
            return name
    raise ConfigError(
        "Expected --model: the catalog has no trained segmenter yet. Name a model folder of your "
        "own, or hf-hub:org/name@revision."
    )


def label_table(labels: "Volume", names: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """Return for each label that occurs, 0 left out: its name, its voxels, its volume in ml."""
    import numpy as np

    voxel_ml = abs(float(np.linalg.det(labels.affine[:3, :3]))) / 1000
    counts = np.zeros(int(labels.array.max()) + 1, np.int64)
    for plane in labels.array:  # plane by plane: bincount works on 8 bytes a voxel
        counts += np.bincount(plane.reshape(-1), minlength=len(counts))
    return {
        str(label): {
            "name": names.get(label),
            "voxels": int(counts[label]),
            "ml": float(counts[label]) * voxel_ml,
        }
        for label in np.flatnonzero(counts).tolist()
        if label != 0
    }
