"""Whatever limits make of a session: no octet is lost, doubled, changed or out of its order."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.imap.observer import Observer
from proxy.ledger.session import Session
from proxy.limits import meters as limits_room
from proxy.limits.meters import Meters
from proxy.model import Endpoint
from proxy.outcome import Outcome
from proxy.relay.engine import Engine
from proxy.relay.metered import MeteredRelay
from proxy.relay.partings import Partings
from proxy.relay.splice import Carriage
from proxy.settings.limit_models import ByteRate, CommandRate, Limits
from proxy.transport.stream import PlainStream
from tests.relay.stage import Tally, socket_pair

LITERAL = re.compile(rb"\{([0-9]+)(\+?)\}\r\n\Z")
ANSWER = re.compile(rb"(t[0-9]+) (OK done|NO \[LIMIT\][^\r]*)\r\n")


class Server:
    """A backend that answers one command after the other, with mails that look like answers."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.executed: list[bytes] = []
        self.received = self.to_send = self.said = b""
        self.reading = self.session()
        next(self.reading)

    def receive_data(self, data: bytes) -> None:
        self.received += data
        next(self.reading)

    def take(self, count: int) -> bytes:
        data, self.received = self.received[:count], self.received[count:]
        return data

    def say(self, data: bytes) -> None:
        self.to_send += data
        self.said += data

    def session(self) -> Generator[None, None, None]:
        while True:
            command = b""
            while True:
                while b"\n" not in self.received:
                    yield
                command += self.take(self.received.index(b"\n") + 1)
                literal = LITERAL.search(command)
                if literal is None:
                    break
                while len(self.received) < int(literal[1]):
                    yield
                command += self.take(int(literal[1]))
            self.executed.append(command)
            mail = b"t1 NO [LIMIT]\r\n" * self.chance.choice([0, 0, 1, 200])
            if mail:
                self.say(b"* 1 FETCH (BODY[] {%d}\r\n%s)\r\n" % (len(mail), mail))
            self.say(command.split()[0] + b" OK done\r\n")


class Play:
    """A metered session on socket pairs, an engine that is driven by hand, and time that goes on when told."""

    def __init__(self, limits: Limits, chance: random.Random) -> None:
        self.now = 1000.0
        self.engine = Engine(lambda: self.now)
        self.meters = Meters(limits, lambda: self.now)
        self.chance = chance
        self.server = Server(chance)
        self.ended: list[Outcome] = []
        self.arrived = b""  # at the client
        client, self.client = socket_pair()
        backend, self.backend = socket_pair()
        for sock in (client, backend, self.client, self.backend):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        meter = self.meters.open("ann")
        assert meter is not None
        tally = Tally()
        self.relay = MeteredRelay(
            self.engine,
            Session(Endpoint("192.0.2.1", 4711), "test"),
            PlainStream(client),
            PlainStream(backend),
            Observer(tally, lambda: self.now, permits=meter.permits if meter.counts_commands else None),
            Carriage(tally, 1e9, lambda relay, outcome: self.ended.append(outcome), lambda relay: None, Partings(0.0)),
            meter,
        )
        self.relay.start(b"", b"")

    def turn(self) -> None:
        """Let the engine do what there is to do."""
        self.engine._resume_due()
        while self.engine.carry():
            pass

    def backend_turn(self) -> None:
        for data in pieces(self.backend, self.chance):
            self.server.receive_data(data)
        while self.server.to_send:
            length = self.chance.choice([1, 10, 1000, 100_000])
            sent = send(self.backend, self.server.to_send[:length])
            self.server.to_send = self.server.to_send[sent:]
            if not sent or not self.chance.randrange(4):
                return

    def client_reads(self) -> None:
        self.arrived += b"".join(pieces(self.client, self.chance))

    def close(self) -> None:
        self.relay.end(Outcome.DRAINED)
        self.client.close()
        self.backend.close()
        self.engine.close()


@contextmanager
def playing(limits: Limits, seed: int) -> Iterator[Play]:
    play = Play(limits, random.Random(seed))
    try:
        yield play
    finally:
        play.close()


def send(sock: socket.socket, data: bytes) -> int:
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


