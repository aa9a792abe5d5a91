"""On which nodes ranks are, and which agents start them."""

import pytest

from launch.framework.native import agents_of, nodes_of
from profiler.cluster import ClusterSpec
from profiler.codec import replace
from profiler.errors import UserError
from tests.unit import facts
from tests.unit.runs import plan_of


def agents(plan):
    return [(agent.node, agent.num_ranks) for agent in agents_of(plan)]


def test_ranks_fill_nodes_in_order():
    assert nodes_of(plan_of("cpu-2x2")) == (0, 0, 1, 1)
    assert agents(plan_of("cpu-1x8")) == [(0, 4)]
    assert agents(plan_of("cpu-4x1")) == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_devices_name_the_nodes():
    assert agents(plan_of("cpu-4x2", devices=(6, 7, 2, 3))) == [(3, 2), (1, 2)]
    assert agents(plan_of("cpu-3x2", devices=(0, 1, 2, 4))) == [(0, 2), (1, 1), (2, 1)]


def test_devices_are_of_coordinates_and_ranks_may_be_others():
    # Coordinate i is rank ranks[i], on device devices[i].
    plan = plan_of("cpu-4x1", ranks=(2, 3, 0, 1), devices=(3, 2, 1, 0))
    assert nodes_of(plan) == (1, 0, 3, 2)
    assert nodes_of(plan_of("cpu-2x2", ranks=(2, 3, 0, 1))) == (0, 0, 1, 1)


def test_nodes_are_counted_through_all_groups():
    small, large = facts.cluster(3, 2).groups[0], facts.cluster(1, 4).groups[0]
    mixed = ClusterSpec(name="mixed", groups=(small, large))
    plan = replace(plan_of(devices=(4, 5, 8, 9)), cluster=mixed)
    assert agents(plan) == [(2, 2), (3, 2)]


def test_dealt_out_ranks_have_no_agents():
    with pytest.raises(UserError, match="deals the ranks of a node out"):
        agents_of(plan_of("cpu-2x2", devices=(0, 2, 1, 3)))
