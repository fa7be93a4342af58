"""Arguments that say where scans with labels or classes are, and what the labels mean."""

import argparse
import json
from pathlib import Path
from typing import Any

from universal_model_hub.errors import ConfigError


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add where the data are and what they mean."""
    group = parser.add_argument_group("data")
    group.add_argument("--images", type=Path, metavar="DIR", help="folder of scans")
    group.add_argument(
        "--labels", type=Path, metavar="DIR", help="folder of label maps, named like the scans"
    )
    group.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="instead: a CSV (image, label or class, split, subject), an MSD dataset.json, an "
        "nnU-Net raw folder, or a BIDS-like tree",
    )
    group.add_argument("--task", choices=("segmentation", "classification"))
    group.add_argument(
        "--modality", default="auto", help="CT, MR or auto; several channels: CT,MR,..."
    )
    add_label_names(group)


def add_label_names(parser: argparse._ActionsContainer) -> None:
    """Add ``--label-names``."""
    parser.add_argument(
        "--label-names",
        type=label_names,
        metavar="NAMES",
        help="1=liver,2=tumor, or a JSON file of that",
    )


def modality_of(args: argparse.Namespace) -> Any:
    """Return one modality, or one a channel.

    Raises:
        ConfigError: If one is unknown.
    """
    parts = tuple(part.strip() for part in args.modality.split(","))
    for part in parts:
        if part not in ("auto", "CT", "MR"):
            raise ConfigError(f"Expected --modality of CT, MR or auto, got {part!r}.")
    return parts[0] if len(parts) == 1 else parts


def label_names(text: str) -> dict[int, str]:
    """Read ``1=liver,2=tumor``, or a JSON file of label value to name.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    try:
        if text.endswith(".json"):
            found = json.loads(Path(text).read_text())
            return {int(value): str(name) for value, name in found.items()}
        pairs = [pair.split("=", 1) for pair in text.split(",")]
        return {int(value): name.strip() for value, name in pairs}
    except (OSError, ValueError, AttributeError) as error:
        raise argparse.ArgumentTypeError(
            f"expected names such as 1=liver,2=tumor or a JSON file of that, got {text!r}"
        ) from error
