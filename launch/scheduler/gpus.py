"""GPUs of this machine, without torch."""

from pathlib import Path


def num_gpus() -> int:
    """As NVIDIA's driver lists them."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
