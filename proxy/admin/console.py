"""The web console's files, as the administrators' door serves them: read once, for everybody, without a token.

The pages hold nothing that is secret: what they show they ask the API for, with the token of whoever looks. A strict
policy keeps whatever comes from outside, names above all, from ever becoming a script, a style or a request elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE = "index.html"
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        # The console makes elements one by one: the browser is to see to it that no text becomes markup.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept by browsers, and asked about each time: an upgrade is seen at once.
    "Cache-Control": "no-cache",
}


def console_routes() -> list[Route]:
    """The page at `/`, and what belongs to it under `/console/`."""
    folder = files("proxy.admin") / "console"
    return [_route("/" if path == _PAGE else f"/console/{path}", found) for path, found in _walk(folder)]


def _walk(folder: Traversable, under: str = "") -> Iterator[tuple[str, Traversable]]:
    for found in folder.iterdir():
        if found.is_dir():
            yield from _walk(found, f"{under}{found.name}/")
        elif _ending(found) in _TYPES:
            yield f"{under}{found.name}", found


def _ending(file: Traversable) -> str:
    return file.name[file.name.rfind(".") :]


def _route(path: str, file: Traversable) -> Route:
    content = file.read_bytes()
    # As long as is ever needed to tell versions of one file apart.
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag, "Content-Type": _TYPES[_ending(file)]}

    async def show(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return Route(path, show)
