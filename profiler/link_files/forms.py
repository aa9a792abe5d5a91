"""Links of a file of any form that is read, told by its content: JSON, CSV or mpiGraph's output."""

from pathlib import Path

from profiler.codec import read_text
from profiler.errors import UserError
from profiler.link_files.csv_matrix import is_csv, links_of_csv
from profiler.link_files.json_forms import links_of_json, report_of_json
from profiler.link_files.mpigraph import is_mpigraph, links_of_mpigraph
from profiler.link_profile import LinkReport
from profiler.links import Links

_HINT = (
    "understood are JSON with `kind: links`, `hosts` and `bytes_per_s`; JSON with `gpus` and "
    "`bandwidth` in GB/s; a CSV matrix with a header row of hosts; and the output of mpiGraph"
)


def read_links(path: Path) -> Links:
    """Links of a file; `UserError` with file and line."""
    return links_from_text(read_text(path), str(path))


def read_link_report(path: Path) -> LinkReport | None:
    """What `meshwright profile --links` measured for a file; None where it is another's."""
    return report_of_json(read_text(path), str(path))


def links_from_text(text: str, place: str) -> Links:
    """Links of a text; `place` is what errors call the file."""
    links = None
    if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
        links = links_of_json(text, place)
    elif is_mpigraph(text):
        links = links_of_mpigraph(text, place)
    elif is_csv(text):
        links = links_of_csv(text, place)
    if not text.strip("\ufeff \t\r\n"):
        raise UserError("the file is empty", hint=_HINT, place=place)
    if links is None:
        raise UserError("this is no table of links", hint=_HINT, place=place)
    return links
