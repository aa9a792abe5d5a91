"""What every solver returns: a status, a solution only where there is one, and how good it is known
to be.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Status = Literal["OPTIMAL", "FEASIBLE", "INFEASIBLE", "UNKNOWN"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveResult(Generic[T]):
    """`value` is None unless a solution exists; `bound` is a proven limit of the objective."""

    status: Status
    value: T | None = None
    objective: float | None = None
    bound: float | None = None
    method: str = ""
    """Which of several algorithms found it; empty: there is one."""

    @property
    def gap(self) -> float | None:
        """(objective - bound) / objective of a minimisation; None where either is unknown."""
        if self.objective is None or self.bound is None:
            return None
        return (self.objective - self.bound) / self.objective if self.objective else 0.0
