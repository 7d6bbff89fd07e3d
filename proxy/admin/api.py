"""The administrator's API, on a unix socket: who may open it may do everything, and every change says why.

GET /v1/backends              {"backends": [...]}
GET /v1/route/NAME            where a user goes, and why
POST /v1/backends/NAME        {"state": "up|drain|down"} or {"weight": n}, "over_seconds", "reason"
                              {"before": {...}, "after": {...}, "warning": "..."}, "": nothing to warn of
GET /v1/status                {"version", "generation", "last_reload", "processes": [...]}
POST /v1/reload               {"reloaded": "..."}, what changed; 409 where the settings are as they were, for mistakes
                              or because new processes did not begin

What cannot be done is {"problem": "..."} with a status of 4xx, or 503 where something that is asked is out.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.admin.commands import (
    Change,
    House,
    NoSuchBackend,
    NotReloaded,
    NowhereToMove,
    UnusableChange,
    carry_out,
    reload,
)
from proxy.admin.http import MIDDLEWARE
from proxy.observe.log import get_logger
from proxy.outcome import Outcome, Refused

log = get_logger()

MAX_BODY_BYTES = 4096


class _ForUsers:
    """Whoever connects has to be one of these users of the machine.

    The socket's mode says the same; default ACLs of its folder, or a chmod, could have said more.
    """

    def __init__(self, app: ASGIApp, uids: Collection[int]) -> None:
        self._app = app
        self._uids = uids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the application's own start and end, and websockets, which it has none of
            await self._app(scope, receive, send)
            return
        uid = scope["state"].get("peer_uid")
        if uid in self._uids:
            await self._app(scope, receive, send)
        else:
            log.warning("admin.refused", uid=uid)
            await _problem(403, "only root and the user whom the proxy runs as may ask")(scope, receive, send)


def admin_app(house: House, uids: Collection[int]) -> Starlette:
    """The API.

    Args:
        house: What answers.
        uids: Users of this machine who may ask; of others even requests that change nothing are refused.
    """

    async def show_backends(_request: Request) -> Response:
        return _Answer({"backends": [asdict(view) for view in house.backends()]})

    async def show_route(request: Request) -> Response:
        try:
            return _Answer(dict(await house.route(request.path_params["name"])))
        except Refused as refusal:
            status = 503 if refusal.outcome is Outcome.UNAVAILABLE else 422
            return _problem(status, refusal.detail or str(refusal))

    async def change_backend(request: Request) -> Response:
        try:
            body = await _body(request)
        except ClientDisconnect:
            return _problem(400, "the body ended early")  # should somebody still read it
        if body is None:
            return _problem(413, f"the body is larger than {MAX_BODY_BYTES} octets")
        try:
            change = Change.read(_object(body))
            made = carry_out(house, request.path_params["name"], change, request.state.peer_uid)
        except UnusableChange as exc:
            return _problem(400, str(exc))
        except NoSuchBackend as exc:
            return _problem(404, str(exc))
        except NowhereToMove as exc:
            return _problem(409, str(exc))
        return _Answer(asdict(made))

    async def show_status(_request: Request) -> Response:
        return _Answer(dict(house.status()))

    async def reload_settings(request: Request) -> Response:
        try:
            return _Answer({"reloaded": await reload(house, request.state.peer_uid)})
        except NotReloaded as exc:
            return _problem(409, str(exc))

    routes = [
        Route("/v1/status", show_status),
        Route("/v1/reload", reload_settings, methods=["POST"]),
        Route("/v1/backends", show_backends),
        Route("/v1/route/{name:path}", show_route),
        Route("/v1/backends/{name:path}", change_backend, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[*MIDDLEWARE, Middleware(_ForUsers, uids=frozenset(uids))])


class _Answer(JSONResponse):
    """JSON in ASCII: a name may hold what UTF-8 cannot spell."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def _problem(status: int, text: str) -> Response:
    return _Answer({"problem": text}, status_code=status)


async def _body(request: Request) -> bytes | None:
    """The body; None: it is too large."""
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return None
    return bytes(body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise UnusableChange("the body is no JSON") from None
    if not isinstance(document, dict):
        raise UnusableChange("the body is no JSON object")
    return document
