"""Measuring for real: two processes, a tiny model, interruptions, and memory that runs out."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import profiling
from profiler.codec import encode
from profiler.errors import UserError
from profiler.measure.cases import BlockCase, ProfileInputs
from profiler.measure.journal import LOCK, Journal
from profiler.model import ModelSpec
from profiler.profile import Environment, Profile
from tests.unit import facts

pytestmark = pytest.mark.distributed
MODEL = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_hidden_size=48,
)
SEQ_LEN = 16
DEVICE = facts.core()
TOO_LARGE = 10**9


def measured(out: Path, **changes: object) -> Profile:
    asked: dict[str, object] = {
        "num_processes": 2,
        "micro_batches": (1, 2),
        "tp_degrees": (1, 2),
        "device": DEVICE,
        "out": out,
        "budget_s": 1.5,
    }
    return profiling.measure_profile(MODEL, SEQ_LEN, "fp32", **(asked | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """One real run, with a micro-batch that no machine can hold."""
    return measured(
        tmp_path_factory.mktemp("run") / "profile.json", micro_batches=(1, 2, TOO_LARGE)
    )


@pytest.mark.timed
def test_every_block_has_times_and_memory(profile: Profile) -> None:
    fine = [b for b in profile.blocks if b.status == "ok"]
    assert {(b.block, b.tp, b.micro_batch) for b in fine} == {
        (block, tp, size)
        for block in ("embed", "dense", "head")
        for tp in (1, 2)
        for size in (1, 2)
    }
    for entry in fine:
        assert entry.forward is not None
        assert entry.forward.median_s > 0
        assert entry.forward.repeats >= 3  # in each of three passes
        assert entry.input_grad is not None
        assert (entry.input_grad.median_s > 0) == (entry.block != "embed")
        assert entry.weight_grad is not None
        assert entry.weight_grad.median_s + entry.input_grad.median_s > 0
        assert entry.optimizer is not None
        assert entry.optimizer.median_s > 0
        assert entry.peak_bytes >= entry.saved_bytes > 0
        assert 0 <= entry.forward_collective_s < entry.forward.median_s
        if entry.block == "dense":
            assert (entry.forward_collective_s > 0) == (entry.tp > 1)
            assert (entry.backward_collective_s > 0) == (entry.tp > 1)


@pytest.mark.timed
def test_a_micro_batch_that_cannot_be_allocated_is_oom_and_the_rest_goes_on(
    profile: Profile,
) -> None:
    gone = [b for b in profile.blocks if b.status == "oom"]
    assert {(b.block, b.tp, b.micro_batch) for b in gone} == {
        (block, tp, TOO_LARGE) for block in ("embed", "dense", "head") for tp in (1, 2)
    }
    assert all(b.forward is None for b in gone)
    assert {e.active for e in profile.sharing} == {1, 2}  # measured after all of them


@pytest.mark.timed
def test_links_and_sharing_are_there(profile: Profile) -> None:
    pairs = {e.ranks for e in profile.transfers if e.op == "p2p"}
    assert pairs == {(0, 1), (1, 0)}
    for op in ("p2p", "all_reduce", "all_gather", "reduce_scatter"):
        found = sorted(
            (e.num_bytes, e.time.median_s)
            for e in profile.transfers
            if e.op == op and e.ranks == (0, 1)
        )
        assert len({size for size, _ in found}) >= 4
        assert found[-1][1] > found[0][1] > 0  # thousands of times more bytes take longer
        assert found[-1][0] / found[-1][1] < 1e12
    assert {e.scope for e in profile.transfers} == {"node"}
    alone = next(e for e in profile.sharing if e.active == 1)
    assert alone.slowdown == 1.0


def _memory_of_a_layer() -> tuple[int, int]:
    import torch

    from launch.runtime.profile_block import block_setup
    from profiler.measure.blocks import measure_memory

    inputs = ProfileInputs(
        model=MODEL,
        seq_len=SEQ_LEN,
        precision="fp32",
        micro_batches=(3,),
        tp_degrees=(1,),
        num_processes=1,
        memory_bytes=2**30,
        budget_s=1.0,
        environment=Environment(),
    )
    case = BlockCase(block="dense", tp=1, micro_batch=3)
    setup = block_setup(case, inputs, None, torch.device("cpu"))
    return measure_memory(setup, setup.build())


def test_saved_bytes_equal_a_count_by_hand() -> None:
    """What each operator of a dense layer keeps, from its derivative; all fp32."""
    from fork import run_ranks  # the script below imports this module from elsewhere

    ((saved, peak),) = run_ranks(1, _memory_of_a_layer)
    t, h, f = 3 * SEQ_LEN, MODEL.hidden_size, MODEL.ffn_hidden_size
    heads, kv, d = MODEL.num_heads, MODEL.num_kv_heads, MODEL.head_dim
    # input, input / rms (for the weight), output (for the next product), 1 / rms
    norms = 2 * (3 * t * h + t)
    attention = t * (heads + 2 * kv) * d + t * heads * d + t * heads  # q, k, v, output, logsumexp
    ffn = 4 * t * f  # gate, silu(gate), up, and their product
    assert saved == 4 * (norms + attention + ffn)
    assert peak > saved


_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.parity.test_profile import measured
from profiler.errors import UserError
try:
    measured(Path(sys.argv[2]))
except UserError as e:
    print(e.kind, e.hint)
    sys.exit(1)
"""


