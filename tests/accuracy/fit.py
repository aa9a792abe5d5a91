"""Fit the constants of the time model to published runs.

    python -m tests.accuracy.fit RUNS.csv                  write profiler/catalog/constants.yaml
    python -m tests.accuracy.fit RUNS.csv --out FIT.json   and leave-one-out results for the page

The method stands in `tests.accuracy.problem`, what was known before in `fit_spec`. Only trusted
rows take part. Ranges are +-1.96 standard deviations of the Gauss-Newton approximation.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from launch.artifact import write_atomic
from launch.cli.terminal import Progress, note
from launch.published.runs import PublishedRun, read_runs
from profiler.codec import encode
from tests.accuracy.fit_spec import SPECS
from tests.accuracy.leave_out import Fitted, constants_table, leave_out, posterior
from tests.accuracy.problem import Problem, fit
from tests.accuracy.published_page import Fit

CONSTANTS = Path(__file__).parents[2] / "profiler" / "catalog" / "constants.yaml"
HEADER = """\
# Constants of the time model, written by tests/accuracy/fit.py: do not edit.
# Meaning and method: planner/timing, tests/accuracy/fit_spec.py, docs/accuracy-published.md
"""


def trusted_runs(path: Path) -> list[PublishedRun]:
    """Rows of the table that are trusted and have a time."""
    runs = read_runs(path)[0]
    return [r for r in runs if r.step_s and r.cells.get("trusted", "Y").upper() == "Y"]


def constants_yaml(whole: Fitted) -> str:
    """The catalogue's file."""
    constants: dict[str, Any] = {}
    for spec in SPECS:
        entry: dict[str, Any] = {"meaning": spec.meaning, "unit": spec.unit, "by": spec.by}
        entry["all"] = _range(*posterior(whole, spec, ""))
        if spec.by != "all":
            members = sorted(map(str, set(whole.problem.members[spec.by])))
            entry["of"] = {m: _range(*posterior(whole, spec, m)) for m in members}
        constants[spec.name] = entry
    document = {"fitted_from": _origin(whole.problem), "constants": constants}
    return HEADER + yaml.safe_dump(document, sort_keys=False, width=100)


def _origin(problem: Problem) -> str:
    sources = sorted({r.cells["source"] for r in problem.runs})
    return f"{len(problem.runs)} published runs of {len(sources)} sources"


def _range(log_value: float, spread: float) -> dict[str, float]:
    low, high = log_value - 1.96 * spread, log_value + 1.96 * spread
    value, lower, upper = (float(f"{np.exp(x):.4g}") for x in (log_value, low, high))
    return {"value": value, "low": lower, "high": upper}


def fit_runs(path: Path) -> Fitted:
    """All trusted runs of a table, fitted."""
    problem = Problem(trusted_runs(path))
    theta, covariance = fit(problem)
    return Fitted(problem=problem, theta=theta, covariance=covariance)


def main() -> None:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, help="leave each source and model out, write this JSON")
    parser.add_argument("--constants", type=Path, default=CONSTANTS, help="the catalogue's file")
    args = parser.parse_args()
    note(f"fitting {args.runs}, about 1 min")
    whole = fit_runs(args.runs)
    write_atomic(args.constants, constants_yaml(whole))
    error = np.abs(np.expm1(whole.problem.log_ratio(whole.theta)))
    print(f"{len(error)} runs: median {np.median(error):.1%}, p90 {np.quantile(error, 0.9):.1%}")
    if args.out:
        progress = Progress()
        source, model = leave_out(whole, progress)
        progress.close()
        table = constants_table(whole, SPECS)
        found = Fit(constants=table, leave_one_source_out=source, leave_one_model_out=model)
        write_atomic(args.out, encode(found))
        for name, out in (("source", source), ("model", model)):
            pooled = out.pooled
            print(f"a {name} left out: median {pooled.median_ape:.1%}, p90 {pooled.p90_ape:.1%}")


if __name__ == "__main__":
    main()
