"""What sources answered is remembered: so long, so much, and for nobody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.auth.authenticator import Authenticator
from proxy.auth.cache import RESULTS, CachedSource, cached
from proxy.auth.names import NameRules
from proxy.auth.source import AccountSource, Answer, HashingSource, IdentitySource, NotMine, Probe
from proxy.model import Account, Credentials, Endpoint, Identity, KeyShape, Origin, ScramKeys
from proxy.observe.metrics import exposition
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_models import Cache

ALICE, BOB = "alice@example.org", "bob@example.org"
YES = Identity(ALICE, "fake", "dovecot-1")
NO, OUT = Outcome.AUTHENTICATION_FAILED, Outcome.UNAVAILABLE
ORIGIN = Origin(Endpoint("192.0.2.1", 4711))
SETTINGS = Cache(positive=300.0, negative=30.0, entries=100)
UNIX = 1_700_000_000.0

Verdict = Identity | NotMine | Outcome


@dataclass
class Clock:
    """Both clocks of a test."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def unix(self) -> float:
        return UNIX + self.now


class FakeSource:
    """A source that says what it is told to, and counts."""

    name = "fake"
    mechanisms = frozenset({"PLAIN", "LOGIN"})

    def __init__(self, says: Verdict = YES) -> None:
        self.says = says
        self.person = False  # its trouble is one account's
        self.asked: list[Credentials] = []
        self.seconds = 0.0
        self.at_once = self.most_at_once = 0

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Answer:
        self.asked.append(credentials)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.seconds:
                await trio.sleep(self.seconds)
        finally:
            self.at_once -= 1
        if isinstance(self.says, Outcome):
            raise Refused(self.says, f"question {len(self.asked)}", wait_seconds=1.5, person=self.person)
        return self.says

    async def probe(self) -> Sequence[Probe]:
        return (Probe("fake: bind", ""),)


class FakeHashingSource(FakeSource):
    """Its answers cost."""

    def __init__(self, says: Verdict = YES) -> None:
        super().__init__(says)
        self.pretended = 0
        self.overloaded = False

    async def pretend(self, credentials: Credentials, name: str) -> None:
        self.pretended += 1
        if self.overloaded:
            raise Refused(OUT, "too many wait")


class FakeAccountSource(FakeSource):
    """It knows names."""

    knows_scram = True
    usual_shape = KeyShape(4096, 20)
    looked_up = 0

    async def look_up(self, name: str) -> Account | None:
        self.looked_up += 1
        return Account(Identity(name, "fake"), ScramKeys(b"salt", 4096, b"", b""))


class FakeFile(FakeHashingSource, FakeAccountSource):
    """Both."""


def offer(
    secret: bytes = b"secret", mechanism: str = "PLAIN", name: str = "Alice", authorization: str = ""
) -> Credentials:
    return Credentials(mechanism, name, authorization, secret)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def remember(clock: Clock) -> Callable[..., CachedSource]:
    def make(source: IdentitySource, **changes: object) -> CachedSource:
        changed = SETTINGS.model_copy(update=changes)
        return cached(source, changed, clock=clock.monotonic, unix_time=clock.unix)

    return make


Remember = Callable[..., CachedSource]


async def verdict(source: IdentitySource, offered: Credentials | None = None, name: str = ALICE) -> Verdict:
    try:
        return await source.authenticate(offered or offer(), name, ORIGIN)
    except Refused as refusal:
        return refusal.outcome


REMEMBERED: list[tuple[Verdict, float]] = [
    # what a source says, and for how long
    (YES, 300.0),
    (replace(YES, expires_at=UNIX + 100), 100.0),
    (replace(YES, expires_at=UNIX + 1000), 300.0),
    (replace(YES, expires_at=UNIX), 0.0),
    (replace(YES, verified=False), 0.0),
    (replace(YES, stale=True), 0.0),
    (NotMine(), 30.0),
    (Outcome.AUTHENTICATION_FAILED, 30.0),
    (Outcome.AUTHORIZATION_FAILED, 30.0),
    (Outcome.EXPIRED, 30.0),
    (Outcome.UNAVAILABLE, 0.0),
    (Outcome.LIMIT, 0.0),
    (Outcome.IN_USE, 0.0),
    (Outcome.CONTACT_ADMIN, 0.0),
    (Outcome.SERVER_BUG, 0.0),
]


