"""What a run will need, told before it starts: bytes a voxel, free memory, and the budget.

The bytes that a network's activations take are counted on one small cube: every tensor that its
operations create is followed until it is freed, and the peak is divided by the cube's voxels.
Activations grow linearly with the voxels, so the figure holds for tiles of any size.
"""

import math
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from universal_model_hub.errors import ConfigError, TooLargeError

MIB = 2**20
FREE_SHARE = 0.5  # of the free memory a run takes unless told otherwise
# What kernels take beside the tensors. Measured for the U-Net and its encoder at widths 4 to 32:
# at most 1.05 on tiles of a million voxels and more.
MARGIN = 1.15
# Freed blocks that the allocator keeps, which weighs on small tiles; measured up to 135 MiB.
SLACK = 160 * MIB


@dataclass(frozen=True)
class Budget:
    """Bytes that a run may take, and where they were promised.

    Attributes:
        limit: Bytes, beyond what the process holds already.
        fixed: Bytes of the arrays held from start to end, and of ``SLACK``.
        source: How the limit came about, for messages.
    """

    limit: int
    fixed: int
    source: str

    def voxels(self, bytes_per_voxel: float) -> int:
        """Return how many voxels the network may see at once."""
        return int(max(0, self.limit - self.fixed) // bytes_per_voxel)

    def require(self, smallest: float) -> None:
        """Refuse a run whose fixed part and least tile, in bytes, do not fit.

        Raises:
            TooLargeError: If so.
        """
        if self.fixed + smallest > self.limit:
            raise self.too_large(smallest)

    def too_large(self, smallest: float) -> TooLargeError:
        """Return the error that names need and limit; ``smallest`` is the least tile's bytes."""
        return TooLargeError(
            f"Expected to stay within {in_mib(self.limit)} of memory ({self.source}), but this "
            f"scan needs at least {in_mib(self.fixed + smallest)}: {in_mib(self.fixed)} for the "
            f"scan and its answer, {in_mib(smallest)} for the smallest tile. Free memory, raise "
            "memory_limit, or crop the scan."
        )


def in_mib(size: float) -> str:
    """Return a number of bytes as text in MiB."""
    return f"{math.ceil(size / MIB):,} MiB"


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device; for the CPU what is available without swapping.

    Raises:
        ConfigError: If this system does not tell.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        if "MemAvailable" in fields:
            return min(int(fields["MemAvailable"].split()[0]) * 1024, _container_free())
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError) as error:
        raise ConfigError(
            "Expected to learn how much memory is free, but this system does not tell. "
            "Pass memory_limit= in bytes."
        ) from error


def memory_budget(
    memory_limit: int | None, device: torch.device, *, on_host: float, on_device: float
) -> Budget:
    """Return the budget of a run.

    Args:
        memory_limit: Bytes the run may take on its device; ``None`` for half of what is free.
        device: Where the network runs. The CPU holds both parts, another device its own only.
        on_host: Bytes of the scan's copies and the answer.
        on_device: Bytes held beside the activations where the network runs.

    Raises:
        ConfigError: If the limit is not a positive number.
        TooLargeError: If another device runs the network and the host's part does not fit.
    """
    if memory_limit is not None and (isinstance(memory_limit, bool) or not memory_limit > 0):
        raise ConfigError(f"Expected memory_limit in bytes, above 0, got {memory_limit!r}.")
    host = torch.device("cpu")
    if device.type != "cpu":
        memory_budget(None, host, on_host=on_host, on_device=0).require(0)
        on_host = 0
    fixed = int(on_host + on_device) + SLACK
    if memory_limit is None:
        limit = int(free_bytes(device) * FREE_SHARE)
        return Budget(limit, fixed, f"half of what is free on {device}")
    return Budget(int(memory_limit), fixed, "memory_limit")


def activation_bytes(run: Callable[[Tensor], Any], cube: Tensor) -> tuple[Any, float]:
    """Run a network on one cube and count the peak of its activations.

    Args:
        run: The network, in inference mode.
        cube: (N, C, X, Y, Z); small, its sides multiples of the stride.

    Returns:
        What the network returned, and bytes per voxel of (N, X, Y, Z), input included.
    """
    with torch.inference_mode(), _LiveBytes() as live:
        output = run(cube)
    voxels = cube.numel() // cube.shape[1]
    return output, MARGIN * (live.peak + cube.nbytes) / voxels


class _LiveBytes(TorchDispatchMode):
    """Follow the storages that operations create; ``peak`` is the most alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for value in tree_iter(output):
            if isinstance(value, Tensor):
                self._follow(value)
        self.peak = max(self.peak, self._now)
        return output

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def freed(_: Any) -> None:
            self._storages.pop(key, None)
            self._now -= size

        self._storages[key] = weakref.ref(storage, freed)
        self._now += size


def _container_free() -> int:
    """Return what a container's memory limit (cgroup v2) leaves; without one, a huge number."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return max(0, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return 2**62
