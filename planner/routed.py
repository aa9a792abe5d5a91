"""What recorded routing leaves to the fullest rank of each degree of expert parallelism.

    load(ep, etp)     choices at the fullest rank over the mean rank's, mean over layers: all ranks
                      wait for it at the exchange of every layer
                      Over unlike nodes: what takes this kind as long as the slowest
    own(ep, etp)      what it computes, over what it receives: not 1 over unlike nodes alone
    kept(ep, etp)     the same of the rank with most over all layers: what it keeps of its tokens
                      adds up
    copies(ep, etp)   slots over experts, above 1 with replicas
    shared(ep, etp)   experts of a layer that several ranks hold, over all experts

An ep that is not in the table, and ep 1, is level: a rank then works on its own tokens. An etp that
is not, is taken to be as the least of the ep's that is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from planner.layouts import Ints
from planner.timing.quantities import Num
from profiler.codec import replace
from profiler.profile import ExpertLoad

_LEVEL = (1.0, 1.0, 1.0, 0.0, 1.0)


@dataclass(frozen=True)
class Routed:
    """Lookup by ep and etp, for arrays of layouts; 1.0 throughout where nothing was recorded."""

    num_experts: int = 0
    loads: Sequence[ExpertLoad] = ()
    _table: "np.ndarray[tuple[int, int, int], np.dtype[np.float64]]" = field(
        init=False, repr=False, compare=False
    )
    """[quantities, ep, etp]; what is past its end is as row 1 of ep, and as column 0 of etp."""

    def __post_init__(self) -> None:
        known = sorted((each for each in self.loads if each.ep > 1), key=lambda x: (x.ep, -x.etp))
        widest = max((each.etp for each in known), default=0)
        most = max((each.ep for each in known), default=1)
        table = np.empty((len(_LEVEL), most + 1, widest + 1))
        table[:] = np.array(_LEVEL)[:, None, None]
        # The least etp comes last, and is what the others are of which nothing is known.
        for each in known:
            table[:, each.ep] = np.array(self._quantities(each))[:, None]
        for each in known:
            table[:, each.ep, each.etp] = self._quantities(each)
        object.__setattr__(self, "_table", table)

    def _quantities(self, each: ExpertLoad) -> tuple[float, ...]:
        copies = each.slots_per_rank * each.ep / self.num_experts
        shared = each.replicated / self.num_experts
        sent = each.group_sent[0] if each.group_sent else each.imbalance
        own = each.group_computed[0] / sent if each.group_computed else 1.0
        return sent, each.held_imbalance, copies, shared, own

    def load(self, ep: Ints, etp: Ints) -> Num:
        """Of the fullest rank, [n]."""
        return self._of(0, ep, etp)

    def kept(self, ep: Ints, etp: Ints) -> Num:
        """Of the rank with most over all layers, [n]."""
        return self._of(1, ep, etp)

    def copies(self, ep: Ints, etp: Ints) -> Num:
        """Slots over experts, [n]."""
        return self._of(2, ep, etp)

    def shared(self, ep: Ints, etp: Ints) -> Num:
        """Experts with several holders over all, [n]."""
        return self._of(3, ep, etp)

    def own(self, ep: Ints, etp: Ints) -> Num:
        """Computed over received, [n]."""
        return self._of(4, ep, etp)

    def quantities(self, ep: Ints, etp: Ints) -> dict[str, Num]:
        """Those of the time model (`planner.timing.quantities.Split`), by name."""
        return {
            "load": self.load(ep, etp),
            "expert_copies": self.copies(ep, etp),
            "shared_experts": self.shared(ep, etp),
            "own_load": self.own(ep, etp),
        }

    def _of(self, column: int, ep: Ints, etp: Ints) -> Num:
        values = self._table[column]
        if not self.loads:
            return float(values[1, 0])
        row = np.where(ep < values.shape[0], ep, 1)
        return np.asarray(values[row, np.where(etp < values.shape[1], etp, 0)])


def fullest_of(loads: Iterable[ExpertLoad]) -> tuple[ExpertLoad, ...]:
    """Of the loads of several node groups the largest, by ep and etp."""
    found: dict[tuple[int, int], ExpertLoad] = {}
    for each in loads:
        known = found.setdefault((each.ep, each.etp), each)
        found[each.ep, each.etp] = replace(
            known,
            imbalance=max(known.imbalance, each.imbalance),
            held_imbalance=max(known.held_imbalance, each.held_imbalance),
            replicated=max(known.replicated, each.replicated),
        )
    return tuple(found.values())


EVEN = Routed()