def _start(out: Path) -> "subprocess.Popen[str]":
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _SCRIPT, root, str(out)], stdout=subprocess.PIPE, text=True
    )


def _wait_for_cases(journal: Journal, count: int) -> None:
    limit = time.monotonic() + 60
    while len(journal.finished()) < count:
        assert time.monotonic() < limit, "no case was finished"
        time.sleep(0.05)


def _workers() -> list[str]:
    """Command lines of measuring processes on this host, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if "profile_worker" in line]


def _is_locked(journal: Journal) -> bool:
    """A process that is being torn down has no command line any more, but still its files."""
    with (journal.folder / LOCK).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _starts(journal: Journal) -> list[str]:
    lines = [json.loads(row) for row in journal.path.read_text().splitlines()]
    return [line["case"] for line in lines if line["event"] == "start"]


@pytest.mark.started
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "profile.json"
    journal = Journal(profiling.partial_folder(out))
    process = _start(out)
    _wait_for_cases(journal, 4)
    process.send_signal(how)
    said, _ = process.communicate(timeout=40)
    if how == signal.SIGINT:
        assert process.returncode == 1
        assert said.startswith("interrupted")
        assert "goes on where it stopped" in said
    limit = time.monotonic() + 40  # killed outright: the workers notice at their next case
    while any(str(journal.folder) in line for line in _workers()) or _is_locked(journal):
        assert time.monotonic() < limit, "workers outlive the run"
        time.sleep(0.1)
    before = set(journal.finished())
    profile = measured(out)
    starts = _starts(journal)
    assert len(before) >= 4
    assert all(starts.count(case) == 1 for case in before)
    assert {f"{b.block} tp{b.tp} mbs{b.micro_batch}" for b in profile.blocks} > {"dense tp1 mbs1"}
    out.write_text(encode(profile))
    profiling.discard_partial(out)
    assert list(tmp_path.iterdir()) == [out]


def _kill_a_worker(journal: Journal, how: signal.Signals) -> None:
    mine = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"profile_worker\0{journal.folder}" in path.read_text(errors="replace")
        and "torch.distributed.run" not in path.read_text(errors="replace")
    ]
    os.kill(mine[0], how)


@pytest.mark.started
def test_a_worker_that_the_kernel_kills_ran_out_of_memory(tmp_path: Path) -> None:
    killed: list[str] = []
    journal = Journal(profiling.partial_folder(tmp_path / "profile.json"))

    def progress(done: int, total: int, label: str) -> None:
        if not killed and label.startswith("dense tp2"):
            killed.append(label)
            _kill_a_worker(journal, signal.SIGKILL)

    profile = measured(tmp_path / "profile.json", progress=progress)
    assert journal.finished()[killed[0]].status == "oom"
    assert sum(b.status == "ok" for b in profile.blocks) >= 10


@pytest.mark.started
def test_a_case_that_crashes_twice_is_named(tmp_path: Path) -> None:
    journal = Journal(profiling.partial_folder(tmp_path / "profile.json"))
    crashed: list[str] = []

    def progress(done: int, total: int, label: str) -> None:
        if label.startswith("dense tp2"):
            crashed.append(label)
            _kill_a_worker(journal, signal.SIGABRT)

    with pytest.raises(UserError) as caught:
        measured(tmp_path / "profile.json", progress=progress)
    assert caught.value.kind == "failed"
    assert crashed[0] in caught.value.message
    assert str(journal.log) in (caught.value.hint or "")
