"""The worker that `torchrun` starts once per device: trains what a plan says and records each step.

`python -P -m launch.runtime.train --plan PLAN.json --run-dir DIR`; DIR/recipe.json says with what.
Each rank appends to DIR/ranks/rank-NNNNN.jsonl: a header (where it sits, its memory), then one line
per step, written outside the timed interval. Steps follow each other without a barrier. Memory is
taken in the second step: by then optimizer state and receive buffers exist.

Where torchrun starts the ranks again after a fault, they go on from the run's newest checkpoint
that is sound, and each rank's file from there.
"""

import argparse
import dataclasses
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

gc.disable()  # what imports make stays: to look for garbage on the way takes a third of the time

import torch
import torch.distributed as dist

from launch.artifact import write_atomic
from launch.checkpoints import checkpoint_root
from launch.collect import OBSERVED_NAME, STATUS_NAME, collect
from launch.framework.native import nodes_of
from launch.recipe import FILE_NAME, Recipe, read_recipe
from launch.routing_parts import save_joined
from launch.runtime.checkpoint import Checkpoints
from launch.runtime.data import TokenData
from launch.runtime.huggingface import HfWeights
from launch.runtime.memory import measure_step
from launch.runtime.mesh import TIMEOUT, Mesh, build_mesh
from launch.runtime.optimizer import lr_at, make_adamw, set_lr
from launch.runtime.record import Recorder
from launch.runtime.routing_log import RoutingLog
from launch.runtime.trainer import StepResult, Trainer
from launch.scheduler.orphans import end_with_parent
from planner.plan import FORMAT_VERSION, Plan, check_plan
from profiler.cluster import NodeGroup
from profiler.codec import decode_artifact, encode, read_text
from profiler.errors import UserError

gc.freeze()
gc.enable()

if TYPE_CHECKING:
    from launch.runtime.rebalance import Rebalancer

SETTLING_STEPS = 2
"""Steps of a process that are not timed: the first sets up, in the second memory is traced."""


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.runtime.train", description=__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    return parser.parse_args(argv)


def _read_plan(path: Path) -> Plan:
    plan, _ = decode_artifact(Plan, read_text(path), str(path), kind="plan", version=FORMAT_VERSION)
    check_plan(plan, str(path))
    return plan


def _device(plan: Plan) -> torch.device:
    rank = int(os.environ.get("RANK", "0"))
    kind = _group(plan, nodes_of(plan)[rank]).device
    if not kind.is_host:
        local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= found:
            raise UserError(
                f"the plan is for {kind.name}, and torch sees {found} GPUs on "
                f"{socket.gethostname()}",
                hint="install a torch build for its GPUs, or look at CUDA_VISIBLE_DEVICES",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        return device
    # More threads per process than its share of the cores slow all of them down many times.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch.device("cpu")


def _group(plan: Plan, node: int) -> NodeGroup:
    """The group of a node."""
    each = [group for group in plan.cluster.groups for _ in range(group.num_nodes)]
    return each[node]


def _choose_interface(plan: Plan) -> None:
    """The network interface that the plan names for this node, before anything connects."""
    names = plan.chosen.placement.interfaces
    if not names:
        return
    nodes = nodes_of(plan)
    node = list(dict.fromkeys(nodes)).index(nodes[int(os.environ.get("RANK", "0"))])
    if node >= len(names):
        raise UserError(f"the plan names {len(names)} interfaces, this is node {node}")
    known = {name for _, name in socket.if_nameindex()}
    if names[node] not in known:
        raise UserError(
            f"host {socket.gethostname()} has no network interface `{names[node]}`",
            hint=f"it has {', '.join(sorted(known))}",
        )
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[variable] = names[node]


def _startup_s(attempt: int) -> float | None:
    """Seconds since the torchrun that started this process began, or where that has started ranks
    before, since the process did (proc(5), field 22 of stat); None where nobody says."""
    by_torchrun = attempt == 0 and "TORCHELASTIC_RUN_ID" in os.environ
    process = str(os.getppid()) if by_torchrun else "self"
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    ticks = int(text.rpartition(")")[2].split()[19])  # names may hold spaces and brackets
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock) - ticks / os.sysconf("SC_CLK_TCK")


