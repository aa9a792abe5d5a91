"""What moves between two layouts, as text of at most 80 columns."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.moves import Moves

MOST_NODES = 12
"""Nodes that are shown one by one."""


def totals(moves: "Moves") -> list[str]:
    """Bytes of state by where they are, over all ranks."""
    from launch.cli.render import size

    whole = "" if moves.exact else ", by parts of blocks"
    rows = (
        ("needed on all ranks", moves.need_bytes),
        ("held there already", moves.held_bytes),
        ("held by other ranks", moves.fetched_bytes),
        ("in the checkpoint alone", moves.from_checkpoint_bytes),
    )
    lines = [f"\nState: {size(moves.state_bytes)} in one copy, 12 bytes per parameter{whole}"]
    lines += [f"  {name:<26}{_size(value):>12}" for name, value in rows]
    return lines


def by_node(moves: "Moves") -> list[str]:
    """Per node what it has, what it fetches from itself and others, what it lacks; nothing of one
    node or of many."""
    nodes = sorted({rank.node for rank in moves.ranks})
    if not 1 < len(nodes) <= MOST_NODES:
        return []
    lines = [f"\n  {'node':<6}{'has':>12}{'from itself':>14}{'from others':>14}{'checkpoint':>13}"]
    for node in nodes:
        own = [rank for rank in moves.ranks if rank.node == node]
        inside = sum(f.num_bytes for f in moves.flows if f.source == f.target == node)
        fetched = sum(rank.fetched_bytes for rank in own)
        has, lost = (sum(getattr(r, name) for r in own) for name in ("held_bytes", "lost_bytes"))
        lines.append(
            f"  {node:<6}{_size(has):>12}{_size(inside):>14}{_size(fetched - inside):>14}"
            f"{_size(lost):>13}"
        )
    return lines


def _size(num_bytes: int) -> str:
    from launch.cli.render import size

    return size(num_bytes) if num_bytes else "-"
