"""Commands of all pages that are not guides (those have `test_guides.py`): each is run, with files
of the names that it has, or it is said which test runs it. Launches are run with `--dry-run`."""

import re
import shlex
import shutil

import pytest

from profiler.codec import encode
from tests import made
from tests.cli.test_docs import PAGES, ROOT, command_lines
from tests.unit.test_training_log import LOGS

TINY, MOE = "examples/tiny-llama", "examples/tiny-moe"
ELSEWHERE = {
    r"profile -m .*--nproc": ("tests/parity/test_loop.py", "profile"),
    r"plan .*--profile": ("tests/parity/test_loop.py", "--profile"),
    r"verify plan.json runs/": ("tests/parity/test_loop.py", "verify"),
    r"profile --links --hosts": ("tests/lab/test_link_profile.py", "--hosts"),
    r"launch --status": ("tests/lab/test_ssh_launch.py", "--status"),
    r"launch --stop": ("tests/lab/test_ssh_launch.py", "--stop"),
    r"plan --from plan.json --lost \w+ --run": ("tests/lab/test_replan.py", "--run"),
    r"launch new-plan.json --prepare --resume": ("tests/lab/test_replan.py", "--resume"),
    r"experts import dump.pt": ("tests/parity/test_routing_run.py", "torch.save"),
    r"experts show (runs/|t\.npz|settled)": ("tests/cli/test_experts.py", "--picture"),
    r"export runs/": ("tests/parity/test_weights_in_training.py", "export"),
    r"validate ": ("tests/cli/test_validate.py", "--plot"),
    r"--install-completion": ("tests/cli/test_completion.py", "completion"),
}
"""Need hosts, processes, runs or others' files -> file of the test that runs it, and a word."""
LINES = sorted(
    {
        re.sub(r" *(\s[>|&<#]|\$\().*", "", line).strip()
        for path in PAGES
        if path.name != "CHANGELOG.md"
        for line in command_lines(path.read_text(encoding="utf-8"))
    }
)
NAMED = {"profile", "validate", "map", "experts", "launch", "diff", "plan --from", "plan --links",
         "profile --links", "plan --layout FILE", "plan --links links.json",
         "map --order-out hostfile"}  # fmt: skip
"""Parts of a command that sentences speak of."""
WHOLE = [line for line in LINES if re.match(r"-{1,2}[a-z]|[a-z]+\b", line) and line not in NAMED]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What commands read, under the names that pages give them."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "hostfile").write_text("host0\nhost1\n")
    (folder / "hosts").write_text("host0\nhost1\n")
    (folder / "run").mkdir()
    shutil.copy(LOGS / "megatron-lm.txt", folder / "megatron.log")
    shutil.copy(LOGS / "megatron-lm.txt", folder / "run" / "log.txt")
    shutil.copy(ROOT / MOE / "routing.npz", folder / "routing.npz")
    shutil.copy(ROOT / "examples" / "unlike-hosts" / "links.csv", folder / "rates.csv")
    (folder / "recipe.yaml").write_text("steps: 4\n")
    (folder / "layout.yaml").write_text("dp_replicate: 8\n")
    return folder


@pytest.fixture
def folder(files, tmp_path, meshwright):
    """An own copy of them."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.fixture(scope="module")
def planned():
    """Plans by their arguments, each made once."""
    return {}


def plan_of(line):
    """Arguments for what a line's `plan.json` is of."""
    if re.search(r"routing|rebalance|tiny-moe", line):
        asked = f"{MOE}/config.json -c cpu-1x2 --layout {MOE}/layout.yaml --global-batch 16"
    elif "--lost 1" in line:
        asked = "llama3-8b -c h100-4x8 --global-batch 384 --pin zero=0"
    elif line.startswith("launch") and "--on" not in line and "--for" not in line:
        asked = f"{TINY}/config.json -c cpu-1x4 --global-batch 16"
    else:
        asked = "llama3-8b -c h100-2x8 --global-batch 256"
    return ("-m", *asked.split())


@pytest.mark.parametrize("line", WHOLE)
def test_a_command_of_a_page_runs(line, meshwright, folder, planned):
    for pattern, (path, word) in ELSEWHERE.items():
        if re.match(pattern, line):
            assert word in (ROOT / path).read_text(encoding="utf-8")
            return
    for name, more in (("plan.json", ()), ("tp8.json", ("--pin", "tp=8"))):
        args = (*plan_of(line), *more)
        if re.search(rf" {name}", line) and f"-o {name}" not in line:
            if args not in planned:
                assert meshwright("plan", *args, "-o", name).code == 0
                planned[args] = (folder / name).read_text()
            (folder / name).write_text(planned[args])
    if "--log" in line:
        (folder / "plan.json").write_text(encode(made.plan()))
    args = shlex.split(line.replace("MODEL", f"{MOE}/config.json").replace("FILE", "hostfile"))
    if args[0] == "launch" and "--for" not in args:
        args += ["--dry-run"]
    result = meshwright(*args)
    expected = {0, 4} if args[0] == "diff" or "--from" in args else {0}
    assert result.code in expected, result.err


def test_nothing_is_said_to_run_elsewhere_in_vain():
    for pattern in ELSEWHERE:
        assert any(re.match(pattern, line) for line in WHOLE), pattern
