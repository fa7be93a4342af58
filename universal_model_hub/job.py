"""A scan, a network and limits, checked before the run; and the run in tiles that fit."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from universal_model_hub.devices import refuse_emulated_bfloat16, torch_device
from universal_model_hub.errors import ConfigError
from universal_model_hub.inference import (
    Precision,
    Runner,
    context_of,
    normalizes_by_window,
    prepare,
    run_exact,
    stride_of,
)
from universal_model_hub.memory import Budget, memory_budget
from universal_model_hub.preprocess import (
    Preprocessing,
    PreprocessRecord,
    model_shape,
    preprocess_channels,
)
from universal_model_hub.preprocess.steps import preprocessing_of
from universal_model_hub.tiles import (
    Context,
    Span,
    Tile,
    exact_tiles,
    smallest_tile_voxels,
    split_axis,
    tiles_of,
)
from universal_model_hub.volume import Volume, load_volume

CUBE = (64, 64, 32)  # voxels of a window. Source: Zhang et al., Sec. IV-B, the cubes of training
Scan = Volume | Path | str
# A voxel of a channel on the model grid is held as float32, and once more while it is scaled.
PREPROCESS_BYTES = 8


class PredictWarning(UserWarning):
    """A result is valid, but something about it should be known."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What runs on what, and within which limits; ``make_job`` checks it."""

    model: nn.Module  # the caller's own
    preprocessing: Preprocessing
    runner: Runner
    scans: tuple[Volume, ...]  # one a channel, on one grid
    modality: str | Sequence[str]
    memory_limit: int | None
    tile_batch: int
    progress: bool
    by_window: bool  # outputs depend on the statistics of the cube that runs

    @property
    def scan(self) -> Volume:
        """The scan on whose own grid the answer lies: the first channel."""
        return self.scans[0]

    @property
    def stride(self) -> int:
        """Voxels of the model grid that tiles are aligned to."""
        context = context_of(self.runner.network)
        return context.stride if context else 1

    def probe(self) -> tuple[Any, int, float]:
        """Run one small cube; return the output, the cube's side, and bytes per voxel."""
        return self.runner.probe(stride_of(self.runner.network), len(self.scans))

    def model_shape(self) -> tuple[int, int, int]:
        """Return the (X, Y, Z) that the network will see, before anything is resampled."""
        return model_shape(self.scan, self.preprocessing)

    def model_grid(self) -> tuple[Tensor, PreprocessRecord]:
        """Return the scans as the network reads them, (1, C, X, Y, Z), and the way back."""
        return preprocess_channels(self.scans, self.model, self.modality)

    def least_voxels(self, window: Sequence[int] | None = None) -> int:
        """Return how many voxels the network must see at once at the least."""
        if window is None:
            context = context_of(self.runner.network)
            window = (context.stride + 2 * context.halo if context else 0,) * 3
        return math.prod(min(sides) for sides in zip(self.model_shape(), window, strict=True))

    def budget(
        self, bytes_per_voxel: float, least_voxels: int, *, answer: int, beside: int = 0
    ) -> Budget:
        """Return the memory budget, before anything is resampled.

        Args:
            bytes_per_voxel: Of the network's activations.
            least_voxels: What the network must see at once.
            answer: Bytes of what the run gives, on the host.
            beside: Bytes held beside the activations, on the device.

        Raises:
            TooLargeError: If the limit is below the least that is needed.
        """
        on_host = answer + PREPROCESS_BYTES * len(self.scans) * math.prod(self.model_shape())
        budget = memory_budget(
            self.memory_limit, self.runner.device, on_host=on_host, on_device=beside
        )
        budget.require(least_voxels * bytes_per_voxel * self.tile_batch)
        return budget

    def run(self, grid: Tensor, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, Any]]:
        """Yield each tile with the network's answer, see ``run_exact``."""
        return run_exact(
            self.runner, grid, tiles, tile_batch=self.tile_batch, progress=self.progress
        )


@dataclass(frozen=True)
class Plan:
    """How a grid may be cut: tiles for a number of voxels at once, and the least number."""

    tiles: Callable[[int], list[Tile]]
    smallest: int  # voxels


