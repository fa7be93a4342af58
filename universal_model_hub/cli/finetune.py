"""``umh finetune``: from a folder of scans to a model, a score and a page of pictures."""

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from universal_model_hub.cli import messages, options
from universal_model_hub.cli.cases import add_data, modality_of
from universal_model_hub.errors import ConfigError

if TYPE_CHECKING:
    from universal_model_hub.fit.request import Request

DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h)?", re.IGNORECASE)
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_data(parser)
    options.add_output(
        parser,
        "FOLDER",
        "model folder to make, with report.html and metrics; the same command goes on there after "
        "an interruption",
    )
    parser.add_argument(
        "--check", action="store_true", help="tell the state of the data and the plan, and end"
    )
    parser.add_argument("--force", action="store_true", help="replace a model in the folder")
    start = parser.add_argument_group("where it starts")
    start.add_argument(
        "--weights",
        default=None,
        metavar="NAME",
        help="catalog name, hf-hub:org/name@revision, path, or none; default: the catalog's first",
    )
    start.add_argument(
        "--transfer",
        choices=("full", "encoder"),
        default="full",
        help="what of a U-Net is taken over (default: full)",
    )
    start.add_argument(
        "--compare", choices=("none",), help="none: train the same from scratch, and report both"
    )
    training = parser.add_argument_group("training (what is left out adapts to the data)")
    training.add_argument("--steps", type=int)
    training.add_argument("--budget", type=duration, metavar="TIME", help="such as 10m or 2h")
    training.add_argument("--batch-size", type=int)
    training.add_argument("--cube", type=sides, metavar="X,Y,Z", help="voxels, multiples of 8")
    training.add_argument(
        "--spacing",
        type=millimeters,
        metavar="X,Y,Z",
        help="of the grid, mm (default: by the data)",
    )
    training.add_argument("--learning-rate", type=float, metavar="RATE")
    training.add_argument(
        "--tune-rate", action="store_true", help="try three learning rates first, in each arm alike"
    )
    training.add_argument(
        "--train", choices=("all", "head", "lora"), help="which parameters change (default: all)"
    )
    training.add_argument("--lora-rank", type=int, metavar="RANK")
    training.add_argument(
        "--layer-decay", type=float, metavar="FACTOR", help="of the rate, from layer to layer"
    )
    training.add_argument("--ema-decay", type=float, metavar="DECAY", help="average the weights")
    training.add_argument(
        "--patience", type=int, metavar="N", help="stop after so many validations without a gain"
    )
    training.add_argument(
        "--flip", default=None, metavar="AXES", help="axes that may be mirrored, such as X or XY"
    )
    training.add_argument("--folds", type=int, default=0, help="of a cross-validation by subject")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--precision", choices=("float32", "bfloat16", "float16"))
    training.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check, or fine-tune."""
    request = request_of(args)
    if args.check:
        return check(request, args)
    if args.output is None:
        raise ConfigError("Expected --output FOLDER for the model (or --check, which needs none).")
    from universal_model_hub.fit.finetuning import run_request
    from universal_model_hub.fit.training.engine import process_group

    with process_group(args.device) as process:
        result = run_request(
            request, args.output, process, force=args.force, progress=not args.quiet
        )
        if not process.is_main:
            return 0
    if args.json:
        print(json.dumps(dict(result.metrics), indent=2))
    else:
        print(result.text())
    if not args.quiet:
        done = "wrote" if result.is_new else "this very run had ended before (--force repeats it):"
        messages.say(f"{done} {result.folder}: open {result.folder / 'report.html'}")
    return 0


def check(request: "Request", args: argparse.Namespace) -> int:
    """Print the state of the data and the plan; 2 if the data cannot be used."""
    from universal_model_hub.fit.request import draft_plan
    from universal_model_hub.fit.training.engine import pick_device

    plan, report = draft_plan(request, pick_device(args.device), progress=not args.quiet)
    if args.json:
        found = report.to_json() | {"plan": None if plan is None else plan.to_json()}
        print(json.dumps(found, indent=2))
    else:
        print(report.text())
        if plan is not None:
            print()
            print(plan.text())
    return 0 if plan is not None else ConfigError.exit_code


def request_of(args: argparse.Namespace) -> "Request":
    """Return what the command line asks for.

    Raises:
        ConfigError: If options contradict each other.
    """
    from universal_model_hub.fit.request import DEFAULT_WEIGHTS, Request

    names = (
        *("steps", "batch_size", "cube", "learning_rate", "train", "lora_rank", "layer_decay"),
        *("ema_decay", "patience", "precision"),
    )
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings["seed"] = args.seed
    if args.flip is not None:
        settings["flip_axes"] = axes(args.flip)
    if args.steps is not None and args.budget is not None:
        raise ConfigError("Expected --steps or --budget, got both. Leave one out.")
    weights = None if args.weights == "none" else args.weights or DEFAULT_WEIGHTS
    return Request(
        images=args.images,
        labels=args.labels,
        data=args.data,
        task=args.task,
        modality=modality_of(args),
        label_names=args.label_names,
        weights=weights,
        transfer=args.transfer,
        compare_scratch=args.compare == "none",
        spacing=args.spacing,
        folds=args.folds,
        tune_rate=args.tune_rate,
        budget_seconds=args.budget,
        settings=settings,
    )


def axes(text: str) -> tuple[int, ...]:
    """Read ``XY`` as (0, 1).

    Raises:
        ConfigError: If there are other letters.
    """
    if not text or set(text.upper()) - set("XYZ"):
        raise ConfigError(f"Expected --flip of the letters X, Y and Z, got {text!r}.")
    return tuple(sorted({"XYZ".index(letter) for letter in text.upper()}))


def duration(text: str) -> float:
    """Read a time as seconds: ``90``, ``90s``, ``10m``, ``1.5h``.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 10m or 2h, got {text!r}")
    return float(match.group(1)) * SECONDS[(match.group(2) or "s").lower()]


def sides(text: str) -> tuple[int, int, int]:
    """Read ``64,64,32``, or ``32`` for all three.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    x, y, z = _three_of(text, int)
    return x, y, z


def millimeters(text: str) -> tuple[float, float, float]:
    """Read ``1,1,2.5``, or ``2`` for all three.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    x, y, z = _three_of(text, float)
    return x, y, z


def _three_of(text: str, kind: type) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise argparse.ArgumentTypeError(f"expected three numbers such as 64,64,32, got {text!r}")
    return values * 3 if len(values) == 1 else values
