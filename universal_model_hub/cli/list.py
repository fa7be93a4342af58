"""``umh list``: the models of the catalog."""

import argparse
import json
from dataclasses import asdict

from universal_model_hub.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "pattern", nargs="?", default="*", help="shell wildcards, such as '*compact*'"
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line, or a JSON object, for each model; the default model comes first."""
    from universal_model_hub.catalog import get_weights, list_models

    rows = [get_weights(name) for name in list_models(args.pattern)]
    if args.json:
        print(json.dumps([{**asdict(row), "available": row.available} for row in rows], indent=2))
        return 0
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        state = "" if row.available else " [no weights yet]"
        print(f"{row.name:{width}}  {row.kind:10}  {row.summary}{state}")
    return 0
