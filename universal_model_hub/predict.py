"""Whole scans of any size: labels or probabilities, embeddings, and feature maps.

A scan is preprocessed as the weights ask for, cut into tiles that fit in memory, and the answer is
led back to the scan's own voxels. Memory is estimated before the run.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from universal_model_hub.canvas import CHUNK_BYTES, Canvas, label_dtype
from universal_model_hub.errors import ConfigError, WeightsError
from universal_model_hub.features import FeatureMap, embed, features
from universal_model_hub.inference import Precision, fill_exact
from universal_model_hub.job import (
    CUBE,
    Job,
    PredictWarning,
    Scan,
    check_choice,
    exact_plan,
    in_tiles,
    make_job,
    one_window_plan,
)
from universal_model_hub.preprocess import PreprocessRecord
from universal_model_hub.tiles import Tile, own_positions
from universal_model_hub.volume import Volume
from universal_model_hub.windows import fill_gaussian, fitted, slab_bytes

__all__ = ["FeatureMap", "PredictWarning", "embed", "features", "predict"]

OVERLAP = 0.5  # of neighboring Gaussian windows
CHUNKS_HELD = 5  # interpolated along X, Y, Z, one tap on the way, and decided


@overload
def predict(
    model: nn.Module,
    volume: Scan | Sequence[Scan],
    *,
    output: Literal["labels"] = ...,
    modality: str | Sequence[str] = ...,
    tiling: Literal["exact", "gaussian"] = ...,
    window: Sequence[int] = ...,
    overlap: float = ...,
    memory_limit: int | None = ...,
    device: str | torch.device | None = ...,
    precision: Precision = ...,
    tile_batch: int = ...,
    progress: bool = ...,
) -> Volume: ...


@overload
def predict(
    model: nn.Module,
    volume: Scan | Sequence[Scan],
    *,
    output: Literal["probabilities"],
    modality: str | Sequence[str] = ...,
    tiling: Literal["exact", "gaussian"] = ...,
    window: Sequence[int] = ...,
    overlap: float = ...,
    memory_limit: int | None = ...,
    device: str | torch.device | None = ...,
    precision: Precision = ...,
    tile_batch: int = ...,
    progress: bool = ...,
) -> dict[int, Volume]: ...


def predict(
    model: nn.Module,
    volume: Scan | Sequence[Scan],
    *,
    output: Literal["labels", "probabilities"] = "labels",
    modality: str | Sequence[str] = "auto",
    tiling: Literal["exact", "gaussian"] = "exact",
    window: Sequence[int] = CUBE,
    overlap: float = OVERLAP,
    memory_limit: int | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    tile_batch: int = 1,
    progress: bool = False,
) -> Volume | dict[int, Volume]:
    """Segment a whole scan of any size, on the scan's own grid.

    The model is any module that maps (N, C, X, Y, Z) to logits (N, K, X, Y, Z) and has a
    ``preprocessing``. Its ``stride`` (else 1) and ``halo``, the voxels of context that exact tiles
    need, are used if it has them. It is left as it is: a copy in eval mode runs.

    Args:
        model: With K logits, class k is label k; with one logit, label 1 where it is above 0.
        volume: A scan or the path of one; for a model with several channels a sequence of them, in
            the model's order and on one grid.
        output: ``"labels"``, or ``"probabilities"`` for softmax (one logit: sigmoid) maps.
        modality: ``"CT"``, ``"MR"`` or ``"auto"``, see ``preprocess``; or one a channel.
        tiling: ``"exact"`` gives what one pass over the whole scan would give, within rounding.
            ``"gaussian"`` averages windows that overlap; each sees zeros beyond its faces, as the
            cubes of a training do.
        window: (x, y, z) of a Gaussian window, in voxels of the model grid.
        overlap: Share of a Gaussian window that its neighbor along an axis has too, 0 to below 1;
            half is that of nnU-Net (Isensee et al. 2021).
        memory_limit: Bytes the run may take on its device; ``None`` for half of what is free.
        device: Where to run; ``None`` for where the model is.
        precision: ``"bfloat16"`` runs convolutions in 8 bits of mantissa: faster where the
            hardware has it, and not the same result.
        tile_batch: Tiles that run together.
        progress: Show a bar on stderr.

    Returns:
        Labels as uint8 or uint16 with the scan's affine; or one float32 volume a class, by class
        index (by 1 for one logit).

    Raises:
        WeightsError: If the head is untrained, the model is no segmenter, or its output is not
            finite.
        TooLargeError: If the run does not fit in the limit; names both.
        ConfigError: If an option cannot be used.
    """
    check_choice("output", output, ("labels", "probabilities"))
    check_choice("tiling", tiling, ("exact", "gaussian"))
    _check_window(window)
    _check_overlap(overlap)
    _check_segmenter(model)
    job = make_job(
        model,
        model,
        volume,
        modality=modality,
        device=device,
        precision=precision,
        memory_limit=memory_limit,
        tile_batch=tile_batch,
        progress=progress,
    )
    gaussian = tiling == "gaussian" or job.by_window
    canvas, record = _filled(job, output == "probabilities", window if gaussian else None, overlap)
    affine = job.scan.affine
    if output == "labels":
        labels = np.ascontiguousarray(record.unorient(canvas.array))
        _note_if_empty(job, record, labels)
        return Volume(labels, affine)
    first = 1 if canvas.num_channels == 1 else 0
    return {
        index: Volume(np.ascontiguousarray(record.unorient(values)), affine)
        for index, values in enumerate(canvas.array, start=first)
    }


def _filled(
    job: Job, probabilities: bool, window: Sequence[int] | None, overlap: float
) -> tuple[Canvas, PreprocessRecord]:
    """Preprocess, run, and return the answered canvas and the way back from it."""
    logits, side, bytes_per_voxel = job.probe()
    num_channels = _num_channels(logits, side)
    # The answer of the previous batch is still held while the next one runs.
    bytes_per_voxel += 4 * num_channels
    per_own_voxel = 4 * num_channels if probabilities else label_dtype(num_channels).itemsize
    beside = CHUNKS_HELD * min(CHUNK_BYTES, 4 * num_channels * job.scan.array.size)
    if window is not None:
        beside += slab_bytes(num_channels, window, job.model_shape())
    # The answer is held twice while it is put into the scan's own voxel order.
    answer = 2 * per_own_voxel * job.scan.array.size
    budget = job.budget(bytes_per_voxel, job.least_voxels(window), answer=answer, beside=beside)
    grid, record = job.model_grid()
    positions = [
        own_positions(*axis)
        for axis in zip(
            grid.shape[2:],
            record.oriented_shape,
            record.back_scale,
            record.back_offset,
            strict=True,
        )
    ]
    canvas = Canvas(positions, num_channels, probabilities=probabilities)

    def exact(tiles: Sequence[Tile]) -> None:
        fill_exact(canvas, job.run(grid, tiles))

    def gaussian(windows: Sequence[Tile]) -> None:
        fill_gaussian(
            canvas,
            job.runner,
            grid,
            windows[0].read_shape,
            overlap=overlap,
            tile_batch=job.tile_batch,
            progress=job.progress,
        )

    if window is None:
        in_tiles(job, exact_plan(job, positions), budget, bytes_per_voxel, exact)
    else:
        plan = one_window_plan(fitted(window, grid.shape[2:]))
        in_tiles(job, plan, budget, bytes_per_voxel, gaussian)
    return canvas, record


def _num_channels(logits: Any, side: int) -> int:
    """Return K of a segmenter's output for a cube of ``side``.

    Raises:
        WeightsError: If the output is not a map of logits on the input grid.
    """
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if len(shape) != 5 or shape[0] != 1 or shape[1] == 0 or shape[2:] != (side,) * 3:
        raise WeightsError(
            f"Expected a segmenter that maps (1, 1, {side}, {side}, {side}) to logits (1, K, "
            f"{side}, {side}, {side}), got {shape}. Load one with load_segmenter(); for features "
            "of a scan call embed()."
        )
    return int(shape[1])


def _check_segmenter(model: nn.Module) -> None:
    """Refuse a model whose labels would mean nothing.

    Raises:
        WeightsError: If its head is untrained, or restores cubes instead of segmenting them.
    """
    if getattr(model, "activation", None) == "sigmoid":
        raise WeightsError(
            "Expected a segmenter with logits, got the restoration network with its sigmoid head. "
            "Fine-tune it: load_segmenter(name, num_classes=...) or load_unet(out_channels=...)."
        )
    if getattr(model, "head_trained", True) is False:
        raise WeightsError(
            "Expected a model with a trained head; the head of this one is new, its labels would "
            "be noise. Train it, or load a segmenter that was saved with its "
            "head. If you trained it yourself, set model.head_trained = True."
        )


def _check_window(window: Sequence[int]) -> None:
    """Refuse what is not three sides of a window.

    Raises:
        ConfigError: If so.
    """
    sides = tuple(window) if isinstance(window, Sequence) else (window,)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != 3 or not whole or min(sides) < 1:
        raise ConfigError(f"Expected a window of three sides from 1 voxel, got {window!r}.")


def _check_overlap(overlap: float) -> None:
    """Refuse what is no share of a window that leaves a step to the next.

    Raises:
        ConfigError: If so.
    """
    number = isinstance(overlap, int | float) and not isinstance(overlap, bool)
    if not number or not 0 <= overlap < 1:
        raise ConfigError(f"Expected an overlap from 0 to below 1, got {overlap!r}.")


def _note_if_empty(job: Job, record: PreprocessRecord, labels: np.ndarray) -> None:
    """Warn if no voxel got a label: valid, but often the sign of a wrong unit or modality."""
    if labels.any():
        return
    array = job.scan.array
    warnings.warn(
        f"No voxel got a label other than 0. The scan, taken as {record.modality}, has intensities "
        f"from {array.min():g} to {array.max():g}: check their unit and the modality.",
        PredictWarning,
        stacklevel=3,
    )
