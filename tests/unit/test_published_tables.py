"""Tables of published runs, good and bad, and rows of anything at all."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launch.published.cells import UnusableRowError
from launch.published.runs import read_and_predict, read_runs, run_of, score_rows
from launch.published.table import COLUMNS
from planner.predict import predict_peaks, predict_steps
from tests.fuzz import fuzz
from tests.unit.published import PLAIN


def table(tmp_path, *rows):
    path = tmp_path / "runs.csv"
    lines = [",".join(PLAIN) + ",features,recompute,row_id"]
    for n, row in enumerate(rows):
        cells = {**PLAIN, "features": "", "recompute": "", "row_id": f"r{n}", **row}
        lines.append(",".join(f'"{v}"' for v in cells.values()))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_bad_rows_are_left_out_with_their_reasons(tmp_path):
    path = table(tmp_path, {}, {"tp": "3"}, {"gpu": "H1000"}, {"step_s": ""}, {"gbs": "x"})
    runs, left_out, _ = read_runs(path)
    assert [r.cells["row_id"] for r in runs] == ["r0"]
    assert [(u.row_id, u.reason.split(":")[0], u.complete) for u in left_out] == [
        ("r1", "contradiction", False),
        ("r2", "no such GPU in the catalogue", True),
        ("r3", "no measurement", False),
        ("r4", "`gbs` is no number", False),
    ]


def test_features_that_nothing_understands_are_counted(tmp_path):
    odd = {"features": "torch.compile; warp_drive=9"}
    path = table(tmp_path, odd, odd, {"recompute": "selective: moe"}, {**odd, "tp": "3"}, {})
    _, _, unknown = read_runs(path)
    assert unknown == {"warp_drive=9": 2, "recompute selective: moe": 1}
    rows, left_out, notes = read_and_predict(path, ("model",), None, lambda *_: None)
    assert (len(rows), len(left_out)) == (4, 1)
    assert notes == [
        "feature `recompute selective: moe` is not understood: 1 row is predicted without it",
        "feature `warp_drive=9` is not understood: 2 rows are predicted without it",
    ]


def test_frameworks_that_nothing_knows_are_counted(tmp_path):
    frameworks = ("", "own code", "NeMo 2.0", "torchtitan")
    path = table(tmp_path, *({"framework": f} for f in frameworks))
    path.write_text(path.read_text().replace("row_id\n", "row_id,framework\n", 1))
    notes = read_and_predict(path, ("model",), None, lambda *_: None)[2]
    assert notes == ["framework `own code` is not known: 1 row is predicted as Megatron-Core's"]


def test_failed_runs_are_predicted_or_named(tmp_path):
    path = table(tmp_path, {})
    text = (
        path.read_text().replace("row_id\n", "row_id,framework\n").replace('"r0"', '"r0",nanotron')
    )
    path.write_text(text)
    size = read_runs(path)[0][0].run.model.num_params / 1e9
    failed = tmp_path / "failed.csv"
    failed.write_text(
        "model_size_b,n_gpus,gbs,mbs,tp,pp,dp,zero\n"
        f"{size},8,64,2,1,1,8,1\n{size},8,64,2,3,1,8,1\n70,8,64,2,1,1,8,1\nx,8,64,2,1,1,8,1\n"
    )
    rows, _, notes = read_and_predict(path, ("model",), failed, lambda *_: None)
    assert [(r.row_id, r.failed, r.fits) for r in rows[1:]] == [("failed line 2", True, True)]
    assert notes == [
        "failed.csv: 1 row is left out: `model_size_b` is no number",
        "failed.csv: 1 row is left out: contradiction",
        "failed.csv: 1 row is left out: no nanotron run of a model of that size",
    ]


_ODD = st.sampled_from([
    "", "0", "1", "2", "3", "8", "64", "2048", "-1", "nan", "inf", "1e400", "9" * 400,
    "1" + "0" * 5000, "0.5", "1e-9", "~250k", "y", "n", "H100", "A100", "llama3-8b", "gpt-oss-120b",
    "deepseek-v3", "Mixtral 8x7B", "GPT 200B", "99999999B", "nanotron", "MaxText", "FP8", "fp32",
    "ZeRO-1 group 8", "FSDP 0", "ici_FSDP=0", "ZeRO-\u0663", "MLA kv_lora 512 qk 128+64 v 128",
    "sliding window 9 every other", "MLA kv_lora \u0663 qk 1+1 v 1", "full", "selective op",
    "full/block:9 layers per stage", "0 Gbps", "99999999999999 Gbps", "\u0663 x 100 Gbps", "efa",
    "26.08", "hover", "smi", "reserved", "\U0001d7dc", "\ud7ff\u202e", "3 x 999999.9 Gbps per GPU",
    "cuda_graph_impl=full_iteration; moe_a2a_overlap=True", "cpu_offloading_num_layers=1",
])  # fmt: skip
_CELL = st.one_of(_ODD, st.integers(1, 2**12).map(str), st.text(max_size=12))
_POWER = st.integers(0, 5).map(lambda n: 2**n)
_SMALL = st.integers(0, 3).map(lambda n: 2**n)
_WORDS = dict.fromkeys(("dp_shard", "recompute", "features", "framework", "mem_definition"), _ODD)


@st.composite
def likely_rows(draw):
    """Cells of a layout whose degrees go together, with words of any kind."""
    d = {name: draw(_SMALL) for name in ("tp", "pp", "cp", "mbs", "kv_heads", "vp")}
    replicas, batches, experts = draw(_POWER), draw(st.integers(1, 99)), draw(st.booleans())
    d["n_gpus"] = d["tp"] * d["pp"] * d["cp"] * replicas
    d["gbs"] = replicas * d["mbs"] * batches + draw(st.integers(0, 1))
    d["heads"] = d["kv_heads"] * draw(_SMALL)
    d["layers"] = max(1, d["pp"] * d["vp"] * draw(st.integers(1, 5)) - draw(st.integers(0, 2)))
    if experts:
        d |= {"n_experts": 8, "topk": draw(_SMALL), "ep": draw(_SMALL), "moe_ffn_hidden": 512}
    words = draw(st.fixed_dictionaries({}, optional=_WORDS))
    return {**words, **{name: str(value) for name, value in d.items()}, "peak_mem_gib": "10"}


def predicts_or_refuses(cells):
    """A row is refused with a reason of one line, or all its predictions are numbers above 0."""
    try:
        published = run_of(cells)
    except UnusableRowError as refused:
        reason = str(refused)
    else:
        check_predictions(published)
        return
    assert reason.isprintable()
    assert 0 < len(reason) < 250


def check_predictions(published):
    (row,) = score_rows([published], ("model",))
    ((seconds, parts),) = predict_steps([published.run])
    assert math.isfinite(seconds)
    assert seconds > 0
    assert all(math.isfinite(v) and v >= 0 for v in parts.values())
    assert sum(parts.values()) == pytest.approx(seconds)
    assert row.predicted_peak_gib is None or 0 < row.predicted_peak_gib < math.inf
    peaks = predict_peaks(published.run)
    assert np.all(np.isfinite(peaks.allocated))


@fuzz
@given(st.dictionaries(st.sampled_from(COLUMNS), _CELL, max_size=12))
@example({"n_gpus": "1" + "0" * 400})
@example({"model": "9" * 400 + "B", "layers": ""})
def test_any_cells(cells):
    predicts_or_refuses({**PLAIN, **cells})


@fuzz
@given(likely_rows())
def test_any_layout(cells):
    predicts_or_refuses({**PLAIN, **cells})


def test_rows_of_one_table_do_not_depend_on_each_other():
    rows = [run_of({**PLAIN, **g}) for g in ({}, {"n_experts": "8", "ep": "2"}, {"vp": "2"})]
    together = [s for s, _ in predict_steps([r.run for r in rows])]
    alone = [predict_steps([r.run])[0][0] for r in rows]
    assert together == pytest.approx(alone, rel=1e-12)
