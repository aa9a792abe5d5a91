"""The store through which agents of link profiling find each other: `python -P -m
launch.runtime.link_store`.

A process of its own, for the coordinator imports no torch. It prints its port and ends when its
standard input does.
"""

import signal
import sys

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from launch.scheduler.orphans import end_with_parent


def main() -> None:
    """Serve until the input ends."""
    end_with_parent(signal.SIGKILL)
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    print(store.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
