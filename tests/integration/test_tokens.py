"""XOAUTH2 and OAUTHBEARER through the whole proxy: a real OpenID provider, `imap-porter serve`, a real Dovecot."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from argon2 import PasswordHasher
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.integration.token_stage import (
    EXPIRED,
    FAILED,
    KINDS,
    MECHANISMS,
    METHODS,
    NOT_AUTHORIZED,
    OK,
    UNAVAILABLE,
    Site,
    accepted,
    authenticate,
    enter,
    token_site,
)
from tests.servers.accounts import MASTER, USERS
from tests.servers.openid import SigningKey, encoded, new_ec_key, new_rsa_key
from tests.servers.pki import Pki
from tests.servers.porter import Porter, wait_for
from tests.servers.ports import Ports
from tests.servers.wire import Wire

pytestmark = pytest.mark.server
ALICE = USERS["alice"]
COUNT = 3


@pytest.fixture(scope="module")
def site(folder: Path, pki: Pki, ports: Ports, inboxes: dict[str, list[bytes]]) -> Iterator[Site]:
    with token_site(folder, pki, ports, inboxes["d1"][:COUNT]) as running:
        yield running


@pytest.fixture(scope="module")
def porters(site: Site) -> Iterator[Mapping[str, Porter]]:
    """One that keeps tokens to itself, and one that passes them on."""
    with ExitStack() as stack:
        yield {method: stack.enter_context(site.porter(method)) for method in METHODS}


# --- tokens that are good ---


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(("method", "kind"), [(method, kind) for method in METHODS for kind in KINDS[method]])
def test_each_way_in(site: Site, porters: Mapping[str, Porter], method: str, kind: str, mechanism: str) -> None:
    porter = porters[method]
    for door, initial in product(porter.doors.values(), (True, False)):
        token = site.token(kind)
        site.heard()
        with enter(door) as wire:
            challenge, answer = authenticate(wire, mechanism, token, initial=initial)
            assert (challenge, answer[: len(OK)]) == (None, OK)
            assert b"* %d EXISTS" % COUNT in wire.command(b"SELECT INBOX")
        said = site.heard().decode()
        assert (token[-24:] in site.told_by(said)) is (method == "token"), "it goes where it is wanted, and only there"
        assert (f"*{MASTER}" in said) is (method == "master")
        logins = [line for line in site.dovecot.log().splitlines() if "Login: user=<alice>" in line]
        assert f"method={mechanism if method == 'token' else 'PLAIN'}," in logins[-1]
    assert site.told_by(site.dovecot.log()) == set()
    lines = porter.wait_for_log("session.closed", 4, mechanism=mechanism, source="oauth", name="alice")
    assert {line["authentication_identity"] for line in lines} == {"alice"}


@pytest.mark.parametrize("method", METHODS)
def test_the_token_names_who_is_not_named(site: Site, porters: Mapping[str, Porter], method: str) -> None:
    with enter(porters[method].doors["imaps"]) as wire:
        assert accepted(wire, "OAUTHBEARER", site.token(KINDS[method][0]), name="")
        assert b"* %d EXISTS" % COUNT in wire.command(b"SELECT INBOX")
    (line,) = porters[method].wait_for_log("session.closed", authentication_identity="")
    assert line["name"] == "alice"


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(("method", "octets"), [("master", 20 * 1024), ("token", 3900)])
def test_large_token(site: Site, porters: Mapping[str, Porter], mechanism: str, method: str, octets: int) -> None:
    """Dovecot 2.3 takes messages of 8192 octets in base64: 6 KiB of token, 4 KiB of claims."""
    token = site.mint(header={"typ": "JWT"}, groups="g" * octets)
    assert len(token) > octets * 4 / 3
    for initial in (True, False):
        with enter(porters[method].doors["imaps"]) as wire:
            challenge, answer = authenticate(wire, mechanism, token, initial=initial)
            assert (challenge, answer[: len(OK)]) == (None, OK)
            assert wire.command(b"NOOP")[-1].split()[1] == b"OK"


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_token_too_large_for_the_backend_is_not_called_wrong(
    site: Site, porters: Mapping[str, Porter], mechanism: str
) -> None:
    """Dovecot closes the connection on one."""
    token = site.mint(header={"typ": "JWT"}, groups="g" * 5 * 1024)
    with enter(porters["token"].doors["imaps"]) as wire:
        assert authenticate(wire, mechanism, token) == (None, UNAVAILABLE)
        assert accepted(wire, mechanism, site.token("plain-typ"))


# --- tokens that are not ---


@dataclass(frozen=True)
class Bad:
    """A login that must not succeed."""

    make: Callable[[Site], str]
    reason: str  # part of what the log tells
    answer: bytes = FAILED
    statuses: tuple[str, str] = ("401", "invalid_token")  # of XOAUTH2, of OAUTHBEARER
    name: str = "alice"


def minted(reason: str, **claims: Any) -> Bad:
    return Bad(lambda site: site.mint(**claims), reason)


def expired(site: Site) -> str:
    return site.mint(exp=int(site.provider.claims("alice")["iat"]) - 60)


def premature(site: Site) -> str:
    return site.mint(nbf=int(site.provider.claims("alice")["iat"]) + 120)


def unsigned(site: Site) -> str:
    header = json.dumps({"alg": "none", "typ": "at+jwt"}).encode()
    return site.using(f"{encoded(header)}.{encoded(claims(site))}.")


def signed_with_public_key(site: Site) -> str:
    """HMAC with what everybody knows, as some libraries once verified it."""
    public = site.provider.rsa.private_key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = json.dumps({"alg": "HS256", "typ": "at+jwt", "kid": site.provider.rsa.kid}).encode()
    signed = f"{encoded(header)}.{encoded(claims(site))}"
    return site.using(f"{signed}.{encoded(hmac.digest(pem, signed.encode(), hashlib.sha256))}")


def claims(site: Site) -> bytes:
    return json.dumps(site.provider.claims("alice")).encode()


def with_other_algorithm(site: Site) -> str:
    return site.mint(key=SigningKey(site.provider.rsa.kid, "PS256", site.provider.rsa.private_key))


def with_own_key(site: Site) -> str:
    foreign = new_ec_key("ec1")
    return site.mint(key=foreign, header={"jwk": foreign.jwk()})


def tampered(site: Site) -> str:
    header, _, signature = site.token("rs256", "bob").split(".")
    return site.using(f"{header}.{encoded(claims(site))}.{signature}")


def revoked(site: Site) -> str:
    token = site.token("opaque")
    site.provider.revoke(token)
    return token


BAD = {
    "expired": Bad(expired, "expired", EXPIRED),
    "not yet valid": Bad(premature, "begins to count"),
    "wrong audience": minted("for the audience 'smtp'", aud="smtp"),
    "for another service": Bad(lambda site: site.token("other"), "for the audience 'other'"),
    "no expiry": minted("exp is missing", exp=None),
    "wrong issuer": minted("issued by 'https://id.example.org'", iss="https://id.example.org"),
    "foreign key": Bad(lambda site: site.mint(key=new_rsa_key("rsa1")), "signature"),
    "tampered": Bad(tampered, "signature"),
    "alg none": Bad(unsigned, "alg is 'none'"),
    "HS256 with the public key": Bad(signed_with_public_key, "alg is 'HS256'"),
    "an algorithm of the same key": Bad(with_other_algorithm, "alg is PS256"),
    "brings its key": Bad(with_own_key, "jwk"),
    "says where its key is": Bad(lambda site: site.mint(header={"jku": f"{site.provider.issuer}/jwks"}), "jku"),
    "unknown crit": Bad(lambda site: site.mint(header={"crit": ["exp"]}), "crit"),
    "an ID token": Bad(lambda site: site.mint(header={"typ": "id+jwt"}), "not an access token"),
    "missing scope": Bad(
        lambda site: site.mint(scope="openid"), "lacks scope imap", NOT_AUTHORIZED, ("400", "insufficient_scope")
    ),
    "somebody else's": Bad(lambda site: site.token("rs256"), "it is for 'alice'", name="bob"),
    "somebody else's, opaque": Bad(lambda site: site.token("opaque"), "it is for 'alice'", name="bob"),
    "a client's own": Bad(lambda site: site.using(site.provider.client_token()), "issued to a client"),
    "revoked": Bad(revoked, "not active"),
    "made up": Bad(lambda site: site.using("made-up-token-0123456789"), "not active"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(site: Site, porters: Mapping[str, Porter], case: str) -> None:
    bad, porter = BAD[case], porters["master"]
    before = len(porter.log("login.refused"))
    site.heard()
    told = {
        "XOAUTH2": {"status": bad.statuses[0], "schemes": "bearer", "scope": "imap"},
        "OAUTHBEARER": {
            "status": bad.statuses[1],
            "scope": "imap",
            "openid-configuration": f"{site.provider.issuer}/.well-known/openid-configuration",
        },
    }
    for mechanism, initial in product(MECHANISMS, (True, False)):
        with enter(porter.doors["imaps" if initial else "starttls"]) as wire:
            answer = authenticate(wire, mechanism, bad.make(site), bad.name, initial=initial)
            assert answer == (told[mechanism], bad.answer)
            assert site.heard() == b"", "the backend hears nothing of it"
            assert accepted(wire, mechanism, site.token("rs256")), "the connection lives on"
            site.heard()
    assert wait_for(lambda: len(porter.log("login.refused")) == before + 4)
    assert all(bad.reason in line["detail"] for line in porter.log("login.refused")[before:])


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_backends_own_refusal_reads_the_same(site: Site, porters: Mapping[str, Porter], mechanism: str) -> None:
    """Dovecot 2.3 does not take `typ: at+jwt`, which the proxy does."""
    with enter(porters["token"].doors["imaps"]) as wire:
        challenge, answer = authenticate(wire, mechanism, site.token("rs256"))
        assert challenge is not None
        assert challenge["status"] == {"XOAUTH2": "401", "OAUTHBEARER": "invalid_token"}[mechanism]
        assert answer == FAILED
        assert accepted(wire, mechanism, site.token("plain-typ"))


def test_a_client_may_ask_what_is_wanted(site: Site, porters: Mapping[str, Porter]) -> None:
    """RFC 7628 §4.3: without a token it is told of scope and provider."""
    with enter(porters["master"].doors["imaps"]) as wire:
        wire.send(b"a AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPQEB\r\n")
        assert wire.line().startswith(b"+ ")
        wire.send(b"AQ==\r\n")
        assert wire.line() == b"a " + FAILED
        assert accepted(wire, "OAUTHBEARER", site.token("rs256"))


def test_tokens_are_not_asked_for_in_clear(porters: Mapping[str, Porter]) -> None:
    names = [b"AUTH=" + mechanism.encode() for mechanism in MECHANISMS]
    with Wire.connect(porters["master"].starttls_port) as wire:
        assert [name for name in names if name in wire.command(b"CAPABILITY")[0]] == []
        for mechanism in MECHANISMS:
            assert b" NO [PRIVACYREQUIRED] " in wire.command(b"AUTHENTICATE " + mechanism.encode())[-1]
        wire.starttls(porters["master"].pki.client_context())
        assert [name for name in names if name in wire.command(b"CAPABILITY")[0]] == names


# --- sites with passwords too ---


def test_passwords_of_a_file_and_tokens(site: Site, short_folder: Path) -> None:
    """A password is good for the file and passed on, since Dovecot has the same; a token is passed on as one."""
    users = short_folder / "users.yaml"
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    users.write_text(yaml.safe_dump({"alice": {"hash": hasher.hash(ALICE)}}))
    users.chmod(0o600)
    with site.porter("token", identity=[{"file": {"path": str(users)}}, site.oauth()]) as porter:
        with enter(porter.doors["imaps"]) as wire:
            assert wire.login("alice", USERS["bob"]) == FAILED
            assert wire.login("alice", ALICE).startswith(OK)
        for mechanism in MECHANISMS:
            with enter(porter.doors["starttls"]) as wire:
                assert authenticate(wire, mechanism, site.mint(aud="smtp"))[1] == FAILED
                assert accepted(wire, mechanism, site.token("plain-typ"))
        porter.wait_for_log("session.closed", 3)
        sources = {line["mechanism"]: line["source"] for line in porter.log("session.closed")}
    assert sources == {"LOGIN": "file", "XOAUTH2": "oauth", "OAUTHBEARER": "oauth"}


def test_the_backend_decides_on_both(site: Site) -> None:
    with site.porter("token", identity=[{"backend": {}}]) as porter:
        with enter(porter.doors["imaps"]) as wire:
            assert wire.login("alice", USERS["bob"]) == FAILED
            assert wire.login("alice", ALICE).startswith(OK)
        for mechanism, initial in product(MECHANISMS, (True, False)):
            with enter(porter.doors["starttls"]) as wire:
                bad = authenticate(wire, mechanism, site.mint(exp=1, header={"typ": "JWT"}), initial=initial)
                assert bad[0] is not None
                assert bad[1] == FAILED
                somebody_elses = authenticate(wire, mechanism, site.token("plain-typ"), "bob", initial=initial)
                assert somebody_elses[1] == FAILED
                assert authenticate(wire, mechanism, site.token("plain-typ"), initial=initial)[1].startswith(OK)
        site.heard()
        with enter(porter.doors["imaps"]) as wire:
            challenge, answer = authenticate(wire, "OAUTHBEARER", site.token("plain-typ"), name="")
            assert (challenge, answer) == ({"status": "invalid_token"}, FAILED)
            assert site.heard() == b"", "nobody is named, so that no backend can be chosen"
            assert accepted(wire, "OAUTHBEARER", site.token("plain-typ"))


def test_a_token_is_no_password(site: Site, porters: Mapping[str, Porter]) -> None:
    for porter in porters.values():
        site.heard()
        with enter(porter.doors["imaps"]) as wire:
            assert b"LOGINDISABLED" in wire.command(b"CAPABILITY")[0].split()
            assert wire.login("alice", site.token("opaque")).startswith(b"NO [CANNOT] ")
            assert site.heard() == b""
