"""Processes that end when the one that started them does, however it ended (Linux)."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_parent(number: signal.Signals) -> None:
    """Ask the kernel to send this process `number` when its parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