def pieces(sock: socket.socket, chance: random.Random) -> Iterator[bytes]:
    """Some of what is there."""
    for _ in range(chance.randrange(1, 5)):
        try:
            data = sock.recv(chance.choice([1, 100, 65536]))
        except BlockingIOError:
            return
        if not data:
            return
        yield data


def command_rates(actions: list[str]) -> st.SearchStrategy[Any]:
    rate: st.SearchStrategy[Any] = st.builds(
        CommandRate, rate=st.integers(1, 6), per=st.sampled_from([1.0, 5.0, 60.0]), action=st.sampled_from(actions)
    )
    return st.none() | st.dictionaries(st.sampled_from(["all", "NOOP", "APPEND", "FETCH"]), rate, min_size=1)


byte_rates: st.SearchStrategy[Any] = st.none() | st.builds(
    ByteRate, rate=st.sampled_from([300, 3000, 100_000]), per=st.sampled_from([1.0, 10.0]), action=st.just("delay")
)


def limits(actions: list[str]) -> st.SearchStrategy[Limits]:
    return st.builds(
        Limits,
        commands_per_user=command_rates(actions),
        commands_per_session=command_rates(actions),
        bytes_per_user=byte_rates,
    ).filter(lambda made: bool(made.commands_per_user or made.commands_per_session or made.bytes_per_user))


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Commands with literals that look like commands; nobody waits for anything."""
    commands = []
    for number in range(draw(st.integers(1, 12))):
        literal = draw(st.sampled_from([b"", b"t1 NOOP\r\n", b"{3+}\r\n", b"x" * 2_000]))
        line = draw(
            st.sampled_from(
                [
                    b"NOOP\r\n",
                    b"fetch 1:* FLAGS\r\n",
                    b"UID FETCH 1 BODY[]\r\n",
                    b"APPEND x {%d+}\r\n%s\r\n" % (len(literal), literal),
                    b"SEARCH TEXT {%d+}\r\n%s FROM {2+}\r\nab\r\n" % (len(literal), literal),
                ]
            )
        )
        commands.append(b"t%d " % number + line)
    return commands


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_room, "reached", lambda limit, action, **keys: None)


def run(play: Play, stream: bytes, done: int) -> None:
    """Let all act by chance, until all commands are answered."""
    for step in range(5_000):
        who = play.chance.randrange(5)
        if who == 0 and stream:
            stream = stream[send(play.client, stream[: play.chance.choice([1, 20, 1000, 100_000])]) :]
        elif who == 1:
            play.backend_turn()
        elif who == 2:
            play.client_reads()
        elif who == 3:
            play.now += play.chance.choice([0.001, 0.1, 1.0, 11.0, 60.0])
        play.turn()
        if not step % 10 and len(answers(play)) == done:
            return
    pytest.fail("not all commands were answered")


def answers(play: Play) -> list[tuple[bytes, bytes]]:
    """(tag, status) of the answers that have come, outside of mails."""
    outside = re.sub(rb"\{([0-9]+)\}\r\n(?:t1 NO \[LIMIT\]\r\n)+", b"", play.arrived)
    return [(found[1], found[2][:2]) for found in ANSWER.finditer(outside)]


many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(limits(["delay"]), streams(), st.integers())
def test_delays_change_nothing_but_the_time(limits: Limits, commands: list[bytes], seed: int) -> None:
    with playing(limits, seed) as play:
        run(play, b"".join(commands), len(commands))
        assert play.server.executed == commands
        assert play.arrived == play.server.said
        assert play.ended == []


@many
@given(limits(["delay", "refuse"]), streams(), st.integers())
def test_each_command_is_either_carried_whole_or_refused_and_all_in_order(
    limits: Limits, commands: list[bytes], seed: int
) -> None:
    with playing(limits, seed) as play:
        run(play, b"".join(commands), len(commands))
        answered = answers(play)
        assert [tag for tag, _ in answered] == [command.split()[0] for command in commands]
        carried = {tag for tag, status in answered if status == b"OK"}
        assert play.server.executed == [command for command in commands if command.split()[0] in carried]
        refusals = re.sub(rb"t[0-9]+ NO \[LIMIT\] [^\r]*\r\n", b"", play.arrived)
        assert refusals == play.server.said
        assert play.ended == []
