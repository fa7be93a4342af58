"""Probes of frozen encoders: what they know without fine-tuning, and whether they leak modality.

An encoder is asked as pre-training left it. Beside the pre-trained ones stand the same network with
random weights, and hand-made features. Source: ours; Zhang et al., Sec. III-B, for the wish that
features do not tell the modality.
"""

import datetime
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from training.benchmark.bench import Bench, has_result
from training.benchmark.logs import log_traceback, logged
from training.benchmark.pretraining import Pretraining
from training.benchmark.probing_cubes import cubes_key, cuts, probe_settings, read_cubes
from training.benchmark.probing_questions import ask, questions
from training.benchmark.rows import ROWS, get_row
from training.metrics import commit
from universal_model_hub.files import write_json
from universal_model_hub.fit.training.engine import pick_device
from universal_model_hub.fit.training.hardware import hardware
from universal_model_hub.fit.training.transfer import HEAD_ARGUMENTS
from universal_model_hub.loading import load_encoder
from universal_model_hub.networks import ENCODERS
from universal_model_hub.probe.arms import SIZES, HandMade, settle_statistics
from universal_model_hub.probe.encoding import QUANTILES

VERSION = 1  # of what is asked: raise it when results would differ
RANDOM, HANDMADE = "random", "handmade"
NETWORK = "unet3d"  # of the random weights, and of all rows that are pre-trained for all tasks
SETTLING_CUBES = 32  # that random weights take the statistics of batch norm from
BATCH = 16  # cubes

Embed = Callable[[Tensor], Tensor]  # (N, 1, X, Y, Z) to (N, F)


@dataclass(frozen=True)
class Probe:
    """One encoder to ask, by its row; or ``random`` or ``handmade``."""

    bench: Bench
    row: str

    def __hash__(self) -> int:
        return hash(self.row)

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Name of the log and of the record of a failure."""
        return f"probes-{self.row}"

    @property
    def file(self) -> Path:
        """Where the result is kept."""
        return self.bench.out / "probes" / f"{self.row}.json"

    @property
    def pretraining(self) -> Pretraining | None:
        """The pre-training of the row."""
        return pretrained_rows(self.bench).get(self.row)

    def settings(self) -> dict[str, Any]:
        """Return how the encoder is asked, as JSON values."""
        values = probe_settings(self.bench).to_json()
        if self.row == RANDOM:
            arguments = random_arguments(self.bench)
            values |= {"network": NETWORK, "arguments": arguments, "settling_cubes": SETTLING_CUBES}
        if self.row == HANDMADE:
            values |= {"neighborhoods": list(SIZES), "quantiles": list(QUANTILES)}
        return values

    @property
    def key(self) -> str:
        """Hash of everything that decides the result."""
        config = {
            "version": VERSION,
            "row": self.row,
            "pretraining": None if self.pretraining is None else self.pretraining.key,
            "cubes": cubes_key(self.bench),
            "tasks": list(self.bench.plan.tasks),
            "settings": self.settings(),
        }
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()

    @property
    def is_finished(self) -> bool:
        """Whether the result is there, under the same key.

        Raises:
            CheckpointError: If its file is damaged.
        """
        return has_result(self.file, self.key)


def probes(bench: Bench) -> list[Probe]:
    """Return all encoders that can be asked now; those of unfinished pre-trainings are left out."""
    rows = [row for row, found in pretrained_rows(bench).items() if found.is_finished]
    return [Probe(bench, row) for row in (*rows, RANDOM, HANDMADE)]


def pretrained_rows(bench: Bench) -> dict[str, Pretraining]:
    """Return the pre-training of each row that has one for all tasks, in the tables' order."""
    found = {row: p for (row, _), p in bench.pretrained.items() if not get_row(row).by_task}
    return {row: found[row] for row in ROWS if row in found}


def run_probe(probe: Probe, device: str) -> None:
    """Ask an encoder and write the result, unless it is there; in a worker.

    Raises:
        UniversalModelError: If weights or cubes cannot be used; the log has the traceback.
    """
    if probe.is_finished:
        return
    log = probe.bench.out / "logs" / f"{probe.name}.log"
    with logged(log) as stream:
        try:
            result = probe_result(probe, pick_device(device))
        except Exception:
            log_traceback()
            raise
        print(f"{probe.name}: {result['seconds']} s", file=stream)
    write_json(probe.file, {**result, "log": f"logs/{log.name}"})
    (probe.bench.out / "failed" / f"{probe.name}.json").unlink(missing_ok=True)


def probe_result(probe: Probe, device: torch.device) -> dict[str, Any]:
    """Return the content of a probe's file."""
    began = time.monotonic()
    bench, pretraining = probe.bench, probe.pretraining
    cubes, settings = read_cubes(cuts(bench)), probe_settings(bench)
    features = embedded(arm(probe, cubes.cubes, device), cubes.cubes, device)
    asked, skipped = questions(features, cubes, bench.plan.tasks)
    with threadpool_limits(1):  # a worker has one core; small fits are slower on more
        answers = {name: ask(question, settings) for name, question in asked.items()}
    return {
        "version": VERSION,
        "key": probe.key,
        "row": probe.row,
        "synthetic": bench.is_synthetic,
        "pretraining": None if pretraining is None else pretraining.facts(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": hardware(device),
        "seconds": round(time.monotonic() - began, 3),
        "settings": {**probe.settings(), "features": int(features.shape[1])},
        "questions": answers,
        "skipped": skipped,
    }


def arm(probe: Probe, cubes: np.ndarray, device: torch.device) -> Embed:
    """Return what turns cubes into features.

    Args:
        probe: Says which encoder.
        cubes: (P, X, Y, Z), some of which settle batch norm of random weights.
        device: Where the features are computed.
    """
    if probe.row == HANDMADE:
        return hand_made
    if probe.row == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder: Any = ENCODERS[NETWORK](**random_arguments(probe.bench))
        some = np.linspace(0, len(cubes) - 1, min(SETTLING_CUBES, len(cubes))).astype(int)
        settle_statistics(encoder, batch_of(cubes[some]).split(BATCH))
    else:
        assert probe.pretraining is not None
        encoder = load_encoder(probe.pretraining.model)
    embed: Embed = encoder.to(device).train(False).embed
    return embed


def random_arguments(bench: Bench) -> dict[str, Any]:
    """Return what builds the encoder of random weights."""
    given = bench.plan.networks.get(NETWORK, {})
    return {name: value for name, value in given.items() if name not in HEAD_ARGUMENTS}


def hand_made(x: Tensor) -> Tensor:
    """Return (N, F): means of the hand-made maps of cubes (N, 1, X, Y, Z), and their quantiles."""
    means = HandMade()(x).mean(dim=(2, 3, 4))
    at = torch.tensor(QUANTILES, dtype=x.dtype, device=x.device)
    return torch.cat([means, torch.quantile(x.flatten(1), at, dim=1).T], dim=1)


@torch.inference_mode()
def embedded(embed: Embed, cubes: np.ndarray, device: torch.device) -> np.ndarray:
    """Return the features (P, F) float32 of cubes (P, X, Y, Z)."""
    parts = [
        embed(batch_of(cubes[start : start + BATCH]).to(device)).float().cpu()
        for start in range(0, len(cubes), BATCH)
    ]
    return torch.cat(parts).numpy()


def batch_of(cubes: np.ndarray) -> Tensor:
    """Return cubes (N, X, Y, Z) as a network reads them, (N, 1, X, Y, Z) float32."""
    return torch.from_numpy(cubes.astype(np.float32))[:, None]
