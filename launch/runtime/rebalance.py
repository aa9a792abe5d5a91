"""Experts follow the routing while training: every so many steps, counted, decided and moved.

Between two steps, all ranks sum what they counted since the last look; rank 0 decides
(`planner.rebalance`) and tells the others, who move together (`launch.runtime.expert_moves`).
Seconds per choice are those of the experts' forward, timed on all ranks in the last steps before
the look, with backward at twice that:

    choice_s = rows' seconds * (3 + recomputed share) / rows

The rest of the objective, exchanges over the profile's links, is `planner.routed_places`.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launch.expert_looks import ExpertLook, append, cut
from launch.recipe import Recipe
from launch.runtime.expert_meter import ExpertMeter
from launch.runtime.expert_moves import layers_of, move_experts
from launch.runtime.trainer import Trainer
from planner.expert_moves import Experts, placed_experts
from planner.plan import Plan
from planner.rebalance import Decision, Look, decide, move_rates
from planner.routed_places import routed_places
from planner.where import nodes_of_ranks

TIMED_STEPS = 8
"""Last steps of an interval, in which experts are timed."""
_FORWARD_AND_BACKWARD = 3
"""Times the forward of a product with weights: two more in backward."""


class Rebalancer:
    """Looks, decides and moves; collective: every rank makes one and calls alike."""

    def __init__(
        self, plan: Plan, recipe: Recipe, trainer: Trainer, device: torch.device, *,
        first: int, num_moves: int = 0, run_dir: Path | None = None,
    ) -> None:  # fmt: skip
        """`first`: step that comes first in this process; `num_moves`: those of earlier ones;
        `run_dir`: where each look is written, by rank 0."""
        self._plan, self._trainer, self._recipe = plan, trainer, recipe
        chosen = plan.chosen
        self._nodes = nodes_of_ranks(plan.cluster, chosen.config, chosen.placement)
        self._rates = move_rates(plan.profile)
        self._meter = ExpertMeter(plan.model.num_moe_layers, plan.model.num_experts, device)
        for layer, (_, _, moe) in layers_of(trainer).items():
            moe.meter = self._meter.of_layer(layer)
        self._since, self._num_moves, self._slowdown = first, num_moves, 1.0
        self._run_dir = run_dir if dist.get_rank() == 0 else None
        if self._run_dir is not None:
            self._begin(self._run_dir, first)

    def _begin(self, run_dir: Path, first: int) -> None:
        """Write where experts are, if not where the plan has them."""
        cut(run_dir, first)
        chosen, here = self._plan.chosen, self._trainer.placement
        now, planned = (
            placed_experts(self._plan.model, chosen.config, each)
            for each in (here, chosen.placement)
        )
        if self._num_moves or now != planned:
            append(run_dir, ExpertLook(step=first, layers=now))

    def before(self, step: int) -> dict[str, Any]:
        """To be called before each step; what the rank's row of the step is to say."""
        every = self._recipe.rebalance_experts_every
        row: dict[str, Any] = {}
        if step > self._since and step % every == 0:
            moved = self._look(step)
            if moved is not None:
                self._num_moves += 1
                row = {"moved": moved}
        self._meter.timing = every - step % every <= TIMED_STEPS
        return row | {"num_moves": self._num_moves}

    def _look(self, step: int) -> dict[str, Any] | None:
        """Count, decide, and where it pays, move: what this rank did."""
        taken = self._meter.take()
        dist.all_reduce(taken)
        found: list[tuple[Experts | None, dict[str, float]]] = [(None, {})]
        if dist.get_rank() == 0:
            decision = self._decide(step, taken)
            found[0] = decision.experts, _figures(decision, step - self._since)
            print(sentence(step, decision), flush=True)
        dist.broadcast_object_list(found, src=0)
        self._since = step
        experts, figures = found[0]
        if experts is None:
            self._log(step, (), taken)
            return None
        moved = move_experts(self._trainer, experts, self._nodes)
        slowest = torch.tensor(moved.seconds, dtype=torch.float64, device=taken.device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        if figures["move_s"] > 0:
            self._slowdown *= slowest.item() / figures["move_s"]
        self._log(step, experts, taken)
        return figures | {"received_bytes": moved.received_bytes, "seconds": moved.seconds}

    def _counts(self, taken: torch.Tensor) -> torch.Tensor:
        """[layers, experts]: choices since the last look."""
        model = self._trainer.model
        return taken[:-2].long().cpu().view(model.num_moe_layers, model.num_experts)

    def _log(self, step: int, layers: Experts, taken: torch.Tensor) -> None:
        if self._run_dir is not None:
            counts = tuple(map(tuple, self._counts(taken).tolist()))
            append(self._run_dir, ExpertLook(step=step, layers=layers, counts=counts))

    def _decide(self, step: int, taken: torch.Tensor) -> Decision:
        trainer, recipe = self._trainer, self._recipe
        *_, num_rows, seconds = taken.tolist()
        model = trainer.model
        forward_s = seconds / num_rows if num_rows else 0.0
        work = _FORWARD_AND_BACKWARD + recomputed(trainer)
        every, left = recipe.rebalance_experts_every, recipe.total_steps - step
        look = Look(
            counts=self._counts(taken).numpy(), num_steps=step - self._since,
            steps_left=min(every, left), rates=self._rates, slowdown=self._slowdown,
        )  # fmt: skip
        places = routed_places(
            self._plan.profile, self._plan.job, trainer.config, trainer.placement,
            compute_s=forward_s * work,
        )  # fmt: skip
        return decide(
            model, trainer.config, trainer.placement, look, places,
            gain=recipe.rebalance_experts_gain, node_of_rank=self._nodes,
        )  # fmt: skip


def recomputed(trainer: Trainer) -> float:
    """Share of the MoE layers whose forward backward runs again."""
    model, config = trainer.model, trainer.config
    layers = [block - 1 for block, kind in enumerate(model.blocks) if kind == "moe"]
    again = [trainer.placement.recompute_of(layer, config) == "full" for layer in layers]
    return sum(again) / len(again)


def _figures(decision: Decision, num_steps: int) -> dict[str, float]:
    """What was decided after so many counted steps."""
    return {
        "num_steps": num_steps,
        "num_bytes": decision.num_bytes,
        "gain_s": decision.gain_s,
        "move_s": decision.move_s,
        "steps_left": decision.steps_left,
    }


def sentence(step: int, decision: Decision) -> str:
    """What was decided before a step, for people."""
    size, gain = decision.num_bytes / 1e6, decision.gain_s
    if decision.experts is None:
        return (
            f"experts stay before step {step}: {size:.3g} MB in {decision.move_s:.3g} s would save "
            f"{gain:.3g} s in each of {decision.steps_left} steps"
        )
    return (
        f"experts move before step {step}: {size:.3g} MB in {decision.move_s:.3g} s, to save "
        f"{gain:.3g} s in each of {decision.steps_left} steps"
    )
