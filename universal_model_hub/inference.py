"""Run a network over a whole model grid, tile by tile."""

import contextlib
import copy
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from universal_model_hub.canvas import Canvas, block_of
from universal_model_hub.errors import ConfigError, WeightsError
from universal_model_hub.memory import activation_bytes
from universal_model_hub.tiles import Context, Tile

Precision = Literal["float32", "bfloat16"]
MIN_PROBE_SIDE = 16  # voxels of the cube on which memory and output are learned


@dataclass(frozen=True)
class Runner:
    """A prepared network and where and how it runs; the one place that calls it."""

    network: nn.Module
    device: torch.device
    precision: Precision

    def __call__(self, cubes: Tensor) -> Any:
        """Run (N, C, X, Y, Z) cubes and return what the network returns, on its device."""
        with torch.inference_mode(), self._arithmetic():
            return self.network(cubes.to(self.device))

    def probe(self, stride: int, channels: int = 1) -> tuple[Any, int, float]:
        """Run one small cube of zeros with so many channels.

        Returns:
            The output, the cube's side, and activation bytes per voxel.

        Raises:
            ConfigError: If the network cannot take a batch of such cubes.
        """
        side = max(2 * stride, math.ceil(MIN_PROBE_SIDE / stride) * stride)
        cube = torch.zeros(1, channels, side, side, side, device=self.device)
        try:
            output, bytes_per_voxel = activation_bytes(self, cube)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"Expected a network that takes cubes of shape {tuple(cube.shape)} (N, C, X, Y, "
                f"Z), but it failed: {reason}. Pass a scan for each of its channels, or load it "
                f"with in_channels={channels}."
            ) from error
        return output, side, bytes_per_voxel

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        half = self.precision == "bfloat16"
        with contextlib.ExitStack() as stack:
            # Whatever the caller's autocast says: float32 means float32.
            stack.enter_context(
                torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half)
            )
            if self.device.type == "cuda" and not half:
                # TensorFloat-32 keeps 10 bits of a float32's 23.
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            yield


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a private copy of ``model`` for inference; the caller's own is left alone.

    The copy is in eval mode, on ``device``, with its weights in the memory format that
    convolutions run fastest in. Rewritings of the network that keep its function belong here.
    """
    private = copy.deepcopy(model).train(False).requires_grad_(False)
    private.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stub
    return private.to(device)


def run_exact(
    runner: Runner,
    grid: Tensor,
    tiles: Sequence[Tile],
    *,
    tile_batch: int,
    progress: bool,
) -> Iterator[tuple[Tile, Any]]:
    """Yield each tile with what the network returned for it, batch axis dropped.

    Args:
        runner: The network.
        grid: (1, C, X, Y, Z), the whole model grid, on the CPU.
        tiles: What to read.
        tile_batch: Tiles of one shape that run together.
        progress: Show a bar on stderr.
    """
    with progress_bar(len(tiles), "tile", progress) as bar:
        for batch in _batches(tiles, tile_batch):
            output = runner(torch.cat([block_of(grid, tile.read) for tile in batch]))
            for index, tile in enumerate(batch):
                yield tile, _item(output, index)
            bar.update(len(batch))


def fill_exact(canvas: Canvas, runs: Iterable[tuple[Tile, Tensor]]) -> None:
    """Fill the canvas from the logits of exact tiles, as ``run_exact`` yields them."""
    for tile, logits in runs:
        kept = block_of(logits, tile.kept).float()
        require_finite(kept, tile.read)
        canvas.fill(kept, tile.origin, tile.own)


def require_finite(values: Tensor, where: Sequence[slice]) -> None:
    """Refuse NaN and infinity in what the network returned.

    Raises:
        WeightsError: Naming the tile.
    """
    low, high = torch.aminmax(values)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        ranges = ", ".join(f"{s.start}:{s.stop}" for s in where)
        raise WeightsError(
            f"Expected finite values from the network, got NaN or infinity in the tile [{ranges}] "
            "of the model grid. Nothing was written. Check the weights (umh verify); with "
            "bfloat16, try float32."
        )


def cells(tile: Tile, strides: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where a tile's kept voxels lie in feature maps of a stride along X, Y and Z.

    Returns:
        Slices of the tile's own map, and slices of the map of the whole volume.
    """
    inner, outer = [], []
    for span, stride in zip(tile.spans, strides, strict=True):
        first, last = span.keep[0] // stride, math.ceil(span.keep[1] / stride)
        outer.append(slice(first, last))
        inner.append(slice(first - span.read[0] // stride, last - span.read[0] // stride))
    return tuple(inner), tuple(outer)


def strides_of(feature: Tensor, side: int) -> tuple[int, ...]:
    """Return the input voxels along X, Y, Z per voxel of a map (N, C, ...) of a cube of a side."""
    return tuple(side // int(n) for n in feature.shape[2:])


def context_of(model: nn.Module) -> Context | None:
    """Return the stride and halo of a network; ``None`` if it does not say and needs context."""
    stride, halo = stride_of(model), getattr(model, "halo", None)
    if isinstance(halo, int):
        return Context(stride, halo)
    kernels = any(p.ndim == 5 and max(p.shape[2:]) > 1 for p in model.parameters())
    pools = any(_widest(module) > 1 for module in model.modules())
    return None if kernels or pools else Context(stride, 0)


def stride_of(model: nn.Module) -> int:
    """Return the stride that a network says it has, else 1."""
    stride = getattr(model, "stride", 1)
    return stride if isinstance(stride, int) else 1  # a bare convolution has a tuple


def normalizes_by_window(model: nn.Module) -> bool:
    """Tell whether outputs depend on the statistics of the very cube that runs."""
    for module in model.modules():
        if getattr(module, "normalization", None) == "batch":
            return True
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is None:
            return True
        if isinstance(module, nn.GroupNorm):
            return True
    return False


def _widest(module: nn.Module) -> int:
    """Return the largest kernel side of a convolution or pooling; 1 for all else."""
    kernel = getattr(module, "kernel_size", 1)
    sides = kernel if isinstance(kernel, tuple) else (kernel,)
    return max((side for side in sides if isinstance(side, int)), default=1)


def _batches(tiles: Sequence[Tile], size: int) -> Iterator[list[Tile]]:
    """Group neighbors of one shape, at most ``size`` together."""
    batch: list[Tile] = []
    for tile in tiles:
        if batch and (len(batch) == size or batch[0].read_shape != tile.read_shape):
            yield batch
            batch = []
        batch.append(tile)
    if batch:
        yield batch


def _item(output: Any, index: int) -> Any:
    """Take one cube out of a batch, from a tensor or a list of tensors."""
    if isinstance(output, Tensor):
        return output[index]
    return [value[index] for value in output]


def progress_bar(total: int, unit: str, progress: bool) -> tqdm:
    """Return a bar on stderr that shows nothing unless ``progress``."""
    return tqdm(total=total, unit=unit, disable=not progress, file=sys.stderr)
