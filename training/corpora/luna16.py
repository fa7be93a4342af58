"""LUNA16: chest CT in ten subsets, with nodule candidates in world coordinates.

Layout: ``subset0..9/<SeriesInstanceUID>.mhd`` and ``.raw``, beside them ``annotations.csv`` and
``candidates_V2.csv`` (or the older ``candidates.csv``). A subject here is a series: LUNA16 does not
say which series share a patient.
"""

import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from training.corpora.case import (
    Case,
    Corpus,
    CorpusWarning,
    Finding,
    Survey,
    error,
    folder_with,
    visible,
    warning,
)
from training.corpora.checks import Grid, raise_to_air, read_grid
from training.corpora.luna16_tables import (
    TABLES,
    Candidates,
    nodules_twice,
    outside,
    read_candidates,
    read_nodules,
)
from universal_model_hub.errors import ConfigError, VolumeError
from universal_model_hub.volume import Volume, load_volume

NAME = "luna16"
SUBSETS = tuple(f"subset{number}" for number in range(10))


def survey(folder: Path) -> Survey:
    """List the volumes of all subsets.

    Raises:
        ConfigError: If there is no subset folder.
    """
    root = root_of(folder)
    findings: list[Finding] = []
    found: dict[str, Case] = {}
    for subset in SUBSETS:
        for path in visible(root / subset, "*.mhd"):
            case = Case(
                corpus=NAME,
                subject=path.stem,
                id=path.stem,
                modality="CT",
                volume=path,
                group=subset,
            )
            if path.stem in found:
                what = f"The series is in {found[path.stem].group} and again in {subset}."
                fix = "Delete the copy that does not belong there; it would leak across the split."
                findings.append(error("duplicate_subject", what, fix, case=case))
            elif finding := _missing_raw(case):
                findings.append(finding)
            else:
                found[path.stem] = case
    cases = tuple(found[series] for series in sorted(found))
    counts = Counter(case.group for case in cases)
    if missing := [subset for subset in SUBSETS if not counts[subset]]:
        what = f"Expected volumes in ten subsets, got none in {', '.join(missing)}."
        fix = "Fetch them; subsets 0 to 6 are for training, 7 to 9 for the test."
        findings.append(warning("missing_subset", what, fix))
    facts = {"volumes per subset": " ".join(str(counts[subset]) for subset in SUBSETS)}
    return Survey(cases, tuple(findings), facts)


def root_of(folder: Path) -> Path:
    """Return the folder that holds the subsets.

    Raises:
        ConfigError: If there is none.
    """
    return folder_with(folder, "LUNA16", SUBSETS, "the LUNA16 layout subset0 .. subset9")


def load(case: Case) -> Volume:
    """Load a volume in HU, padding outside the field of view raised to -1024."""
    return raise_to_air(load_volume(case.volume))


def load_labels(case: Case) -> Volume:
    """LUNA16 labels places, not voxels.

    Raises:
        ConfigError: Always; the labels are in `candidates` and `nodules`.
    """
    raise ConfigError(
        f"Expected a corpus with label volumes, got {case.corpus}. Use luna16.candidates(folder)."
    )


def candidates(
    folder: Path, *, version: str = "V2", beyond: Literal["refuse", "drop"] = "refuse"
) -> Candidates:
    """Read the candidates of the volumes that are there, with their voxel positions.

    Args:
        folder: The LUNA16 folder.
        version: ``"V2"``, or ``"old"`` for the file whose counts the paper gives.
        beyond: ``"refuse"`` a table with candidates outside their volume, or ``"drop"`` them.

    Raises:
        ConfigError: If the table is missing or damaged.
        VolumeError: If a candidate lies outside its volume and is not to be dropped.
    """
    root = root_of(folder)
    if version not in TABLES or not (root / TABLES[version]).is_file():
        there = [key for key, name in TABLES.items() if (root / name).is_file()]
        raise ConfigError(
            f"Expected candidates {version!r} in {root}, got {there or 'none'}. "
            f"Fetch {TABLES['V2']} (python -m training.corpora download luna16), "
            f"or pass version='old' to use the older table knowingly."
        )
    grids = {case.id: read_grid(case.volume) for case in survey(folder).cases}
    table = read_candidates(root, version, grids)
    table = table.where(np.isin(table.series, list(grids)))
    wrong = outside(table, grids)
    if wrong.any():
        message = (
            f"Expected every candidate of {TABLES[version]} inside its volume, got "
            f"{int(wrong.sum())} outside, the first in series {table.series[wrong][0]}. "
        )
        if beyond == "refuse":
            raise VolumeError(message + "Check the volumes' headers, or pass beyond='drop'.")
        warnings.warn(message + "They are dropped.", CorpusWarning, stacklevel=2)
    return table.where(~wrong)


