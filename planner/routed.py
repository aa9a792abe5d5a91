"""What recorded routing leaves to the fullest rank of each degree of expert parallelism.

    load(ep)     choices at the fullest rank over the mean rank's, mean over layers: all ranks wait
                 for it at the exchange of every layer
    kept(ep)     the same of the rank with most over all layers: what it keeps of its tokens adds up
    copies(ep)   slots over experts, above 1 with replicas
    shared(ep)   experts of a layer that several ranks hold, over all experts

A degree that is not in the table, and ep 1, is level: a rank then works on its own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.layouts import Ints
from planner.timing.quantities import Num
from profiler.profile import ExpertLoad


@dataclass(frozen=True)
class Routed:
    """Lookup by ep, for arrays of layouts; 1.0 throughout where nothing was recorded."""

    num_experts: int = 0
    loads: Sequence[ExpertLoad] = ()
    _columns: tuple["np.ndarray[tuple[int], np.dtype[np.float64]]", ...] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        most = max((each.ep for each in self.loads), default=1)
        columns = np.ones((4, most + 1))
        columns[3] = 0.0
        for each in self.loads:
            if each.ep > 1:
                copies = each.slots_per_rank * each.ep / self.num_experts
                shared = each.replicated / self.num_experts
                columns[:, each.ep] = each.imbalance, each.held_imbalance, copies, shared
        object.__setattr__(self, "_columns", tuple(columns))

    def load(self, ep: Ints) -> Num:
        """Of the fullest rank, [n]."""
        return self._of(0, ep)

    def kept(self, ep: Ints) -> Num:
        """Of the rank with most over all layers, [n]."""
        return self._of(1, ep)

    def copies(self, ep: Ints) -> Num:
        """Slots over experts, [n]."""
        return self._of(2, ep)

    def shared(self, ep: Ints) -> Num:
        """Experts with several holders over all, [n]."""
        return self._of(3, ep)

    def _of(self, column: int, ep: Ints) -> Num:
        values = self._columns[column]
        if not self.loads:
            return float(values[1])
        return np.where(ep < len(values), values[np.minimum(ep, len(values) - 1)], values[1])


EVEN = Routed()
