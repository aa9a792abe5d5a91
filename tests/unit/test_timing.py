"""Steps of the time model against single layouts and the simulator."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from planner.chain import BlockTimes, program_of
from planner.config import ParallelConfig
from planner.layouts import SCHEDULES
from planner.peak import RECIPES
from planner.predict import Quantities, Run, predict_steps
from planner.simulate import simulate
from planner.timing.layer import layer_times
from planner.timing.quantities import Software, columns, rows
from planner.timing.step import compose, head_s, step_times
from profiler.catalog.load import load_model
from profiler.catalog.node_types import node_group
from profiler.job import JobSpec
from tests.unit.timing import FITTED, FREE, H100, ONE, SEQ, exact, shape, split

# Arrays and single layouts


def runs(*given):
    found = []
    for name, degrees in given:
        config = ParallelConfig(**{"pp": 1, "dp_replicate": 1, "tp": 1, "micro_batch": 1,
                                   "recompute": "none", "schedule": "1f1b", **degrees})  # fmt: skip
        found.append(
            Run(
                model=load_model(name), job=JobSpec(global_batch=64, seq_len=SEQ), config=config,
                group=node_group("dgx-h100", 8), num_devices=config.num_devices,
                software=Software(), constants=FITTED, recipe=RECIPES["megatron"],
            )
        )  # fmt: skip
    return found


MANY = (
    ("llama3-8b", {"tp": 2, "dp_shard": 4, "zero": 1}),
    ("llama3-8b", {"dp_shard": 8, "zero": 3, "cp": 2}),
    ("llama3-70b", {"tp": 8, "pp": 4, "vpp": 5, "schedule": "interleaved"}),
    ("qwen3-30b-a3b", {"ep": 8, "dp_shard": 8, "zero": 1}),
    ("deepseek-v3", {"tp": 2, "pp": 8, "ep": 8, "dp_shard": 4, "zero": 1, "recompute": "full"}),
    ("qwen3-next-80b-a3b", {"tp": 2, "dp_shard": 4, "zero": 1}),
    ("gpt3-175b", {"tp": 8, "pp": 8, "schedule": "zero_bubble"}),
)


def test_arrays_give_what_single_layouts_give():
    q = Quantities.of(runs(*MANY))
    many = step_times(q.shape, q.split, q.machine, q.software, columns([FITTED] * len(MANY)))
    for n in range(len(MANY)):
        one = [rows(part, np.array(n)) for part in (q.shape, q.split, q.machine, q.software)]
        single = step_times(*one, FITTED)
        assert many.step_s[n] == pytest.approx(float(single.step_s), rel=1e-12)
    together = [s for s, _ in predict_steps(runs(*MANY))]
    alone = [predict_steps([r])[0][0] for r in runs(*MANY)]
    assert together == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("name", ["llama3-8b", "qwen3-30b-a3b", "deepseek-v3"])
def test_more_tokens_never_take_less(name):
    batches = split(micro_batch=np.arange(1.0, 65.0), tp=2, ep=2)
    dense, moe = layer_times(shape(name), batches, H100, Software(), FITTED)
    for layer in (dense, moe):
        # Where the host is slower, backward as a whole is its time, and `input_s` the rest of it.
        for seconds in (layer.forward_s, layer.input_s + layer.weight_s, layer.weight_s):
            assert np.all(np.diff(seconds) >= -1e-12)
    steps = [step_times(shape(name, s), ONE, H100, Software(), FITTED).step_s
             for s in (512, 1024, 2048, 4096, 8192, 16384)]  # fmt: skip
    assert steps == sorted(steps)


def test_terms_add_up():
    for seconds, parts in predict_steps(runs(*MANY)):
        assert sum(parts.values()) == pytest.approx(seconds)
        assert min(parts.values()) >= 0


# Pipelines: the closed form against the simulator


def simulated(s, degrees, layer, head=(0.0, 0.0, 0.0)):
    """The simulator's step of equal layers and nothing else."""
    p, v, m = degrees.pp, degrees.vpp, degrees.num_microbatches
    num = p * v
    each = int(s.num_layers) // num
    ends = [0, *(1 + each * (n + 1) for n in range(num))]
    ends[-1] += 1
    times = BlockTimes(dense=layer, moe=layer, head=head)
    program = program_of(
        blocks=("embed", *["dense"] * int(s.num_layers), "head"),
        stages=tuple(pairwise(ends)), times=times,
        schedule=SCHEDULES[degrees.schedule], pp=p, vpp=v, num_microbatches=m, send_s=0.0,
        exposed_send=0.0, late=1.0, sync_s=0.0, update_s=0.0, base_s=0.0,
    )  # fmt: skip
    return simulate(program).step_s


@pytest.mark.parametrize(
    "name", ["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipev"]
)
@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize("rounds", [1, 2, 8])
def test_closed_form_of_equal_stages_is_the_simulators(name, p, rounds):
    v = schedule_vpp(name)
    s = dataclasses.replace(shape(), num_layers=p * v * 2, num_moe=0, vocab=0, mtp=0)
    degrees = split(pp=p, vpp=v, num_microbatches=2 * p * rounds, schedule=SCHEDULES.index(name))
    c = exact(weight_grad=0.9)
    # No recomputation of attention: backward for the input and for the weights nearly alike.
    dense, moe = layer_times(s, degrees, FREE, Software(), c)
    closed = compose(s, degrees, FREE, Software(), c, dense, moe).step_s
    layer = (float(dense.forward_s), float(dense.input_s), float(dense.weight_s))
    assert float(closed) == pytest.approx(simulated(s, degrees, layer), rel=0.01)


def schedule_vpp(name):
    """Virtual stages to test a schedule with."""
    return {"interleaved": 2, "zbv": 2, "dualpipev": 2}.get(name, 1)


def test_a_head_on_the_last_stage_is_the_slowest_rank():
    s = dataclasses.replace(shape(), num_layers=8, num_moe=0)
    degrees = split(pp=4, num_microbatches=64)
    c = exact()
    software = Software(balanced=0.0)
    dense, moe = layer_times(s, degrees, FREE, software, c)
    closed = compose(s, degrees, FREE, software, c, dense, moe).step_s
    layer = (float(dense.forward_s), float(dense.input_s), float(dense.weight_s))
    head = tuple(float(x) for x in head_s(s, degrees, FREE, c))
    assert float(closed) == pytest.approx(simulated(s, degrees, layer, head), rel=0.01)


def test_no_step_is_below_its_bound():
    for r in runs(*MANY):
        q = Quantities.of([r])
        step = step_times(q.shape, q.split, q.machine, q.software, columns([FITTED]))
        assert step.bound_s[0] <= step.step_s[0]
        assert step.exposed_reduction_s[0] <= step.reduction_s[0] * (1 + 1e-9)
