"""The configured backends by name, and the way to one of them."""

from __future__ import annotations

from collections.abc import Callable

import trio

from proxy.backends.connect import Address, connect, secure, settle
from proxy.backends.login import BackendSession, ask_capability, log_in, login_for
from proxy.imap.client import MAX_DETAIL_CHARS, BackendDialogue, BackendProbe
from proxy.imap.client_commands import PRINTABLE
from proxy.imap.client_login import BackendLogin
from proxy.model import Credentials, Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.models import Backends, Server, Timeouts
from proxy.transport.stream import Stream
from proxy.transport.tls import Context, client_context, no_other_work


class Backend:
    """One server: how it is reached and how one logs in there."""

    def __init__(
        self,
        server: Server,
        backends: Backends,
        timeouts: Timeouts,
        context: Context | None,
        before_work: Callable[[], None] = no_other_work,
    ) -> None:
        self.name = server.name
        self._before_work = before_work
        self._security = server.security
        self._address = Address(server.endpoint)
        self._context = context
        self._login = backends.login
        self._timeouts = timeouts

    async def open(self, identity: Identity, credentials: Credentials) -> BackendSession:
        """Connect within `timeouts.backend_connect`, then log `identity` in within `timeouts.backend_login`.

        Raises:
            Refused: As the backend decided, or UNAVAILABLE with the step where it stuck. Nothing stays open.
        """
        dialogue = BackendDialogue(login_for(identity, credentials, self._login, starttls=self._security == "starttls"))
        stream: Stream | None = None
        connected_at = 0.0
        try:
            # One scope whose deadline moves: scopes are a cost that every login pays.
            deadline = trio.current_time() + self._timeouts.backend_connect
            with trio.CancelScope(deadline=deadline) as scope:
                stream = await connect(self._address, deadline)
                if self._security == "tls":
                    stream = await self._secure(stream)
                connected_at = trio.current_time()
                scope.deadline = connected_at + self._timeouts.backend_login
                session = await log_in(stream, dialogue, self._secure, connected_at, self._before_work)
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
            detail = f"{self._address.endpoint} did not finish the login within {self._timeouts.backend_login:g} s"
            raise Refused(Outcome.UNAVAILABLE, detail, step=dialogue.step)
        detail = f"{self._address.endpoint} did not answer within {self._timeouts.backend_connect:g} s"
        raise Refused(Outcome.UNAVAILABLE, detail, step="connect" if stream is None else "tls")

    async def probe(self) -> tuple[str, float]:
        """Try the way to this backend, without a login: connection, TLS, greeting, and what a login would need.

        Returns:
            Its capabilities, fit for a terminal, and the seconds that it took.
        Raises:
            Refused: UNAVAILABLE with the step where it stuck. Nothing stays open.
        """
        method, starttls = self._login.method, self._security == "starttls"
        actor = "probe" if method == "authzid" else ""
        mechanism = "XOAUTH2" if method == "token" else ""
        login = BackendLogin("probe", b"", authorization_identity=actor, starttls=starttls, mechanism=mechanism)
        dialogue = BackendProbe(login)
        stream: Stream | None = None
        began, step = trio.current_time(), "connect"
        seconds = self._timeouts.backend_connect
        try:
            with trio.CancelScope(deadline=began + seconds) as scope:
                stream = await connect(self._address, scope.deadline)
                if self._security == "tls":
                    step = "tls"
                    stream = await self._secure(stream)
                step, seconds = "", self._timeouts.backend_login
                scope.deadline = trio.current_time() + seconds
                stream, capability = await ask_capability(stream, dialogue, self._secure)
                detail = b" ".join(capability).translate(PRINTABLE).decode("ascii")[:MAX_DETAIL_CHARS]
                return detail, trio.current_time() - began
        finally:
            if stream is not None:
                stream.close()
        detail = f"{self._address.endpoint} did not answer within {seconds:g} s"
        raise Refused(Outcome.UNAVAILABLE, detail, step=step or dialogue.step)

    async def _secure(self, stream: Stream) -> Stream:
        assert self._context is not None
        return await secure(stream, self._context, self._address)


class Pool:
    """All backends that the settings name."""

    def __init__(self, backends: Backends, timeouts: Timeouts, before_work: Callable[[], None] = no_other_work) -> None:
        """Args:
        before_work: Called before each step of a login that keeps the processor busy.
        """
        needs_tls = any(server.security != "none" for server in backends.servers)
        context = client_context(backends.tls.ca, verify=backends.tls.verify) if needs_tls else None
        self._by_name = {
            server.name: Backend(server, backends, timeouts, context, before_work) for server in backends.servers
        }

    def __getitem__(self, name: str) -> Backend:
        return self._by_name[name]
