"""What the sources' answers come to."""

from __future__ import annotations

import pytest

from proxy.auth.authenticator import Authenticator
from proxy.auth.names import NameRules
from proxy.auth.passthrough import PassthroughSource
from proxy.auth.source import HashingSource, IdentitySource, NotMine, Probe
from proxy.model import Account, Credentials, Endpoint, Identity, KeyShape, Origin, ScramKeys
from proxy.outcome import Outcome, Refused

Answer = Identity | Outcome | NotMine
NO, OUT, MISSING = Outcome.AUTHENTICATION_FAILED, Outcome.UNAVAILABLE, NotMine()
ORIGIN = Origin(Endpoint("192.0.2.1", 40000), secure=True)
YES = Identity("alice@example.org", "first")
LATER = Identity("alice@example.org", "later")


class FakeSource:
    """A source with one answer for everybody."""

    def __init__(self, name: str, answer: Answer, mechanisms: tuple[str, ...] = ("LOGIN", "PLAIN")) -> None:
        self.name = name
        self.mechanisms = frozenset(mechanisms)
        self.answer = answer
        self.asked: list[str] = []

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Identity | NotMine:
        assert origin is ORIGIN
        self.asked.append(name)
        if isinstance(self.answer, Outcome):
            raise Refused(self.answer, f"detail of {self.name}")
        return self.answer

    async def probe(self) -> tuple[Probe, ...]:
        return ()


class FakeHashingSource(FakeSource):
    """A source whose answers about names it knows cost a hash."""

    def __init__(self, name: str, answer: Answer, *, overloaded: bool = False) -> None:
        super().__init__(name, answer)
        self.pretended = 0
        self.overloaded = overloaded

    async def pretend(self, credentials: Credentials, name: str) -> None:
        assert name == "alice@example.org"
        self.pretended += 1
        if self.overloaded:
            raise Refused(Outcome.UNAVAILABLE, "too many wait")


def credentials(
    name: str = "Alice", authorization: str = "", secret: bytes = b"secret", mechanism: str = "PLAIN"
) -> Credentials:
    return Credentials(mechanism, name, authorization, secret)


async def outcome(authenticator: Authenticator, offered: Credentials) -> Identity | Outcome:
    try:
        return await authenticator.authenticate(offered, ORIGIN)
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
        await authenticator.authenticate(credentials(), ORIGIN)
    assert refusal.value.detail == "two: detail of two"
    assert "secret" not in str(refusal.value)


async def test_only_sources_of_the_mechanism_are_asked(rules: NameRules) -> None:
    tokens = FakeSource("oauth", YES, ("OAUTHBEARER",))
    authenticator = Authenticator([tokens, FakeSource("file", LATER)], rules)
    assert authenticator.mechanisms == {"OAUTHBEARER", "LOGIN", "PLAIN"}
    assert await outcome(authenticator, credentials()) == LATER
    assert await outcome(authenticator, credentials(mechanism="OAUTHBEARER")) == YES
    assert await outcome(authenticator, credentials(mechanism="XOAUTH2")) is NO


@pytest.mark.parametrize(
    "mechanisms", [(), ("LOGIN",), ("LOGIN", "PLAIN"), ("OAUTHBEARER",), ("LOGIN", "OAUTHBEARER", "PLAIN", "XOAUTH2")]
)
def test_the_command_login_is_one_of_the_mechanisms(mechanisms: tuple[str, ...], rules: NameRules) -> None:
    """Where no source judges passwords, the command is of no use to anybody."""
    assert Authenticator([FakeSource("it", YES, mechanisms)], rules).mechanisms == set(mechanisms)


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
    assert (await authenticator.authenticate(asked, ORIGIN)).name == "alice.smith@example.org"


async def test_a_wrong_password_is_told_before_a_wrong_authorization(rules: NameRules) -> None:
    authenticator = Authenticator([FakeSource("file", NO)], rules)
    assert await outcome(authenticator, credentials(authorization="bob")) is NO


async def test_passthrough(rules: NameRules) -> None:
    source: IdentitySource = PassthroughSource(tokens=False)
    authenticator = Authenticator([source], rules)
    assert authenticator.mechanisms == {"LOGIN", "PLAIN"}
    for mechanism in ("LOGIN", "PLAIN"):
        identity = await authenticator.authenticate(credentials("Bob", mechanism=mechanism), ORIGIN)
        assert identity == Identity("bob@example.org", "backend", verified=False)
    assert not isinstance(source, HashingSource)


