"""The page of the lab benchmark, from rows made by hand."""

import pytest

from tests.lab.bench_page import gather, judge, misses, page


def row(layout, order, predicted, *steps):
    parts = {name: [predicted / 4, steps[0] / 4] for name in ("compute_s", "p2p_s")}
    return {
        "layout": layout, "order": order, "nic": "eth0", "predicted": predicted,
        "steps": list(steps), "parts": parts, "ranks": [], "stages": [],
    }  # fmt: skip


ROWS = [
    row("a", "default", 4.0, 4.0, 4.2), row("a", "map", 1.0, 1.0, 1.1),
    row("b", "default", 2.0, 2.2, 2.2), row("b", "map", 1.5, 1.0, 1.0),
    row("a", "default", 4.0, 4.1, 4.1), row("a", "map", 1.0, 1.2, 1.1),
    row("b", "default", 2.0, 2.2, 2.2), row("b", "map", 1.5, 0.9, 0.9),
]  # fmt: skip


def test_medians_and_noise_over_rounds():
    found = gather(ROWS)
    a = found["a", "map"]
    assert a.measured == pytest.approx(1.1)
    assert a.noise == pytest.approx((1.15 - 1.05) / 1.1)
    assert a.error == pytest.approx(1.0 / 1.1 - 1)


def test_the_verdict_compares_the_pick_with_the_best():
    verdict = judge(gather(ROWS))
    assert (verdict.pick.layout, verdict.pick.order) == ("a", "map")
    assert (verdict.best.layout, verdict.best.order) == ("b", "map")
    assert verdict.default.measured == pytest.approx(4.1)
    before, after = verdict.gain
    assert before.measured / after.measured == pytest.approx(4.1 / 1.1)
    missed = misses({"x": verdict})
    assert missed == ["- x: the pick is 15.8% over the best, noise 10.5%"]
    slow = [r | {"predicted": 2 * r["predicted"]} for r in ROWS]
    assert any("the median error is" in line for line in misses({"x": judge(gather(slow))}))


def test_the_page_has_every_layout():
    text = page({"x": ROWS}, "intro", "notes")
    assert text.count("\n| a |") == text.count("\n| b |") == 1
    assert "| x | a | 1.100 s | 0.950 s (b, map) | +15.8% |" in text
