"""Figures in the README: each block between a mark and `<!-- end -->` is written by a command."""

from pathlib import Path

from launch.artifact import write_atomic

README = Path(__file__).resolve().parents[2] / "README.md"
_END = "<!-- end -->"


def write_block(mark: str, text: str, path: Path = README) -> None:
    """Put `text` between `<!-- MARK -->` and the next end; both marks must be there."""
    start = f"<!-- {mark} -->"
    before, rest = path.read_text(encoding="utf-8").split(f"{start}\n", 1)
    after = rest.split(_END, 1)[1]
    write_atomic(path, f"{before}{start}\n{text.strip()}\n{_END}{after}")
