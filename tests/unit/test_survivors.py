"""Which nodes are still there, and when measurements still speak of them."""

import pytest

from planner.survivors import measured_for, survivors, without
from profiler.catalog import resolve_cluster
from profiler.cluster import ClusterSpec
from profiler.codec import replace
from profiler.errors import UserError

from . import facts

FOUR = facts.cluster(4, 2)


def mixed(*sizes: int) -> ClusterSpec:
    """Groups of two kinds of node in turn."""
    other = replace(FOUR.groups[0], device=facts.device(name="other"), devices_per_node=4)
    kinds = (FOUR.groups[0], other)
    groups = tuple(replace(kinds[i % 2], num_nodes=n) for i, n in enumerate(sizes) if n)
    return ClusterSpec(name="mixed", groups=groups)


@pytest.mark.parametrize(
    ("now", "lost", "nodes", "gone"),
    [
        (4, (), (0, 1, 2, 3), ()),
        (4, (1,), (0, None, 2, 3), (1,)),  # replaced in its place
        (3, (1,), (0, 2, 3), (1,)),
        (3, (1, 2), (0, 3, None), (1, 2)),
        (3, (), (0, 1, 2), (3,)),  # nobody says which
        (2, (0,), (1, 2), (0, 3)),
        (6, (2,), (0, 1, None, 3, None, None), (2,)),
    ],
)
def test_nodes_keep_their_order_and_their_places_where_they_can(now, lost, nodes, gone):
    found = survivors(FOUR, facts.cluster(now, 2), lost)
    assert (found.nodes, found.lost) == (nodes, gone)
    assert found.devices == {
        2 * old + k: 2 * new + k for new, old in enumerate(nodes) if old is not None for k in (0, 1)
    }


def test_kinds_of_nodes_are_told_apart():
    found = survivors(mixed(2, 2), mixed(2, 1), (2,))
    assert (found.nodes, found.lost) == ((0, 1, 3), (2,))
    assert found.devices == {0: 0, 1: 1, 2: 2, 3: 3, 8: 4, 9: 5, 10: 6, 11: 7}
    other = facts.cluster(4, 2, device=facts.device(name="another"))
    assert survivors(FOUR, other, ()).devices == {}


def test_a_cluster_without_some_nodes():
    assert without(mixed(2, 1, 2), (1, 2)) == mixed(1, 0, 2)
    assert without(resolve_cluster("h100-4x8"), (0,)) == resolve_cluster("h100-3x8")
    with pytest.raises(UserError, match="nodes 0 to 3"):
        without(FOUR, (4,))
    with pytest.raises(UserError, match="no node is left") as caught:
        without(FOUR, (0, 1, 2, 3))
    assert caught.value.kind == "infeasible"


def test_measurements_hold_for_another_number_of_the_same_nodes():
    profile = facts.profile(4, 2)
    fewer = measured_for(profile, facts.cluster(3, 2))
    assert fewer.cluster == facts.cluster(3, 2)
    assert replace(fewer, cluster=profile.cluster) == profile
    for other in (facts.cluster(3, 4), facts.cluster(3, 2, device=facts.device(name="another"))):
        with pytest.raises(UserError, match="was measured on nodes of 2 x toy") as caught:
            measured_for(profile, other)
        assert caught.value.kind == "stale"
