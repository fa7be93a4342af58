"""The data sets of a benchmark: written where they are phantoms, checked, fingerprinted, split.

Everything here happens before anything trains, and stops with the name of the file at fault.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.benchmark.plan import PhantomPlan, Plan
from training.benchmark.tasks import Sides, TargetTask, sides_of
from training.corpora import get_corpus
from training.corpora.case import Case
from training.corpora.checks import inspect, used
from training.corpora.phantom.corpus import MARKER, write_corpus
from training.corpora.splits import Split, refuse_leak, split
from universal_model_hub.errors import ConfigError, VolumeError
from universal_model_hub.files import parse_json, sha256_of, write_json
from universal_model_hub.volume.content import scan_files

VERSION = 1  # of what is checked


@dataclass(frozen=True)
class Source:
    """One data set, checked."""

    corpus: str
    folder: Path
    cases: tuple[Case, ...]  # those that are used
    parts: Split
    sha256: str  # what results are kept under; of phantoms see PhantomPlan.identity
    files_sha256: str  # of the files of all cases, and of the tables beside them

    @property
    def is_synthetic(self) -> bool:
        """Whether the folder holds phantoms."""
        return (self.folder / MARKER).is_file()

    def sides(self, task: TargetTask, share: float = 1.0) -> Sides:
        """Return the cases of a task by what they are for."""
        return sides_of(task, self.cases, self.parts, share=share)


def corpus_folders(plan: Plan, given: Sequence[str], work: Path) -> dict[str, Path]:
    """Return the folder of each data set that the plan reads.

    Args:
        plan: With phantoms, these lie under ``work`` unless a folder is given.
        given: ``corpus=folder`` arguments.
        work: Of the benchmark.

    Raises:
        ConfigError: If a set has no folder, or an argument is not of that form.
    """
    folders: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or name not in plan.corpora():
            raise ConfigError(
                f"Expected corpus=folder with a corpus out of {', '.join(plan.corpora())}, got "
                f"{text!r}."
            )
        folders[name] = Path(folder)
    if plan.phantoms is not None:
        phantoms = work / "data" / f"{plan.phantoms.size}-{plan.phantoms.seed}"
        for name in plan.corpora():
            subjects = plan.phantoms.subjects[name]
            folders.setdefault(name, phantoms / f"{name}-{subjects}")
    lacking = [name for name in plan.corpora() if name not in folders]
    if lacking:
        raise ConfigError(
            f"Expected a folder of each data set of the plan {plan.name}, got none of "
            f"{', '.join(lacking)}. Add {' '.join(f'{name}=FOLDER' for name in lacking)}."
        )
    return folders


def write_phantoms(phantoms: PhantomPlan, corpus: str, folder: Path, workers: int) -> None:
    """Write a synthetic set in its real layout, unless it is there; whole or not at all."""
    if folder.is_dir():
        return
    unfinished = folder.with_name(f".unfinished-{folder.name}")
    if unfinished.is_dir():
        shutil.rmtree(unfinished)
    write_corpus(
        corpus,
        unfinished,
        phantoms.subjects[corpus],
        phantoms.seed,
        phantoms.size,
        num_workers=workers,
    )
    unfinished.rename(folder)


def open_source(
    corpus: str, folder: Path, work: Path, phantoms: PhantomPlan | None = None
) -> Source:
    """Check a data set, every voxel of it, and split it; what was checked before is not again.

    Args:
        corpus: Its name.
        folder: Where it lies.
        work: Gets what was checked, under ``checked``.
        phantoms: Says which hashes stand for the same synthetic set.

    Raises:
        ConfigError: If the set is missing, has another layout, or holds damaged files; the first
            ones are named.
    """
    reader = get_corpus(corpus)
    if not folder.is_dir():
        raise ConfigError(f"Expected {reader.title} in {folder}, got no such folder. Correct it.")
    listing = reader.survey(folder)
    refuse_errors(corpus, folder, listing.findings)
    sha256 = fingerprint_files(folder, listing.cases, work / "checked" / f"{corpus}-files.json")
    record = work / "checked" / f"{corpus}-{sha256[:16]}.json"
    if not record.is_file():
        survey = inspect(reader, folder, progress=True)
        refuse_errors(corpus, folder, survey.findings)
        write_json(record, {"version": VERSION, "corpus": corpus, "sha256": sha256})
    identity = sha256
    if phantoms is not None and (folder / MARKER).is_file():
        identity = phantoms.identity(corpus, sha256)
    cases, parts = used(listing.cases, ()), split(corpus, listing.cases)
    return Source(corpus, folder, cases, parts, identity, sha256)


def refuse_errors(corpus: str, folder: Path, findings: Sequence[Any]) -> None:
    """Refuse a data set in which something is wrong.

    Raises:
        ConfigError: It names at most five files.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first = "; ".join(f"{f.file or f.case}: {f.what} {f.fix}" for f in errors[:5])
    raise ConfigError(
        f"Expected a sound {get_corpus(corpus).title} in {folder}, got {len(errors)} problem(s): "
        f"{first} All of them: python -m training.corpora check {corpus} FOLDER."
    )


def fingerprint_files(folder: Path, cases: Sequence[Case], cache: Path) -> str:
    """Return one hash of the content of a data set's files.

    A file is hashed again when its size or time of change differs from the cache's.
    """
    named = {path for case in cases for path in (case.volume, case.labels) if path}
    files = {part for path in named if path.exists() for part in _parts(path)}
    files |= {path for path in folder.glob("**/*.csv") if not path.name.startswith(".")}
    known: Mapping[str, Any] = parse_json(cache.read_bytes()) if cache.is_file() else {}
    found: dict[str, Any] = {}
    for path in sorted(path for path in files if path.is_file()):
        name, facts = str(path.absolute()), path.stat()
        state = [facts.st_size, facts.st_mtime_ns]
        old = known.get(name)
        found[name] = old if old and old[:2] == state else [*state, sha256_of(path)]
    cache.parent.mkdir(parents=True, exist_ok=True)
    if found != known:
        write_json(cache, found)
    digest = hashlib.sha256()
    for name, facts in found.items():
        relative = Path(name).relative_to(folder.absolute()).as_posix()
        digest.update(json.dumps([relative, facts[2]]).encode())
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    try:
        return scan_files(path)
    except VolumeError:
        return [path]  # the check that follows says what is wrong with it


def stored_split(parts: Split, path: Path) -> Split:
    """Write the split down, or compare it with the one that is there.

    Raises:
        ConfigError: If the stored one is damaged, has a subject on two sides, or is another.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, parts.to_json())
        return parts
    value = parse_json(path.read_bytes())
    both = sorted(set(value.get("train", ())) & set(value.get("test", ())))
    if both:
        raise ConfigError(
            f"Expected each subject on one side of {path}, got {', '.join(both[:5])} on two. "
            "Delete the file: it is written again."
        )
    try:
        stored = Split.from_json(value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if stored != parts:
        raise ConfigError(
            f"Expected the split of {parts.corpus} that {path} holds, got another: the data are "
            "others than those of the results beside it. Choose another --output."
        )
    return stored


def refuse_test_cases(trained: Sequence[Case], sources: Mapping[str, Source]) -> None:
    """Refuse to pre-train on what a task is tested on.

    Raises:
        ConfigError: Naming the subjects.
    """
    for source in sources.values():
        refuse_leak(trained, source.parts.of(source.cases, "test"))
