"""Who is let in to ask: checks before any handler runs, for requests and WebSockets alike.

On the unix socket the kernel says who asks. On an address there may be a browser between us and whoever asks, which
other pages can have ask too: by a name of theirs that they let point here (DNS rebinding), which Host shows, or from
their own origin, which Origin shows. After that a token says who it is and what he may do.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from proxy.admin.tokens import Tokens
from proxy.admin.verbs import BEARER_SUBPROTOCOL, Role
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Outcome, Refused
from proxy.transport.listen import plain_host

log = get_logger()

API = "/v1/"
OPEN = ("/livez", "/readyz")  # kubelets ask by address, and whether we live is no secret
MAX_BODY_BYTES = 4096
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_SILENCE_SECONDS = 60.0
_MOST_TOLD = 1000


class Why(StrEnum):
    """Why somebody was refused."""

    USER = "user"
    HOST = "host"
    ORIGIN = "origin"
    TOKEN = "token"  # noqa: S105 - a word, no secret
    ROLE = "role"


_REFUSED = metrics.counter("porter_admin_refused_total", "Administrators' requests that were refused, by why.", why=Why)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the log tells it."""

    name: str
    role: Role


class Answer(JSONResponse):
    """JSON in ASCII: a name may hold what UTF-8 cannot spell."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def problem(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """An answer that says why not."""
    return Answer({"problem": text}, status_code=status, headers=headers)


class Refusals:
    """Counts them, and logs each sort once a minute for each client: whoever is refused cannot fill the log, nor hide
    others from it.
    """

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[Why, str], float] = OrderedDict()

    def note(
        self, why: Why, scope: Scope, *, uid: int | None = None, host: str = "", origin: str = "", caller: str = ""
    ) -> None:
        """Somebody was refused; what is known of him besides is empty where it is not about that."""
        _REFUSED.labels(why).inc()
        client = str((scope.get("client") or ("",))[0])
        now = time.monotonic()
        if now - self._told.get((why, client), -_SILENCE_SECONDS) < _SILENCE_SECONDS:
            return
        self._told[why, client] = now
        self._told.move_to_end((why, client))
        if len(self._told) > _MOST_TOLD:
            self._told.popitem(last=False)
        path = scope["path"][:200]
        log.warning(
            "admin.refused", why=str(why), client=client, path=path, uid=uid, host=host, origin=origin, caller=caller
        )


class PeerGuard:
    """Whoever connects has to be one of these users of the machine; he may do everything.

    The socket's mode says the same; default ACLs of its folder, or a chmod, could have said more.
    """

    def __init__(self, app: ASGIApp, uids: Collection[int]) -> None:
        self._app = app
        self._uids = uids
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        uid = scope["state"].get("peer_uid")
        if uid not in self._uids:
            self._refusals.note(Why.USER, scope, uid=uid)
            refusal = problem(403, "only root and the user whom the proxy runs as may ask")
            await refuse(refusal, scope, receive, send)
            return
        scope["state"] |= {"caller": Caller(f"uid {uid}", Role.OPERATOR), "refusals": self._refusals}
        await self._app(scope, receive, send)


class AddressGuard:
    """Host, Origin, and for the API a token."""

    def __init__(self, app: ASGIApp, tokens: Tokens, hosts: Collection[str], origins: Collection[str]) -> None:
        """Args:
        hosts: Values of Host that are answered beside the address's own; one without a port at any port.
        origins: Origins beside the address's own.
        """
        self._app = app
        self._tokens = tokens
        self._hosts = frozenset(host.lower() for host in (*LOOPBACK_NAMES, *hosts))
        self._origins = frozenset(origin.lower() for origin in origins)
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        refusal = self._judge_place(scope)
        if refusal is None and (scope["path"] + "/").startswith(API):
            refusal = await self._judge_token(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refuse(refusal, scope, receive, send)

    def _judge_place(self, scope: Scope) -> Response | None:
        hosts = [value.lower() for value in _headers(scope, b"host")]
        if len(hosts) != 1 or not self._is_ours(hosts[0], scope):
            self._refusals.note(Why.HOST, scope, host=", ".join(hosts)[:200])
            return problem(403, "this Host is not answered here; admin.hosts lists others than the address's own")
        origins = [value.lower() for value in _headers(scope, b"origin")]
        if any(not self._is_near(origin, hosts[0], scope) for origin in origins):
            self._refusals.note(Why.ORIGIN, scope, origin=", ".join(origins)[:200])
            return problem(403, "pages of this Origin may not ask; admin.origins lists others than the address's own")
        return None

    def _is_ours(self, host: str, scope: Scope) -> bool:
        """Whether somebody who meant us would say so."""
        name = _without_port(host)
        return host in self._hosts or name in self._hosts or name == _own(scope)

    def _is_near(self, origin: str, host: str, scope: Scope) -> bool:
        """Whether a page is from here. Source: RFC 6454 §7."""
        scheme = "https" if scope["state"].get("secure") else "http"
        port = f":{_DEFAULT_PORTS[scheme]}"
        return origin in self._origins or origin.removesuffix(port) == f"{scheme}://{host.removesuffix(port)}"

    async def _judge_token(self, scope: Scope) -> Response | None:
        """Who asks; the rest of the way finds him in the scope."""
        token = _token(scope)
        try:
            address = str((scope.get("client") or ("",))[0])
            known = None if token is None else await self._tokens.find(token, address)
        except Refused as refusal:
            limited = refusal.outcome is Outcome.LIMIT
            return problem(429 if limited else 503, refusal.detail, {"Retry-After": "60"} if limited else None)
        if known is None:
            self._refusals.note(Why.TOKEN, scope)
            text = "a token is needed: Authorization: Bearer TOKEN" if token is None else "nobody has this token"
            return problem(401, text, {"WWW-Authenticate": "Bearer"})  # RFC 6750 §3
        scope["state"] |= {"caller": Caller(known.name, Role(known.role)), "refusals": self._refusals}
        return None


async def refuse(refusal: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in place of whoever was asked."""
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).send_denial_response(refusal)
    else:
        await refusal(scope, receive, send)


async def body_of(request: Request) -> bytes | None:
    """The body; None: it is too large.

    Raises:
        ClientDisconnect: It ended early.
    """
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return None
    return bytes(body)


def _headers(scope: Scope, wanted: bytes) -> Iterator[str]:
    return (value.decode("latin-1").strip() for name, value in scope["headers"] if name.lower() == wanted)


def _without_port(host: str) -> str:
    name, mark, port = host.rpartition(":")
    return name if mark and port.isdigit() else host


def _own(scope: Scope) -> str:
    """The address that was connected to, as it stands in a Host: no name that somebody else could let point here."""
    server = scope.get("server")
    if server is None:
        return ""
    host = plain_host(server[0]).lower()
    return f"[{host}]" if ":" in host else host


def _token(scope: Scope) -> str | None:
    """What the caller shows; None: nothing."""
    for value in _headers(scope, b"authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            return token.strip()
    for offered in scope.get("subprotocols", ()):
        if offered.startswith(BEARER_SUBPROTOCOL):
            encoded = offered.removeprefix(BEARER_SUBPROTOCOL)
            try:
                return base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True).decode()
            except (binascii.Error, ValueError):
                return ""  # something was shown, and it is none
    return None
