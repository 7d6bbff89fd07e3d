"""What a backend is told of a client, and what it is never told."""

from __future__ import annotations

import pytest

from proxy.backends.client_address import fields_for, header_for, local_header
from proxy.imap.client_commands import id_command
from proxy.model import Endpoint, Visitor
from proxy.settings.backend_models import ClientAddress

VISITOR = Visitor(
    Endpoint("2001:db8::7", 50001), Endpoint("192.0.2.2", 993), "s1", proxy_ttl=4, forward={"department": "R&D"}
)

ID = (
    b'ID ("x-originating-ip" "2001:db8::7" "x-originating-port" "50001" "x-connected-ip" "192.0.2.2"'
    b' "x-connected-port" "993" "x-session-id" "s1" "x-proxy-ttl" "4" "x-forward-department" "R&D")'
)

WAYS: list[tuple[ClientAddress, bytes, bytes]] = [
    ("none", b"", b""),
    ("id", b"", b""),
    ("proxy_v1", b"PROXY TCP6 2001:db8::7 ", b"PROXY UNKNOWN\r\n"),
    ("proxy_v2", b"\r\n\r\n\0\r\nQUIT\n\x21\x21", b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"),
]


@pytest.mark.parametrize(("way", "header", "local"), WAYS)
def test_each_way(way: ClientAddress, header: bytes, local: bytes) -> None:
    made = header_for(VISITOR, way)
    assert made.startswith(header)
    assert bool(made) is bool(header)
    assert local_header(way) == local
    assert bool(fields_for(VISITOR, way)) is (way == "id")


def test_the_fields_of_id() -> None:
    fields = fields_for(VISITOR, "id")
    assert id_command(fields) == ID
    assert "x-multiplex" not in dict(fields)


def test_foreign_text_cannot_leave_its_string() -> None:
    hostile = Visitor(VISITOR.client, VISITOR.local, 's" "x-multiplex" "1', forward={"n": 'a"\r\nb LOGOUT'})
    sent = id_command(fields_for(hostile, "id"))
    assert b"\r" not in sent
    assert b"\n" not in sent
    assert rb'"x-session-id" "s\" \"x-multiplex\" \"1"' in sent
    assert rb'"x-forward-n" "a\"??b LOGOUT"' in sent
