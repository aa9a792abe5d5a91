"""A plain row of published runs for tests to change."""

import pytest

from launch.published.cells import UnusableRowError
from launch.published.runs import run_of

PLAIN = {
    "model": "toy", "layers": "8", "hidden": "1024", "heads": "16", "seq_len": "2048",
    "gpu": "H100", "n_gpus": "8", "gbs": "64", "mbs": "2", "tp": "2", "pp": "2", "step_s": "1.5",
}  # fmt: skip


def refusal(given):
    """Why `PLAIN` with other cells is refused."""
    with pytest.raises(UnusableRowError) as caught:
        run_of({**PLAIN, **given})
    return str(caught.value)
