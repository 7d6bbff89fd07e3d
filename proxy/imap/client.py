"""The proxy's own login at a backend: greeting, STARTTLS, CAPABILITY, ID, LOGIN or AUTHENTICATE (RFC 9051 §6.1, §6.2).

The dialogue is one generator that reads from top to bottom. It yields None where it needs octets and one event
where the driver has to do the TLS handshake; what it returns, or the refusal that it raises, is the last event.

A round trip is what a login waits for, so commands leave together where no answer decides the next one: the
usual login is the backend's greeting with its CAPABILITY, one flight (ID if wanted, then LOGIN), one answer.
A command that waits for a continuation request never leaves together with another.

What must hold, and would be broken by reordering: nothing secret enters `_outgoing` before the greeting and,
where STARTTLS is required, before `tls_established()`; nothing that was learnt in clear survives STARTTLS; every
bound (line, lines, literals, notes) counts over the whole dialogue; a refusal throws away what was not sent yet.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from proxy.imap import capability
from proxy.imap.client_commands import (
    PRINTABLE,
    authenticate_plain,
    id_command,
    is_sayable,
    login_command,
    plain_response,
)
from proxy.imap.events import BackendLoggedIn, BackendRefused, BackendStartTls, ClientEvent
from proxy.imap.grammar import LiteralHeader, is_quotable, quote, split_literal
from proxy.imap.reader import EndOfData, LineTooLong, Reader
from proxy.outcome import Outcome

MAX_LINES = 200  # from one backend before it has logged us in
MAX_RESPONSE_LITERAL_BYTES = 65536  # in sum, skipped
MAX_NOTES = 8
MAX_NOTE_BYTES = 1024
MAX_DETAIL_CHARS = 200

# What a tagged NO means for the client, by its response code (RFC 5530 §3). A code that is not listed, and
# none at all, is a wrong password. PRIVACYREQUIRED and CLIENTBUG are said to the proxy, not to its client.
_REFUSALS = {
    b"AUTHORIZATIONFAILED": Outcome.AUTHORIZATION_FAILED,
    b"EXPIRED": Outcome.EXPIRED,
    b"LIMIT": Outcome.LIMIT,
    b"INUSE": Outcome.IN_USE,
    b"CONTACTADMIN": Outcome.CONTACT_ADMIN,
    b"UNAVAILABLE": Outcome.UNAVAILABLE,
    b"SERVERBUG": Outcome.UNAVAILABLE,
    b"CORRUPTION": Outcome.UNAVAILABLE,
    b"PRIVACYREQUIRED": Outcome.UNAVAILABLE,
    b"CLIENTBUG": Outcome.UNAVAILABLE,
    b"REFERRAL": Outcome.UNAVAILABLE,  # RFC 2221 §4.1
}


@dataclass(frozen=True, slots=True)
class BackendLogin:
    """What to say at a backend.

    Args:
        authentication_identity: Whose credentials these are.
        secret: The password's octets.
        authorization_identity: Whom to act as; if not empty, the login is AUTHENTICATE PLAIN.
        starttls: TLS is required on this connection in clear; a backend without it is a failure.
        id_fields: If not empty, an ID command with these pairs goes before the login (RFC 2971).
    """

    authentication_identity: str
    secret: bytes = field(repr=False)
    authorization_identity: str = ""
    starttls: bool = False
    id_fields: tuple[tuple[str, str], ...] = ()


class BackendDialogue:
    """One login at one backend. The last event is BackendLoggedIn or BackendRefused; octets behind it are not taken."""

    def __init__(self, login: BackendLogin, *, max_line_bytes: int = 8192) -> None:
        self.step = "greeting"  # greeting, starttls, capability, id, login: where it stands
        self._login = login
        self._max_line_bytes = max_line_bytes
        self._reader = Reader()
        self._outgoing = bytearray()
        self._closed = False
        self._secure = False
        self._plaintext_left = False
        self._finished = False
        self._commands = 0
        self._lines = 0
        self._literal_bytes = 0
        self._listed: tuple[bytes, ...] = ()  # the last capability list that counts; (): the backend did not say
        self._notes: list[bytes] = []
        self._dialogue = self._converse()

    def receive_data(self, data: bytes) -> None:
        """Add octets from the backend; b"" means that it closed the connection."""
        if self._finished:
            return
        if not data:
            self._closed = True
        self._reader.receive_data(data)

    def next_event(self) -> ClientEvent | None:
        """What happened, None if octets are needed or the last event was told. Raises nothing."""
        if self._finished:
            return None
        try:
            return next(self._dialogue)
        except StopIteration as stop:
            event: ClientEvent = stop.value
        except _Refusal as refusal:
            event = self._refused(refusal.outcome, refusal.detail)
        except LineTooLong:
            event = self._refused(Outcome.UNAVAILABLE, f"a line is longer than {self._max_line_bytes} octets")
        except EndOfData:
            event = self._refused(Outcome.UNAVAILABLE, f"the backend closed the connection at step {self.step}")
        self._finished = True
        self._reader.rest()
        return event

    def data_to_send(self) -> bytes:
        """What is due to the backend; each octet is handed out once."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def tls_established(self) -> None:
        """The handshake that BackendStartTls asked for is done and verified; octets are decrypted from now on."""
        assert self.step == "starttls", "no BackendStartTls was told"
        self._plaintext_left = len(self._reader) > 0
        self._secure = True

    def _refused(self, outcome: Outcome, detail: str) -> BackendRefused:
        self._outgoing.clear()
        return BackendRefused(outcome, self.step, detail[:MAX_DETAIL_CHARS])

    # --- the story, top to bottom ---

    def _converse(self) -> Generator[ClientEvent | None, None, ClientEvent]:
        login = self._login
        self._refuse_unsayable()
        yield from self._greeting()
        if login.starttls:
            yield from self._start_tls()
        asked = b"" if self._listed else self._send(b"CAPABILITY")
        identified = self._send(id_command(login.id_fields)) if login.id_fields else b""
        if asked:
            yield from self._capability(asked)
        first, *rest = self._login_command()
        tag = b"" if rest else self._send(first)  # what waits for a continuation request leaves alone, below
        if identified:
            self.step = "id"
            yield from self._answer(identified)  # RFC 2971 §3: informational; NO and BAD change nothing
        self.step = "login"
        self._listed = ()  # what counts from here on is what the backend can do for us once logged in
        word, text = yield from self._answer(tag or self._send(first), rest)
        if word != b"OK":
            raise self._login_refusal(word, text)
        if not self._listed:
            self.step = "capability"
            yield from self._answer(self._send(b"CAPABILITY"))  # a NO leaves the list empty: it did not say
        return BackendLoggedIn(self._listed, tuple(self._notes), self._reader.rest())

    def _refuse_unsayable(self) -> None:
        """Refuse what no backend may be told, before anything is sent.

        An empty name or secret is no PLAIN message (RFC 4616 §2), and a backend that binds to a directory might
        take an empty password for an anonymous login (RFC 4513 §5.1.2).
        """
        login = self._login
        self.step = "login"
        if not (is_sayable(login.authentication_identity) and is_sayable(login.authorization_identity)):
            raise _Refusal(Outcome.AUTHENTICATION_FAILED, "a name with CR, LF, NUL or octets that are no UTF-8")
        if not login.authentication_identity or not login.secret or b"\0" in login.secret:
            raise _Refusal(Outcome.AUTHENTICATION_FAILED, "an empty name, an empty secret or one with NUL")

    def _greeting(self) -> Generator[None, None, None]:
        """The first line: only OK goes on. PREAUTH would be somebody else's session (RFC 9051 §7.1)."""
        self.step = "greeting"
        line = yield from self._line()
        star, _, response = line.partition(b" ")
        word, text = _status(response)
        if star != b"*" or word not in (b"OK", b"PREAUTH", b"BYE"):
            raise self._refusal("no IMAP greeting", line)
        if word != b"OK":
            raise self._refusal("a greeting that refuses", line)
        self._take_code(response, text)

    def _start_tls(self) -> Generator[ClientEvent | None, None, None]:
        """STARTTLS, the handshake by the driver, and forgetting what was said in clear (RFC 9051 §6.2.1)."""
        self.step = "starttls"
        # Without a list STARTTLS is sent unasked: it is required, so its NO or BAD ends the login all the same.
        if self._listed and b"STARTTLS" not in self._offered():
            raise _Refusal(Outcome.UNAVAILABLE, "the backend offers no STARTTLS")
        word, text = yield from self._answer(self._send(b"STARTTLS"))
        if word != b"OK":
            raise self._refusal("STARTTLS refused", word + b" " + text)
        if not len(self._reader):
            yield BackendStartTls()
        while not self._secure:
            if len(self._reader):
                raise _Refusal(Outcome.UNAVAILABLE, "octets in clear behind the OK to STARTTLS")
            if self._closed:
                raise EndOfData
            yield None
        if self._plaintext_left:
            raise _Refusal(Outcome.UNAVAILABLE, "octets in clear behind the OK to STARTTLS")
        self._listed = ()
        self._notes.clear()

    def _capability(self, tag: bytes) -> Generator[None, None, None]:
        """The answer to CAPABILITY before the login, without which nothing secret is sent (LOGINDISABLED)."""
        self.step = "capability"
        word, text = yield from self._answer(tag)
        if word != b"OK" or not self._listed:
            raise self._refusal("no capability list", word + b" " + text)

    def _login_command(self) -> list[bytes]:
        """The login without its tag, in the pieces that each wait for a continuation request but the first."""
        self.step = "login"
        login, offered = self._login, self._offered()
        name = login.authentication_identity.encode()
        plain = b"AUTH=PLAIN" in offered
        disabled = b"LOGINDISABLED" in offered
        only_plain = bool(login.authorization_identity) or disabled
        if only_plain and not plain:
            reason = ", and has LOGINDISABLED" if disabled else ""
            raise _Refusal(Outcome.UNAVAILABLE, f"the backend offers no AUTH=PLAIN{reason}")
        if plain and (only_plain or not (is_quotable(name) and is_quotable(login.secret))):
            return authenticate_plain(self._plain_response(), initial_response=b"SASL-IR" in offered)
        return login_command(name, login.secret, offered)

    def _plain_response(self) -> bytes:
        login = self._login
        return plain_response(login.authorization_identity, login.authentication_identity, login.secret)

    # --- commands and responses ---

    def _send(self, command: bytes) -> bytes:
        """Queue a command under a tag of our own and return the tag."""
        self._commands += 1
        tag = b"p%d" % self._commands
        self._outgoing += b"%s %s\r\n" % (tag, command)
        return tag

    def _line(self) -> Generator[None, None, bytes]:
        if self._lines == MAX_LINES:
            raise _Refusal(Outcome.UNAVAILABLE, f"more than {MAX_LINES} lines before the login was complete")
        line = yield from self._reader.line(self._max_line_bytes)
        self._lines += 1
        return line

    def _answer(self, tag: bytes, pieces: Sequence[bytes] = ()) -> Generator[None, None, tuple[bytes, bytes]]:
        """The tagged response to the command `tag`: its status word in upper case, and its text.

        Args:
            pieces: What continues the command, one for each continuation request (RFC 9051 §7.6).
        """
        waiting = iter(pieces)
        while True:
            line = yield from self._line()
            if line.startswith(b"* "):
                yield from self._untagged(line)
            elif line.startswith(b"+"):
                piece = next(waiting, None)
                if piece is None:
                    raise _Refusal(Outcome.UNAVAILABLE, "a continuation request for a command that expects none")
                self._outgoing += piece + b"\r\n"
            else:
                found, _, response = line.partition(b" ")
                word, text = _status(response)
                if found != tag or word not in (b"OK", b"NO", b"BAD"):
                    raise self._refusal("a line that answers nothing", line)
                if word == b"OK" and next(waiting, None) is not None:
                    raise _Refusal(Outcome.UNAVAILABLE, "an OK to a command that was not complete")
                self._take_code(response, text)
                return word, text

    def _untagged(self, line: bytes) -> Generator[None, None, None]:
        """Keep what is of use, swallow the rest, stop at BYE."""
        response = line[2:]
        word, text = _status(response)
        if word in (b"OK", b"NO", b"BAD"):  # free text, which may end like a literal and is none
            self._take_code(response, text)
        elif word == b"BYE":
            raise self._refusal("said BYE" if _code(text)[0] != b"REFERRAL" else "said BYE with a referral", text)
        elif literal := split_literal(text)[1]:
            yield from self._skip_literals(literal)
        elif word == b"CAPABILITY":
            self._listed = capability.parse(text)

    def _skip_literals(self, literal: LiteralHeader | None) -> Generator[None, None, None]:
        """The rest of a response that has literals in it (RFC 9051 §4.3)."""
        while literal:
            self._literal_bytes += literal.size
            if self._literal_bytes > MAX_RESPONSE_LITERAL_BYTES:
                raise _Refusal(Outcome.UNAVAILABLE, f"literals of more than {MAX_RESPONSE_LITERAL_BYTES} octets")
            yield from self._reader.skip(literal.size)
            _, literal = split_literal((yield from self._line()))

    def _take_code(self, response: bytes, text: bytes) -> None:
        """Use the response code of a status response: a capability list, or an ALERT for the client."""
        name, argument = _code(text)
        if name == b"CAPABILITY":
            self._listed = capability.parse(argument)
        elif name == b"ALERT" and len(self._notes) < MAX_NOTES and b"\r" not in response and b"\0" not in response:
            # RFC 9051 §7.1: the client must show it to its user. A tagged one becomes untagged.
            note = b"* " + self._without_secret(response)
            self._notes.append(note[: MAX_NOTE_BYTES - 2] + b"\r\n")

    def _offered(self) -> frozenset[bytes]:
        return frozenset(name.upper() for name in self._listed)

    # --- refusals ---

    def _login_refusal(self, word: bytes, text: bytes) -> _Refusal:
        """What a tagged NO or BAD to the login means."""
        code = _code(text)[0]
        said = word + b" " + text
        if word == b"BAD":
            return self._refusal("login not understood", said)
        prefix = "a referral, which is not followed" if code == b"REFERRAL" else "login refused"
        return self._refusal(prefix, said, _REFUSALS.get(code, Outcome.AUTHENTICATION_FAILED))

    def _refusal(self, prefix: str, said: bytes, outcome: Outcome = Outcome.UNAVAILABLE) -> _Refusal:
        """A refusal whose detail repeats what the backend said, made fit for a log."""
        text = self._without_secret(said).translate(PRINTABLE)
        if self._login.secret in text:  # the stars or the question marks themselves have spelled it
            text = b"***"
        return _Refusal(outcome, f"{prefix}: {text.decode('ascii')}")

    def _without_secret(self, said: bytes) -> bytes:
        """Foreign text with the secret, in each form in which it may have been sent, replaced by `***`."""
        secret = self._login.secret
        encoded = b64encode(secret)
        forms = {secret, quote(secret)[1:-1], encoded, encoded.rstrip(b"="), self._plain_response()}
        for form in sorted(forms, key=len, reverse=True):
            said = said.replace(form, b"***")
        return said


class _Refusal(Exception):
    """Ends the dialogue with a BackendRefused; `detail` is printable ASCII without the secret."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(outcome, detail)
        self.outcome = outcome
        self.detail = detail


def _status(response: bytes) -> tuple[bytes, bytes]:
    """A response's first word in upper case, and what follows it."""
    word, _, text = response.partition(b" ")
    return word.upper(), text


def _code(text: bytes) -> tuple[bytes, bytes]:
    """The response code at the start of a status response's text, and its argument; b"" where there is none."""
    if not text.startswith(b"["):
        return b"", b""
    name, _, argument = text[1:].partition(b"]")[0].partition(b" ")
    return name.upper(), argument
