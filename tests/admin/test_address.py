"""The API on an address: who is let in, by Host, Origin, token and role; over TLS too."""

from __future__ import annotations

import base64
import ssl
from typing import Any

import pytest
import trio
import trustme

from proxy.admin.tokens import MAX_WRONG
from proxy.admin.verbs import CHANGES, VERBS
from proxy.model import Endpoint
from tests.admin.conftest import Lines
from tests.admin.houses import D1, D2, LOOKS, OPERATOR, VIEWER, FakeHouse, exchange, open_address, request
from tests.admin.test_api import ASKED

BEARER = {"authorization": f"Bearer {OPERATOR}"}


async def ask(endpoint: Endpoint, octets: bytes) -> tuple[int, dict[str, str], Any]:
    async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
        return await exchange(stream, octets)


OWN = "127.0.0.1:{port}"
HOSTS = ["imap.example.org", "other.example.org:8443"]
ORIGINS = ["https://status.example.org"]
PLACES: list[tuple[str, int, dict[str, str]]] = [
    ("own host", 200, {"host": OWN}),
    ("own host without its port", 200, {"host": "127.0.0.1"}),
    ("localhost", 200, {"host": "LOCALHOST:{port}"}),
    ("localhost in IPv6", 200, {"host": "[::1]:{port}"}),
    ("a host of the settings", 200, {"host": "imap.example.org"}),
    ("a host of the settings at any port", 200, {"host": "Imap.Example.org:443"}),
    ("a host of the settings with its port", 200, {"host": "other.example.org:8443"}),
    ("a host of the settings with another port", 403, {"host": "other.example.org:8444"}),
    ("another host", 403, {"host": "evil.example.org"}),
    ("another host that begins as one of ours", 403, {"host": "localhost.evil.example.org"}),
    ("another address", 403, {"host": "10.0.0.1"}),
    ("a host and more", 403, {"host": "localhost, evil.example.org"}),
    ("an empty host", 403, {"host": ""}),
    ("own origin", 200, {"host": OWN, "origin": "http://127.0.0.1:{port}"}),
    ("own origin, as a name", 200, {"host": "localhost:{port}", "origin": "http://localhost:{port}"}),
    ("own origin, at the usual port", 200, {"host": "localhost:80", "origin": "http://localhost"}),
    ("an origin of the settings", 200, {"host": OWN, "origin": "https://status.example.org"}),
    ("another scheme", 403, {"host": OWN, "origin": "https://127.0.0.1:{port}"}),
    ("another port", 403, {"host": OWN, "origin": "http://127.0.0.1:1"}),
    ("another origin", 403, {"host": OWN, "origin": "http://evil.example.org"}),
    ("no origin that is one", 403, {"host": OWN, "origin": "null"}),
    ("an empty origin", 403, {"host": OWN, "origin": ""}),
]


@pytest.mark.parametrize(("name", "status", "headers"), PLACES, ids=[row[0] for row in PLACES])
async def test_host_and_origin(logged: Lines, name: str, status: int, headers: dict[str, str]) -> None:
    async with open_address(FakeHouse(), hosts=HOSTS, origins=ORIGINS) as endpoint:
        headers = {key: value.format(port=endpoint.port) for key, value in headers.items()}
        answered, _, answer = await ask(endpoint, request("GET", "/v1/backends", **headers, **BEARER))
        assert answered == status
        assert answer == LOOKS["backends"] if status == 200 else answer.keys() == {"problem"}
        # Whatever stands elsewhere is guarded too, but for what kubelets ask.
        assert (await ask(endpoint, request("GET", "/", **headers)))[0] == status
        assert (await ask(endpoint, request("GET", "/livez", **headers)))[0] == 200
    why = {"origin" if "origin" in headers else "host"} if status == 403 else set()
    assert {line["why"] for line in logged()} == why


TOKENS: list[tuple[str, int, dict[str, str]]] = [
    ("operator", 200, BEARER),
    ("viewer", 200, {"authorization": f"bearer  {VIEWER}"}),
    ("none", 401, {}),
    ("empty", 401, {"authorization": "Bearer "}),
    ("wrong", 401, {"authorization": "Bearer wrong"}),
    ("another scheme", 401, {"authorization": f"Basic {base64.b64encode(OPERATOR.encode()).decode()}"}),
    ("too long", 401, {"authorization": f"Bearer {'x' * 600}"}),
    ("no ASCII", 401, {"authorization": "Bearer \xe4\xff"}),
]


@pytest.mark.parametrize(("name", "status", "headers"), TOKENS, ids=[row[0] for row in TOKENS])
async def test_tokens(logged: Lines, name: str, status: int, headers: dict[str, str]) -> None:
    house = FakeHouse()
    async with open_address(house) as endpoint:
        for target in ("/v1/backends", "/v1/openapi.json", "/v1/status"):
            answered, told, answer = await ask(endpoint, request("GET", target, host="localhost", **headers))
            assert answered == status
            if status == 401:
                assert told["www-authenticate"] == "Bearer"
                assert answer.keys() == {"problem"}
        assert (await ask(endpoint, request("GET", "/v1/nothing", host="localhost", **headers)))[0] in (404, status)
        assert (await ask(endpoint, request("GET", "/v1", host="localhost", **headers)))[0] in (404, status)
    assert bool(house.looks) == (status == 200)
    assert OPERATOR not in str(logged())


