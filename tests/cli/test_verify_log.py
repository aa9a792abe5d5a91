"""`verify --log`: a plan against what Megatron-LM or torchtitan logged."""

import json
from pathlib import Path

import pytest

from profiler.codec import encode
from tests import made
from tests.unit.test_training_log import LOGS


@pytest.fixture
def planned(tmp_path):
    (tmp_path / "plan.json").write_text(encode(made.plan()))


@pytest.mark.usefixtures("planned")
def test_verify_log(meshwright):
    log = LOGS / "megatron-lm.txt"
    result = meshwright("verify", "plan.json", "--log", log)
    assert (result.code, result.err) == (0, "")
    assert "peak memory" in result.out
    assert "Medians of 2 steps" in result.out
    assert meshwright("verify", "plan.json", "--log", log, "--tolerance", 0.01).code == 4
    document = json.loads(meshwright("verify", "plan.json", "--log", log, "--json").out)
    assert [row["name"] for row in document["rows"]] == ["step", "peak memory"]


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ((), 2, "give OBSERVED or --log"),
        (("x.json", "--log", LOGS / "megatron-lm.txt"), 2, "give OBSERVED or --log"),
        (("--log", LOGS / "torchtitan.txt"), 5, "the run has a global batch of 8"),
        (("--log", LOGS / "killed.txt"), 1, "no line of it is a step"),
        (("--log", "nofile"), 1, "no such file"),
        (("--log", LOGS / "megatron-lm.txt", "--skip", 4), 1, "the first 4 are left out"),
    ],
)
def test_refusals(args, code, message, meshwright):
    result = meshwright("verify", "plan.json", *args)
    assert (result.code, result.out) == (code, "")
    assert message in " ".join(result.err.split())
    assert Path("plan.json").exists()
