"""From case results to a profile, and the fit of the link."""

import random

import pytest

from profiler.codec import decode, encode, replace
from profiler.measure.assemble import assemble, fit_link, middle_of_passes
from profiler.measure.cases import P2P_SIZES, BlockCase, CaseResult, ProfileInputs, oom_result
from profiler.model import ModelSpec
from profiler.profile import BlockEntry, Environment, Profile, Timing, TransferEntry
from tests.unit.test_measure_journal import DEVICE, INPUTS, RESULT


def p2p(num_bytes: int, seconds: float, ranks: tuple[int, int] = (0, 1)) -> TransferEntry:
    time = Timing(median_s=seconds, spread_s=0.0, repeats=5)
    return TransferEntry(
        op="p2p", ranks=ranks, scope="node", num_bytes=num_bytes, time=time, source="measured"
    )


@pytest.mark.parametrize(("latency_s", "rate"), [(5e-5, 3e9), (1e-6, 4e11), (2e-3, 1e8)])
def test_the_fit_returns_the_line_it_was_given(latency_s: float, rate: float) -> None:
    entries = [p2p(size, latency_s + size / rate) for size in P2P_SIZES]
    link = fit_link("x", entries)
    assert link is not None
    assert link.latency_s == pytest.approx(latency_s, rel=1e-6)
    assert link.bytes_per_s == pytest.approx(rate, rel=1e-6)


def test_the_fit_is_not_moved_by_one_bad_pair() -> None:
    entries = [p2p(s, 5e-5 + s / 3e9, (a, a + 1)) for s in P2P_SIZES for a in range(5)]
    entries += [p2p(s, 1.0, (5, 6)) for s in P2P_SIZES]
    link = fit_link("x", entries)
    assert link is not None
    assert link.bytes_per_s == pytest.approx(3e9, rel=1e-6)


def test_any_positive_times_give_a_valid_link() -> None:
    generator = random.Random(0)
    for _ in range(200):
        entries = [p2p(size, 10 ** generator.uniform(-7, 0)) for size in P2P_SIZES]
        link = fit_link("x", entries)
        assert link is not None
        assert link.latency_s > 0
        assert link.bytes_per_s > 0


def test_one_size_is_no_line() -> None:
    assert fit_link("x", [p2p(1024, 1e-3), p2p(1024, 2e-3)]) is None


def test_the_profile_holds_every_entry_and_reads_back() -> None:
    case = BlockCase(block="dense", tp=1, micro_batch=2)
    moved = CaseResult(transfers=tuple(p2p(s, 5e-5 + s / 3e9) for s in P2P_SIZES))
    profile = assemble(INPUTS, DEVICE, [oom_result(case), moved, RESULT])
    assert decode(Profile, encode(profile), "profile.json") == profile
    assert profile.source == "measured"
    assert profile.blocks[0].status == "oom"
    assert len(profile.transfers) == len(P2P_SIZES)
    assert profile.sharing == RESULT.sharing
    node = profile.cluster.uniform
    assert (node.num_nodes, node.devices_per_node) == (1, INPUTS.num_processes)
    assert node.device.memory_bytes == INPUTS.memory_bytes
    assert node.intra.bytes_per_s == pytest.approx(3e9, rel=1e-6)


def block(seconds: float) -> BlockEntry:
    time = Timing(median_s=seconds, repeats=3)
    return BlockEntry(
        block="dense", tp=1, micro_batch=1, source="measured", forward=time, input_grad=time,
        weight_grad=time,
    )  # fmt: skip


def oom_entry() -> BlockEntry:
    return oom_result(BlockCase(block="dense", tp=1, micro_batch=1)).blocks[0]


def test_the_middle_pass_counts_and_memory_that_ran_out_once_stays_so() -> None:
    other = replace(block(9.0), micro_batch=2)
    passes = [block(2.0), other, block(1.0), block(30.0)]
    assert middle_of_passes(passes) == (block(2.0), other)
    assert middle_of_passes(passes[:3]) == (block(1.0), other)
    assert middle_of_passes([block(2.0), oom_entry(), block(1.0)]) == (oom_entry(),)


def test_one_process_needs_no_link() -> None:
    model: ModelSpec = INPUTS.model
    alone = ProfileInputs(
        model=model,
        seq_len=16,
        precision="fp32",
        micro_batches=(1,),
        tp_degrees=(1,),
        num_processes=1,
        memory_bytes=2**30,
        budget_s=1.0,
        environment=Environment(),
    )
    profile = assemble(alone, DEVICE, [])
    assert profile.cluster.num_devices == 1
