"""What no placement can go below, per layer: load from packing arguments, traffic from room.

Load of the fullest rank, the largest of
    mean            the load over the ranks;
    over replicas   least L with  sum over experts of ceil(load / L)  <=  slots: an expert in c
                    slots leaves load / c on one of them however it is split;
    pigeonhole      (as many slots as experts) of the ranks * j + 1 hottest some rank holds j + 1,
                    so at least the j + 1 coldest of these, and its other slots the coldest of all.
Unlike ranks: the mean is over their speeds, 1 / slowdown; a load that some rank has counts as the
least slowdown; and (as many slots as experts) of the i hottest experts one is in a slot no faster
than the i-th fastest: load of the i-th hottest * slowdown of the i-th fastest slot.
Traffic "home": the busiest node and rank are visited by as many tokens as `visits` says at least;
with copies "choice" a rank's copies are its load. Of unlike links: all copies, spread so that all
links take equally long.
Traffic "chained": copies from an expert that stay are at most those to the m experts that it sends
most to; likewise from behind. What does not stay goes between ranks, all of them equally at best.
Over measured links: 0. All this is loose where routing scatters. Where copies are of choices and
ranks or links unlike, load and traffic together (`joint_bound`).
"""

from dataclasses import replace

import numpy as np

from solvers.experts.joint_bound import joint_bound
from solvers.experts.problem import Floats, Problem
from solvers.experts.score import pairs, scales
from solvers.experts.traffic import home_s
from solvers.experts.visits import chosen_of, least_busiest, mean_visits


def load_bound(problem: Problem) -> Floats:
    """[layers]: least possible load of the fullest rank, by its slowdown."""
    fastest = problem.slow.min()
    bound = problem.counts.sum(axis=1) / (1 / problem.slow).sum()
    bound = np.maximum(bound, _over_replicas(problem) * fastest)
    if problem.num_slots == problem.num_experts:
        bound = np.maximum(bound, _pigeonhole(problem) * fastest)
        slow = np.sort(problem.slow[problem.rank_of_slot])
        bound = np.maximum(bound, (-np.sort(-problem.counts, axis=1) * slow).max(axis=1))
    return np.asarray(bound)


def time_bound(problem: Problem) -> float:
    """Seconds below which no placement of all layers goes."""
    traffic_s = np.zeros(problem.num_layers)
    if len(problem.ids) and not problem.measured:
        if problem.traffic == "home":
            traffic_s = _home_bound(problem)
        else:
            traffic_s[:-1] = link_bounds(problem, "time")
    apart = problem.compute_s * load_bound(problem) + traffic_s
    return float(np.maximum(apart, joint_bound(problem)).sum())


def hops_bound(problem: Problem) -> float:
    """Hops below which no placement goes; with replicas or without tokens 0."""
    if problem.num_slots > problem.num_experts or not len(problem.ids):
        return 0.0
    return float(link_bounds(problem, "hops").sum())


def link_bounds(problem: Problem, objective: str) -> Floats:
    """[layers - 1]: hops or seconds between layers that no chained placement goes below."""
    none = np.zeros(problem.num_layers - 1)
    if problem.num_slots > problem.num_experts or not len(problem.ids) or objective == "load":
        return none
    if objective == "hops":
        return np.asarray(sum(_moving(problem)))
    return none if problem.measured else _chained_bound(problem)


def _home_bound(problem: Problem) -> Floats:
    """[layers]: seconds of the busiest node's and rank's fewest copies."""
    unlike = np.ptp(problem.inside_s) > 0 or np.ptp(problem.between_s) > 0
    if unlike:
        near_s, far_s = _level_s(problem.inside_s), _level_s(problem.between_s)
        problem = replace(problem, near_s=near_s, far_s=far_s)
    fewest = mean_visits if unlike else least_busiest
    room, ranks, nodes = problem.slots_per_rank, problem.num_ranks, problem.num_nodes
    busiest = np.zeros((problem.num_layers, 2))
    load, scale = problem.counts.sum(axis=1) / ranks, scales(problem)
    if not unlike:  # else the busiest may have the fastest link
        load = load_bound(replace(problem, slowdown=None))
    # Inside a node links are fast: there the ranks' copies seldom count.
    crossing = problem.copies == "node" and nodes > 1
    for layer in range(problem.num_layers):
        if problem.copies == "choice":
            busiest[layer, 1] = load[layer]
            continue
        chosen = chosen_of(problem, layer)
        if crossing:
            of_node = fewest(chosen, nodes, room * problem.ranks_per_node, spectral=True)
            busiest[layer, 0] = scale[layer] * of_node
        of_rank = fewest(chosen, ranks, room, spectral=not crossing)
        busiest[layer, 1] = scale[layer] * of_rank
    return home_s(problem, np.repeat(busiest[:, :1], nodes, 1), np.repeat(busiest[:, 1:], ranks, 1))


def _level_s(each_s: Floats) -> Floats:
    """[nodes]: of like links that take as long for copies spread evenly as unlike ones [nodes] do
    for copies spread so that all take equally long."""
    even_s = 1 / np.mean(1 / each_s) if each_s.all() else 0.0
    return np.full(len(each_s), even_s) if np.ptp(each_s) > 0 else each_s


def _chained_bound(problem: Problem) -> Floats:
    """[layers - 1]: seconds of the fewest copies that change rank or node, spread evenly."""
    moving, crossing = _moving(problem)
    ranks, per = problem.num_ranks, problem.ranks_per_node
    if ranks == 1:
        return 0 * moving
    near = problem.inside_s.min() / (ranks * (per - 1)) if per > 1 else np.inf
    far = problem.between_s.min() / ranks if problem.num_nodes > 1 else np.inf
    if np.isinf(near) or np.isinf(far):
        return np.asarray(moving * min(near, far))
    # All that moves goes either way at best so that both take equally long.
    both = moving * (near * far / (near + far) if near + far else 0.0)
    return np.asarray(np.maximum(both, crossing * far))


def _moving(problem: Problem) -> tuple[Floats, Floats]:
    """([layers - 1] copies that change rank, [layers - 1] that change node), at least."""
    flows = pairs(problem)
    found = []
    for room in (problem.slots_per_rank, problem.slots_per_rank * problem.ranks_per_node):
        stay = [
            np.sort(flows, axis=axis).take(range(-room, 0), axis=axis).sum(axis=(1, 2))
            for axis in (1, 2)
        ]
        found.append(np.maximum(0, flows.sum(axis=(1, 2)) - np.minimum(*stay)))
    return found[0], found[1]


def _over_replicas(problem: Problem) -> Floats:
    """[layers]: least L with sum of ceil(load / L) <= slots."""
    spare = problem.num_slots - problem.num_experts
    # The least L is some load / c: as EPLB's rule finds it, giving each slot to the largest.
    times = np.ones_like(problem.counts)
    layer = np.arange(problem.num_layers)
    for _ in range(spare):
        times[layer, (problem.counts / times).argmax(axis=1)] += 1
    return np.asarray((problem.counts / times).max(axis=1))


def _pigeonhole(problem: Problem) -> Floats:
    """[layers]: see the module's text."""
    down = -np.sort(-problem.counts, axis=1)
    room, ranks = problem.slots_per_rank, problem.num_ranks
    best = np.zeros(problem.num_layers)
    for j in range(room):
        hot = down[:, ranks * j - j : ranks * j + 1] if j else down[:, :1]
        cold = down[:, problem.num_experts - (room - 1 - j) :] if j < room - 1 else down[:, :0]
        best = np.maximum(best, hot.sum(axis=1) + cold.sum(axis=1))
    return best
