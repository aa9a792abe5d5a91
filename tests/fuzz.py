"""Random inputs for the readers: 100 of each in the test run, 10,000 in `make nightly`."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))


def fuzz(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a property test as fuzzing and give it its number of examples."""
    return pytest.mark.fuzz(settings(max_examples=EXAMPLES, deadline=None)(test))


def changed(text: str, changes: Sequence[tuple[int, int, str]]) -> str:
    """A text after changes of (place, characters taken out, word put there)."""
    for at, length, word in changes:
        start = at % len(text) if text else 0
        text = text[:start] + word + text[start + length :]
    return text
