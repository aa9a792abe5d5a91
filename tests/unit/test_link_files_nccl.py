"""nccl-tests output, and the line through its times."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.errors import UserError
from profiler.link_files import fit_line, nccl_tests_from_text, read_nccl_tests
from tests.fuzz import changed, fuzz

PATH = Path(__file__).parent / "links" / "nccl-tests.txt"
TEXT = PATH.read_text()


def refused(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        nccl_tests_from_text(text, "f")
    return caught.value


def test_two_runs_of_two_versions() -> None:
    reduced, sent = read_nccl_tests(PATH)
    assert (reduced.op, sent.op) == ("all_reduce", "sendrecv")
    assert reduced.hosts == ("node1", "node2")
    assert [(r.rank, r.group, r.host, r.device) for r in reduced.ranks] == [
        (0, 0, "node1", 0), (1, 0, "node1", 1), (2, 0, "node2", 0), (3, 0, "node2", 1)
    ]  # fmt: skip
    assert reduced.ranks[0].name == "NVIDIA H100 80GB HBM3"
    assert sent.hosts == ("gpu01", "gpu02")
    first, *_, last = reduced.rows
    assert len(reduced.rows) == 5
    assert (first.num_bytes, first.dtype, first.num_wrong) == (1024, "float", 0)
    assert first.seconds == pytest.approx(60.05e-6)
    assert first.in_place_s == pytest.approx(55.77e-6)
    assert last.bus_bytes_per_s == pytest.approx(29.97e9)
    assert [row.num_wrong for row in sent.rows] == [None, None]
    assert [row.seconds for row in sent.rows] == pytest.approx([0.202872, 0.249852])


def test_the_fit_of_a_run() -> None:
    fit = nccl_tests_from_text(TEXT, "f")[0].fit
    assert fit is not None
    assert fit.latency_s == pytest.approx(60e-6, rel=0.01)
    assert fit.bytes_per_s == pytest.approx(20e9, rel=0.01)
    assert fit.spread < 0.001
    assert fit.seconds(2 * 10**10) == pytest.approx(1.0, rel=0.01)


def test_columns_after_the_times() -> None:
    text = TEXT.replace("busbw  #wrong \n", "busbw  #wrong timestamp\n", 1)
    text = text.replace(
        "53941.1   19.91   29.86       0", "53941.1 19.91 29.86 0 2025-08-08 12:00:00"
    )
    only = [s for s in text.splitlines() if "     float     sum" not in s or "2025-08-08" in s]
    (row,) = nccl_tests_from_text("\n".join(only), "f")[0].rows
    assert row.num_bytes == 2**30
    assert row.in_place_s == pytest.approx(53941.1e-6)


def test_a_run_that_nothing_names_and_a_table_alone() -> None:
    lines = TEXT.splitlines()
    table = "\n".join(lines[13:21])
    (test,) = nccl_tests_from_text(table, "f")
    assert (test.op, test.ranks, len(test.rows)) == ("", (), 5)
    assert [t.op for t in nccl_tests_from_text(f"{table}\n{table}\n", "f")] == ["", ""]
    assert [t.op for t in nccl_tests_from_text(f"./all_gather_perf\n{table}\n{table}", "f")] == [
        "all_gather", "all_gather"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: this is no output of nccl-tests: it has no table of sizes and times"),
        (TEXT[: TEXT.index("        1024  ")], "f:14: the table of sizes and times has no rows"),
        (TEXT.replace("-1    60.05", "x     60.05"), None),
        (TEXT.replace("61.04    0.54    0.81       0", "61.04    0.5x    0.81       0"),
         "f:18: `0.5x` is not a number"),
        (TEXT.replace("sum      -1    61.64    0.53    0.80       0    61.04    0.54", ""),
         "f:18: the row has 2 numbers for 8 columns"),
        (TEXT.replace("    61.64    0.53", "    N/A    0.53"),
         "f:18: the row has no time or no bandwidth"),
        (TEXT.replace("    61.64    0.53", "    -61.64    0.53"),
         "f:18: the row has no time or no bandwidth"),
    ],
)  # fmt: skip
def test_output_that_is_wrong_is_told_by_its_line(text: str, message: str | None) -> None:
    if message is None:
        nccl_tests_from_text(text, "f")
    else:
        assert str(refused(text)) == message


def test_the_fit_finds_a_line_through_noise_and_outliers() -> None:
    rng = random.Random(3)
    points = [
        (2**k, (12e-6 + 2**k / 40e9) * rng.uniform(0.98, 1.02)) for k in range(3, 32) for _ in "ab"
    ]
    points[5] = (points[5][0], points[5][1] * 20)
    points[-1] = (points[-1][0], points[-1][1] * 3)
    fit = fit_line(points)
    assert fit is not None
    assert fit.latency_s == pytest.approx(12e-6, rel=0.02)
    assert fit.bytes_per_s == pytest.approx(40e9, rel=0.02)
    assert 0.002 < fit.spread < 0.02


def test_the_fit_of_what_has_no_latency_or_tells_nothing() -> None:
    fit = fit_line([(10**6, 1e-4), (2 * 10**6, 2e-4), (4 * 10**6, 5e-4)])
    assert fit is not None
    assert fit.latency_s == 0
    assert fit_line([]) is None
    assert fit_line([(8, 1e-6), (8, 2e-6), (0, 1e-6), (16, 0.0)]) is None
    assert fit_line([(8, 2e-6), (16, 1e-6)]) is None
    assert fit_line([(8, 1e-320), (16, 1e93)]) is None


WORDS = st.sampled_from(
    ["", "\n", "0", "-1", "nan", "N/A", "1e99", "9" * 30, "#", "# size count time algbw busbw\n",
     "time", "float", "timestamp", "# nThread", "alltoall_perf"]
) | st.text(max_size=4)  # fmt: skip


@fuzz
@given(changes=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 60), WORDS), max_size=4))
def test_any_change_of_an_output_gives_runs_or_a_user_error(
    changes: list[tuple[int, int, str]],
) -> None:
    error: UserError | None = None
    try:
        tests = nccl_tests_from_text(changed(TEXT, changes), "f")
    except UserError as e:
        error = e
    if error is not None:
        assert str(error.place).startswith("f")
    else:
        for test in tests:
            assert test.fit is None or test.fit.bytes_per_s > 0


@fuzz
@given(
    points=st.lists(
        st.tuples(st.integers(0, 10**18), st.floats(0, 1e90, allow_subnormal=False)), max_size=9
    )
)
def test_any_times_give_a_line_or_none(points: list[tuple[int, float]]) -> None:
    fit = fit_line(points)
    if fit is not None:
        assert fit.latency_s >= 0
        assert fit.bytes_per_s > 0
        assert fit.spread >= 0


@fuzz
@given(text=st.text(max_size=80))
def test_any_text_gives_a_user_error(text: str) -> None:
    refused(text)
