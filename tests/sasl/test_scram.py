"""SCRAM: the example of RFC 7677, a client of another hand, and what those in between may try."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scramp import ScramClient, ScramException, ScramMechanism

from proxy.model import Account, AccountWanted, Challenge, Credentials, Identity, MalformedResponse, ScramKeys
from proxy.outcome import Outcome
from proxy.sasl.scram import ScramSha256

NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
BINDING = bytes(range(32))


def account(password: str = "pencil", salt: bytes = SALT, iterations: int = 4096) -> Account:
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    keys = ScramKeys(
        salt, iterations, hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256")
    )
    return Account(Identity("user@example.org", "file"), keys)


ACCOUNT = account()


@dataclass
class Client:
    """A client that says of channel binding whatever it is told to."""

    header: bytes = b"n,,"
    binding: bytes = b""
    name: bytes = b"user"
    password: str = "pencil"
    nonce: bytes = b"rOprNGfwEbeRWgbNEkqO"

    def first(self) -> bytes:
        return self.header + self.bare()

    def bare(self) -> bytes:
        return b"n=" + self.name + b",r=" + self.nonce

    def final(self, server_first: bytes, *, extension: bytes = b"", cut: int | None = None) -> bytes:
        nonce, salt, iterations = (part[2:] for part in server_first.split(b",", 2))
        nonce = nonce[:cut]
        salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), base64.b64decode(salt), int(iterations))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = b"c=" + base64.b64encode(self.header + self.binding) + b",r=" + nonce + extension
        signed = b",".join((self.bare(), server_first, without_proof))
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        proof = bytes(mine ^ other for mine, other in zip(client_key, signature, strict=True))
        return without_proof + b",p=" + base64.b64encode(proof)


def begun(server: ScramSha256, client: Client) -> bytes:
    """The server's first message."""
    assert isinstance(server.step(client.first()), AccountWanted)
    return server.supply(ACCOUNT).data


def finished(server: ScramSha256, client_final: bytes) -> Credentials:
    """How it ends, after the server's signature where there is one."""
    answer = server.step(client_final)
    if isinstance(answer, Challenge):
        assert answer.data.startswith(b"v=")
        answer = server.step(b"")
    assert isinstance(answer, Credentials)
    return answer


def refused(mechanism: str = "SCRAM-SHA-256", problem: str = "") -> Credentials:
    return Credentials(mechanism, "user", "", b"", proven=None, problem=problem)


def wanted(name: str = "user", mechanism: str = "SCRAM-SHA-256", authorization_identity: str = "") -> AccountWanted:
    return AccountWanted(mechanism, name, authorization_identity)


DOWNGRADE = "the client was not told of PLUS, which was offered: a downgrade?"


