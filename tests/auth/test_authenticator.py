"""What the sources' answers come to."""

from __future__ import annotations

import pytest

from proxy.auth.authenticator import Authenticator
from proxy.auth.names import NameRules
from proxy.auth.passthrough import PassthroughSource
from proxy.auth.source import HashingSource, IdentitySource
from proxy.model import Credentials, Identity
from proxy.outcome import Outcome, Refused

Answer = Identity | Outcome | None
NO, OUT, MISSING = Outcome.AUTHENTICATION_FAILED, Outcome.UNAVAILABLE, None
YES = Identity("alice@example.org", "first")
LATER = Identity("alice@example.org", "later")


class FakeSource:
    """A source with one answer for everybody."""

    def __init__(self, name: str, answer: Answer, mechanisms: tuple[str, ...] = ("LOGIN", "PLAIN")) -> None:
        self.name = name
        self.mechanisms = frozenset(mechanisms)
        self.answer = answer
        self.asked: list[str] = []

    async def authenticate(self, credentials: Credentials, name: str) -> Identity | None:
        self.asked.append(name)
        if isinstance(self.answer, Outcome):
            raise Refused(self.answer, f"detail of {self.name}")
        return self.answer


class FakeHashingSource(FakeSource):
    """A source whose answers about names it knows cost a hash."""

    def __init__(self, name: str, answer: Answer, *, overloaded: bool = False) -> None:
        super().__init__(name, answer)
        self.pretended = 0
        self.overloaded = overloaded

    async def pretend(self, credentials: Credentials) -> None:
        self.pretended += 1
        if self.overloaded:
            raise Refused(Outcome.UNAVAILABLE, "too many wait")


def credentials(
    name: str = "Alice", authorization: str = "", secret: bytes = b"secret", mechanism: str = "PLAIN"
) -> Credentials:
    return Credentials(mechanism, name, authorization, secret)


async def outcome(authenticator: Authenticator, offered: Credentials) -> Identity | Outcome:
    try:
        return await authenticator.authenticate(offered)
    except Refused as refusal:
        return refusal.outcome


ANSWERS: list[tuple[list[Answer], Identity | Outcome, int]] = [
    # answers in order, what they come to, how many sources were asked
    ([YES], YES, 1),
    ([NO], NO, 1),
    ([OUT], OUT, 1),
    ([MISSING], NO, 1),
    ([], NO, 0),
    ([YES, LATER], YES, 1),
    ([MISSING, LATER], LATER, 2),
    ([NO, LATER], NO, 1),
    ([OUT, LATER], LATER, 2),
    ([MISSING, MISSING], NO, 2),
    ([MISSING, NO], NO, 2),
    ([NO, MISSING], NO, 1),
    ([NO, OUT], NO, 1),
    ([OUT, NO], OUT, 2),
    ([MISSING, OUT], OUT, 2),
    ([OUT, MISSING], OUT, 2),
    ([Outcome.EXPIRED, LATER], Outcome.EXPIRED, 1),
    ([MISSING, Outcome.CONTACT_ADMIN, LATER], Outcome.CONTACT_ADMIN, 2),
    ([OUT, Outcome.EXPIRED], OUT, 2),
]


@pytest.mark.parametrize(("answers", "result", "asked"), ANSWERS)
async def test_answers(answers: list[Answer], result: Identity | Outcome, asked: int, rules: NameRules) -> None:
    sources = [FakeSource(f"source{number}", answer) for number, answer in enumerate(answers)]
    assert await outcome(Authenticator(sources, rules), credentials()) == result
    assert [source.asked for source in sources] == [["alice@example.org"]] * asked + [[]] * (len(sources) - asked)


PRETENCES: list[tuple[list[tuple[bool, Answer]], int]] = [
    # (hashes?, answer) in order, how many hashes were pretended
    ([(True, YES)], 0),
    ([(True, NO)], 0),  # it has spent one
    ([(True, OUT)], 0),  # its queue is full, or it has spent one
    ([(True, MISSING)], 1),
    ([(True, MISSING), (True, MISSING)], 1),
    ([(True, NO), (True, MISSING)], 0),
    ([(True, MISSING), (True, NO)], 0),
    ([(True, MISSING), (False, NO)], 1),  # a directory's no is faster than a hash
    ([(True, MISSING), (False, OUT)], 1),
    ([(False, NO), (True, MISSING)], 1),
    ([(True, MISSING), (False, YES)], 0),
    ([(False, NO)], 0),
]