async def test_whoever_guesses_tokens_has_to_wait(logged: Lines) -> None:
    async with open_address(FakeHouse()) as endpoint:
        octets = [
            request("GET", "/v1/status", host="localhost", authorization=f"Bearer wrong{number}")
            for number in range(MAX_WRONG + 1)
        ]
        answers = [await ask(endpoint, each) for each in octets]
        assert {status for status, _, _ in answers[:-1]} == {401}
        status, told, answer = answers[-1]
        assert (status, told["retry-after"]) == (429, "60")
        assert answer == {"problem": "too many wrong tokens from this address; wait a minute"}
        # Others are let in meanwhile: by another address of this machine.
        async with await trio.open_tcp_stream(endpoint.host, endpoint.port, local_address="127.0.0.2") as stream:
            assert (await exchange(stream, request("GET", "/v1/status", host="localhost", **BEARER)))[0] == 200
    assert [(line["event"], line["why"]) for line in logged()] == [("admin.refused", "token")]


async def test_each_client_that_is_refused_is_logged_once_a_minute(logged: Lines) -> None:
    addresses = ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2")
    async with open_address(FakeHouse()) as endpoint:
        for own in addresses:
            for headers, status in (({"host": "localhost"}, 401), ({"host": "evil.example.org"}, 403)):
                async with await trio.open_tcp_stream(endpoint.host, endpoint.port, local_address=own) as stream:
                    assert (await exchange(stream, request("GET", "/v1/status", **headers)))[0] == status
    told = [(line["client"], line["why"]) for line in logged()]
    assert told == [(own, why) for own in ("127.0.0.1", "127.0.0.2") for why in ("token", "host")]


@pytest.mark.parametrize("verb", CHANGES)
async def test_a_viewer_changes_nothing(logged: Lines, verb: str) -> None:
    house = FakeHouse()
    body = VERBS[verb].body(VERBS[verb].ask(**ASKED[verb]))
    assert body is not None
    async with open_address(house) as endpoint:
        headers = {"host": "localhost", "authorization": f"Bearer {VIEWER}"}
        status, _, answer = await ask(endpoint, request("POST", f"/v1/{verb}", body, **headers))
        assert (status, answer) == (403, {"problem": "office is a viewer, and this is for an operator"})
        assert (await ask(endpoint, request("POST", f"/v1/{verb}", body, host="localhost")))[0] == 401
    assert (house.backends(), house.asked, house.reloads) == ([D1, D2], [], 0)
    assert {line["event"] for line in logged()} == {"admin.refused"}


@pytest.mark.parametrize("verb", CHANGES)
async def test_an_operator_changes_what_he_wants(logged: Lines, verb: str) -> None:
    body = VERBS[verb].body(VERBS[verb].ask(**ASKED[verb]))
    assert body is not None
    async with open_address(FakeHouse()) as endpoint:
        status, _, answer = await ask(endpoint, request("POST", f"/v1/{verb}", body, host="localhost", **BEARER))
        assert status == 200
        VERBS[verb].answer.model_validate(answer)
    (line,) = (line for line in logged() if line["event"] == "admin.changed")
    assert (line["caller"], line["verb"], line["reason"]) == ("ops", verb, "x")


async def test_headers_that_browsers_heed() -> None:
    async with open_address(FakeHouse()) as endpoint:
        for target in ("/v1/backends", "/v1/nothing", "/livez", "/nothing"):
            _, told, _ = await ask(endpoint, request("GET", target, host="localhost", **BEARER))
            assert told["x-content-type-options"] == "nosniff"
            assert told["cache-control"] == "no-store"
            assert told["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert told["referrer-policy"] == "no-referrer"
        _, told, page = await ask(endpoint, request("GET", "/", host="localhost"))
        assert told["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert page.lower().startswith(b"<!doctype html>")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's, and a client's that trusts it."""
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_tls(authority: trustme.CA) -> None:
    server, client = contexts(authority)
    async with open_address(FakeHouse(), tls=server) as endpoint:
        own = f"localhost:{endpoint.port}"
        rows = [("https", 200), ("http", 403)]
        for scheme, status in rows:
            raw = await trio.open_tcp_stream(endpoint.host, endpoint.port)
            stream = trio.SSLStream(raw, client, server_hostname="localhost", https_compatible=True)
            octets = request("GET", "/v1/backends", host=own, origin=f"{scheme}://{own}", **BEARER)
            assert (await exchange(stream, octets))[0] == status
            await stream.aclose()
        async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream_:
            await stream_.send_all(request("GET", "/livez", host=own))
            with trio.fail_after(5):  # an alert, and the end
                assert not b"".join([chunk async for chunk in stream_]).startswith(b"HTTP")
