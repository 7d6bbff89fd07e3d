"""The login at a backend by XOAUTH2 and OAUTHBEARER, and the probe that logs nobody in, as tables like the rest."""

from __future__ import annotations

from base64 import b64encode

import pytest

from proxy.imap.client import BackendAnswered, BackendDialogue, BackendProbe
from proxy.imap.client_login import BackendLogin
from proxy.imap.events import BackendLoggedIn, BackendRefused, BackendStartTls
from proxy.outcome import Outcome
from tests.imap.backend_table import Cut, Row, by_octet, converse, refused, whole

TOKEN = b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl-_~+/=="
XOAUTH2 = BackendLogin("ann", TOKEN, mechanism="XOAUTH2")
OAUTHBEARER = BackendLogin("ann", TOKEN, mechanism="OAUTHBEARER")
XOAUTH2_RESPONSE = b64encode(b"user=ann\x01auth=Bearer " + TOKEN + b"\x01\x01")
OAUTHBEARER_RESPONSE = b64encode(b"n,a=ann,\x01auth=Bearer " + TOKEN + b"\x01\x01")
XOAUTH2_COMMAND = b"p1 AUTHENTICATE XOAUTH2 " + XOAUTH2_RESPONSE + b"\r\n"
OAUTHBEARER_COMMAND = b"p1 AUTHENTICATE OAUTHBEARER " + OAUTHBEARER_RESPONSE + b"\r\n"

DONE = b"p1 OK [CAPABILITY IMAP4rev1 IDLE] Logged in\r\n"
IN = BackendLoggedIn((b"IMAP4rev1", b"IDLE"), (), b"")
CHALLENGE = b"+ " + b64encode(b'{"status":"401","schemes":"bearer","scope":"mail"}') + b"\r\n"
NO = b"p1 NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"
FAILED = refused(
    "login", "login refused: NO [AUTHENTICATIONFAILED] Authentication failed.", Outcome.AUTHENTICATION_FAILED
)


def offering(*names: bytes) -> bytes:
    """A greeting with these capabilities."""
    return b"* OK [CAPABILITY IMAP4rev1 " + b" ".join(names) + b"] ready\r\n"


BOTH = offering(b"SASL-IR", b"AUTH=PLAIN", b"auth=xoauth2", b"AUTH=OAUTHBEARER")
ONLY_XOAUTH2 = offering(b"SASL-IR", b"LOGINDISABLED", b"AUTH=XOAUTH2")
ONLY_OAUTHBEARER = offering(b"SASL-IR", b"AUTH=OAUTHBEARER")
WITHOUT_IR = offering(b"AUTH=XOAUTH2", b"AUTH=OAUTHBEARER")

LOGGED_IN = [
    Row("XOAUTH2", XOAUTH2, [(BOTH, XOAUTH2_COMMAND), (DONE, b"")], [IN]),
    Row("OAUTHBEARER", OAUTHBEARER, [(BOTH, OAUTHBEARER_COMMAND), (DONE, b"")], [IN]),
    Row("XOAUTH2 without an initial response", XOAUTH2,
        [(WITHOUT_IR, b"p1 AUTHENTICATE XOAUTH2\r\n"), (b"+ \r\n", XOAUTH2_RESPONSE + b"\r\n"), (DONE, b"")], [IN]),
    Row("OAUTHBEARER without an initial response", OAUTHBEARER,
        [(WITHOUT_IR, b"p1 AUTHENTICATE OAUTHBEARER\r\n"), (b"+\r\n", OAUTHBEARER_RESPONSE + b"\r\n"), (DONE, b"")],
        [IN]),
    Row("the client's own is not offered: XOAUTH2 for OAUTHBEARER, and LOGINDISABLED is about LOGIN", OAUTHBEARER,
        [(ONLY_XOAUTH2, XOAUTH2_COMMAND), (DONE, b"")], [IN]),
    Row("the client's own is not offered: OAUTHBEARER for XOAUTH2", XOAUTH2,
        [(ONLY_OAUTHBEARER, OAUTHBEARER_COMMAND), (DONE, b"")], [IN]),
    Row("neither is offered", XOAUTH2, [(offering(b"SASL-IR", b"AUTH=PLAIN", b"AUTH=LOGIN"), b"")],
        [refused("login", "the backend offers neither AUTH=XOAUTH2 nor AUTH=OAUTHBEARER")]),
    Row("what is offered counts inside TLS",
        BackendLogin("ann", TOKEN, mechanism="XOAUTH2", starttls=True),
        [(offering(b"STARTTLS", b"AUTH=XOAUTH2"), b"p1 STARTTLS\r\n"), (b"p1 OK go\r\n", b"p2 CAPABILITY\r\n"),
         (b"* CAPABILITY SASL-IR AUTH=OAUTHBEARER\r\np2 OK .\r\n", OAUTHBEARER_COMMAND.replace(b"p1", b"p3")),
         (DONE.replace(b"p1", b"p3"), b"")], [BackendStartTls(), IN]),
    Row("ID leaves with an initial response", BackendLogin("ann", TOKEN, mechanism="XOAUTH2", id_fields=(("a", "b"),)),
        [(BOTH, b'p1 ID ("a" "b")\r\n' + XOAUTH2_COMMAND.replace(b"p1", b"p2")),
         (b"p1 OK .\r\n" + DONE.replace(b"p1", b"p2"), b"")], [IN]),
    Row("a name in XOAUTH2", BackendLogin("ä,n=n", TOKEN, mechanism="XOAUTH2"),
        [(BOTH, b"p1 AUTHENTICATE XOAUTH2 "
          + b64encode("user=ä,n=n\x01auth=Bearer ".encode() + TOKEN + b"\x01\x01") + b"\r\n"), (DONE, b"")], [IN]),
    Row("a name in OAUTHBEARER", BackendLogin("ä,n=2C", TOKEN, mechanism="OAUTHBEARER"),
        [(BOTH, b"p1 AUTHENTICATE OAUTHBEARER "
          + b64encode("n,a=ä=2Cn=3D2C,\x01auth=Bearer ".encode() + TOKEN + b"\x01\x01") + b"\r\n"), (DONE, b"")], [IN]),
]  # fmt: skip

