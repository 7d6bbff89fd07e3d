"""What holds for the login at a backend whatever the backend says and whatever the credentials are."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.imap.client import BackendDialogue, DialogueEvent
from proxy.imap.client_login import BackendLogin
from proxy.imap.events import BackendLoggedIn, BackendRefused, BackendStartTls
from proxy.outcome import Outcome

SECRET = b'hun"ter2\xfc\xffXYZZY'  # has a quoted, a literal and a base64 form
TOKEN = b"abracadabra." + b"z" * 40
FORMS = {SECRET: ("XYZZY", "ter2", b64encode(SECRET).decode()), TOKEN: ("cadabra", b64encode(TOKEN)[:24].decode())}

LINES = [
    b"* OK hi\r\n",
    b"* OK [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n",
    b"* OK [CAPABILITY AUTH=PLAIN SASL-IR LITERAL+] hi\r\n",
    b"* OK [CAPABILITY AUTH=PLAIN] hi\r\n",
    b"* OK [CAPABILITY AUTH=XOAUTH2 SASL-IR] hi\r\n",
    b"* OK [CAPABILITY AUTH=OAUTHBEARER] hi\r\n",
    b"* CAPABILITY IMAP4rev1 LOGINDISABLED\r\n",
    b"* CAPABILITY LITERAL-\r\n",
    b"* OK [ALERT] x\r\n",
    b"* BYE\r\n",
    b"* ID ({3}\r\nabc {2}\r\n",
    b"* x {0}\r\n",
    b"* {\r\n",
    b"* }\r\n",
    b"+\r\n",
    b"+ go\r\n",
    b"[]\r\n",
    b"\r\n",
    b"* OK [" + SECRET + b"] " + SECRET + b" " + b64encode(SECRET) + b"\r\n",
    *(b"p%d %s\r\n" % (tag, said) for tag in (1, 2, 3, 4) for said in (b"OK .", b"OK [CAPABILITY A]", b"NO [LIMIT")),
    b"p1 BAD\r\n",
    *(b"p%d NO " % tag + form + b"\r\n" for tag in (1, 2, 3) for form in (SECRET, b64encode(SECRET))),
    *(b"* BYE " + form + b"\r\n" for form in (TOKEN, TOKEN[:30], b64encode(TOKEN), b64encode(TOKEN)[:30])),
]  # fmt: skip

BACKEND = st.lists(st.sampled_from(LINES) | st.binary(max_size=30), max_size=20)
LOGINS = st.builds(
    BackendLogin,
    authentication_identity=st.sampled_from(["ann", "änn", "a\r\n", "", "\udcff"]),
    secret=st.just(SECRET),
    authorization_identity=st.sampled_from(["", "bob"]),
    starttls=st.booleans(),
    id_fields=st.sampled_from([(), (("name", "x"),)]),
) | st.builds(
    BackendLogin,
    authentication_identity=st.sampled_from(["ann", "a,n=n", "a\x01"]),
    secret=st.just(TOKEN),
    starttls=st.booleans(),
    mechanism=st.sampled_from(["XOAUTH2", "OAUTHBEARER"]),
)


@given(LOGINS, BACKEND, st.booleans())
def test_any_octets_end_in_none_or_an_event(login: BackendLogin, backend: list[bytes], closed: bool) -> None:
    """Never an exception, one last event, printable details, and no secret in what may be logged."""
    dialogue = BackendDialogue(login)
    last: DialogueEvent | None = None
    for data in [*(piece for piece in backend if piece), *([b""] if closed else [])]:
        dialogue.receive_data(data)
        while (event := dialogue.next_event()) is not None:
            assert last is None, "an event behind the last one"
            if isinstance(event, BackendStartTls):
                dialogue.tls_established()
            else:
                last = event
        dialogue.data_to_send()
    assert last is not None or not closed
    if isinstance(last, BackendRefused):
        assert last.step in ("greeting", "starttls", "capability", "id", "login")
        assert last.detail.isascii()
        assert last.detail.isprintable()
        assert len(last.detail) <= 200
        shown = repr(last) + repr(login)
    elif isinstance(last, BackendLoggedIn):
        shown = repr(last.notes) + repr(login)
    else:
        shown = repr(login) + repr(dialogue)
    for form in FORMS[login.secret]:
        assert form not in shown


@given(LOGINS, BACKEND)
def test_nothing_secret_leaves_before_its_time(login: BackendLogin, backend: list[bytes]) -> None:
    """Nothing at all before a greeting of OK, and nothing but STARTTLS in clear where TLS is required."""
    dialogue = BackendDialogue(login)
    received = b""
    in_clear = login.starttls
    for data in backend:
        received += data
        if data:
            dialogue.receive_data(data)
        while (event := dialogue.next_event()) is not None:
            if isinstance(event, BackendStartTls):
                assert dialogue.data_to_send() in (b"", b"p1 STARTTLS\r\n")
                dialogue.tls_established()
                in_clear = False
        sent = dialogue.data_to_send()
        if in_clear:
            assert sent in (b"", b"p1 STARTTLS\r\n")
        if not received.upper().startswith(b"* OK"):
            assert sent == b""


ENDLESS = [b"x", b"\r", b"* OK x\n", b"* OK\r\n+", b"* OK\r\n* ID {60000}\r\n", b"* OK\r\n* 1 EXISTS\r\n"]


@given(st.sampled_from(ENDLESS), st.sampled_from([1, 100, 4096]))
def test_no_buffer_passes_its_bound(said: bytes, chunk_bytes: int) -> None:
    dialogue = BackendDialogue(BackendLogin("ann", SECRET), max_line_bytes=512)
    endless = said * (200_000 // len(said))
    for start in range(0, len(endless), chunk_bytes):
        dialogue.receive_data(endless[start : start + chunk_bytes])
        event = dialogue.next_event()
        assert len(dialogue._reader) <= 512 + chunk_bytes
        assert len(dialogue.data_to_send()) < 512
        if event is not None:
            break
    assert isinstance(event, BackendRefused)
    dialogue.receive_data(b"x" * 10_000)
    assert len(dialogue._reader) == 0


class Backend:
    """A backend that understands what it is sent, octet by octet as RFC 9051 reads, and tells whom it let in."""

    def __init__(self, offered: bytes) -> None:
        self._received = b""
        self._offered = offered
        self.credentials: tuple[bytes, bytes, bytes] | None = None

    def greeting(self) -> bytes:
        return b"* OK [CAPABILITY IMAP4rev1 " + self._offered + b"] .\r\n"

    def answer(self, sent: bytes) -> bytes:
        """The answer to what has come so far: a continuation request, or all that is due."""
        self._received += sent
        answers = b""
        while self._received:
            tag, command, rest = self._received.split(b" ", 2)
            if command == b"AUTHENTICATE":
                response, more, self._received = rest.partition(b"\r\n")
                assert more
                mechanism, initial, encoded = response.partition(b" ")
                assert mechanism == b"PLAIN"
                assert b"AUTH=PLAIN" in self._offered
                assert bool(initial) == (b"SASL-IR" in self._offered)
                if not initial:
                    if not self._received:
                        self._received = sent
                        return answers + b"+ \r\n"
                    encoded, _, self._received = self._received.partition(b"\r\n")
                actor, name, secret = b64decode(encoded, validate=True).split(b"\0")
                self.credentials = (actor, name, secret)
            else:
                arguments = self._strings(rest)
                if arguments is None:
                    return answers + b"+ go\r\n"
                if command == b"LOGIN":
                    name, secret = arguments
                    self.credentials = (b"", name, secret)
                else:
                    assert command == b"ID"
            answers += tag + b" OK [CAPABILITY IMAP4rev1] .\r\n"
        return answers

    def _strings(self, rest: bytes) -> list[bytes] | None:
        """Two strings and the line's end, perhaps in parentheses; None where a literal has yet to come."""
        strings, wrapped = [], rest.startswith(b"(")
        rest = rest[wrapped:]
        while True:
            if rest.startswith(b'"'):
                string, rest = self._quoted(rest[1:])
            else:
                header, _, rest = rest.partition(b"}\r\n")
                digits = header.removeprefix(b"{").removesuffix(b"+")
                size = int(digits)
                if header.endswith(b"+"):
                    assert b"LITERAL+" in self._offered or (b"LITERAL-" in self._offered and size <= 4096)
                elif not rest:
                    return None
                string, rest = rest[:size], rest[size:]
            strings.append(string)
            rest = rest[wrapped and len(strings) == 2 :]
            separator = b" " if len(strings) == 1 else b"\r\n"
            assert rest.startswith(separator)
            rest = rest[len(separator) :]
            if len(strings) == 2:
                self._received = rest
                return strings

    @staticmethod
    def _quoted(rest: bytes) -> tuple[bytes, bytes]:
        string, position = bytearray(), 0
        while (octet := rest[position]) != ord('"'):
            if octet == ord("\\"):
                position += 1
                assert rest[position] in b'"\\'
            assert rest[position] not in b"\r\n\0"
            string.append(rest[position])
            position += 1
        return bytes(string), rest[position + 1 :]


