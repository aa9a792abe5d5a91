"""The page of published runs says what the score says."""

from dataclasses import replace

import pytest

from launch.published.cells import brief
from planner.figures import step_time
from planner.scoring import score
from profiler.codec import decode, encode
from tests.accuracy.published_page import (
    NO_FIT,
    Constant,
    Fit,
    HeldOut,
    Target,
    page,
    reached,
    table,
    targets_section,
    with_range,
)
from tests.unit.scored_rows import failed_row, left_out, row


@pytest.fixture
def result():
    rows = [
        row(f"r{n}", 1.0 + n / 10, 1.0, num_gpus=8, predicted_peak_gib=9.0, measured_peak_gib=10.0,
            parts={"matrix": 1.0, "tp": 0.5}) for n in range(6)
    ]  # fmt: skip
    rows.append(row("u", 5.0, 1.0, trusted=False))
    rows.append(failed_row("f", fits=True))
    return score(rows, [left_out("x", "odd: 3"), left_out("y", "odd: 4")], resamples=20)


def test_page_has_every_section_and_number(result):
    fit = Fit(
        constants=(
            Constant(name="k", value=0.5, low=0.4, high=0.6, meaning="of peak", against_prior=0.5),
            Constant(name="k[a]", value=0.5, low=0.4, high=0.6, meaning="", against_prior=0.96),
        ),
        leave_one_source_out=held_out(result, "lab, page 3"),
    )
    targets = (
        Target(what="median error", figure="step_time.median_ape", bar=0.1),
        Target(what="left out", figure="pooled.median_ape", of="source left out", bar=0.1),
        Target(what="worst", figure="worst_source", of="source left out", bar=0.3),
        Target(what="unknown", figure="worst_source", of="model left out", bar=0.3),
        Target(what="predicted", figure="modelled_share", bar=0.97, better="higher"),
    )
    text = page(result, fit, targets, picture="p.png", notes="## Why\n\nBecause.")
    for part in (
        "![Predicted against measured step time and peak memory](p.png)",
        "| median error | at most 10.0 % | 25.0 % (",
        "| predicted | at least 97.0 % | 100.0 % | yes |",
        "| lab | 6 | 25.0 % (",
        "| (not trusted, in no other figure) | 1 | 400.0 % |",
        "| left out | at most 10.0 % | 12.3 % (",
        "| worst | at most 30.0 % | 25.0 % | yes |",
        "| unknown | at most 30.0 % | - | **no** |",
        "| all together | 6 | 12.3 %",
        "| lab | 6 | 25.0 % (",
        "## Leave one model out\n\nNot computed.",
        "| all | 6 | 10.0 %",
        "failed but are said to fit: 1 of 1 (100.0 %)",
        "## The 6 rows furthest off",
        "| +50.0 % | matrix 67% |",
        "| odd | 2 | x, y |",
        "| `k` | 0.5 | 0.4 to 0.6 | 50% | of peak |",
        "| `k[a]` | 0.5 | 0.4 to 0.6 | **prior alone** |  |",
        "1 of 2 are the prior alone",
        "## Why\n\nBecause.",
        "## Definitions",
    ):
        assert part in text, part
    assert "**no**" in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def held_out(result, name):
    step = result.step_time
    return HeldOut(
        pooled=replace(step, median_ape=0.123), of={name: step}, per_source={"lab": step}
    )


def test_models_left_out_are_shown_by_source_too(result):
    fit = Fit(leave_one_model_out=held_out(result, "m"))
    text = page(result, fit, (), picture="p.png")
    assert "| m | 6 | 25.0 % (" in text
    assert "The same predictions by source:\n\n| source |" in text
    assert HeldOut(pooled=result.step_time, of={}, per_source={}).worst_source is None


def test_names_of_sources_are_cut_at_their_details():
    assert brief("arXiv:1 (K. et al.), full text; Table 5") == "arXiv:1 (K. et al.)"
    assert brief("Lab release (measured side)") == "Lab release"
    assert brief("plain/name") == "plain/name"
    assert brief("x" * 61) == "x" * 58 + ".."


def test_page_without_a_fit_says_so(result):
    text = page(result, NO_FIT, (), picture="p.png")
    assert "## Targets" not in text
    assert text.count("Not computed.") == 2
    assert "None: all numbers are of the catalogue." in text


def test_page_of_nothing_is_a_page():
    assert "| (not" not in page(score([], []), NO_FIT, (), picture="p.png")


def test_target_of_a_source(result):
    here = Target(what="w", figure="step_time.rows", bar=5, source="lab", better="higher")
    gone = Target(what="w", figure="step_time.median_ape", bar=5, source="elsewhere")
    assert reached(result, NO_FIT, here) == (6, None)
    assert reached(result, NO_FIT, gone) == (None, None)
    assert "| w, elsewhere | at most 500.0 % | - | **no** |" in targets_section(
        result, NO_FIT, [gone]
    )


def test_fit_is_read_back(result):
    fit = Fit(leave_one_source_out=held_out(result, "lab"))
    assert decode(Fit, encode(fit), "fit.json") == fit
    assert step_time([], 0, 0).median_ape is None


def test_cells():
    assert with_range(0.1234, (0.1, 0.2)) == "12.3 % (10.0 to 20.0)"
    assert with_range(0.1, (-0.1, 0.2), unit="+%") == "+10.0 % (-10.0 to +20.0)"
    assert with_range(0.9, (0.8, 1.0), unit="") == "0.900 (0.800 to 1.000)"
    assert with_range(None, None) == "-"
    assert table(("a", "b"), [("x|y", "1")]) == "| a | b |\n|---|---:|\n| x\\|y | 1 |"
