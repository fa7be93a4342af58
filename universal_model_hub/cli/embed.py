"""``umh embed``: scans to feature vectors, one .npz file a scan and an index of them all."""

import argparse
import csv
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from universal_model_hub.cli import messages, options
from universal_model_hub.cli.batch import Outcome, finish, run_plan, shows_progress
from universal_model_hub.cli.planning import Job, Plan, make_plan

if TYPE_CHECKING:
    import numpy as np

    from universal_model_hub.assemble import LoadReport
    from universal_model_hub.config import ModelConfig
    from universal_model_hub.networks.pyramid import PyramidEncoder

INDEX = "index.csv"
COLUMNS = ("input", "file", "model", "sha256", "spacing_x", "spacing_y", "spacing_z", "features")


@dataclass(frozen=True)
class Embedding:
    """What an .npz file holds."""

    embedding: "np.ndarray"  # (F,) float32
    model: str  # its name in config.json
    sha256: str  # of its weights
    spacing: "np.ndarray"  # (3,) float64, of the scan as it was stored, mm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    options.add_scans(parser, output=".npz file", model="the catalog's first")
    options.add_network(parser)
    options.add_hub(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Embed every scan; check inputs, outputs, device and model before the first is read."""
    plan = make_plan(args.inputs, args.output, suffixes=(".npz",), force=args.force)
    if plan.folder is not None:
        check_index(plan.folder / INDEX, force=args.force)
    import numpy as np

    from universal_model_hub.predict import embed
    from universal_model_hub.volume import load_volume

    model = load_model(args)
    config = cast("ModelConfig", model.config)
    sha256 = cast("LoadReport", model.load_report).sha256 or ""

    def work(job: Job) -> Mapping[str, Any]:
        volume = load_volume(job.source)
        vector = embed(
            model,
            volume,
            modality=args.modality,
            memory_limit=args.memory_limit,
            device=args.device,
            precision=args.precision,
            progress=shows_progress(plan, args),
        )
        found = Embedding(vector, config.name, sha256, np.array(volume.spacing))
        write_embedding(job.output, found, force=args.force)
        return {"features": len(vector)}

    outcomes = run_plan(plan, args, work)
    if plan.folder is not None:
        outcomes = write_index(plan, outcomes, sha256)
    return finish(plan, outcomes, args)


def load_model(args: argparse.Namespace) -> "PyramidEncoder":
    """Load the encoder, on the device that was asked for.

    Raises:
        ConfigError: If the device cannot be used.
    """
    from universal_model_hub.catalog import list_models
    from universal_model_hub.devices import torch_device
    from universal_model_hub.loading import load_encoder

    torch_device(args.device)
    name = args.model or list_models()[0]
    model = load_encoder(name, device=args.device, **options.hub_options(args))
    if args.verbose:
        messages.say(str(model.load_report))
    return model


def write_embedding(path: Path, found: Embedding, *, force: bool) -> None:
    """Write an .npz file, whole or not at all; equal embeddings give equal bytes.

    Raises:
        ConfigError: If it exists meanwhile, without ``force``.
    """
    import numpy as np

    from universal_model_hub.files import check_output, write_bytes

    buffer = io.BytesIO()
    np.savez(
        buffer,
        embedding=np.asarray(found.embedding, np.float32),
        model=np.array(found.model),
        sha256=np.array(found.sha256),
        spacing=np.asarray(found.spacing, np.float64),
    )
    check_output(path, [], force=force)
    write_bytes(path, buffer.getvalue())


def read_embedding(path: Path) -> Embedding:
    """Read an .npz file of this command; nothing in it is executed.

    Raises:
        ConfigError: If it is something else.
    """
    import numpy as np

    from universal_model_hub.errors import ConfigError

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Embedding(
                arrays["embedding"],
                str(arrays["model"]),
                str(arrays["sha256"]),
                arrays["spacing"].reshape(3),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ConfigError(
            f"Expected {path} to be an embedding that this command wrote, it is not "
            f"({type(error).__name__}). Remove it, or pass --force."
        ) from error


def check_index(path: Path, *, force: bool) -> None:
    """Refuse to replace an index.csv that is not ours.

    Raises:
        ConfigError: If so, without ``force``.
    """
    from universal_model_hub.errors import ConfigError

    if path.is_dir():
        raise ConfigError(f"Expected to write {path}, it is a folder. Choose another output.")
    if force or not path.exists():
        return
    with path.open("rb") as file:
        start = file.read(200)
    if not start.startswith(",".join(COLUMNS).encode()):
        raise ConfigError(
            f"Expected {path} to be an index of embeddings, it is something else. Choose another "
            "output folder, or pass --force."
        )


def write_index(plan: Plan, outcomes: list[Outcome], sha256: str) -> list[Outcome]:
    """Write index.csv from the files that are there now.

    Args:
        plan: A batch.
        outcomes: Of its jobs.
        sha256: Of the weights of this run.

    Returns:
        The outcomes; a file of an earlier run that cannot be read, or that came from other
        weights, has failed.
    """
    from universal_model_hub.errors import ConfigError
    from universal_model_hub.files import write_bytes

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    checked = []
    for outcome in outcomes:
        job = outcome.job
        try:
            if outcome.status != "failed":
                found = read_embedding(job.output)
                if found.sha256 != sha256:
                    raise ConfigError(
                        f"{job.output} was made by other weights ({found.model}, sha256 "
                        f"{found.sha256[:12]}). Choose another folder, or pass --force."
                    )
                writer.writerow(
                    [
                        job.source,
                        job.output.name,
                        found.model,
                        found.sha256,
                        *found.spacing.tolist(),
                        len(found.embedding),
                    ]
                )
            checked.append(outcome)
        except ConfigError as error:
            messages.error(str(error))
            checked.append(Outcome(job, "failed", error=str(error)))
    assert plan.folder is not None
    # A name that is not Unicode comes out as the bytes it is on disk.
    write_bytes(plan.folder / INDEX, table.getvalue().encode(errors="surrogateescape"))
    return checked
