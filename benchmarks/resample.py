"""Resampling a CT to 1 mm by third-order spline, side by side with SciPy and SimpleITK.

    python -m benchmarks.resample [--shape 512 512 238] [--spacing 0.74 0.74 1.25] [--rounds 5]
        [--threads 2] [--output results/benchmark_resample.json]

Every tool gets the same int16 voxels, in the memory order of a NIfTI file, and the same target
grid, and gives float32. Tools take turns in each round, so that a busy machine slows all of them;
ratios are within a round. The scan is a phantom: blobs of tissue in air, with noise.
"""

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from benchmarks.record import stamp
from universal_model_hub.files import write_json
from universal_model_hub.preprocess import Preprocessing
from universal_model_hub.preprocess.record import Grid, model_grid
from universal_model_hub.resample import resample
from universal_model_hub.volume import Volume

ROOT = Path(__file__).parent.parent
BORDER = 12  # voxels left out where tools differ in what lies beyond the last voxel


def main() -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 238))
    parser.add_argument("--spacing", type=float, nargs=3, default=(0.74, 0.74, 1.25), help="mm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmark_resample.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(args.threads)
    volume = phantom(args.shape, args.spacing)
    grid = model_grid(volume, Preprocessing())
    result = {
        **stamp(),
        "shape": list(args.shape),
        "spacing": list(args.spacing),
        "resampled": list(grid.model_shape),
        "threads": {"ours": args.threads, "SimpleITK": args.threads, "scipy": 1},
        "rounds": args.rounds,
        **compared(volume, grid, args.rounds),
    }
    write_json(args.output, result)
    print(args.output.read_text())
    return 0


def phantom(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Volume:
    """Return blobs of tissue in air with noise, as int16 HU, X fastest in memory."""
    rng = np.random.default_rng(0)
    coarse = ndimage.zoom(rng.normal(size=[max(2, n // 24) for n in shape]), 4, order=1)
    blobs = ndimage.zoom(coarse, np.array(shape) / coarse.shape, order=1)
    hu = np.where(blobs > 0, 40.0, -1000.0) + rng.normal(0, 20, shape)
    return Volume(np.asfortranarray(hu.round().astype(np.int16)), np.diag([*spacing, 1.0]))


def compared(volume: Volume, grid: Grid, rounds: int) -> dict[str, Any]:
    """Time every tool once a round; return seconds, memory, ratios and differences."""
    tools: dict[str, Callable[[Volume, Grid], np.ndarray]] = {
        "ours": by_ours,
        "scipy": by_scipy,
        "SimpleITK": by_simpleitk,
    }
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    report: dict[str, dict[str, Any]] = {name: {} for name in tools}
    reference = by_ours(volume, grid)
    for name, tool in tools.items():  # warm up, compare, and measure memory
        before = reset_peak()
        values = tool(volume, grid)
        report[name]["extra_peak_mib"] = round((peak_bytes() - before) / 2**20) if before else None
        report[name] |= differences(values, reference)
        del values
        gc.collect()
    for _ in range(rounds):
        for name, tool in tools.items():
            start = time.perf_counter()
            tool(volume, grid)
            seconds[name].append(time.perf_counter() - start)
    for name in tools:
        ratios = [s / ours for s, ours in zip(seconds[name], seconds["ours"], strict=True)]
        report[name] |= {"seconds": spread(seconds[name]), "times_ours": spread(ratios)}
    return {"tools": report}


def by_ours(volume: Volume, grid: Grid) -> np.ndarray:
    """Resample with this package."""
    return resample(volume.array, grid.model_shape, grid.scale, grid.offset, 3).numpy()


def by_scipy(volume: Volume, grid: Grid) -> np.ndarray:
    """Resample with scipy.ndimage, whose zoom is this call with another grid."""
    return ndimage.affine_transform(
        volume.array,
        np.array(grid.scale),
        grid.offset,
        output_shape=grid.model_shape,
        output=np.float32,
        order=3,
        mode="mirror",
    )


def by_simpleitk(volume: Volume, grid: Grid) -> np.ndarray:
    """Resample with SimpleITK; both of its images are in voxels of the scan."""
    image = sitk.GetImageFromArray(volume.array.T)
    filled = sitk.Resample(
        image,
        list(grid.model_shape),
        sitk.Transform(),
        sitk.sitkBSpline,
        list(grid.offset),
        list(grid.scale),
        np.eye(3).ravel().tolist(),
        0.0,
        sitk.sitkFloat32,
    )
    return sitk.GetArrayViewFromImage(filled).T.copy()


def differences(values: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """Return the largest difference in HU, inside and everywhere."""
    apart = np.abs(values - reference)
    inside = apart[tuple(slice(BORDER, n - BORDER) for n in apart.shape)]
    return {
        "max_difference_inside_hu": float(inside.max()) if inside.size else None,
        "max_difference_hu": float(apart.max()),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the extremes."""
    named = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {name: round(value, 4) for name, value in named.items()}


def reset_peak() -> int:
    """Start a new peak of this process's memory; return it in bytes, 0 where Linux cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return peak_bytes()


def peak_bytes() -> int:
    """Return the peak of this process's memory since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    raise SystemExit(main())
