"""An issuer's keys: where they are found, when they are fetched, and what happens while they can't be."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from proxy.auth.oauth.keys import FETCH_SECONDS, OLD_SECONDS, Issuer
from proxy.auth.oauth.source import OAuthSource
from proxy.auth.source import Probe
from proxy.auth.web import WebAnswer, WebFailed
from proxy.model import Identity
from proxy.observe.metrics import METRICS
from proxy.outcome import Outcome, Refused
from tests.auth.oauth_stage import (
    DISCOVERY,
    ISSUER,
    KEYS,
    FakeWeb,
    ask,
    claims,
    ec_key,
    introspection,
    issuer_web,
    key_set,
    make_source,
    rsa_key,
)
from tests.servers.openid import SigningKey

NO, OUT = Outcome.AUTHENTICATION_FAILED, Outcome.UNAVAILABLE
NEW = rsa_key("new")
RFC8414 = "https://id.example.org/.well-known/oauth-authorization-server/realms/mail"
MIDDLE = "https://id.example.org/.well-known/openid-configuration/realms/mail"


async def outcome(source: OAuthSource, key: SigningKey, **header: Any) -> Outcome:
    """How a login with a token of this key ends."""
    try:
        answer = await ask(source, key.mint(claims(), **header))
    except Refused as refusal:
        return refusal.outcome
    assert isinstance(answer, Identity)
    return Outcome.OK


@pytest.mark.parametrize(
    ("issuer", "urls"),
    [
        (
            "https://id.example.org",
            (
                "https://id.example.org/.well-known/openid-configuration",
                "https://id.example.org/.well-known/oauth-authorization-server",
            ),
        ),
        (
            "https://tenant.example.org/",
            (
                "https://tenant.example.org/.well-known/openid-configuration",
                "https://tenant.example.org/.well-known/oauth-authorization-server",
            ),
        ),
        (ISSUER, (DISCOVERY, RFC8414, MIDDLE)),
        (f"{ISSUER}/", (DISCOVERY, RFC8414, MIDDLE)),
        (
            "http://[::1]:9000/a",
            (
                "http://[::1]:9000/a/.well-known/openid-configuration",
                "http://[::1]:9000/.well-known/oauth-authorization-server/a",
                "http://[::1]:9000/.well-known/openid-configuration/a",
            ),
        ),
    ],
)
def test_where_metadata_may_be(issuer: str, urls: tuple[str, ...]) -> None:
    assert Issuer(issuer, None).discovery_urls == urls


@pytest.mark.parametrize("url", [DISCOVERY, RFC8414, MIDDLE])
async def test_discovery(url: str) -> None:
    web = issuer_web()
    web.pages[url] = web.pages.pop(DISCOVERY)
    source = make_source(web)
    assert await outcome(source, rsa_key()) is Outcome.OK
    assert web.asked[-2:] == [url, KEYS]
    assert await outcome(source, ec_key()) is Outcome.OK
    assert web.asked.count(KEYS) == 1


async def test_keys_without_discovery() -> None:
    web = issuer_web()
    assert await outcome(make_source(web, jwks_url=KEYS), rsa_key()) is Outcome.OK
    assert web.asked == [KEYS]


def metadata(**changes: Any) -> dict[str, Any]:
    return {"issuer": ISSUER, "jwks_uri": KEYS} | changes


TROUBLE: list[tuple[str, str, Any, str]] = [
    ("nothing there", DISCOVERY, 404, f"{DISCOVERY}: HTTP 404"),
    ("broken", DISCOVERY, 500, f"{DISCOVERY}: HTTP 500"),
    ("moved", DISCOVERY, WebAnswer(302, ((b"location", b"https://x.example/"),), b""), f"{DISCOVERY}: HTTP 302"),
    ("no connection", DISCOVERY, WebFailed("ConnectError: refused"), f"{DISCOVERY}: ConnectError: refused"),
    ("too large", DISCOVERY, b"{" + b" " * 300_000 + b"}", f"{DISCOVERY}: too large"),
    ("a page for people", DISCOVERY, b"<html>", f"{DISCOVERY}: not valid JSON"),
    ("a key twice", DISCOVERY, b'{"issuer": "a", "issuer": "b"}', f"{DISCOVERY}: a key is given twice"),
    ("another issuer's", DISCOVERY, metadata(issuer="https://x.example"), f"{DISCOVERY} is about the issuer 'https"),
    ("the issuer, almost", DISCOVERY, metadata(issuer=f"{ISSUER}/"), f"{DISCOVERY} is about the issuer"),
    ("nobody's", DISCOVERY, {"jwks_uri": KEYS}, f"{DISCOVERY} is about the issuer None"),
    ("no keys", DISCOVERY, {"issuer": ISSUER}, f"{DISCOVERY}: jwks_uri: expected a URL"),
    ("keys in clear", DISCOVERY, metadata(jwks_uri="http://id.example.org/keys"), "jwks_uri: secrets and keys pass"),
    ("keys nowhere", DISCOVERY, metadata(jwks_uri="https://id..example.org/keys"), "jwks_uri: expected a host's name"),
    ("keys in a file", DISCOVERY, metadata(jwks_uri="file:///etc/passwd"), "jwks_uri: expected an https:// URL"),
    ("keys, not there", KEYS, 404, f"{KEYS}: HTTP 404"),
    ("keys, none", KEYS, {"keys": []}, f"{KEYS}: there is no key in it that verifies signatures"),
    ("keys, too large", KEYS, b"{" + b" " * 300_000 + b"}", f"{KEYS}: too large"),
]


@pytest.mark.parametrize(("name", "url", "reply", "problem"), TROUBLE, ids=[row[0] for row in TROUBLE])
async def test_trouble_is_an_outage(name: str, url: str, reply: Any, problem: str) -> None:
    web = issuer_web()
    web.pages[url] = reply
    source = make_source(web)
    with pytest.raises(Refused) as caught:
        await ask(source, rsa_key().mint(claims()))
    assert caught.value.outcome is OUT
    assert caught.value.detail.startswith("the issuer's keys: ")
    assert problem in caught.value.detail
    probes = await source.probe()
    assert problem in probes[-1].problem


async def test_a_storm_of_logins_fetches_once() -> None:
    web = issuer_web()
    web.seconds = 0.01
    source = make_source(web)
    ended: Counter[Outcome] = Counter()

    async def log_in() -> None:
        ended[await outcome(source, rsa_key())] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(log_in)
    assert ended == {Outcome.OK: 100}
    assert web.asked == [DISCOVERY, KEYS]


async def test_rotation(autojump_clock: MockClock) -> None:
    web = issuer_web()
    source = make_source(web)
    assert await outcome(source, rsa_key()) is Outcome.OK
    web.pages[KEYS] = key_set(NEW)
    # A key that is used the moment it is made: whoever brings the first token waits, and is let in.
    began = trio.current_time()
    assert await outcome(source, NEW) is Outcome.OK
    assert trio.current_time() - began == pytest.approx(FETCH_SECONDS)
    assert web.asked.count(KEYS) == 2
    await trio.sleep(FETCH_SECONDS)
    began = trio.current_time()
    assert await outcome(source, rsa_key()) is NO, "a key that was withdrawn"
    assert trio.current_time() == began, "the last fetch is long ago: no need to wait"
    assert await outcome(source, NEW) is Outcome.OK


async def test_rotation_without_names(autojump_clock: MockClock) -> None:
    old, new = rsa_key(None), SigningKey(None, "RS256", NEW.private_key)
    web = FakeWeb()
    web.pages = {DISCOVERY: metadata(), KEYS: key_set(old)}
    source = make_source(web)
    assert await outcome(source, old) is Outcome.OK
    web.pages[KEYS] = key_set(new)
    assert await outcome(source, new) is Outcome.OK
    web.pages[KEYS] = key_set(SigningKey(None, "ES256", ec_key().private_key))
    assert await outcome(source, ec_key(), kid=None) is Outcome.OK
    assert await outcome(source, new) is NO


async def test_a_stranger_cannot_make_us_hammer_the_issuer(autojump_clock: MockClock) -> None:
    web = issuer_web()
    web.seconds = 0.1
    source = make_source(web)
    ended: Counter[Outcome] = Counter()
    began = trio.current_time()

    async def guess(number: int) -> None:
        await trio.sleep(number / 10)
        ended[await outcome(source, NEW, kid=f"guess{number}")] += 1

    async with trio.open_nursery() as nursery:
        for number in range(1000):  # ten a second
            nursery.start_soon(guess, number)
        for _ in range(50):
            await trio.sleep(2)
            at = trio.current_time()
            assert await outcome(source, rsa_key()) is Outcome.OK
            assert trio.current_time() == at, "a known key waited"
    assert ended == {NO: 1000}
    assert web.asked.count(KEYS) <= (trio.current_time() - began) / FETCH_SECONDS + 1
    assert web.most_under_way == 1


async def test_the_issuer_is_down(autojump_clock: MockClock) -> None:
    web = issuer_web()
    source = make_source(web)
    assert await outcome(source, rsa_key()) is Outcome.OK
    found, web.pages = web.pages, {}
    await trio.sleep(FETCH_SECONDS)
    assert await outcome(source, rsa_key()) is Outcome.OK
    assert await outcome(source, NEW) is OUT
    asked = len(web.asked)
    for _ in range(10):
        began = trio.current_time()
        assert await outcome(source, NEW) is OUT
        assert trio.current_time() == began
    assert len(web.asked) == asked, "within the interval nobody asks again"
    await trio.sleep(OLD_SECONDS * 24)
    assert await outcome(source, rsa_key()) is Outcome.OK
    web.pages = {**found, KEYS: key_set(rsa_key(), NEW)}
    await trio.sleep(FETCH_SECONDS)
    assert await outcome(source, NEW) is Outcome.OK


async def test_old_keys_are_fetched_again_without_waiting(autojump_clock: MockClock) -> None:
    web = issuer_web()
    web.seconds = 3
    source = make_source(web)
    assert await outcome(source, ec_key()) is Outcome.OK
    web.pages[KEYS] = key_set(rsa_key())
    await trio.sleep(OLD_SECONDS + 1)
    for _ in range(3):
        began = trio.current_time()
        assert await outcome(source, ec_key()) is Outcome.OK
        assert trio.current_time() == began
    await trio.sleep(10)
    assert web.asked.count(KEYS) == 2
    assert await outcome(source, rsa_key()) is Outcome.OK
    assert await outcome(source, ec_key()) is NO, "withdrawn by the issuer"


async def test_after_a_silence_keys_are_fetched_before_they_count(autojump_clock: MockClock) -> None:
    web = issuer_web()
    web.seconds = 3
    source = make_source(web)
    assert await outcome(source, ec_key()) is Outcome.OK
    web.pages[KEYS] = key_set(rsa_key())
    await trio.sleep(OLD_SECONDS * 2 + 1)
    ended: list[tuple[str | None, Outcome]] = []

    async def log_in(key: SigningKey, after: float) -> None:
        await trio.sleep(after)
        ended.append((key.kid, await outcome(source, key)))

    async with trio.open_nursery() as nursery:
        for key in (ec_key(), rsa_key()):
            for after in (0, 1):
                nursery.start_soon(log_in, key, after)
    assert sorted(ended) == [("ec1", NO), ("ec1", NO), ("rsa1", Outcome.OK), ("rsa1", Outcome.OK)]


async def test_after_a_silence_an_issuer_that_is_down_is_waited_for_once(autojump_clock: MockClock) -> None:
    web = issuer_web()
    source = make_source(web)
    assert await outcome(source, rsa_key()) is Outcome.OK
    web.pages, web.seconds = {}, 3
    for _ in range(2):
        await trio.sleep(OLD_SECONDS * 2 + 1)
        asked = len(web.asked)
        began = trio.current_time()
        assert await outcome(source, rsa_key()) is Outcome.OK, "old keys go on"
        assert trio.current_time() > began
        assert len(web.asked) > asked
        for _ in range(3):
            await trio.sleep(FETCH_SECONDS)
            began = trio.current_time()
            assert await outcome(source, rsa_key()) is Outcome.OK
            assert trio.current_time() == began


async def test_a_query_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    url = f"{KEYS}?key=k3y"
    ways: list[dict[str, Any]] = [{"jwks_url": url}, {}]
    for settings in ways:
        for reply in (404, 500, WebFailed("ConnectError"), b"<html>"):
            web = issuer_web()
            web.pages |= {DISCOVERY: metadata(jwks_uri=url), url: reply}
            source = make_source(web, **settings)
            with pytest.raises(Refused) as caught:
                await ask(source, rsa_key().mint(claims()))
            told = [caught.value.detail, *map(str, await source.probe()), capfd.readouterr().err]
            assert "oauth.keys_failed" in told[-1]
            assert all(KEYS in text for text in told)
            assert not any("k3y" in text for text in told)


async def test_a_login_that_gives_up_leaves_the_fetch_to_the_others(autojump_clock: MockClock) -> None:
    web = issuer_web()
    web.seconds = 2
    source = make_source(web)
    ended: list[Outcome] = []

    async def log_in(seconds: float) -> None:
        with trio.move_on_after(seconds):
            ended.append(await outcome(source, rsa_key()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_in, 1)
        nursery.start_soon(log_in, 10)
    assert ended == [Outcome.OK]
    assert web.asked == [DISCOVERY, KEYS]


async def test_a_bug_in_a_fetch_ends_nothing(capfd: pytest.CaptureFixture[str], autojump_clock: MockClock) -> None:
    web = issuer_web()
    web.pages[KEYS] = RuntimeError("bug")  # type: ignore[assignment]
    source = make_source(web)
    assert await outcome(source, rsa_key()) is OUT
    assert "oauth.keys_crashed" in capfd.readouterr().err
    web.pages[KEYS] = key_set(rsa_key())
    await trio.sleep(FETCH_SECONDS)
    assert await outcome(source, rsa_key()) is Outcome.OK


async def test_what_is_told(capfd: pytest.CaptureFixture[str], autojump_clock: MockClock) -> None:
    web = issuer_web()
    source = make_source(web)

    async def fetch() -> str:
        await trio.sleep(FETCH_SECONDS)
        await outcome(source, NEW)
        return capfd.readouterr().err

    before = counted()
    line = await fetch()
    assert "oauth.keys_fetched" in line
    assert "rsa1" in line
    assert await fetch() == "", "the same keys again"
    found, web.pages = web.pages, {}
    line = await fetch()
    assert "oauth.keys_failed" in line
    assert "HTTP 404" in line
    assert await fetch() == "", "still out"
    web.pages = found
    assert "oauth.keys_fetched" in await fetch()
    assert counted() - before == {"ok": 3, "failed": 2}


def counted() -> Counter[str]:
    text = METRICS.exposition()[0].decode()
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith('porter_oauth_key_fetches_total{outcome="') and 'source="oauth"' in line:
            found[line.split('"')[1]] = int(float(line.split()[-1]))
    return found


async def test_probes() -> None:
    web = issuer_web()
    source = make_source(web)
    found = [Probe(probe.what, probe.problem, probe.detail) for probe in await source.probe()]
    assert found == [
        Probe(f"{ISSUER}: discovery", "", f"its keys are at {KEYS}"),
        Probe(f"{KEYS}: keys", "", "'rsa1', 'ec1'"),
    ]
    web.pages[DISCOVERY] = WebFailed("no answer within 5 s")
    (probe,) = await source.probe()
    assert (probe.what, probe.problem) == (f"{ISSUER}: discovery", f"{DISCOVERY}: no answer within 5 s")


async def test_all_probes() -> None:
    web = issuer_web()
    source = make_source(web, introspection=introspection(), jwks_url=KEYS)
    web.pages[KEYS] = json.dumps(key_set()).encode()
    assert [bool(probe.problem) for probe in await source.probe()] == [True, True]