SAYABLE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
SECRETS = st.lists(
    st.sampled_from([b'"', b"\\", b"\r\n", b"{3}\r\n", b" ", b"p2 ", b"\xff", b"x" * 900])
    | st.binary(min_size=1, max_size=9),
    min_size=1,
    max_size=9,
).map(lambda parts: b"".join(parts).replace(b"\0", b"0"))


@given(
    SAYABLE,
    SECRETS | st.just(b"\xfe" * 4097),
    st.just("") | SAYABLE,
    st.sets(st.sampled_from([b"AUTH=PLAIN", b"SASL-IR", b"LITERAL+", b"LITERAL-", b"LOGINDISABLED"])),
    st.sampled_from([(), (("name", 'po"rt\\er'),)]),
)
def test_a_backend_hears_exactly_these_credentials(
    name: str, secret: bytes, actor: str, offered: set[bytes], fields: tuple[tuple[str, str], ...]
) -> None:
    login = BackendLogin(name, secret, authorization_identity=actor, id_fields=fields)
    dialogue = BackendDialogue(login)
    backend = Backend(b" ".join(sorted(offered)))
    dialogue.receive_data(backend.greeting())
    event = dialogue.next_event()
    turns = 0
    while event is None:
        turns += 1
        assert turns <= 4, "more round trips than any login needs"
        dialogue.receive_data(backend.answer(dialogue.data_to_send()))
        event = dialogue.next_event()
    if b"AUTH=PLAIN" not in offered and (actor or b"LOGINDISABLED" in offered):
        assert isinstance(event, BackendRefused)
        assert event.outcome is Outcome.UNAVAILABLE
        assert backend.credentials is None
    else:
        assert event == BackendLoggedIn((b"IMAP4rev1",), (), b"")
        assert backend.credentials == (actor.encode(), name.encode(), secret)


