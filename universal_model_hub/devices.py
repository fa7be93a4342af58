"""Where a network runs, and in which precision that is no loss."""

import torch

from universal_model_hub.errors import ConfigError


def torch_device(device: str | torch.device) -> torch.device:
    """Turn a caller's ``device`` into one that exists.

    Raises:
        ConfigError: If it is not a device's name, or torch cannot use it on this machine.
    """
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"Expected a device that torch can use here, got {device!r}: "
            f"{str(error).splitlines()[0]} Use 'cpu', or a torch build for that device."
        ) from error
    return chosen


def cpu_has_bfloat16() -> bool:
    """Whether torch computes convolutions in bfloat16 on this processor: with AVX-512 or newer."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def lacks_bfloat16(device: torch.device, precision: str) -> bool:
    """Whether ``precision`` is bfloat16 and ``device`` a processor that only emulates it."""
    return precision == "bfloat16" and device.type == "cpu" and not cpu_has_bfloat16()


def refuse_emulated_bfloat16(device: torch.device, precision: str) -> None:
    """Refuse bfloat16 on a processor that only emulates it: float32 is faster there, and exact.

    Args:
        device: Where it would run.
        precision: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ConfigError: If it is such a processor.
    """
    if lacks_bfloat16(device, precision):
        raise ConfigError(
            "Expected a processor on which torch has bfloat16 convolutions (AVX-512 or newer) for "
            "precision bfloat16; on this one they would take forty times as long as float32. "
            "Use float32, or a GPU."
        )
