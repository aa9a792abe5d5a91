"""Run a command until it ends or our standard input does: `python -m launch.scheduler.guard ARGV`.

For commands that were started over a connection. When the one at its other end goes, by SIGKILL
too, the input ends here, and the command is told to end (SIGTERM) and then made to, as
`launch.scheduler.local` does on one machine. The status is the command's, 128 + N after signal N.
"""

import contextlib
import os
import select
import subprocess
import sys

from launch.scheduler import local


def _until_it_ends(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the end of the process, or of the input; what comes by the input is thrown away."""
    ended = os.pidfd_open(process.pid)
    try:
        while True:
            ready, _, _ = select.select([ended, 0], [], [])
            if ended in ready or not os.read(0, 1 << 16):
                return
    finally:
        os.close(ended)


def main(argv: list[str]) -> int:
    """Exit status of the command; 127 where it cannot be started."""
    with contextlib.suppress(KeyboardInterrupt), local.signals_interrupt():
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=local.end_with_us,
            )
        except OSError as e:
            print(f"{argv[0]}: {(e.strerror or str(e)).lower()}", file=sys.stderr)
            return 127
        try:
            _until_it_ends(process)
        finally:
            local.stop(process)
        status = process.returncode
        return status if status >= 0 else 128 - status
    return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
