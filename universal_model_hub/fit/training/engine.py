"""What every training loop needs around its steps: processes, precision, averages, stops.

The loops themselves stay where they are read: ``training/pretrain.py`` and fine-tuning.
"""

import contextlib
import math
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
from torch import Tensor, nn
from torch import distributed as dist

from universal_model_hub.devices import lacks_bfloat16, torch_device
from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.rounding import rounded_autocast

SMALLEST_BFLOAT16 = 24  # voxels; three poolings make maps of 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WITHOUT_BFLOAT16 = (
    "this processor has no bfloat16 (no AVX-512): products are computed in float32 and rounded, "
    "which trains alike and is no faster than float32"
)
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
PATIENCE = timedelta(hours=24)  # while one process prepares or judges, and the others wait


@dataclass(frozen=True)
class Process:
    """This process among those that torchrun started; alone it is rank 0 of 1."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[Process]:
    """Join the processes that torchrun started (NCCL on GPUs, else gloo), and leave at the end.

    Args:
        device: ``auto`` takes the GPU of this process if there is one; else ``cpu`` or ``cuda``.

    Raises:
        ConfigError: If CUDA is asked for and not there.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size > 1:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    try:
        yield Process(rank, world_size, chosen)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def pick_device(device: str, local_rank: int = 0) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that exists.

    Raises:
        ConfigError: If the device is unknown or CUDA is not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = torch_device(device)
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", local_rank)
    return chosen


def make_deterministic(seed: int, *, strict: bool) -> None:
    """Seed torch; ``strict`` also refuses operations without a deterministic form.

    On CUDA, 3D max pooling has no deterministic backward, so ``strict`` is for CPU runs.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(strict)
    torch.backends.cudnn.benchmark = not strict


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context in which the forward pass runs at ``precision``.

    On a processor without bfloat16, its products are float32's of rounded numbers.

    Raises:
        ConfigError: If the precision is unknown, or float16 is asked for on a CPU.
    """
    if precision not in DTYPES:
        raise ConfigError(f"Expected precision {', '.join(DTYPES)}, got {precision!r}.")
    if precision == "float16" and device.type == "cpu":
        raise ConfigError("float16 training needs a GPU (loss scaling). Use bfloat16 on a CPU.")
    if lacks_bfloat16(device, precision):
        return rounded_autocast()
    return torch.autocast(
        device.type, dtype=DTYPES[precision], enabled=precision != "float32", cache_enabled=True
    )


class TrainingWarning(UserWarning):
    """A training runs, but not as one would expect."""


def check_bfloat16(device: torch.device, precision: str, cube: Sequence[int]) -> None:
    """Refuse bfloat16 on maps of 2 voxels a side, where a CPU computes it wrong.

    Where the CPU has none at all, a ``TrainingWarning`` says how ``autocast`` computes it.

    oneDNN's weight gradient of a 3 x 3 x 3 convolution reads memory there that nothing has
    written (seen with torch 2.13): now and then it is not finite, and never twice the same.

    Args:
        device: On which it trains.
        precision: Of the forward pass.
        cube: Size of a training cube in voxels.

    Raises:
        ConfigError: If the cubes are too small.
    """
    if device.type == "cpu" and precision == "bfloat16" and min(cube) < SMALLEST_BFLOAT16:
        raise ConfigError(
            f"Expected cubes of at least {SMALLEST_BFLOAT16} voxels a side for bfloat16 on a CPU, "
            f"got {list(cube)}: gradients would be wrong. Use float32."
        )
    if lacks_bfloat16(device, precision):
        warnings.warn(
            f"{WITHOUT_BFLOAT16[0].upper()}{WITHOUT_BFLOAT16[1:]}.", TrainingWarning, stacklevel=3
        )


class Ema:
    """Exponential moving average of a model's parameters and buffers.

    Integer buffers are copied. The decay warms up as (1 + t) / (10 + t), so that the average
    forgets the random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model's present values."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = [], []
        for name, value in model.state_dict().items():
            average = self.values[name]
            if average.is_floating_point():
                averages.append(average)
                values.append(value.to(average.dtype))
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)  # one call: a GPU waits for each

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint."""
        return {"updates": self.updates, "values": dict(self.values)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint's state, in place."""
        values = state["values"]
        if not isinstance(values, dict) or set(values) != set(self.values):
            raise CheckpointError("The checkpoint's moving average is of another network.")
        for name, value in values.items():
            self.values[name].copy_(value)
        self.updates = int(str(state["updates"]))


class StopRequest:
    """Remembers SIGTERM and SIGINT so that the loop can save and end between two steps."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.after: int | None = None  # a step after which to stop without a signal

    def wanted(self, step: int) -> bool:
        """Whether the loop should end after this step."""
        return self.signal is not None or (self.after is not None and step >= self.after)

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM; 0 without one."""
        return 0 if self.signal is None else 128 + self.signal

    def notice(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the second signal of a kind ends the process at once."""
        del frame
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT while the block runs, and put the old handlers back."""
    request = StopRequest()
    old = {n: signal.signal(n, request.notice) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def all_ranks_agree(flag: bool, process: Process) -> bool:
    """Whether any process says yes: every process gets the same answer."""
    if process.world_size == 1:
        return flag
    value = torch.tensor(float(flag), device=process.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def from_main(value: float, process: Process) -> float:
    """Return the first process's value in every process."""
    if process.world_size == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=process.device)
    dist.broadcast(shared, src=0)
    return float(shared)


def wait_for_all(process: Process) -> None:
    """Return when every process has come here, however long one of them takes."""
    if process.world_size > 1:
        dist.barrier(dist.new_group(backend="gloo", timeout=PATIENCE))


def mean_over_ranks(value: Tensor, process: Process) -> Tensor:
    """Average a tensor over the processes."""
    if process.world_size == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / process.world_size


def cosine_factor(step: int, steps: int, warmup_steps: int, min_factor: float) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to ``min_factor``."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * share))


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DDP and torch.compile wrappers."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
