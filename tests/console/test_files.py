"""The console's files, as they are served and as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.admin import console
from proxy.admin.console import console_routes

FOLDER = Path(console.__file__).with_name("console")
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())
WRITTEN = [path for path in FILES if path.suffix in (".js", ".css", ".html")]
# What makes markup or code of a text, or a style that the policy refuses.
FORBIDDEN = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "eval(",
    "Function(",
    'style="',
    "onclick=",
)
# A namespace is a name, not an address.
NAMESPACE = "http://www.w3.org/2000/svg"
MOST_LINES = 400


def named(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


async def ask(route: Route, tag: str = "") -> Response:
    headers = [(b"if-none-match", tag.encode())] if tag else []
    answer = route.endpoint(Request({"type": "http", "method": "GET", "path": route.path, "headers": headers}))
    response = await answer
    assert isinstance(response, Response)
    return response


def test_all_files_have_a_route() -> None:
    paths = {"/" if named(path) == "index.html" else f"/console/{named(path)}" for path in FILES}
    assert {route.path for route in console_routes()} == paths


@pytest.mark.parametrize("route", console_routes(), ids=lambda route: route.path)
async def test_files_are_served_strictly_and_kept(route: Route) -> None:
    response = await ask(route)
    assert response.status_code == 200
    policy = response.headers["content-security-policy"]
    for part in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    assert response.headers["cache-control"] == "no-cache"
    again = await ask(route, response.headers["etag"])
    assert (again.status_code, again.body) == (304, b"")
    assert again.headers["content-security-policy"] == policy
    assert (await ask(route, '"another"')).status_code == 200


@pytest.mark.parametrize("path", WRITTEN, ids=named)
def test_files_keep_to_the_rules(path: Path) -> None:
    text = path.read_text("utf-8")
    assert [each for each in FORBIDDEN if each in text] == []
    assert re.findall(r"\w+://\S+", text.replace(NAMESPACE, "")) == [], "a foreign host"
    assert text.count("\n") <= MOST_LINES


@pytest.mark.parametrize("path", [each for each in FILES if each.suffix == ".js"], ids=named)
def test_modules_that_are_imported_exist(path: Path) -> None:
    for imported in re.findall(r'from "([^"]+)"', path.read_text("utf-8")):
        assert (path.parent / imported).resolve() in FILES
