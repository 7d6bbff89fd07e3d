"""The connections with which one thread talks to one server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from proxy.auth.ldap.breaker import BindPause
from proxy.auth.ldap.connection import Connection, Found, Scope
from proxy.auth.ldap.verdicts import INVALID_CREDENTIALS, SUCCESS, Result, ServerFailed
from proxy.observe import metrics
from proxy.settings.identity_models import LdapBind

_UP = metrics.gauge(
    "porter_ldap_server_up",
    "1 while logins ask this directory server, 0 while only trials do.",
    merge="min",
    server=None,
)
_OPERATIONS = metrics.counter(
    "porter_ldap_operations_total",
    "Operations at a directory server. no: a bind that was refused.",
    server=None,
    operation=("connect", "bind", "search"),
    outcome=("ok", "no", "failed"),
)

# Shorter than what firewalls and directories usually allow: a connection that one of them has forgotten costs a
# login the whole time for an answer.
MAX_IDLE_SECONDS = 60.0


class Opener(Protocol):
    """What makes connections: a Connector."""

    def open(self, deadline: float) -> Connection:
        """Connect, or raise ServerFailed."""
        ...


class Counters:
    """The metrics of one server."""

    def __init__(self, server: str) -> None:
        self.up = _UP.labels(server)
        self.up.set(1)
        self.connected, self.not_connected = (_OPERATIONS.labels(server, "connect", word) for word in ("ok", "failed"))
        self.searched, self.not_searched = (_OPERATIONS.labels(server, "search", word) for word in ("ok", "failed"))
        self.bound, self.refused, self.not_bound = (
            _OPERATIONS.labels(server, "bind", word) for word in ("ok", "no", "failed")
        )


class Connections:
    """The two connections a thread works with: one searches as the service account, the other binds as users.

    They are opened when they are needed and stay open. One that the server had closed while it was idle is opened
    again and the operation repeated, once; nothing else is repeated.
    """

    def __init__(
        self,
        opener: Opener,
        service: LdapBind | None,
        operation_seconds: float,
        counters: Counters,
        bind_pause: BindPause,
    ) -> None:
        self._opener = opener
        self._service = service
        self._operation_seconds = operation_seconds
        self._counters = counters
        self._bind_pause = bind_pause  # one for all connections to this server
        self._searcher: Connection | None = None
        self._binder: Connection | None = None
        self._deadline = 0.0

    def begin(self, deadline: float) -> None:
        """Until when the next question has to be answered, of time.monotonic()."""
        self._deadline = deadline

    def until(self) -> float:
        """When an operation that begins now has to end, of time.monotonic()."""
        return min(self._deadline, time.monotonic() + self._operation_seconds)

    def search(self, base: str, text: str, scope: Scope, attributes: Sequence[str]) -> Found:
        """Search as the service account.

        Raises:
            ServerFailed: No answer.
        """
        return self._counted_search(lambda: self._search(base, text, scope, attributes))

    def search_as_user(self, base: str, text: str, scope: Scope, attributes: Sequence[str]) -> Found:
        """Search as whoever was bound last; on no other connection, so never repeated.

        Raises:
            ServerFailed: No answer.
        """
        assert self._binder is not None
        binder = self._binder
        return self._counted_search(lambda: binder.search(base, text, scope, attributes, self.until()))

    def bind(self, dn: str, password: bytes) -> Result:
        """Bind as a user.

        Raises:
            ServerFailed: No answer.
        """
        try:
            result = self._bind(dn, password)
        except ServerFailed:
            self._counters.not_bound.inc()
            raise
        (self._counters.bound if result.code == SUCCESS else self._counters.refused).inc()
        return result

    def close(self) -> None:
        """End both connections."""
        for connection in (self._searcher, self._binder):
            if connection is not None:
                connection.close()
        self._searcher = self._binder = None

    def open_searcher(self) -> Connection:
        """A new connection on which the service account is bound, where there is one.

        Raises:
            ServerFailed: It cannot be had, or the last such bind was refused a moment ago.
        """
        wait = self._bind_pause.wait(time.monotonic())
        if wait:
            raise ServerFailed(
                f"the proxy's own bind: invalidCredentials ({INVALID_CREDENTIALS}); tried again in {wait:.0f} s"
            )
        connection = self.connect()
        try:
            self.bind_service(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def connect(self) -> Connection:
        """A new connection.

        Raises:
            ServerFailed: It cannot be had.
        """
        try:
            connection = self._opener.open(self._deadline)
        except ServerFailed:
            self._counters.not_connected.inc()
            raise
        self._counters.connected.inc()
        return connection

    def bind_service(self, connection: Connection) -> None:
        """Bind as the service account.

        Raises:
            ServerFailed: No answer, or a no: that is never the fault of whoever logs in.
        """
        service = self._service
        if service is None:
            return
        if service.external:
            who, result = "by SASL EXTERNAL", connection.bind_external(self.until())
        else:
            assert service.dn is not None
            assert service.password is not None
            who, result = f"as {service.dn}", connection.bind(service.dn, service.password.value, self.until())
        if result.code == INVALID_CREDENTIALS:
            self._bind_pause.refused(time.monotonic())
        if result.code != SUCCESS:
            raise ServerFailed(f"the proxy's own bind {who}: {result}")
        self._bind_pause.accepted()
        if result.must_be_changed:
            raise ServerFailed(f"the proxy's own bind {who}: its password has to be changed before it may search")

    def _search(self, base: str, text: str, scope: Scope, attributes: Sequence[str]) -> Found:
        if self._searcher is not None:
            if self._usable(self._searcher):
                try:
                    return self._searcher.search(base, text, scope, attributes, self.until())
                except ServerFailed as failure:
                    if not failure.gone:
                        raise
            self._searcher.close()
            self._searcher = None
        self._searcher = self.open_searcher()
        return self._searcher.search(base, text, scope, attributes, self.until())

    def _bind(self, dn: str, password: bytes) -> Result:
        if self._binder is not None:
            if self._usable(self._binder):
                try:
                    return self._binder.bind(dn, password, self.until())
                except ServerFailed as failure:  # it never arrived, or no verdict came
                    if not failure.gone:
                        raise
            self._binder.close()
            self._binder = None
        self._binder = self.connect()
        return self._binder.bind(dn, password, self.until())

    def _counted_search(self, search: Callable[[], Found]) -> Found:
        try:
            found = search()
        except ServerFailed:
            self._counters.not_searched.inc()
            raise
        self._counters.searched.inc()
        return found

    def _usable(self, connection: Connection) -> bool:
        return connection.usable(time.monotonic(), MAX_IDLE_SECONDS)
