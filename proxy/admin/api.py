"""The administrators' API, made from the table of verbs; on a unix socket, and on an address for those with a token.

Whoever looks on asks with GET, and a change is POSTed as JSON with its reason. What cannot be done is
{"problem": "..."} with a status of 4xx, or 503 where something that is asked is out. See docs/admin-api.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from proxy.admin.commands import House, NotPossible, NotThere, carry_out
from proxy.admin.console import console_routes
from proxy.admin.events import Hub, Kind, TooManyReaders
from proxy.admin.guard import MAX_BODY_BYTES, AddressGuard, Answer, Caller, PeerGuard, Why, body_of, problem
from proxy.admin.http import MIDDLEWARE, Readiness, health_routes
from proxy.admin.openapi import openapi_document
from proxy.admin.questions import Question
from proxy.admin.tokens import Tokens
from proxy.admin.verbs import EVENTS_PATH, EVENTS_SUBPROTOCOL, VERBS, Role, Unusable, Verb
from proxy.outcome import Outcome, Refused

# Of all readers together: beyond this they are told of losses. It bounds what looking on takes from logins.
MAX_EVENTS_PER_SECOND = 1000
_NO_DATA = 1003  # RFC 6455 §7.4.1: data that cannot be accepted


class _TooLarge(Exception):
    """The body is."""


def local_app(house: House, uids: Collection[int]) -> Starlette:
    """The API for users of this machine.

    Args:
        house: What answers.
        uids: Those who may ask, and do everything; of others even requests that change nothing are refused.
    """
    return _app(api_routes(house), Middleware(PeerGuard, uids=frozenset(uids)))


def address_app(
    house: House,
    ready: Readiness,
    tokens: Tokens,
    *,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
) -> Starlette:
    """The API for whoever can connect and has a token; the console, whose files need none; health, for everybody.

    Args:
        house: What answers.
        ready: As health_routes() has it.
        tokens: Who may ask.
        hosts: Further values of Host that are answered.
        origins: Further origins of pages that may ask.
    """
    guard = Middleware(AddressGuard, tokens=tokens, hosts=hosts, origins=origins)
    return _app([*api_routes(house), *health_routes(ready), *console_routes()], guard)


def api_routes(house: House) -> list[BaseRoute]:
    """All verbs, and the events."""
    routes: list[BaseRoute] = [
        # A name may hold slashes, and they are quoted: the path is had with the quotes undone.
        Route(verb.path.replace("}", ":path}"), _endpoint(house, verb), methods=[verb.method], name=verb.name)
        for verb in VERBS.values()
    ]
    return [*routes, WebSocketRoute(EVENTS_PATH, _events(house.hub))]


def _app(routes: Sequence[BaseRoute], guard: Middleware) -> Starlette:
    return Starlette(
        routes=routes, middleware=[*MIDDLEWARE, guard], exception_handlers={HTTPException: _show_http_problem}
    )


async def _show_http_problem(_request: Request, exc: Exception) -> Response:
    """No such path, or another method."""
    assert isinstance(exc, HTTPException)
    headers = None if exc.headers is None else dict(exc.headers)
    return problem(exc.status_code, exc.detail, headers)


# --- verbs ---


def _endpoint(house: House, verb: Verb) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        caller: Caller = request.state.caller
        if not caller.role.may(verb.role):
            request.state.refusals.note(Why.ROLE, request.scope, caller=caller.name)
            return problem(403, f"{caller.name} is a {caller.role}, and this is for an {verb.role}")
        try:
            question = await _question(verb, request)
            return Answer(dict(await _answer(house, verb, question, caller)))
        except ClientDisconnect:
            return problem(400, "the body ended early")  # should somebody still read it
        except _TooLarge:
            return problem(413, f"the body is larger than {MAX_BODY_BYTES} octets")
        except Unusable as exc:
            return problem(400, str(exc))
        except NotThere as exc:
            return problem(404, str(exc))
        except NotPossible as exc:
            return problem(409, str(exc))
        except Refused as refusal:
            status = 503 if refusal.outcome is Outcome.UNAVAILABLE else 422
            return problem(status, refusal.detail or str(refusal))

    return answer


async def _question(verb: Verb, request: Request) -> Question:
    if verb.method == "GET":
        return verb.read_query({**request.query_params, **request.path_params})
    body = await body_of(request)
    if body is None:
        raise _TooLarge
    return verb.read_body(body)


async def _answer(house: House, verb: Verb, question: Question, caller: Caller) -> Any:
    if verb.name == "openapi":
        return openapi_document()
    if verb.name == "status":
        told = await house.look(verb.name, question)
        return {**told, "caller": {"name": caller.name, "role": caller.role}}
    if verb.method == "GET":
        return await house.look(verb.name, question)
    return await carry_out(house, verb, question, caller)


# --- events ---


def _events(hub: Hub) -> Callable[[WebSocket], Awaitable[None]]:
    async def tell(websocket: WebSocket) -> None:
        try:
            kinds = _kinds(websocket.query_params.get("kinds"), websocket.state.caller)
        except Unusable as exc:
            await websocket.send_denial_response(problem(400, str(exc)))
            return
        except PermissionError as exc:
            websocket.state.refusals.note(Why.ROLE, websocket.scope, caller=websocket.state.caller.name)
            await websocket.send_denial_response(problem(403, str(exc)))
            return
        try:
            with hub.subscribe(kinds, websocket.state.caller.name) as reader, websocket.state.stay():
                offered = websocket.scope.get("subprotocols", ())
                await websocket.accept(EVENTS_SUBPROTOCOL if EVENTS_SUBPROTOCOL in offered else None)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_until_it_leaves, websocket, nursery.cancel_scope)
                    async for event in reader:
                        await websocket.send_text(event.text)
                        await trio.sleep((len(hub) - 1) / MAX_EVENTS_PER_SECOND)
        except TooManyReaders as exc:
            await websocket.send_denial_response(problem(503, str(exc)))

    return tell


def _kinds(wanted: str | None, caller: Caller) -> frozenset[Kind]:
    """Raises: Unusable: There is no such kind. PermissionError: The caller may not read one."""
    if wanted is None:
        return frozenset(Kind) - (frozenset() if caller.role is Role.OPERATOR else {Kind.TRACE})
    try:
        kinds = frozenset(map(Kind, wanted.split(",")))
    except ValueError:
        raise Unusable(f"kinds: expected some of {','.join(Kind)}") from None
    if Kind.TRACE in kinds and not caller.role.may(Role.OPERATOR):
        raise PermissionError(f"{caller.name} is a {caller.role}, and traces are for an {Role.OPERATOR}")
    return kinds


async def _until_it_leaves(websocket: WebSocket, life: trio.CancelScope) -> None:
    """Readers have nothing to say."""
    message = await websocket.receive()
    if message["type"] != "websocket.disconnect":
        await websocket.close(_NO_DATA)
    life.cancel()
