"""The coordinator of link profiling, with agents that are threads."""

import socket
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import link_agents, link_cases
from launch.link_agents import Agents, Task
from launch.link_measure import disjoint_fans
from launch.link_wire import encode, split

HOSTS = ("a", "b", "c")


class FakeAgent(threading.Thread):
    """Answers each task by `answer(task)`; None: says nothing more, and does not hang up."""

    def __init__(self, port, name, answer, token="word"):
        super().__init__(daemon=True)
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.name_, self.answer = name, answer
        nics = ["eth0", f"eth-{name}"]
        self.connection.sendall(
            encode({"hello": name, "token": token, "nics": nics, "backend": "gloo"})
        )
        self.start()

    def run(self):
        buffer = bytearray()
        with self.connection:
            while True:
                try:
                    data = self.connection.recv(4096)
                except OSError:
                    return
                if not data:
                    return
                buffer += data
                for message in split(buffer):
                    if "task" in message and not self._reply(message):
                        return

    def _reply(self, task):
        answer = self.answer(task)
        if answer == "hang up":
            return False
        if answer is not None:
            reply = {"reply": task["task"], "part": task["part"]}
            self.connection.sendall(encode(reply | answer))
        return True


@pytest.fixture
def agents():
    made = Agents(HOSTS, "word", 1234)
    yield made
    made.close()


def fine(task):
    return {"result": {"kind": task["kind"], "members": task["members"]}}


def pair(a, b):
    return Task(name=f"{a}{b}", parts=({"kind": "pair", "hosts": [a, b], "nic": ""},), timeout_s=1)


def nobody():
    return {}


def test_agents_come_in_any_order_and_answer(agents):
    for name in ("c", "a", "b"):
        FakeAgent(agents.port, name, fine)
    agents.wait(5, nobody)
    assert agents.alive == HOSTS
    assert agents.common_nics() == ("eth0",)
    outcome = agents.run([pair("a", "b")])[0]
    assert not outcome.error
    assert outcome.results[0, "b"] == {"kind": "pair", "members": 2}


def test_strangers_are_refused(agents):
    FakeAgent(agents.port, "a", fine)
    FakeAgent(agents.port, "b", fine, token="guess")
    FakeAgent(agents.port, "x", fine)
    agents.wait(0.6, nobody)
    assert agents.alive == ("a",)
    assert set(agents.lost) == {"b", "c"}


def test_a_start_that_failed_is_not_waited_for(agents):
    for name in ("a", "b"):
        FakeAgent(agents.port, name, fine)
    begin = time.monotonic()
    agents.wait(60, lambda: {"c": "ssh could not connect"})
    assert time.monotonic() - begin < 10
    assert agents.lost == {"c": "ssh could not connect"}
    gone = agents.run([pair("a", "c")])[0]
    assert (gone.error, gone.lost) == ("c is gone", True)


def test_a_host_that_hangs_up_fails_its_tasks_alone(agents):
    FakeAgent(agents.port, "a", fine)
    FakeAgent(agents.port, "b", lambda task: "hang up" if "c" in task["hosts"] else fine(task))
    FakeAgent(agents.port, "c", fine)
    agents.wait(5, nobody)
    done = []
    outcomes = agents.run([pair("a", "c"), pair("b", "c")], lambda task, _: done.append(task.name))
    assert [bool(o.error) for o in outcomes] == [False, True]
    assert outcomes[1].lost
    assert set(done) == {"ac", "bc"}
    assert agents.alive == ("a", "c")


def test_a_silent_host_is_lost(agents, monkeypatch):
    monkeypatch.setattr(link_agents, "SILENT_S", 0.5)
    a = FakeAgent(agents.port, "a", lambda task: None)
    FakeAgent(agents.port, "b", lambda task: None)
    agents.wait(0.2, nobody)
    threading.Thread(target=beats, args=(a.connection,), daemon=True).start()
    outcome = agents.run([pair("a", "b")])[0]
    assert outcome.lost
    assert agents.alive == ("a",)
    assert "silent" in agents.lost["b"]


def beats(connection):
    for _ in range(50):
        try:
            connection.sendall(encode({"beat": 1}))
        except OSError:
            return
        time.sleep(0.1)


def test_an_error_of_one_member_ends_the_task(agents):
    FakeAgent(agents.port, "a", lambda task: {"error": "RuntimeError: timed out"})
    FakeAgent(agents.port, "b", lambda task: None)
    FakeAgent(agents.port, "c", fine)
    agents.wait(5, nobody)
    outcome = agents.run([pair("a", "b")])[0]
    assert (outcome.error, outcome.lost) == ("a: RuntimeError: timed out", False)
    found = link_cases.pair_result(pair("a", "b"), outcome)
    assert found.error == outcome.error


def test_lines_that_are_none_are_refused():
    buffer = bytearray(b'{"a": 1}\n{"b"')
    assert split(buffer) == [{"a": 1}]
    assert buffer == b'{"b"'
    for wrong in (b"[1]\n", b"nonsense\n"):
        with pytest.raises(ValueError, match=r"object|Expecting"):
            split(bytearray(wrong))


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_fans_are_disjoint_and_every_host_has_one(n, fan, seed):
    fan = min(fan, n - 1)
    weight = np.random.default_rng(seed).uniform(1, 2, (n, n))
    batches = disjoint_fans(weight, fan)
    assert sorted(host for batch in batches for host, _ in batch) == list(range(n))
    for batch in batches:
        used = [k for host, partners in batch for k in (host, *partners)]
        assert len(used) == len(set(used))
        assert all(len(partners) == fan for _, partners in batch)


def test_sixteen_hosts_take_about_a_minute():
    rounds = 15
    pairs = rounds * 2 * link_cases.pair_budget_s(60, rounds, 1)
    groups = 3 * 4 * link_cases.group_budget_s(60, 16)
    assert pairs + groups <= 60
    assert link_cases.group_sizes(12) == (2, 4, 8, 12)
