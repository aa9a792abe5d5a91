"""Layouts on hosts whose links differ: times of what crosses them, and where the ranks go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.collectives import Group
from planner.config import ParallelConfig, Placement
from planner.cost import prepare_placed
from planner.explain import explain, used_hosts
from planner.given import LayoutFile, plan_for
from planner.mapping_exact import all_assignments
from planner.measured import MeasuredCosts
from planner.mesh import Mesh
from planner.placed import WORTH, named, on_hosts
from planner.plan import SearchOptions
from planner.search import make_plan
from planner.simulate import simulate
from planner.traffic import traffic_of
from profiler.analytic import analytic_profile as catalogue_profile
from profiler.codec import replace
from profiler.errors import UserError
from profiler.links import Links
from profiler.profile import Timing, TransferEntry
from tests.unit import facts
from tests.unit.hosts import LATENCY, links, profiled
from tests.unit.made_links import random_links

ANY = SearchOptions(pin={}, forbid={}, top=50)


def config(**degrees):
    plain = {"pp": 1, "dp_replicate": 1, "tp": 1, "micro_batch": 1}
    return ParallelConfig(recompute="none", schedule="1f1b", **plain | degrees)


def costs_on(table, **changes):
    facts_ = on_hosts(profiled(**changes), table)
    return MeasuredCosts(facts.model(), facts.job(**changes), facts_)


def step_s(prepared):
    return simulate(prepared.program, prepared.sharing).step_s


def test_a_message_shares_its_pair_and_the_ends():
    """Four flows: two on one pair, all from one host with twice the pair's rate."""
    table = links()
    costs = costs_on(table)
    hosts = costs.hosts
    many = config(pp=2, dp_replicate=4)
    nodes = (0, 0, 0, 0, 1, 1, 2, 3)
    forward, backward = hosts.sends(many, nodes, 1000.0)
    assert forward == pytest.approx((LATENCY + 1000 * 4 / 1e8, 0.0))  # all leave host 0
    assert backward == pytest.approx((0.0, LATENCY + 1000 * 4 / 1e8))  # all enter it
    apart = hosts.sends(many, (0, 1, 2, 3, 1, 0, 3, 2), 1000.0)[0]
    assert apart[0] == pytest.approx(LATENCY + 1000 / 1e8)


def test_a_ring_waits_for_its_slowest_hop():
    costs = costs_on(links((1, 2)))
    ring = config(dp_replicate=4)
    good, bad = ((0, 1, 3, 2), (0, 1, 2, 3))
    num_bytes = 1e6
    seconds = [costs.hosts.all_reduce(ring, n, "dp", (num_bytes,))[0][0] for n in (good, bad)]
    assert seconds[1] == pytest.approx(2 * 3 * (LATENCY + num_bytes / 4 / 1e6))
    assert seconds[0] < seconds[1] / 20


def test_within_a_host_the_profile_speaks():
    costs = costs_on(links())
    pair = config(dp_replicate=2, pp=4)
    inside = costs.hosts.all_reduce(pair, (0, 0, 1, 1, 2, 2, 3, 3), "dp", (1e5,) * 4)
    expected = costs.links.collective("all_reduce", 1e5, Group(2, 2))[0]
    assert [seconds for seconds, _ in inside] == pytest.approx([expected] * 4)


def test_tensor_parallel_ranks_stay_in_a_host():
    costs = costs_on(links())
    pair = config(tp=2, pp=4)
    near, far = (0, 0, 1, 1, 2, 2, 3, 3), (0, 1, 0, 1, 2, 2, 3, 3)
    assert costs.hosts.tensor_factor(pair, near, 1e5) == (1.0,) * 4
    factors = costs.hosts.tensor_factor(pair, far, 1e5)
    assert factors[0] > 5
    assert factors[2:] == (1.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    degrees=st.sampled_from([(1, 4, 1), (2, 2, 1), (4, 1, 1), (2, 1, 2), (1, 2, 2)]),
)
def test_four_ranks_go_where_brute_force_puts_them(seed, degrees):
    pp, dp, tp = degrees
    table = random_links(2, seed, spread=0.95)
    table = replace_rates(table, 1e-3)
    costs = costs_on(table)
    layout = config(pp=pp, dp_replicate=dp, tp=tp)
    found = costs.prepare(layout)
    mesh, traffic = Mesh.of(layout), traffic_of(costs.model, layout, costs.job)
    tables, _ = all_assignments(mesh, traffic, costs.hosts.links, 2)
    every = []
    for nodes in tables:
        ranks, devices = named(tuple(int(n) for n in nodes), 2)
        placement = Placement(stages=found.placement.stages, ranks=ranks, devices=devices)
        every.append(step_s(costs.placed(layout, placement)))
    assert step_s(found) <= min(every) / (1 - WORTH) * (1 + 1e-9)
    assert step_s(found) <= step_s(costs.in_order(layout)) * (1 + 1e-12)


def replace_rates(table, factor):
    return Links(
        hosts=table.hosts, bytes_per_s=table.bytes_per_s * factor, latency_s=table.latency_s
    )


