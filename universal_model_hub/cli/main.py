"""The door of the ``umh`` command: arguments in, exit code out, one line for an error."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from universal_model_hub import __version__
from universal_model_hub.cli import (
    download,
    embed,
    finetune,
    info,
    messages,
    options,
    preprocess,
    probe,
    segment,
    verify,
    view,
)
from universal_model_hub.cli import list as list_command
from universal_model_hub.cli.stopping import Stop, stoppable
from universal_model_hub.errors import UniversalModelError

COMMANDS = {
    "list": (list_command, "list the models that can be loaded by name"),
    "info": (info, "show what a model is, where it comes from and how far it is verified"),
    "download": (download, "bring a model to this machine"),
    "verify": (verify, "hash a model's files again and compare"),
    "embed": (embed, "turn scans into feature vectors"),
    "segment": (segment, "label scans with a trained segmenter"),
    "preprocess": (preprocess, "write scans as a model sees them"),
    "view": (view, "show a scan with labels and features in a page on this machine"),
    "finetune": (finetune, "train a model on your own labeled scans, and report how good it is"),
    "probe": (probe, "tell how good a model's frozen features are on your labeled scans"),
}
NOT_MEDICAL = "For research only: this is not a medical device."
BUG = 1  # exit code of an error that is ours


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with 2."""
        if "unrecognized arguments: -" in message or "required: INPUT" in message:
            message += ". A file whose name starts with '-' is written as ./-NAME"
        messages.error(f"{message}. See: {self.prog} --help")
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="umh",
        description="Pretrained 3D networks for CT and MR scans.",
        epilog=NOT_MEDICAL,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"umh {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=NOT_MEDICAL,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        options.add_general(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``umh`` with these arguments, those of the process by default; return the exit code."""
    try:
        args = build_parser().parse_args(argv)
        with stoppable() as stop, messages.warnings_as_lines(quiet=args.quiet, debug=args.debug):
            try:
                code = int(args.run(args))
                if sys.stdout is not None:
                    sys.stdout.flush()
                return code
            except (Exception, KeyboardInterrupt) as error:
                return exit_code(error, stop, debug=args.debug)
    finally:
        drop_unwritable_stdout()


def exit_code(error: BaseException, stop: Stop, *, debug: bool) -> int:
    """Say what went wrong, in one line unless ``debug``, and return the exit code for it."""
    if debug:
        messages.write(messages.redacted("".join(traceback.format_exception(error))))
    # A signal may reach us wrapped in an error of the library that it interrupted.
    if stop.signum:
        messages.error(f"stopped by {stop.name}; no unfinished file was left behind")
        return 128 + stop.signum
    if isinstance(error, BrokenPipeError):  # as in `umh list | head -1`: the reader has enough
        return 0
    messages.error(messages.describe(error, debug=debug))
    if isinstance(error, UniversalModelError):
        return error.exit_code
    return 2 if isinstance(error, OSError | MemoryError) else BUG


def drop_unwritable_stdout() -> None:
    """Flush stdout; if its reader has gone, keep Python from complaining about that at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