FAILURES = [
    Row("refused at once", XOAUTH2, [(BOTH, XOAUTH2_COMMAND), (NO, b"")], [FAILED]),
    Row("XOAUTH2 tells why: an empty line", XOAUTH2,
        [(BOTH, XOAUTH2_COMMAND), (CHALLENGE, b"\r\n"), (NO, b"")], [FAILED]),
    Row("OAUTHBEARER tells why: ^A", OAUTHBEARER,
        [(BOTH, OAUTHBEARER_COMMAND), (CHALLENGE, b"AQ==\r\n"), (NO, b"")], [FAILED]),
    Row("the other one's answer where the other one is used", OAUTHBEARER,
        [(ONLY_XOAUTH2, XOAUTH2_COMMAND), (CHALLENGE, b"\r\n"), (NO, b"")], [FAILED]),
    Row("behind a continuation request", OAUTHBEARER,
        [(WITHOUT_IR, b"p1 AUTHENTICATE OAUTHBEARER\r\n"), (b"+ \r\n", OAUTHBEARER_RESPONSE + b"\r\n"),
         (CHALLENGE, b"AQ==\r\n"), (NO, b"")], [FAILED]),
    Row("the code of the NO decides", XOAUTH2,
        [(BOTH, XOAUTH2_COMMAND), (CHALLENGE, b"\r\n"), (b"p1 NO [UNAVAILABLE] Internal\r\n", b"")],
        [refused("login", "login refused: NO [UNAVAILABLE] Internal")]),
    Row("BAD behind the challenge: it has failed all the same", XOAUTH2,
        [(BOTH, XOAUTH2_COMMAND), (CHALLENGE, b"\r\n"), (b"p1 BAD what\r\n", b"")],
        [refused("login", "login refused: NO what", Outcome.AUTHENTICATION_FAILED)]),
    Row("a second challenge", XOAUTH2,
        [(BOTH, XOAUTH2_COMMAND), (CHALLENGE, b"\r\n"), (CHALLENGE, b"")],
        [refused("login", "a continuation request for a command that expects none")]),
    Row("OK behind the challenge", XOAUTH2,
        [(BOTH, XOAUTH2_COMMAND), (CHALLENGE, b"\r\n"), (DONE, b"")],
        [refused("login", "an OK to a command that was told to have failed")]),
    Row("OK instead of a continuation request", XOAUTH2,
        [(WITHOUT_IR, b"p1 AUTHENTICATE XOAUTH2\r\n"), (DONE, b"")],
        [refused("login", "an OK to a command that was not complete")]),
    Row("BAD", XOAUTH2, [(BOTH, XOAUTH2_COMMAND), (b"p1 BAD what\r\n", b"")],
        [refused("login", "login not understood: BAD what")]),
    Row("a line that was too long for it", XOAUTH2, [(BOTH, XOAUTH2_COMMAND), (b"EOF", b"")],
        [refused("login", f"the backend closed the connection at step login, sent a token of {len(TOKEN)} octets")]),
]  # fmt: skip


