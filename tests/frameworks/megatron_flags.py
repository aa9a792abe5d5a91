"""`python -m tests.frameworks.megatron_flags`: list the arguments of the installed Megatron-LM.

It needs megatron-core of the release that `launch.framework.megatron` names, on the path; what it
imports of a GPU's is left out (`megatron_on_cpu`). The list is what unit tests check emitted
arguments against, without it.
"""

import argparse
import json
from pathlib import Path

from launch.framework.megatron import RELEASE

PATH = Path(__file__).parent / f"{RELEASE.replace(' ', '-')}-arguments.json"


def arguments() -> dict[str, dict[str, object]]:
    """Argument -> how many values (argparse's nargs; 1: one), their type and choices."""
    from megatron.training.arguments import add_megatron_arguments

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_megatron_arguments(parser)
    found: dict[str, dict[str, object]] = {}
    for action in parser._actions:
        entry: dict[str, object] = {"values": 1 if action.nargs is None else action.nargs}
        if action.type in (int, float):
            entry["type"] = action.type.__name__
        if action.choices is not None:
            entry["choices"] = [str(getattr(c, "name", c)) for c in action.choices]
        found |= {name: entry for name in action.option_strings if name.startswith("--")}
    return dict(sorted(found.items()))


def main() -> None:
    """Write it, a line for each argument."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in arguments().items()]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    from tests.frameworks.megatron_on_cpu import on_cpu

    on_cpu()
    main()
