"""A table of cases: CSV with a header, fields split by comma, semicolon or tab."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import SPLITS, Case, CaseSet, Finding, Task
from universal_model_hub.fit.data.layouts.names import case_name, subject_of

SPLIT_WORDS = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train"}
LARGEST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """A line of a table with something in it."""

    line: int  # in the file, from 1
    values: Mapping[str, str]  # by column; empty where there is none
    extra: int  # fields beyond the header's


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
    for row in rows:
        try:
            cases.append(_case(row, path, channels, wanted))
        except ConfigError as error:
            findings.append(Finding("error", f"{path.name}, line {row.line}", str(error)))
    return CaseSet(
        task=task,
        cases=tuple(cases),
        modalities=("auto",) * len(channels),
        classes=None,
        layout="csv",
        source=path,
        findings=tuple(findings),
    )


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """Return the rows, and the columns.

    Raises:
        ConfigError: If the file cannot be read, is too large, not in UTF-8, or no table.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ConfigError(f"Expected a table of at most 64 MiB, {path} is larger.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"Expected a table in UTF-8, {path} is not: save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError(f"Expected a table that can be read, {path}: {error.strerror}.") from None
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except csv.Error as error:
        raise ConfigError(f"Expected a table in {path}: {error}.") from error
    repeated = {name for name in columns if columns.count(name) > 1}
    if repeated:
        raise ConfigError(f"Expected each column once in {path}, got {', '.join(repeated)} twice.")
    rows = [
        Row(
            line=line,
            values=dict.fromkeys(columns, "") | dict(zip(columns, fields, strict=False)),
            extra=sum(1 for field in fields[len(columns) :] if field),
        )
        for line, fields in lines
        if any(fields)
    ]
    return rows, columns


def _case(found: Row, path: Path, channels: list[str], wanted: str) -> Case:
    row = found.values
    if found.extra:
        raise ConfigError(
            f"Expected as many fields as the header has, got {found.extra} more. Put a value that "
            "holds the delimiter in quotes."
        )
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
