#!/bin/sh
# Builds the wheel, installs it without torch into a fresh environment, and plans with it.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" wheel --quiet --no-deps --constraint "$here/constraints.txt" \
    --wheel-dir "$work/dist" "$here"
"$work/venv/bin/pip" install --quiet --constraint "$here/constraints.txt" "$work"/dist/*.whl
cd "$work"
if "$work/venv/bin/python" -c 'import torch' 2>/dev/null; then
    echo "wheel check: torch came along" >&2
    exit 1
fi
"$work/venv/bin/meshwright" plan -m llama3-8b -c h100-2x8 --global-batch 256 --seq-len 8192 \
    --json >"$work/plan.out"
"$work/venv/bin/python" -c '
import json, sys
plan = json.load(open(sys.argv[1]))
assert plan["kind"] == "plan" and plan["chosen"]["estimate"]["step_s"] > 0
' "$work/plan.out"
"$work/venv/bin/meshwright" show plan.json >/dev/null
status=0
"$work/venv/bin/meshwright" profile -m tiny-llama >/dev/null 2>"$work/err" || status=$?
grep -q 'meshwright\[run\]' "$work/err"
[ "$status" = 1 ]
echo "wheel check: planning works without torch"
