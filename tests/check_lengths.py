"""Fails where a source file is longer than 400 lines; names those over 300."""

import subprocess
import sys
from pathlib import Path

LIMIT, HABIT = 400, 300


def main() -> int:
    """0 where all files keep the limit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    lengths = {name: len(Path(name).read_text().splitlines()) for name in listed}
    for name, lines in sorted(lengths.items(), key=lambda x: -x[1]):
        if lines > HABIT:
            print(f"{lines:>5} {name}{'  over the limit' if lines > LIMIT else ''}")
    return int(max(lengths.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