def nodules(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read annotations.csv: series (P,), center (P, 3) in RAS mm, diameter (P,) in mm.

    Raises:
        ConfigError: If the table is missing or damaged.
    """
    return read_nodules(root_of(folder))


def check_case(case: Case, volume: Volume) -> list[Finding]:
    """Nothing beyond the checks that every CT gets."""
    return []


def check_corpus(folder: Path, listing: Survey) -> Survey:
    """Check the tables: version, rows per subset, unknown series, places, duplicates."""
    root = root_of(folder)
    there = [version for version, name in TABLES.items() if (root / name).is_file()]
    findings = [*listing.findings, *_version_findings(there)]
    facts = dict(listing.facts)
    try:
        if there:
            found, rows = _candidate_findings(root, there[0], listing.cases)
            findings += found
            facts.update(rows)
        findings += _nodule_findings(root)
    except (ConfigError, VolumeError) as cause:
        findings.append(error("bad_table", str(cause), "Fetch the table again."))
    return replace(listing, findings=tuple(findings), facts=facts)


def _candidate_findings(
    root: Path, version: str, cases: tuple[Case, ...]
) -> tuple[list[Finding], dict[str, str]]:
    name = TABLES[version]
    grids = _readable_grids(cases)
    table = read_candidates(root, version, grids)
    findings: list[Finding] = []
    known = np.isin(table.series, [case.id for case in cases])
    if not known.all():
        series = sorted(set(table.series[~known]))
        what = f"{int((~known).sum())} rows name {len(series)} series without a volume: {series[0]}"
        fix = "Fetch the missing subsets; the rows are not used."
        findings.append(warning("unknown_seriesuid", what, fix, file=root / name))
    wrong = outside(table, grids)
    for case in cases:
        if num := int((wrong & (table.series == case.id)).sum()) if wrong.any() else 0:
            what = f"Expected candidates inside the volume, got {num} outside."
            fix = "Check origin, spacing and direction of the volume; fetch both files again."
            findings.append(error("candidate_outside", what, fix, case=case, file=root / name))
    subset = {case.id: int(case.group.removeprefix("subset")) for case in cases}
    per_row = np.array([subset.get(series, -1) for series in table.series], int)
    positive = np.bincount(per_row[table.positive & known], minlength=10)
    facts = {
        "candidates": f"{name}: {len(known):,} rows, {int(table.positive.sum()):,} positive",
        "rows per subset": " ".join(map(str, np.bincount(per_row[known], minlength=10))),
        "positives per subset": " ".join(map(str, positive)),
    }
    return findings, facts


def _readable_grids(cases: tuple[Case, ...]) -> dict[str, Grid]:
    """Grids by series; a damaged header is reported with its volume, not here."""
    grids = {}
    for case in cases:
        try:
            grids[case.id] = read_grid(case.volume)
        except VolumeError:
            continue
    return grids


def _nodule_findings(root: Path) -> list[Finding]:
    if not (root / "annotations.csv").is_file():
        what = "Expected annotations.csv with the nodules, got none."
        return [warning("no_annotations", what, "Fetch it beside the subsets.")]
    if not (pairs := nodules_twice(*read_nodules(root))):
        return []
    what = f"{pairs} pair(s) of annotations lie within one nodule's radius of each other."
    fix = "Count such a nodule once when nodules are counted; candidates are not affected."
    return [warning("nodule_twice", what, fix, file=root / "annotations.csv")]


def _version_findings(there: list[str]) -> list[Finding]:
    if "V2" in there:
        return []
    if there:
        what = f"Expected {TABLES['V2']}, got only the older {TABLES['old']}, which misses nodules."
        fix = "Fetch candidates_V2; the paper's counts (551,065 rows) are the older file's."
        return [warning("old_candidates", what, fix, file=TABLES["old"])]
    what = f"Expected {TABLES['V2']}, got no candidate table."
    return [warning("no_candidates", what, "Fetch it; the task lnc needs it.")]


def _missing_raw(case: Case) -> Finding | None:
    for line in case.volume.read_text(encoding="latin-1").splitlines():
        key, _, value = line.partition("=")
        name = value.strip()
        if key.strip() == "ElementDataFile":
            if (case.volume.parent / name).is_file():
                return None
            what = f"Expected the voxels in {name}, got no such file."
            return error("missing_raw", what, "Fetch it again.", case=case)
    what = "Expected a line ElementDataFile in the header, got none."
    return error("bad_header", what, "Fetch the file again.", case=case)


CORPUS = Corpus(
    name=NAME,
    title="LUNA16",
    modalities=("CT",),
    label_names={},
    access="CC BY 4.0; Zenodo records 3723295 and 4121926 "
    "(python -m training.corpora download luna16)",
    survey=survey,
    load=load,
    load_labels=load_labels,
    check_case=check_case,
    check_corpus=check_corpus,
)