def test_passthrough_never_waits(rules: NameRules) -> None:
    """Without a trio loop around it: no task, no thread, no checkpoint."""
    coroutine = Authenticator([PassthroughSource(tokens=False)], rules).authenticate(credentials(), ORIGIN)
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert stop.value.value == Identity("alice@example.org", "backend", verified=False)


async def test_passing_tokens_on(rules: NameRules) -> None:
    authenticator = Authenticator([PassthroughSource(tokens=True)], rules)
    assert authenticator.mechanisms == {"LOGIN", "PLAIN", "XOAUTH2", "OAUTHBEARER"}
    identity = await authenticator.authenticate(credentials("Bob", mechanism="OAUTHBEARER"), ORIGIN)
    assert identity == Identity("bob@example.org", "backend", verified=False)
    # Only the issuer could say whose it is, so that nobody knows which backend to ask.
    assert await outcome(authenticator, credentials("", mechanism="OAUTHBEARER")) is NO


async def test_a_token_may_name_its_owner_itself(rules: NameRules) -> None:
    source = FakeSource("oauth", YES, ("OAUTHBEARER",))
    assert await outcome(Authenticator([source], rules), credentials("", mechanism="OAUTHBEARER")) == YES
    assert source.asked == [""]


async def test_a_password_needs_a_name(rules: NameRules) -> None:
    source = FakeSource("file", YES)
    assert await outcome(Authenticator([source], rules), credentials("")) is NO
    assert source.asked == []


async def test_all_that_was_heard_is_told(rules: NameRules) -> None:
    sources = [FakeSource("one", NotMine("issued by somebody else")), FakeSource("two", NotMine("not active"))]
    with pytest.raises(Refused) as refusal:
        await Authenticator(sources, rules).authenticate(credentials(), ORIGIN)
    assert refusal.value.detail == "one: issued by somebody else; two: not active"


# --- SCRAM and EXTERNAL: no secret is shown ---

KEYS = ScramKeys(b"salt of alice", 4096, b"s" * 32, b"k" * 32)
DECOY_KEY = b"the same in every proxy"


class FakeAccounts(FakeSource):
    """A source that knows names without their secrets."""

    knows_scram = True
    usual_shape = KeyShape(5000, 20)

    def __init__(self, name: str, found: Account | Outcome | None) -> None:
        super().__init__(name, MISSING)
        self.found = found
        self.looked_up: list[str] = []

    async def look_up(self, name: str) -> Account | None:
        self.looked_up.append(name)
        if isinstance(self.found, Outcome):
            raise Refused(self.found, f"detail of {self.name}")
        return self.found


FOUND = Account(YES, KEYS)
KEYLESS = Account(YES)
ACCOUNTS: list[tuple[list[Account | Outcome | None], Account | Outcome | None]] = [
    # what the sources find, what comes of it; None: an account like any other that nobody fits
    ([FOUND], FOUND),
    ([None, FOUND], FOUND),
    ([None], None),
    ([KEYLESS], None),
    ([KEYLESS, FOUND], None),  # the first that knows the name has the last word
    ([OUT], OUT),
    ([OUT, FOUND], FOUND),
    ([OUT, None], OUT),
    ([None, OUT], OUT),
    ([Outcome.EXPIRED], None),
]


@pytest.mark.parametrize(("found", "result"), ACCOUNTS)
async def test_accounts(
    found: list[Account | Outcome | None], result: Account | Outcome | None, rules: NameRules
) -> None:
    sources = [FakeAccounts(f"source{number}", each) for number, each in enumerate(found)]
    authenticator = Authenticator(sources, rules, decoy_key=lambda: DECOY_KEY)
    if isinstance(result, Outcome):
        with pytest.raises(Refused) as refusal:
            await authenticator.account("Alice")
        assert refusal.value.outcome is result
        return
    account = await authenticator.account("Alice")
    assert sources[0].looked_up == ["alice@example.org"]
    if result is not None:
        assert account == result
        return
    assert account.scram is not None
    assert (account.scram.iterations, len(account.scram.salt)) == (5000, 20)
    assert account == await authenticator.account("ALICE")  # the same salt at every try
    assert account.scram.salt != (await authenticator.account("bob")).scram.salt  # type: ignore[union-attr]
    # Even a proof that fits it opens nothing.
    proven = Credentials("SCRAM-SHA-256", "Alice", "", b"", proven=account)
    assert await outcome(authenticator, proven) is NO


