"""Does everything run on this machine's GPUs, and how fast: ``make gpu-check``.

    python -m training.gpu_check --output results/gpu_check.json

A few steps of the compact and of the paper's network in each precision, and with torch.compile in
bfloat16; a run stopped and resumed; a run of two processes where there are two GPUs; and
``predict`` against the CPU. Figures go to stdout as JSON; their ``tflops`` is what
``python -m training.cost --reuse --gpu-check FILE`` extrapolates from. Exit codes: 0, 2
without a GPU, 4 if a check fails.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.config import Recipe, load_recipe
from training.corpora.case import Case
from training.cubes import CubeStore, write_cubes
from training.measure import SAFE_RATE, time_steps
from training.pretrain import pretrain
from training.workload import network_of
from universal_model_hub import load_segmenter, predict
from universal_model_hub.errors import UniversalModelError
from universal_model_hub.files import write_json
from universal_model_hub.fit.training.engine import Process
from universal_model_hub.fit.training.hardware import hardware
from universal_model_hub.volume import Volume

ROOT = Path(__file__).parent.parent
NETWORKS = {"compact": (8, 32), "paper": (32, 6)}  # width, cubes a step
PRECISIONS = ("float32", "bfloat16", "float16")
TOLERANCE = 1e-3  # of probabilities, GPU against CPU, without TF32. Source: ours
TINY = ("model.width=4", "cubes.size=[16, 16, 16]", SAFE_RATE, "run.batch_size=4",
        "run.channels_last=true", "run.workers=0", "run.validation_cubes=8",
        "run.validate_every=4", "cubes.default_counts=[4, 2, 2]", "cubes.counts.luna16=[4, 2, 2]",
        "cubes.counts.msd_heart=[4, 2, 2]")  # fmt: skip


def run_checks(device: torch.device, steps: int) -> dict[str, Any]:
    """Run every check on a device; a check that raises is noted and the others still run."""
    torch.zeros(1, device=device)  # CUDA counts no memory before the first use of a device
    rows: list[dict[str, Any]] = []
    for name, (width, batch) in NETWORKS.items():
        for precision in PRECISIONS:
            # Compiling takes most of a minute; what matters is that the fastest way works.
            for compiled in (False, True) if precision == "bfloat16" else (False,):
                settings = [
                    f"model.width={width}",
                    f"run.batch_size={batch}",
                    f"run.precision={precision}",
                    f"run.compile={str(compiled).lower()}",
                    "run.channels_last=true",
                    SAFE_RATE,
                ]
                say(f"{name}, {precision}{', compiled' if compiled else ''} ...")
                recipe = load_recipe("paper", settings)
                facts = {"network": name, "precision": precision, "compiled": compiled}
                rows.append({**facts, **guarded(check_steps, recipe, device, steps)})
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        say("resume, processes, predict ...")
        single = {
            "resume": guarded(check_resume, Path(folder), device),
            "processes": guarded(check_processes, Path(folder)),
            "predict": guarded(check_predict, device),
        }
    passed = all(row["passed"] for row in (*rows, *single.values()))
    machine = {"hardware": hardware(device), "gpus": torch.cuda.device_count()}
    return {"passed": passed, **machine, "training": rows, **single}


def guarded(check: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a check; what it raises becomes its result."""
    try:
        return check(*arguments)
    except Exception as error:  # whatever a GPU's software raises belongs in the report
        return {"passed": False, "error": f"{type(error).__name__}: {error}"[:500]}


