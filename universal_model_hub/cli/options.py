"""Arguments that several commands share, and their values."""

import argparse
import re
from pathlib import Path
from typing import Any

SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?b)?|b)?", re.IGNORECASE)


def add_general(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes."""
    group = parser.add_argument_group("messages")
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="show errors only")
    loudness.add_argument("--verbose", action="store_true", help="say more about what is done")
    group.add_argument("--debug", action="store_true", help="show a traceback for an error")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_hub(parser: argparse.ArgumentParser) -> None:
    """Add where models come from."""
    group = parser.add_argument_group("where the model comes from")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    group.add_argument("--cache-dir", type=Path, help="cache of the Hub client")
    group.add_argument("--offline", action="store_true", help="make no request")
    group.add_argument("--endpoint", help="address of another Hub")


def hub_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments for ``resolve_model`` and the ``load_*`` functions."""
    return {
        "revision": args.revision,
        "cache_dir": args.cache_dir,
        "local_files_only": args.offline,
        "endpoint": args.endpoint,
    }


def add_scans(parser: argparse.ArgumentParser, *, output: str, model: str) -> None:
    """Add inputs, output, model and modality.

    Args:
        parser: Of the command.
        output: What the output file is, such as ``".npz file"``.
        model: What ``--model`` is if it is left out.
    """
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="a scan (.nii, .nii.gz, .hdr/.img, .nrrd, .mha, .mhd), a folder with one DICOM "
        "series, or a folder of scans or of such folders; of a model with several channels one "
        "file each, in order, or files NAME_0000, NAME_0001, ... in a folder",
    )
    add_output(
        parser,
        "OUT",
        f"one scan: {output}; several, or a folder of scans: a folder, in which what is done "
        "already is left alone",
        required=True,
    )
    add_model(parser, default=model)
    parser.add_argument(
        "--modality",
        choices=("auto", "CT", "MR"),
        default="auto",
        help="what the scans are; auto finds out by their range (default)",
    )
    parser.add_argument("--force", action="store_true", help="replace outputs that exist")


def add_model(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add ``--model``, and say what it is if it is left out."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="catalog name, hf-hub:org/name@revision, local-dir:FOLDER, or a path; "
        f"default: {default}",
    )


def add_output(
    parser: argparse.ArgumentParser, metavar: str, text: str, *, required: bool = False
) -> None:
    """Add ``--output``, and say what is written there."""
    parser.add_argument("-o", "--output", type=Path, required=required, metavar=metavar, help=text)


def num_channels(args: argparse.Namespace) -> int:
    """Return how many scans one examination has for the model, 1 where it cannot matter.

    The model is asked only where files are numbered as channels, or several shall become one.
    """
    from universal_model_hub.cli.planning import CHANNEL, stem_of

    files = [
        path for given in args.inputs for path in (given.iterdir() if given.is_dir() else [given])
    ]
    to_one_file = len(args.inputs) > 1 and args.output.suffix != "" and not args.output.is_dir()
    if args.model is None or not (to_one_file or any(CHANNEL.match(stem_of(p)) for p in files)):
        return 1
    from universal_model_hub.config import read_config
    from universal_model_hub.hub import resolve_model

    config = read_config(resolve_model(args.model, **hub_options(args)).config)
    return int(config.argument("in_channels") or 1)


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add how the network runs."""
    group = parser.add_argument_group("how the network runs")
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps, ...")
    group.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the arithmetic (default: float32)",
    )
    group.add_argument(
        "--memory-limit",
        type=memory_size,
        metavar="SIZE",
        help="such as 4GB or 800MiB; default: what is free",
    )


def memory_size(text: str) -> int:
    """Read a number of bytes: ``4GB`` is 4 * 10^9, ``4GiB`` and ``4G`` are 4 * 2^30.

    Raises:
        argparse.ArgumentTypeError: If it is no size, or is zero.
    """
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 4GB or 800MiB, got {text!r}")
    number, letter, rest = match.groups()
    base = 1000 if (rest or "").lower() == "b" else 1024
    size = int(float(number) * base ** (1 + "kmgt".index(letter.lower()) if letter else 0))
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected at least one byte, got {text!r}")
    return size
