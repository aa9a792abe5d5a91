"""What the planner says that a rank holds is what the runtime's rank holds, box by box."""

import pytest
from fork import run_ranks
from grid import DEEPSEEK, MIXTRAL, QWEN2, QWEN2_MOE, QWEN3, TIED, Case, trainer_of

from launch.runtime.checkpoint import ready_optimizer, state_of
from planner.config import ExpertSlots
from planner.holdings import Box, Holdings
from profiler.tensors import tensors_of

pytestmark = pytest.mark.distributed

REPLICATED = (ExpertSlots(slots=((0, 3, 5), (1, 2, 4, 6, 7, 0))),) * 5
NONE_ON_ONE = (ExpertSlots(slots=(tuple(range(8)), ())),) * 5
CASES = {
    "tp2-pp2-qwen2": Case(model=QWEN2, tp=2, pp=2),
    "tp2-zero3-qwen3": Case(model=QWEN3, tp=2, shard=2, zero=3),
    "zero1-of-uneven-parts": Case(model=QWEN3, shard=4, zero=1, ranks=(2, 0, 3, 1)),
    "hsdp-cp": Case(shard=2, zero=2, cp=2),
    "cp-alone": Case(cp=2, pp=2, vpp=2, schedule="zbv"),
    "tied-ends": Case(model=TIED, pp=2, dp=2),
    "tied-on-one-with-zero": Case(model=TIED, shard=2, zero=2, tp=2),
    "replicated-experts": Case(model=MIXTRAL, dp=2, ep=2, experts=REPLICATED),
    "no-experts-on-one": Case(model=MIXTRAL, shard=4, zero=3, ep=2, experts=NONE_ON_ONE),
    "etp-and-zero": Case(model=DEEPSEEK, tp=2, etp=2, shard=2, zero=1),
    "ep-folded-over-tp": Case(model=QWEN2_MOE, tp=2, dp=2, ep=4),
    "ep-and-edp-sharded": Case(model=QWEN2_MOE, shard=4, zero=2, ep=2),
}


def _held(case: Case) -> list[tuple[str, Box]]:
    """This rank's boxes of weights, of both moments alike, and of buffers, from its state."""
    trainer = trainer_of(case)
    ready_optimizer(trainer, 1)
    found: dict[str, list[tuple[str, Box]]] = {}
    for key, boxes in state_of(trainer)[0].items():
        kind, _, name = key.partition("/")
        for chunk in boxes.__create_chunk_list__():
            box = tuple((o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
            if all(stop > start for start, stop in box):
                found.setdefault(kind, []).append((name, box))
    weights = sorted(found["weight"])
    assert sorted(found["exp_avg"]) == sorted(found["exp_avg_sq"]) == weights
    return weights + sorted(found.get("buffer", []))


@pytest.mark.parametrize("name", CASES)
def test_the_planner_knows_what_each_rank_holds(name: str) -> None:
    case = CASES[name]
    holdings = Holdings(case.model, case.config, case.placement)
    tensors, exact = tensors_of(case.model)
    assert exact
    expected: list[list[tuple[str, Box]]] = [[] for _ in range(case.config.num_devices)]
    for tensor in sorted(tensors, key=lambda t: t.is_buffer):
        for box, ranks in holdings.of(tensor).items():
            for rank in ranks:
                expected[rank].append((tensor.name, box))
    found = run_ranks(case.config.num_devices, _held, case)
    assert [sorted(own) for own in found] == [sorted(own) for own in expected]
