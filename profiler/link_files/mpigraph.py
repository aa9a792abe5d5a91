"""Output of mpiGraph (github.com/LLNL/mpiGraph, mpiGraph.c): bandwidth between all pairs of nodes.

    Send    node1:0   node2:1   node3:2
    node1:0 to      0.000   11234.567  11456.789
    ...
    Recv    node1:0   node2:1   node3:2
    node1:0 from    0.000   11345.678  11567.890

Every rank times its sends and its receives apart, while it does both; MB are 2^20 bytes. `A to B`
of the first table and `B from A` of the second are one transfer seen from its two ends. It is over
when both are: the slower of the two counts. Without a second table the first counts alone.
"""

from profiler.errors import UserError
from profiler.link_files.table import Cell, Matrix, cell, check_hosts, counted, lines_of, links_of
from profiler.links import Links

MB = 2.0**20
_HINT = "run mpiGraph with one task per node: `srun -n NODES -N NODES mpiGraph 1048576 10 10`"
Lines = list[list[str]]


def is_mpigraph(text: str) -> bool:
    """Whether a text has mpiGraph's first line, or its table of sends."""
    return any(
        words[:2] == ["START", "mpiGraph"] or _is_header(words, "Send")
        for words in (line.split() for line in lines_of(text))
    )


def links_of_mpigraph(text: str, place: str) -> Links:
    """Links of an output; `UserError` with the line."""
    lines = [line.split() for line in lines_of(text)]
    sent = _table(lines, "Send", "to", place)
    if sent is None:
        raise UserError("mpiGraph's output ends before its table of sends", place=place)
    received = _table(lines, "Recv", "from", place)
    if received is None:
        return links_of(sent, MB, place)
    if received.hosts != sent.hosts:
        raise UserError("the tables of sends and receives are of other hosts", place=place)
    n = len(sent.hosts)
    slower = [[_slower(sent.rows[i][j], received.rows[j][i]) for j in range(n)] for i in range(n)]
    return links_of(Matrix(hosts=sent.hosts, rows=slower, place=sent.place), MB, place)


def _slower(sent: Cell, received: Cell) -> Cell:
    return None if sent is None or received is None else min(sent, received)


def _is_header(words: list[str], name: str) -> bool:
    """`Send host:rank ...`, not `Send max 123.4`."""
    ranked = (word.rpartition(":") for word in words[1:])
    return len(words) > 1 and words[0] == name and all(h and r.isdecimal() for h, _, r in ranked)


def _table(lines: Lines, name: str, word: str, place: str) -> Matrix | None:
    """The table that begins with `name`, whose rows begin with a host and `word`."""
    start = next((k for k, words in enumerate(lines) if _is_header(words, name)), None)
    if start is None:
        return None
    ranks, at = lines[start][1:], f"{place}:{start + 1}"
    named = [rank.rpartition(":")[0] for rank in ranks]
    twice = next((host for host in named if named.count(host) > 1), None)
    if twice is not None:
        raise UserError(f"host `{twice}` ran several ranks", hint=_HINT, place=at)
    hosts = check_hosts(named, at)
    rows: list[list[Cell]] = []
    for k, rank in enumerate(ranks):
        line = start + 1 + k
        words = lines[line] if line < len(lines) else []
        if words[:2] != [rank, word]:
            raise UserError(
                f"the {name} table has {counted(k, 'row')} for {counted(len(ranks), 'host')}",
                hint="the output is cut off",
                place=f"{place}:{min(line + 1, len(lines))}",
            )
        if len(words) != len(ranks) + 2:
            raise UserError(
                f"the row of `{rank}` has {counted(len(words) - 2, 'number')} for "
                f"{counted(len(ranks), 'host')}",
                place=f"{place}:{line + 1}",
            )
        rows.append([cell(w, f"{place}:{line + 1}") for w in words[2:]])
    return Matrix(hosts=hosts, rows=rows, place=lambda i: f"{place}:{start + 2 + i}")
