"""The table of packaged scans, ``recipes/packaged_split.toml``: what each is and its one role."""

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.corpora.case import Modality
from training.corpora.packages import Package
from universal_model_hub.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPLIT_FILE = Path(__file__).parent.parent / "recipes" / "packaged_split.toml"
ROLES = ("pretrain", "develop", "demo", "test")
Purpose = Literal["pretrain", "develop", "demo", "evaluation"]
Format = Literal["volume", "raw", "mat", "ssdf", "probability", "tpm"]


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """Labels of one scan, on its grid."""

    files: tuple[str, ...]  # base names
    format: Format = "volume"
    dtype: str = "uint8"  # raw only
    stored: tuple[int, int, int] | None = None  # raw only: sides with the border InVesalius adds
    names: Mapping[int, str] = field(default_factory=dict)
    names_file: str = ""  # a list of names in the package, instead of names
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One scan: where it is, what it is, what it may be used for."""

    id: str
    package: str
    file: str  # base name
    subject: str
    roles: tuple[str, ...]
    modality: Modality
    region: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]  # mm
    low: float  # smallest and largest intensity as stored
    high: float
    sequence: str = ""
    released: bool = True  # whether released weights may train on it
    picture: bool = True  # whether pictures of it may be made
    spacing_stated: bool = True  # False: spacing and directions are assumed
    format: Format = "volume"
    dtype: str = "int16"  # raw only
    key: str = "vol"  # name of the array; mat and ssdf only
    axes: str = ""  # where the axes point to, for files that do not say
    slope: float = 1.0  # HU per stored unit
    intercept: float = 0.0  # HU
    labels: Mapping[str, LabelSet] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Table:
    """The content of packaged_split.toml."""

    packages: Mapping[str, Package]
    scans: Mapping[str, Scan]


def read_table(path: Path = SPLIT_FILE) -> Table:
    """Read the table of packages and scans.

    Raises:
        ConfigError: If a field is unknown, a role does not exist, or a subject has a test scan and
            another one that is not.
    """
    with path.open("rb") as stream:
        content = tomllib.load(stream)
    try:
        packages = {n: Package(name=n, **values) for n, values in content["packages"].items()}
        scans = {name: _scan(name, values) for name, values in content["scans"].items()}
    except (KeyError, TypeError) as cause:
        raise ConfigError(
            f"Expected the fields of a scan or a package in {path.name}, got: {cause}. Correct it."
        ) from cause
    sides: defaultdict[str, set[bool]] = defaultdict(set)
    for scan in scans.values():
        if not scan.roles or not set(scan.roles) <= set(ROLES):
            raise ConfigError(
                f"Expected roles of {', '.join(ROLES)} for {scan.id}, got {scan.roles}."
            )
        sides[scan.subject].add("test" in scan.roles)
        packages[scan.package].path(Path(), scan.file)
    if torn := [subject for subject, tested in sides.items() if len(tested) > 1]:
        raise ConfigError(
            f"Expected each subject on one side in {path.name}, got {', '.join(torn)} both as test "
            f"and otherwise. Give all scans of a subject the same side."
        )
    return Table(packages, scans)


def get_scan(scan_id: str, purpose: Purpose, *, table: Table | None = None) -> Scan:
    """Return a scan if its role allows the purpose.

    Raises:
        ConfigError: If there is no such scan, or its role forbids it.
    """
    scans = (table or read_table()).scans
    if scan_id not in scans:
        raise ConfigError(f"Expected a scan of {', '.join(scans)}, got {scan_id!r}.")
    scan = scans[scan_id]
    if "test" in scan.roles and purpose != "evaluation" and purpose not in scan.roles:
        raise ConfigError(
            f"Expected a scan that may be used to {purpose}, got {scan_id}, whose role is "
            f"{', '.join(scan.roles)}: it is read once, at the end, by the evaluation "
            f"(purpose='evaluation'), and by no training or tuning."
        )
    if purpose == "pretrain" and "pretrain" not in scan.roles:
        raise ConfigError(
            f"Expected a scan for pre-training, got {scan_id}, whose role is "
            f"{', '.join(scan.roles)}. Choose from {', '.join(ids('pretrain', table=table))}."
        )
    return scan


def ids(role: str, *, table: Table | None = None) -> tuple[str, ...]:
    """Return the scans that have a role."""
    return tuple(n for n, scan in (table or read_table()).scans.items() if role in scan.roles)


def label_set(scan: Scan, which: str = "") -> LabelSet:
    """Return a label set by name; "" is the scan's first.

    Raises:
        ConfigError: If the scan has none of that name.
    """
    name = which or next(iter(scan.labels), "")
    if name not in scan.labels:
        raise ConfigError(
            f"Expected a label set of {scan.id} ({', '.join(scan.labels) or 'it has none'}), "
            f"got {which!r}."
        )
    return scan.labels[name]


def _scan(name: str, values: dict[str, Any]) -> Scan:
    values = dict(values)
    labels = {which: _labels(entry) for which, entry in values.pop("labels", {}).items()}
    for key in ("shape", "spacing", "roles"):
        values[key] = tuple(values[key])
    return Scan(id=name, labels=labels, **values)


def _labels(values: dict[str, Any]) -> LabelSet:
    values = dict(values)
    files = tuple(values.pop("files", ())) or (values.pop("file"),)
    if "stored" in values:
        values["stored"] = tuple(values["stored"])
    return LabelSet(files=files, **values)