@pytest.mark.parametrize(("says", "seconds"), REMEMBERED)
async def test_how_long_an_answer_is_remembered(
    says: Verdict, seconds: float, clock: Clock, remember: Remember
) -> None:
    source = FakeSource(says)
    remembering = remember(source)
    assert await verdict(remembering) == says
    if seconds:
        clock.now = seconds - 0.001
        assert await verdict(remembering) == says
        assert len(source.asked) == 1
    clock.now = seconds
    assert await verdict(remembering) == says
    assert len(source.asked) == 2


@pytest.mark.parametrize(("says", "switched_off"), [(YES, "positive"), (NO, "negative"), (NotMine(), "negative")])
async def test_nothing_is_remembered_for_no_time(says: Verdict, switched_off: str, remember: Remember) -> None:
    source = FakeSource(says)
    remembering = remember(source, **{switched_off: 0.0}, serve_stale=3600.0)
    assert [await verdict(remembering) for _ in range(3)] == [says] * 3
    assert len(source.asked) == 3
    source.says = OUT
    assert await verdict(remembering) == OUT


async def test_a_slow_source_makes_no_answer_count_longer(autojump_clock: trio.testing.MockClock) -> None:
    source = FakeSource()
    source.seconds = 10.0
    remembering = cached(source, SETTINGS)
    await verdict(remembering)
    await trio.sleep(290)
    await verdict(remembering)
    assert len(source.asked) == 2


OTHER_QUESTIONS = [
    (offer(b"other"), ALICE),
    (offer(b"secret\0"), ALICE),
    (offer(mechanism="OAUTHBEARER"), ALICE),  # a password that looks like a token is none
    (offer(mechanism="XOAUTH2"), ALICE),
    (offer(), BOB),
    (offer(), ""),
]


@pytest.mark.parametrize(("offered", "name"), OTHER_QUESTIONS)
async def test_other_questions_are_asked(offered: Credentials, name: str, remember: Remember) -> None:
    source = FakeSource()
    remembering = remember(source)
    await verdict(remembering)
    source.says = NO
    assert await verdict(remembering, offered, name) == NO
    assert await verdict(remembering) == YES
    assert len(source.asked) == 2


SAME_QUESTIONS = [
    # by which mechanism a yes was put there, and what else it answers
    ("PLAIN", offer(mechanism="LOGIN")),
    ("LOGIN", offer(mechanism="PLAIN")),
    ("PLAIN", offer(authorization=BOB)),
    ("LOGIN", offer(mechanism="PLAIN", authorization=ALICE)),
    ("XOAUTH2", offer(mechanism="OAUTHBEARER")),
    ("OAUTHBEARER", offer(mechanism="XOAUTH2")),
]


@pytest.mark.parametrize(("mechanism", "offered"), SAME_QUESTIONS)
@pytest.mark.parametrize("says", [YES, NO, NotMine()])
async def test_the_same_secret_by_another_way_is_the_same_question(
    mechanism: str, offered: Credentials, says: Verdict, remember: Remember
) -> None:
    source = FakeSource(says)
    remembering = remember(source)
    assert await verdict(remembering, offer(mechanism=mechanism)) == says
    assert await verdict(remembering, offered) == says
    assert len(source.asked) == 1


@pytest.mark.parametrize(("mechanism", "offered"), SAME_QUESTIONS)
async def test_a_no_takes_back_the_yes_that_came_another_way(
    mechanism: str, offered: Credentials, clock: Clock, remember: Remember
) -> None:
    """A password that was changed is let in by no old yes, not even in an outage."""
    source = FakeSource()
    remembering = remember(source, serve_stale=3600.0)
    assert await verdict(remembering, offer(mechanism=mechanism)) == YES
    clock.now, source.says = 300.0, NO
    assert await verdict(remembering, offered) == NO
    clock.now, source.says = 400.0, OUT
    assert await verdict(remembering, offer(mechanism=mechanism)) == OUT


async def test_whom_to_act_as_is_judged_at_every_login(remember: Remember, rules: NameRules) -> None:
    source = FakeSource()
    authenticator = Authenticator([remember(source)], rules)
    for authorization, result in (("", YES), (BOB, Outcome.AUTHORIZATION_FAILED), (ALICE, YES)):
        offered = offer(authorization=authorization)
        try:
            told: Verdict = await authenticator.authenticate(offered, ORIGIN)
        except Refused as refusal:
            told = refusal.outcome
        assert told == result
    assert len(source.asked) == 1


