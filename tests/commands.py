"""The command line as a process of its own, and a model that it trains in no time."""

import subprocess
import sys
from pathlib import Path

LLAMA = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
"""A config.json."""


def command(*args: object) -> list[str]:
    """A command line of `meshwright`."""
    return [sys.executable, "-P", "-m", "launch.cli.app", *map(str, args)]


def meshwright(folder: Path, *args: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run it in a folder to its end, which has to be with this code."""
    done = subprocess.run(command(*args), cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done
