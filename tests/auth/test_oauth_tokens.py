"""JWTs: which are good, and what is said of those that are not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy.auth.oauth import keys as keys_module
from proxy.auth.oauth import tokens
from proxy.auth.oauth.strict_json import MAX_DEPTH, NotAnObject
from proxy.auth.oauth.tokens import read_keys
from proxy.auth.source import TOKEN_MECHANISMS, NotMine
from proxy.model import Identity
from proxy.outcome import Outcome, Refused
from tests.auth.oauth_stage import (
    DISCOVERY,
    ISSUER,
    KEYS,
    NOW,
    FakeWeb,
    ask,
    claims,
    ec_key,
    issuer_web,
    key_set,
    make_source,
    rsa_key,
)
from tests.servers.openid import SigningKey, encoded, new_ec_key

NO, EXPIRED, SCOPE = Outcome.AUTHENTICATION_FAILED, Outcome.EXPIRED, Outcome.AUTHORIZATION_FAILED
ALICE = "alice@example.org"


async def refusal(token: str | bytes, web: FakeWeb | None = None, name: str = "", **settings: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await ask(make_source(web or issuer_web(), **settings), token, name)
    given = token if isinstance(token, str) else token.decode("latin-1")
    assert len(given) < 20 or given[-20:] not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    return caught.value


SIGNERS = [
    *[rsa_key(algorithm, algorithm) for algorithm in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")],
    new_ec_key("ES256"),
    new_ec_key("ES384", "ES384", ec.SECP384R1),
    new_ec_key("ES512", "ES512", ec.SECP521R1),
    SigningKey("Ed25519", "EdDSA", ed25519.Ed25519PrivateKey.generate()),
    SigningKey("Ed448", "EdDSA", ed448.Ed448PrivateKey.generate()),
]


@pytest.mark.parametrize("key", SIGNERS, ids=lambda key: key.kid)
async def test_every_algorithm(key: SigningKey) -> None:
    source = make_source(issuer_web(key))
    assert await ask(source, key.mint(claims())) == Identity(ALICE, "oauth", expires_at=NOW + 300)
    header, payload, signature = key.mint(claims()).split(".")
    changed = encoded(json.dumps(claims(sub="bob")).encode())
    for bad in (f"{header}.{changed}.{signature}", f"{header}.{payload}.", f"{header}.{payload}.{signature[:-8]}"):
        with pytest.raises(Refused, match="the signature is not the issuer's"):
            await ask(source, bad)


@pytest.mark.parametrize("algorithm", ["RS256", "PS512"])
async def test_a_key_without_alg_verifies_what_its_type_can(algorithm: str) -> None:
    key = rsa_key("free", algorithm)
    jwk = {name: value for name, value in key.jwk().items() if name not in ("alg", "use")}
    assert isinstance(await ask(make_source(issuer_web(jwk)), key.mint(claims())), Identity)


GOOD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("as it comes", {}, {}),
    ("typ in capitals", {"typ": "AT+JWT"}, {}),
    ("typ as a media type", {"typ": "application/at+jwt"}, {}),
    ("typ JWT", {"typ": "JWT"}, {}),
    ("no typ", {"typ": None}, {}),
    ("no kid", {"kid": None}, {}),
    ("fingerprint of a certificate", {"x5t": "AAAA"}, {}),
    ("several audiences", {}, {"aud": ["mail", "imap"]}),
    ("expired, within the leeway", {}, {"exp": NOW - 29}),
    ("not before, within the leeway", {}, {"nbf": NOW + 29}),
    ("time with a fraction", {}, {"exp": NOW + 0.5}),
    ("issued in the future", {}, {"iat": NOW + 1000}),
    ("scopes as scp", {}, {"scope": None, "scp": ["imap", "openid"]}),
    ("scopes as scp, text", {}, {"scope": None, "scp": "openid imap"}),
    ("scopes as a list", {}, {"scope": ["imap"]}),
    ("Keycloak's access token", {}, {"typ": "Bearer"}),
    ("Cognito's access token", {}, {"token_use": "access"}),
    ("another client", {}, {"client_id": "thunderbird"}),
]


@pytest.mark.parametrize(("name", "header", "changes"), GOOD, ids=[row[0] for row in GOOD])
async def test_good(name: str, header: dict[str, Any], changes: dict[str, Any]) -> None:
    answer = await ask(make_source(issuer_web(), scopes=("imap",)), rsa_key().mint(claims(**changes), **header), ALICE)
    assert isinstance(answer, Identity)
    assert answer.name == ALICE


CLAIMS: list[tuple[str, dict[str, Any], Outcome, str]] = [
    ("expired", {"exp": NOW - 30}, EXPIRED, "expired 30 s ago"),
    ("no exp", {"exp": None}, NO, "exp is missing"),
    ("exp is text", {"exp": str(NOW + 300)}, NO, "exp is no time"),
    ("exp is true", {"exp": True}, NO, "exp is no time"),
    ("exp is huge", {"exp": 10**400}, NO, "exp is no time"),
    ("exp is huge, negative", {"exp": -(10**400)}, NO, "exp is no time"),
    ("exp is endless", {"exp": 1e300}, NO, "exp is no time"),
    ("not yet", {"nbf": NOW + 31}, NO, "it begins to count in 31 s"),
    ("nbf is text", {"nbf": "now"}, NO, "nbf is no time"),
    ("iat is a list", {"iat": [NOW]}, NO, "iat is no time"),
    ("wrong audience", {"aud": "smtp"}, NO, r"for the audience 'smtp', not for imap \(audience\)"),
    ("wrong audiences", {"aud": ["smtp", "imapx"]}, NO, "for the audience"),
    ("audience in other letters", {"aud": "IMAP"}, NO, "for the audience"),
    ("part of an audience", {"aud": "imap smtp"}, NO, "for the audience"),
    ("no audience", {"aud": None}, NO, "for the audience None"),
    ("bound to a key", {"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}, NO, r"bound to a key \(cnf\)"),
    ("bound to a certificate", {"cnf": {"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}}, NO, "bound to"),
    ("bound to nothing", {"cnf": {}}, NO, "bound to a key"),
    ("wide letters", {"sub": "ａlice"}, NO, "the name holds characters that stand for others"),
    ("letters of mathematics", {"sub": "𝐚lice"}, NO, "the name holds characters that stand for others"),
    ("audience is an object", {"aud": {"imap": 1}}, NO, "for the audience"),
    ("audiences in lists", {"aud": [["imap"]]}, NO, "for the audience"),
    ("wrong audience, expired too", {"aud": "smtp", "exp": NOW - 1000}, NO, "for the audience"),
    ("no scope", {"scope": None}, SCOPE, "the token lacks scope imap"),
    ("wrong scope", {"scope": "imaps smtp"}, SCOPE, "the token lacks scope imap"),
    ("scope is a number", {"scope": 7}, NO, "scope is no list"),
    ("scp is a list of lists", {"scp": [["imap"]]}, NO, "scp is no list"),
    ("no name", {"sub": None}, NO, r"there is no claim sub with a name in it \(name_claim\)"),
    ("empty name", {"sub": ""}, NO, "no claim sub with a name"),
    ("name is a number", {"sub": 7}, NO, "no claim sub with a name"),
    ("name is a list", {"sub": ["alice"]}, NO, "no claim sub with a name"),
    ("name with the separator", {"sub": "alice*proxyadmin"}, NO, "the name contains the master separator"),
    ("name with a lone surrogate", {"sub": "alice\ud800"}, NO, "the name contains U\\+D800"),
    ("name with a line end", {"sub": "alice\r\n"}, NO, "the name contains U\\+000D"),
    ("a client's own", {"sub": "webmail", "client_id": "webmail"}, NO, "it was issued to a client"),
    ("Keycloak: ID", {"typ": "ID"}, NO, "typ is 'ID': not an access token"),
    ("Keycloak: refresh", {"typ": "Refresh"}, NO, "typ is 'Refresh'"),
    ("Keycloak: offline", {"typ": "Offline"}, NO, "typ is 'Offline'"),
    ("Keycloak: logout", {"typ": "Logout"}, NO, "typ is 'Logout'"),
    ("Cognito: ID", {"token_use": "id"}, NO, "token_use is 'id'"),
]


@pytest.mark.parametrize(("name", "changes", "outcome", "detail"), CLAIMS, ids=[row[0] for row in CLAIMS])
async def test_claims(name: str, changes: dict[str, Any], outcome: Outcome, detail: str) -> None:
    refused = await refusal(rsa_key().mint(claims(**changes)), scopes=("imap",))
    assert refused.outcome is outcome
    assert re.search(detail, refused.detail), refused.detail


def hmac_signed(algorithm: str, secret: bytes) -> str:
    """A token that is "signed" with something public."""
    header = json.dumps({"alg": algorithm, "typ": "JWT", "kid": "rsa1"}).encode()
    signed = f"{encoded(header)}.{encoded(json.dumps(claims()).encode())}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


RSA_PEM = rsa_key().private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
PAYLOAD = json.dumps(claims()).encode()
STRANGER = rsa_key("stranger")
NEST = b'{"a":' * MAX_DEPTH + b"[]" + b"}" * MAX_DEPTH

GAMES: list[tuple[str, str, str]] = [
    ("none", rsa_key().mint(claims(), alg="none"), "alg is 'none'"),
    ("none, unsigned", rsa_key().mint(claims(), alg="none").rpartition(".")[0] + ".", "alg is 'none'"),
    ("None", rsa_key().mint(claims(), alg="None"), "alg is 'None'"),
    ("alg is a list", rsa_key().mint(claims(), alg=["RS256"]), "alg is \\['RS256'\\]"),
    ("alg is unknown", rsa_key().mint(claims(), alg="RS1"), "alg is 'RS1'"),
    ("HMAC with the public key", hmac_signed("HS256", RSA_PEM), "alg is 'HS256'"),
    ("HMAC with the public JWK", hmac_signed("HS256", json.dumps(rsa_key().jwk()).encode()), "alg is 'HS256'"),
    ("another algorithm of the type", rsa_key().mint(claims(), alg="RS512"), "alg is RS512, for which its key"),
    ("padding of another kind", rsa_key().mint(claims(), alg="PS256"), "alg is PS256, for which its key"),
    ("another type", rsa_key().mint(claims(), alg="ES256"), "alg is ES256, for which its key"),
    ("another type's key", rsa_key().mint(claims(), kid="ec1", alg="ES256"), "the signature is not the issuer's"),
    ("a stranger's key", STRANGER.mint(claims(), kid="rsa1"), "the signature is not the issuer's"),
    ("a stranger's key, its own name", STRANGER.mint(claims()), "the signature is not the issuer's"),
    ("a stranger's key without a name", STRANGER.mint(claims(), kid=None), "the signature is not the issuer's"),
    ("brings its key", STRANGER.mint(claims(), jwk=STRANGER.jwk()), "it brings a key of its own \\(jwk\\)"),
    ("says where keys are", STRANGER.mint(claims(), jku="https://x.example/"), "a key of its own \\(jku\\)"),
    ("brings a certificate", STRANGER.mint(claims(), x5c=["AAAA"]), "a key of its own \\(x5c\\)"),
    ("says where a certificate is", rsa_key().mint(claims(), x5u="https://x.example/"), "a key of its own \\(x5u\\)"),
    ("unknown extension", rsa_key().mint(claims(), crit=["exp"], exp=1), "it asks for extensions"),
    ("known extension", rsa_key().mint(claims(), crit=["b64"], b64=True), "it asks for extensions"),
    ("no extension", rsa_key().mint(claims(), crit=[]), "it asks for extensions"),
    ("ID token", rsa_key().mint(claims(), typ="ID+JWT"), "typ is 'ID\\+JWT': not an access token"),
    ("logout token", rsa_key().mint(claims(), typ="logout+jwt"), "typ is 'logout\\+jwt'"),
    ("proof", rsa_key().mint(claims(), typ="dpop+jwt"), "typ is 'dpop\\+jwt'"),
    ("typ is a number", rsa_key().mint(claims(), typ=7), "typ is 7"),
    ("kid is a number", rsa_key().mint(claims(), kid=7), "kid is no short text"),
    ("kid is long", rsa_key().mint(claims(), kid="x" * 300), "kid is no short text"),
    ("header with a key twice", rsa_key().sign(b'{"alg":"RS256","alg":"none"}', PAYLOAD), "a key is given twice"),
    ("claims with a key twice", rsa_key().mint(b'{"sub":"bob",' + PAYLOAD[1:]), "a key is given twice"),
    ("claims with a key twice, below", rsa_key().mint(b'{"a":{"b":1,"b":2},' + PAYLOAD[1:]), "given twice"),
    ("claims are a list", rsa_key().mint(b"[1]"), "not a JSON object"),
    ("claims are no JSON", rsa_key().mint(b"hello"), "not valid JSON"),
    ("claims are nothing", rsa_key().mint(b" "), "not valid JSON"),
    ("claims are a JWT", rsa_key().mint(rsa_key().mint(claims()).encode()), "not valid JSON"),
    ("claims in UTF-16", rsa_key().mint(json.dumps(claims()).encode("utf-16")), "not valid JSON"),
    ("claims with NaN", rsa_key().mint(b'{"exp":NaN,' + PAYLOAD[1:]), "not valid JSON"),
    ("claims with endless digits", rsa_key().mint(b'{"a":' + b"9" * 5000 + b"," + PAYLOAD[1:]), "not valid JSON"),
    ("claims behind claims", rsa_key().mint(PAYLOAD + PAYLOAD), "not valid JSON"),
    ("too deep", rsa_key().mint(NEST), f"nested deeper than {MAX_DEPTH}"),
    ("bottomless", rsa_key().mint(b"[" * 20000), f"nested deeper than {MAX_DEPTH}"),
    ("no base64url", rsa_key().mint(claims()) + "A" * (1 + 342 % 4), "not base64url"),
    ("too large", rsa_key().mint(claims(x="x" * 30000)), "it is larger than 32768 octets"),
    ("no token", "not a token", "not a bearer token"),
    ("line end", rsa_key().mint(claims()) + "\n", "not a bearer token"),
]


@pytest.mark.parametrize(("name", "token", "detail"), GAMES, ids=[row[0] for row in GAMES])
async def test_games(name: str, token: str, detail: str, autojump_clock: object) -> None:
    refused = await refusal(token)
    assert refused.outcome is NO
    assert re.search(detail, refused.detail), refused.detail


@pytest.mark.parametrize("octets", [b"\x00", b"\xff\xfe", "töken".encode(), b"a b", b'"', b"=", b"a=b"])
async def test_octets_that_are_no_token(octets: bytes) -> None:
    assert (await refusal(octets)).outcome is NO


NOT_MINE: list[tuple[str, str, str]] = [
    ("another issuer", rsa_key().mint(claims(iss="https://other.example")), "issued by 'https://other.example'"),
    ("the issuer, almost", rsa_key().mint(claims(iss=f"{ISSUER}/")), f"issued by '{ISSUER}/', not by '{ISSUER}'"),
    ("an issuer that is long", rsa_key().mint(claims(iss="x" * 5000)), "issued by 'xxxx"),
    ("an issuer that is no text", rsa_key().mint(claims(iss={"a": 1})), "issued by {'a': 1}"),
    ("control characters", rsa_key().mint(claims(iss="\r\n\x1b[31m")), "issued by '\\r\\n\\x1b[31m'"),
    ("another issuer's algorithm", rsa_key().mint(claims(iss="x"), alg="HS256"), "issued by 'x'"),
    ("no issuer", rsa_key().mint(claims(iss=None)), "it names no issuer"),
    ("opaque", "2YotnFZFEjr1zCsicMWpAA", "not a JWT, and there is no introspection"),
    ("opaque, with dots", "AAAA.BBBB.CCCC", "not a JWT, and there is no introspection"),
    ("opaque, with tilde", "a~b.c/d+e==", "not a JWT, and there is no introspection"),
    ("encrypted", f"{encoded(b'{}')}.a.b.c.d", "not a JWT, and there is no introspection"),
    ("JSON without alg", f"{encoded(b'{}')}.{encoded(b'{}')}.AAAA", "not a JWT, and there is no introspection"),
    ("no base64url", "A.B.C", "not a JWT, and there is no introspection"),
]


@pytest.mark.parametrize(("name", "token", "why"), NOT_MINE, ids=[row[0] for row in NOT_MINE])
async def test_not_mine(name: str, token: str, why: str) -> None:
    web = issuer_web()
    answer = await ask(make_source(web), token)
    assert isinstance(answer, NotMine)
    assert answer.why.startswith(why)
    assert answer.why.isprintable()
    assert len(answer.why) < 200
    assert web.asked == [], "keys were fetched for somebody else's token"


async def test_claimed_names() -> None:
    source = make_source(issuer_web())
    token = rsa_key().mint(claims(sub="Alice"))
    for name in ("", ALICE):
        assert await ask(source, token, name) == Identity(ALICE, "oauth", expires_at=NOW + 300)
    refused = await refusal(token, name="bob@example.org")
    assert (refused.outcome, refused.detail) == (NO, "the token: it is for 'alice@example.org'")


EMAIL: list[tuple[str, dict[str, Any], str | None]] = [
    ("verified", {"email": "Alice@Example.org", "email_verified": True}, ALICE),
    ("not verified", {"email": ALICE, "email_verified": False}, None),
    ("not said", {"email": ALICE}, None),
    ("text", {"email": ALICE, "email_verified": "true"}, None),
    ("number", {"email": ALICE, "email_verified": 1}, None),
    ("none", {"email_verified": True}, None),
]


@pytest.mark.parametrize(("name", "changes", "expected"), EMAIL, ids=[row[0] for row in EMAIL])
async def test_email_counts_when_verified(name: str, changes: dict[str, Any], expected: str | None) -> None:
    token = rsa_key().mint(claims(**changes))
    if expected is None:
        assert (await refusal(token, name_claim="email")).outcome is NO
    else:
        answer = await ask(make_source(issuer_web(), name_claim="email"), token)
        assert isinstance(answer, Identity)
        assert answer.name == expected


@pytest.mark.parametrize("claim", ["Email", "EMAIL"])
async def test_email_counts_when_verified_in_any_letters(claim: str) -> None:
    refused = await refusal(rsa_key().mint(claims(**{claim: ALICE})), name_claim=claim)
    assert (refused.outcome, refused.detail) == (NO, "the token: email is not verified")
    token = rsa_key().mint(claims(**{claim: ALICE}, email_verified=True))
    assert isinstance(await ask(make_source(issuer_web(), name_claim=claim), token), Identity)


@pytest.mark.parametrize(
    ("given", "good"),
    [
        ("imap", True),
        ("webmail", True),
        (["smtp", "webmail"], True),
        ("smtp", False),
        (["smtp", ["imap"]], False),
        ([], False),
        (None, False),
        ("imap webmail", False),
    ],
)
async def test_several_audiences(given: Any, good: bool) -> None:
    token = rsa_key().mint(claims(aud=given))
    if good:
        assert isinstance(await ask(make_source(issuer_web(), audience=("imap", "webmail")), token), Identity)
    else:
        assert (await refusal(token, audience=("imap", "webmail"))).detail.startswith("the token: for the audience")


async def test_attributes() -> None:
    settings = {"attributes": {"backend": "mail_host", "department": "dep", "number": "no", "gone": "gone"}}
    source = make_source(issuer_web(), **settings)
    token = rsa_key().mint(claims(mail_host="dovecot-2", dep="sales", no=7))
    expected = Identity(ALICE, "oauth", "dovecot-2", {"department": "sales", "number": "7"}, expires_at=NOW + 300)
    assert await ask(source, token) == expected
    assert await ask(source, rsa_key().mint(claims(mail_host=""))) == Identity(ALICE, "oauth", expires_at=NOW + 300)
    for value in (["dovecot-2"], {"a": 1}, "dovecot\r\n", "x" * 2000):
        refused = await refusal(rsa_key().mint(claims(mail_host=value)), **settings)
        assert (refused.outcome, refused.detail) == (NO, "the token: mail_host is no short text")


async def test_what_the_source_tells_of_itself() -> None:
    source = make_source(issuer_web(), scopes=("imap", "openid"))
    assert (source.name, source.mechanisms, source.scopes) == ("oauth", TOKEN_MECHANISMS, ("imap", "openid"))
    assert source.openid_configuration == DISCOVERY
    assert make_source(issuer_web(), jwks_url=KEYS).openid_configuration is None


def without(key: SigningKey, *names: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (key.jwk() | changes).items() if name not in names}


def with_modulus(bits: int) -> dict[str, Any]:
    """An RSA key of a size, which nobody has made: only its size is looked at."""
    modulus = (1 << (bits - 1)) | 1
    return without(rsa_key(), n=encoded(modulus.to_bytes((bits + 7) // 8, "big")))


SECP256K1 = new_ec_key("k1", "ES256K", ec.SECP256K1)
UNUSABLE: list[tuple[str, Any]] = [
    ("symmetric", {"kty": "oct", "k": encoded(b"x" * 64), "kid": "oct"}),
    ("symmetric, called RS256", {"kty": "oct", "k": encoded(b"x" * 64), "alg": "RS256"}),
    ("for encryption", without(rsa_key(), use="enc")),
    ("use is a list", without(rsa_key(), use=["sig"])),
    ("for signing only", without(rsa_key(), key_ops=["sign"])),
    ("operations are text", without(rsa_key(), key_ops="verify")),
    ("algorithm of encryption", without(rsa_key(), alg="RSA-OAEP")),
    ("algorithm of another type", without(rsa_key(), alg="ES256")),
    ("algorithm of another curve", without(ec_key(), alg="ES384")),
    ("algorithm HMAC", without(rsa_key(), alg="HS256")),
    ("algorithm none", without(rsa_key(), alg="none")),
    ("private", rsa_key().jwk(private=True)),
    ("small", with_modulus(2047)),
    ("large", with_modulus(8193)),
    ("no modulus", without(rsa_key(), "n")),
    ("modulus is a number", without(rsa_key(), n=7)),
    ("modulus is no base64url", without(rsa_key(), n="A")),
    ("no type", without(rsa_key(), "kty")),
    ("unknown type", without(rsa_key(), kty="XMSS")),
    ("type is a list", without(rsa_key(), kty=["RSA"])),
    ("unknown curve", SECP256K1.jwk()),
    ("point not on the curve", without(ec_key(), y=encoded(b"\1" * 32))),
    ("curve is a list", without(ec_key(), crv=["P-256"])),
    ("kid is a number", without(rsa_key(), kid=7)),
    ("kid is long", without(rsa_key(), kid="x" * 300)),
    ("text", "rsa1"),
    ("null", None),
]


@pytest.mark.parametrize(("name", "jwk"), UNUSABLE, ids=[row[0] for row in UNUSABLE])
def test_keys_that_are_passed_over(name: str, jwk: Any) -> None:
    with pytest.raises(NotAnObject, match="no key in it that verifies"):
        read_keys(json.dumps({"keys": [jwk]}).encode())
    assert read_keys(json.dumps({"keys": [jwk, ec_key().jwk()]}).encode()).kids == ["ec1"]


@pytest.mark.parametrize("bits", [2048, 8192])
def test_sizes_of_rsa_keys(bits: int) -> None:
    assert read_keys(json.dumps({"keys": [with_modulus(bits)]}).encode()).kids == ["rsa1"]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (b"", "not valid JSON"),
        (b"<html>", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "not a JWK set"),
        (b'{"keys": {}}', "not a JWK set"),
        (b'{"keys": []}', "no key in it"),
        (json.dumps({"keys": [{}] * (tokens.MAX_KEYS + 1)}).encode(), "more than 100 keys"),
    ],
)
def test_documents_that_are_no_key_sets(document: bytes, problem: str) -> None:
    with pytest.raises(NotAnObject, match=problem):
        read_keys(document)


async def test_a_symmetric_key_in_the_set_verifies_nothing() -> None:
    secret = b"x" * 64
    web = issuer_web({"kty": "oct", "k": encoded(secret), "kid": "rsa1"})
    assert (await refusal(hmac_signed("HS256", secret), web)).outcome is NO


async def test_keys_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # RFC 7517 §4.5: keys of several types may share a name.
    monkeypatch.setattr(keys_module, "FETCH_SECONDS", 0.0)
    shared = [SigningKey("same", key.algorithm, key.private_key) for key in (rsa_key(), ec_key(), STRANGER)]
    web = FakeWeb()
    web.pages = {DISCOVERY: {"issuer": ISSUER, "jwks_uri": KEYS}, KEYS: key_set(*shared)}
    for key in shared:
        assert isinstance(await ask(make_source(web), key.mint(claims())), Identity)
    foreign = rsa_key("foreign")
    assert (await refusal(foreign.mint(claims(), kid="same"), web)).detail.endswith("not the issuer's")


async def test_a_token_that_names_no_key_is_tried_with_few() -> None:
    many = [rsa_key(f"many{number}").jwk() for number in range(tokens.MAX_KEYS_TRIED)]
    token = rsa_key().mint(claims(), kid=None)
    assert isinstance(await ask(make_source(issuer_web(*many[1:])), token), Identity)
    refused = await refusal(token, issuer_web(*many))
    assert refused.detail == "the token: it doesn't say which of 5 keys has signed it (kid)"


async def test_a_jwt_in_pieces_of_padding_is_opaque() -> None:
    padded = base64.urlsafe_b64encode(b'{"alg":"RS256"}').decode()
    assert isinstance(await ask(make_source(issuer_web()), f"{padded.rstrip('=')}.e30.AAAA="), NotMine)
