"""What a result was made on, without naming the machine."""

import os
import platform
from pathlib import Path

import torch


def hardware(device: torch.device) -> dict[str, str | int]:
    """Describe the machine without naming it: processor, cores, GPU, versions."""
    facts: dict[str, str | int] = {
        "processor": processor_name(),
        "cores": os.cpu_count() or 1,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def processor_name() -> str:
    """Return the processor's model name as the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
