"""The measured passages of both README.md, written from the files in results/.

    python -m benchmarks.readme

A test compares them with what this would write, so that no number there goes stale. (The costs of
recipes in training/README.md are written by `python -m training.cost --readme`.)
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"


def main() -> None:
    """Rewrite the passages between the markers."""
    for name in PASSAGES:
        path = ROOT / name
        path.write_text(written(name, path.read_text()))


def written(file: str, text: str) -> str:
    """Return a README's text with every measured passage as the result files have it."""
    for name, write in PASSAGES[file].items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{write()}\n{end}{after}"
    return text


def package_size() -> str:
    """Say how much an installation brings."""
    result = read("package_size.json")
    added = result["added"]
    names = ", ".join(sorted(added))
    return (
        f"Beyond torch and numpy this brings {result['packages']} packages of "
        f"{result['megabytes']:.1f} MB of wheels in all ({names}).\n"
        f"Measured by `make package-size`, {stamp(result)}."
    )


def embed_ct() -> str:
    """Say what embedding a real CT costs, with and without a tight memory limit."""
    results = [read("benchmark_embed_ct.json"), read("benchmark_embed_ct_2gib.json")]
    first = results[0]
    shape = " x ".join(str(side) for side in first["shape"])
    spacing = " x ".join(f"{side:.2f}" for side in first["spacing_mm"])
    rows = "\n".join(
        f"| {limit(r)} | {r['peak_rss_mib'] / 1024:.1f} GiB | {r['seconds']:.0f} s |"
        for r in results
    )
    return (
        f"`umh embed` on {first['scan']} ({shape} voxels of {spacing} mm, a real chest CT), "
        f"{first['model']} ({first['weights']}), {first['threads']} threads; the same features "
        "either way:\n\n"
        "| memory limit | peak memory of the process | time, start to end |\n|---|---|---|\n"
        f"{rows}\n\n"
        "The limit is for what the scan adds to the running program "
        f"({first['rss_before_scan_mib']} MiB here). It is checked against an estimate before the "
        "run; a scan that would not fit is refused with both numbers.\n"
        f"Measured by `make bench`, {stamp(first)}."
    )


def release() -> str:
    """Say what the released weights gain over scratch on the tasks of the final evaluation."""
    report = read("release.json")
    weights = [arm["name"] for arm in report["weights"] if not arm["sibling"]]
    lines = [
        f"| task | labels | scratch | {' | '.join(f'`{name}`' for name in weights)} |",
        f"|---|---:|---:|{'---|' * len(weights)}",
    ]
    for task in report["tasks"]:
        by_cell = {(row["arm"], row["share"]): row for row in task["rows"]}
        for share in sorted({row["share"] for row in task["rows"]}):
            cells = [f"{by_cell['scratch', share]['dice']['mean']:.3f}"]
            cells += [above_scratch(by_cell[name, share]) for name in weights]
            title = f"({task['letter']}) {task['title']}"
            lines.append(f"| {title} | {share} % | {' | '.join(cells)} |")
    return "\n".join(lines)


def benchmark() -> str:
    """Say what the benchmark on synthetic scans found, and how much of it was run."""
    report = read("benchmark_mini/report.json")
    commits = ", ".join(commit[:7] for commit in report["commits"])
    lines = [
        f"{report['runs']} of {report['runs_planned']} planned runs are done, by `python -m "
        f"training.benchmark --plan {report['plan']}`: {report['core_or_gpu_hours']:.1f} hours "
        f"of a core or GPU, and {report['pretraining_hours']:.1f} of pre-training; "
        f"{'; '.join(report['hardware'])}; {', '.join(report['dates'])}; "
        f"commits {commits}; the number of a trial is its seed."
    ]
    if report["runs"] < report["runs_planned"]:
        lines[0] += (
            " **The run is not finished**: where a start has fewer trials (n), its comparisons at "
            "the end stand on these few, and may yet turn."
        )
    titles = (
        "Table III: ways to start",
        "Table IV: parts of the method",
        "The order over all tasks",
    )
    for title in titles:
        lines += ["", *own_table(report, title)]
    return "\n".join([*lines, "", *(f"- {line}" for line in report["summary"])])


def benchmark_more() -> str:
    """Say what noisy labels, fewer labels and frozen encoders gave in the benchmark."""
    report = read("benchmark_mini/report.json")
    titles = (
        "What the trials can show",
        "Table V: noisy labels",
        "Fig. 5: shares of the labels",
        "Frozen encoders, and the leak of modality",
        "Runs done twice",
    )
    return "\n\n".join("\n".join(own_table(report, title)) for title in titles)


def own_table(report: dict[str, Any], title: str) -> list[str]:
    """Return the lines of a table of the benchmark, without what the paper reports."""
    table = report["tables"][title]
    ours = [i for i, name in enumerate(table["head"]) if "reported in the paper" not in name]
    return [
        f"**{title}**, on synthetic scans. {table['note']}",
        "",
        "| " + " | ".join(table["head"][i] for i in ours) + " |",
        "|---|" + "---:|" * (len(ours) - 1),
        *("| " + " | ".join(row[i] for i in ours) + " |" for row in table["rows"]),
    ]


def above_scratch(row: dict[str, Any]) -> str:
    """Say an arm's Dice and its difference from scratch, bold where the interval is above zero."""
    told = row["dice_difference"]
    text = f"{told['mean']:+.3f}, {told['low']:+.3f} to {told['high']:+.3f}"
    text = f"**{text}**" if told["low"] > 0 else text
    return f"{row['dice']['mean']:.3f} ({text})"


def limit(result: dict[str, Any]) -> str:
    """Say the memory limit of a run."""
    if result["memory_limit_bytes"] is None:
        return "half of what is free (default)"
    return f"{result['memory_limit_bytes'] / 2**30:.0f} GiB"


def stamp(result: dict[str, Any]) -> str:
    """Say when and on what a result was measured."""
    hardware = result["hardware"]
    return (
        f"{result['date'][:10]}, commit {result['commit'][:7]}, {hardware['processor']}, "
        f"{hardware['cores']} cores, torch {result['versions']['torch']}"
    )


def read(name: str) -> dict[str, Any]:
    """Read a result file."""
    return dict(json.loads((RESULTS / name).read_text()))


PASSAGES = {
    "README.md": {
        "package-size": package_size,
        "embed-ct": embed_ct,
        "release": release,
        "benchmark": benchmark,
    },
    "training/README.md": {"benchmark-more": benchmark_more},
}


if __name__ == "__main__":
    main()
