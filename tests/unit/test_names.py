"""The nearest of known names, and the hints that name it."""

import pytest

from profiler.names import MOST, did_you_mean, nearest, one_of

KNOWN = ("tp", "pp", "Optimizer", "activations")


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("tpp", "tp"),
        ("optimiser", "Optimizer"),
        ("ACTIVATION", "activations"),
        ("xyz", None),
        ("", None),
    ],
)
def test_the_nearest_is_found_whatever_the_case(text, near):
    assert nearest(text, KNOWN) == near
    assert did_you_mean(text, KNOWN) == (f"did you mean `{near}`?" if near else None)


def test_how_alike_a_name_must_be_is_the_callers():
    assert nearest("actors", KNOWN) is None
    assert nearest("actors", KNOWN, cutoff=0.4) == "activations"


def test_all_are_listed_where_none_is_near():
    assert one_of("tpp", KNOWN) == "did you mean `tp`?"
    assert one_of("xyz", KNOWN) == "one of tp, pp, Optimizer, activations"
    assert one_of("xyz", iter(KNOWN), "axes") == "axes: tp, pp, Optimizer, activations"


def test_names_of_any_length_take_no_time():
    assert nearest("a" * 10**7, ("a" * MOST + "b",)) == "a" * MOST + "b"
