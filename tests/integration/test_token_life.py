"""What happens to tokens and their sessions as time goes on: keys change, the provider is away, tokens end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.integration.token_stage import (
    FAILED,
    MECHANISMS,
    OK,
    UNAVAILABLE,
    Site,
    accepted,
    authenticate,
    enter,
    token_site,
)
from tests.servers.openid import new_ec_key, new_rsa_key
from tests.servers.pki import Pki
from tests.servers.porter import Porter, wait_for
from tests.servers.ports import Ports
from tests.servers.wire import Wire

pytestmark = pytest.mark.server
# Keys are fetched once in 5 s, and sessions are looked at as often.
OFTEN_SECONDS = 5


@pytest.fixture(scope="module")
def site(folder: Path, pki: Pki, ports: Ports, inboxes: dict[str, list[bytes]]) -> Iterator[Site]:
    with token_site(folder, pki, ports, inboxes["d1"][:3]) as running:
        yield running


def log_in(porter: Porter, mechanism: str, token: str) -> bytes:
    """One try on a connection of its own; the tagged line without its tag."""
    with enter(porter.doors["imaps"]) as wire:
        return authenticate(wire, mechanism, token)[1]


def logged_in(porter: Porter, mechanism: str, token: str) -> Wire:
    """A session."""
    wire = enter(porter.doors["imaps"])
    assert accepted(wire, mechanism, token)
    return wire


def works(wire: Wire) -> bool:
    return wire.command(b"NOOP")[-1].split()[1] == b"OK"


def next_line(wire: Wire) -> bytes:
    """The next line that says something: to a client in IDLE Dovecot says now and then that it is there."""
    while (line := wire.line()) == b"* OK Still here":
        pass
    return line


# --- the provider ---


def test_new_keys_without_a_restart(site: Site) -> None:
    typ = {"typ": "JWT"}
    old_rsa, old_ec = site.provider.rsa, site.provider.ec
    with site.porter("master") as master, site.porter("token") as passing_on:
        porters = (master, passing_on)
        with (
            logged_in(master, "XOAUTH2", site.mint()) as session,
            logged_in(passing_on, "OAUTHBEARER", site.mint(key=old_ec, header=typ)) as another,
        ):
            site.provider.rotate()
            site.trust_keys()
            new_rsa, new_ec = site.provider.rsa, site.provider.ec
            assert {new_rsa.kid, new_ec.kid}.isdisjoint({old_rsa.kid, old_ec.kid})
            for porter, key, mechanism in product(porters, (new_rsa, new_ec), MECHANISMS):
                assert log_in(porter, mechanism, site.mint(key=key, header=typ)).startswith(OK)
            for porter in porters:
                assert log_in(porter, "XOAUTH2", site.mint(key=old_rsa, header=typ, jti="new")) == FAILED, "withdrawn"
            assert works(session)
            assert works(another)
        for porter in porters:
            fetched = [line["keys"] for line in porter.log("oauth.keys_fetched")]
            assert fetched == [[old_rsa.kid, old_ec.kid], [new_rsa.kid, new_ec.kid]]


def test_provider_down(site: Site) -> None:
    with site.porter("master") as porter:
        known, unknown = site.token("opaque"), site.token("opaque")
        with logged_in(porter, "XOAUTH2", site.token("rs256")) as session:
            assert log_in(porter, "OAUTHBEARER", known).startswith(OK)
            site.provider.stop()
            try:
                for key, mechanism in product((site.provider.rsa, site.provider.ec), MECHANISMS):
                    assert log_in(porter, mechanism, site.mint(key=key, jti="new")).startswith(OK), "its key is at hand"
                    assert log_in(porter, mechanism, site.mint(key=key, aud="smtp")) == FAILED
                assert log_in(porter, "OAUTHBEARER", known).startswith(OK), "its answer is at hand"
                for token in (unknown, site.mint(key=new_rsa_key("another")), site.mint(key=new_ec_key("another"))):
                    with enter(porter.doors["starttls"]) as wire:
                        for mechanism in MECHANISMS:
                            # Nor is there a challenge, which would say that the token is at fault.
                            assert authenticate(wire, mechanism, token) == (None, UNAVAILABLE)
                        assert accepted(wire, "XOAUTH2", site.mint(jti="newer"))
                assert works(session)
            finally:
                site.provider.start()
            assert log_in(porter, "XOAUTH2", site.token("opaque")).startswith(OK)
            assert works(session)
        refusals = porter.wait_for_log("login.refused", 10)
        assert [line["outcome"] for line in refusals].count("unavailable") == 6
        assert len(porter.log("oauth.introspection_failed")) == 1


def test_provider_down_at_the_start(site: Site) -> None:
    tokens = [site.mint(), site.mint(key=site.provider.ec), site.using("opaque-0123456789abcdef-0123")]
    site.provider.stop()
    try:
        with site.porter("master") as porter:
            for token in tokens:
                assert log_in(porter, "OAUTHBEARER", token) == UNAVAILABLE
            site.provider.start()
            assert wait_for(lambda: log_in(porter, "XOAUTH2", tokens[0]).startswith(OK), 2 * OFTEN_SECONDS)
            assert log_in(porter, "XOAUTH2", tokens[1]).startswith(OK)
            assert log_in(porter, "XOAUTH2", tokens[2]) == FAILED, "now it is known to be none"
    finally:
        site.provider.stop()
        site.provider.start()


def test_revoked_while_it_is_remembered(site: Site) -> None:
    with site.porter("master", cache={"positive": "1s", "negative": "0s"}) as porter:
        token = site.token("opaque")
        with logged_in(porter, "XOAUTH2", token) as session:
            site.provider.revoke(token)
            assert wait_for(lambda: log_in(porter, "XOAUTH2", token) == FAILED)
            assert works(session), "who is in stays until the token expires"


# --- the end of a token ---


def test_the_session_ends_with_its_token(site: Site) -> None:
    with (
        site.porter("token", relay={"expiry_grace": "1s"}) as strict,
        site.porter("master", relay={"expiry_grace": None}) as lenient,
    ):
        issued = int(site.provider.claims("alice")["iat"])
        short = site.mint(exp=issued + 5, header={"typ": "JWT"})
        with (
            logged_in(strict, "XOAUTH2", short) as idling,
            logged_in(strict, "OAUTHBEARER", short) as quiet,
            logged_in(strict, "XOAUTH2", site.token("plain-typ")) as unexpired,
            logged_in(lenient, "XOAUTH2", short) as idling_on,
            logged_in(lenient, "XOAUTH2", short) as quiet_on,
        ):
            for wire in (idling, idling_on):
                assert wire.command(b"SELECT INBOX")[-1].split()[1] == b"OK"
                wire.send(b"i IDLE\r\n")
                assert wire.line().startswith(b"+")
            for wire in (idling, quiet):
                assert next_line(wire) == b"* BYE The token or certificate has expired; please log in again."
                assert wire.rest() == b""
            assert works(unexpired)
            assert quiet_on.silent_for(OFTEN_SECONDS + 1), "by then it has been looked at, too"
            idling_on.send(b"DONE\r\n")
            assert idling_on.until(b"i")[-1].startswith(b"i OK")
            assert works(quiet_on)
        ended = strict.wait_for_log("session.closed", 3)
        assert sorted(line["outcome"] for line in ended) == ["client_closed", "expired", "expired"]
        assert strict.metrics().total("porter_sessions_ended_total", outcome="expired") == 2
        ended = lenient.wait_for_log("session.closed", 2)
        assert [line["outcome"] for line in ended] == ["client_closed", "client_closed"]


def test_a_command_under_way_is_not_cut_off(site: Site) -> None:
    """A session ends between commands: what the client has begun to send counts as a command."""
    message = b"Subject: begun in time\r\n\r\nand finished late.\r\n"
    with site.porter("master", relay={"expiry_grace": "0s"}) as porter:
        issued = int(site.provider.claims("alice")["iat"])
        with (
            logged_in(porter, "XOAUTH2", site.mint(exp=issued + 5)) as sending,
            logged_in(porter, "OAUTHBEARER", site.mint(exp=issued + 5)) as quiet,
        ):
            sending.send(b"a APPEND INBOX {%d}\r\n" % len(message))
            assert sending.line().startswith(b"+")
            sending.send(message[:20])
            assert quiet.line().startswith(b"* BYE"), "this is when the other is spared"
            sending.send(message[20:] + b"\r\n")
            assert sending.until(b"a")[-1].startswith(b"a OK")
            assert sending.line().startswith(b"* BYE")
