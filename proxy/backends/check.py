"""Trying a backend without a user: whether it works, and what it tells of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from proxy.backends.login import converse, take_leave
from proxy.backends.way import Way
from proxy.imap.client import MAX_DETAIL_CHARS, BackendAnswered, BackendDialogue
from proxy.imap.client_commands import PRINTABLE
from proxy.imap.client_login import BackendLogin
from proxy.imap.events import BackendLoggedIn
from proxy.settings.models import BackendLogin as LoginSettings
from proxy.transport.stream import Stream
from proxy.transport.tls_client import ServerCertificate

_MAYBE_ADDRESS = re.compile(r"[0-9A-Fa-f:.]{3,45}")


@dataclass(frozen=True, slots=True)
class Told:
    """What a backend has told of itself, fit for a terminal."""

    capability: str
    certificate: ServerCertificate | None  # None: there is no TLS
    seconds: float
    greeting: str = ""
    identification: str = ""  # its answer to ID

    own_address: str = ""  # ours, on this connection

    def named(self, addresses: Iterable[str]) -> str:
        """The first of these IP addresses that its words name, "": none. Some are set up to tell whom they see."""
        words = {word.rstrip(".").lower() for word in _MAYBE_ADDRESS.findall(f"{self.greeting} {self.identification}")}
        return next((address for address in addresses if address in words), "")


class Check:
    """One try. The caller owns the deadline; `step` tells where it stood when time was up."""

    def __init__(self, way: Way, dialogue: BackendDialogue, header: bytes) -> None:
        """Args:
        dialogue: How far it goes: a BackendProbe, or a login.
        header: What the connection begins with.
        """
        self._way = way
        self._dialogue = dialogue
        self._header = header
        self._step = "connect"

    @property
    def step(self) -> str:
        """connect, tls, or a step of the dialogue."""
        return self._step or self._dialogue.step

    async def run(self) -> Told:
        """Go the way and come back. Nothing stays open.

        Raises:
            Refused: UNAVAILABLE with the step where it stuck, or as the backend decided about the login.
        """
        way, began = self._way, trio.current_time()
        stream: Stream | None = None
        try:
            stream = await way.reach(trio.current_effective_deadline(), self._header)
            if way.security == "tls":
                self._step = "tls"
                stream = await way.secure_anew(stream)
            self._step = ""
            own_address = str(stream.socket.getsockname()[0])
            stream, event = await converse(stream, self._dialogue, way.secure_anew)
            seconds = trio.current_time() - began
            certificate = way.certificate(stream)
            if isinstance(event, BackendLoggedIn):
                await take_leave(stream)
        finally:
            if stream is not None:
                stream.close()
        capability = _printable(b" ".join(event.capability))
        if isinstance(event, BackendAnswered):
            greeting, identification = _printable(event.greeting), _printable(event.identification)
            return Told(capability, certificate, seconds, greeting, identification, own_address)
        return Told(capability, certificate, seconds)


def probing(login: LoginSettings, *, starttls: bool, id_fields: tuple[tuple[str, str], ...] = ()) -> BackendLogin:
    """The login that a probe asks the backend's ways for; nothing of it is said but ID."""
    return BackendLogin(
        "probe",
        b"",
        authorization_identity="probe" if login.method == "authzid" else "",
        starttls=starttls,
        id_fields=id_fields,
        mechanism="XOAUTH2" if login.method == "token" else "",
    )


def _printable(octets: bytes) -> str:
    return octets.translate(PRINTABLE).decode("ascii")[:MAX_DETAIL_CHARS]
