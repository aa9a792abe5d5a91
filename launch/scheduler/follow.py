"""Follow a file that another process, perhaps on another host, appends lines to."""

from pathlib import Path

from launch.scheduler.base import OnLine


class Follower:
    """Gives each line once, when it is whole."""

    def __init__(self, path: Path, on_line: OnLine) -> None:
        self._path, self._on_line = path, on_line
        self._offset = 0
        self._rest = b""

    def poll(self, *, last: bool = False) -> None:
        """What came since; with `last`, a line without its end too."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return
        self._offset += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        if last and self._rest:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._on_line(line.decode(errors="replace"))