async def test_the_spelling_of_a_name_makes_no_other_question(remember: Remember) -> None:
    source = FakeSource()
    remembering = remember(source)
    for spelled in ("Alice", "alice@example.org"):
        await verdict(remembering, offer(name=spelled))
    assert len(source.asked) == 1


async def test_without_a_secret_nothing_is_remembered(remember: Remember) -> None:
    """A proof of SCRAM that fits says nothing about the next one, which may not."""
    source = FakeSource()
    remembering = remember(source)
    assert await verdict(remembering, offer(b"", "SCRAM-SHA-256")) == YES
    source.says = NO
    assert await verdict(remembering, offer(b"", "SCRAM-SHA-256")) == NO
    source.says = YES
    assert await verdict(remembering, offer(b"", "SCRAM-SHA-256")) == YES


@pytest.mark.parametrize("says", [NO, NotMine(), Outcome.CONTACT_ADMIN, replace(YES, verified=False)])
async def test_whoever_is_refused_once_is_let_in_by_no_older_yes(
    says: Verdict, clock: Clock, remember: Remember
) -> None:
    source = FakeSource()
    remembering = remember(source, serve_stale=3600.0)
    await verdict(remembering)
    clock.now = 300.0
    source.says = says
    assert await verdict(remembering) == says
    clock.now = 400.0
    source.says = OUT
    assert await verdict(remembering) == OUT


STALE: list[tuple[float, float | None, float | None, Verdict]] = [
    # seconds since the yes, serve_stale, the end of what was shown, and what comes of an outage
    (299.0, None, None, YES),
    (300.0, None, None, OUT),
    (300.0, 60.0, None, replace(YES, stale=True)),
    (359.0, 60.0, None, replace(YES, stale=True)),
    (360.0, 60.0, None, OUT),
    (320.0, 60.0, 321.0, replace(YES, stale=True)),
    (321.0, 60.0, 321.0, OUT),
    (100.0, 60.0, 100.0, OUT),
]


@pytest.mark.parametrize(("later", "serve_stale", "ends", "result"), STALE)
async def test_an_old_yes_helps_over_an_outage(
    later: float, serve_stale: float | None, ends: float | None, result: Verdict, clock: Clock, remember: Remember
) -> None:
    expires_at = None if ends is None else UNIX + ends
    source = FakeSource(replace(YES, expires_at=expires_at))
    remembering = remember(source, serve_stale=serve_stale)
    await verdict(remembering)
    clock.now, source.says = later, OUT
    if isinstance(result, Identity):
        result = replace(result, expires_at=expires_at)
    for _ in range(2):  # being served makes it no younger
        assert await verdict(remembering) == result
        assert await verdict(remembering, offer(b"other")) == OUT
    source.says = YES
    assert await verdict(remembering) == YES


async def test_trouble_with_one_account_is_no_outage(clock: Clock, remember: Remember) -> None:
    """The source is well and will not let this one in now: what it said of him long ago does not count."""
    source = FakeSource()
    remembering = remember(source, serve_stale=3600.0)
    await verdict(remembering)
    clock.now, source.says, source.person = 300.0, OUT, True
    for question in (2, 3):  # nor is the trouble remembered
        with pytest.raises(Refused) as refusal:
            await remembering.authenticate(offer(), ALICE, ORIGIN)
        told = refusal.value
        assert (told.outcome, told.detail, told.person) == (OUT, f"question {question}", True)
    source.person = False
    assert await verdict(remembering) == replace(YES, stale=True)


async def test_wrong_passwords_push_out_no_yes(remember: Remember) -> None:
    source = FakeSource()
    remembering = remember(source)
    await verdict(remembering)
    source.says = NO
    for number in range(500):
        await verdict(remembering, offer(b"%d" % number))
    asked = len(source.asked)
    assert await verdict(remembering) == YES
    assert await verdict(remembering, offer(b"499")) == NO
    assert len(source.asked) == asked
    assert len(remembering._memory.no) == 100


@pytest.mark.parametrize("says", [NO, NotMine()])
async def test_noes_that_are_over_do_not_pile_up(says: Verdict, clock: Clock, remember: Remember) -> None:
    """A guesser who goes on and on fills no memory; a day later he has left nothing but his last half minute."""
    source = FakeSource(says)
    remembering = remember(source, entries=1000)
    for number in range(500):
        clock.now = float(number)
        await verdict(remembering, offer(b"%d" % number))
        assert len(remembering._memory.no) <= 30


