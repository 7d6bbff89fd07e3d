"""`imap-porter events` and `trace`: what happens, line by line while it does, over the API's WebSocket."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from proxy.admin.events import LOST
from proxy.admin.verbs import EVENTS_PATH, EVENTS_SUBPROTOCOL
from proxy.cli.doors import Door, NotAnswered
from proxy.cli.options import Call
from proxy.cli.running import TIMEOUT_SECONDS, Declined, Proxy, attempt
from proxy.cli.terminal import EXIT_OK, clock, console, plain, print_json_line, run
from proxy.settings.units import duration_text

_MAX_EVENT_BYTES = 1 << 20
_GOODBYE_SECONDS = 2.0
_LINGER_SECONDS = 1.0  # what was said in a trace's last moment is still on its way at its end
_SIDES = {"client": ("C:", "cyan"), "backend": ("S:", "green"), "note": ("--", "yellow")}
_COLOURS = {"backend": "yellow", "limit": "magenta", "audit": "cyan"}

Event = Mapping[str, Any]


def events(call: Call, kinds: Collection[str]) -> int:
    """Print events until Ctrl-C.

    Args:
        call: Whom to ask.
        kinds: Of these kinds.
    Returns:
        As running.conversation(); 3: the connection has ended, too.
    """
    printer = _Printer(call.json_output)

    async def follow(door: Door) -> None:
        async with _connection(door, kinds) as connection:
            while True:
                printer.show(await _next(connection))

    def action(proxy: Proxy) -> int:
        with _until_interrupted():
            run(partial(follow, proxy.door))
        return EXIT_OK

    return attempt(call, action)


def trace(call: Call, user: str, seconds: float, reason: str) -> int:
    """Have a user's protocol lines shown and print them, until that has ended; Ctrl-C ends it.

    Returns:
        As running.conversation(); 3: the connection has ended, too.
    """

    def action(proxy: Proxy) -> int:
        following = _Trace(proxy, user, seconds, reason, call.json_output)
        with _until_interrupted():
            try:
                run(following.follow)
            finally:
                following.end()
        return EXIT_OK

    return attempt(call, action)


class _Trace:
    """One trace, from its beginning to its end."""

    def __init__(self, proxy: Proxy, user: str, seconds: float, reason: str, json_output: bool) -> None:
        self._proxy, self._user, self._seconds, self._reason = proxy, user, seconds, reason
        self._printer = _Printer(json_output)
        self._quiet = json_output
        self._lines = 0
        self._trace = ""  # its id, while it lives
        self._began = False

    async def follow(self) -> None:
        # First the events, so that no line is missed.
        async with _connection(self._proxy.door, ["trace"]) as connection:
            self._begin()
            with trio.move_on_after(self._seconds + _LINGER_SECONDS):
                while True:
                    event = await _next(connection)
                    if event.get("kind") == LOST or event.get("trace") == self._trace:
                        self._printer.show(event)
                        self._lines += 1
        self._trace = ""  # by itself

    def end(self) -> None:
        """It ends with its reader, however that came."""
        if self._trace:
            trace, self._trace = self._trace, ""
            try:
                self._proxy.ask("untrace", trace=trace, reason=self._reason)
            except Declined:
                pass  # it has ended
        if self._began:
            self._say(f"{self._lines} lines")

    def _begin(self) -> None:
        """Have it begin. The loop waits for the answer: events that come meanwhile lie in the connection."""
        began = self._proxy.ask("trace", user=self._user, seconds=self._seconds, reason=self._reason)
        self._trace, self._began = began["trace"], True
        self._say(f"tracing {began['user']} for {duration_text(self._seconds)}; Ctrl-C ends it")
        if began["warning"]:
            self._say(began["warning"])

    def _say(self, text: str) -> None:
        if not self._quiet:
            console(stderr=True).print(plain(text, "dim"), soft_wrap=True)


# --- the WebSocket ---


@asynccontextmanager
async def _connection(door: Door, kinds: Collection[str]) -> AsyncIterator[WebSocketConnection]:
    """Events, as they come.

    Raises:
        Declined: The proxy doesn't want to tell.
        NotAnswered: It is not there.
    """
    stream = await _open(door)
    problem: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(TIMEOUT_SECONDS):
                    connection = await _shake_hands(nursery, stream, door, kinds)
                yield connection
                with trio.move_on_after(_GOODBYE_SECONDS):
                    await connection.aclose()
            except trio.TooSlowError:
                problem = NotAnswered(f"{door.name}: no answer within {TIMEOUT_SECONDS:g} s")
            except (Declined, NotAnswered, BrokenPipeError) as exc:
                problem = exc  # out of the nursery it goes alone, not in a group
            nursery.cancel_scope.cancel()
    except* ConnectionRejected as refusals:  # the library's own task raises it
        problem = Declined(_problem(refusals))
    finally:
        await trio.aclose_forcefully(stream)
    if problem is not None:
        raise problem


async def _shake_hands(nursery: trio.Nursery, stream: Any, door: Door, kinds: Collection[str]) -> WebSocketConnection:
    target = f"{EVENTS_PATH}?kinds={','.join(kinds)}"
    headers = dict(door.headers)
    host = headers.pop("Host")
    further = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
    try:
        return await wrap_client_stream(
            nursery,
            stream,
            host,
            target,
            subprotocols=[EVENTS_SUBPROTOCOL],
            extra_headers=further,
            max_message_size=_MAX_EVENT_BYTES,
        )
    except ConnectionClosed:
        raise NotAnswered(f"{door.name}: no answer of a proxy's") from None


async def _open(door: Door) -> Any:
    """A connection, TLS included."""
    try:
        sock = door.dial(TIMEOUT_SECONDS)
    except OSError as exc:
        raise door.explain(exc) from None
    sock.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    if door.tls is None:
        return stream
    secured = trio.SSLStream(stream, door.tls, server_hostname=door.host, https_compatible=True)
    try:
        with trio.fail_after(TIMEOUT_SECONDS):
            await secured.do_handshake()
    except trio.TooSlowError:
        problem = NotAnswered(f"{door.name}: no answer within {TIMEOUT_SECONDS:g} s")
    except trio.BrokenResourceError as exc:
        problem = door.explain(exc.__cause__ if isinstance(exc.__cause__, OSError) else OSError("TLS failed"))
    else:
        return secured
    await trio.aclose_forcefully(stream)
    raise problem


def _problem(refusals: ExceptionGroup[ConnectionRejected]) -> str:
    """What the proxy says."""
    refusal = refusals.exceptions[0]
    assert isinstance(refusal, ConnectionRejected)
    try:
        return str(json.loads(refusal.body or b"")["problem"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {refusal.status_code}"


async def _next(connection: WebSocketConnection) -> dict[str, Any]:
    """The next event.

    Raises:
        NotAnswered: There will be none.
    """
    try:
        event = json.loads(await connection.get_message())
    except ConnectionClosed:
        raise NotAnswered("the proxy has ended the connection: it has reloaded, or it ends") from None
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise NotAnswered("no event of a proxy's")
    return event


@contextmanager
def _until_interrupted() -> Iterator[None]:
    """Ctrl-C is how these commands end, or whoever reads what they print leaves, as `head` does."""
    try:
        yield
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # What is left in the buffer would fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- what is printed ---


class _Printer:
    """Event by event, each at once."""

    def __init__(self, json_output: bool) -> None:
        self._out = None if json_output else console()

    def show(self, event: Event) -> None:
        """One line: JSON, or for people."""
        if self._out is None:
            print_json_line(dict(event))
            return
        when = event.get("time")
        at = clock(when, milliseconds=True) if isinstance(when, (int, float)) else ""
        text, style = _trace_line(event) if event.get("event") == "trace.line" else _event_line(event)
        line = plain(f"{at} {text}", style)
        if self._out.is_terminal:
            self._out.print(line, soft_wrap=True)
        else:
            print(line.plain, flush=True)


def _event_line(event: Event) -> tuple[str, str]:
    values = ((key, value) for key, value in event.items() if key not in ("time", "kind", "event"))
    kind = str(event.get("kind"))
    if kind == LOST:
        return f"{event.get('events')} events were lost here: they came faster than they were read", "red"
    told = " ".join(f"{key}={_value(value)}" for key, value in values if value not in (None, ""))
    return f"{event.get('event')} {told}", _COLOURS.get(kind, "")


def _trace_line(event: Event) -> tuple[str, str]:
    mark, colour = _SIDES.get(str(event.get("side")), ("??", ""))
    return f"{event.get('session')} {mark} {event.get('text')}", colour


def _value(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value)
