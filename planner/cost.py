"""The cost model that a profile calls for: from its constants, or from its measured entries."""

from planner.analytic import AnalyticCosts
from planner.measured import MeasuredCosts
from planner.prepared import Costs, Prepared
from profiler.job import JobSpec
from profiler.model import ModelSpec
from profiler.profile import Profile

__all__ = ["CostModel", "Costs", "Prepared", "cost_model"]


def cost_model(model: ModelSpec, job: JobSpec, profile: Profile) -> Costs:
    """Costs of layouts of `model` and `job` on the profile's cluster."""
    if profile.is_analytic:
        return AnalyticCosts(model, job, profile)
    return MeasuredCosts(model, job, profile)


CostModel = cost_model