def make_job(
    model: nn.Module,
    network: nn.Module,
    volume: Scan | Sequence[Scan],
    *,
    modality: str | Sequence[str],
    device: str | torch.device | None,
    precision: Precision,
    memory_limit: int | None,
    tile_batch: int,
    progress: bool,
) -> Job:
    """Check the options, prepare the network, load the scan.

    Args:
        model: Carries the preprocessing.
        network: The part of it that runs.
        volume: A scan or the path of one; of a model with several channels one for each.
        modality: See ``preprocess_channels``; "auto" takes what the model says of its channels.
        device: ``None`` for where the network is.
        precision: ``"float32"`` or ``"bfloat16"``.
        memory_limit: Bytes, or ``None`` for half of what is free.
        tile_batch: Tiles that run together.
        progress: Show a bar on stderr.

    Raises:
        ConfigError: If an option cannot be used, or the model has no preprocessing.
    """
    preprocessing = preprocessing_of(model)
    scans = [volume] if isinstance(volume, Volume | Path | str) else list(volume)
    _check_channels(model, len(scans))
    if isinstance(tile_batch, bool) or not isinstance(tile_batch, int) or tile_batch < 1:
        raise ConfigError(f"Expected tile_batch to be an integer from 1, got {tile_batch!r}.")
    check_choice("precision", precision, ("float32", "bfloat16"))
    where = _device_of(network) if device is None else torch_device(device)
    refuse_emulated_bfloat16(where, precision)
    by_window = normalizes_by_window(network)
    if by_window:
        warnings.warn(
            "This network normalizes by the statistics of the very cube that runs, so tiles are "
            "not equivalent to the whole scan: it runs on windows, one a batch.",
            PredictWarning,
            stacklevel=3,
        )
    return Job(
        model=model,
        preprocessing=preprocessing,
        runner=Runner(prepare(network, where), where, precision),
        scans=_loaded(scans),
        modality=_modality(model, modality),
        memory_limit=memory_limit,
        tile_batch=1 if by_window else tile_batch,
        progress=progress,
        by_window=by_window,
    )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse an option that is none of its choices.

    Raises:
        ConfigError: Naming them.
    """
    if value not in choices:
        raise ConfigError(f"Expected {name} to be one of {', '.join(choices)}, got {value!r}.")


def exact_plan(job: Job, positions: Sequence[np.ndarray]) -> Plan:
    """Return the plan of tiles with real context: equal to one pass.

    Raises:
        ConfigError: From ``Plan.tiles``, if the network does not say how much context it needs.
    """
    shape = job.model_shape()
    context = context_of(job.runner.network)
    if context:
        return Plan(
            lambda voxels: exact_tiles(shape, positions, context, voxels),
            smallest_tile_voxels(shape, positions, context),
        )

    def one_pass(voxels: int) -> list[Tile]:
        whole = tiles_of(
            [split_axis(n, n, Context(1, 0), p) for n, p in zip(shape, positions, strict=True)]
        )
        if math.prod(shape) <= voxels:
            return whole
        raise ConfigError(
            f"Expected {type(job.model).__name__} to say how many voxels of context it needs, for "
            "the scan does not fit in memory in one pass. Set model.halo and model.stride, or use "
            "tiling='gaussian'."
        )

    return Plan(one_pass, math.prod(shape))


def window_plan(job: Job, positions: Sequence[np.ndarray]) -> Plan:
    """Return the plan of neighboring windows without context, for statistics of the window."""
    sides = [math.ceil(side / job.stride) * job.stride for side in CUBE]
    context = Context(job.stride, 0)
    axes = [
        split_axis(n, side, context, p)
        for n, side, p in zip(job.model_shape(), sides, positions, strict=True)
    ]
    largest = math.prod(max(span.read_size for span in spans) for spans in axes)
    return Plan(lambda voxels: tiles_of(axes) if largest <= voxels else [], largest)


def one_window_plan(window: Sequence[int]) -> Plan:
    """Return the plan that offers one window: where its likes go is not a matter of memory."""
    x, y, z = (Span((0, side), (0, side), (0, 0)) for side in window)
    size = math.prod(window)
    return Plan(lambda voxels: [Tile((x, y, z))] if size <= voxels else [], size)


def in_tiles(
    job: Job,
    plan: Plan,
    budget: Budget,
    bytes_per_voxel: float,
    work: Callable[[Sequence[Tile]], None],
) -> None:
    """Do ``work`` with the largest tiles that fit, and again with smaller ones if they did not.

    Raises:
        TooLargeError: If even the smallest tiles do not fit.
    """
    per_voxel = bytes_per_voxel * job.tile_batch
    while True:
        tiles = plan.tiles(budget.voxels(per_voxel))
        if not tiles:
            raise budget.too_large(plan.smallest * per_voxel)
        try:
            return work(tiles)
        except torch.OutOfMemoryError:
            used = max(math.prod(tile.read_shape) for tile in tiles)
        # Past the handler: its traceback would keep the tensors of the failed run alive.
        _release(job.runner.device)
        warnings.warn(
            f"{job.runner.device} ran out of memory with tiles of {used:,} voxels; starting over "
            "with tiles of half that size.",
            PredictWarning,
            stacklevel=4,
        )
        limit = int(budget.fixed + used / 2 * per_voxel)
        budget = replace(budget, limit=limit, source=f"what {job.runner.device} had left")


def _loaded(scans: Sequence[Scan]) -> tuple[Volume, ...]:
    return tuple(s if isinstance(s, Volume) else load_volume(s) for s in scans)


def _check_channels(model: nn.Module, given: int) -> None:
    """Refuse another number of scans than the model has channels, where it says how many.

    Raises:
        ConfigError: Naming the channels.
    """
    wanted = getattr(getattr(model, "encoder", model), "in_channels", given)
    if wanted != given:
        named = getattr(getattr(model, "config", None), "channels", None) or ()
        names = f" ({', '.join(channel['name'] for channel in named)})" if named else ""
        raise ConfigError(
            f"Expected a scan for each of the model's {wanted} channels{names}, got {given}. Pass "
            "them in that order, or load the model with in_channels=1."
        )


def _modality(model: nn.Module, modality: str | Sequence[str]) -> str | Sequence[str]:
    named = getattr(getattr(model, "config", None), "channels", None)
    if modality == "auto" and named:
        return [channel["modality"] for channel in named]
    return modality


def _device_of(network: nn.Module) -> torch.device:
    for tensor in (*network.parameters(), *network.buffers()):
        return tensor.device
    return torch.device("cpu")


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
