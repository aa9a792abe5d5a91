"""Headless Chromium as a measuring rod for pages: what it says on the console, what it draws."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "REQUIRE_CHROMIUM" in os.environ
"""Set where the browser must be there (CI): its tests then fail without it."""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1300,1000",
)  # fmt: skip
_PROBE = """
onload = () => {
  const frame = document.getElementById('frame'), page = frame.contentDocument
  const root = page.documentElement
  const found = {
    width: root.clientWidth,
    scroll_width: root.scrollWidth,
    requests: frame.contentWindow.performance.getEntriesByType('resource').map(e => e.name),
    background: getComputedStyle(page.body).backgroundColor,
    svgs: [...page.querySelectorAll('section svg')].map(svg => {
      const box = svg.getBoundingClientRect()
      return {section: svg.closest('section').id, width: box.width, height: box.height,
              drawn: svg.querySelectorAll('rect,circle,text,line').length}
    }),
  }
  document.getElementById('found').textContent = JSON.stringify(found)
}
"""


@dataclass
class Seen:
    """A page as the browser showed it at one width."""

    width: int
    scroll_width: int
    requests: list[str]
    background: str
    svgs: list[dict]
    console: list[str]


def browser() -> str | None:
    """Path of an installed Chromium."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def look(page: str, width: int, folder: Path, *, dark: bool = False) -> Seen:
    """Show the page in a frame of that width, so that the window's least width does not matter."""
    frame = (
        f"<!doctype html><style>body{{margin:0}}</style><script>{_PROBE}</script>"
        f'<iframe id="frame" style="border:0;width:{width}px;height:900px" '
        f'srcdoc="{html.escape(page)}"></iframe><pre id="found"></pre>'
    )
    path = folder / f"frame-{width}-{dark}.html"
    path.write_text(frame, encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [
        str(browser()), *_FLAGS, *scheme, f"--user-data-dir={folder / 'profile'}", "--dump-dom",
        path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(**json.loads(html.unescape(text)), console=console)
