"""`python -m tests.frameworks.titan_on_cpu ARGUMENTS`: torchtitan's trainer on this machine.

torchtitan takes the machine for a CUDA one where torch has no accelerator, imports triton for
kernels of experts and TensorBoard for pictures, and asks for a reduction that gloo lacks. This says
"cpu" where it asks torch for the device, answers what it asks of one, and leaves its training as it
is.
"""

import runpy
import sys
import types
from unittest.mock import MagicMock

import torch
import torch._utils
from torch.distributed.fsdp import FSDPModule

from tests.frameworks.empty_modules import EmptyModules


class _Device:
    name = "cpu"
    total_memory = 2**33


def on_cpu():
    """Make torch answer as torchtitan's device."""
    sys.meta_path.insert(0, EmptyModules("torchtitan", ("triton",)))
    sys.modules["torch.utils.tensorboard"] = board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = MagicMock()
    torch._utils._get_available_device_type = lambda: "cpu"
    torch.cpu.current_device = lambda: 0
    torch.cpu.get_device_properties = lambda device=None: _Device
    torch.cpu.get_device_name = lambda device=None: "cpu"
    torch.cpu.memory_stats = lambda device=None: {}
    for name in ("reset_peak_memory_stats", "empty_cache", "manual_seed_all"):
        setattr(torch.cpu, name, lambda *args, **kwargs: None)
    divide = FSDPModule.set_gradient_divide_factor

    def plain_sum(self, factor):
        self.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM
        divide(self, factor)

    FSDPModule.set_gradient_divide_factor = plain_sum
    barrier = torch.distributed.barrier
    torch.distributed.barrier = lambda *args, **kwargs: barrier()


if __name__ == "__main__":
    on_cpu()
    runpy.run_module("torchtitan.train", run_name="__main__", alter_sys=True)
