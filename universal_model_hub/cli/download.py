"""``umh download``: bring a model to this machine, into the cache or into a folder."""

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from universal_model_hub.cli import options

if TYPE_CHECKING:
    from universal_model_hub.hub import LocalModel

CARD = "README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("name", metavar="NAME", help="a model's name, as for --model elsewhere")
    options.add_output(parser, "FOLDER", "copy the model here")
    parser.add_argument("--force", action="store_true", help="replace files in FOLDER")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--cache-dir", type=Path, help="cache of the Hub client")
    parser.add_argument("--endpoint", help="address of another Hub")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Download what is missing, verify it, and print the folder that it lies in."""
    from universal_model_hub.config import read_config
    from universal_model_hub.hub import download_model

    if args.output is not None:
        check_folder(args.output, force=args.force)
    model = download_model(
        args.name, revision=args.revision, cache_dir=args.cache_dir, endpoint=args.endpoint
    )
    read_config(model.config)
    folder = model.folder
    if args.output is not None:
        copy_model(model, args.output)
        folder = args.output
    if args.json:
        record = {
            "name": model.name,
            "folder": str(folder),
            "sha256": model.sha256,
            "verified": model.verified,
            "repo_id": model.repo_id,
            "revision": model.revision,
        }
        print(json.dumps(record, indent=2))
    else:
        print(folder)
    return 0


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that cannot be made, or that holds a model already.

    Raises:
        ConfigError: If so.
    """
    from universal_model_hub.files import check_output

    if not folder.is_dir():
        check_output(folder, [], force=False)
        return
    for name in ("model.safetensors", "config.json", CARD):
        check_output(folder / name, [], force=force)


def copy_model(model: "LocalModel", folder: Path) -> None:
    """Copy a model's files, each whole or not at all, config.json last.

    Raises:
        IntegrityError: If the copy of the weights differs.
    """
    from universal_model_hub.errors import IntegrityError
    from universal_model_hub.files import atomic_path, sha256_of

    folder.mkdir(exist_ok=True)
    card = model.folder / CARD
    for source, name in (
        (model.weights, "model.safetensors"),
        (card, CARD),
        (model.config, "config.json"),
    ):
        if source != card or card.is_file():
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(source, temporary)
    copied = sha256_of(folder / "model.safetensors")
    if copied != model.sha256:
        raise IntegrityError(
            f"Expected the copy in {folder} to hash to {model.sha256}, got {copied}. Check the "
            "disk."
        )
