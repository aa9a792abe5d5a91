"""Whether a table can run, what it keeps in memory, and its text form."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from planner.schedules.action import Action, Flights, Op, Table
from profiler.errors import UserError

_ACTION = re.compile(r"([0-9]{1,6})([FBIW])([0-9]{1,6})")


def parse_table(rows: Sequence[str]) -> Table:
    """Rows like `0F0 0F1 0B0 0B1`, one per pipeline rank. `check_table` says whether they can run.

    Raises `UserError` for text that is no table.
    """
    if not rows:
        raise UserError("the table has no rows", hint="write one row of actions per pipeline rank")
    return tuple(
        tuple(_parse_action(word, rank) for word in row.split()) for rank, row in enumerate(rows)
    )


def _parse_action(word: str, rank: int) -> Action:
    match = _ACTION.fullmatch(word)
    if match is None:
        raise UserError(
            f"`{word[:40]}` in row {rank} of the table is not an action",
            hint="like `2F0`: stage, one of F B I W, micro-batch; spaces between actions",
        )
    stage, op, micro_batch = match.groups()
    return Action(int(stage), cast(Op, op), int(micro_batch))


def format_table(table: Table) -> tuple[str, ...]:
    """Text that `parse_table` reads."""
    return tuple(" ".join(map(str, row)) for row in table)


def check_table(table: Table, num_stages: int, num_microbatches: int) -> str | None:
    """What keeps the table from training `num_stages` stages, in a sentence; None where it can.

    Every stage runs F of each micro-batch, then B, or I and later W, all on one row; and no actions
    wait for each other.
    """
    checks = (
        _strangers(table, num_stages, num_microbatches),
        _incomplete(table, num_stages, num_microbatches),
        _disorder(table),
        _deadlock(table),
    )
    for found in checks:
        if (sentence := next(found, None)) is not None:
            return sentence
    return None


def _strangers(table: Table, num_stages: int, num_microbatches: int) -> Iterator[str]:
    row_of: dict[int, int] = {}
    for rank, row in enumerate(table):
        if not row:
            yield f"row {rank} of the table has no actions"
        for action in row:
            if not 0 <= action.stage < num_stages:
                yield f"`{action}` in row {rank}: stages are 0 to {num_stages - 1}"
            if not 0 <= action.micro_batch < num_microbatches:
                yield f"`{action}` in row {rank}: micro-batches are 0 to {num_microbatches - 1}"
            first = row_of.setdefault(action.stage, rank)
            if first != rank:
                yield f"stage {action.stage} is in row {first} and in row {rank}"


def _incomplete(table: Table, num_stages: int, num_microbatches: int) -> Iterator[str]:
    count = Counter(action for row in table for action in row)
    twice = next((action for action, n in count.items() if n > 1), None)
    if twice is not None:
        yield f"`{twice}` is in the table {count[twice]} times"
    for stage in range(num_stages):
        for k in range(num_microbatches):
            f, b, i, w = (Action(stage, op, k) for op in ("F", "B", "I", "W"))
            if f not in count:
                yield f"`{f}` is missing"
            if b in count and i in count:
                yield f"`{b}` and `{i}` are both there: backward is B, or I and W"
            if b not in count and i not in count:
                yield f"`{b}` is missing (or `{i}` and `{w}`)"
            if i in count and w not in count:
                yield f"`{i}` is there without `{w}`"
            if w in count and i not in count:
                yield f"`{w}` is there without `{i}`"


def _disorder(table: Table) -> Iterator[str]:
    for rank, row in enumerate(table):
        seen: set[Action] = set()
        for action in row:
            stage, op, k = action
            needs = None if op == "F" else Action(stage, "I" if op == "W" else "F", k)
            if needs is not None and needs not in seen:
                yield f"`{action}` is before `{needs}` in row {rank}"
            seen.add(action)


def _deadlock(table: Table) -> Iterator[str]:
    """Of a table with no other fault: an action waits for one other at most."""
    awaited = _awaited(table)
    position = _run(table, awaited)
    stuck = {
        r: row[at] for r, (row, at) in enumerate(zip(table, position, strict=True)) if row[at:]
    }
    if not stuck:
        return
    # Each stuck row waits for one that is stuck itself: going on from row to row ends in a circle.
    row_of = {action.stage: rank for rank, row in enumerate(table) for action in row}
    rows = [next(iter(stuck))]
    while (rank := row_of[awaited[stuck[rows[-1]]].stage]) not in rows:
        rows.append(rank)
    circle = rows[rows.index(rank) :]
    if circle == [rank]:
        yield f"`{stuck[rank]}` is before `{awaited[stuck[rank]]}` in row {rank}"
    else:
        named = ", ".join(f"`{stuck[r]}` (row {r})" for r in circle)
        yield f"actions wait for each other: {named}"


def _awaited(table: Table) -> dict[Action, Action]:
    """Action -> what it needs from the neighbouring stage."""
    actions = {action for row in table for action in row}
    awaited = {}
    for action in actions:
        stage, op, k = action
        sources = {"F": ["F"], "B": ["B", "I"], "I": ["B", "I"], "W": []}[op]
        neighbour = stage - 1 if op == "F" else stage + 1
        for source in sources:
            if (needs := Action(neighbour, cast(Op, source), k)) in actions:
                awaited[action] = needs
    return awaited


def _run(table: Table, awaited: Mapping[Action, Action]) -> list[int]:
    """How many actions of each row can run."""
    position = [0] * len(table)
    done: set[Action] = set()
    waiting_row: dict[Action, int] = {}
    runnable = list(range(len(table)))
    while runnable:
        rank = runnable.pop()
        while position[rank] < len(table[rank]):
            action = table[rank][position[rank]]
            needs = awaited.get(action)
            if needs is not None and needs not in done:
                waiting_row[needs] = rank
                break
            done.add(action)
            position[rank] += 1
            if action in waiting_row:
                runnable.append(waiting_row.pop(action))
    return position


def peak_in_flight(table: Table) -> Flights:
    """Per row, the most stage-micro-batches in flight: (until its first B or W ends, from then on).

    Forward keeps a micro-batch's activations until its B, or its W, has used them; I frees none.
    The first B or W is also what makes the row's first gradient of a weight. Stages of a row are
    counted alike.
    """
    return tuple(_peaks(row) for row in table)


def _peaks(row: Sequence[Action]) -> tuple[int, int]:
    now = before = after = 0
    begun = False
    for _, op, _ in row:
        now += (op == "F") - (op in "BW")
        begun = begun or op in "BW"
        if begun:
            after = max(after, now)
        else:
            before = max(before, now)
    return before, after