async def test_what_is_over_goes_little_by_little(clock: Clock, remember: Remember) -> None:
    source = FakeSource()
    remembering = remember(source, serve_stale=3600.0)
    await verdict(remembering)
    source.says = NO
    for number in range(90):
        await verdict(remembering, offer(b"%d" % number))
    clock.now = 400.0
    left = []
    for number in range(100, 146):
        await verdict(remembering, offer(b"%d" % number))
        left.append(len(remembering._memory.no))
    assert left == [*range(89, 44, -1), 46]  # two go for each that comes, and then there is nothing more to go
    source.says = OUT
    assert await verdict(remembering) == replace(YES, stale=True)  # a yes is of use for longer


@pytest.mark.parametrize("says", [YES, NO])
async def test_what_was_asked_for_longest_ago_is_forgotten_first(says: Verdict, remember: Remember) -> None:
    source = FakeSource(says)
    remembering = remember(source)
    for number in range(100):
        await verdict(remembering, offer(b"%d" % number))
    await verdict(remembering, offer(b"0"))
    await verdict(remembering, offer(b"100"))
    asked = len(source.asked)
    await verdict(remembering, offer(b"0"))
    assert len(source.asked) == asked
    await verdict(remembering, offer(b"1"))
    assert len(source.asked) == asked + 1
    assert len(remembering._memory.yes) + len(remembering._memory.no) == 100


async def test_a_refusal_is_told_afresh_to_everybody(remember: Remember) -> None:
    remembering = remember(FakeSource(NO))
    refusals = []
    for _ in range(3):
        with pytest.raises(Refused) as refusal:
            await remembering.authenticate(offer(), ALICE, ORIGIN)
        refusals.append(refusal.value)
    assert len({id(each) for each in refusals}) == 3
    assert {(each.outcome, each.detail, each.wait_seconds) for each in refusals} == {(NO, "question 1", 1.5)}
    kept, _ = next(iter(remembering._memory.no.values()))
    assert isinstance(kept, Refused)
    assert (kept.__traceback__, kept.__context__) == (None, None)


async def test_no_secret_is_kept(remember: Remember) -> None:
    for says in (YES, NO):
        one, other = remember(FakeSource(says)), remember(FakeSource(says))
        for each in (one, other):
            await verdict(each, offer(b"a secret nobody else has"))
        assert "nobody else" not in repr((one._memory.yes, one._memory.no))
        assert [*one._memory.yes, *one._memory.no] != [*other._memory.yes, *other._memory.no]


async def test_after_a_reload_nothing_is_known(autojump_clock: trio.testing.MockClock) -> None:
    source = FakeSource()
    remembering = cached(source, SETTINGS)
    await verdict(remembering)
    remembering.clear()
    source.seconds = 2.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(verdict, remembering)
        await trio.sleep(1)
        remembering.clear()  # the answer under way is of the time before
        source.says = NO
        nursery.start_soon(verdict, remembering)
    assert len(source.asked) == 3
    assert await verdict(remembering) == NO
    assert len(source.asked) == 3
    assert not remembering._memory.flights


@pytest.mark.parametrize("says", [YES, replace(YES, verified=False), NO, OUT, NotMine(), Outcome.CONTACT_ADMIN])
async def test_equal_questions_are_asked_once(says: Verdict, autojump_clock: trio.testing.MockClock) -> None:
    source = FakeSource(says)
    source.seconds = 1.0
    remembering = cached(source, SETTINGS)
    answers: list[object] = []

    async def ask(mechanism: str) -> None:
        try:
            answers.append(await remembering.authenticate(offer(mechanism=mechanism), ALICE, ORIGIN))
        except Refused as refusal:
            answers.append(refusal)

    async with trio.open_nursery() as nursery:
        for mechanism in ["PLAIN", "LOGIN"] * 10:
            nursery.start_soon(ask, mechanism)
        nursery.start_soon(verdict, remembering, offer(b"other"))
    assert len(source.asked) == 2
    if isinstance(says, Outcome):
        assert [answer.outcome for answer in answers if isinstance(answer, Refused)] == [says] * 20
        assert len({id(answer) for answer in answers}) == 20
    else:
        assert answers == [says] * 20
    assert not remembering._memory.flights


