"""Recorded routing of a real run under `launch`, and files of `torch.save`."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch.routing_files import read_any_routing
from profiler.errors import UserError
from profiler.routing.readers import Wanted, read_routing
from profiler.routing.trace import RoutingCounts, RoutingTrace
from tests.commands import meshwright

pytestmark = [pytest.mark.distributed, pytest.mark.started]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "tiny-moe"
ASK = ("-c", "cpu-1x2", "--seq-len", 32, "--global-batch", 4, "--precision", "fp32", "--layout")


@pytest.mark.parametrize("layout", ["dp_replicate: 2\nep: 2", "pp: 2"])
def test_a_run_leaves_its_routing_and_nothing_beside_it(tmp_path: Path, layout: str) -> None:
    (tmp_path / "layout.yaml").write_text(f"{layout}\nmicro_batch: 1\n")
    meshwright(tmp_path, "plan", "-m", EXAMPLE / "config.json", *ASK, "layout.yaml")
    done = meshwright(
        tmp_path, "launch", "plan.json", "--steps", 2, "--record-routing", 0.25,
        "--checkpoint-every", 2,
    )  # fmt: skip
    (run,) = (tmp_path / "runs").iterdir()
    assert f"meshwright experts show runs/{run.name}/routing.npz" in done.stdout
    assert not (run / "routing").exists()
    trace = read_routing(run / "routing.npz")
    assert isinstance(trace, RoutingTrace)
    assert (trace.model, trace.num_experts) == ("tiny-moe", 16)
    assert trace.ids.shape == (4 * 32, 6, 2)
    assert trace.step is not None
    assert trace.step.tolist() == [step for step in range(4) for _ in range(32)]
    if "pp" in layout:
        return
    meshwright(tmp_path, "launch", "plan.json", "--steps", 2)
    losses = [
        json.loads((folder / "observed.json").read_text())["losses"]
        for folder in sorted((tmp_path / "runs").iterdir())
    ]
    assert losses[0] == losses[1]  # recording changes nothing
    assert not (sorted((tmp_path / "runs").iterdir())[1] / "routing.npz").exists()


def saved(path: Path, value: Any, *, old: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not old)
    return path


@pytest.mark.parametrize("old", [False, True])
def test_recordings_of_sglang_are_read_as_torch_saved_them(tmp_path: Path, old: bool) -> None:
    ring = torch.zeros(4, 3, 8, dtype=torch.int32)
    ring[:2, 1:] = torch.arange(8)
    tree = {"rank": 0, "logical_count": ring, "average_utilization_rate_over_window": None}
    counts = read_any_routing(saved(tmp_path / "a.pt", tree, old=old), Wanted())
    assert isinstance(counts, RoutingCounts)
    assert counts.windows.tolist() == [[list(range(8))] * 2] * 2
    ids = torch.full((2, 3, 8), -1, dtype=torch.int32)
    ids[1, :, :2] = torch.tensor([[0, 1], [2, 4], [3, 0]])
    record = {"forward_pass_id": 7, "rank": 0, "gatherer_key": "primary", "input_ids": [1, 2, 3],
              "topk_ids_of_layer": ids, "misc_objects": []}  # fmt: skip
    tree = {
        "records": [record],
        "last_physical_to_logical_map": torch.tensor([[0, 1, 2, 3, 1]] * 2),
    }
    trace = read_any_routing(saved(tmp_path / "b.pt", tree, old=old), Wanted())
    assert isinstance(trace, RoutingTrace)
    assert trace.ids.tolist() == [[[0, 1]], [[2, 1]], [[3, 0]]]
    half = read_any_routing(saved(tmp_path / "c.pt", ring[0].bfloat16() + 1, old=old), Wanted())
    assert isinstance(half, RoutingCounts)


class _Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize("old", [False, True])
def test_a_file_can_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "bad.pt", {"logical_count": _Runs()}, old=old)
    with pytest.raises(UserError, match="torch cannot load the file"):
        read_any_routing(path, Wanted())
    path.write_bytes(pickle.dumps(_Runs(), protocol=2))
    with pytest.raises(UserError, match="torch cannot load the file"):
        read_any_routing(path, Wanted())
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_a_torn_file_is_refused_and_others_need_no_torch(tmp_path: Path) -> None:
    path = saved(tmp_path / "t.pt", {"logical_count": torch.ones(2, 3, 4)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"t\.pt: torch cannot load the file"):
        read_any_routing(path, Wanted())
    np.save(tmp_path / "w.npy", np.ones((2, 4)))
    assert read_any_routing(tmp_path / "w.npy", Wanted()).num_experts == 4