def test_the_exchange_of_rfc_7677() -> None:
    server = ScramSha256(False, None, NONCE)
    assert server.step(None) == Challenge(b"")
    assert server.step(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO") == wanted()
    assert server.supply(ACCOUNT) == Challenge(
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    final = (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert server.step(final) == Challenge(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
    assert server.step(b"") == Credentials("SCRAM-SHA-256", "user", "", b"", proven=ACCOUNT)


# What the client says of channel binding, what the server has, and what comes of it: it goes on, has failed since the
# client was deceived (RFC 5802 §6), or is no message of this mechanism, and so no guess either.
GOES_ON, DECEIVED, MALFORMED = "goes on", "deceived", "malformed"
BINDINGS = [
    ("none on either side", b"n,,", False, None, GOES_ON),
    ("the client could, the server can't", b"y,,", False, None, GOES_ON),
    ("the client can't, the server could", b"n,,", False, BINDING, GOES_ON),
    ("somebody hid PLUS from the client", b"y,,", False, BINDING, DECEIVED),
    ("it binds without PLUS", b"p=tls-exporter,,", False, BINDING, MALFORMED),
    ("it binds where there is nothing to bind to", b"p=tls-exporter,,", False, None, MALFORMED),
    ("it binds by another type without PLUS", b"p=tls-unique,,", False, BINDING, MALFORMED),
    ("PLUS", b"p=tls-exporter,,", True, BINDING, GOES_ON),
    ("PLUS without binding", b"n,,", True, BINDING, MALFORMED),
    ("PLUS, and thinks there is none", b"y,,", True, BINDING, MALFORMED),
    ("PLUS by another type", b"p=tls-unique,,", True, BINDING, MALFORMED),
    ("PLUS by a type in capitals", b"p=TLS-EXPORTER,,", True, BINDING, MALFORMED),
    ("PLUS by a type nobody knows", b"p=n,,", True, BINDING, MALFORMED),
    ("a type called n", b"p=n,,", False, BINDING, MALFORMED),
    ("a type called y", b"p=y,,", False, None, MALFORMED),
]


@pytest.mark.parametrize(("name", "header", "plus", "binding", "result"), BINDINGS, ids=[row[0] for row in BINDINGS])
def test_channel_binding(name: str, header: bytes, plus: bool, binding: bytes | None, result: str) -> None:
    mechanism = "SCRAM-SHA-256-PLUS" if plus else "SCRAM-SHA-256"
    server = ScramSha256(plus, binding, NONCE)
    client = Client(header, (binding or b"") if plus else b"")
    if result is MALFORMED:
        with pytest.raises(MalformedResponse):
            server.step(client.first())
        return
    answer = server.step(client.first())
    if result is DECEIVED:
        assert answer == refused(mechanism, DOWNGRADE)
        return
    assert answer == wanted(mechanism=mechanism)
    final = client.final(server.supply(ACCOUNT).data)
    assert finished(server, final) == Credentials(mechanism, "user", "", b"", proven=ACCOUNT)


def test_whom_a_deceived_client_wanted_to_act_as() -> None:
    """The log tells it, though nothing was proven."""
    told = ScramSha256(False, BINDING, NONCE).step(Client(b"y,a=bob,").first())
    assert told == Credentials("SCRAM-SHA-256", "user", "bob", b"", proven=None, problem=DOWNGRADE)


def test_bound_to_another_connection() -> None:
    """Somebody in between has a TLS connection with each side; what the client binds to is not ours."""
    server = ScramSha256(True, BINDING, NONCE)
    client = Client(b"p=tls-exporter,,", BINDING[::-1])
    assert finished(server, client.final(begun(server, client))) == refused("SCRAM-SHA-256-PLUS")


@pytest.mark.parametrize(("claimed", "sent"), [(b"y,,", b"n,,"), (b"p=tls-exporter,,", b"n,,"), (b"n,a=bob,", b"n,,")])
def test_a_header_that_was_changed_on_the_way(claimed: bytes, sent: bytes) -> None:
    """The final message repeats the header, signed: who changes the first one is found out."""
    server, client = ScramSha256(False, BINDING, NONCE), Client(sent)
    server_first = begun(server, client)
    client.header = claimed
    if claimed.startswith(b"p"):
        client.binding = BINDING
    assert finished(server, client.final(server_first)).proven is None


def test_no_plus_without_something_to_bind_to() -> None:
    with pytest.raises(ValueError, match="nothing to bind to"):
        ScramSha256(True, None, NONCE)


def test_a_wrong_password() -> None:
    server, client = ScramSha256(False, None, NONCE), Client(password="pen")
    assert finished(server, client.final(begun(server, client))) == refused()


IDENTITIES = [
    ("oneself", b"n,a=user,", b"user", "user", "user"),
    ("somebody else", b"n,a=bob,", b"user", "user", "bob"),
    ("escapes", b"n,a=a=2Cb=3Dc,", b"a=3D2C=2C", "a=2C,", "a,b=c"),
    ("one octet", b"n,a=b,", b"u", "u", "b"),
    ("UTF-8", "n,a=jürgen,".encode(), "änn".encode(), "änn", "jürgen"),
    ("no UTF-8", b"n,a=\xfe,", b"\xff", "\udcff", "\udcfe"),
]


@pytest.mark.parametrize(
    ("row", "header", "name", "authentication_identity", "authorization_identity"),
    IDENTITIES,
    ids=[row[0] for row in IDENTITIES],
)
def test_both_identities(
    row: str, header: bytes, name: bytes, authentication_identity: str, authorization_identity: str
) -> None:
    server, client = ScramSha256(False, None, NONCE), Client(header, name=name)
    asked = wanted(authentication_identity, authorization_identity=authorization_identity)
    assert server.step(client.first()) == asked
    final = client.final(server.supply(ACCOUNT).data)
    assert finished(server, final) == Credentials(
        "SCRAM-SHA-256", authentication_identity, authorization_identity, b"", proven=ACCOUNT
    )


MALFORMED_FIRST = [
    ("empty", b""),
    ("header alone", b"n,,"),
    ("no header", b"n=user,r=abc"),
    ("one comma", b"n,n=user,r=abc"),
    ("PLAIN's form", b"\0user\0pencil"),
    ("no name", b"n,,r=abc"),
    ("empty name", b"n,,n=,r=abc"),
    ("no nonce", b"n,,n=user"),
    ("empty nonce", b"n,,n=user,r="),
    ("nonce first", b"n,,r=abc,n=user"),
    ("bare = in the name", b"n,,n=us=er,r=abc"),
    ("NUL in the name", b"n,,n=us\0er,r=abc"),
    ("space in the nonce", b"n,,n=user,r=a c"),
    ("8-bit in the nonce", b"n,,n=user,r=a\xffc"),
    ("line end in the nonce", b"n,,n=user,r=abc\n"),
    ("absurd nonce", b"n,,n=user,r=" + b"a" * 257),
    ("mandatory extension", b"n,,m=x,n=user,r=abc"),
    ("extension without value", b"n,,n=user,r=abc,x="),
    ("extension with a long name", b"n,,n=user,r=abc,xy=1"),
    ("second nonce", b"n,,n=user,r=abc,r=def"),
    ("comma at the end", b"n,,n=user,r=abc,"),
    ("NUL in an extension", b"n,,n=user,r=abc,x=\0"),
    ("empty authorization identity", b"n,a=,n=user,r=abc"),
    ("bare = in the authorization identity", b"n,a=b=b,n=user,r=abc"),
    ("flag of no mechanism", b"q,,n=user,r=abc"),
    ("bound to nothing", b"p=,,n=user,r=abc"),
    ("bound to a name with a blank", b"p=tls exporter,,n=user,r=abc"),
]


@pytest.mark.parametrize(("name", "response"), MALFORMED_FIRST, ids=[row[0] for row in MALFORMED_FIRST])
def test_a_malformed_first_message(name: str, response: bytes) -> None:
    with pytest.raises(MalformedResponse) as caught:
        ScramSha256(False, None, NONCE).step(response)
    assert "user" not in repr(caught.value)


@pytest.mark.parametrize("first", [b"n,,n=user,r=" + b"a" * 256, b"n,,n=user,r=abc,x=1,Y=2"])
def test_long_nonces_and_extensions_are_fine(first: bytes) -> None:
    assert ScramSha256(False, None, NONCE).step(first) == wanted()


MALFORMED_FINAL = [
    ("empty", b""),
    ("no proof", b"c=biws,r=%b"),
    ("empty binding", b"c=,r=%b,p=AAAA"),
    ("no binding", b"r=%b,p=AAAA"),
    ("no nonce", b"c=biws,p=AAAA"),
    ("the wrong order", b"r=%b,c=biws,p=AAAA"),
    ("proof not last", b"c=biws,p=AAAA,r=%b"),
    ("two proofs", b"c=biws,r=%b,p=AAAA,p=AAAA"),
    ("proof cut off", b"c=biws,r=%b,p=AAA"),
    ("proof not base64", b"c=biws,r=%b,p=AA!A"),
    ("proof with 8-bit", b"c=biws,r=%b,p=AA\xffA"),
    ("mandatory extension", b"c=biws,r=%b,m=1,p=AAAA"),
    ("binding with 8-bit", b"c=bi\xffs,r=%b,p=AAAA"),
]


@pytest.mark.parametrize(("name", "final"), MALFORMED_FINAL, ids=[row[0] for row in MALFORMED_FINAL])
def test_a_malformed_final_message(name: str, final: bytes) -> None:
    server, client = ScramSha256(False, None, NONCE), Client()
    begun(server, client)
    nonce = client.nonce + NONCE.encode()
    with pytest.raises(MalformedResponse):
        server.step(final.replace(b"%b", nonce))


def test_what_is_wrong_with_a_well_formed_final_message() -> None:
    client = Client()
    right = client.final(begun(ScramSha256(False, None, NONCE), client))
    without_proof, _, proof = right.rpartition(b",p=")
    flipped = base64.b64decode(proof)
    wrong = [
        right.replace(b"c=biws", b"c=eSws"),
        right.replace(b"c=biws", b"c=A"),
        right.replace(NONCE.encode(), b""),
        right.replace(NONCE.encode(), NONCE[:-1].encode()),
        right.replace(b"r=", b"r=x"),
        without_proof + b",x=1,p=" + proof,
        without_proof + b",p=",
        without_proof + b",p=" + base64.b64encode(flipped[:-1]),
        without_proof + b",p=" + base64.b64encode(flipped + b"\0"),
        without_proof + b",p=" + base64.b64encode(bytes(32)),
        without_proof + b",p=" + base64.b64encode(bytes([flipped[0] ^ 1]) + flipped[1:]),
    ]
    for final in wrong:
        server = ScramSha256(False, None, NONCE)
        begun(server, client)
        assert final != right
        assert server.step(final) == refused(), final
        assert server.step(right) == refused(), "one nonce, one proof"


def test_a_signed_extension_is_ignored() -> None:
    server, client = ScramSha256(False, None, NONCE), Client()
    final = client.final(begun(server, client), extension=b",x=something")
    assert finished(server, final).proven is ACCOUNT


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_signed_nonce_that_is_not_the_servers(cut: int) -> None:
    """Who knows the password still has to repeat both nonces (RFC 5802 §5.1)."""
    server, client = ScramSha256(False, None, NONCE), Client()
    assert finished(server, client.final(begun(server, client), cut=cut)) == refused()


def test_yesterdays_exchange_played_again() -> None:
    server, client = ScramSha256(False, None, NONCE), Client()
    final = client.final(begun(server, client))
    assert finished(server, final).proven is ACCOUNT
    again = ScramSha256(False, None, NONCE[::-1])
    begun(again, client)
    assert finished(again, final) == refused()


def test_something_behind_the_servers_signature() -> None:
    server, client = ScramSha256(False, None, NONCE), Client()
    assert isinstance(server.step(client.final(begun(server, client))), Challenge)
    with pytest.raises(MalformedResponse):
        server.step(b"x")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_failure_has_no_challenge(outcome: Outcome) -> None:
    assert ScramSha256(False, None, NONCE).failure(outcome) is None


def test_no_key_is_in_any_repr() -> None:
    server, client = ScramSha256(True, BINDING, NONCE), Client(b"p=tls-exporter,,", BINDING)
    credentials = finished(server, client.final(begun(server, client)))
    assert ACCOUNT.scram is not None
    for secret in (ACCOUNT.scram.stored_key, ACCOUNT.scram.server_key, BINDING):
        for shown in (repr(credentials), repr(ACCOUNT), repr(server), repr(ACCOUNT.scram)):
            assert repr(secret)[2:-1] not in shown
            assert secret.hex() not in shown


# scramp's own client, which knows neither tls-exporter nor authorization identities


def converse(client: ScramClient, server: ScramSha256, known: Account) -> Credentials:
    answer = server.step(client.get_client_first().encode())
    if isinstance(answer, Credentials):
        return answer
    assert isinstance(answer, AccountWanted)
    client.set_server_first(server.supply(known).data.decode())
    answer = server.step(client.get_client_final().encode())
    if isinstance(answer, Challenge):
        client.set_server_final(answer.data.decode())  # it believes that we know the keys
        answer = server.step(b"")
    assert isinstance(answer, Credentials)
    return answer


@pytest.mark.parametrize(("name", "password"), [("user", "pencil"), ("a,b=c", "p,=w"), ("jürgen", "Ⅸ\u00ad")])
def test_scramp_logs_in(name: str, password: str) -> None:
    salt, stored_key, server_key, iterations = ScramMechanism("SCRAM-SHA-256").make_auth_info(password)
    known = Account(Identity(name, "file"), ScramKeys(salt, iterations, stored_key, server_key))
    client = ScramClient(["SCRAM-SHA-256"], name, password)
    expected = Credentials("SCRAM-SHA-256", name, "", b"", proven=known)
    assert converse(client, ScramSha256(False, None, NONCE), known) == expected


def test_scramp_with_a_wrong_password() -> None:
    client = ScramClient(["SCRAM-SHA-256"], "user", "pen")
    assert converse(client, ScramSha256(False, None, NONCE), ACCOUNT) == refused()


def test_scramp_believes_that_we_offer_no_plus() -> None:
    client = ScramClient(["SCRAM-SHA-256"], "user", "pencil", channel_binding=("tls-unique", b"x"))
    assert converse(client, ScramSha256(False, BINDING, NONCE), ACCOUNT) == refused(problem=DOWNGRADE)


def test_a_server_that_does_not_know_the_keys_is_found_out() -> None:
    assert ACCOUNT.scram is not None
    keys = ScramKeys(ACCOUNT.scram.salt, ACCOUNT.scram.iterations, ACCOUNT.scram.stored_key, bytes(32))
    client = ScramClient(["SCRAM-SHA-256"], "user", "pencil")
    with pytest.raises(ScramException, match="server signature"):
        converse(client, ScramSha256(False, None, NONCE), Account(ACCOUNT.identity, keys))


ATTRIBUTES = st.lists(
    st.sampled_from(
        [b"n=user", b"r=abc", b"x=1", b"m=1", b"c=biws", b"p=AAAA", b"n=", b"r=a c", b"n=u=2Cs", b"=", b""]
    ),
    max_size=4,
    unique=True,
).map(b",".join)


@given(ATTRIBUTES)
@example(b"n=user,r=abc")
@example(b"n=user,r=abc,x=1")
def test_scramp_takes_the_same_first_messages(bare: bytes) -> None:
    asked: list[str] = []

    def keys_of(name: str) -> None:
        asked.append(name)

    with pytest.raises(ScramException):  # at the latest since nobody is known
        ScramMechanism("SCRAM-SHA-256").make_server(keys_of).set_client_first(f"n,,{bare.decode()}")
    try:
        answer = ScramSha256(False, None, NONCE).step(b"n,," + bare)
    except MalformedResponse:
        assert asked == []
    else:
        assert isinstance(answer, AccountWanted)
        assert asked == [answer.name]
