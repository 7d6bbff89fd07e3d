"""Postfix asks where a user's mail is delivered: `socketmap:inet:HOST:PORT:route` in transport_maps and the like.

So a delivery reaches the backend where its owner's sessions are. Requests and answers are netstrings; a connection
carries many, one after the other:

    23:route alice@example.org,     →  25:OK lmtp:inet:10.0.0.11:24,
    24:route nobody@example.org,    →  9:NOTFOUND ,

NOTFOUND is said only where nobody has the name: Postfix then goes on without this table, and may bounce the mail. What
cannot be said now is TEMP, and the mail waits. What Postfix never sends, a request that is no netstring or too long,
ends the connection, for where the next one begins is not known.

Postfix asks such a table for whole addresses alone and leaves extensions in (socketmap_table(5)). A backend delivers
alice+lists@example.org to alice, so that is who is looked for.

Nobody is asked who he is: a listener of this kind has `trusted_networks`, and whoever accepts looks at them. Still
everything is bounded, the connections, a request's octets, and how long a client may take to ask and to listen.

Source: socketmap_table(5) of Postfix 3.7; D. J. Bernstein, Netstrings, https://cr.yp.to/proto/netstrings.txt.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from enum import StrEnum

import trio

from proxy.model import Endpoint
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Refused
from proxy.settings.backend_models import Server

log = get_logger()

MAP = "route"
LMTP_PORT = 24
# Postfix reads lines of 2048 octets (line_length_limit): all that it may ask is answered, however little of it a name.
MAX_REQUEST_BYTES = 4096
MAX_CONNECTIONS = 500  # five Postfixes with as many processes as one has at most by default, 100
IDLE_SECONDS = 120.0  # for the next request, whole; Postfix closes what it has not used for 10
ANSWER_SECONDS = 30.0  # Postfix waits for 100
WRITE_SECONDS = 10.0
_MAX_DIGITS = len(str(MAX_REQUEST_BYTES))
_MOST_SHOWN = 256  # characters of a name in the log

Route = Callable[[str], Awaitable[str]]


class Answer(StrEnum):
    """The first word of a reply, in small letters."""

    OK = "ok"
    NOTFOUND = "notfound"
    TEMP = "temp"
    PERM = "perm"


_ANSWERS = metrics.counter("porter_socketmap_answers_total", "Answers to Postfix by socketmap.", answer=Answer)
_REFUSED = metrics.counter(
    "porter_socketmap_connections_refused_total", "Socketmap connections closed at once: there were too many."
)


def lmtp_endpoint(server: Server, addresses: Sequence[str] = ()) -> Endpoint:
    """Where a backend takes deliveries.

    Args:
        server: What the settings or discovery say of it.
        addresses: Where discovery has found it; none: the host of its URL counts.
    """
    if server.lmtp is not None:
        return server.lmtp
    return Endpoint(addresses[0] if addresses else server.endpoint.host, LMTP_PORT)


class Socketmap:
    """The map `route`, for all connections."""

    def __init__(self, route: Route, lmtp: Callable[[str], Endpoint], *, recipient_delimiter: str = "+") -> None:
        """Args:
        route: From a name, as it was asked for, to the name of its backend. LookupError: nobody has it. Refused: it
            can't be said now.
        lmtp: From a backend's name to where it takes deliveries.
        recipient_delimiter: Characters that part a name from an address extension, as Postfix has them; "": none do.
        """
        self._route = route
        self._lmtp = lmtp
        self._delimiters = recipient_delimiter
        self._connections = 0
        self._full = False

    async def serve(self, sock: socket.socket, client: Endpoint, domains: Collection[str] = ()) -> None:
        """One connection to its end, whatever its client does; the socket is closed then.

        Args:
            sock: Non-blocking, just accepted, from a trusted network.
            client: Where it comes from, for the log.
            domains: In lower case, those that are asked for here; none: all.
        """
        if not self._let_in(client):
            sock.close()
            return
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        try:
            await self._converse(stream, domains)
        except trio.BrokenResourceError:  # it has gone, or does not read
            pass
        except BadNetstring as exc:
            log.warning("socketmap.request_malformed", client=str(client), problem=str(exc))
        except Exception:
            log.exception("socketmap.connection_failed", client=str(client))
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    def _let_in(self, client: Endpoint) -> bool:
        """Take one of the places, if there is one left."""
        if self._connections >= MAX_CONNECTIONS:
            _REFUSED.inc()
            if not self._full:  # once per spell
                log.warning("socketmap.full", client=str(client), connections=self._connections)
            self._full = True
            return False
        self._full = False
        self._connections += 1
        return True

    async def _converse(self, stream: trio.abc.Stream, domains: Collection[str]) -> None:
        received = Netstrings()
        while True:
            with trio.move_on_after(IDLE_SECONDS):
                while (request := received.next_netstring()) is None:
                    if not (data := await stream.receive_some(MAX_REQUEST_BYTES)):
                        return
                    received.receive_data(data)
            if request is None:
                return
            reply = netstring(await self._reply(request, domains))
            with trio.move_on_after(WRITE_SECONDS) as writing:
                await stream.send_all(reply)
            if writing.cancelled_caught:
                return

    async def _reply(self, request: bytes, domains: Collection[str]) -> bytes:
        """The answer to one request, whatever happens. Reasons are for Postfix's log; ours says more."""
        answer, text = await self._answer(request, domains)
        _ANSWERS.labels(answer).inc()
        return f"{answer.upper()} {text}".encode()

    async def _answer(self, request: bytes, domains: Collection[str]) -> tuple[Answer, str]:
        table, _, key = request.decode("utf-8", "surrogateescape").partition(" ")
        if table != MAP:
            return Answer.PERM, f"there is no such map here, but {MAP}"
        if domains and key.rpartition("@")[2].lower() not in domains:
            return Answer.NOTFOUND, ""
        name = without_extension(key, self._delimiters)
        shown = name[:_MOST_SHOWN]
        detail = f"no answer within {ANSWER_SECONDS:g} s"
        try:
            with trio.move_on_after(ANSWER_SECONDS):
                backend = await self._route(name)
                endpoint = self._lmtp(backend)
                log.debug("socketmap.routed", name=shown, backend=backend, lmtp=str(endpoint))
                return Answer.OK, f"lmtp:inet:{_destination(endpoint)}"
        except Refused as refusal:
            detail = refusal.detail
        except Exception as exc:
            # A KeyError is a bug of ours, and says nothing about who there is.
            if type(exc) is LookupError:
                return Answer.NOTFOUND, ""
            log.exception("socketmap.lookup_failed", name=shown)
            return Answer.TEMP, "internal error"
        log.info("socketmap.deferred", name=shown, reason=detail)
        return Answer.TEMP, "temporarily unavailable"