async def test_unknown_names_look_like_the_keys_of_now(rules: NameRules) -> None:
    """A reload may bring other keys: names that were asked for before follow."""
    source = FakeAccounts("file", None)
    authenticator = Authenticator([source], rules, decoy_key=lambda: DECOY_KEY)
    before = (await authenticator.account("Alice")).scram
    source.usual_shape = KeyShape(9000, 64)
    after = (await authenticator.account("Alice")).scram
    assert before is not None
    assert after is not None
    assert (before.iterations, len(before.salt)) == (5000, 20)
    assert (after.iterations, len(after.salt)) == (9000, 64)


async def test_why_nothing_was_proven(rules: NameRules) -> None:
    authenticator = Authenticator([FakeAccounts("file", FOUND)], rules, decoy_key=lambda: DECOY_KEY)
    for problem, detail in (("a downgrade?", "a downgrade?"), ("", "the proof does not fit the name's keys")):
        with pytest.raises(Refused) as refusal:
            await authenticator.authenticate(Credentials("SCRAM-SHA-256", "Alice", "", b"", problem=problem), ORIGIN)
        assert (refusal.value.outcome, refusal.value.detail) == (NO, detail)


async def test_a_proof_is_an_identity(rules: NameRules) -> None:
    authenticator = Authenticator([FakeAccounts("file", FOUND)], rules, decoy_key=lambda: DECOY_KEY)
    assert authenticator.mechanisms == {"LOGIN", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"):
        assert await outcome(authenticator, Credentials(mechanism, "Alice", "", b"", proven=FOUND)) == YES
        assert await outcome(authenticator, Credentials(mechanism, "Alice", "ALICE", b"", proven=FOUND)) == YES
        assert await outcome(authenticator, Credentials(mechanism, "Alice", "", b"")) is NO
        stranger = Credentials(mechanism, "Alice", "bob", b"", proven=FOUND)
        assert await outcome(authenticator, stranger) is Outcome.AUTHORIZATION_FAILED


def test_scram_needs_keys_and_a_secret_of_the_proxys(rules: NameRules) -> None:
    class Keyless(FakeAccounts):
        knows_scram = False

    assert Authenticator([FakeAccounts("file", FOUND)], rules).mechanisms == {"LOGIN", "PLAIN"}
    assert Authenticator([Keyless("file", None)], rules, decoy_key=lambda: DECOY_KEY).mechanisms == {"LOGIN", "PLAIN"}


def external(name: str, authorization: str = "") -> Credentials:
    return Credentials("EXTERNAL", name, authorization, b"", expires_at=99.0)


CERTIFIED: list[tuple[list[Account | Outcome | None], Identity | Outcome]] = [
    ([], Identity("alice@example.org", "certificate", expires_at=99.0)),
    ([KEYLESS], Identity("alice@example.org", "first", expires_at=99.0)),
    ([None, FOUND], Identity("alice@example.org", "first", expires_at=99.0)),
    ([None], NO),
    ([OUT], OUT),
    ([Outcome.EXPIRED], NO),
]


@pytest.mark.parametrize(("found", "result"), CERTIFIED)
async def test_certificates(
    found: list[Account | Outcome | None], result: Identity | Outcome, rules: NameRules
) -> None:
    sources = [FakeAccounts(f"source{number}", each) for number, each in enumerate(found)]
    authenticator = Authenticator([*sources, FakeSource("http", NO)], rules, decoy_key=lambda: DECOY_KEY)
    assert await outcome(authenticator, external("Alice")) == result
    if isinstance(result, Identity):
        assert await outcome(authenticator, external("Alice", "alice")) == result
        assert await outcome(authenticator, external("Alice", "bob")) is Outcome.AUTHORIZATION_FAILED


@pytest.mark.parametrize("name", ["", "alice*porter", "a@b@c"])
async def test_a_certificate_without_a_usable_name(name: str, rules: NameRules) -> None:
    assert await outcome(Authenticator([], rules), external(name)) is NO


@pytest.mark.parametrize(
    ("spelled", "known_as"), [("Alice", "alice@example.org"), ("a@b@c", "a@b@c"), ("x" * 999, "x" * 256), ("", "")]
)
def test_what_limits_count_a_name_by(spelled: str, known_as: str, rules: NameRules) -> None:
    assert Authenticator([], rules).known_as(spelled) == known_as