def end(login: BackendLogin, *said: bytes) -> DialogueEvent | None:
    """How a login without ID ends at a backend that greets and says this."""
    dialogue = BackendDialogue(login)
    dialogue.receive_data(b"* OK [CAPABILITY IMAP4rev1] .\r\n" + b"".join(said))
    return dialogue.next_event()


ANN = BackendLogin("ann", b"s3cret")
DONE = b"p1 OK [CAPABILITY A] .\r\n"


def test_notes_are_bounded() -> None:
    event = end(ANN, b"* OK [ALERT] " + b"x" * 2000 + b"\r\n", b"* OK [ALERT] y\r\n" * 20, DONE)
    assert isinstance(event, BackendLoggedIn)
    assert event.notes == (b"* OK [ALERT] " + b"x" * 1009 + b"\r\n", *[b"* OK [ALERT] y\r\n"] * 7)


def test_a_note_does_not_tell_the_secret() -> None:
    event = end(ANN, b"* OK [ALERT] master has s3cret\r\n", DONE)
    assert isinstance(event, BackendLoggedIn)
    assert event.notes == (b"* OK [ALERT] master has ***\r\n",)


@pytest.mark.parametrize("secret", [b"x***y", b'pa"ss', b"a?b", b"\\", b"ab"])
def test_no_echo_of_any_secret(secret: bytes) -> None:
    quoted = secret.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    encoded = b64encode(secret).rstrip(b"=")
    event = end(BackendLogin("ann", secret), b"p1 BAD x" + secret + b"y " + quoted + b" a\x01b " + encoded + b"\r\n")
    assert isinstance(event, BackendRefused)
    said = event.detail.removeprefix("login not understood: ")
    assert secret.decode() not in said
    assert quoted.decode() not in said
    assert encoded.decode() not in said


def test_no_secret_in_any_repr() -> None:
    assert "s3cret" not in repr(ANN) + repr(BackendDialogue(ANN))
