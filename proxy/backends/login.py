"""Logging in at a backend for a user: drives the pure dialogue over a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.imap.client import BackendAnswered, BackendDialogue, BackendProbe
from proxy.imap.client_login import TOKEN_MECHANISMS, BackendLogin
from proxy.imap.events import BackendLoggedIn, BackendRefused, BackendStartTls
from proxy.model import Credentials, Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.models import BackendLogin as LoginSettings
from proxy.transport.stream import ConnectionLost, Stream
from proxy.transport.tls import no_other_work


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


def login_for(identity: Identity, credentials: Credentials, login: LoginSettings, *, starttls: bool) -> BackendLogin:
    """What to say at the backend so that its session is `identity`'s.

    Always the canonical name, never the client's spelling of it; and with `master` and `authzid` nothing that the
    client has shown.

    Raises:
        Refused: UNAVAILABLE, there is nothing to show to a backend that asks for the client's own.
    """
    if login.needs_no_secret:
        assert login.name is not None
        assert login.password is not None
        password = login.password.value
        if login.method == "authzid":
            return BackendLogin(login.name, password, authorization_identity=identity.name, starttls=starttls)
        # auth.names refuses the separator inside a name, so that nobody can choose whom the master acts as.
        return BackendLogin(f"{identity.name}{login.separator}{login.name}", password, starttls=starttls)
    mechanism = credentials.mechanism
    if mechanism in TOKEN_MECHANISMS and login.method == "token" and credentials.secret:
        return BackendLogin(identity.name, credentials.secret, starttls=starttls, mechanism=mechanism)
    secret = identity.backend_secret
    if secret is None and mechanism not in TOKEN_MECHANISMS:
        secret = credentials.secret
    if not secret:
        # The settings' checks come first; a token is no password, and must not reach a backend as one.
        detail = f"backends.login.method: {login.method} has no password to show for a client that came by {mechanism}"
        raise Refused(Outcome.UNAVAILABLE, detail, step="login")
    return BackendLogin(identity.name, secret, starttls=starttls)


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
    stream, event = await _converse(stream, dialogue, secure, before_work)
    assert isinstance(event, BackendLoggedIn)
    return BackendSession(stream, event.capability, event.notes, event.trailing_data, connected_at)


async def ask_capability(
    stream: Stream, probe: BackendProbe, secure: Callable[[Stream], Awaitable[Stream]]
) -> tuple[Stream, tuple[bytes, ...]]:
    """Speak with a backend up to its capability list, and take leave; as log_in otherwise.

    Returns:
        The stream, for the caller to close, and the list.
    """
    stream, event = await _converse(stream, probe, secure)
    assert isinstance(event, BackendAnswered)
    return stream, event.capability


async def _converse(
    stream: Stream,
    dialogue: BackendDialogue,
    secure: Callable[[Stream], Awaitable[Stream]],
    before_work: Callable[[], None] = no_other_work,
) -> tuple[Stream, BackendLoggedIn | BackendAnswered]:
    """Carry octets between a dialogue and its stream up to the last event, unless that is a refusal."""
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
                    raise Refused(event.outcome, event.detail, step=event.step)
    except ConnectionLost as exc:
        raise Refused(Outcome.UNAVAILABLE, f"connection lost: {exc}", step=dialogue.step) from exc
