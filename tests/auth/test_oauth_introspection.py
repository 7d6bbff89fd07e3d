"""Opaque tokens: what the issuer is asked, and what its answers come to."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from proxy.auth.oauth.introspection import MAX_UNDER_WAY
from proxy.auth.source import NotMine
from proxy.auth.web import WebAnswer, WebFailed
from proxy.model import Identity
from proxy.outcome import Outcome, Refused
from tests.auth.oauth_stage import (
    INTROSPECTION,
    ISSUER,
    NOW,
    FakeWeb,
    Reply,
    ask,
    claims,
    introspection,
    issuer_web,
    make_source,
    rsa_key,
)

NO, OUT, EXPIRED, SCOPE = (
    Outcome.AUTHENTICATION_FAILED,
    Outcome.UNAVAILABLE,
    Outcome.EXPIRED,
    Outcome.AUTHORIZATION_FAILED,
)
OPAQUE = "2YotnFZFEjr1zCsicMWpAA"
ALICE = "alice@example.org"
YES = Identity(ALICE, "oauth", expires_at=NOW + 300)


def active(**changes: Any) -> dict[str, Any]:
    return {"active": True, "token_type": "Bearer", "client_id": "webmail", **claims(**changes)}


def endpoint(reply: Reply) -> FakeWeb:
    web = FakeWeb()
    web.pages = {INTROSPECTION: reply}
    return web


@pytest.mark.parametrize(
    ("method", "form", "basic"),
    [
        ("basic", {}, ("imap+porter", "its+secret%2B1%3A%25")),
        ("post", {"client_id": "imap porter", "client_secret": "its secret+1:%"}, None),
    ],
)
async def test_what_is_asked(method: str, form: dict[str, str], basic: tuple[str, str] | None) -> None:
    web = endpoint(active())
    source = make_source(web, issuer=None, introspection=introspection(method))
    assert await ask(source, OPAQUE) == YES
    assert web.forms == [({"token": OPAQUE, "token_type_hint": "access_token", **form}, basic)]
    assert source.openid_configuration is None


async def test_who_judges_what() -> None:
    web = issuer_web()
    web.pages[INTROSPECTION] = active()
    both = make_source(web, introspection=introspection())
    assert await ask(both, rsa_key().mint(claims())) == YES
    assert web.forms == []
    assert isinstance(await ask(both, rsa_key().mint(claims(iss="x"))), NotMine)
    assert web.forms == [], "another issuer's JWT was shown to this one"
    assert await ask(both, OPAQUE) == YES
    assert await ask(both, "a.b.c") == YES
    alone = make_source(web, issuer=None, introspection=introspection())
    assert await ask(alone, rsa_key().mint(claims(exp=0))) == YES
    assert len(web.forms) == 3


ANSWERS: list[tuple[str, dict[str, Any], dict[str, Any], Outcome, str]] = [
    ("good", active(), {}, Outcome.OK, ""),
    ("good, with the scope", active(), {"scopes": ("imap",)}, Outcome.OK, ""),
    ("no exp", active(exp=None), {}, Outcome.OK, ""),
    ("no issuer", active(iss=None), {"issuer": ISSUER}, Outcome.OK, ""),
    ("no audience, but a scope", active(aud=None), {"scopes": ("imap",)}, Outcome.OK, ""),
    ("no token_type", active(token_type=None), {}, Outcome.OK, ""),
    ("the issuer", active(), {"issuer": ISSUER}, Outcome.OK, ""),
    ("no audience", active(aud=None), {}, NO, "introspection names no audience"),
    ("wrong audience", active(aud=["smtp"]), {"scopes": ("imap",)}, NO, "for the audience ['smtp']"),
    ("expired", active(exp=NOW - 31), {}, EXPIRED, "expired 31 s ago"),
    ("exp is text", active(exp="x"), {}, NO, "exp is no time"),
    ("not yet", active(nbf=NOW + 31), {}, NO, "it begins to count"),
    ("another issuer", active(iss="https://x.example"), {"issuer": ISSUER}, NO, f"x.example', not by '{ISSUER}'"),
    ("scope missing", active(scope="openid"), {"scopes": ("imap",)}, SCOPE, "lacks scope imap"),
    ("refresh token", active(token_type="refresh_token"), {}, NO, "token_type is 'refresh_token'"),
    ("bound token", active(token_type="DPoP"), {}, NO, "token_type is 'DPoP'"),
    ("token_type is a list", active(token_type=["Bearer"]), {}, NO, "token_type is ['Bearer']"),
    (
        "bound token, by its key",
        active(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}),
        {},
        NO,
        "a key (cnf)",
    ),
    ("one of our audiences", active(aud=["smtp", "imap"]), {"audience": ("webmail", "imap")}, Outcome.OK, ""),
    (
        "none of our audiences",
        active(aud="smtp"),
        {"audience": ("webmail", "imap")},
        NO,
        "'smtp', not for webmail or imap (audience)",
    ),
    ("wide letters", active(sub="ａlice"), {}, NO, "the name holds characters that stand for others"),
    ("refresh token of Hydra's", active(token_use="refresh_token"), {}, NO, "token_use is 'refresh_token'"),
    ("refresh token of Keycloak's", active(typ="Refresh"), {}, NO, "typ is 'Refresh'"),
    ("a client's own", active(sub=None), {}, NO, "no claim sub with a name"),
    ("a client's own, named", active(sub="webmail"), {}, NO, "it was issued to a client"),
    ("email", active(email=ALICE, email_verified=True), {"name_claim": "email"}, Outcome.OK, ""),
    ("email, not verified", active(email=ALICE), {"name_claim": "email"}, NO, "email is not verified"),
]


@pytest.mark.parametrize(("name", "answer", "settings", "outcome", "detail"), ANSWERS, ids=[row[0] for row in ANSWERS])
async def test_answers(
    name: str, answer: dict[str, Any], settings: dict[str, Any], outcome: Outcome, detail: str
) -> None:
    answer = {key: value for key, value in answer.items() if value is not None}
    source = make_source(endpoint(answer), **{"issuer": None, "introspection": introspection(), **settings})
    if outcome is Outcome.OK:
        found = await ask(source, OPAQUE, ALICE)
        assert isinstance(found, Identity)
        assert (found.name, found.expires_at) == (ALICE, answer.get("exp"))
    else:
        with pytest.raises(Refused) as caught:
            await ask(source, OPAQUE)
        assert caught.value.outcome is outcome
        assert detail in caught.value.detail


async def test_another_persons_token() -> None:
    source = make_source(endpoint(active()), issuer=None, introspection=introspection())
    with pytest.raises(Refused, match=r"it is for 'alice@example\.org'") as caught:
        await ask(source, OPAQUE, "bob@example.org")
    assert caught.value.outcome is NO


def http(status: int, body: Any = b"") -> WebAnswer:
    return WebAnswer(status, (), body if isinstance(body, bytes) else json.dumps(body).encode())


NOT_MINE: list[tuple[str, Reply, str]] = [
    ("not active", {"active": False}, "not active"),
    ("not active, and more", {**active(), "active": False}, "not active"),
    ("not judged", http(400, {"error": "unsupported_token_type"}), "introspection does not judge tokens of this kind"),
]


@pytest.mark.parametrize(("name", "reply", "why"), NOT_MINE, ids=[row[0] for row in NOT_MINE])
async def test_not_mine(name: str, reply: Reply, why: str) -> None:
    source = make_source(endpoint(reply), issuer=None, introspection=introspection())
    assert await ask(source, OPAQUE) == NotMine(why)


TROUBLE: list[tuple[str, Reply, str]] = [
    ("active is text", {**active(), "active": "true"}, "does not say whether the token is active"),
    ("active is a number", {**active(), "active": 1}, "does not say whether the token is active"),
    ("active is missing", {}, "does not say whether the token is active"),
    ("active twice", b'{"active": false, "active": true}', "a key is given twice"),
    ("a list", b"[true]", "not a JSON object"),
    ("nothing", b"", "not valid JSON"),
    ("a page", http(200, b"<html>"), "not valid JSON"),
    ("too large", b" " * 100_000, "too large"),
    ("our credentials", http(401, {"error": "invalid_client"}), "HTTP 401: the endpoint refuses client_id and"),
    ("our rights", http(403), "HTTP 403: the endpoint refuses client_id and"),
    ("bad request", http(400, {"error": "invalid_request"}), "HTTP 400"),
    ("bad request, a page", http(400, b"<html>"), "HTTP 400"),
    ("moved", http(302), "HTTP 302"),
    ("too many", http(429, b"slow down"), "HTTP 429"),
    ("broken", http(500, active()), "HTTP 500"),
    ("created", http(201, active()), "HTTP 201"),
    ("no connection", WebFailed("ConnectError"), "ConnectError"),
]


@pytest.mark.parametrize(("name", "reply", "detail"), TROUBLE, ids=[row[0] for row in TROUBLE])
async def test_trouble_is_an_outage(name: str, reply: Reply, detail: str) -> None:
    source = make_source(endpoint(reply), issuer=None, introspection=introspection())
    with pytest.raises(Refused) as caught:
        await ask(source, OPAQUE)
    assert caught.value.outcome is OUT
    assert caught.value.detail.startswith("introspection: ")
    assert detail in caught.value.detail
    (probe,) = await source.probe()
    assert (probe.what, detail in probe.problem) == (f"{INTROSPECTION}: introspection", True)


async def test_probes() -> None:
    for reply, problem in [
        ({"active": False}, ""),
        (http(400, {"error": "unsupported_token_type"}), ""),
        (active(), "it says of a made-up token that it is active"),
    ]:
        (probe,) = await make_source(endpoint(reply), issuer=None, introspection=introspection()).probe()
        assert probe.problem == problem


async def test_a_query_is_not_shown() -> None:
    settings = {**introspection(), "url": f"{INTROSPECTION}?key=k3y"}
    (probe,) = await make_source(endpoint(404), issuer=None, introspection=settings).probe()
    assert (probe.what, probe.problem) == (f"{INTROSPECTION}: introspection", "HTTP 404")


async def test_a_storm_of_made_up_tokens_does_not_flood(autojump_clock: MockClock) -> None:
    web = endpoint({"active": False})
    web.seconds = 1.0
    source = make_source(web, issuer=None, introspection=introspection())
    ended: Counter[str] = Counter()

    async def guess() -> None:
        try:
            answer = await ask(source, OPAQUE)
        except Refused as refusal:
            ended[refusal.detail] += 1
        else:
            ended["not active" if answer == NotMine("not active") else "yes"] += 1

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(guess)
    assert web.most_under_way == MAX_UNDER_WAY
    # Those who wait are asked about as long as the timeout, 5 s, lasts.
    assert ended["not active"] <= 6 * MAX_UNDER_WAY
    assert ended["introspection: too many questions are under way"] == 1000 - ended["not active"]
    assert await ask(source, OPAQUE) == NotMine("not active"), "all places were given back"


async def test_an_outage_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    web = endpoint(http(401))
    source = make_source(web, issuer=None, introspection=introspection())

    async def told() -> str:
        try:
            await ask(source, OPAQUE)
        except Refused:
            pass
        return capfd.readouterr().err

    first = await told()
    assert "oauth.introspection_failed" in first
    assert "HTTP 401" in first
    assert OPAQUE not in first
    assert await told() == ""
    web.pages[INTROSPECTION] = {"active": False}
    assert await told() == ""
    web.pages[INTROSPECTION] = WebFailed("ConnectError")
    assert "oauth.introspection_failed" in await told()
