"""``python -m training.corpora.phantom write luna16 DIR --subjects 10`` and ``preview OUT.png``."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from training.corpora.phantom.corpus import LAYOUTS, write_corpus
from training.corpora.phantom.preview import write_preview
from training.corpora.phantom.scan_files import SIZES
from universal_model_hub.errors import UniversalModelError
from universal_model_hub.files import check_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except UniversalModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _write(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    write_corpus(
        options.corpus,
        options.folder,
        options.subjects,
        options.seed,
        options.size,
        traps=options.trap,
        num_workers=options.workers,
    )
    seconds = time.perf_counter() - start
    print(f"{options.folder}: {options.subjects} subjects in {seconds:.1f} s", file=sys.stderr)
    return 0


def _preview(options: argparse.Namespace) -> int:
    check_output(options.picture, [], force=options.force)
    write_preview(options.picture, options.seed, options.spacing)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.corpora.phantom", description=__doc__)
    commands = parser.add_subparsers(required=True)
    write = commands.add_parser("write", help="write synthetic scans in the layout of a real set")
    write.add_argument("corpus", choices=sorted(LAYOUTS))
    write.add_argument("folder", type=Path, help="a new or empty folder")
    write.add_argument("--subjects", type=int, default=10, help="mmwhs: as many of CT and of MR")
    write.add_argument("--seed", type=int, default=0)
    write.add_argument("--size", choices=SIZES, default="small")
    write.add_argument("--trap", action="append", default=[], help="plant a flaw of the real sets")
    write.add_argument("--workers", type=int, default=1, help="processes")
    write.set_defaults(run=_write)
    preview = commands.add_parser("preview", help="write a picture of one phantom of each kind")
    preview.add_argument("picture", type=Path)
    preview.add_argument("--seed", type=int, default=0)
    preview.add_argument("--spacing", type=float, default=1.5, help="voxel size in mm")
    preview.add_argument("--force", action="store_true", help="replace the picture")
    preview.set_defaults(run=_preview)
    return parser


if __name__ == "__main__":
    sys.exit(main())
