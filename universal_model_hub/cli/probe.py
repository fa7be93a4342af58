"""``umh probe``: how good a frozen encoder is on your data, with few labels and with all."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from universal_model_hub.cli import messages, options
from universal_model_hub.cli.cases import add_data, modality_of
from universal_model_hub.cli.embed import load_model

if TYPE_CHECKING:
    from universal_model_hub.fit.data.cases import CaseSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_data(parser)
    options.add_model(parser, default="the catalog's first")
    options.add_output(
        parser, "OUT.json", "write the result there, and the curve beside it as a .png"
    )
    parser.add_argument("--force", action="store_true", help="replace outputs that exist")
    group = parser.add_argument_group("what is asked")
    group.add_argument(
        "--shares",
        type=percents,
        default=(1.0, 5.0, 10.0, 30.0, 100.0),
        metavar="P,P,...",
        help="percents of the training subjects whose labels are given (default: 1,5,10,30,100)",
    )
    group.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="draws of every share (default: 5)"
    )
    group.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    group.add_argument(
        "--points",
        type=int,
        default=100,
        metavar="N",
        help="voxels of a class and scan at most (default: 100)",
    )
    group.add_argument(
        "--levels",
        choices=("deepest", "all"),
        default="deepest",
        help="whose mean describes a whole scan (default: deepest); voxels take all",
    )
    options.add_network(parser)
    options.add_hub(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Read the data, split them by subject, and probe; check what can be wrong before."""
    from universal_model_hub.extras import needed
    from universal_model_hub.files import check_output, write_bytes, write_json
    from universal_model_hub.probe import curve_picture, probe

    needed("sklearn")
    picture = None
    if args.output is not None:
        needed("matplotlib", "matplotlib")
        picture = check_names(args.output)
        for path in (args.output, picture):
            check_output(path, [], force=args.force)
    data = split_data(args)
    cases = data.cases
    result = probe(
        load_model(args),
        [case.images for case in cases],
        **truth_of(data),
        subjects=[case.subject for case in cases],
        held_out=sides_of(data),
        modality=data.modalities,
        label_names=data.classes,
        levels=args.levels,
        shares=args.shares,
        seeds=args.seeds,
        points=args.points,
        seed=args.seed,
        device=args.device,
        precision=args.precision,
        memory_limit=args.memory_limit,
        progress=not args.quiet and sys.stderr is not None,
    )
    if args.output is not None and picture is not None:
        write_bytes(picture, curve_picture(result))
        write_json(args.output, result.to_json())
        if not args.quiet:
            messages.say(f"wrote {args.output} and {picture}")
    print(json.dumps(result.to_json(), indent=2) if args.json else result.text())
    return 0


def split_data(args: argparse.Namespace) -> "CaseSet":
    """Return the data with a side for each case.

    Raises:
        ConfigError: If the layout shows that something is wrong; names the first of it.
    """
    from universal_model_hub.errors import ConfigError
    from universal_model_hub.fit.data.layouts import read_cases
    from universal_model_hub.fit.data.splits import split_cases

    data = read_cases(
        images=args.images,
        labels=args.labels,
        data=args.data,
        task=args.task,
        modality=modality_of(args),
        label_names=args.label_names,
    )
    wrong = [finding for finding in data.findings if finding.level == "error"]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ConfigError(
            f"{wrong[0].where}: {wrong[0].text}{more} umh finetune --check lists everything."
        )
    for finding in data.findings:
        if not args.quiet:
            messages.say(f"warning: {finding.where}: {finding.text}")
    return split_cases(data, seed=args.seed)


def truth_of(data: "CaseSet") -> dict[str, list[Any]]:
    """Return what is true of the cases, as ``probe`` takes it.

    Raises:
        ConfigError: If a case has no label map or class.
    """
    from universal_model_hub.errors import ConfigError

    name = "labels" if data.task == "segmentation" else "targets"
    found = [c.labels if data.task == "segmentation" else c.target for c in data.cases]
    for case, truth in zip(data.cases, found, strict=True):
        if truth is None:
            raise ConfigError(f"Expected {name} of every case, got none for {case.id}. Add them.")
    return {name: found}


def sides_of(data: "CaseSet") -> list[bool] | None:
    """Say which cases are held out: the test part; validation is learned from, if there is one.

    Returns:
        None where nothing is held out, as of a single subject: ``probe`` then says how.
    """
    for part in ("test", "validation"):
        held_out = [case.split == part for case in data.cases]
        if any(held_out):
            return held_out
    return None


def check_names(output: Path) -> Path:
    """Return where the picture goes.

    Raises:
        ConfigError: If the output is not a .json file.
    """
    from universal_model_hub.errors import ConfigError

    if output.suffix.lower() != ".json":
        raise ConfigError(f"Expected an output named .json, got {output.name}.")
    return output.with_suffix(".png")


def percents(text: str) -> tuple[float, ...]:
    """Read ``1,5,10``; a percent sign may follow.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    try:
        return tuple(float(part.strip().rstrip("%")) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected percents such as 1,5,10,30,100, got {text!r}"
        ) from error
