"""The worker under a real torchrun, its records, and what the recorder sees."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fork import run_ranks
from torch import nn
from torch.profiler import profile

from launch.recipe import FILE_NAME, Recipe
from launch.runtime.memory import measure_step
from launch.runtime.mesh import build_mesh
from launch.runtime.record import Recorder
from launch.runtime.trainer import Trainer
from planner.config import ParallelConfig, Placement
from planner.plan import (
    Candidate,
    Estimate,
    Plan,
    SearchCounts,
    SearchOptions,
    plan_id,
)
from profiler.cluster import ClusterSpec, DeviceSpec, LinkSpec, NodeGroup
from profiler.codec import canonical, encode, to_plain
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Environment, Profile

pytestmark = [pytest.mark.distributed, pytest.mark.started]

MODEL = ModelSpec(
    name="tiny", family="llama", vocab_size=256, hidden_size=32, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, ffn_hidden_size=64,
)  # fmt: skip
JOB = JobSpec(global_batch=8, seq_len=32, precision="fp32")
NUM_STEPS, NUM_WARMUP = 12, 3


def _plan(config: ParallelConfig, placement: Placement) -> Plan:
    device = DeviceSpec(
        name="core", memory_bytes=10**9, flops_per_s={"fp32": 1e10}, memory_bytes_per_s=1e10,
        gemm_efficiency=0.5, memory_efficiency=0.5, launch_s=1e-6, is_host=True,
    )  # fmt: skip
    link = LinkSpec(name="loopback", bytes_per_s=1e9, latency_s=1e-5)
    nodes = NodeGroup(
        device=device, num_nodes=1, devices_per_node=config.num_devices, intra=link, nic=link,
        nics_per_node=1,
    )  # fmt: skip
    cluster = ClusterSpec(name="here", groups=(nodes,))
    profile_ = Profile(
        source="analytic", model=MODEL, seq_len=JOB.seq_len, precision="fp32", cluster=cluster,
        environment=Environment(), blocks=(), transfers=(),
    )  # fmt: skip
    estimate = Estimate(
        step_s=1.0, compute_s=1.0, p2p_s=0.0, collective_s=0.0, idle_s=0.0, bound_s=1.0,
        peak_bytes=0, tokens_per_s=1.0, mfu=0.1, measured_share=0.0, stages=(),
    )  # fmt: skip
    plan = Plan(
        id="", model=MODEL, job=JOB, cluster=cluster, profile=profile_,
        options=SearchOptions(pin={}, forbid={}),
        chosen=Candidate(config=config, placement=placement, estimate=estimate),
        alternatives=(),
        counts=SearchCounts(enumerated=1, rejected={}, pruned=0, simulated=1),
    )  # fmt: skip
    return Plan(**{f: getattr(plan, f) for f in Plan.__dataclass_fields__} | {"id": plan_id(plan)})


CONFIG = ParallelConfig(
    pp=2, dp_replicate=1, tp=2, micro_batch=2, recompute="none", schedule="1f1b"
)
PLACEMENT = Placement(stages=((0, 2), (2, 4)))


def _torchrun(plan: Path, run: Path, text: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-P", "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(CONFIG.num_devices), "-m", "launch.runtime.train",
        "--plan", str(plan), "--run-dir", str(run),
    ]  # fmt: skip
    recipe = Recipe(data=str(text), steps=NUM_STEPS, warmup=NUM_WARMUP, learning_rate=0.01)
    (run / FILE_NAME).write_text(encode(recipe))
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=env)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[list[dict[str, Any]]]]:
    """Standard output and the lines of every rank of one run."""
    folder = tmp_path_factory.mktemp("run")
    text, plan = folder / "text.txt", folder / "plan.json"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 50)
    plan.write_text(encode(_plan(CONFIG, PLACEMENT)))
    done = _torchrun(plan, folder, text)
    assert done.returncode == 0, done.stderr
    files = sorted((folder / "ranks").iterdir())
    assert [f.name for f in files] == [f"rank-{r:05d}.jsonl" for r in range(4)]
    return done.stdout, [[json.loads(x) for x in f.read_text().splitlines()] for f in files]


def test_loss_goes_down_on_a_text_with_structure(finished: Any) -> None:
    stdout, ranks = finished
    spoken = [line for line in stdout.splitlines() if line.startswith("step ")]
    assert len(spoken) == NUM_STEPS + NUM_WARMUP
    losses = [row["loss"] for row in ranks[2][1:]]
    assert losses == [row["loss"] for row in ranks[3][1:]]
    assert losses[0] == pytest.approx(5.545, abs=0.1)  # ln 256: nothing is known at the start
    assert losses[-1] < losses[0] - 1.0
    for line, loss in zip(spoken, losses, strict=True):
        assert f"loss {loss:.3f} " in line


def test_headers_say_where_a_rank_sits_and_what_memory_it_took(finished: Any) -> None:
    for rank, lines in enumerate(finished[1]):
        header = lines[0]
        assert header["rank"] == rank
        alone = {"dp_replicate": 0, "dp_shard": 0, "cp": 0}
        assert header["coordinate"] == {"pp": rank // 2, "tp": rank % 2} | alone
        memory = header["memory"]
        # Per stage one layer (halved matrices, whole norms) and half of one 256 x 32 matrix.
        layer = (MODEL.attention_params + MODEL.expert_params) // 2 + 2 * 32
        weights = 4 * (layer + 256 * 32 // 2 + (32 if rank >= 2 else 0))
        assert memory["weight_bytes"] == memory["grad_bytes"] == weights
        assert 2 * weights <= memory["optimizer_bytes"] <= 2 * weights + 4 * 16
        activation = 4 * 2 * 16 * 32
        assert memory["buffer_bytes"] == 4 * activation  # one per micro-batch, F or B of each stage
        assert memory["activation_and_workspace_bytes"] > activation
        parts = ("weight", "grad", "optimizer", "buffer", "activation_and_workspace")
        assert memory["peak_bytes"] == sum(memory[f"{p}_bytes"] for p in parts)


def test_every_step_records_its_actions_and_collectives_in_order(finished: Any) -> None:
    for rank, lines in enumerate(finished[1]):
        assert [row["step"] for row in lines[1:]] == list(range(NUM_STEPS + NUM_WARMUP))
        for row in lines[1:]:
            stage = rank // 2
            assert row["warmup"] == (row["step"] < NUM_WARMUP)
            assert (row["loss"] is None) == (stage == 0)
            names = [f"{a[1]}{a[0]}{a[2]}" for a in row["actions"]]
            order = {0: "F0 F1 B0 F2 B1 F3 B2 B3", 1: "F0 B0 F1 B1 F2 B2 F3 B3"}[stage]
            assert names == [f"{stage}{x}" for x in order.split()]
            moments = [row["start"], *(t for a in row["actions"] for t in a[3:])]
            moments += [*row["sync"], *row["optimizer"], row["end"]]
            assert moments == sorted(moments)
            assert row["collectives"]
            for axis in {c[0] for c in row["collectives"]}:
                ks = [c[1] for c in row["collectives"] if c[0] == axis]
                assert ks == list(range(len(ks)))
            for _, _, issued, wait_start, wait_end in row["collectives"]:
                assert row["start"] <= issued <= wait_start <= wait_end <= row["end"]


def test_a_collective_of_two_ranks_ends_after_both_entered(finished: Any) -> None:
    for first, second in ((0, 1), (2, 3)):
        for a, b in zip(finished[1][first][1:], finished[1][second][1:], strict=True):
            assert [c[:2] for c in a["collectives"]] == [c[:2] for c in b["collectives"]]
            for x, y in zip(a["collectives"], b["collectives"], strict=True):
                assert min(x[4], y[4]) > max(x[2], y[2])


def test_a_plan_changed_by_hand_is_refused(tmp_path: Path) -> None:
    plain = to_plain(_plan(CONFIG, PLACEMENT))
    plain["job"]["global_batch"] = 16
    (tmp_path / "plan.json").write_text(canonical(plain))
    argv = ["--plan", "plan.json", "--run-dir", "."]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "launch.runtime.train", *argv],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: plan.json: ")
    assert "Traceback" not in done.stderr


def _waits_seen() -> tuple[int, int, float, float]:
    """Collectives recorded and issued, seconds of waiting recorded and profiled."""
    config = ParallelConfig(
        pp=1, dp_replicate=1, tp=2, micro_batch=4, recompute="full", schedule="1f1b"
    )
    mesh = build_mesh(config, Placement(stages=((0, 4),)), "cpu")
    recorder = Recorder(mesh.axis_of_group())
    trainer = Trainer(
        MODEL, JOB, config, Placement(stages=((0, 4),)), mesh=mesh, recorder=recorder,
        make_optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1), device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    tokens = torch.zeros(8, 32, dtype=torch.long)
    trainer.step(tokens, tokens)
    with recorder.active(), profile(acc_events=True) as prof:
        times = trainer.step(tokens, tokens).times
    events = {e.key: e for e in prof.key_averages()}
    names = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor")
    num_issued = sum(events[f"_c10d_functional::{name}"].count for name in names)
    profiled = events["_c10d_functional::wait_tensor"]
    # The sum of the norms' gradients, in the sync, is ours and no functional collective.
    rows = [c for c in recorder.drain()["collectives"] if c[2] < times.sync[0]]
    return len(rows), num_issued, sum(c[4] - c[3] for c in rows), profiled.cpu_time_total * 1e-6


@pytest.mark.timed
def test_the_recorder_sees_every_wait_of_functional_collectives() -> None:
    for num_recorded, num_issued, waited_s, profiled_s in run_ranks(2, _waits_seen):
        assert num_recorded == num_issued > 20
        # The profiler counts its own cost of each wait and second waits, which do not block.
        assert waited_s == pytest.approx(profiled_s, rel=0.1, abs=2e-3)


def _known_memory() -> dict[str, Any]:
    weight = nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def run() -> None:
        weight.grad = torch.ones(1000)
        first = torch.empty(50_000, dtype=torch.uint8)
        del first
        second = torch.empty(30_000, dtype=torch.uint8)
        third = torch.empty(40_000, dtype=torch.uint8)
        del second, third

    device = torch.device("cpu")
    return measure_step(
        run,
        device=device,
        weights=[weight],
        masters=[weight],
        optimizer=optimizer,
        buffer_bytes=500,
    )


def test_the_peak_is_that_of_tensors_alive_at_one_moment() -> None:
    (memory,) = run_ranks(1, _known_memory)
    assert memory["activation_and_workspace_bytes"] == 70_000
    assert memory["peak_bytes"] == 2 * 4000 + 500 + 70_000
