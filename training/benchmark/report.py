"""The report of a benchmark: ``report.html``, ``report.md`` and ``report.json`` beside the runs.

    python -m training.benchmark.report OUT

What is not there yet is named as missing; nothing is filled in.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.benchmark.figures import curves_figure, example_pictures, labels_figure
from training.benchmark.findings import Finding, against_all, findings, summary, summary_against_all
from training.benchmark.results import NAMES, Result, Results, read_results
from training.benchmark.tables import View, labels_view, result_views, tasks_view
from training.benchmark.tables_beyond import again_view, cost_view, fit_view, probes_view
from training.benchmark.tables_order import (
    against_all_view,
    findings_view,
    over_tasks_view,
    power_view,
)
from universal_model_hub.errors import UniversalModelError
from universal_model_hub.files import write_bytes, write_json
from universal_model_hub.fit.reporting import page
from universal_model_hub.fit.reporting.page import Markup
from universal_model_hub.fit.reporting.planes import DIFFERENCES, class_color

SYNTHETIC = (
    "All scans are synthetic phantoms in the layouts of the real data sets, and the networks are "
    "small. The numbers say how the methods compare here. They are neither the paper's results nor "
    "a measure of how well anything works on patients."
)


def write_report(out: Path) -> None:
    """Write the three files.

    Args:
        out: Folder of results; runs that are missing or failed are named.

    Raises:
        ConfigError: If the folder has no plan.
        CheckpointError: If a file in it is damaged.
    """
    results = read_results(out)
    found, others = findings(results), against_all(results)
    short = [*summary(found, results), *summary_against_all(others)]
    views = _views(results, found, others)
    write_json(out / "report.json", report_numbers(results, found, short, views))
    write_bytes(out / "report.md", markdown(results, short, views).encode())
    write_bytes(out / "report.html", html(results, short, views).encode())


def report_numbers(
    results: Results, found: Sequence[Finding], short: Sequence[str], views: Sequence[View]
) -> dict[str, Any]:
    """Return what the page says in numbers, and of which runs."""
    return {
        **facts(results),
        "findings": [{**asdict(one), "holds": one.holds, "verdict": one.verdict} for one in found],
        "summary": list(short),
        "tables": {
            view.title: {
                "head": list(view.head),
                "rows": [[cell.text for cell in row] for row in view.rows],
                "note": view.note,
            }
            for view in views
        },
    }


def facts(results: Results) -> dict[str, Any]:
    """Return what the numbers stand on."""
    runs = list(results.runs.values())
    seconds = ("seconds", "validation_seconds", "test_seconds")
    return {
        "plan": results.plan["name"],
        "title": results.plan["title"],
        "synthetic": results.is_synthetic,
        "runs": len(runs),
        "runs_planned": results.planned,
        "runs_failed": len(results.failed),
        "core_or_gpu_hours": round(
            sum(run.content[part] for run in runs for part in seconds) / 3600, 2
        ),
        "pretraining_hours": round(_pretraining_hours(results), 2),
        "commits": sorted({run.content["commit"] for run in runs}),
        "hardware": sorted({run.platform for run in runs}),
        "dates": sorted({run.content["date"] for run in runs}),
        "data": dict(results.plan["data"]),
    }


def markdown(results: Results, short: Sequence[str], views: Sequence[View]) -> str:
    """Return the tables in Markdown."""
    known = facts(results)
    lines = [f"# {known['title']}", ""]
    if results.is_synthetic:
        lines += [f"**{SYNTHETIC}**", ""]
    lines += [*(f"- {line}" for line in _state(results)), ""]
    lines += ["## In short", "", *(f"- {line}" for line in short), ""]
    for view in views:
        lines += [f"## {view.title}", "", view.note, "", view.markdown(), ""]
    if results.failed:
        lines += ["## Failed", "", *(f"- {line}" for line in _failures(results)), ""]
    return "\n".join(lines)


def html(results: Results, short: Sequence[str], views: Sequence[View]) -> str:
    """Return the page; pictures and all are within it, links lead to the files beside it."""
    body = [
        page.tag("p", f"Benchmark, plan {results.plan['name']}", "eyebrow"),
        page.tag("h1", results.plan["title"]),
    ]
    if results.is_synthetic:
        body.append(page.tag("p", SYNTHETIC, "note"))
    body += [page.tag("p", line, "soft") for line in _state(results)]
    body.append(page.tag("h2", "In short"))
    body += [page.tag("p", line) for line in short]
    for view in views:
        body += _section(view)
    body += _pictures(results)
    if results.failed:
        body.append(page.tag("h2", "Failed"))
        body += [page.tag("p", line, "note") for line in _failures(results)]
    body += _run_list(results)
    return page.page(results.plan["title"], body, wide=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmark.report")
    parser.add_argument("output", type=Path, help="folder of results")
    try:
        write_report(parser.parse_args(arguments).output)
    except UniversalModelError as error:
        print(f"report: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _views(results: Results, found: Sequence[Finding], others: Sequence[Finding]) -> list[View]:
    views = [
        tasks_view(results),
        findings_view(found, results),
        against_all_view(others, results),
        over_tasks_view(found, results),
        power_view(found, results),
        *result_views(results),
        labels_view(results),
        fit_view(results),
        probes_view(results),
        again_view(results),
        cost_view(results),
    ]
    return [view for view in views if view is not None]


def _state(results: Results) -> list[str]:
    known = facts(results)
    lines = [
        f"{known['runs']} of {known['runs_planned']} planned runs are there, "
        f"{known['runs_failed']} failed; they took {known['core_or_gpu_hours']:,.1f} hours of a "
        f"core or GPU, and pre-training {known['pretraining_hours']:,.1f} (each counted once)."
    ]
    if known["hardware"]:
        lines.append(
            f"Hardware: {'; '.join(known['hardware'])}. Code: "
            f"{', '.join(_short(commit) for commit in known['commits'])}. "
            f"Dates: {', '.join(known['dates'])}. The number of a trial is its seed."
        )
    return [*lines, *_windows(results), *_retrained(results)]


def _pretraining_hours(results: Results) -> float:
    """Return the hours of the pre-trainings that are there, each counted once."""
    records = [record.get("result") for record in results.pretraining.values()]
    return sum(float(record["hours"]) for record in records if record)


def _windows(results: Results) -> list[str]:
    """Say how scans are segmented, and why."""
    configs = [run.content["config"] for run in results.runs.values()]
    overlaps = sorted({c["windows"]["overlap"] for c in configs if "windows" in c})
    if not overlaps:
        return []
    stripped = sorted({c["task"]["name"] for c in configs if c.get("task", {}).get("stripped")})
    outside = "what is exactly 0 lies outside the stripped head, and neither trains nor counts."
    return [
        *(f"{task}: {outside}" for task in stripped),
        "Whole scans are segmented in windows of the training cube, of which "
        f"{' or '.join(f'{overlap:.0%}' for overlap in overlaps)} overlap, with Gaussian weights: "
        "in one pass a network would see at its depth what no training cube has shown it, and some "
        "then find the foreground everywhere.",
    ]


def _retrained(results: Results) -> list[str]:
    """Say which runs start from which of several trainings of one recipe."""
    recipes: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for run in results.runs.values():
        known = run.content["pretraining"]
        if known is not None:
            trainings = recipes.setdefault((run.row, known["recipe"]), {})
            trainings.setdefault(run.weights or "", []).append(run)
    return [
        f"{results.title(row)}: its runs start from {len(trainings)} trainings of the recipe "
        f"{recipe}, as when a model was lost and trained again elsewhere: "
        + "; ".join(_runs_of(digest, runs) for digest, runs in sorted(trainings.items()))
        + ". A difference between these runs holds that of the trainings too."
        for (row, recipe), trainings in sorted(recipes.items())
        if len(trainings) > 1
    ]


def _runs_of(digest: str, runs: Sequence[Result]) -> str:
    """Say which runs start from the weights of this SHA-256."""
    kinds = {
        (run.share, run.noise): f"{run.share:.0%} of the labels" + (", noisy" if run.noise else "")
        for run in runs
    }
    tasks = ", ".join(sorted({run.task for run in runs}))
    return f"weights {digest[:8]}, {tasks} ({'; '.join(kinds[kind] for kind in sorted(kinds))})"


def _section(view: View) -> list[Markup]:
    rows = [[cell.text for cell in row] for row in view.rows]
    keys = [[cell.key for cell in row] for row in view.rows]
    return [
        page.tag("h2", view.title),
        page.tag("p", view.note, "soft"),
        page.table(view.head, rows, numeric=view.numeric, sort_keys=keys),
    ]


def _pictures(results: Results) -> list[Markup]:
    parts = []
    curves = curves_figure(results)
    if curves is not None:
        parts += [
            page.tag("h2", "Fig. 4: validation curves"),
            page.picture(curves, "Mean over trials; the bands are one standard deviation."),
        ]
    labels = labels_figure(results)
    if labels is not None:
        parts += [
            page.tag("h2", "Fig. 5: shares of the labels, drawn"),
            page.picture(labels, "Mean over trials; bars are one standard deviation."),
        ]
    examples = example_pictures(results)
    if examples:
        parts.append(page.tag("h2", "Figs. 3 and 6: the first test case of each segmentation"))
        named = {"target": class_color(1), **DIFFERENCES}
        parts.append(page.legend(named))
    for task, row, png in examples:
        title = results.plan["tasks"][task]["title"]
        parts.append(page.picture(png, f"{title}: {results.title(row)}, trial 0, all labels"))
    return parts


def _run_list(results: Results) -> list[Markup]:
    head = ("task", "start", "labels", "noise, mm", "trial", "metric", "score, %", "files")
    rows, keys = [], []
    for run in results.runs.values():
        metric = results.metric(run.task)
        value = run.value(metric)
        links = Markup(
            f"<a href='runs/{page.text(run.name)}.json'>configuration and result</a> "
            f"<a href='{page.text(run.content['log'])}'>log</a>"
        )
        title = results.title(run.row)
        score = page.number(value, 2)
        rows.append(
            [run.task, title, f"{run.share:.0%}", f"{run.noise:g}", str(run.trial), NAMES[metric],
             score, links]
        )  # fmt: skip
        keys.append([run.task, title, run.share, run.noise, run.trial, metric, value, run.name])
    return [
        page.tag("h2", "All runs"),
        page.table(head, rows, numeric=(2, 3, 4, 6), sort_keys=keys),
    ]


def _failures(results: Results) -> list[str]:
    return [
        f"{record['name']}: {str(record['error']).strip().splitlines()[-1]}"
        for record in results.failed
    ]


def _short(commit: str) -> str:
    """Return a commit as pages show it: ``+changes`` stays."""
    number, plus, changes = commit.partition("+")
    return number[:9] + plus + changes


if __name__ == "__main__":
    raise SystemExit(main())
