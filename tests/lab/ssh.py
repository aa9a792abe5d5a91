"""sshd on each host, with keys of its own: `ssh host1 hostname` works on all machines of a lab.

Nothing of the machine's own is read or trusted: host key, user key and both configurations are the
lab's, in the box's memory.
"""

import subprocess
import time

from tests.lab import CONTROLLER
from tests.lab.box import SHARED
from tests.lab.lab import Lab, LabError

PORT = 2222
PROGRAM = "/usr/sbin/sshd"
_KEYS = SHARED / "ssh"
_SERVER = f"""\
Port {PORT}
HostKey {_KEYS}/host
AuthorizedKeysFile {_KEYS}/user.pub
PidFile none
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
AcceptEnv *
"""
_CLIENT = f"""\
Host *
  Port {PORT}
  IdentityFile {_KEYS}/user
  IdentitiesOnly yes
  GlobalKnownHostsFile {_KEYS}/known_hosts
  UserKnownHostsFile none
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 5
"""
_START_S = 10.0


def start(lab: Lab) -> None:
    """Start sshd on each host; returns when all take connections."""
    folder = lab.shared("ssh")
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", f"{_KEYS}/{name}"]
        lab.run(CONTROLLER, key, check=True)
    public = " ".join((folder / "host.pub").read_text().split()[:2])
    hosts = lab.topology.hosts
    known = (f"[{n}]:{PORT} {public}\n" for h in hosts for n in _names(lab, h.name))
    (folder / "known_hosts").write_text("".join(known))
    (folder / "sshd_config").write_text(_SERVER)
    lab.shared("etc/ssh/ssh_config").write_text(_CLIENT)
    sshd = [PROGRAM, "-D", "-e", "-f", str(_KEYS / "sshd_config")]
    servers = {h.name: lab.serve(h.name, sshd, f"sshd.{h.name}") for h in hosts}
    deadline = time.monotonic() + _START_S
    for name, server in servers.items():
        _wait(lab, name, server, deadline)


def _names(lab: Lab, host: str) -> list[str]:
    nics = lab.topology.host(host).nics
    addresses = [lab.topology.address(host, nic.name) for nic in nics]
    return [host, *(f"{host}-{nic.name}" for nic in nics), *addresses]


def _wait(lab: Lab, host: str, server: "subprocess.Popen[str]", deadline: float) -> None:
    """Until the host's sshd listens."""
    listening = f"{PORT:04X} 00000000:0000 0A "  # a row of /proc/net/tcp in state LISTEN
    while listening not in lab.run(host, ["cat", "/proc/net/tcp"]).stdout:
        if server.poll() is not None or time.monotonic() > deadline:
            log = lab.shared(f"log/sshd.{host}").read_text()
            raise LabError(f"sshd on {host} did not come up: {log.strip()}")
        time.sleep(0.05)