def check_steps(recipe: Recipe, device: torch.device, steps: int) -> dict[str, Any]:
    """Time training steps of a recipe; its losses must be finite."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, losses = time_steps(recipe, Process(0, 1, device), steps)
    per_cube = statistics.median(seconds) / recipe.run.batch_size
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "passed": bool(np.isfinite(list(losses.values())).all()),
        "batch": recipe.run.batch_size,
        "cubes_per_second": round(1 / per_cube, 2),
        "tflops": round(2 * network_of(recipe).training_gmac / per_cube / 1000, 3),
        "peak_memory_mib": peak // 2**20,
        "restoration": round(losses["restoration"], 4),
    }


def check_resume(folder: Path, device: torch.device) -> dict[str, Any]:
    """Stop a run after half its steps and resume it; both parts must end as they should."""
    recipe = load_recipe("paper", [*TINY, "run.steps=8", "run.save_every=2"])
    store = noise_store(folder / "store", recipe)
    run = folder / "resumed"
    settings: dict[str, Any] = {"device": str(device), "progress": False}
    stopped = pretrain(recipe, store, run, stop_after=4, **settings)
    finished = pretrain(recipe, store, run, **settings)
    summary = json.loads((run / "summary.json").read_text())
    passed = stopped != 0 and finished == 0 and summary["step"] == 8
    return {"passed": passed, "exit_codes": [stopped, finished], "step": summary["step"]}


def check_processes(folder: Path) -> dict[str, Any]:
    """Train by two processes over NCCL, where there are two GPUs."""
    if torch.cuda.device_count() < 2:
        return {"passed": True, "left_out": "there is one GPU"}
    settings = [*TINY, "run.steps=8", "run.save_every=2"]
    noise_store(folder / "store", load_recipe("paper", settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "-m", "training.pretrain", "--recipe", "paper", "--device", "cuda", "--quiet",
               "--cubes", str(folder / "store"), "--run-folder", str(folder / "two")]  # fmt: skip
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    return {"passed": done.returncode == 0, "processes": 2, "stderr": done.stderr[-500:]}


def check_predict(device: torch.device) -> dict[str, Any]:
    """Segment a scan of noise on the device and on the CPU; probabilities must agree."""
    torch.manual_seed(0)
    model: Any = load_segmenter("unet3d-compact", 3, pretrained=False)
    model.head_trained = True
    array = np.random.default_rng(0).integers(-1000, 400, (70, 60, 50), dtype=np.int16)
    scan = Volume(array, np.diag([1.2, 1.0, 1.5, 1.0]))
    # TF32 rounds to 10 bits: faster, and no measure of whether both compute the same.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
        found = predict(model, scan, output="probabilities", modality="CT", device=device)
    expected = predict(model, scan, output="probabilities", modality="CT", device="cpu")
    largest = max(float(abs(found[k].array - expected[k].array).max()) for k in expected)
    return {"passed": largest <= TOLERANCE, "largest_difference": largest, "tolerance": TOLERANCE}


def noise_store(folder: Path, recipe: Recipe) -> CubeStore:
    """Write cubes of four synthetic volumes of noise, two of each modality."""
    folder.mkdir(exist_ok=True)
    for number, (corpus, modality) in enumerate(2 * [("luna16", "CT"), ("msd_heart", "MR")]):
        name = f"{corpus}-{number}"
        case = Case(corpus=corpus, subject=name, id=name, modality=modality, volume=Path(name))  # type: ignore[arg-type]
        low = -1000 if modality == "CT" else 0
        array = np.random.default_rng(number).integers(low, 900, (40, 40, 40), dtype=np.int16)
        write_cubes(case, Volume(array, np.eye(4)), recipe, folder)
    return CubeStore(folder)


def say(text: str) -> None:
    """Print a line of progress on stderr."""
    print(f"gpu-check: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.gpu_check", description=__doc__)
    parser.add_argument("--output", "-o", type=Path, help="also write the figures here")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each row")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        say("PyTorch sees no CUDA GPU here. Nothing was checked.")
        return 2
    try:
        result = run_checks(torch.device("cuda", 0), options.steps)
        if options.output:
            write_json(options.output, result)
    except UniversalModelError as error:
        say(f"error: {error}")
        return error.exit_code
    print(json.dumps(result, indent=2))
    return 0 if result["passed"] else 4


if __name__ == "__main__":
    sys.exit(main())
