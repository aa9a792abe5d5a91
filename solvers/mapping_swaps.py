"""What many swaps of two blocks would give, from the flows that they touch alone.

The cost of a place is a sum over phases of the largest row (`solvers.mapping_problem`). A swap
changes the rows of the flows of its two blocks; of the others the largest is the first of the
phase's rows, in descending order, that it does not change. So a swap costs what its blocks have of
flows, whatever the number of nodes.
"""

import numpy as np

from solvers.mapping_problem import LEAD, Floats, Ints, Problem


class Swaps:
    """Swaps from one place at a time; `move` to another."""

    def __init__(self, problem: Problem) -> None:
        flows = problem.flows
        self._problem, self._num = problem, len(flows.source)
        self._touching = _incidence(flows.source, flows.target, problem.num_nodes)
        self._phase = flows.phase
        # One more flow, which pads the lists: it has no cost.
        self._source = np.append(flows.source, -1)
        self._target = np.append(flows.target, -1)
        self._row = np.append(flows.row, 0)
        self._first = problem.first_of_phases
        self._sizes = np.diff(np.append(self._first, len(flows.phase)))

    def move(self, place: Ints) -> None:
        """Swaps are from `place` [nodes] now."""
        self._place = place
        self._cost = np.append(self._problem.flow_s(place[None])[0], 0.0)
        self._rows = self._problem.rows(place[None])[0]
        self._by_phase = np.split(self._rows, self._first[1:])
        self._order = [
            start + np.argsort(-rows, kind="stable")
            for start, rows in zip(self._first, self._by_phase, strict=True)
        ]
        self._sums = np.array([rows.sum() for rows in self._by_phase])

    def seconds(self, pairs: Ints) -> tuple[Floats, Floats]:
        """(T, T with what leads the search) after each swap of two blocks, [k] each."""
        problem, num = self._problem, len(pairs)
        problem.evaluated += num
        a, b = pairs[:, :1], pairs[:, 1:]
        of_a, of_b = self._touching[pairs[:, 0]], self._touching[pairs[:, 1]]
        # Flows between the two are in both lists.
        both = (self._source[of_b] == a) | (self._target[of_b] == a)
        touched = np.concatenate([of_a, np.where(both, self._num, of_b)], axis=1)
        seconds = self._after(touched, a, b)
        delta = seconds - self._cost[touched]
        num_rows = len(self._rows)
        key = np.arange(num)[:, None] * num_rows + self._row[touched]
        used = touched < self._num
        keys, inverse = np.unique(key[used], return_inverse=True)
        added = np.bincount(inverse.reshape(-1), weights=delta[used], minlength=len(keys))
        which, row = keys // num_rows, keys % num_rows
        now = self._rows[row] + added
        slot = which * len(self._first) + self._phase[row]
        size = num * len(self._first)
        worst = self._untouched(keys, num).reshape(-1)
        np.maximum.at(worst, slot, now)
        mean = np.bincount(slot, weights=added, minlength=size).reshape(num, -1)
        mean = (mean + self._sums) / self._sizes
        total = worst.reshape(num, -1).sum(axis=1)
        return total, total + LEAD * mean.sum(axis=1)

    def _after(self, touched: Ints, a: Ints, b: Ints) -> Floats:
        """Seconds of flows once a and b have changed places."""
        padded = np.append(self._place, 0)

        def node(block: Ints) -> Ints:
            swapped = np.where(block == a, b, np.where(block == b, a, block))
            return np.asarray(padded[swapped])

        flow = np.minimum(touched, self._num - 1)
        seconds = self._problem.seconds_of(
            flow, node(self._source[touched]), node(self._target[touched])
        )
        return np.where(touched < self._num, seconds, 0.0)

    def _untouched(self, keys: Ints, num: int) -> Floats:
        """Largest row of each phase that a swap leaves alone, [swaps, phases]; 0 if none."""
        num_rows, found = len(self._rows), np.zeros((num, len(self._first)))
        for phase, order in enumerate(self._order):
            open_ = np.arange(num)
            for row in order:
                wanted = open_ * num_rows + row
                at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
                hit = keys[at] == wanted if len(keys) else np.zeros(len(open_), dtype=np.bool_)
                found[open_[~hit], phase] = self._rows[row]
                open_ = open_[hit]
                if not len(open_):
                    break
        return found


def _incidence(source: Ints, target: Ints, num_blocks: int) -> Ints:
    """Flows of each block, [blocks, most], padded with the number of flows."""
    num = len(source)
    apart = source != target
    block = np.concatenate([source, target[apart]])
    flow = np.concatenate([np.arange(num), np.flatnonzero(apart)])
    order = np.argsort(block, kind="stable")
    block, flow = block[order], flow[order]
    counts = np.bincount(block, minlength=num_blocks)
    table = np.full((num_blocks, int(counts.max(initial=0))), num)
    table[block, np.arange(len(block)) - np.repeat(np.cumsum(counts) - counts, counts)] = flow
    return table
