"""Commands of a scheduler, run without a terminal."""

import subprocess

from profiler.errors import UserError

_ASK_S = 60.0


def run_quietly(*argv: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, a minute at most; `UserError` where there is no such command."""
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_S,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 1, "", f"no answer within {_ASK_S:.0f} s")
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise UserError(f"cannot run `{argv[0]}`: {reason}", kind="failed") from None