def _header(
    mesh: Mesh, device: torch.device, memory: dict[str, Any] | None, startup_s: float | None
) -> dict[str, Any]:
    return {
        "startup_s": startup_s,
        "rank": mesh.rank,
        "coordinate": dict(mesh.coordinate),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "memory": memory,
    }


class _Log:
    """The rank's file: a header, then steps; steps before the header is known wait for it."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Keeps the header and the steps before `first_step` of an earlier attempt."""
        kept = _rows(path)
        self.has_header = bool(kept)
        if kept:  # its memory holds, the process is another
            kept[0] |= {"host": socket.gethostname(), "pid": os.getpid()}
        self._early: list[dict[str, Any]] = []
        again = kept[:1] + [row for row in kept[1:] if row["step"] < first_step]
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in again))
        self._out: TextIO = path.open("a", encoding="utf-8")

    def header(self, line: dict[str, Any]) -> None:
        self.has_header = True
        for row in (line, *self._early):
            self._write(row)
        self._early = []

    def row(self, line: dict[str, Any]) -> None:
        if self.has_header:
            self._write(line)
        else:
            self._early.append(line)

    def _write(self, line: dict[str, Any]) -> None:
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()

    def close(self) -> None:
        self._out.close()


def _rows(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a rank's file; none where it does not exist."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # torn by a fault
                break
    return rows


class _Run:
    """A rank's training from the first step to the last."""

    def __init__(self, plan: Plan, recipe: Recipe, run_dir: Path, device: torch.device) -> None:
        config = plan.chosen.config
        self.plan, self.recipe, self.device, self.run_dir = plan, recipe, device, run_dir
        self.mesh = build_mesh(config, plan.chosen.placement, device.type)
        self.recorder = Recorder(self.mesh.axis_of_group())
        place = self.mesh.coordinate
        self.data = TokenData(
            recipe.data_file, plan.model, plan.job, seed=recipe.seed,
            replica=place["dp_replicate"] * config.dp_shard + place["dp_shard"],
            num_replicas=config.num_replicas,
        )  # fmt: skip
        self.trainer = Trainer(
            plan.model, plan.job, config, plan.chosen.placement, mesh=self.mesh,
            recorder=self.recorder, make_optimizer=make_adamw(recipe), device=device,
            seed=recipe.seed, clip_norm=recipe.clip_norm,
        )  # fmt: skip
        self.checkpoints = Checkpoints(
            self.trainer, checkpoint_root(run_dir), keep=recipe.keep_checkpoints
        )
        path = run_dir / "ranks" / f"rank-{self.mesh.rank:05d}.jsonl"
        # torchrun counts restarts of each node's agent; a replaced node would begin at 0 again.
        before = [row["attempt"] + 1 for row in _rows(path) if "attempt" in row]
        own = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self.attempt = self.checkpoints.largest(max([own, *before]))
        self.first = self._start_state()
        self.rebalancer = self._rebalancer(_rows(path)) if recipe.rebalance_experts_every else None
        self.routing: RoutingLog | None = None
        if recipe.record_routing:
            self.routing = RoutingLog(
                self.trainer, plan.job, config, self.recorder, share=recipe.record_routing,
                seed=recipe.seed, run_dir=run_dir, first_step=self.first,
            )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        self.log = _Log(path, self.first)
        self.startup_s: float | None = None
        self.trace_memory = True
        self.speaks = config.num_stages - 1 in self.mesh.stages and not any(
            place[axis] for axis in place if axis != "pp"
        )

    def _start_state(self) -> int:
        """Set the state to start from; steps trained by then."""
        own = self.checkpoints.newest()
        if own is None and self.recipe.resume_folder is not None:
            own = self.checkpoints.find(self.recipe.resume_folder)
        if own is not None:
            moves = self.recipe.rebalance_experts_every > 0
            step = self.checkpoints.load(own, experts_too=moves)
            if self.mesh.rank == 0:
                print(f"goes on after step {step - 1}, from {own}", flush=True)
            return step
        if self.recipe.weights_folder is not None:
            with HfWeights(self.recipe.weights_folder, self.plan.model) as weights:
                self.trainer.set_values(lambda name, _shape: weights.get(name))
                self.trainer.set_buffers(weights.get)
        return 0

    def _rebalancer(self, before: list[dict[str, Any]]) -> "Rebalancer":
        """Counts on from what an earlier attempt had moved by the first step."""
        from launch.runtime.rebalance import Rebalancer  # with solvers, which other runs do without

        kept = [row for row in before if row.get("step", self.first) < self.first]
        return Rebalancer(
            self.plan, self.recipe, self.trainer, self.device, first=self.first,
            num_moves=kept[-1].get("num_moves", 0) if kept else 0, run_dir=self.run_dir,
        )  # fmt: skip

    def steps(self) -> None:
        """All steps that are left; checkpoints on the way, and at the end."""
        every, total = self.recipe.checkpoint_every, self.recipe.total_steps
        self.startup_s = _startup_s(self.attempt)
        gc.freeze()  # what lives to the end need not be looked at again during steps
        for step in range(self.first, total):
            self._one(step)
            self.checkpoints.poll()
            if every and ((step + 1) % every == 0 or step + 1 == total):
                if self.routing is not None:  # a restart goes on from here
                    self.routing.flush()
                self.checkpoints.save(step + 1)
        self.checkpoints.wait()
        if not self.log.has_header:  # too few steps to trace memory
            self.log.header(_header(self.mesh, self.device, None, self.startup_s))
        self.log.close()
        if self.routing is not None:
            self.routing.flush()
        self.checkpoints.meet()
        if self.mesh.rank == 0 and not (self.run_dir / STATUS_NAME).exists():
            save_joined(self.plan, self.run_dir, complete=True)
            observed = collect(self.plan, self.run_dir, "complete")  # no launcher will
            if observed is not None:
                write_atomic(self.run_dir / OBSERVED_NAME, encode(observed))

    def _one(self, step: int) -> None:
        inputs, targets = (t.to(self.device) for t in self.data.batch(step))
        lr = lr_at(step, self.recipe)
        set_lr(self.trainer.optimizer, lr)
        moved = self.rebalancer.before(step) if self.rebalancer else {}
        results: list[StepResult] = []
        if self.routing is not None:
            self.routing.begin(step, self.device)

        def run() -> None:
            results.append(self.trainer.step(inputs, targets))

        with self.recorder.active():
            traced = self.trace_memory and step == self.first + SETTLING_STEPS - 1
            if traced and not self.log.has_header:
                memory = measure_step(
                    run, device=self.device, weights=[h.local for h in self.trainer.held],
                    masters=list(self.trainer.weights), optimizer=self.trainer.optimizer,
                    buffer_bytes=self.trainer.runner.buffer_bytes,
                )  # fmt: skip
                self.log.header(_header(self.mesh, self.device, memory, self.startup_s))
            else:
                run()
        if self.routing is not None:
            self.routing.end()
        result = results[0]
        loss = None if result.loss is None else result.loss.item()
        settling = step < max(self.recipe.warmup, self.first + SETTLING_STEPS)
        row = {"step": step, "warmup": settling, "attempt": self.attempt, "loss": loss}
        row |= {"lr": lr, "grad_norm": result.grad_norm} | moved
        self.log.row(row | dataclasses.asdict(result.times) | self.recorder.drain())
        if self.speaks and loss is not None:
            seconds = result.times.end - result.times.start
            print(f"step {step} loss {loss:.3f} {seconds:.3f} s", flush=True)


def train(
    plan: Plan,
    recipe: Recipe,
    run_dir: Path,
    device: torch.device,
    *,
    ready: Callable[[], object] = lambda: None,
    trace_memory: bool = True,
) -> None:
    """All of this rank's steps; the default process group, of all ranks of the plan, is there.
    `ready` is called before the first step, when all is built."""
    run = _Run(plan, recipe, run_dir, device)
    run.trace_memory = trace_memory
    ready()
    run.steps()


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 1 with `error: ...` on stderr for what the user can mend."""
    args = _arguments(argv)
    end_with_parent(signal.SIGKILL)
    try:
        plan = _read_plan(args.plan)
        recipe = read_recipe(args.run_dir / FILE_NAME)
        device = _device(plan)
        _choose_interface(plan)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        train(plan, recipe, args.run_dir, device)
        dist.destroy_process_group()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        if e.hint:
            print(f"\nhint: {e.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
