"""What a layer with experts has under way while it computes: exchanges of other chunks."""

from typing import Any

import pytest
from cases import MOE, layers, small
from fork import run_ranks
from grid import Case, part_of_batch, trainer_of

from launch.runtime.record import Recorder

pytestmark = pytest.mark.distributed

ONE_LAYER = layers(MOE, 1)
Row = list[Any]
"""Of `Recorder.drain`: axis, number, issued, wait begun, wait ended."""


def _exchanges(case: Case) -> list[Row]:
    """Of this rank in one step, one micro-batch and one layer, in the order of their start."""
    recorder = Recorder()
    trainer = trainer_of(case, recorder)
    inputs = part_of_batch(trainer, case, 0)
    with recorder.active():
        trainer.step(*inputs)
    return [row for row in recorder.drain()["collectives"] if row[0] == "ep"]


@pytest.mark.parametrize("overlap", [1, 2, 4])
def test_chunks_are_under_way_while_others_are_computed(overlap: int) -> None:
    case = small(model=ONE_LAYER, dp=2, ep=2, micro_batch=4, ep_overlap=overlap)
    for rows in run_ranks(2, _exchanges, case):
        counts, forward, backward = rows[0], rows[1 : 1 + 2 * overlap], rows[1 + 2 * overlap :]
        assert counts[4] <= forward[0][2]
        assert len(forward) == len(backward) == 2 * overlap
        # Forward sends chunk 0 first; backward gives the last chunk back first.
        for there, back in ((forward[:overlap], forward[overlap:]),
                            (backward[:overlap], backward[overlap:])):  # fmt: skip
            begun = [row[3] for row in there]
            assert max(row[2] for row in there) < min(begun)
            assert begun == sorted(begun)
            for k in range(overlap):
                assert there[k][4] < back[k][2]  # computed after it arrived
                if k + 1 < overlap:
                    assert back[k][2] < there[k + 1][3]  # returns while the next is computed
            assert max(row[2] for row in back) < min(row[3] for row in back)
