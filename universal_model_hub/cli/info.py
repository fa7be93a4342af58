"""``umh info``: what a model is, where it comes from, how far it is verified."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from universal_model_hub.cli import options

if TYPE_CHECKING:
    from universal_model_hub.source import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("name", metavar="NAME", help="a model's name, as for --model elsewhere")
    options.add_json(parser)
    options.add_hub(parser)


def run(args: argparse.Namespace) -> int:
    """Print a model's config.json, its row of the catalog, and the state of its file."""
    from universal_model_hub.catalog import WEIGHTS

    source = find_model(args.name, args)
    entries = source.config.to_json()
    if args.json:
        print(json.dumps(entries, indent=2))
        return 0
    file: dict[str, Any] = {
        "file": source.weights or "none: these weights are not trained or not published yet",
        "verified": _verified_by(source),
        "sha256": source.sha256,
        "revision": source.revision,
    }
    _print_entries("Weights", file)
    if args.name in WEIGHTS:
        _print_entries("Catalog", asdict(WEIGHTS[args.name]))
    provenance, metrics = entries.pop("provenance", {}), entries.pop("metrics", [])
    _print_entries("config.json", entries)
    _print_entries("Provenance", provenance)
    _print_metrics(metrics)
    return 0


def find_model(name: str, args: argparse.Namespace) -> "Source":
    """Return a model's config and file; of a catalog row without weights, the config alone.

    Raises:
        UniversalModelError: As ``source.find_source``.
    """
    from universal_model_hub.catalog import WEIGHTS
    from universal_model_hub.source import find_source

    if name in WEIGHTS and not WEIGHTS[name].available:
        return find_source(name, False)
    return find_source(name, True, **options.hub_options(args))


def _verified_by(source: "Source") -> str | None:
    return {
        None: None,
        "pinned": "pinned: the sha256 is the catalog's",
        "hub": "hub: the content hashes to what the Hub says",
        "local": "local: nothing but its own config.json speaks for it",
    }[source.verified]


def _print_entries(title: str, entries: Mapping[str, Any]) -> None:
    shown = {name: value for name, value in entries.items() if value not in (None, {}, [], ())}
    if not shown:
        return
    print(f"{title}:")
    for name, value in shown.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        print(f"  {name}: {text}")


def _print_metrics(metrics: Sequence[Mapping[str, Any]]) -> None:
    """Print all metrics of a task under its name, those without one as they are."""
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for metric in metrics:
        by_task.setdefault(str(metric.get("task", "")), []).append(metric)
    if by_task:
        print("Metrics:")
    for task, found in by_task.items():
        if task:
            print(f"  {task}:")
        for metric in found:
            print(f"    {_metric_line(metric)}")


def _metric_line(metric: Mapping[str, Any]) -> str:
    if "metric" not in metric or "value" not in metric:
        return json.dumps(dict(metric))
    spread = f" +- {metric['std']}" if metric.get("std") else ""
    facts = [f"{key} {metric[key]}" for key in ("n", "seeds") if key in metric]
    facts += [str(metric["source"])] if "source" in metric else []
    told = f" ({', '.join(facts)})" if facts else ""
    return f"{metric['metric']}: {metric['value']}{spread}{told}"
