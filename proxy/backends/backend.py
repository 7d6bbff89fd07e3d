"""One backend: how users are logged in there, and how it is found out whether that works."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from proxy.backends.check import Check, Told, probing
from proxy.backends.client_address import fields_for, header_for, local_header
from proxy.backends.connect import settle
from proxy.backends.gate import Gate
from proxy.backends.login import BackendSession, log_in, login_for
from proxy.backends.way import Contexts, SessionLost, Way
from proxy.imap.client import BackendDialogue, BackendProbe
from proxy.imap.client_login import BackendLogin
from proxy.model import Credentials, Endpoint, Identity, TlsFacts, Visitor
from proxy.outcome import Outcome, Refused
from proxy.settings.discovery_models import ProbeLogin
from proxy.settings.limit_models import LoginsPerBackend
from proxy.settings.models import Backends, Server, Timeouts
from proxy.transport.stream import Stream
from proxy.transport.tls import no_other_work

# Nobody's addresses (RFC 5737 §3), in the place of a client's where one is only tried out.
SAMPLE_VISITOR = Visitor(
    Endpoint("192.0.2.1", 40000), Endpoint("192.0.2.2", 993), "check", TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256")
)


def nobody() -> Visitor:
    """Stands for the client where there is none to tell of."""
    raise AssertionError("this server is to be told of a client, and there is none")


class Backend:
    """One server."""

    def __init__(
        self,
        server: Server,
        backends: Backends,
        timeouts: Timeouts,
        limits: LoginsPerBackend,
        contexts: Contexts,
        before_work: Callable[[], None] = no_other_work,
    ) -> None:
        """Args:
        before_work: Called before each step of a login that keeps the processor busy.
        """
        self.name = server.name
        client_address = backends.client_address_for(server)
        self._way = Way(server, client_address, backends.tls_for(server), contexts, before_work)
        self._gate = Gate(server.name, limits, timeouts.backend_login)
        self._login = backends.login
        self._timeouts = timeouts
        self._before_work = before_work

    @property
    def way(self) -> Way:
        """How it is reached."""
        return self._way

    @property
    def logins_waiting(self) -> int:
        """How many logins wait for their turn."""
        return self._gate.waiting

    def tell(self, addresses: Sequence[str] | None) -> None:
        """Where it is just now; None: by its URL."""
        self._way.address.tell(addresses)

    def went_down(self, reason: str) -> None:
        """Nobody is let in until it has recovered, and nobody waits for that."""
        self._gate.close(reason)

    def recovered(self, now: float) -> None:
        """It was down and is up: it gets fewer logins at once for a while."""
        self._gate.recovered(now)

    def forget(self) -> None:
        """There is none of this name any more: its metrics go. Logins under way go on to their end."""
        self._gate.forget()
        self._way.forget()

    async def open(
        self, identity: Identity, credentials: Credentials, visitor: Callable[[], Visitor] = nobody
    ) -> BackendSession:
        """Wait for a turn, connect, log `identity` in.

        The turn and the login have `timeouts.backend_login` each, the connection `timeouts.backend_connect`.

        Args:
            visitor: Who the client is, for servers that are told.
        Raises:
            Refused: As the backend decided, or UNAVAILABLE with the step where it stuck. Nothing stays open.
        """
        way, header = self._way, b""
        fields: tuple[tuple[str, str], ...] = ()
        if way.client_address != "none":
            client = visitor()
            header = header_for(client, way.client_address)
            fields = fields_for(client, way.client_address)
        login = login_for(identity, credentials, self._login, starttls=way.security == "starttls", id_fields=fields)
        await self._gate.enter()
        try:
            try:
                return await self._open(BackendDialogue(login), header)
            except SessionLost:
                return await self._open(BackendDialogue(login), header)  # there is none any more
        finally:
            self._gate.leave()

    async def _open(self, dialogue: BackendDialogue, header: bytes) -> BackendSession:
        way, timeouts = self._way, self._timeouts
        stream: Stream | None = None
        connected_at = 0.0
        try:
            # One scope whose deadline moves: scopes are a cost that every login pays.
            deadline = trio.current_time() + timeouts.backend_connect
            with trio.CancelScope(deadline=deadline) as scope:
                stream = await way.reach(deadline, header)
                if way.security == "tls":
                    stream = await way.secure(stream)
                connected_at = trio.current_time()
                scope.deadline = connected_at + timeouts.backend_login
                session = await log_in(stream, dialogue, way.secure, connected_at, self._before_work)
                way.keep(session.stream)
                settle(session.stream.socket)
                return session
        except BaseException:
            if stream is not None:
                stream.close()
            raise
        # The scope has swallowed its own cancellation.
        if stream is not None:
            stream.close()
        if connected_at:
            detail = f"{way.address.endpoint} did not finish the login within {timeouts.backend_login:g} s"
            raise Refused(Outcome.UNAVAILABLE, detail, step=dialogue.step, silent=True)
        detail = f"{way.address.endpoint} did not answer within {timeouts.backend_connect:g} s"
        raise Refused(Outcome.UNAVAILABLE, detail, step="connect" if stream is None else "tls", silent=True)

    def check(self, login: ProbeLogin | None = None) -> Check:
        """What tells whether it works: the way there, the greeting, and what a user's login would need.

        Args:
            login: An account to log in with; None: the check ends before the login.
        """
        starttls = self._way.security == "starttls"
        dialogue: BackendDialogue
        if login is None:
            dialogue = BackendProbe(probing(self._login, starttls=starttls))
        else:
            dialogue = BackendDialogue(BackendLogin(login.name, login.password.value, starttls=starttls))
        return Check(self._way, dialogue, local_header(self._way.client_address))

    async def probe(self) -> Told:
        """The same as for a client: what it tells who asks on behalf of one, without a login.

        Raises:
            Refused: UNAVAILABLE with the step where it stuck. Nothing stays open.
        """
        way = self._way
        fields = fields_for(SAMPLE_VISITOR, way.client_address)
        login = probing(self._login, starttls=way.security == "starttls", id_fields=fields)
        check = Check(way, BackendProbe(login), header_for(SAMPLE_VISITOR, way.client_address))
        seconds = self._timeouts.backend_connect + self._timeouts.backend_login
        with trio.move_on_after(seconds):
            return await check.run()
        detail = f"{way.address.endpoint} did not answer within {seconds:g} s"
        raise Refused(Outcome.UNAVAILABLE, detail, step=check.step, silent=True)