async def test_a_leader_that_leaves_strands_nobody(autojump_clock: trio.testing.MockClock) -> None:
    source = FakeSource()
    source.seconds = 10.0
    remembering = cached(source, SETTINGS)
    answers: list[Verdict] = []

    async def ask() -> None:
        answers.append(await verdict(remembering))

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(5) as leader:
            nursery.start_soon(sleep_then, 1, ask)
            nursery.start_soon(sleep_then, 2, ask)
            await ask()
    assert leader.cancelled_caught
    assert trio.current_time() == 15.0
    assert answers == [YES, YES]
    assert len(source.asked) == 2


async def sleep_then(seconds: float, ask: Callable[[], object]) -> None:
    await trio.sleep(seconds)
    await ask()  # type: ignore[misc]


async def test_a_bug_ends_only_its_own_question(autojump_clock: trio.testing.MockClock) -> None:
    class Broken(FakeSource):
        async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Answer:
            await super().authenticate(credentials, name, origin)
            if len(self.asked) == 1:
                raise KeyError
            return YES

    source = Broken()
    source.seconds = 1.0
    remembering = cached(source, SETTINGS)
    answers: list[Verdict] = []

    async def ask() -> None:
        with suppress(KeyError):
            answers.append(await verdict(remembering))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert answers == [YES, YES]
    assert len(source.asked) == 2


KINDS = [(FakeSource, False, False), (FakeHashingSource, True, False), (FakeAccountSource, False, True),
         (FakeFile, True, True)]  # fmt: skip


@pytest.mark.parametrize(("kind", "hashes", "knows_accounts"), KINDS)
async def test_a_source_stays_what_it_is(
    kind: type[FakeSource], hashes: bool, knows_accounts: bool, remember: Remember
) -> None:
    source = kind()
    remembering = remember(source)
    assert isinstance(remembering, HashingSource) is hashes
    assert isinstance(remembering, AccountSource) is knows_accounts
    assert (remembering.name, remembering.mechanisms) == (source.name, source.mechanisms)
    assert await remembering.probe() == (Probe("fake: bind", ""),)
    if isinstance(remembering, AccountSource) and isinstance(source, FakeAccountSource):
        assert (remembering.knows_scram, remembering.usual_shape) == (True, KeyShape(4096, 20))
        for _ in range(2):
            account = await remembering.look_up(ALICE)
            assert account is not None
            assert account.identity.name == ALICE
        assert source.looked_up == 2


async def test_a_pretence_costs_as_often_as_a_wrong_password(clock: Clock, remember: Remember) -> None:
    source = FakeHashingSource(NotMine())
    remembering = remember(source)
    assert isinstance(remembering, HashingSource)
    for now, secret, pretended in [(0, b"1", 1), (0, b"1", 1), (0, b"2", 2), (29, b"1", 2), (30, b"1", 3)]:
        clock.now = float(now)
        assert await verdict(remembering, offer(secret)) == NotMine()
        await remembering.pretend(offer(secret), ALICE)
        assert source.pretended == pretended
    assert len(source.asked) == 5  # to find out that a name is not known costs nothing


async def test_a_pretence_counts_for_either_way_of_showing_a_password(remember: Remember) -> None:
    """As a wrong password does: else the second way would tell by its time that the name is not known."""
    source = FakeHashingSource(NotMine())
    remembering = remember(source)
    assert isinstance(remembering, HashingSource)
    for mechanism in ("PLAIN", "LOGIN", "PLAIN"):
        await remembering.pretend(offer(mechanism=mechanism), ALICE)
    assert source.pretended == 1


async def test_a_pretence_says_nothing_about_the_name(remember: Remember) -> None:
    source = FakeHashingSource()
    remembering = remember(source)
    assert isinstance(remembering, HashingSource)
    await remembering.pretend(offer(name=ALICE), ALICE)
    assert await verdict(remembering, offer(name=ALICE)) == YES
    source.overloaded = True
    for _ in range(2):
        with pytest.raises(Refused, match="too many wait"):
            await remembering.pretend(offer(b"other"), ALICE)
    assert source.pretended == 3


