"""A directory that stops, freezes and comes back, on real OpenLDAP servers: an outage is never a wrong password."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.auth.ldap.source import LdapSource, ldap_source
from proxy.auth.names import NameRules
from proxy.model import Credentials, Endpoint, Identity, Origin
from proxy.observe.metrics import exposition
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_models import LdapBind, LdapIdentity, LdapSearch
from proxy.settings.identity_values import parse_ldap_url
from proxy.settings.models import Names
from proxy.settings.secret import Secret
from tests.servers.accounts import USERS
from tests.servers.ports import Ports
from tests.servers.slapd import PEOPLE, SERVICE_DN, SERVICE_PASSWORD, Slapd, write_slapd

pytestmark = pytest.mark.server

ORIGIN = Origin(Endpoint("192.0.2.1", 50000), secure=True)
ALICE, PASSWORD = "alice@test.example", USERS["alice"].encode()
HERE = Identity(ALICE, "ldap")
NO, OUT = Outcome.AUTHENTICATION_FAILED, Outcome.UNAVAILABLE
POOL = 3
RECOVERY_SECONDS = 2  # from the server's return to the first login that succeeds
Make = Callable[..., LdapSource]


@pytest.fixture
def servers() -> Iterator[list[Slapd]]:
    folder = Path(tempfile.mkdtemp(prefix="imap-porter-"))
    ports = Ports()
    written: list[Slapd] = []
    try:
        for name in ("first", "second"):
            written.append(write_slapd(folder / name, ports, None))
            written[-1].start()
        yield written
    finally:
        for server in written:
            server.stop()
        ports.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make(servers: list[Slapd]) -> Iterator[Make]:
    made: list[LdapSource] = []

    def source(*asked: Slapd, **settings: Any) -> LdapSource:
        values: dict[str, Any] = {
            "urls": tuple(parse_ldap_url(server.url) for server in asked),
            "bind": LdapBind(dn=SERVICE_DN, password=Secret("env", "LDAP", SERVICE_PASSWORD.encode())),
            "search": LdapSearch(base=PEOPLE, filter="(mail={name})"),
            "pool": POOL,
            "timeout": 1.0,
            **settings,
        }
        made.append(ldap_source(LdapIdentity(**values), NameRules(Names(default_domain="test.example"))))
        return made[-1]

    yield source
    for each in made:
        each.close()


async def outcome(source: LdapSource, password: bytes = PASSWORD) -> Identity | Outcome:
    try:
        answer = await source.authenticate(Credentials("LOGIN", ALICE, "", password), ALICE, ORIGIN)
    except Refused as refusal:
        return refusal.outcome
    assert isinstance(answer, Identity)
    return answer


async def many(source: LdapSource, count: int) -> Counter[Identity | Outcome]:
    """What so many tries at once come to."""
    found: list[Identity | Outcome] = []

    async def try_it() -> None:
        found.append(await outcome(source))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(try_it)
    return Counter({NO: found.count(NO), OUT: found.count(OUT), Outcome.OK: found.count(HERE)})


async def recover(source: LdapSource) -> None:
    """Try as a client would, until a login succeeds; a right password is never wrong."""
    with trio.fail_after(RECOVERY_SECONDS):
        while (answer := await outcome(source)) != HERE:
            assert answer is OUT
            await trio.sleep(0.05)


def failures(server: Slapd) -> float:
    """How many operations at a server have failed."""
    marks = ("porter_ldap_operations_total", f'server="{server.url}"', 'outcome="failed"')
    lines = exposition()[0].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(mark in line for mark in marks))


class Watch:
    """What the event loop and the threads do meanwhile."""

    def __init__(self) -> None:
        self.threads_before = threading.active_count()
        self.most_threads = 0
        self.ticks = 0

    async def run(self) -> None:
        while True:
            self.ticks += 1
            self.most_threads = max(self.most_threads, threading.active_count())
            await trio.sleep(0.01)


async def test_a_storm_of_good_logins(servers: list[Slapd], make: Make) -> None:
    assert await many(make(servers[0], timeout=20.0), 500) == Counter({Outcome.OK: 500})


@pytest.mark.parametrize("warm", [True, False])
async def test_frozen(warm: bool, servers: list[Slapd], make: Make) -> None:
    server = servers[0]
    source = make(server)
    if warm:
        assert await many(source, POOL) == Counter({Outcome.OK: POOL})
    server.freeze()
    watch = Watch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        assert await many(source, 500) == Counter({OUT: 500})
        nursery.cancel_scope.cancel()
    assert watch.most_threads <= watch.threads_before + POOL
    assert watch.ticks > 10  # of some 50: the half of a second that an operation may take
    # Later ones do not wait: of those that come at once, one is a trial at most.
    before = failures(server)
    for _ in range(3):
        assert await many(source, 100) == Counter({OUT: 100})
    assert failures(server) - before <= 3
    server.thaw()
    await recover(source)
    assert await many(source, 20) == Counter({Outcome.OK: 20})


async def test_stopped_and_started(servers: list[Slapd], make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    server = servers[0]
    source = make(server)
    assert await outcome(source) == HERE
    server.stop()
    assert await many(source, 500) == Counter({OUT: 500})
    assert f'porter_ldap_server_up{{server="{server.url}"}} 0.0' in exposition()[0].decode()
    server.start()
    await recover(source)
    assert await outcome(source, b"wrong") is NO
    assert f'porter_ldap_server_up{{server="{server.url}"}} 1.0' in exposition()[0].decode()
    lines = capfd.readouterr().err
    assert (lines.count("ldap.server_down"), lines.count("ldap.server_up")) == (1, 1)
    assert PASSWORD.decode() not in lines


async def test_restarted_under_idle_connections(servers: list[Slapd], make: Make) -> None:
    server = servers[0]
    source = make(server, timeout=20.0)
    assert await many(source, 20) == Counter({Outcome.OK: 20})
    server.stop()
    server.start()
    assert await many(source, 20) == Counter({Outcome.OK: 20})
    assert await outcome(source, b"wrong") is NO


async def test_restarted_unseen(servers: list[Slapd], make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a connection may arrive behind the look at it; then the operation itself notices."""
    monkeypatch.setattr("proxy.auth.ldap.connection.Connection.usable", lambda *_: True)
    server = servers[0]
    source = make(server, timeout=20.0)
    assert await many(source, 20) == Counter({Outcome.OK: 20})
    server.stop()
    server.start()
    assert await many(source, 20) == Counter({Outcome.OK: 20})


async def test_the_second_takes_over_from_a_frozen_first(servers: list[Slapd], make: Make) -> None:
    first, second = servers
    source = make(first, second, timeout=4.0)
    assert await outcome(source) == HERE
    first.freeze()
    assert await many(source, 20) == Counter({Outcome.OK: 20})
    second.stop()
    assert await outcome(source) is OUT
    first.thaw()
    await recover(source)


async def test_a_trial_that_is_given_up_does_not_stop_the_next(servers: list[Slapd], make: Make) -> None:
    server = servers[0]
    source = make(server, timeout=30.0)
    server.stop()
    assert await outcome(source) is OUT
    server.start()
    server.freeze()
    with trio.move_on_after(1):  # its client hangs up while its trial waits for an answer
        await recover(source)
    server.thaw()
    await recover(source)
