"""The coordinator's side of link profiling: agents that connect, and batches of tasks for them.

An agent is lost when its connection ends or nothing comes for `SILENT_S`; its tasks fail, those of
others go on. A task ends when all its members have replied, or at its time limit.
"""

import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from launch.link_wire import SILENT_S, Message, encode, split

_POLL_S = 0.2
_SPARE_S = 5.0
"""Beyond the limit of its own waits, for an agent to say that one ran out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What some hosts measure together; `parts`: each is one group of them (streams)."""

    name: str
    parts: tuple[Message, ...]
    """Each with `kind`, `hosts`, `nic` and what its kind takes."""
    timeout_s: float

    @property
    def hosts(self) -> frozenset[str]:
        """All that take part."""
        return frozenset(host for part in self.parts for host in part["hosts"])

    @property
    def num_replies(self) -> int:
        """Members over all parts."""
        return sum(len(part["hosts"]) for part in self.parts)


@dataclass(slots=True)
class Outcome:
    """Replies of a task by (part, host), or why there are none."""

    results: dict[tuple[int, str], Message] = field(default_factory=dict)
    error: str = ""
    lost: bool = False
    """The error is that a member is gone."""


@dataclass(slots=True)
class _Agent:
    connection: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    name: str = ""
    heard: float = 0.0
    nics: tuple[str, ...] = ()
    backend: str = ""


class Agents:
    """Those of `names` that came, and are still there."""

    def __init__(self, names: Sequence[str], token: str, store_port: int, port: int = 0) -> None:
        self.names, self._token, self._store_port = tuple(names), token, store_port
        self._listener = socket.create_server(("", port), backlog=256)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._agents: dict[str, _Agent] = {}
        self._number = 0
        self._open: dict[int, tuple[Task, Outcome]] = {}
        self.lost: dict[str, str] = {}
        """Host -> why, in the order of their going."""

    @property
    def alive(self) -> tuple[str, ...]:
        """Hosts whose agents are connected, in the order of the file."""
        return tuple(name for name in self.names if name in self._agents)

    def common_nics(self) -> tuple[str, ...]:
        """NICs that all connected agents have, in the order of the first one's."""
        agents = list(self._agents.values())
        return (
            tuple(n for n in agents[0].nics if all(n in a.nics for a in agents)) if agents else ()
        )

    def nics_of(self, host: str) -> tuple[str, ...]:
        """NICs of a connected agent."""
        return self._agents[host].nics

    @property
    def backend(self) -> str:
        """Of the first agent."""
        return next(iter(self._agents.values())).backend if self._agents else ""

    def wait(self, limit_s: float, ended: Callable[[], dict[str, str]]) -> None:
        """Until all agents are there or cannot come: `ended` gives hosts whose start failed."""
        deadline = time.monotonic() + limit_s
        while len(self._agents) + len(self.lost) < len(self.names):
            for host, why in ended().items():
                if host not in self._agents:
                    self.lost.setdefault(host, why)
            if time.monotonic() > deadline:
                for host in self.names:
                    if host not in self._agents:
                        self.lost.setdefault(host, f"did not connect within {limit_s:.0f} s")
            self._turn()

    def run(
        self, tasks: Sequence[Task], done: Callable[[Task, Outcome], None] | None = None
    ) -> list[Outcome]:
        """All tasks at the same time, to their ends; `done` is called as each ends."""
        outcomes = [Outcome() for _ in tasks]
        begin = time.monotonic()
        numbers = []
        for task, outcome in zip(tasks, outcomes, strict=True):
            self._number += 1
            numbers.append(self._number)
            self._open[self._number] = (task, outcome)
            self._start(self._number, task, outcome)
        while numbers:
            self._turn()
            for number in list(numbers):
                task, outcome = self._open[number]
                late = time.monotonic() - begin > task.timeout_s * 2 + _SPARE_S
                if late and not outcome.error:
                    outcome.error = "it took too long"
                if outcome.error or len(outcome.results) == task.num_replies:
                    numbers.remove(number)
                    del self._open[number]
                    if done is not None:
                        done(task, outcome)
        return outcomes

    def _start(self, number: int, task: Task, outcome: Outcome) -> None:
        gone = sorted(task.hosts - self._agents.keys())
        if gone:
            outcome.error, outcome.lost = f"{gone[0]} is gone", True
            return
        for index, part in enumerate(task.parts):
            message = part | {"task": number, "part": index, "timeout_s": task.timeout_s}
            for host in part["hosts"]:
                self._send(host, message | {"members": task.num_replies})

    def _send(self, host: str, message: Message) -> None:
        agent = self._agents.get(host)
        if agent is None:
            return
        try:
            agent.connection.settimeout(SILENT_S)
            agent.connection.sendall(encode(message))
        except OSError:
            self._lose(agent, "its connection broke")

    def _turn(self) -> None:
        """Take what has come, and look who went silent."""
        for key, _ in self._selector.select(_POLL_S):
            if key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                agent = _Agent(connection=connection, heard=time.monotonic())
                self._selector.register(connection, selectors.EVENT_READ, agent)
            else:
                self._receive(key.data)
        now = time.monotonic()
        for agent in list(self._agents.values()):
            if now - agent.heard > SILENT_S:
                self._lose(agent, f"silent for {SILENT_S:.0f} s")

    def _receive(self, agent: _Agent) -> None:
        try:
            data = agent.connection.recv(1 << 16)
            agent.buffer += data
            messages = split(agent.buffer)
        except (OSError, ValueError):
            data, messages = b"", []
        if not data:
            self._lose(agent, "its connection ended")
            return
        agent.heard = time.monotonic()
        for message in messages:
            if not agent.name:
                self._greet(agent, message)
            elif "reply" in message:
                self._reply(agent, message)

    def _greet(self, agent: _Agent, message: Message) -> None:
        name = str(message.get("hello"))
        known = name in self.names and name not in self._agents
        if message.get("token") != self._token or not known:
            self._lose(agent, "refused")
            return
        agent.name = name
        agent.nics, agent.backend = tuple(message["nics"]), str(message["backend"])
        self._agents[name] = agent
        self.lost.pop(name, None)
        self._send(name, {"store": self._store_port, "run": self._token[:8]})

    def _reply(self, agent: _Agent, message: Message) -> None:
        task, outcome = self._open.get(message["reply"], (None, None))
        if task is None or outcome is None:
            return
        if "error" in message:
            outcome.error = outcome.error or f"{agent.name}: {message['error']}"
        else:
            outcome.results[message["part"], agent.name] = message["result"]

    def _lose(self, agent: _Agent, why: str) -> None:
        self._selector.unregister(agent.connection)
        agent.connection.close()
        if self._agents.pop(agent.name, None) is None:
            return
        self.lost[agent.name] = why
        for task, outcome in self._open.values():
            if agent.name in task.hosts and not outcome.error:
                outcome.error, outcome.lost = f"{agent.name} is gone: {why}", True

    def close(self) -> None:
        """End all connections: the agents end then."""
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
