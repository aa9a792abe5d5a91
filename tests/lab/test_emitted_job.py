"""What `launch --for megatron --on slurm` writes, run on real hosts: the framework's entry point is
a stand-in that says where it runs; torchrun, Slurm and the scripts are the real ones."""

import json
import os
from pathlib import Path

import pytest

from tests.commands import command
from tests.lab import CONTROLLER, slurm
from tests.lab.box import SHARED
from tests.lab.lab import Lab
from tests.lab.launching import make_plan, unhurried

pytestmark = [pytest.mark.lab, pytest.mark.distributed, pytest.mark.usefixtures("can_slurm")]

RANKS = (2, 3, 0, 1)
"""Of the coordinates (pp, dp): the first stage is on the second host."""
HOSTS = ("host2", "host0")
LAYOUT = (
    f"{{pp: 2, dp_replicate: 2, micro_batch: 1, ranks: {list(RANKS)}, interfaces: [eth0, eth0]}}"
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
    """Four hosts with Slurm."""
    with Lab(unhurried()) as lab:
        slurm.start(lab)
        yield lab


def test_ranks_sit_where_the_plan_has_them(lab):
    make_plan(lab, "emitted.json", LAYOUT)
    lab.shared("hosts").write_text("\n".join(HOSTS) + "\n")
    lab.shared("megatron").mkdir()
    lab.shared("megatron/pretrain_gpt.py").write_text(ENTRY)
    emit = ("launch", SHARED / "emitted.json", "--for", "megatron", "--on", "slurm", "--hosts",
            SHARED / "hosts", "-o",
            SHARED / "job")  # fmt: skip
    lab.run(CONTROLLER, command(*emit), check=True, timeout_s=60)
    tools = f"{Path(command()[0]).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"MEGATRON": str(SHARED / "megatron"), "DATA_PATH": "mock", "PATH": tools}
    script = str(SHARED / "job" / "job.sh")
    submit = ["sbatch", "--wait", "--partition=all", "--time=3", script]
    lab.run(CONTROLLER, submit, check=True, timeout_s=170, env=env)
    seen = [json.loads(lab.shared(f"megatron/rank-{k}.json").read_text()) for k in range(4)]
    # Megatron numbers its ranks (pp, dp), as the plan its coordinates.
    assert [each["host"] for each in seen] == [HOSTS[device // 2] for device in RANKS]
    assert {(each["nic"], each["pp"], each["world"]) for each in seen} == {("eth0", 2, 4)}
