"""The fit of the constants: what it starts from, what it leaves out, what it says of ranges."""

import numpy as np
import pytest

from launch.published.runs import run_of
from planner.predict import predict_steps
from tests.accuracy.fit import constants_yaml
from tests.accuracy.fit_spec import SPECS
from tests.accuracy.leave_out import (
    Fitted,
    constants_table,
    held_out,
    leave_out,
    model_names,
    posterior,
    predicted_s,
)
from tests.accuracy.problem import Problem, fit
from tests.unit.published import PLAIN

ROWS = (
    {"source": "a", "model": "x", "step_s": "0.9"},
    {"source": "a", "model": "x", "pp": "4", "step_s": "1.1"},
    {"source": "a", "model": "y", "hidden": "2048", "step_s": "2.5"},
    {"source": "b", "model": "z", "model_key": "x", "gpu": "A100", "step_s": "2.2"},
)


@pytest.fixture(scope="module")
def whole():
    problem = Problem([run_of({**PLAIN, **given}) for given in ROWS])
    theta, covariance = fit(problem, steps=3)
    return Fitted(problem=problem, theta=theta, covariance=covariance)


def test_priors_are_what_the_fit_starts_from():
    problem = Problem([run_of({**PLAIN, "source": "a"})])
    constants = problem.constants(problem.start)
    assert constants.tree_depth[0] == pytest.approx(2.0)
    assert constants.matrix_efficiency[0] == pytest.approx(0.72)  # H100's own
    assert constants.network_efficiency[0] == pytest.approx(0.7)


def test_fitting_comes_nearer(whole):
    before, after = (
        np.sum(whole.problem.residuals(t) ** 2) for t in (whole.problem.start, whole.theta)
    )
    assert after < before


def test_a_carried_fit_keeps_what_it_knows(whole):
    less = Problem(whole.problem.runs[:3])
    carried = less.carried(whole.problem, whole.theta)
    assert len(carried) < len(whole.theta)
    at = less.index["matrix_efficiency", "h100"]
    assert carried[at] == whole.theta[whole.problem.index["matrix_efficiency", "h100"]]
    back = whole.problem.carried(less, carried)
    unseen = whole.problem.index["matrix_efficiency", "a100-80"]
    assert back[unseen] == whole.problem.start[unseen]


def test_predictions_take_a_fits_constants(whole):
    """At the catalogue's constants they are those of the command."""
    found = predicted_s(whole.problem, whole.theta, [1, 3])
    again = predicted_s(whole.problem, whole.theta, range(4))
    assert found == pytest.approx(again[[1, 3]])
    plain = [s for s, _ in predict_steps([r.run for r in whole.problem.runs])]
    assert again != pytest.approx(plain)


def test_leaving_out(whole, monkeypatch):
    monkeypatch.setattr("tests.accuracy.leave_out.STEPS", 1)
    seen = []
    source, model = leave_out(whole, lambda done, total, label: seen.append((done, total, label)))
    assert (source.pooled.rows, model.pooled.rows) == (4, 4)
    assert {name: s.rows for name, s in source.of.items()} == {"a": 3, "b": 1}
    assert {name: s.rows for name, s in model.of.items()} == {"x": 3, "y": 1}
    assert {name: s.rows for name, s in model.per_source.items()} == {"a": 3, "b": 1}
    assert seen[0] == (0, 4, "without a")
    assert seen[-1] == (4, 4, "left out")


def test_figures_of_held_out_rows(whole):
    measured = np.array([r.step_s for r in whole.problem.runs])
    found = held_out(whole, model_names(whole.problem), measured * [1.1, 1.1, 1.2, 1.1])
    assert found.of["y"].median_ape == pytest.approx(0.2)
    assert found.pooled.median_ape == pytest.approx(0.1)
    assert found.worst_source == pytest.approx(0.1)


def test_ranges_say_what_the_runs_identified(whole):
    table = {c.name: c for c in constants_table(whole, SPECS)}
    assert table["misaligned"].against_prior == pytest.approx(1.0)  # no run has such heads
    assert table["host_op_s[megatron]"].against_prior < 0.5  # small layers: the host is slower
    assert table["misaligned"].low < table["misaligned"].value < table["misaligned"].high
    # A member's own range holds that of the constant it lies around.
    spec = next(s for s in SPECS if s.name == "low_efficiency")
    assert posterior(whole, spec, "h100")[1] == pytest.approx(np.hypot(0.3, 0.18))


def test_the_file_of_constants_is_read_back(whole):
    from profiler.catalog.constants import ConstantsFile
    from profiler.codec import decode

    found = decode(ConstantsFile, constants_yaml(whole), "constants.yaml")
    assert found.fitted_from == "4 published runs of 2 sources"
    assert set(found.constants) == {s.name for s in SPECS}
    assert found.constants["matrix_efficiency"].of["h100"].value > 0
