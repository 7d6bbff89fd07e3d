"""What a client says of itself by ID, as the dialogue keeps it."""

from __future__ import annotations

import pytest

from proxy.imap.events import LoginOffered, StartTls
from proxy.imap.server import PreAuthDialogue
from proxy.outcome import Outcome

ORIGIN = {"x-originating-ip": "192.0.2.7", "x-originating-port": "40001"}
ORIGIN_SENT = b'("x-originating-ip" "192.0.2.7" "x-originating-port" "40001")'


def dialogue(*, secure=True):
    return PreAuthDialogue(secure=secure, starttls=not secure, mechanisms={}, greeting=False)


def told(*pieces):
    """The fields that are kept when the pieces were received, and the octets that were sent."""
    told = dialogue()
    for piece in pieces:
        told.receive_data(piece)
        while told.next_event() is not None:
            pass
    return told.client_id, told.data_to_send()


KEPT = [
    ("nothing", b"a NOOP\r\n", {}),
    ("NIL", b"a ID NIL\r\n", {}),
    ("no fields", b"a ID ()\r\n", {}),
    ("fields", b"a ID " + ORIGIN_SENT + b"\r\n", ORIGIN),
    ("names in lower case", b'a ID ("X-Connected-IP" "::1" "OS" "BeOS")\r\n', {"x-connected-ip": "::1", "os": "BeOS"}),
    ("a field without a value", b'a ID ("name" NIL "os" "linux")\r\n', {"os": "linux"}),
    ("an empty value", b'a ID ("name" "")\r\n', {"name": ""}),
    ("literals", b"a ID ({4+}\r\nname {6+}\r\na\r\nb\"c)\r\n", {"name": 'a\r\nb"c'}),
    ("quotes", b'a ID ("name" "a\\"b\\\\c")\r\n', {"name": 'a"b\\c'}),
    ("UTF-8", 'a ID ("näme" "wärt")\r\n'.encode(), {"näme": "wärt"}),
    ("no UTF-8", b'a ID ("n\xff" "\xc3")\r\n', {"n\ufffd": "\ufffd"}),
    ("a field twice", b'a ID ("name" "a" "NAME" "b")\r\n', {"name": "b"}),
    ("the last one", b'a ID ("name" "a")\r\nb ID ("os" "b")\r\n', {"os": "b"}),
    ("taken back", b'a ID ("name" "a")\r\nb ID NIL\r\n', {}),
    ("as many as may be", b"a ID (" + b" ".join(b'"f%d" "v"' % number for number in range(30)) + b")\r\n",
     {f"f{number}": "v" for number in range(30)}),
    ("another command behind", b'a ID ("name" "a")\r\nb NOOP\r\nc SELECT x\r\n', {"name": "a"}),
]  # fmt: skip
REFUSED = [
    b'b ID ("name" "b"\r\n',
    b'b ID ("name" "b") x\r\n',
    b'b ID ("name" "b" "os")\r\n',
    b"b ID (" + b" ".join([b'"name" "b"'] * 31) + b")\r\n",
    b'b ID ("name" "' + b"b" * 1025 + b'")\r\n',
    b'b ID ("' + b"f" * 31 + b'" "b")\r\n',
    b"b ID ({9000}\r\n",
    b'b ID ("name" "\0")\r\n',
]


@pytest.mark.parametrize(("name", "received", "fields"), KEPT, ids=[row[0] for row in KEPT])
def test_what_is_kept(name, received, fields):
    assert told(received)[0] == fields
    assert told(*(bytes([octet]) for octet in received))[0] == fields


@pytest.mark.parametrize("refused", REFUSED)
def test_a_refused_id_says_nothing(refused):
    fields, sent = told(b'a ID ("name" "a")\r\n', refused)
    assert fields == {"name": "a"}
    assert sent.splitlines()[-1].split()[1] in (b"BAD", b"NO")


def test_it_stays_over_logins():
    kept = dialogue()
    kept.receive_data(b"a ID " + ORIGIN_SENT + b"\r\nb LOGIN ann wrong\r\nc LOGIN ann pw\r\n")
    for _ in range(2):
        assert isinstance(kept.next_event(), LoginOffered)
        assert kept.client_id == ORIGIN
        kept.reject(Outcome.AUTHENTICATION_FAILED)


def test_what_was_said_in_clear_is_forgotten():
    """Source: RFC 9051 §6.2.1."""
    clear = dialogue(secure=False)
    clear.receive_data(b"a ID " + ORIGIN_SENT + b"\r\nb STARTTLS\r\n")
    assert clear.next_event() == StartTls()
    assert clear.client_id == ORIGIN
    assert clear.after_tls({}).client_id == {}


def test_what_is_pipelined_behind_a_login_is_not_heard_before_it():
    kept = dialogue()
    kept.receive_data(b'a LOGIN ann pw\r\nb ID ("name" "late")\r\n')
    assert isinstance(kept.next_event(), LoginOffered)
    assert kept.next_event() is None
    assert kept.client_id == {}