@pytest.mark.parametrize(("answers", "pretended"), PRETENCES)
async def test_a_failed_login_costs_one_hash(
    answers: list[tuple[bool, Answer]], pretended: int, rules: NameRules
) -> None:
    sources = [FakeHashingSource("h", answer) if hashes else FakeSource("f", answer) for hashes, answer in answers]
    await outcome(Authenticator(sources, rules), credentials())
    assert sum(source.pretended for source in sources if isinstance(source, FakeHashingSource)) == pretended


async def test_an_overload_looks_the_same_for_an_unknown_name(rules: NameRules) -> None:
    authenticator = Authenticator([FakeHashingSource("file", MISSING, overloaded=True)], rules)
    assert await outcome(authenticator, credentials()) is Outcome.UNAVAILABLE


async def test_details_name_the_source(rules: NameRules) -> None:
    authenticator = Authenticator([FakeSource("one", MISSING), FakeSource("two", OUT)], rules)
    with pytest.raises(Refused) as refusal:
        await authenticator.authenticate(credentials())
    assert refusal.value.detail == "two: detail of two"
    assert "secret" not in str(refusal.value)


async def test_only_sources_of_the_mechanism_are_asked(rules: NameRules) -> None:
    tokens = FakeSource("oauth", YES, ("OAUTHBEARER",))
    authenticator = Authenticator([tokens, FakeSource("file", LATER)], rules)
    assert authenticator.mechanisms == ("OAUTHBEARER", "PLAIN")
    assert await outcome(authenticator, credentials()) == LATER
    assert await outcome(authenticator, credentials(mechanism="OAUTHBEARER")) == YES
    assert await outcome(authenticator, credentials(mechanism="EXTERNAL")) is NO


async def test_an_empty_secret_is_never_asked_about(rules: NameRules) -> None:
    source = FakeSource("backend", YES)
    assert await outcome(Authenticator([source], rules), credentials(secret=b"")) is NO
    assert source.asked == []


async def test_a_name_that_is_none_is_never_asked_about(rules: NameRules) -> None:
    source = FakeSource("backend", YES)
    assert await outcome(Authenticator([source], rules), credentials("alice*porter")) is NO
    assert source.asked == []


AUTHORIZATIONS = [
    ("", YES),
    ("Alice", YES),
    ("ALICE@example.org", YES),
    ("\uff21lice", YES),
    ("bob", Outcome.AUTHORIZATION_FAILED),
    ("alice@example.com", Outcome.AUTHORIZATION_FAILED),
    ("alice*porter", Outcome.AUTHORIZATION_FAILED),
    ("\udcff", Outcome.AUTHORIZATION_FAILED),
    (" ", Outcome.AUTHORIZATION_FAILED),
]


@pytest.mark.parametrize(("authorization", "result"), AUTHORIZATIONS)
async def test_nobody_acts_as_somebody_else(authorization: str, result: Identity | Outcome, rules: NameRules) -> None:
    authenticator = Authenticator([FakeSource("file", YES)], rules)
    assert await outcome(authenticator, credentials(authorization=authorization)) == result


async def test_the_name_that_a_source_gives_may_be_asked_for(rules: NameRules) -> None:
    authenticator = Authenticator([FakeSource("ldap", Identity("alice.smith@example.org", "ldap"))], rules)
    asked = credentials(authorization="alice.smith@example.org")
    assert (await authenticator.authenticate(asked)).name == "alice.smith@example.org"


async def test_a_wrong_password_is_told_before_a_wrong_authorization(rules: NameRules) -> None:
    authenticator = Authenticator([FakeSource("file", NO)], rules)
    assert await outcome(authenticator, credentials(authorization="bob")) is NO


async def test_passthrough(rules: NameRules) -> None:
    source: IdentitySource = PassthroughSource()
    authenticator = Authenticator([source], rules)
    assert authenticator.mechanisms == ("PLAIN",)
    for mechanism in ("LOGIN", "PLAIN"):
        identity = await authenticator.authenticate(credentials("Bob", mechanism=mechanism))
        assert identity == Identity("bob@example.org", "backend", verified=False)
    assert not isinstance(source, HashingSource)


def test_passthrough_never_waits(rules: NameRules) -> None:
    """Without a trio loop around it: no task, no thread, no checkpoint."""
    coroutine = Authenticator([PassthroughSource()], rules).authenticate(credentials())
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert stop.value.value == Identity("alice@example.org", "backend", verified=False)
