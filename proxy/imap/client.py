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

from collections.abc import Generator
from dataclasses import dataclass

from proxy.imap import capability
from proxy.imap.client_commands import PRINTABLE, id_command
from proxy.imap.client_login import BackendLogin, LoginCommand, Refusal, check_sayable, choose_command, without_secret
from proxy.imap.events import BackendLoggedIn, BackendRefused, BackendStartTls, ClientEvent
from proxy.imap.grammar import LiteralHeader, split_literal
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


_ONE_LINE = LoginCommand([])  # what a command is that expects no continuation request


@dataclass(frozen=True, slots=True)
class BackendAnswered:
    """The last event of a probe: what the backend told before any login. LOGOUT is in data_to_send()."""

    capability: tuple[bytes, ...]
    greeting: bytes  # its text, without the response code
    identification: bytes  # what it answered to ID (RFC 2971 §3.2); b"": it was not asked, or said nothing


DialogueEvent = ClientEvent | BackendAnswered


class BackendDialogue:
    """One login at one backend. The last event is BackendLoggedIn or BackendRefused; octets behind it are not taken."""

    def __init__(self, login: BackendLogin, *, max_line_bytes: int = 8192) -> None:
        # Where it stands: greeting, starttls, capability, id, login. A login stands at the last two from when its
        # command is due, not before: whoever loses it there cannot know whether it has come to be.
        self.step = "greeting"
        self._step_before_login = ""  # as long as its command is due and has not been handed out
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
        self._greeting_text = b""
        self._identification = b""
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

    def next_event(self) -> DialogueEvent | None:
        """What happened, None if octets are needed or the last event was told. Raises nothing."""
        if self._finished:
            return None
        try:
            return next(self._dialogue)
        except StopIteration as stop:
            event: DialogueEvent = stop.value
        except Refusal as refusal:
            event = self._refused(refusal.outcome, refusal.detail)
        except LineTooLong:
            event = self._refused(Outcome.UNAVAILABLE, f"a line is longer than {self._max_line_bytes} octets")
        except EndOfData:
            event = self._refused(Outcome.UNAVAILABLE, self._how_it_closed(), closed=True)
        self._finished = True
        self._reader.rest()
        return event

    def data_to_send(self) -> bytes:
        """What is due to the backend; each octet is handed out once."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        self._step_before_login = ""
        return data

    def tls_established(self) -> None:
        """The handshake that BackendStartTls asked for is done and verified; octets are decrypted from now on."""
        assert self.step == "starttls", "no BackendStartTls was told"
        self._plaintext_left = len(self._reader) > 0
        self._secure = True

    def _refused(self, outcome: Outcome, detail: str, *, closed: bool = False) -> BackendRefused:
        self._outgoing.clear()
        return BackendRefused(outcome, self._stands(), detail[:MAX_DETAIL_CHARS], closed)

    def _stands(self) -> str:
        return self._step_before_login or self.step

    def _how_it_closed(self) -> str:
        detail = f"the backend closed the connection at step {self._stands()}"
        if self._stands() == "login" and self._login.mechanism:
            # Dovecot closes on more than 8192 octets of base64 and CR, by whichever way they come (seen with 2.3.19).
            detail += f", sent a token of {len(self._login.secret)} octets"
        return detail

    # --- the story, top to bottom ---

    def _converse(self) -> Generator[DialogueEvent | None, None, DialogueEvent]:
        login = self._login
        self.step = "login"
        check_sayable(login)
        yield from self._open()
        asked = b"" if self._listed else self._send(b"CAPABILITY")
        identified = self._send(id_command(login.id_fields)) if login.id_fields else b""
        if asked:
            yield from self._capability(asked)
        before, self.step = self.step, "login"
        command = choose_command(login, self._offered())
        first, *rest = command.pieces
        tag = b"" if rest else self._send_login(first, before)  # what waits for a continuation request leaves below
        if identified:
            self.step = "id" if tag else "capability"
            yield from self._answer(identified)  # RFC 2971 §3: informational; NO and BAD change nothing
        self.step = "login"
        self._listed = ()  # what counts from here on is what the backend can do for us once logged in
        word, text = yield from self._answer(tag or self._send_login(first, before), command)
        if word != b"OK":
            raise self._login_refusal(word, text)
        if not self._listed:
            # It is this user's session that answers, or does not: the step stays.
            yield from self._answer(self._send(b"CAPABILITY"))  # a NO leaves the list empty: it did not say
        return BackendLoggedIn(self._listed, tuple(self._notes), self._reader.rest())

    def _open(self) -> Generator[DialogueEvent | None, None, None]:
        """The greeting, and TLS where it is required: what has to come before any other command."""
        yield from self._greeting()
        if self._login.starttls:
            yield from self._start_tls()

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
        self._greeting_text = text
        self._take_code(response, text)

    def _start_tls(self) -> Generator[DialogueEvent | None, None, None]:
        """STARTTLS, the handshake by the driver, and forgetting what was said in clear (RFC 9051 §6.2.1)."""
        self.step = "starttls"
        # Without a list STARTTLS is sent unasked: it is required, so its NO or BAD ends the login all the same.
        if self._listed and b"STARTTLS" not in self._offered():
            raise Refusal(Outcome.UNAVAILABLE, "the backend offers no STARTTLS")
        word, text = yield from self._answer(self._send(b"STARTTLS"))
        if word != b"OK":
            raise self._refusal("STARTTLS refused", word + b" " + text)
        if not len(self._reader):
            yield BackendStartTls()
        while not self._secure:
            if len(self._reader):
                raise Refusal(Outcome.UNAVAILABLE, "octets in clear behind the OK to STARTTLS")
            if self._closed:
                raise EndOfData
            yield None
        if self._plaintext_left:
            raise Refusal(Outcome.UNAVAILABLE, "octets in clear behind the OK to STARTTLS")
        self._listed = ()
        self._identification = b""
        self._notes.clear()

    def _capability(self, tag: bytes) -> Generator[None, None, None]:
        """The answer to CAPABILITY before the login, without which nothing secret is sent (LOGINDISABLED)."""
        self.step = "capability"
        word, text = yield from self._answer(tag)
        if word != b"OK" or not self._listed:
            raise self._refusal("no capability list", word + b" " + text)

    # --- commands and responses ---

    def _send(self, command: bytes) -> bytes:
        """Queue a command under a tag of our own and return the tag."""
        self._commands += 1
        tag = b"p%d" % self._commands
        self._outgoing += b"%s %s\r\n" % (tag, command)
        return tag

    def _send_login(self, command: bytes, step_before: str) -> bytes:
        self._step_before_login = step_before
        return self._send(command)

    def _line(self) -> Generator[None, None, bytes]:
        if self._lines == MAX_LINES:
            raise Refusal(Outcome.UNAVAILABLE, f"more than {MAX_LINES} lines before the login was complete")
        line = yield from self._reader.line(self._max_line_bytes)
        self._lines += 1
        return line

    def _answer(self, tag: bytes, command: LoginCommand = _ONE_LINE) -> Generator[None, None, tuple[bytes, bytes]]:
        """The tagged response to the command `tag`: its status word in upper case, and its text.

        Args:
            command: Its first piece is sent; the others follow, one for each continuation request (RFC 9051 §7.6).
        """
        waiting = command.pieces[1:]
        failed = False
        while True:
            line = yield from self._line()
            if line.startswith(b"* "):
                yield from self._untagged(line)
            elif line.startswith(b"+"):
                if waiting:
                    self._outgoing += waiting.pop(0) + b"\r\n"
                elif command.failure_answer is not None and not failed:
                    failed = True
                    self._outgoing += command.failure_answer + b"\r\n"
                else:
                    raise Refusal(Outcome.UNAVAILABLE, "a continuation request for a command that expects none")
            else:
                found, _, response = line.partition(b" ")
                word, text = _status(response)
                if found != tag or word not in (b"OK", b"NO", b"BAD"):
                    raise self._refusal("a line that answers nothing", line)
                if word == b"OK" and (waiting or failed):
                    told = "told to have failed" if failed else "not complete"
                    raise Refusal(Outcome.UNAVAILABLE, f"an OK to a command that was {told}")
                self._take_code(response, text)
                # That the login failed the mechanism has said already, whatever the backend thinks of our answer to it.
                return b"NO" if failed else word, text

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
        elif word == b"ID":
            self._identification = text

    def _skip_literals(self, literal: LiteralHeader | None) -> Generator[None, None, None]:
        """The rest of a response that has literals in it (RFC 9051 §4.3)."""
        while literal:
            self._literal_bytes += literal.size
            if self._literal_bytes > MAX_RESPONSE_LITERAL_BYTES:
                raise Refusal(Outcome.UNAVAILABLE, f"literals of more than {MAX_RESPONSE_LITERAL_BYTES} octets")
            yield from self._reader.skip(literal.size)
            _, literal = split_literal((yield from self._line()))

    def _take_code(self, response: bytes, text: bytes) -> None:
        """Use the response code of a status response: a capability list, or an ALERT for the client."""
        name, argument = _code(text)
        if name == b"CAPABILITY":
            self._listed = capability.parse(argument)
        elif name == b"ALERT" and len(self._notes) < MAX_NOTES and b"\r" not in response and b"\0" not in response:
            # RFC 9051 §7.1: the client must show it to its user. A tagged one becomes untagged.
            note = b"* " + without_secret(response, self._login)
            self._notes.append(note[: MAX_NOTE_BYTES - 2] + b"\r\n")

    def _offered(self) -> frozenset[bytes]:
        return frozenset(name.upper() for name in self._listed)

    # --- refusals ---

    def _login_refusal(self, word: bytes, text: bytes) -> Refusal:
        """What a tagged NO or BAD to the login means."""
        code = _code(text)[0]
        said = word + b" " + text
        if word == b"BAD":
            return self._refusal("login not understood", said)
        prefix = "a referral, which is not followed" if code == b"REFERRAL" else "login refused"
        return self._refusal(prefix, said, _REFUSALS.get(code, Outcome.AUTHENTICATION_FAILED))

    def _refusal(self, prefix: str, said: bytes, outcome: Outcome = Outcome.UNAVAILABLE) -> Refusal:
        """A refusal whose detail repeats what the backend said, made fit for a log."""
        text = without_secret(said, self._login).translate(PRINTABLE)
        secret = self._login.secret
        if secret and secret in text:  # the stars or the question marks themselves have spelled it
            text = b"***"
        return Refusal(outcome, f"{prefix}: {text.decode('ascii')}")


class BackendProbe(BackendDialogue):
    """The same without a login: up to the capability list and ID, then LOGOUT. Its last event is BackendAnswered.

    `login` says which login would follow: a backend that offers no way for it refuses the probe. Its secret is empty.
    """

    def _converse(self) -> Generator[DialogueEvent | None, None, DialogueEvent]:
        yield from self._open()
        if not self._listed:
            yield from self._capability(self._send(b"CAPABILITY"))
        self.step = "login"
        choose_command(self._login, self._offered())
        if self._login.id_fields:
            self.step = "id"
            yield from self._answer(self._send(id_command(self._login.id_fields)))
        self._send(b"LOGOUT")
        return BackendAnswered(self._listed, _without_code(self._greeting_text), self._identification)


def _status(response: bytes) -> tuple[bytes, bytes]:
    """A response's first word in upper case, and what follows it."""
    word, _, text = response.partition(b" ")
    return word.upper(), text


def _without_code(text: bytes) -> bytes:
    """The part of a status response's text that is for people."""
    return text.partition(b"]")[2].strip() if text.startswith(b"[") else text


def _code(text: bytes) -> tuple[bytes, bytes]:
    """The response code at the start of a status response's text, and its argument; b"" where there is none."""
    if not text.startswith(b"["):
        return b"", b""
    name, _, argument = text[1:].partition(b"]")[0].partition(b" ")
    return name.upper(), argument
