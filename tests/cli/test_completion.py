"""Completion in shells: the script works in bash, and names of the catalogue are offered."""

import os
import shutil
import subprocess
import sys

import pytest
import shellingham

from launch.cli import app

SHELLS = {"bash": "complete -o default", "zsh": "#compdef meshwright", "fish": "complete --command"}


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """Say which shell the terminal has, and give it a home."""

    def use(name):
        monkeypatch.setattr(shellingham, "detect_shell", lambda *_: (name, f"/bin/{name}"))
        monkeypatch.setenv("HOME", str(tmp_path))

    return use


@pytest.mark.parametrize(("name", "words"), SHELLS.items())
def test_the_script_is_printed(name, words, meshwright, shell):
    shell(name)
    result = meshwright("--show-completion")
    assert (result.code, result.err) == (0, "")
    assert words in result.out
    assert "_MESHWRIGHT_COMPLETE" in result.out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_script(meshwright, shell, tmp_path):
    shell("bash")
    (tmp_path / "script").write_text(meshwright("--show-completion").out)
    command = tmp_path / "meshwright"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m launch.cli.app "$@"\n')
    command.chmod(0o755)
    done = subprocess.run(
        [
            "bash", "-c",
            "source ./script; COMP_WORDS=(meshwright plan -m llama3-); COMP_CWORD=3; "
            f'_meshwright_completion "{command}"; printf "%s\\n" "${{COMPREPLY[@]}}"',
        ],
        cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["llama3-70b", "llama3-8b"]


def test_installing_it_names_the_file(meshwright, shell, tmp_path):
    shell("bash")
    result = meshwright("--install-completion")
    assert result.code == 0
    script = tmp_path / ".bash_completions" / "meshwright.sh"
    assert str(script) in result.out
    assert str(script) in (tmp_path / ".bashrc").read_text()
    assert SHELLS["bash"] in script.read_text()


OFFERED = [
    ("pl", {"plan"}),
    ("plan --glo", {"--global-batch"}),
    ("plan -m deepseek-v3", {"deepseek-v3"}),
    ("profile --model tiny", {"tiny-llama"}),
    ("plan -c h200", {"h200-1x8"}),
    ("plan -c aws-p5", {"aws-p5-1", "aws-p5e-1", "aws-p5en-1"}),
    ("plan -c dgx-a100-4", {"dgx-a100-4", "dgx-a100-40gb-1"}),
    ("list s", {"software"}),
    ("schema ver", {"verdict"}),
    ("plan -m ./config", set()),  # the shell offers files
    ("show pl", set()),
]


@pytest.mark.parametrize(("line", "names"), OFFERED)
def test_names_are_offered(line, names, monkeypatch, capsys):
    words = f"meshwright {line}"
    monkeypatch.setenv("_MESHWRIGHT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert app.run([]) == 0
    assert set(capsys.readouterr().out.split()) == names


def test_what_is_offered_can_be_planned_for():
    from launch.cli.complete import clusters, models
    from profiler.catalog import resolve_cluster, resolve_model

    for name, _ in clusters(""):
        assert resolve_cluster(name).num_devices > 0
    for name, _ in models(""):
        assert resolve_model(name).name
