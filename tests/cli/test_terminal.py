"""Numbers as they are printed, and progress on stderr where that is no terminal."""

import pytest

from launch.cli.render import seconds
from launch.cli.terminal import Progress


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 s"),
        (0.0123, "12.3 ms"),
        (0.5, "0.5 s"),
        (9999.0, "9999 s"),
        (9999.7, "10,000 s"),
        (17020.0, "17,020 s"),
        (-20000.0, "-20,000 s"),
    ],
)
def test_seconds_have_no_exponent(value, text):
    assert seconds(value) == text


def test_progress_is_told_line_by_line_and_its_end_once(capsys):
    progress = Progress(every_s=0.0)
    progress(0, 2, "first")
    progress(1, 2, "second")
    progress(2, 2, "")
    progress(2, 2, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[0/2] first"
    assert lines[1].startswith("[1/2] second, about ")
    assert lines[2:] == ["[2/2]"]
