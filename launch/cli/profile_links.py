"""`meshwright profile --links`: the links between hosts, measured or read, with what stands out."""

import contextlib
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from launch.cli.terminal import Progress, note, say, warn
from profiler.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from profiler.link_profile import Finding, GroupTime, LinkReport
    from profiler.links import Links

_SHOWN_HOSTS = 12


def run(
    out: Path,
    *,
    hosts: Path | None,
    read: Path | None,
    nics: str | None,
    fabric: Path | None,
    budget_s: float | None,
    serial: bool,
    seed: int,
    address: str | None,
    by_hand: bool,
    restart: bool,
    as_json: bool,
) -> None:
    """Measure or convert, save, show."""
    from launch.artifact import write_atomic
    from profiler.codec import canonical
    from profiler.link_files import links_document, read_fabric

    known = None if fabric is None else read_fabric(fabric)
    if (hosts is None) == (read is None):
        raise UserError(
            "`--links` needs the hosts to measure, or a file to read",
            hint="give `--hosts HOSTFILE` or `--from FILE`",
        )
    if read is not None:
        links, report = _converted(read, known)
    else:
        assert hosts is not None
        from launch.link_profiling import BUDGET_S, How, measure_links
        from launch.link_wire import parse_address
        from launch.profiling import discard_partial
        from launch.scheduler.hosts import read_hosts
        from launch.scheduler.ssh import Ssh

        own, port = (None, 0) if address is None else parse_address(address)
        how = How(
            hosts=read_hosts(hosts), ssh=None if by_hand else Ssh(), nics=_nics(nics),
            budget_s=budget_s or BUDGET_S, serial=serial, seed=seed, address=own, port=port,
            fabric=known,
        )  # fmt: skip
        with _progress() as progress:
            links, report = measure_links(how, out, restart=restart, progress=progress, tell=note)
    text = canonical(links_document(links, report))
    write_atomic(out, text)
    if read is None:
        discard_partial(out)
    if as_json:
        typer.echo(text, nl=False)
    else:
        _print(links, report)
    for host in report.lost if read is None else ():
        warn(f"{host} did not take part to the end: its links are not in the file")
    note(f"Saved the links to: `{out}`")


def _nics(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ("",)
    if text == "all":
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise UserError(f"`--nics {text[:60]}` is no list of NICs", hint="like eth0,eth1, or all")
    return names


@contextlib.contextmanager
def _progress() -> "Iterator[Progress]":
    progress = Progress()
    try:
        yield progress
    finally:
        progress.close()


def _converted(path: Path, fabric: "object | None") -> "tuple[Links, LinkReport]":
    """The links of any file that is read, judged as if they had been measured."""
    from profiler.link_assemble import fabric_tiers
    from profiler.link_files import Fabric, read_link_report, read_links
    from profiler.link_findings import find
    from profiler.link_profile import LinkReport, PairTime

    links, report = read_links(path), read_link_report(path)
    if report is not None:
        return links, report
    pairs = tuple(
        PairTime(
            source=a, target=b, nic="", points=(), latency_s=float(links.latency_s[i, j]),
            bytes_per_s=float(links.bytes_per_s[i, j]), spread=0.0,
        )
        for i, a in enumerate(links.hosts)
        for j, b in enumerate(links.hosts)
        if i != j
    )  # fmt: skip
    tiers = fabric_tiers(fabric, links.hosts) if isinstance(fabric, Fabric) else None
    findings = find(links.hosts, ("",), pairs, tiers=tiers)
    empty = LinkReport(
        nics=("",), backend="", pairs=(), groups=(), flows=(), lost=(), failed=(), held_out=None,
        findings=findings,
    )  # fmt: skip
    return links, empty


def _print(links: "Links", report: "LinkReport") -> None:
    from profiler.link_assemble import error_words

    n = len(links.hosts)
    names = f", {', '.join(report.nics)}" if any(report.nics) else ""
    say(f"Links between {n} hosts{names}{f', {report.backend}' if report.backend else ''}")
    if n <= _SHOWN_HOSTS:
        _matrix(links)
    _ends(links)
    if report.groups:
        _groups(report.groups, links)
    if report.held_out is not None:
        say(f"\nNot all pairs were measured: {error_words(report.held_out)}")
    say_findings(report.findings)


def _matrix(links: "Links") -> None:
    from launch.cli.render import seconds

    short = [name[-7:] for name in links.hosts]
    say("\nMbit/s from the row to the column, and latency to the slowest:\n")
    say(f"{'':<12}" + "".join(f"{name:>8}" for name in short) + f"{'latency':>10}")
    for i, host in enumerate(links.hosts):
        cells = (
            "       -" if i == j else f"{links.bytes_per_s[i, j] * 8e-6:>8.0f}"
            for j in range(len(short))
        )  # fmt: skip
        worst = max(float(s) for j, s in enumerate(links.latency_s[i]) if j != i)
        say(f"{host[-12:]:<12}" + "".join(cells) + f"{seconds(worst):>10}")


def _ends(links: "Links") -> None:
    from profiler.link_findings import rate_words

    if links.out_rate is None or links.in_rate is None:
        return
    say("\nA host with several others at once:")
    for way, rates in (("sends", links.out_rate), ("receives", links.in_rate)):
        low, high = int(rates.argmin()), int(rates.argmax())
        say(
            f"  {way:<9}{rate_words(float(rates[low]))} ({links.hosts[low]}) to "
            f"{rate_words(float(rates[high]))} ({links.hosts[high]})"
        )


def _groups(groups: "tuple[GroupTime, ...]", links: "Links") -> None:
    from launch.cli.render import seconds, size
    from profiler.link_assemble import predicted_s

    say(f"\n{'collective':<12}{'hosts':>6}{'bytes':>10}{'measured':>11}{'from pairs':>12}")
    for group in groups:
        if set(group.hosts) <= set(links.hosts):
            say(
                f"{group.op:<12}{len(group.hosts):>6}{size(group.num_bytes):>10}"
                f"{seconds(group.seconds):>11}{seconds(predicted_s(group, links)):>12}"
            )


def say_findings(findings: "tuple[Finding, ...]") -> None:
    """A line for each, and its advice."""
    if not findings:
        say("\nNothing stands out.")
        return
    say(f"\n{len(findings)} finding{'s' if len(findings) > 1 else ''}:")
    for finding in findings:
        for text, indent in ((finding.message, 2), (finding.advice, 4)):
            for line in textwrap.wrap(text, 80 - indent, break_on_hyphens=False):
                say(" " * indent + line)
