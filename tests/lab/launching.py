"""Plans and command lines for tests that launch runs in a lab."""

import json
import os
import subprocess
from pathlib import Path

from profiler.codec import replace
from tests.commands import LLAMA, command
from tests.lab import CONTROLLER
from tests.lab.box import SHARED
from tests.lab.lab import Lab
from tests.lab.measure import wait_for
from tests.lab.topology import Topology, shipped

JOB = ("--global-batch", 8, "--seq-len", 64, "--precision", "fp32")
LAYOUT = "{pp: 2, dp_replicate: 2, micro_batch: 1}"
"""Of four ranks."""


def unhurried() -> Topology:
    """Four alike hosts whose ranks take what CPU there is: the imports of torch are not waited
    for."""
    return replace(shipped("uniform"), name="launching", cpu_share=None)


def make_plan(lab: Lab, name: str = "plan.json", layout: str = LAYOUT, nodes: int = 2) -> Path:
    """A plan for two ranks on each of `nodes` hosts, in the lab's folder; its path in the lab."""
    lab.shared("config.json").write_text(json.dumps(LLAMA))
    lab.shared("layout.yaml").write_text(layout)
    ask = (
        "plan", "-m", lab.shared("config.json"), "-c", f"cpu-{nodes}x2", "--layout",
        lab.shared("layout.yaml"), *JOB, "-o", lab.shared(name),
    )  # fmt: skip
    subprocess.run(command(*ask), check=True, capture_output=True)
    return SHARED / name


def launch(lab: Lab, *args: object, **options: object) -> "subprocess.Popen[str]":
    """Start `meshwright launch` on the controller."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return lab.popen(CONTROLLER, command("launch", *args), text=True, env=env, **(pipes | options))


def hosts_of(observed: dict[str, object]) -> list[str]:
    """Host of each rank, as `observed.json` has them."""
    ranks = observed["ranks"]
    assert isinstance(ranks, list)
    return [rank["host"] for rank in ranks]


def commands(lab: Lab, host: str) -> str:
    """Command lines of all processes on a host."""
    listed = lab.run(host, ["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"])
    return listed.stdout


def running(lab: Lab, runs: str) -> Path:
    """The folder, as the owner sees it, of the first run in a folder of the lab's that has begun to
    train."""
    found: list[Path] = []

    def begun() -> bool:
        found[:] = lab.shared(runs).glob("p-*/ranks/rank-00003.jsonl")
        return bool(found) and found[0].read_text().count("\n") > 3

    wait_for(begun, 90)
    return found[0].parents[1]


def follow(lab: Lab, *args: object) -> str:
    """What `launch --status` or `--stop` prints on the controller."""
    return lab.run(CONTROLLER, command("launch", *args), check=True, timeout_s=120).stdout
