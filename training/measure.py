"""Timings of the stages of training on this machine, each in a fresh process."""

import concurrent.futures
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.config import Recipe, load_recipe
from training.cubes import AIR_LEVEL, cut_cubes
from training.estimate import SLOWEST_BFLOAT16
from training.pretrain import to_device, train_step
from training.state import start_training, wrap
from training.transforms import original_and_corrupted
from training.workload import network_of
from universal_model_hub.fit.training.engine import Process
from universal_model_hub.fit.training.hardware import hardware
from universal_model_hub.preprocess import preprocess
from universal_model_hub.volume import Volume

# width, cubes a step, precision, channels last
TRAINING_ROWS = (
    (8, 2, "float32", False),
    (8, 2, "float32", True),
    (8, 2, "bfloat16", True),
    (32, 1, "float32", False),
    (32, 1, "bfloat16", True),
)
SAFE_RATE = "optimizer.unet_learning_rate=1e-3"  # on cubes of noise the paper's 1 would diverge
# A chest CT as LUNA16 has it in the median (Table I).
SCAN_SHAPE, SCAN_SPACING = (512, 512, 238), (0.74, 0.74, 1.25)


def measure(
    steps: int = 2, threads: int | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Time training, corruption and preparation, one after the other.

    Args:
        steps: Timed training steps of each row, after one that is not timed.
        threads: Of a training process; None for one a core. On a machine that others use too, take
            1: threads that wait for each other lose far more than their share.
        say: Gets a line when a stage starts.
    """
    threads = threads or os.cpu_count() or 1
    before = os.getloadavg()[0]
    slowdown = alone(bfloat16_slowdown, threads)
    rows = []
    for width, batch, precision, channels_last in TRAINING_ROWS:
        if precision == "bfloat16" and slowdown > SLOWEST_BFLOAT16:
            say(f"training, width {width}, {precision}: left out, {slowdown} times slower here")
            continue
        say(f"training, width {width}, {precision} ...")
        settings = (width, batch, precision, channels_last)
        rows.append(alone(time_training, settings, threads, steps))
    say("corruption ...")
    corruption = alone(time_corruption)
    say("preparation ...")
    preparation = alone(time_preparation)
    return {
        "hardware": hardware(torch.device("cpu")) | {"threads": threads},
        "load_average": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
        "bfloat16_slowdown": slowdown,
        "training": rows,
        "corruption": corruption,
        "preparation": preparation,
    }


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a fresh process, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def bfloat16_slowdown(threads: int) -> float:
    """Return how many times longer a step in bfloat16 takes than in float32, on tiny cubes."""
    torch.set_num_threads(threads)
    seconds = {}
    for precision in ("float32", "bfloat16"):
        settings = ["model.width=8", "cubes.size=[16, 16, 16]", "run.batch_size=2"]
        recipe = load_recipe("paper", [*settings, f"run.precision={precision}", SAFE_RATE])
        timed, _ = time_steps(recipe, Process(0, 1, torch.device("cpu")), 2)
        seconds[precision] = min(timed)
    return round(seconds["bfloat16"] / seconds["float32"], 2)


def time_training(settings: tuple[int, int, str, bool], threads: int, steps: int) -> dict[str, Any]:
    """Time steps of the paper's full objective, by a row of ``TRAINING_ROWS``, on the processor."""
    torch.set_num_threads(threads)
    width, batch, precision, channels_last = settings
    recipe = load_recipe(
        "paper",
        [
            f"model.width={width}",
            f"run.batch_size={batch}",
            f"run.precision={precision}",
            f"run.channels_last={str(channels_last).lower()}",
            SAFE_RATE,
        ],
    )
    seconds, losses = time_steps(recipe, Process(0, 1, torch.device("cpu")), steps)
    gmac = network_of(recipe).training_gmac
    per_cube = statistics.median(seconds) / batch
    return {
        "width": width,
        "batch": batch,
        "precision": precision,
        "channels_last": channels_last,
        "steps": steps,
        "seconds_per_step": round(statistics.median(seconds), 3),
        "steps_per_second": round(1 / statistics.median(seconds), 4),
        "cubes_per_second": round(1 / per_cube, 4),
        "gmac_per_cube": round(gmac, 2),
        "gflops": round(2 * gmac / per_cube, 1),
        "peak_memory_mib": peak_memory_mib(),
        "final_loss": round(losses["restoration"], 4),
    }


def time_steps(
    recipe: Recipe, process: Process, steps: int
) -> tuple[list[float], dict[str, float]]:
    """Train on random cubes; return the seconds of each step after the first, and the losses."""
    torch.manual_seed(recipe.run.seed)
    training = start_training(recipe, process)
    model = wrap(training.model, recipe, process)
    model.train()
    generator = torch.Generator().manual_seed(recipe.run.seed)
    batch = to_device(random_batch(recipe, generator), process, recipe)
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        losses = train_step(model, training, [batch], recipe, process)
        if process.device.type == "cuda":
            torch.cuda.synchronize(process.device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:], {name: float(value) for name, value in losses.items()}


def random_batch(recipe: Recipe, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a batch of noise for the paper's objective, both modalities in it."""
    N = recipe.run.batch_size
    shape = (N, 1, *recipe.cubes.size)
    return {
        "corrupted": torch.rand(shape, generator=generator),
        "original": torch.rand(shape, generator=generator),
        "modality_id": torch.arange(N) % 2,
        "scale_id": torch.arange(N) % len(recipe.cubes.scales),
    }


def time_corruption(cubes: int = 40) -> dict[str, Any]:
    """Time the corruption of one cube on one core, with the paper's settings."""
    torch.set_num_threads(1)
    recipe, rng = load_recipe("paper"), np.random.default_rng(0)
    cube = rng.random(recipe.cubes.size, dtype=np.float32)
    original_and_corrupted(cube, recipe.corruption, rng)  # fills the tables it keeps
    started = time.perf_counter()
    for _ in range(cubes):
        original_and_corrupted(cube, recipe.corruption, rng)
    seconds = (time.perf_counter() - started) / cubes
    return {"cubes": cubes, "ms_per_cube": round(1000 * seconds, 2)}


def time_preparation() -> dict[str, Any]:
    """Time normalizing a chest CT and cutting its cubes, on one core, without reading files."""
    torch.set_num_threads(1)
    recipe, rng = load_recipe("paper"), np.random.default_rng(0)
    array = rng.integers(-1000, 400, SCAN_SHAPE, dtype=np.int16)
    volume = Volume(array, np.diag([*SCAN_SPACING, 1.0]))
    started = time.perf_counter()
    cubes, _ = preprocess(volume, recipe.preprocessing, modality="CT")
    normalized = time.perf_counter()
    cut_cubes(cubes[0, 0], recipe.cubes, recipe.cubes.counts["luna16"], AIR_LEVEL["CT"], rng)
    ended = time.perf_counter()
    return {
        "shape": list(SCAN_SHAPE),
        "spacing": list(SCAN_SPACING),
        "normalize_seconds": round(normalized - started, 2),
        "cut_seconds": round(ended - normalized, 2),
        "cubes": sum(recipe.cubes.counts["luna16"]),
        "peak_memory_mib": peak_memory_mib(),
    }


def peak_memory_mib() -> int | None:
    """Return the largest resident size this process has had, in MiB; None where Linux is not."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    # Not ru_maxrss: across fork and exec that one keeps the parent's.
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peaks[0]) // 1024 if peaks else None
