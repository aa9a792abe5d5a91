#!/bin/sh
# Builds the wheel, installs it without torch into a fresh environment, and plans with it as a user of
# pipx would: by a link to the command, from any folder, in a bare environment.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "wheel check: $1" >&2
    exit 1
}
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" wheel --quiet --no-deps --constraint "$here/constraints.txt" \
    --wheel-dir "$work/dist" "$here"
"$work/venv/bin/pip" install --quiet --constraint "$here/constraints.txt" "$work"/dist/*.whl

# What the wheel says of itself, and holds.
"$work/venv/bin/python" -P -c '
from importlib.metadata import distribution

wheel = distribution("meshwright")
info = f"meshwright-{wheel.version}.dist-info"
files = {str(f): f for f in wheel.files}
assert wheel.metadata["License-Expression"] == "Apache-2.0", wheel.metadata["License-Expression"]
assert "Apache License" in files[f"{info}/licenses/LICENSE"].read_text()
assert wheel.metadata["Description"].startswith("# Meshwright")
ours = {"planner", "profiler", "solvers", "launch", info, ".."}
assert {f.split("/")[0] for f in files} == ours, {f.split("/")[0] for f in files} ^ ours
assert {f"{p}/py.typed" for p in ("planner", "profiler", "solvers", "launch")} <= files.keys()
'
"$work/venv/bin/python" -c 'import torch' 2>/dev/null && fail "torch came along"

# A folder with modules of the same names as ours must not get in the way.
mkdir "$work/bin" "$work/elsewhere"
ln -s "$work/venv/bin/meshwright" "$work/bin/meshwright"
cd "$work/elsewhere"
for name in planner profiler solvers launch; do echo 'raise SystemExit("shadowed")' >"$name.py"; done
alone() {
    env -i PATH="$work/bin:/usr/bin:/bin" HOME="$work" LC_ALL=C.UTF-8 "$@"
}
version=$(alone meshwright --version)
[ "$version" = "meshwright $("$work/venv/bin/python" -P -c '
from importlib.metadata import version
print(version("meshwright"))')" ] || fail "--version says $version"
alone meshwright --help | grep -q 'Exit codes' || fail "--help"
alone meshwright -q plan -m llama3-8b -c h100-2x8 --global-batch 256 --seq-len 8192 --json >plan.out
"$work/venv/bin/python" -P -c '
import json, sys
plan = json.load(open(sys.argv[1]))
assert plan["kind"] == "plan" and plan["chosen"]["estimate"]["step_s"] > 0
' plan.out
alone meshwright -q show plan.json --report page.html
[ -s page.html ] || fail "no report"
alone meshwright why plan.json >/dev/null
alone meshwright list >/dev/null
alone meshwright schema plan >/dev/null
alone meshwright -q launch plan.json --dry-run >/dev/null
offered=$(alone env _MESHWRIGHT_COMPLETE=complete_bash COMP_WORDS='meshwright plan -m llama3-8' \
    COMP_CWORD=3 meshwright)
[ "$offered" = llama3-8b ] || fail "completion offers '$offered'"
status=0
alone meshwright profile -m tiny-llama >/dev/null 2>err || status=$?
grep -q 'meshwright\[run\]' err || fail "no hint at what is to be installed"
[ "$status" = 1 ] || fail "profile without torch exits $status"
echo "wheel check: planning works without torch"