async def test_what_is_counted(clock: Clock, autojump_clock: trio.testing.MockClock) -> None:
    source = FakeSource()
    source.name = "counted"
    remembering = cached(source, SETTINGS.model_copy(update={"serve_stale": 60.0}), clock=clock.monotonic)
    assert counted("counted") == dict.fromkeys(RESULTS, 0)
    await verdict(remembering)
    await verdict(remembering)
    clock.now, source.says, source.seconds = 300.0, OUT, 1.0
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(verdict, remembering)
    source.says = NO
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(verdict, remembering, offer(b"other"))
    await verdict(remembering, offer(b"other"))
    assert counted("counted") == {"hit": 1, "negative": 1, "miss": 2, "shared": 1, "stale": 3}


def counted(source: str) -> dict[str, int]:
    text, _ = exposition()
    counts = {}
    for line in text.decode().splitlines():
        for result in RESULTS:
            if line.startswith(f'porter_identity_cache_total{{result="{result}",source="{source}"}} '):
                counts[result] = int(float(line.rpartition(" ")[2]))
    return counts


SECRETS = [b"a", b"b", b"c"]
STATES: list[Verdict] = [YES, replace(YES, expires_at=UNIX + 12), NO, NotMine(), OUT, Outcome.CONTACT_ADMIN]
STEPS = st.tuples(
    st.integers(0, 8),  # seconds that pass
    st.sampled_from(SECRETS),
    st.sampled_from(["PLAIN", "LOGIN"]),
    st.sampled_from(STATES),  # what the source says from now on
    st.booleans(),  # whether its trouble, if any, is the account's
)
Step = tuple[int, bytes, str, Verdict, bool]


class Oracle:
    """The same memory, slow and obvious: what the source said last of each secret."""

    def __init__(self, positive: float, negative: float, stale: float | None) -> None:
        self.positive, self.negative, self.stale = positive, negative, stale
        self.last: dict[bytes, tuple[float, Verdict]] = {}

    def answer(self, now: float, secret: bytes, says: Verdict, person: bool) -> tuple[Verdict, bool]:
        """The answer, and whether the source was asked."""
        at, said = self.last.get(secret, (0.0, OUT))
        live = isinstance(said, Identity) and (said.expires_at is None or UNIX + now < said.expires_at)
        if live and now - at < self.positive:
            return said, False
        if (said is NO or isinstance(said, NotMine)) and now - at < self.negative:
            return said, False
        if says is OUT:
            may = self.positive and self.stale is not None and not person
            if live and may and now - at < self.positive + (self.stale or 0.0):
                assert isinstance(said, Identity)
                return replace(said, stale=True), True
            return OUT, True
        self.last[secret] = (now, says)
        return says, True


@settings(max_examples=300)
@given(
    st.lists(STEPS, max_size=40),
    st.sampled_from([0.0, 5.0, 20.0]),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([None, 10.0]),
)
def test_no_answer_that_the_source_would_not_stand_for(
    steps: list[Step], positive: float, negative: float, stale: float | None
) -> None:
    clock, source, oracle = Clock(), FakeSource(), Oracle(positive, negative, stale)
    chosen = Cache(positive=positive, negative=negative, entries=100, serve_stale=stale)

    async def play() -> None:
        remembering = cached(source, chosen, clock=clock.monotonic, unix_time=clock.unix)
        for seconds, secret, mechanism, says, person in steps:
            clock.now += seconds
            source.says, source.person = says, person
            asked = len(source.asked)
            answer, asks = oracle.answer(clock.now, secret, says, person)
            assert await verdict(remembering, offer(secret, mechanism)) == answer
            assert len(source.asked) - asked == asks

    trio.run(play)


ASKERS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 15)), min_size=1, max_size=8)


@settings(max_examples=200)
@given(ASKERS, st.integers(1, 6), st.sampled_from([YES, NO, OUT]))
def test_whoever_stays_gets_an_answer_whoever_leaves(askers: list[tuple[int, int]], takes: int, says: Verdict) -> None:
    """Each asks at a time and leaves after a time; at worst all others lead before him and leave."""
    source = FakeSource(says)
    source.seconds = float(takes)

    async def play() -> None:
        remembering = cached(source, SETTINGS)

        async def ask(after: int, patience: int) -> None:
            await trio.sleep(after)
            with trio.move_on_after(patience + 0.5) as scope:
                assert await verdict(remembering) == says
            assert not scope.cancelled_caught or patience < takes * (len(askers) + 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 0, 100)  # one stays whatever happens
            for after, patience in askers:
                nursery.start_soon(ask, after, patience)
        assert not remembering._memory.flights
        assert source.most_at_once == 1

    trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))
