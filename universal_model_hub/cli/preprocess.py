"""``umh preprocess``: scans as a model sees them, as NIfTI files."""

import argparse
from collections.abc import Mapping
from typing import Any

from universal_model_hub.cli import options
from universal_model_hub.cli.batch import finish, run_plan
from universal_model_hub.cli.info import find_model
from universal_model_hub.cli.planning import Job, make_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    options.add_scans(parser, output=".nii or .nii.gz file", model="the catalog's first")
    options.add_hub(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Orient, resample, clip and scale every scan by the model's own settings."""
    plan = make_plan(args.inputs, args.output, suffixes=(".nii", ".nii.gz"), force=args.force)
    if not plan.jobs:
        return finish(plan, run_plan(plan, args, lambda job: {}), args)
    from universal_model_hub.catalog import list_models
    from universal_model_hub.preprocess import preprocess
    from universal_model_hub.volume import Volume, load_volume, save_volume

    config = find_model(args.model or list_models()[0], args).config

    def work(job: Job) -> Mapping[str, Any]:
        cube, record = preprocess(load_volume(job.source), config, args.modality)
        volume = Volume(cube[0, 0].numpy(), record.model_affine)
        save_volume(volume, job.output, force=args.force)
        return {
            "modality": record.modality,
            "modality_reason": record.modality_reason,
            "shape": list(volume.shape),
            "spacing": list(volume.spacing),
        }

    return finish(plan, run_plan(plan, args, work), args)
