"""Which experts the tokens went to, as it was recorded: the fact that expert placement rests on.

    ids[t, l, k]    expert of the k-th choice of token t in MoE layer l (layers counted from 0,
                    dense ones left out); `DROPPED` where capacity dropped the choice
    counts[w, l, e] choices of expert e in layer l in window w of the recording

A recording of single tokens says which experts a token visits together and one after the other;
counts (all that some systems keep) say the load alone. Both are judged on tokens that a placement
has not seen: `parted` keeps the last ones for that, so that drift counts too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int16]
Counts = NDArray[np.int64]
DROPPED = -1
HELD_OUT = 0.25
"""Share of the tokens that a placement is judged on and not made from, unless asked otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTrace:
    """Choices of single tokens, in the order in which they were routed."""

    ids: Ids
    """[tokens, layers, k]."""
    num_experts: int
    model: str = ""
    """Name of the model that routed; empty: not known."""
    step: NDArray[np.int64] | None = None
    """[tokens]: training step (or window) in which each was routed, never falling; None: not
    known."""

    @property
    def num_tokens(self) -> int:
        """Tokens recorded."""
        return int(self.ids.shape[0])

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self.ids.shape[1])

    def counts(self) -> Counts:
        """[layers, experts]: choices of each expert."""
        found = np.zeros((self.num_layers, self.num_experts), np.int64)
        for layer in range(self.num_layers):
            chosen = self.ids[:, layer].ravel()
            found[layer] = np.bincount(chosen[chosen != DROPPED], minlength=self.num_experts)
        return found

    def parted(self, held_out: float = HELD_OUT) -> tuple["RoutingTrace", "RoutingTrace"]:
        """The first tokens, and the last `held_out` share of them."""
        cut = self.num_tokens - round(self.num_tokens * held_out)
        return self._of(slice(None, cut)), self._of(slice(cut, None))

    def windows(self, number: int) -> Counts:
        """[windows, layers, experts]: choices in consecutive stretches of as many tokens each, but
        for one; at most one stretch per token."""
        parts = np.array_split(np.arange(self.num_tokens), min(number, self.num_tokens))
        return np.stack([self._of(slice(own[0], own[-1] + 1)).counts() for own in parts])

    def since(self, step: int) -> "RoutingTrace":
        """The tokens of `step` and later ones; all, where steps are not known."""
        first = 0 if self.step is None else int(np.searchsorted(self.step, step))
        return self._of(slice(first, None))

    def _of(self, part: slice) -> "RoutingTrace":
        step = None if self.step is None else self.step[part]
        return RoutingTrace(
            ids=self.ids[part], num_experts=self.num_experts, model=self.model, step=step
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingCounts:
    """Choices of each expert, all that some systems keep."""

    windows: Counts
    """[windows, layers, experts], in the order of time."""
    model: str = ""

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return int(self.windows.shape[2])

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return int(self.windows.shape[1])

    def counts(self) -> Counts:
        """[layers, experts]: of all windows together."""
        total: Counts = self.windows.sum(axis=0)
        return total


Routing = RoutingTrace | RoutingCounts
