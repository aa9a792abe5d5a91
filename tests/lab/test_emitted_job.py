"""What `launch --for megatron` writes for Slurm and ssh, run on real hosts: the framework's entry
point is a stand-in that says where it runs; torchrun, Slurm, ssh and the scripts are the real ones.
"""

import json
import os
from pathlib import Path

import pytest

from tests.commands import command
from tests.lab import CONTROLLER, slurm, ssh
from tests.lab.box import SHARED
from tests.lab.lab import Lab
from tests.lab.launching import make_plan, unhurried

pytestmark = [
    pytest.mark.lab,
    pytest.mark.distributed,
    pytest.mark.usefixtures("can_slurm", "can_ssh"),
]

RANKS = (2, 3, 0, 1)
"""Of the coordinates (pp, dp): the first stage is on the second host."""
HOSTS = ("host2", "host0")
LAYOUT = (
    f"{{pp: 2, dp_replicate: 2, micro_batch: 1, ranks: {list(RANKS)}, interfaces: [eth0, eth1]}}"
)
ENTRY = """
import json, os, socket, sys
rank = int(os.environ["RANK"])
seen = {
    "host": socket.gethostname(), "nic": os.environ["GLOO_SOCKET_IFNAME"],
    "pp": int(sys.argv[sys.argv.index("--pipeline-model-parallel-size") + 1]),
    "world": int(os.environ["WORLD_SIZE"]),
}
with open(os.path.join(os.path.dirname(sys.argv[0]), f"rank-{rank}.json"), "w") as f:
    json.dump(seen, f)
"""


@pytest.fixture(scope="module")
def lab():
    """Four hosts with Slurm and sshd, a plan for two of them, and a stand-in of the framework."""
    with Lab(unhurried()) as lab:
        slurm.start(lab)
        ssh.start(lab)
        make_plan(lab, "emitted.json", LAYOUT)
        lab.shared("hosts").write_text("\n".join(HOSTS) + "\n")
        for name in ("by-slurm", "by-ssh"):
            lab.shared(name).mkdir()
            lab.shared(f"{name}/pretrain_gpt.py").write_text(ENTRY)
        yield lab


def emit(lab, scheduler, folder):
    """Write the plan for Megatron-LM, to be started by a scheduler."""
    where = ("--on", scheduler, "--hosts", SHARED / "hosts", "-o", SHARED / folder)
    written = command("launch", SHARED / "emitted.json", "--for", "megatron", *where)
    lab.run(CONTROLLER, written, check=True, timeout_s=60)


def check_ranks(folder):
    """Megatron numbers its ranks (pp, dp), as the plan its coordinates."""
    seen = [json.loads((folder / f"rank-{k}.json").read_text()) for k in range(4)]
    assert [each["host"] for each in seen] == [HOSTS[device // 2] for device in RANKS]
    assert {(each["pp"], each["world"]) for each in seen} == {(2, 4)}
    # Which the plan names in the order of its own ranks.
    assert {each["host"]: each["nic"] for each in seen} == {HOSTS[0]: "eth0", HOSTS[1]: "eth1"}


def test_ranks_sit_where_the_plan_has_them(lab):
    emit(lab, "slurm", "job")
    tools = f"{Path(command()[0]).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"MEGATRON": str(SHARED / "by-slurm"), "DATA_PATH": "mock", "PATH": tools}
    script = str(SHARED / "job" / "job.sh")
    submit = ["sbatch", "--wait", "--partition=all", "--time=3", script]
    lab.run(CONTROLLER, submit, check=True, timeout_s=170, env=env)
    check_ranks(lab.shared("by-slurm"))


def test_each_line_of_commands_starts_a_host(lab):
    """Which inherits nothing: the variables are in the settings beside the script."""
    emit(lab, "ssh", "lines")
    settings = f"MEGATRON={SHARED}/by-ssh\nDATA_PATH=mock\n"
    lab.shared("lines/settings.sh").write_text(settings)
    lines = lab.shared("lines/commands.txt").read_text().splitlines()
    started = [line.partition(": ") for line in lines]
    assert [host for host, _, _ in started] == [HOSTS[1], HOSTS[0]]
    clients = [lab.popen(CONTROLLER, ["ssh", host, words]) for host, _, words in started]
    assert [client.wait(timeout=120) for client in clients] == [0, 0]
    check_ranks(lab.shared("by-ssh"))