@given(nodes=st.permutations([0, 0, 1, 1, 2, 2, 3, 3]), fewer=st.integers(1, 8))
def test_a_placement_says_the_hosts_again(nodes, fewer):
    costs = costs_on(links())
    layout = config(dp_replicate=fewer)
    ranks, devices = named(nodes[:fewer], 2)
    placement = Placement(stages=((0, 8),), ranks=ranks, devices=devices)
    assert costs.hosts.nodes_of(layout, placement) == tuple(nodes[:fewer])
    assert sorted(ranks or range(fewer)) == list(range(fewer))


def test_a_slow_host_gets_fewer_layers():
    slow = on_hosts(profiled(), links(rate=1e10, slowdown=(1, 1, 1, 3)))
    costs = MeasuredCosts(facts.model(), facts.job(), slow)
    layout = config(pp=4, dp_replicate=2)
    found = costs.prepare(layout)
    nodes = np.array(costs.hosts.nodes_of(layout, found.placement)).reshape(4, 2)
    sizes = found.placement.layers_per_stage(facts.model().num_layers)
    on_slow = [s for s in range(4) if 3 in nodes[s]]
    assert len(on_slow) == 1  # both ranks of the slow host in one stage
    assert sizes[on_slow[0]] == min(sizes) < max(sizes)
    even = costs.placed(layout, replace(found.placement, stages=((0, 2), (2, 4), (4, 6), (6, 8))))
    assert step_s(found) < step_s(even)


def on_processes(slowdown=(1, 1, 1, 1)):
    """Costs where the host is the device, on fast links."""
    base = facts.profile(1, 2)
    node = replace(base.cluster.uniform, device=facts.device(is_host=True))
    reduced = tuple(
        TransferEntry(
            op="all_reduce", ranks=(0, 1), scope="node", num_bytes=n, source="measured",
            time=Timing(median_s=LATENCY + n * 4e-9, repeats=3),
        )
        for n in (1, 10**7)
    )  # fmt: skip
    base = replace(base, cluster=replace(base.cluster, groups=(node,)), transfers=reduced)
    table = links(rate=1e10, slowdown=slowdown)
    return MeasuredCosts(facts.model(), facts.job(), on_hosts(profiled(base=base), table))


def test_a_slow_host_is_slow_at_what_its_processes_move():
    even, slow = on_processes(), on_processes((1, 1, 1, 3))
    in_order, factors = (0, 0, 1, 1, 2, 2, 3, 3), (1.0, 1.0, 1.0, 3.0)
    pair, copies, ring = config(tp=2, pp=4), config(dp_replicate=2, pp=4), config(dp_replicate=4)
    assert slow.hosts.tensor_factor(pair, in_order, 1e5) == factors
    assert slow.hosts.network(pair, in_order, 1e5, (0.0,) * 4).executor == factors

    def reduced(layout, nodes):
        rows = [c.hosts.all_reduce(layout, nodes, "dp", (1e6,) * layout.pp) for c in (even, slow)]
        return [np.array([seconds for seconds, _ in row]) for row in rows]

    before, after = reduced(copies, in_order)
    assert after == pytest.approx(before * factors)
    before, after = reduced(ring, (0, 0, 1, 1))
    assert after == pytest.approx(before)
    # On a ring over the slow host, the processes' own part takes three times as long.
    before, after = reduced(ring, (2, 2, 3, 3))
    own_s = even.links.byte_s("all_reduce", Group(2, 2))
    assert own_s == pytest.approx(4e-9)
    assert after - before == pytest.approx([2 * 3 * 1e6 / 4 * 2 * own_s])


def test_the_plan_says_what_the_order_wins():
    bad = links((1, 2), (2, 1))
    plan = make_plan(facts.model(), facts.job(), on_hosts(profiled(), bad), ANY)
    chosen = plan.chosen
    again = prepare_placed(plan.model, plan.job, plan.profile, chosen.config, chosen.placement)
    assert step_s(again) == pytest.approx(chosen.cost.step_s)
    assert plan.default_order_s >= chosen.cost.step_s
    assert set(used_hosts(plan)) == {f"host{k}" for k in range(4)}
    assert next(r for r in explain(plan).reasons if r.axis == "hosts")
    ring = make_plan(facts.model(), facts.job(), plan.profile, replace(ANY, pin={"dp": ("8",)}))
    assert ring.default_order_s > 3 * ring.chosen.cost.step_s
    reason = next(r for r in explain(ring).reasons if r.axis == "hosts")
    assert reason.value == "mapped"
    assert reason.others[0].cost == pytest.approx(
        ring.default_order_s / ring.chosen.cost.step_s - 1
    )


def test_a_given_order_is_priced_as_it_is():
    bad = on_hosts(profiled(), links((1, 2), (2, 1)))
    around = (0, 1, 2, 3, 6, 7, 4, 5)  # the last two hosts change places
    found = [
        plan_for(
            facts.model(), facts.job(), bad, LayoutFile(dp_replicate=8, ranks=ranks), "layout"
        ).chosen
        for ranks in ((), around)
    ]
    assert found[0].placement.ranks == ()
    assert found[1].placement.ranks == around
    assert found[0].cost.step_s > 3 * found[1].cost.step_s


def test_links_need_measured_blocks():
    model, job = facts.model(), facts.job()
    computed = catalogue_profile(model, job, facts.cluster())
    with pytest.raises(UserError, match="measured blocks"):
        on_hosts(computed, links())