def without_extension(address: str, delimiters: str) -> str:
    """The address of a mailbox for one with an extension; never one with an empty local part."""
    local, at, domain = address.rpartition("@") if "@" in address else (address, "", "")
    for position, character in enumerate(local):
        if position and character in delimiters:
            return local[:position] + at + domain
    return address


def _destination(endpoint: Endpoint) -> str:
    """An endpoint as Postfix writes it. Source: lmtp(8), LMTP destination syntax."""
    try:
        ipaddress.IPv6Address(endpoint.host)
    except ValueError:  # another address, or a name
        return str(endpoint)
    return f"[ipv6:{endpoint.host}]:{endpoint.port}"


class BadNetstring(Exception):
    """What came is no netstring, or longer than any that is expected."""


def netstring(data: bytes) -> bytes:
    """Octets as a netstring."""
    return b"%d:%s," % (len(data), data)


class Netstrings:
    """Netstrings in a stream of octets. What is kept is bounded, if all that are whole are taken before more comes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take what has come."""
        self._buffer += data

    def next_netstring(self) -> bytes | None:
        """The next one's octets; None: it is not there yet.

        Raises:
            BadNetstring: And there is no way to go on.
        """
        head, colon, _ = self._buffer[: _MAX_DIGITS + 1].partition(b":")
        if not colon and len(head) <= _MAX_DIGITS and (head.isdigit() or not head):
            return None
        if not colon or not head.isdigit() or (head[0] == ord("0") and len(head) > 1):
            raise BadNetstring("it does not begin with a length")
        length = int(head)
        if length > MAX_REQUEST_BYTES:
            raise BadNetstring(f"longer than {MAX_REQUEST_BYTES} octets")
        begin = len(head) + 1
        end = begin + length
        if len(self._buffer) <= end:
            return None
        if self._buffer[end] != ord(","):
            raise BadNetstring("it does not end with a comma")
        data = bytes(self._buffer[begin:end])
        del self._buffer[: end + 1]
        return data