def unsayable(name: str, login: BackendLogin) -> Row:
    detail = "a name with ^A, or a token with octets that no token has"
    return Row(name, login, [(b"", b"")], [refused("login", detail, Outcome.AUTHENTICATION_FAILED)])


UNSAYABLE = [
    unsayable("^A in a name", BackendLogin("ann\x01auth=Bearer x", TOKEN, mechanism="XOAUTH2")),
    unsayable("^A in a token", BackendLogin("ann", b"x\x01auth=Bearer y", mechanism="OAUTHBEARER")),
    unsayable("a blank in a token", BackendLogin("ann", b"x y", mechanism="XOAUTH2")),
    unsayable("a line end in a token", BackendLogin("ann", b"x\r\n", mechanism="XOAUTH2")),
    unsayable("8 bits in a token", BackendLogin("ann", b"x\xff", mechanism="XOAUTH2")),
]


@pytest.mark.parametrize("cut", [whole, by_octet])
@pytest.mark.parametrize("row", [*LOGGED_IN, *FAILURES, *UNSAYABLE], ids=lambda row: row.name)
def test_login_with_a_token(row: Row, cut: Cut) -> None:
    assert converse(row, cut) == ([sent for _, sent in row.turns], row.events)


@pytest.mark.parametrize(("token_bytes", "together"), [(6082, True), (6083, False)])
def test_a_token_too_long_for_a_command_waits_for_a_continuation_request(token_bytes: int, together: bool) -> None:
    """RFC 7162 §4: every server takes a line of 8192 octets."""
    dialogue = BackendDialogue(BackendLogin("ann", b"t" * token_bytes, mechanism="XOAUTH2"))
    dialogue.receive_data(BOTH)
    assert dialogue.next_event() is None
    first = dialogue.data_to_send()
    response = b64encode(b"user=ann\x01auth=Bearer " + b"t" * token_bytes + b"\x01\x01")
    if together:
        assert first == b"p1 AUTHENTICATE XOAUTH2 " + response + b"\r\n"
        assert 8160 < len(first) <= 8192
    else:
        assert first == b"p1 AUTHENTICATE XOAUTH2\r\n"
        dialogue.receive_data(b"+ \r\n")
        assert dialogue.next_event() is None
        assert dialogue.data_to_send() == response + b"\r\n"


# --- what is repeated of it ---

ECHOES = [
    ("the token", TOKEN),
    ("in base64", b64encode(TOKEN)),
    ("in base64 without padding", b64encode(TOKEN).rstrip(b"=")),
    ("as XOAUTH2 sends it", XOAUTH2_RESPONSE),
    ("as OAUTHBEARER sends it", OAUTHBEARER_RESPONSE),
    ("the token's beginning", TOKEN[:40]),
    ("the beginning of a response", XOAUTH2_RESPONSE[:70]),
]


@pytest.mark.parametrize(("name", "echo"), ECHOES)
@pytest.mark.parametrize("login", [XOAUTH2, OAUTHBEARER], ids=lambda login: login.mechanism)
def test_no_echo_of_a_token(name: str, echo: bytes, login: BackendLogin) -> None:
    for said in (b"p1 BAD no " + echo + b" no " + echo[:-2] + b"... ends\r\n", b"* BYE " + echo + b", ends\r\n"):
        dialogue = BackendDialogue(login)
        dialogue.receive_data(BOTH + said)
        event = dialogue.next_event()
        assert isinstance(event, BackendRefused)
        assert event.detail.endswith("ends")
        assert "***" in event.detail
        assert echo[16:24].decode() not in event.detail
    dialogue = BackendDialogue(login)
    dialogue.receive_data(BOTH + b"* OK [ALERT] " + echo + b"!\r\n" + DONE)
    noted = dialogue.next_event()
    assert isinstance(noted, BackendLoggedIn)
    assert noted.notes == (b"* OK [ALERT] ***!\r\n",)


def test_no_token_in_any_repr() -> None:
    dialogue = BackendDialogue(XOAUTH2)
    dialogue.receive_data(WITHOUT_IR)
    dialogue.next_event()
    assert TOKEN.decode() not in repr(XOAUTH2) + repr(dialogue)


# --- the probe ---


