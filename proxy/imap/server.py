"""The dialogue with a mail client until it is logged in: the server side of IMAP's not authenticated state.

Theory of operation. One generator reads command after command; it yields None where it needs more octets and an event
where it needs the world. Everything else it answers by itself into `_out`. Which command is legal is written here and
nowhere else.

A command is judged before it is complete. Its first line says whether it will be refused whatever its arguments are:
then no continuation request goes out, and a client that waits for one has its answer at once. A non-synchronizing
literal has been sent already, so it is consumed, because the octets of a refused literal must never be read as a
command. Where that cannot be done within the bounds, the connection ends.

While an offer is pending, or an account is wanted, nothing is parsed. After accept() what the client sent early belongs
to the backend; after reject() it is parsed as commands of a client that is not logged in (RFC 9051 §5.5).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from proxy.imap import responses
from proxy.imap.capability import before_login
from proxy.imap.command_text import BAD_CHARACTER, NO_LITERAL, CommandText
from proxy.imap.events import (
    ExchangeBrokenOff,
    Gone,
    LoggedOut,
    LoginOffered,
    ProtocolViolation,
    ServerEvent,
    StartTls,
)
from proxy.imap.exchange import Exchange
from proxy.imap.grammar import Arguments, BadSyntax, decode_base64, is_tag, read_id, split_literal
from proxy.imap.reader import EndOfData, Reader
from proxy.imap.strangers import DEFAULT_BOUNDS, DialogueBounds, ForeignProtocol, TooBig, has_bad_character, is_http
from proxy.model import Account, AccountWanted, Credentials, MalformedResponse, Mechanism
from proxy.outcome import FAREWELLS, REPLIES, Outcome

_COMMANDS = frozenset({b"CAPABILITY", b"NOOP", b"LOGOUT", b"ID", b"STARTTLS", b"LOGIN", b"AUTHENTICATE"})
_TAKE_STRINGS = frozenset({b"ID", b"LOGIN"})  # only their arguments can be literals
_NEED_PRIVACY = frozenset({b"LOGIN", b"AUTHENTICATE"})

_NO_COMMAND = b"BAD Invalid tag or missing command."
_NOT_NOW = b"BAD Unknown command, or not allowed before login."
_BYE_TOO_BIG = b"* BYE [TOOBIG] Literal too large.\r\n"
_NO_LOGIN = b"NO [CANNOT] Passwords are not accepted; use AUTHENTICATE."
_UNKNOWN_MECHANISM = b"NO [CANNOT] Unsupported authentication mechanism."


@dataclass(frozen=True, slots=True)
class _Command:
    tag: bytes
    name: bytes
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class _Offer:
    tag: bytes
    mechanism: Mechanism | None = field(repr=False)  # None: the LOGIN command


class PreAuthDialogue:
    """Bytes in, events out, from the greeting to the tagged OK of a login.

    Call next_event() until it returns None, send data_to_send(), read, call receive_data(), and so on. Once a login was
    accepted, or StartTls, LoggedOut or Gone were returned, it parses nothing more.

    `client_id` is what the client says of itself: the fields of its last ID (RFC 2971), names in lower case. Whether
    any of it is to be believed is not known here.
    """

    def __init__(
        self,
        *,
        secure: bool,
        starttls: bool,
        mechanisms: Mapping[str, Callable[[], Mechanism]],
        login: bool = True,
        greeting: bool = True,
        bounds: DialogueBounds = DEFAULT_BOUNDS,
    ) -> None:
        """Begin with a greeting, unless TLS has just been started.

        Args:
            secure: TLS protects the connection, or a trusted network does; without, no login.
            starttls: This listener offers STARTTLS.
            mechanisms: What makes a new exchange of each mechanism, by its name in upper case.
            login: Whether the command LOGIN is of any use: somebody knows passwords.
        """
        self._secure = secure
        self._login_enabled = login
        self._starttls = starttls
        self._mechanisms = mechanisms
        self._bounds = bounds
        self._capability = before_login(secure=secure, starttls=starttls, login=login, mechanisms=mechanisms)
        self.client_id: Mapping[str, str] = {}
        self._reader = Reader()
        self._out = bytearray(responses.greeting(self._capability) if greeting else b"")
        self._text = CommandText(self._reader, self._out, bounds)
        self._commands = self._bad_commands = 0
        self._asked_capability = False
        self._offer: _Offer | None = None  # of the last LOGIN or AUTHENTICATE
        self._exchange: Exchange | None = None  # of the last AUTHENTICATE
        self._pending = False  # the last event has to be answered
        self._refusal = b""  # of the last login, while its mechanism's failure awaits the client's answer
        self._violation: ProtocolViolation | None = None
        self._parser = self._run()

    def after_tls(self, mechanisms: Mapping[str, Callable[[], Mechanism]]) -> PreAuthDialogue:
        """The dialogue that goes on inside TLS: a new object, nothing said in clear survives, no second greeting.

        Args:
            mechanisms: Those of the connection as it is now; TLS may have told who the client is.
        Source: RFC 9051 §6.2.1.
        """
        return PreAuthDialogue(
            secure=True,
            starttls=self._starttls,
            mechanisms=mechanisms,
            login=self._login_enabled,
            greeting=False,
            bounds=self._bounds,
        )

    def receive_data(self, data: bytes) -> None:
        """Take what the client sent; b"" means that it is gone."""
        self._reader.receive_data(data)

    def next_event(self) -> ServerEvent | None:
        """What happened next; None: more octets are needed, or an answer to the last event.

        Raises:
            ProtocolViolation: Send what is due and close.
        """
        if self._violation is not None:
            raise self._violation
        if self._pending:
            return None
        event = next(self._parser, None)
        self._pending = isinstance(event, (LoginOffered, AccountWanted))
        return event

    def data_to_send(self) -> bytes:
        """What is due to the client; it is handed out once."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def accept(self, capability: tuple[bytes, ...], notes: tuple[bytes, ...] = ()) -> None:
        """Say OK to the pending login; the dialogue is over.

        Args:
            capability: What the session can do from now on; () if that is not known.
            notes: Untagged lines of the backend, each with its CRLF, for the client to see first.
        """
        tag = self._answer_offer().tag
        self._parser.close()
        self._out += b"".join(notes)
        reply = b"OK Logged in."
        if capability and self._asked_capability:
            # It has shown that it reads the untagged response; not every client knows the code (RFC 9051 §7.1).
            self._out += responses.capabilities(capability)
        elif capability:
            reply = b"OK [CAPABILITY %b] Logged in." % b" ".join(capability)
        self._out += responses.tagged(tag, reply)

    def supply(self, account: Account) -> None:
        """Answer AccountWanted; the exchange goes on."""
        self._answer_offer()
        assert self._exchange is not None
        self._exchange.account = account

    def reject(self, outcome: Outcome, *, last: bool = False) -> None:
        """Refuse the pending login, or the account that is wanted; the dialogue goes on.

        Args:
            last: The connection ends behind it, so the client is told by the tagged response alone.
        """
        offer = self._answer_offer()
        refusal = responses.tagged(offer.tag, bytes(REPLIES[outcome]))
        challenge = offer.mechanism.failure(outcome) if offer.mechanism is not None and not last else None
        if challenge is None:
            self._out += refusal
        else:
            self._out += responses.continuation(challenge.data)
            self._refusal = refusal

    @property
    def trailing_data(self) -> bytes:
        """What was received and not parsed.

        After accept() it is owed to the backend. After StartTls there must be none: octets in clear behind STARTTLS may
        be an attacker's, and the connection ends.
        """
        return self._reader.held()

    def _answer_offer(self) -> _Offer:
        assert self._pending, "nothing is pending"
        assert self._offer is not None
        self._pending = False
        return self._offer

    # --- the parser ---

    def _run(self) -> Generator[ServerEvent | None, None, None]:
        try:
            yield from self._converse()
        except EndOfData:
            yield Gone()
        except ProtocolViolation as violation:
            self._violation = violation
            if isinstance(violation, TooBig):
                self._out += _BYE_TOO_BIG
            elif not isinstance(violation, ForeignProtocol):
                self._out += FAREWELLS[Outcome.PROTOCOL_VIOLATION]
            raise

    def _converse(self) -> Generator[ServerEvent | None, None, None]:
        while True:
            command = yield from self._read_command()
            self._commands += 1
            if self._commands > self._bounds.max_commands:
                raise ProtocolViolation("too many commands")
            if command is None:
                continue
            event = None
            self._exchange = None
            try:
                event = yield from self._perform(command)
            except BadSyntax as bad:
                self._refuse(command.tag, b"BAD " + str(bad).encode("ascii"))
            if event is None and self._exchange is not None and self._exchange.account_told:
                yield ExchangeBrokenOff()
            if event is None:
                continue
            yield event
            if not isinstance(event, LoginOffered):
                return
            if self._refusal:
                # RFC 7628 §3.2.3: the client answers the mechanism's failure, and what it answers says nothing.
                yield from self._reader.line(self._bounds.max_auth_line_bytes)
                self._out += self._refusal
                self._refusal = b""

    def _read_command(self) -> Generator[None, None, _Command | None]:
        """One command with its literals; None if it was refused on the way."""
        line = yield from self._text.first_line()
        text, literal = split_literal(line)
        tag, _, rest = text.partition(b" ")
        if is_http(tag, text):
            raise ForeignProtocol("HTTP")
        name, space, rest = rest.partition(b" ")
        name = name.upper()
        refusal = None
        if not is_tag(tag) or len(tag) > self._bounds.max_tag_bytes or tag == text:
            # Not echoed. A single word may be a response that came after its exchange had ended: a secret.
            tag, refusal = b"*", _NO_COMMAND
        elif not name:
            refusal = _NO_COMMAND
        elif name not in _COMMANDS:
            refusal = _NOT_NOW
        elif not self._secure and name in _NEED_PRIVACY:
            refusal = bytes(REPLIES[Outcome.PRIVACY_REQUIRED])
        elif name == b"LOGIN" and not self._login_enabled:
            refusal = _NO_LOGIN
        elif has_bad_character(text):
            refusal = BAD_CHARACTER
        elif literal is not None and name not in _TAKE_STRINGS:
            refusal = NO_LITERAL
        parts = [space + rest]
        if literal is not None:
            refusal = yield from self._text.literals(parts, len(line), literal, refusal)
        if refusal is not None:
            self._refuse(tag, refusal)
            return None
        return _Command(tag, name, Arguments(parts))

    def _refuse(self, tag: bytes, reply: bytes) -> None:
        """Answer a command with BAD or NO; too many BAD end the connection."""
        self._out += responses.tagged(tag, reply)
        if reply.startswith(b"BAD"):
            self._bad_commands += 1
            if self._bad_commands >= self._bounds.max_bad_commands:
                raise ProtocolViolation("too many bad commands")

    # --- the commands ---

    def _perform(self, command: _Command) -> Generator[AccountWanted | None, None, ServerEvent | None]:
        arguments = command.arguments
        match command.name:
            case b"LOGIN":
                return self._login(command)
            case b"AUTHENTICATE":
                return (yield from self._authenticate(command))
            case b"ID":
                arguments.expect(b" ")
                fields = read_id(arguments)
                arguments.end()
                self.client_id = fields
                self._out += responses.IDENTIFICATION
            case b"STARTTLS":
                return self._start_tls(command)
            case b"CAPABILITY":
                arguments.end()
                self._asked_capability = True
                self._out += responses.capabilities(self._capability)
            case b"LOGOUT":
                arguments.end()
                self._out += responses.LOGGING_OUT
                self._complete(command)
                return LoggedOut()
            case _:
                arguments.end()  # NOOP
        self._complete(command)
        return None

    def _complete(self, command: _Command) -> None:
        self._out += responses.tagged(command.tag, b"OK %b completed." % command.name)

    def _start_tls(self, command: _Command) -> StartTls:
        command.arguments.end()
        if self._secure or not self._starttls:
            raise BadSyntax("TLS is active already." if self._secure else "STARTTLS is not offered.")
        self._out += responses.tagged(command.tag, b"OK Begin TLS negotiation now.")
        return StartTls()

    def _login(self, command: _Command) -> LoginOffered:
        arguments = command.arguments
        arguments.expect(b" ")
        name = arguments.astring()
        arguments.expect(b" ")
        password = arguments.astring()
        arguments.end()
        self._offer = _Offer(command.tag, None)
        return LoginOffered(Credentials("LOGIN", name.decode("utf-8", "surrogateescape"), "", password))

    def _authenticate(self, command: _Command) -> Generator[AccountWanted | None, None, LoginOffered | None]:
        arguments = command.arguments
        arguments.expect(b" ")
        factory = self._mechanisms.get(arguments.atom().decode("ascii").upper())
        response = None
        if not arguments.ended:
            arguments.expect(b" ")
            encoded = arguments.word()
            arguments.end()
            response = b"" if encoded == b"=" else decode_base64(encoded)
        if factory is None:
            self._refuse(command.tag, _UNKNOWN_MECHANISM)
            return None
        exchange = self._exchange = Exchange(factory(), self._reader, self._out, self._bounds.max_auth_line_bytes)
        self._offer = _Offer(command.tag, exchange.mechanism)
        try:
            credentials = yield from exchange.run(response)
        except MalformedResponse:
            raise BadSyntax("Malformed authentication response.") from None
        if exchange.cancelled:  # it is not counted as a bad command
            self._out += responses.tagged(command.tag, bytes(REPLIES[Outcome.CANCELLED]))
        return None if credentials is None else LoginOffered(credentials)
