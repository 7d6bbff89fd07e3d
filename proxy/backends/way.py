"""The way to one backend: TCP, the PROXY header, TLS."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from proxy.backends.connect import Address, connect
from proxy.observe import metrics
from proxy.outcome import Outcome, Refused
from proxy.settings.backend_models import BackendTls, ClientAddress, Server
from proxy.transport.stream import ConnectionLost, PlainStream, Stream
from proxy.transport.tls import Context, TlsFailed, TlsStream, no_other_work
from proxy.transport.tls_client import ServerCertificate, SessionFailed, TlsClient, client_context, resumed

RESUMED = ("yes", "no")

_HANDSHAKES = metrics.counter(
    "porter_backend_tls_handshakes_total",
    "TLS handshakes with the backend for logins, by whether they took up an earlier session.",
    backend=None,
    resumed=RESUMED,
)


class SessionLost(Refused):
    """TLS failed over an earlier session. Without one it may succeed, on another connection."""


class Contexts:
    """One TLS context for all servers that are spoken to alike; it is what costs memory."""

    def __init__(self) -> None:
        self._by_files: dict[object, Context] = {}

    def for_(self, tls: BackendTls) -> Context:
        """The context; made when it is first needed."""
        key = (tls.ca, tls.verify, tls.certificate, tls.private_key)
        if key not in self._by_files:
            self._by_files[key] = client_context(tls)
        return self._by_files[key]


class Way:
    """How one server is reached."""

    def __init__(
        self,
        server: Server,
        client_address: ClientAddress,
        tls: BackendTls,
        contexts: Contexts,
        before_work: Callable[[], None] = no_other_work,
    ) -> None:
        """Args:
        before_work: Called before each step of a login's handshake.
        """
        self._name = server.name
        self.address = Address(server.endpoint)
        self.client_address = client_address
        self.security = server.security
        self.verifies = tls.verify
        self._before_work = before_work
        self._tls: TlsClient | None = None
        if server.security != "none":
            self._tls = TlsClient(contexts.for_(tls), tls.name or server.endpoint.host)
            self._handshakes: Mapping[str, metrics.Counter] = {
                value: _HANDSHAKES.labels(server.name, value) for value in RESUMED
            }

    @property
    def expected_name(self) -> str:
        """The name that the server's certificate has to be for; "": it has none to show."""
        return "" if self._tls is None else self._tls.name

    async def reach(self, deadline: float, header: bytes) -> PlainStream:
        """A connection that begins with a PROXY header. The caller's scope ends it at the deadline.

        Raises:
            Refused: UNAVAILABLE at step `resolve`, `connect` or `local`. Nothing stays open.
        """
        stream = await connect(self.address, deadline)
        if header:
            # TLS follows at once and leaves with it, in one segment; without TLS the server speaks first.
            flags = socket.MSG_MORE if self.security == "tls" else 0
            try:
                sent = stream.socket.send(header, flags)
                await stream.send(header[sent:])  # a new connection has room for all of it
            except (OSError, ConnectionLost) as exc:
                stream.close()
                detail = f"connection lost to {self.address.endpoint}: {exc}"
                raise Refused(Outcome.UNAVAILABLE, detail, step="connect") from exc
            except BaseException:
                stream.close()
                raise
        return stream

    async def secure(self, stream: Stream) -> TlsStream:
        """TLS on a connection, for a login: an earlier session is taken up where there is one.

        Raises:
            SessionLost: There was one, and the handshake failed.
            Refused: UNAVAILABLE at step `tls`. The stream is closed by its owner.
        """
        secured = await self._secure(stream, fresh=False)
        self._handshakes["yes" if resumed(secured) else "no"].inc()
        return secured

    async def secure_anew(self, stream: Stream) -> TlsStream:
        """The same for a check: the certificate is shown and verified."""
        return await self._secure(stream, fresh=True)

    def keep(self, stream: Stream) -> None:
        """The login on this connection is complete."""
        if isinstance(stream, TlsStream) and self._tls is not None:
            self._tls.keep(stream)

    def certificate(self, stream: Stream) -> ServerCertificate | None:
        """What the server has shown on this connection; None: it is not secure."""
        if isinstance(stream, TlsStream) and self._tls is not None:
            return self._tls.certificate(stream)
        return None

    def forget(self) -> None:
        """There is no such server any more: nothing of it is exported."""
        for value in RESUMED:
            _HANDSHAKES.remove(self._name, value)

    async def _secure(self, stream: Stream, *, fresh: bool) -> TlsStream:
        assert self._tls is not None
        try:
            return await self._tls.connect(stream.socket, fresh=fresh, before_work=self._before_work)
        except TlsFailed as exc:
            detail = f"TLS with {self.address.endpoint} failed: {exc}"
            refusal = SessionLost if isinstance(exc, SessionFailed) else Refused
            raise refusal(Outcome.UNAVAILABLE, detail, step="tls") from exc
