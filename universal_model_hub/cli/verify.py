"""``umh verify``: hash a model's files again."""

import argparse
import json
from pathlib import Path

from universal_model_hub.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("name", metavar="NAME", help="a model's name, as for --model elsewhere")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--cache-dir", type=Path, help="cache of the Hub client")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Read every byte of a model that is on this machine; make no request."""
    from universal_model_hub.config import read_config
    from universal_model_hub.hub import verify_model

    model = verify_model(args.name, revision=args.revision, cache_dir=args.cache_dir)
    stated = read_config(model.config).sha256
    if args.json:
        record = {
            "name": model.name,
            "folder": str(model.folder),
            "sha256": model.sha256,
            "verified": model.verified,
            "revision": model.revision,
        }
        print(json.dumps(record, indent=2))
    elif model.verified == "local" and stated is None:
        print(f"unknown  {args.name}: nothing states the sha256 that it should have")
    else:
        print(f"OK  {args.name}: sha256 {model.sha256}, verified: {model.verified}")
    return 0
