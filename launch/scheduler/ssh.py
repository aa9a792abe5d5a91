"""Commands on other hosts by the user's own `ssh`, which end when it does.

ssh(1) reads ~/.ssh/config; options given here come before it. It never asks (BatchMode), gives up
on a host that does not answer, and notices one that went silent. There, `launch.scheduler.guard`
runs the command and ends it once its standard input is closed: that happens when the client ends,
however it ended. Who starts the client keeps its input open as long as the command is to run.
"""

import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONNECT_S = 10
ALIVE_S = 5
ALIVE_TIMES = 3
"""A host that answers none of so many questions, `ALIVE_S` apart, is given up."""
ASK_S = 60.0
"""Longest time for a question to a host."""
FAILED_STATUS = 255
"""ssh's own status where the connection failed; else it is the command's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssh:
    """How hosts are reached."""

    options: tuple[str, ...] = ()
    """`Key=value` of ssh_config(5), before ours and before the user's file."""
    port: int | None = None
    """None: as ssh's configuration says."""
    python: str = sys.executable
    """Interpreter on the hosts, with this package installed."""

    def client(self, host: str) -> tuple[str, ...]:
        """The start of a command line of ssh that runs a command on `host`."""
        ours = (
            "BatchMode=yes",
            f"ConnectTimeout={CONNECT_S}",
            f"ServerAliveInterval={ALIVE_S}",
            f"ServerAliveCountMax={ALIVE_TIMES}",
            # A shared connection would outlive its client, and hold our pipes open.
            "ControlPath=none",
        )
        port = () if self.port is None else ("-p", str(self.port))
        options = (word for option in (*self.options, *ours) for word in ("-o", option))
        return ("ssh", "-T", "-x", *port, *options, "--", host)

    def command(
        self, host: str, argv: Sequence[str], env: Mapping[str, str] | None = None
    ) -> tuple[str, ...]:
        """A command line that runs `argv` on `host` with `env` added to the environment there.

        The command ends when the client ends or its standard input is closed. The client's status
        is the command's, 128 + N where signal N ended it, and `FAILED_STATUS` where the connection
        failed.
        """
        added = [f"{key}={value}" for key, value in (env or {}).items()]
        guard = (self.python, "-P", "-m", "launch.scheduler.guard")
        words = ["exec", "env", *added, *guard, *argv]
        return (*self.client(host), shlex.join(words))

    def address(self, host: str) -> str:
        """The name or address by which ssh finds `host`, as its configuration says."""
        argv = (*self.client(host)[:-2], "-G", host)
        said = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        found = dict(line.split(" ", 1) for line in said.stdout.splitlines() if " " in line)
        return found.get("hostname", host.rpartition("@")[2])

    def ask(self, host: str, argv: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        """Run a short command on `host` to its end; `ASK_S` at most."""
        client = subprocess.Popen(
            self.command(host, argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        with client:
            assert client.stdin is not None
            deadline = threading.Timer(ASK_S, client.kill)
            deadline.start()
            try:
                assert client.stdout is not None
                assert client.stderr is not None
                # What is not `communicate`, which closes the input, and with it ends the command.
                out = client.stdout.read()
                err = client.stderr.read()
                return subprocess.CompletedProcess(client.args, client.wait(), out, err)
            finally:
                deadline.cancel()
                client.kill()
