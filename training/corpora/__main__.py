"""Check, split, download: ``python -m training.corpora check|split|download|packaged ...``."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.corpora import get_corpus
from training.corpora.case import Case, Finding, Survey
from training.corpora.checks import inspect, used
from training.corpora.download import download_corpus
from training.corpora.packaged_cli import add_packaged, run_packaged
from training.corpora.paper import TABLE_2
from training.corpora.splits import SPLIT_SEED, Split, split
from universal_model_hub.errors import UniversalModelError
from universal_model_hub.files import check_output, write_json

MAX_ROWS = 40  # findings of one kind in the table; --json has them all


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, 2 for errors in the data or the usage, 3, 4."""
    args = _parser().parse_args(arguments)
    try:
        return args.run(args)
    except UniversalModelError as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.corpora", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="what is there, what is wrong, what is used")
    check.add_argument("corpus", choices=list(TABLE_2))
    check.add_argument("folder", type=Path)
    check.add_argument("--fast", action="store_true", help="lists, tables and headers, no voxels")
    check.add_argument("--json", action="store_true", help="the whole report as JSON on stdout")
    check.add_argument("--seed", type=int, default=SPLIT_SEED, help="of the split")
    check.set_defaults(run=_check)

    parts = commands.add_parser("split", help="write who is trained on and who is tested on")
    parts.add_argument("corpus", choices=list(TABLE_2))
    parts.add_argument("folder", type=Path)
    parts.add_argument("--output", "-o", type=Path, required=True)
    parts.add_argument("--seed", type=int, default=SPLIT_SEED)
    parts.add_argument("--force", action="store_true")
    parts.set_defaults(run=_split)

    fetch = commands.add_parser("download", help="fetch an open set, or say where to register")
    fetch.add_argument("corpus", choices=list(TABLE_2))
    fetch.add_argument("folder", type=Path, nargs="?", default=None)
    fetch.add_argument("--keep-archives", action="store_true")
    fetch.set_defaults(run=_download)

    packaged = commands.add_parser("packaged", help="real scans that ordinary packages ship")
    add_packaged(packaged)
    packaged.set_defaults(run=run_packaged)
    return parser


def _check(args: argparse.Namespace) -> int:
    corpus = get_corpus(args.corpus)
    show = not args.json and sys.stderr.isatty()
    survey = inspect(corpus, args.folder, fast=args.fast, progress=show)
    parts = split(corpus.name, survey.cases, seed=args.seed)
    errors = sum(finding.severity == "error" for finding in survey.findings)
    if args.json:
        print(json.dumps(_report(survey, parts, fast=args.fast), indent=2))
    else:
        _print_table(corpus.title, survey, parts, fast=args.fast)
    return 2 if errors else 0


def _split(args: argparse.Namespace) -> int:
    check_output(args.output, [], force=args.force)
    parts = split(args.corpus, get_corpus(args.corpus).cases(args.folder), seed=args.seed)
    write_json(args.output, parts.to_json())
    print(f"{len(parts.train)} train, {len(parts.test)} test subjects: {args.output}")
    return 0


def _download(args: argparse.Namespace) -> int:
    download_corpus(args.corpus, args.folder or Path(args.corpus), keep_archives=args.keep_archives)
    return 0


def _report(survey: Survey, parts: Split, *, fast: bool) -> dict[str, Any]:
    fields = ("severity", "code", "case", "file", "what", "fix")
    return {
        "corpus": parts.corpus,
        "voxels_checked": not fast,
        "there": {"cases": len(survey.cases), **survey.facts},
        "findings": [
            {field: getattr(finding, field) for field in fields} for finding in survey.findings
        ],
        "used": _use(survey, parts),
        "split": parts.to_json(),
    }


def _use(survey: Survey, parts: Split) -> dict[str, int]:
    fine = used(survey.cases, survey.findings)
    train, test = parts.of(fine, "train"), parts.of(fine, "test")
    return {
        "train_cases": len(train),
        "train_subjects": _subjects(train),
        "test_cases": len(test),
        "test_subjects": _subjects(test),
        "not_used_cases": len(survey.cases) - len(train) - len(test),
    }


def _subjects(cases: Sequence[Case]) -> int:
    return len({case.subject for case in cases})


def _print_table(title: str, survey: Survey, parts: Split, *, fast: bool) -> None:
    print(f"{title}\n\nThere")
    rows = {"cases": str(len(survey.cases)), **survey.facts}
    for name, value in rows.items():
        print(f"  {name:<26}{value}")
    print("\nFindings" + (" (no voxel was read: --fast)" if fast else ""))
    if not survey.findings:
        print("  none")
    shown: Counter[str] = Counter()
    for finding in sorted(survey.findings, key=lambda finding: finding.severity):
        shown[finding.code] += 1
        if shown[finding.code] <= MAX_ROWS:
            _print_finding(finding)
    for code, num in shown.items():
        if num > MAX_ROWS:
            print(f"  ... {num - MAX_ROWS} more {code}; --json lists all")
    use = _use(survey, parts)
    print(f"\nUsed ({parts.rule}, seed {parts.seed}, sha256 {parts.sha256[:12]})")
    for side in ("train", "test"):
        print(f"  {side:<26}{use[f'{side}_cases']} cases of {use[f'{side}_subjects']} subjects")
    print(f"  {'not used':<26}{use['not_used_cases']} cases")


def _print_finding(finding: Finding) -> None:
    where = " ".join(part for part in (finding.case, finding.file) if part)
    print(f"  {finding.severity:<8} {finding.code:<20} {where}\n           {finding.what}")
    print(f"           {finding.fix}")


if __name__ == "__main__":
    raise SystemExit(main())
