"""What a listener for WebSockets may be told."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from proxy.settings.addresses import parse_origin
from proxy.settings.models import Listener

ORIGINS = [
    ("https://mail.example.org", "https://mail.example.org"),
    ("HTTPS://Mail.Example.org", "https://mail.example.org"),
    ("https://mail.example.org:443", "https://mail.example.org"),
    ("http://mail.example.org:80", "http://mail.example.org"),
    ("https://mail.example.org:80", "https://mail.example.org:80"),
    ("http://localhost:8080", "http://localhost:8080"),
    ("http://[::1]:8080", "http://[::1]:8080"),
]
NO_ORIGINS = [
    "", "*", "null", "mail.example.org", "https://", "https://mail.example.org/", "https://mail.example.org/mail",
    "wss://mail.example.org", "https://ann@mail.example.org", "https://*.example.org", "https://a b", 443, None,
]  # fmt: skip


@pytest.mark.parametrize(("written", "read"), ORIGINS)
def test_origins(written: str, read: str) -> None:
    assert parse_origin(written) == read


@pytest.mark.parametrize("written", NO_ORIGINS)
def test_what_is_no_origin(written: object) -> None:
    with pytest.raises(ValueError, match=r"https://mail\.example\.org"):
        parse_origin(written)


HERE = {"trusted_networks": ["127.0.0.0/8"]}
MISPLACED = [
    ({"tls": "starttls"}, "tls", "no STARTTLS in a WebSocket"),
    ({"tls": "none"}, "tls", "needs trusted_networks"),
    ({"tls": "implicit", "protocol": "imap", "websocket": {}}, "websocket", "belongs to protocol: websocket"),
    ({"tls": "none", "protocol": "socketmap", "websocket": {}, **HERE}, "websocket", "belongs to protocol: websocket"),
    ({"tls": "implicit", "domains": ["a.example"]}, "domains", "belongs to protocol: socketmap"),
    ({"tls": "implicit", "websocket": {"keepalive": "10ms"}}, "", "too short"),
    ({"tls": "implicit", "websocket": {"max_message": "1KiB"}}, "", "too small"),
    ({"tls": "implicit", "websocket": {"frames_per_second": 1}}, "", "greater than or equal to 10"),
    ({"tls": "implicit", "websocket": {"origins": ["*"]}}, "", "expected the origin of a web page"),
]


@pytest.mark.parametrize(("given", "key", "problem"), MISPLACED)
def test_what_does_not_fit(given: dict[str, Any], key: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem) as mistake:
        Listener.model_validate({"address": "[::]:443", "protocol": "websocket", **given})
    assert mistake.value.errors()[0].get("ctx", {}).get("key", "") == key


@pytest.mark.parametrize("given", [{"tls": "implicit"}, {"tls": "none", **HERE}, {"tls": "implicit", "websocket": {}}])
def test_what_fits(given: dict[str, Any]) -> None:
    Listener.model_validate({"address": "[::]:443", "protocol": "websocket", **given})
