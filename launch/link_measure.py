"""The course of link profiling: rounds of pairs, collectives, streams at once, the hosts' own work;
what the journal has is not measured again.
"""

from collections.abc import Callable, Sequence

import numpy as np

from launch import link_cases as cases
from launch.link_agents import Agents, Outcome, Task
from profiler.link_findings import matrices
from profiler.link_profile import FlowKind, FlowPath, LinkInputs, TaskResult
from profiler.link_rounds import Round, rounds_of, serial
from profiler.links import Floats
from profiler.measure.journal import JournalOf

LinkJournal = JournalOf[LinkInputs, TaskResult]
Progress = Callable[[int, int, str], None]
_ROUND_PAIRS = 4
"""Pairs of the first round that are measured alone too."""


class Course:
    """One run over the agents that came."""

    def __init__(
        self,
        agents: Agents,
        journal: LinkJournal,
        inputs: LinkInputs,
        leaves: Sequence[object] | None,
        progress: Progress,
    ) -> None:
        self.agents, self.journal, self.inputs = agents, journal, inputs
        self.done = journal.finished()
        rounds = rounds_of(len(inputs.hosts), inputs.seed, leaves)
        self.rounds: tuple[Round, ...] = serial(rounds) if inputs.serial else rounds
        self._progress, self._finished = progress, 0
        n = len(inputs.hosts)
        self._total = (
            len(inputs.nics) * len(self.rounds)
            + len(cases.GROUP_OPS) * len(cases.group_sizes(n))
            + 3
            + (len(inputs.nics) > 1)
        )

    def run(self) -> None:
        """Measure all that the journal does not have, as far as hosts are there."""
        failed: list[Task] = []
        for nic in self.inputs.nics:
            budget = cases.pair_budget_s(
                self.inputs.budget_s, len(self.rounds), len(self.inputs.nics)
            )
            for number, pairs in enumerate(self.rounds, 1):
                self._step(f"round {number} of {len(self.rounds)} {nic}".strip())
                failed += self._round(nic, pairs, budget)
        for task in failed:  # once more, alone
            self._batch([task], cases.pair_result, last=True)
        self._groups()
        self._flows()
        self._step("work of each host")
        self._batch(
            [cases.work_task(host) for host in self.agents.alive], cases.work_result, last=True
        )
        self._progress(self._total, self._total, "")

    def _step(self, label: str) -> None:
        self._progress(min(self._finished, self._total), self._total, label)
        self._finished += 1

    def _round(self, nic: str, pairs: Round, budget_s: float) -> list[Task]:
        hosts, alive = self.inputs.hosts, set(self.agents.alive)
        tasks = [
            cases.pair_task(nic, hosts[i], hosts[j], budget_s)
            for i, j in pairs
            if {hosts[i], hosts[j]} <= alive
        ]
        return self._batch(tasks, cases.pair_result)

    def _batch(
        self, tasks: Sequence[Task], result: Callable[[Task, Outcome], TaskResult], *,
        last: bool = False,
    ) -> list[Task]:  # fmt: skip
        """Measure tasks at the same time; those that failed though all their hosts are there."""
        again: list[Task] = []

        def ended(task: Task, outcome: Outcome) -> None:
            found = result(task, outcome)
            if not found.error or (last and task.hosts <= set(self.agents.alive)):
                self.journal.end(task.name, found)
                self.done[task.name] = found
            else:
                again.append(task)

        self.agents.run([task for task in tasks if task.name not in self.done], ended)
        return [task for task in again if task.hosts <= set(self.agents.alive)]

    def _groups(self) -> None:
        hosts = self.agents.alive
        budget = cases.group_budget_s(self.inputs.budget_s, len(hosts))
        rates = self.rates(self.inputs.nics[0], hosts)
        slowest = float(np.nanmin(rates)) if np.isfinite(rates).any() else 0.0
        for size in cases.group_sizes(len(hosts)):
            for op in cases.GROUP_OPS:
                self._step(f"{op} of {size} hosts")
                alive = self.agents.alive[:size]
                if len(alive) == size:
                    task = cases.group_task(self.inputs.nics[0], op, alive, budget, slowest)
                    self._batch([task], cases.group_result, last=True)

    def rates(self, nic: str, hosts: Sequence[str]) -> Floats:
        """Of pairs measured so far, [n, n], nan elsewhere."""
        pairs = [pair for result in self.done.values() for pair in result.pairs]
        return matrices(hosts, pairs, nic)[0]

    def _flows(self) -> None:
        hosts = self.agents.alive
        tables = {nic: self.rates(nic, hosts) for nic in self.inputs.nics}
        total = np.nansum(np.stack(list(tables.values())), axis=0)
        self._step("several streams of a host")
        for kind in ("out", "in"):
            weight = total if kind == "out" else total.T
            fan = min(cases.FAN, len(hosts) - 1)
            for chosen in disjoint_fans(weight, fan):
                self._fan_batch(kind, chosen, hosts, tables)
        if len(self.inputs.nics) > 1:
            self._step("all NICs of a host at once")
            for chosen in disjoint_fans(total, 1):
                self._fan_batch("nics", chosen, hosts, tables)
        self._step("pairs of a round at once")
        self._round_at_once(hosts, tables[self.inputs.nics[0]])

    def _fan_batch(
        self,
        kind: FlowKind,
        fans: Sequence[tuple[int, tuple[int, ...]]],
        hosts: Sequence[str],
        tables: dict[str, Floats],
    ) -> None:
        """Streams between each host and its partners, over all NICs, all hosts of a batch at
        once."""
        tasks, alone = [], {}
        for host, partners in fans:
            ways = [(p, host) if kind == "in" else (host, p) for p in partners]
            found = [
                (FlowPath(source=hosts[i], target=hosts[j], nic=nic), float(table[i, j]))
                for i, j in ways
                for nic, table in tables.items()
                if np.isfinite(table[i, j])
            ]
            if found:
                paths, rates = zip(*found, strict=True)
                task = cases.flow_task(f"flows {kind} {hosts[host]}", paths, rates)
                tasks.append(task)
                alone[task.name] = (hosts[host], rates)

        def result(task: Task, outcome: Outcome) -> TaskResult:
            name, rates = alone[task.name]
            return cases.flow_result(kind, name, task, outcome, rates)

        self._batch(tasks, result, last=True)

    def _round_at_once(self, hosts: Sequence[str], table: Floats) -> None:
        """Disjoint pairs, each alone and then together: what they share is lost together."""
        name, nic = "flows round", self.inputs.nics[0]
        seats = range(0, len(hosts) - 1, 2)
        ways = [(i, i + 1) for i in seats if np.isfinite(table[i, i + 1])]
        # Neighbours are often under one leaf: every second pair is crossed with the next one.
        crossed = [
            w for (a, b), (c, d) in zip(ways[::2], ways[1::2], strict=False)
            for w in ((a, c), (b, d)) if np.isfinite(table[w])
        ]  # fmt: skip
        chosen = (crossed or ways)[:_ROUND_PAIRS]
        if name in self.done or len(chosen) < 2:
            return
        paths = [FlowPath(source=hosts[i], target=hosts[j], nic=nic) for i, j in chosen]
        rates = [float(table[way]) for way in chosen]
        alone: list[float] = []
        for path, rate in zip(paths, rates, strict=True):
            task = cases.flow_task("alone", [path], [rate])
            outcome = self.agents.run([task])[0]
            if outcome.error:
                return
            alone += cases.flow_rates(task, outcome)
        self._batch(
            [cases.flow_task(name, paths, rates)],
            lambda task, outcome: cases.flow_result("round", "", task, outcome, alone),
            last=True,
        )


def disjoint_fans(weight: Floats, fan: int) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]:
    """Batches of (host, its `fan` best partners), every host once; no host twice in a batch."""
    pending = list(range(len(weight)))
    batches = []
    while pending and fan > 0:
        used: set[int] = set()
        batch = []
        for host in list(pending):
            free = [int(k) for k in np.argsort(-weight[host], kind="stable")]
            partners = tuple(k for k in free if k not in used and k != host)[:fan]
            if host not in used and len(partners) == fan:
                used.update((host, *partners))
                batch.append((host, partners))
                pending.remove(host)
        batches.append(tuple(batch))
    return tuple(batches)
