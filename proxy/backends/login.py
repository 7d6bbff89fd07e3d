"""Logging in at a backend for a user: drives the pure dialogue over a stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.imap.client import BackendDialogue, BackendLogin
from proxy.imap.events import BackendLoggedIn, BackendRefused, BackendStartTls
from proxy.model import Credentials, Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.models import BackendLogin as LoginSettings
from proxy.transport.stream import ConnectionLost, Stream


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

    Always the canonical name, never the client's spelling of it.
    """
    if login.method == "password":
        return BackendLogin(identity.name, credentials.secret, starttls=starttls)
    assert login.name is not None
    assert login.password is not None
    if login.method == "master":
        # auth.names refuses the separator inside a name, so that nobody can choose whom the master acts as.
        return BackendLogin(f"{identity.name}{login.separator}{login.name}", login.password.value, starttls=starttls)
    return BackendLogin(login.name, login.password.value, authorization_identity=identity.name, starttls=starttls)


async def log_in(
    stream: Stream,
    dialogue: BackendDialogue,
    secure: Callable[[Stream], Awaitable[Stream]],
    connected_at: float,
) -> BackendSession:
    """Speak with a backend until it has logged us in. The caller owns the deadline and closes the stream on errors.

    Args:
        secure: Puts TLS on the connection, after STARTTLS.
    Raises:
        Refused: As the backend decided, or UNAVAILABLE with the step where it stuck.
    """
    try:
        while True:
            event = dialogue.next_event()
            if data := dialogue.data_to_send():
                await stream.send(data)
            match event:
                case None:
                    dialogue.receive_data(await stream.receive())
                case BackendLoggedIn():
                    return BackendSession(stream, event.capability, event.notes, event.trailing_data, connected_at)
                case BackendStartTls():
                    stream = await secure(stream)
                    dialogue.tls_established()
                case BackendRefused():
                    raise Refused(event.outcome, event.detail, step=event.step)
    except ConnectionLost as exc:
        raise Refused(Outcome.UNAVAILABLE, f"connection lost: {exc}", step=dialogue.step) from exc
