"""Whom a name belongs to, no secret shown: what deliveries are routed by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from proxy.auth.authenticator import Authenticator
from proxy.auth.cache import cached
from proxy.auth.file import FileSource
from proxy.auth.names import NameRules
from proxy.auth.passthrough import PassthroughSource
from proxy.auth.passwords import PasswordVerifier
from proxy.auth.source import FindingSource, NotMine, Probe
from proxy.model import Account, Credentials, Endpoint, Identity, KeyShape, Origin
from proxy.observe.metrics import exposition
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_models import Cache

ALICE, BOB = "alice@example.org", "bob@example.org"
OUT = Outcome.UNAVAILABLE
HERE = Identity(ALICE, "directory", "dovecot-1")
MOVED = Identity(ALICE, "directory", "dovecot-2")
UNKNOWN_SOURCE = Identity(ALICE, "")
ORIGIN = Origin(Endpoint("192.0.2.1", 40000), secure=True)

Known = Identity | Outcome | None


class FakeSource:
    """A source that has to see a secret."""

    mechanisms = frozenset({"LOGIN", "PLAIN"})

    def __init__(self, name: str = "secretive") -> None:
        self.name = name

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Identity | NotMine:
        return NotMine()

    async def probe(self) -> Sequence[Probe]:
        return ()


class FakeDirectory(FakeSource):
    """A source that knows names."""

    knows_scram = False
    usual_shape = KeyShape(4096, 16)

    def __init__(self, known: Known = HERE, name: str = "directory") -> None:
        super().__init__(name)
        self.known = known
        self.asked: list[str] = []
        self.seconds = 0.0
        self.person = False  # its trouble is one account's

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Identity | NotMine:
        return self._say() or NotMine()

    async def look_up(self, name: str) -> Account | None:
        self.asked.append(name)
        if self.seconds:
            await trio.sleep(self.seconds)
        known = self._say()
        return None if known is None else Account(known)

    def _say(self) -> Identity | None:
        if isinstance(self.known, Outcome):
            raise Refused(self.known, "no answer", person=self.person)
        return self.known


def directories(*known: Known) -> list[FakeSource]:
    return [FakeDirectory(each, f"directory-{number}") for number, each in enumerate(known)]


SECRETIVE = FakeSource()
FOUND: list[tuple[list[FakeSource], Known]] = [
    # the sources, what they come to
    (directories(HERE), HERE),
    (directories(None), None),
    (directories(None, None), None),
    (directories(None, HERE), HERE),
    (directories(HERE, OUT), HERE),
    (directories(OUT), OUT),
    (directories(None, OUT), OUT),
    # Who is known to a directory that is out may live elsewhere than the next one says.
    (directories(OUT, HERE), OUT),
    (directories(OUT, None), OUT),
    # Another no of a source doesn't say where the mail is.
    (directories(Outcome.EXPIRED), OUT),
    ([SECRETIVE], UNKNOWN_SOURCE),
    ([SECRETIVE, *directories(HERE)], HERE),
    ([*directories(None), SECRETIVE], UNKNOWN_SOURCE),
    ([*directories(OUT), SECRETIVE], OUT),
    # Certificates alone: every name is one.
    ([], UNKNOWN_SOURCE),
]


@pytest.mark.parametrize(("sources", "found"), FOUND)
async def test_find(sources: list[FakeSource], found: Known, rules: NameRules) -> None:
    assert await outcome(Authenticator(sources, rules)) == found


async def outcome(authenticator: Authenticator, spelled: str = "Alice") -> Known:
    try:
        return await authenticator.find(spelled)
    except Refused as refusal:
        return refusal.outcome


async def test_the_canonical_name_is_looked_up(rules: NameRules) -> None:
    source = FakeDirectory()
    for spelled in ("Alice", "ALICE@example.org", "\uff21lice"):
        await Authenticator([source], rules).find(spelled)
    assert set(source.asked) == {ALICE}


@pytest.mark.parametrize("spelled", ["", "alice*porter", "a@b@c", "\udcff", "x" * 257, "al ice"])
async def test_nobody_has_what_is_no_name(spelled: str, rules: NameRules) -> None:
    source = FakeDirectory(OUT)
    assert await Authenticator([source, SECRETIVE], rules).find(spelled) is None
    assert source.asked == []


@pytest.mark.parametrize("person", [False, True])
async def test_whose_trouble_it_is(person: bool, rules: NameRules) -> None:
    source = FakeDirectory(OUT)
    source.person = person
    with pytest.raises(Refused) as refused:
        await Authenticator([source], rules).find("Alice")
    assert (refused.value.detail, refused.value.person) == ("directory: no answer", person)


async def test_answers_are_counted(rules: NameRules) -> None:
    def counted(answer: str) -> float:
        series = f'porter_identity_answers_total{{answer="{answer}",source="counted-in-find"}} '
        lines = exposition()[0].decode().splitlines()
        return next(float(line.removeprefix(series)) for line in lines if line.startswith(series))

    source = FakeDirectory(name="counted-in-find")
    authenticator = Authenticator([source], rules)
    for known, answer in ((HERE, "yes"), (None, "not_mine"), (OUT, "unavailable")):
        source.known = known
        await outcome(authenticator)
        assert counted(answer) == 1


async def test_a_file(users_file: Callable[[str], Path], cheap_hash: Callable[[bytes], str], rules: NameRules) -> None:
    path = users_file(f'alice: {{hash: "{cheap_hash(b"pw")}", backend: dovecot-2, attributes: {{tag: gold}}}}')
    source = FileSource(path, rules, PasswordVerifier())
    for each in (source, cached(source, Cache())):
        authenticator = Authenticator([each], rules)
        assert await authenticator.find("alice") == Identity(ALICE, "file", "dovecot-2", {"tag": "gold"})
        assert await authenticator.find("bob") is None


async def test_what_the_backend_decides(rules: NameRules) -> None:
    assert await Authenticator([PassthroughSource(tokens=True)], rules).find("Alice") == UNKNOWN_SOURCE


# --- remembered ---


class Memory:
    """A directory behind its cache, with a clock."""

    def __init__(self, known: Known = HERE, **settings: object) -> None:
        self.now = 0.0
        self.source = FakeDirectory(known)
        changed = Cache(positive=300.0, negative=30.0, entries=100).model_copy(update=settings)
        remembering = cached(self.source, changed, clock=lambda: self.now)
        assert isinstance(remembering, FindingSource)
        self.remembering, self.find = remembering, remembering.find

    async def found(self, name: str = ALICE) -> Known:
        try:
            return await self.find(name)
        except Refused as refusal:
            return refusal.outcome

    async def log_in(self, secret: bytes, name: str = ALICE) -> None:
        await self.remembering.authenticate(Credentials("PLAIN", name, "", secret), name, ORIGIN)


SPANS: list[tuple[Known, list[tuple[float, int]]]] = [
    # what the source knows; at which times, and how often it was asked by then
    (HERE, [(0, 1), (299, 1), (300, 2), (599, 2), (600, 3)]),
    # A no lets mail bounce.
    (None, [(0, 1), (1.9, 1), (2, 2)]),
    (OUT, [(0, 1), (0, 2)]),
    (Outcome.CONTACT_ADMIN, [(0, 1), (0, 2)]),
]


@pytest.mark.parametrize(("known", "asked"), SPANS)
async def test_how_long_an_answer_counts(known: Known, asked: list[tuple[float, int]]) -> None:
    memory = Memory(known)
    for now, count in asked:
        memory.now = now
        assert await memory.found() == known
        assert len(memory.source.asked) == count


async def test_each_name_has_its_answer() -> None:
    memory = Memory()
    assert await memory.found(ALICE) == HERE
    memory.source.known = None
    assert await memory.found(BOB) is None
    assert (await memory.found(ALICE), await memory.found(BOB)) == (HERE, None)


async def test_an_account_is_still_asked_for() -> None:
    """SCRAM must not hear of keys of five minutes ago."""
    memory = Memory()
    await memory.found()
    assert isinstance(memory.remembering, FindingSource)
    assert await memory.remembering.look_up(ALICE) == Account(HERE)
    assert memory.source.asked == [ALICE, ALICE]


async def test_an_old_answer_while_the_directory_is_out() -> None:
    memory = Memory(serve_stale=60.0)
    await memory.found()
    memory.source.known = OUT
    for now, stale in ((299.0, False), (359.0, True)):
        memory.now = now
        found = await memory.found()
        assert isinstance(found, Identity)
        assert (found.name, found.backend, found.stale) == (ALICE, "dovecot-1", stale)
    memory.now = 360.0
    assert await memory.found() is OUT


async def test_mail_to_made_up_names_pushes_out_no_login() -> None:
    memory = Memory(None)
    asked = 0

    async def authenticate(credentials: Credentials, name: str, origin: Origin) -> Identity | NotMine:
        nonlocal asked
        asked += 1
        return NotMine()

    memory.source.authenticate = authenticate  # type: ignore[method-assign]
    await memory.log_in(b"wrong")
    for number in range(200):
        await memory.found(f"{number}@example.org")
    await memory.log_in(b"wrong")
    assert asked == 1
    before = len(memory.source.asked)
    await memory.found("199@example.org")
    await memory.found("0@example.org")  # pushed out by the others
    assert len(memory.source.asked) == before + 1


@pytest.mark.parametrize("shown", ["password", "proof"])
async def test_what_a_login_heard_counts(shown: str) -> None:
    for known in (None, HERE):
        memory = Memory(known)
        for name in (ALICE, BOB):
            assert await memory.found(name) == known
        memory.source.known = MOVED
        if shown == "password":
            await memory.log_in(b"right")
        else:
            assert await memory.remembering.look_up(ALICE) == Account(MOVED)
        assert await memory.found(ALICE) == MOVED
        assert await memory.found(BOB) == known


async def test_it_counts_for_the_owners_own_name() -> None:
    memory = Memory()
    await memory.found(ALICE)
    memory.source.known = MOVED
    await memory.log_in(b"right", name="alias@example.org")
    assert await memory.found(ALICE) == MOVED


async def test_a_remembered_login_and_a_no_change_nothing() -> None:
    memory = Memory()
    await memory.log_in(b"right")
    await memory.found()
    memory.source.known = MOVED
    await memory.log_in(b"right")
    memory.source.known = Outcome.AUTHENTICATION_FAILED
    with pytest.raises(Refused):
        await memory.log_in(b"wrong")
    assert await memory.found() == HERE


async def test_a_login_overtakes_what_was_asked_before(autojump_clock: trio.testing.MockClock) -> None:
    memory = Memory()
    memory.source.seconds = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.found)
        await trio.testing.wait_all_tasks_blocked()
        before, memory.source.known, memory.source.seconds = memory.source.known, MOVED, 0.0
        await memory.log_in(b"right")
        memory.source.known = before  # what is still on its way is old
    memory.source.known = MOVED
    assert await memory.found() == MOVED


async def test_a_reload_forgets() -> None:
    memory = Memory()
    await memory.found()
    memory.source.known = None
    memory.remembering.clear()
    assert await memory.found() is None


async def test_many_deliveries_to_one_person_ask_once(autojump_clock: trio.testing.MockClock) -> None:
    memory = Memory()
    memory.source.seconds = 1.0
    found: list[Known] = []

    async def deliver() -> None:
        found.append(await memory.found())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(deliver)
    assert found == [HERE] * 5
    assert memory.source.asked == [ALICE]
