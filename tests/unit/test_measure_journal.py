"""The journal of `profile`: what is kept, what is refused, what a killed writer leaves behind."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import profiling
from profiler.errors import UserError
from profiler.measure.cases import (
    BlockCase,
    CaseResult,
    ProfileInputs,
    case_list,
    case_seconds,
    check_tp_degrees,
    group_sizes,
    oom_result,
    smaller_is_oom,
)
from profiler.measure.journal import Journal, discard, open_journal
from profiler.model import ModelSpec
from profiler.profile import Environment, SharingEntry
from tests.unit import facts

MODEL = ModelSpec(
    name="tiny",
    family="llama",
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    ffn_hidden_size=32,
)
INPUTS = ProfileInputs(
    model=MODEL,
    seq_len=16,
    precision="fp32",
    micro_batches=(2, 1),
    tp_degrees=(1, 2),
    num_processes=3,
    memory_bytes=2**30,
    budget_s=6.0,
    environment=Environment(host="here"),
)
RESULT = CaseResult(sharing=(SharingEntry(active=2, slowdown=1.5, spread=0.1, source="measured"),))
DEVICE = facts.core()


def opened(tmp_path: Path) -> Journal:
    return open_journal(tmp_path / "profile.json.partial", INPUTS, restart=False)


def test_cases_cover_blocks_pairs_groups_and_sharing() -> None:
    cases = case_list(INPUTS)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert [n for n in names if n.startswith("dense")] == [
        f"dense {case} pass {number}"
        for number in (1, 2, 3)
        for case in ("tp1 mbs1", "tp1 mbs2", "tp2 mbs1", "tp2 mbs2")
    ]
    assert sum(n.startswith("p2p") for n in names) == 6  # ordered pairs of three ranks
    assert {"all_reduce 0,1", "all_reduce 0,1,2", "sharing tp1 3", "executor 0,1"} <= set(names)
    assert sum(case_seconds(cases, 6.0).values()) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("world", "sizes"), [(1, ()), (2, (2,)), (4, (2, 4)), (6, (2, 4, 6)), (8, (2, 4, 8))]
)
def test_groups_are_powers_of_two_and_all_ranks(world: int, sizes: tuple[int, ...]) -> None:
    assert group_sizes(world) == sizes


def test_results_come_back_and_the_first_counts(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.start("sharing 2")
    assert journal.in_flight() == "sharing 2"
    journal.end("sharing 2", RESULT)
    journal.end("sharing 2", CaseResult(status="oom"))
    journal.start("sharing 3")
    again = opened(tmp_path)
    assert again.finished() == {"sharing 2": RESULT}
    assert again.in_flight() == "sharing 3"


@pytest.mark.parametrize("torn", [b'{"case": "sharing 3", "ev', b"\xff\xfe{", b"{"])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    journal = opened(tmp_path)
    journal.end("sharing 2", RESULT)
    with journal.path.open("ab") as file:
        file.write(torn)
    assert set(journal.finished()) == {"sharing 2"}
    again = opened(tmp_path)
    again.end("sharing 3", RESULT)
    assert set(again.finished()) == {"sharing 2", "sharing 3"}


def test_every_torn_length_keeps_the_whole_lines(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.end("a", RESULT)
    first = journal.path.stat().st_size
    journal.end("b", RESULT)
    whole = journal.path.read_bytes()
    for length in range(first, len(whole)):
        journal.path.write_bytes(whole[:length])
        assert set(opened(tmp_path).finished()) == {"a"}


@pytest.mark.parametrize("bad", ["not json", '{"case": "a"}', '{"case": "a", "event": 1}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, bad: str) -> None:
    journal = opened(tmp_path)
    journal.end("a", RESULT)
    with journal.path.open("a") as file:
        file.write(bad + "\n")
    journal.end("b", RESULT)
    with pytest.raises(UserError) as caught:
        journal.finished()
    assert caught.value.place == f"{journal.path}:2"


@pytest.mark.parametrize(
    "change",
    [
        {"seq_len": 32},
        {"micro_batches": (1,)},
        {"num_processes": 4},
        {"model": dataclasses.replace(MODEL, num_layers=3)},
        {"environment": Environment(host="here", torch="9")},
    ],
)
def test_other_inputs_are_refused_until_restart(tmp_path: Path, change: dict[str, object]) -> None:
    journal = opened(tmp_path)
    journal.end("sharing 2", RESULT)
    other = dataclasses.replace(INPUTS, **change)  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        open_journal(journal.folder, other, restart=False)
    assert caught.value.kind == "stale"
    assert f"`{next(iter(change))}`" in caught.value.message
    assert "--restart" in (caught.value.hint or "")
    assert set(opened(tmp_path).finished()) == {"sharing 2"}  # refusing took nothing away
    fresh = open_journal(journal.folder, other, restart=True)
    assert fresh.finished() == {}
    assert fresh.inputs() == other


def test_unreadable_inputs_are_refused_with_a_way_out(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    (journal.folder / "inputs.json").write_text("{")
    with pytest.raises(UserError) as caught:
        opened(tmp_path)
    assert "--restart" in (caught.value.hint or "")
    open_journal(journal.folder, INPUTS, restart=True)


def test_discard_leaves_files_of_others(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.end("a", RESULT)
    foreign = journal.folder / "notes.txt"
    foreign.write_text("mine")
    discard(journal.folder)
    assert list(journal.folder.iterdir()) == [foreign]
    foreign.unlink()
    discard(journal.folder)
    assert not journal.folder.exists()


def test_larger_micro_batches_of_an_oom_block_are_not_tried() -> None:
    small = BlockCase(block="dense", tp=2, micro_batch=2)
    done = {small.name: oom_result(small)}
    assert smaller_is_oom(BlockCase(block="dense", tp=2, micro_batch=4), done)
    assert not smaller_is_oom(BlockCase(block="dense", tp=2, micro_batch=1), done)
    assert not smaller_is_oom(BlockCase(block="dense", tp=1, micro_batch=4), done)
    assert not smaller_is_oom(BlockCase(block="head", tp=2, micro_batch=4), done)


@pytest.mark.parametrize(("tp", "said"), [(4, "4 processes"), (3, "does not divide the 4 heads")])
def test_impossible_tensor_parallel_degrees_are_refused(tp: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_tp_degrees(MODEL, 16, 3, tp)


def test_a_second_run_beside_the_first_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "profile.json.partial"
    refused = pytest.raises(UserError, match="another profile run")
    with profiling.only_one(folder), refused, profiling.only_one(folder):
        pass
    with profiling.only_one(folder):  # free again
        pass


def test_without_torch_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        profiling.measure_profile(
            MODEL,
            16,
            "fp32",
            num_processes=1,
            micro_batches=(1,),
            tp_degrees=(1,),
            device=DEVICE,
            out=tmp_path / "profile.json",
        )
    assert "meshwright[run]" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_the_supervisor_imports_no_torch() -> None:
    code = "import sys, launch.profiling; print(json.dumps('torch' in sys.modules))"
    out = subprocess.run(
        [sys.executable, "-P", "-c", "import json;" + code], capture_output=True, check=True
    )
    assert json.loads(out.stdout) is False
