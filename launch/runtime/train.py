"""The worker that `torchrun` starts once per device: trains what a plan says and records each step.

`python -P -m launch.runtime.train --plan PLAN.json --run-dir DIR --data FILE`. Each rank appends to
DIR/ranks/rank-NNNNN.jsonl: a header (where it sits, its memory), then one line per step, written
outside the timed interval. Steps follow each other without a barrier. The memory step is the
second warm-up step: by then optimizer state and receive buffers exist.
"""

import argparse
import dataclasses
import gc
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import nn

from launch.runtime.data import TextData
from launch.runtime.memory import measure_step
from launch.runtime.mesh import Mesh, build_mesh
from launch.runtime.record import Recorder
from launch.runtime.trainer import StepTimes, Trainer
from launch.scheduler.orphans import end_with_parent
from planner.plan import FORMAT_VERSION, Plan, check_plan
from profiler.codec import decode_artifact, read_text
from profiler.errors import UserError

MEMORY_STEP = 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.runtime.train", description=__doc__)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="text, read byte by byte")
    parser.add_argument("--steps", type=int, default=20, help="measured steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them, at least 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-4)
    args = parser.parse_args(argv)
    if args.warmup <= MEMORY_STEP:
        parser.error(f"--warmup is at least {MEMORY_STEP + 1}")
    return args


def _read_plan(path: Path) -> Plan:
    plan, _ = decode_artifact(Plan, read_text(path), str(path), kind="plan", version=FORMAT_VERSION)
    check_plan(plan, str(path))
    if plan.job.precision != "fp32":
        raise UserError(
            f"the plan asks for {plan.job.precision}; the reference runtime trains in fp32",
            hint="plan again with precision fp32",
            place=str(path),
        )
    return plan


def _device() -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    # More threads per process than its share of the cores slow all of them down many times.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch.device("cpu")


def _header(mesh: Mesh, device: torch.device, memory: dict[str, Any]) -> dict[str, Any]:
    return {
        "rank": mesh.rank,
        "coordinate": dict(mesh.coordinate),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "memory": memory,
    }


def _row(step: int, warmup: bool, loss: float | None, times: StepTimes) -> dict[str, Any]:
    row = {"step": step, "warmup": warmup, "loss": loss}
    return row | dataclasses.asdict(times)


class _Log:
    """The rank's file; lines before the header wait for it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._early: list[dict[str, Any]] | None = []

    def header(self, line: dict[str, Any]) -> None:
        early, self._early = self._early or [], None
        for row in (line, *early):
            self.row(row)

    def row(self, line: dict[str, Any]) -> None:
        if self._early is not None:
            self._early.append(line)
            return
        self._out.write(json.dumps(line) + "\n")
        self._out.flush()


def _adamw(lr: float) -> Any:
    return lambda weights: torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), foreach=True)


def _train(args: argparse.Namespace, plan: Plan, device: torch.device) -> None:
    config, placement = plan.chosen.config, plan.chosen.placement
    mesh = build_mesh(config, placement, device.type)
    recorder = Recorder(mesh.axis_of_group())
    data = TextData(
        args.data, plan.model, plan.job, seed=args.seed,
        replica=mesh.coordinate["dp_replicate"], num_replicas=config.dp_replicate,
    )  # fmt: skip
    trainer = Trainer(
        plan.model, plan.job, config, placement, mesh=mesh, recorder=recorder,
        make_optimizer=_adamw(args.lr), device=device, seed=args.seed,
    )  # fmt: skip
    place = mesh.coordinate
    speaks = place["pp"] == config.pp - 1 and place["dp_replicate"] == place["tp"] == 0
    gc.freeze()  # what lives to the end need not be looked at again during steps
    folder = args.run_dir / "ranks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{mesh.rank:05d}.jsonl").open("w", encoding="utf-8") as out:
        log = _Log(out)
        for step in range(args.warmup + args.steps):
            row, memory = _one_step(step, args.warmup, trainer, data, recorder, device)
            if memory is not None:
                log.header(_header(mesh, device, memory))
            log.row(row)
            if speaks:
                seconds = row["end"] - row["start"]
                print(f"step {step} loss {row['loss']:.3f} {seconds:.3f} s", flush=True)


def _one_step(
    step: int, warmup: int, trainer: Trainer, data: TextData, recorder: Recorder,
    device: torch.device,
) -> tuple[dict[str, Any], dict[str, Any] | None]:  # fmt: skip
    """Row of the step and, of the memory step, its memory."""
    inputs, targets = (t.to(device) for t in data.batch(step))
    done: list[tuple[torch.Tensor | None, StepTimes]] = []

    def run() -> None:
        done.append(trainer.step(inputs, targets))

    memory = None
    with recorder.active():
        if step == MEMORY_STEP:
            weights: list[nn.Parameter] = trainer.weights
            memory = measure_step(
                run, device=device, weights=list(weights), optimizer=trainer.optimizer,
                buffer_bytes=trainer.runner.buffer_bytes,
            )  # fmt: skip
        else:
            run()
    loss, times = done[0]
    row = _row(step, step < warmup, None if loss is None else loss.item(), times)
    return row | recorder.drain(), memory


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 1 with `error: ...` on stderr for what the user can mend."""
    args = _arguments(argv)
    end_with_parent(signal.SIGKILL)
    try:
        plan = _read_plan(args.plan)
        device = _device()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        _train(args, plan, device)
        dist.barrier()
        dist.destroy_process_group()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        if e.hint:
            print(f"\nhint: {e.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
