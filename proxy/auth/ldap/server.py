"""One server of a directory: who may ask it, in how many threads, over which connections.

Theory of operation. A question is a plain function that talks to the server and blocks; it runs in a thread, with a
pair of connections (`Connections`) of its own. At most `pool` threads run at once. A thread that nobody waits for any
more keeps its slot until it ends, so a server that hangs holds `pool` threads and not one more; every socket operation
has a deadline, so they do end. Those who wait for a slot are bounded in number, and by the time they have. The first
operation that fails trips the breaker: whoever still waits is sent away as soon as a slot comes free, and whoever
comes later at once.

Breaker, idle connections and metrics are moved in the threads, where the outcome is known even if the login that asked
has gone. Each of these steps is safe there: the breaker has a lock, and a deque's ends are atomic.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from proxy.auth.ldap.breaker import Admission, BindPause, Breaker
from proxy.auth.ldap.connections import Connections, Counters, Opener
from proxy.auth.ldap.verdicts import ServerFailed
from proxy.observe.log import get_logger
from proxy.outcome import Refused
from proxy.settings.identity_models import LdapBind

log = get_logger()

# A search and a bind take a server some 1 ms: a queue of about a second with one connection, less with more.
MAX_WAITING = 1000

T = TypeVar("T")

Question = Callable[[Connections], T]


class LdapServer:
    """A server with its breaker, its threads and its connections."""

    def __init__(
        self, url: str, opener: Opener, service: LdapBind | None, *, pool: int, operation_seconds: float
    ) -> None:
        self.url = url
        self._opener = opener
        self._service = service
        self._operation_seconds = operation_seconds
        self._counters = Counters(url)
        self._breaker = Breaker()
        self._bind_pause = BindPause()
        self._limiter = trio.CapacityLimiter(pool)
        self._most_pending = pool + MAX_WAITING
        self._pending = 0
        self._idle: deque[Connections] = deque()
        self._closed = False
        self._showing = threading.Lock()

    @property
    def up(self) -> bool:
        """Whether more than trials ask it."""
        return self._breaker.up

    async def ask(self, question: Question[T], seconds: float) -> T:
        """Ask it something, in a thread.

        Args:
            question: Plain function; it may raise Refused, which is an answer too.
            seconds: For all of it, waiting for a thread included.
        Raises:
            ServerFailed: No answer in time, or none is awaited now.
        """
        if self._pending >= self._most_pending:
            raise ServerFailed(f"{self._pending} logins are waiting for it", down=False)
        began = time.monotonic()
        admission = self._breaker.admit(began, seconds)
        if admission is None:
            raise ServerFailed(f"down: {self._breaker.reason}")
        attempt = _Attempt(self, question, admission, began + seconds)
        self._pending += 1
        try:
            with trio.move_on_after(seconds):
                return await trio.to_thread.run_sync(attempt.run, limiter=self._limiter, abandon_on_cancel=True)
        finally:
            self._pending -= 1
            if not attempt.started:
                self._breaker.withdraw(admission, time.monotonic())
        if not attempt.started:
            raise ServerFailed(f"no thread was free for it within {seconds:.1f} s", down=False)
        # Its thread is still busy, perhaps with a resolver that knows no deadline.
        failure = ServerFailed(f"no answer within {seconds:.1f} s")
        self.failed(admission, failure)
        raise failure

    async def try_out(self, question: Question[T], seconds: float) -> T | None:
        """Ask with new connections, whatever the breaker says and without telling it. None: no answer in time."""

        def run() -> T:
            connections = self.new_connections()
            connections.begin(time.monotonic() + seconds)
            try:
                return question(connections)
            finally:
                connections.close()

        with trio.move_on_after(seconds):
            return await trio.to_thread.run_sync(run, limiter=self._limiter, abandon_on_cancel=True)
        return None

    def close(self) -> None:
        """Close idle connections; those in use are closed by their threads."""
        self._closed = True
        self._close_idle()

    # From here on: in threads.

    def overtaken(self, admission: Admission) -> ServerFailed | None:
        """Why not to begin after all."""
        return ServerFailed(f"down: {self._breaker.reason}") if self._breaker.overtaken(admission) else None

    def new_connections(self) -> Connections:
        """A pair of connections, not open yet."""
        return Connections(self._opener, self._service, self._operation_seconds, self._counters, self._bind_pause)

    def take_connections(self) -> Connections:
        """The pair that was used last, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            return self.new_connections()

    def give_back(self, connections: Connections) -> None:
        """The server has answered; the pair waits for the next question."""
        self._answered()
        self._idle.append(connections)
        if self._closed:
            self._close_idle()

    def failed(self, admission: Admission, failure: ServerFailed) -> None:
        """No answer to this question. If there would be none to others, what idles is not trusted any more either."""
        if not failure.down:
            self._answered()
        elif self._breaker.failed(admission, time.monotonic(), str(failure)):
            self._show()
            log.warning("ldap.server_down", server=self.url, error=str(failure))
            self._close_idle()

    def _answered(self) -> None:
        if self._breaker.succeeded(time.monotonic()):
            self._show()
            log.info("ldap.server_up", server=self.url)

    def _show(self) -> None:
        """In the metric. Read and set in one piece: of two threads the later one shows what is so."""
        with self._showing:
            self._counters.up.set(self._breaker.up)

    def _close_idle(self) -> None:
        while self._idle:
            try:
                connections = self._idle.pop()
            except IndexError:  # another thread was faster
                return
            connections.close()


class _Attempt(Generic[T]):
    """A question on its way through a thread."""

    def __init__(self, server: LdapServer, question: Question[T], admission: Admission, deadline: float) -> None:
        self._server = server
        self._question = question
        self._admission = admission
        self._deadline = deadline
        self.started = False

    def run(self) -> T:
        """In the thread."""
        self.started = True
        server = self._server
        if late := server.overtaken(self._admission):
            raise late
        connections = server.take_connections()
        connections.begin(self._deadline)
        try:
            answer = self._question(connections)
        except Refused:
            server.give_back(connections)
            raise
        except ServerFailed as failure:
            connections.close()
            server.failed(self._admission, failure)
            raise
        except BaseException:
            connections.close()
            raise
        server.give_back(connections)
        return answer