def probe(
    *, actor: str = "", starttls: bool = False, mechanism: str = "", fields: tuple[tuple[str, str], ...] = ()
) -> BackendLogin:
    return BackendLogin("probe", b"", actor, starttls, fields, mechanism)


def answered(*capability: bytes, greeting: bytes = b"", identification: bytes = b"") -> BackendAnswered:
    return BackendAnswered(capability, greeting, identification)


FIELDS = (("x-originating-ip", "192.0.2.1"),)
IDENTIFYING = b'p1 ID ("x-originating-ip" "192.0.2.1")\r\n'

PROBES = [
    Row("one turn", probe(), [(offering(b"ID"), b"p1 LOGOUT\r\n")],
        [answered(b"IMAP4rev1", b"ID", greeting=b"ready")]),
    Row("ID", probe(fields=FIELDS),
        [(offering(b"ID"), IDENTIFYING), (b'* ID ("a" "b")\r\np1 OK .\r\n', b"p2 LOGOUT\r\n")],
        [answered(b"IMAP4rev1", b"ID", greeting=b"ready", identification=b'("a" "b")')]),
    Row("ID refused", probe(fields=FIELDS),
        [(offering(), IDENTIFYING), (b"p1 BAD what?\r\n", b"p2 LOGOUT\r\n")],
        [answered(b"IMAP4rev1", greeting=b"ready")]),
    Row("ID inside TLS alone", probe(starttls=True, fields=FIELDS),
        [(b"* OK hello [you]\r\n* ID forged\r\n", b"p1 STARTTLS\r\n"), (b"p1 OK go\r\n", b"p2 CAPABILITY\r\n"),
         (b"* CAPABILITY A\r\np2 OK .\r\n", IDENTIFYING.replace(b"p1", b"p3")), (b"p3 OK .\r\n", b"p4 LOGOUT\r\n")],
        [BackendStartTls(), answered(b"A", greeting=b"hello [you]")]),
    Row("asked", probe(), [(b"* OK\r\n", b"p1 CAPABILITY\r\n"), (b"* CAPABILITY A\r\np1 OK .\r\n", b"p2 LOGOUT\r\n")],
        [answered(b"A")]),
    Row("STARTTLS", probe(starttls=True),
        [(offering(b"STARTTLS", b"LOGINDISABLED"), b"p1 STARTTLS\r\n"), (b"p1 OK go\r\n", b"p2 CAPABILITY\r\n"),
         (b"* CAPABILITY A\r\np2 OK .\r\n", b"p3 LOGOUT\r\n")], [BackendStartTls(), answered(b"A", greeting=b"ready")]),
    Row("no STARTTLS", probe(starttls=True), [(offering(), b"")],
        [refused("starttls", "the backend offers no STARTTLS")]),
    Row("BYE", probe(), [(b"* BYE later\r\n", b"")], [refused("greeting", "a greeting that refuses: * BYE later")]),
    Row("PREAUTH", probe(), [(b"* PREAUTH\r\n", b"")], [refused("greeting", "a greeting that refuses: * PREAUTH")]),
    Row("no list", probe(), [(b"* OK\r\n", b"p1 CAPABILITY\r\n"), (b"p1 NO .\r\n", b"")],
        [refused("capability", "no capability list: NO .")]),
    Row("closed", probe(), [(b"EOF", b"")],
        [refused("greeting", "the backend closed the connection at step greeting")]),
    Row("no way for a password", probe(), [(offering(b"LOGINDISABLED"), b"")],
        [refused("login", "the backend offers no AUTH=PLAIN, and has LOGINDISABLED")]),
    Row("no way to act for somebody", probe(actor="probe"), [(offering(), b"")],
        [refused("login", "the backend offers no AUTH=PLAIN")]),
    Row("no way for a token", probe(mechanism="XOAUTH2"), [(offering(b"AUTH=PLAIN"), b"")],
        [refused("login", "the backend offers neither AUTH=XOAUTH2 nor AUTH=OAUTHBEARER")]),
    Row("a way for a token", probe(mechanism="XOAUTH2"), [(offering(b"AUTH=OAUTHBEARER"), b"p1 LOGOUT\r\n")],
        [answered(b"IMAP4rev1", b"AUTH=OAUTHBEARER", greeting=b"ready")]),
]  # fmt: skip


@pytest.mark.parametrize("cut", [whole, by_octet])
@pytest.mark.parametrize("row", PROBES, ids=lambda row: row.name)
def test_probe(row: Row, cut: Cut) -> None:
    assert converse(row, cut, BackendProbe) == ([sent for _, sent in row.turns], row.events)
