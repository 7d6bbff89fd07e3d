"""Logging in at a backend for a user: drives the pure dialogue over a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from proxy.imap.client import BackendAnswered, BackendDialogue
from proxy.imap.client_login import TOKEN_MECHANISMS, BackendLogin
from proxy.imap.events import BackendLoggedIn, BackendRefused, BackendStartTls
from proxy.model import Credentials, Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.models import BackendLogin as LoginSettings
from proxy.transport.stream import ConnectionLost, Stream
from proxy.transport.tls import no_other_work

_GOODBYE_SECONDS = 1.0
_MAX_GOODBYE_OCTETS = 65536


@dataclass(frozen=True, slots=True)
class BackendSession:
    """A backend that has logged a user in.

    `trailing_data` are octets that it sent behind its OK; they belong to the client. `connected_at`: trio's time when
    the connection stood and the login began.
    """

    stream: Stream
    capability: tuple[bytes, ...]
    notes: tuple[bytes, ...]
    trailing_data: bytes
    connected_at: float


def login_for(
    identity: Identity,
    credentials: Credentials,
    login: LoginSettings,
    *,
    starttls: bool,
    id_fields: tuple[tuple[str, str], ...] = (),
) -> BackendLogin:
    """What to say at the backend so that its session is `identity`'s.

    Always the canonical name, never the client's spelling of it; and with `master` and `authzid` nothing that the
    client has shown.

    Args:
        starttls: TLS is required, and does not come first.
        id_fields: What is told of the client.
    Raises:
        Refused: UNAVAILABLE, there is nothing to show to a backend that asks for the client's own.
    """
    if login.needs_no_secret:
        assert login.name is not None
        assert login.password is not None
        name, actor = login.name, identity.name
        if login.method == "master":
            # auth.names refuses the separator inside a name, so that nobody can choose whom the master acts as.
            name, actor = f"{identity.name}{login.separator}{login.name}", ""
        return BackendLogin(name, login.password.value, actor, starttls, id_fields)
    mechanism = credentials.mechanism
    if mechanism in TOKEN_MECHANISMS and login.method == "token" and credentials.secret:
        return BackendLogin(identity.name, credentials.secret, "", starttls, id_fields, mechanism)
    secret = identity.backend_secret
    if secret is None and mechanism not in TOKEN_MECHANISMS:
        secret = credentials.secret
    if not secret:
        # The settings' checks come first; a token is no password, and must not reach a backend as one.
        detail = f"backends.login.method: {login.method} has no password to show for a client that came by {mechanism}"
        raise Refused(Outcome.UNAVAILABLE, detail, step="login")
    return BackendLogin(identity.name, secret, "", starttls, id_fields)


async def log_in(
    stream: Stream,
    dialogue: BackendDialogue,
    secure: Callable[[Stream], Awaitable[Stream]],
    connected_at: float,
    before_work: Callable[[], None] = no_other_work,
) -> BackendSession:
    """Speak with a backend until it has logged us in. The caller owns the deadline and closes the stream on errors.

    Args:
        secure: Puts TLS on the connection, after STARTTLS.
        before_work: Called before each step.
    Raises:
        Refused: As the backend decided, or UNAVAILABLE with the step where it stuck.
    """
    stream, event = await converse(stream, dialogue, secure, before_work)
    assert isinstance(event, BackendLoggedIn)
    return BackendSession(stream, event.capability, event.notes, event.trailing_data, connected_at)


async def converse(
    stream: Stream,
    dialogue: BackendDialogue,
    secure: Callable[[Stream], Awaitable[Stream]],
    before_work: Callable[[], None] = no_other_work,
) -> tuple[Stream, BackendLoggedIn | BackendAnswered]:
    """Carry octets between a dialogue and its stream up to the last event; as log_in otherwise.

    Raises:
        Refused: That event is a refusal, or the connection was lost.
    """
    try:
        while True:
            before_work()
            event = dialogue.next_event()
            if data := dialogue.data_to_send():
                await stream.send(data)
            match event:
                case None:
                    dialogue.receive_data(await stream.receive())
                case BackendLoggedIn() | BackendAnswered():
                    return stream, event
                case BackendStartTls():
                    stream = await secure(stream)
                    dialogue.tls_established()
                case BackendRefused():
                    raise Refused(event.outcome, event.detail, step=event.step, silent=event.closed)
    except ConnectionLost as exc:
        raise Refused(Outcome.UNAVAILABLE, f"connection lost: {exc}", step=dialogue.step, silent=True) from exc


async def take_leave(stream: Stream) -> None:
    """Log out before any mailbox is opened (RFC 9051 §6.1.3); a backend that doesn't answer is left."""
    received = b""
    try:
        with trio.move_on_after(_GOODBYE_SECONDS):
            await stream.send(b"bye LOGOUT\r\n")
            while b"\r\nbye " not in received and len(received) < _MAX_GOODBYE_OCTETS:
                data = await stream.receive()
                if not data:
                    break
                received += data
    except ConnectionLost:
        pass  # it has gone first
