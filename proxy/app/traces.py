"""Traces of users: begun at the steward, carried out by the workers, each of which ends its own when time is over.

So a trace needs nobody: a steward that is killed leaves no worker looking on, and the next one passes on what the
workers tell until then. A worker that comes meanwhile is told of the traces that there are.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.app.link import Link
from proxy.app.worker_link import WorkerLink
from proxy.relay.tracing import MOST_SECONDS, MOST_TRACES
from proxy.session.house import House
from proxy.transport.packets import Message


@dataclass(frozen=True, slots=True)
class _Trace:
    user: str
    ends_at: float


class Traces:
    """The steward's: which traces there are."""

    def __init__(self, links: Mapping[str, WorkerLink], clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        links: Those of all workers, by name; read whenever there is something to tell.
        """
        self._links, self._clock = links, clock
        self._traces: dict[str, _Trace] = {}

    def begin(self, user: str, seconds: float) -> str | None:
        """Have all look on at this user's sessions; gives the trace's id. None: there are too many traces."""
        self._forget_ended()
        if len(self._traces) >= MOST_TRACES:
            return None
        trace_id = secrets.token_hex(4)
        trace = self._traces[trace_id] = _Trace(user, self._clock() + min(seconds, MOST_SECONDS))
        for link in self._links.values():
            link.post(self._begin(trace_id, trace))
        return trace_id

    def end(self, trace_id: str) -> bool:
        """Look on no more; gives whether there was such a trace. One of an earlier steward is ended as well."""
        self._forget_ended()
        for link in self._links.values():
            link.post(["untrace", trace_id])
        return self._traces.pop(trace_id, None) is not None

    def memory(self) -> list[list[Any]]:
        """Those that there are, for recall(); JSON."""
        self._forget_ended()
        now = self._clock()
        return [[trace_id, trace.user, round(trace.ends_at - now, 3)] for trace_id, trace in self._traces.items()]

    def recall(self, memory: object) -> None:
        """Go on with what another had begun. What makes no sense is passed over."""
        for each in memory if isinstance(memory, list) else ():
            match each:
                case [str(trace_id), str(user), int() | float() as seconds, *_] if len(self._traces) < MOST_TRACES:
                    self._traces[trace_id] = _Trace(user, self._clock() + min(seconds, MOST_SECONDS))

    def tell(self, link: WorkerLink) -> None:
        """There is a new worker."""
        self._forget_ended()
        for trace_id, trace in self._traces.items():
            link.post(self._begin(trace_id, trace))

    def _begin(self, trace_id: str, trace: _Trace) -> Message:
        return ["trace", trace_id, trace.user, round(trace.ends_at - self._clock(), 3)]

    def _forget_ended(self) -> None:
        now = self._clock()
        self._traces = {trace_id: trace for trace_id, trace in self._traces.items() if now < trace.ends_at}


def trace_when_told(link: Link, house: House) -> None:
    """A worker's: do what the steward says of traces, and tell him the lines."""
    tracing, engine = house.tracing, house.engine

    def told(message: Message) -> None:
        match message:
            case ["trace", str(trace_id), str(user), int() | float() as seconds, *_]:
                tracing.begin(trace_id, user, seconds, engine.sessions)
            case ["untrace", str(trace_id), *_]:
                tracing.end(trace_id)

    def tell(trace_id: str, session_id: str, side: str, text: str) -> bool:
        engine.stir()
        values = {"trace": trace_id, "session": session_id, "side": side, "text": text}
        return link.tell_if_read(["event", "trace", "trace.line", values])

    link.on_trace = told
    tracing.on_line = tell
