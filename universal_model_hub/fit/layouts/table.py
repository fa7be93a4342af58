"""A table of cases: CSV with a header, fields split by comma, semicolon or tab."""

import csv
import io
from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.cases import SPLITS, Case, CaseSet, Finding, Task
from universal_model_hub.fit.layouts.names import case_name, subject_of

SPLIT_WORDS = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train"}
LARGEST_BYTES = 64 * 2**20


def read_table(path: Path, task: Task | None) -> CaseSet:
    """Read a table of cases, a line each.

    Columns: ``image`` and ``label`` or ``class``; ``id``, ``subject`` and ``split`` may be there.
    Several channels are columns ``image_1``, ``image_2`` or ``image_T1``, ``image_FLAIR``. Paths
    are relative to the table.

    Raises:
        ConfigError: If it is no table, or its columns are others.
    """
    rows, columns = read_rows(path)
    channels = [name for name in columns if name == "image" or name.startswith("image_")]
    has = {name: name in columns for name in ("label", "class")}
    if not channels or not any(has.values()):
        raise ConfigError(
            f"Expected the columns image (or image_1, image_2, ...) and label or class in {path}, "
            f"got {', '.join(columns) or 'none'}."
        )
    if task is None:
        task = "segmentation" if has["label"] else "classification"
    wanted = "label" if task == "segmentation" else "class"
    if not has[wanted]:
        raise ConfigError(f"Expected the column {wanted} for {task} in {path}, got none.")
    cases, findings = [], []
    for number, row in enumerate(rows, start=2):
        try:
            cases.append(_case(row, path, channels, wanted))
        except ConfigError as error:
            findings.append(Finding("error", f"{path.name}, line {number}", str(error)))
    return CaseSet(
        task=task,
        cases=tuple(cases),
        modalities=("auto",) * len(channels),
        classes=None,
        layout="csv",
        source=path,
        findings=tuple(findings),
    )


def read_rows(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Return the rows by column, and the columns.

    Raises:
        ConfigError: If the file is too large, not in UTF-8, or no table.
    """
    if path.stat().st_size > LARGEST_BYTES:
        raise ConfigError(f"Expected a table of at most 64 MiB, {path} is larger.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"Expected a table in UTF-8, {path} is not: save it as UTF-8.") from error
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = [name.strip() for name in reader.fieldnames or []]
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise ConfigError(f"Expected each column once in {path}, got {', '.join(repeated)} twice.")
    reader.fieldnames = columns
    try:
        rows = [
            {k: (v or "").strip() for k, v in row.items() if k is not None}
            for row in reader
            if any((v or "").strip() for v in row.values() if isinstance(v, str))
        ]
    except csv.Error as error:
        raise ConfigError(f"Expected a table in {path}: {error}.") from error
    return rows, columns


def _case(row: dict[str, str], path: Path, channels: list[str], wanted: str) -> Case:
    empty = [name for name in (*channels, wanted) if not row.get(name)]
    if empty:
        raise ConfigError(f"Expected a value of {', '.join(empty)}, got none.")
    images = tuple(path.parent / row[name] for name in channels)
    identity = row.get("id") or case_name(images[0])
    word = row.get("split", "").lower()
    split = SPLIT_WORDS.get(word, word) or None
    if split not in (None, *SPLITS):
        raise ConfigError(f"Expected a split of {', '.join(SPLITS)}, got {word!r:.40}.")
    return Case(
        id=identity,
        subject=row.get("subject") or subject_of(identity),
        images=images,
        labels=path.parent / row["label"] if wanted == "label" else None,
        target=row["class"] if wanted == "class" else None,
        split=split,
    )
