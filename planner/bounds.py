"""Lower bounds of a step, for pruning and as a statement of how good a layout can be.

With m micro-batches and, per stage, forward F, backward B and tail T (gradient reduction +
optimizer):

    step >= sum_{i<s} (F_i + send) + m (F_s + B_s) + max(T_s, sum_{i<s} (B_i + send) + T_0)   for
    every s

because the first input of stage s passes through all earlier stages and its last gradient goes back
through them. On a host whose ranks share cores also: all work / the most that the host does at
once.
"""

from planner.simulate import Program, Sharing, slow


def lower_bound(program: Program, sharing: Sharing | None) -> float:
    """Seconds that no schedule of these stages can beat."""
    m = program.num_microbatches
    own = [a + b for a, b in zip(program.bucket_s, program.optimizer_s, strict=True)]
    tails = [a + b for a, b in zip(own, program.sync_s, strict=True)]
    before = back = best = 0.0
    for s, (f, b) in enumerate(zip(program.forward_s, program.backward_s, strict=True)):
        if s:
            before += program.forward_s[s - 1] + program.send_forward_s[s - 1]
            back += program.backward_s[s - 1] + program.send_backward_s[s]
        best = max(best, before + m * (f + b) + max(tails[s], back + tails[0] if s else 0.0))
    if sharing is None:
        return best
    return max(best, _host_bound(program, sharing, m, own))


def _host_bound(program: Program, sharing: Sharing, m: int, own: list[float]) -> float:
    """All work of the busiest host over the most it does at once, k / slow(k) at the best k."""
    hosts = range(len(sharing.ranks_on_host[0]))
    worst = 0.0
    for h in hosts:
        ranks = [row[h] for row in sharing.ranks_on_host]
        if not sum(ranks):
            continue
        stages = zip(ranks, program.forward_s, program.backward_s, own, strict=True)
        blocks = sum(n * (m * (f + b) + o) for n, f, b, o in stages)
        sync = sum(n * y for n, y in zip(ranks, program.sync_s, strict=True))
        work = blocks / _most(sharing.slowdown, ranks) + sync / _most(sharing.sync_slowdown, ranks)
        worst = max(worst, work)
    return worst


def _most(curve: tuple[float, ...], ranks: list[int]) -> float:
    """Most ranks' work, in ranks alone, that a host does at once."""
    return max(k / slow(curve, k) for k in range(1, sum(ranks) + 1))
