"""Traces at a running proxy with real backends: what is told of a user's sessions, and what is not."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

from tests.servers.accounts import USERS
from tests.servers.dovecot import Dovecot
from tests.servers.porter import Porter, wait_for
from tests.servers.wire import Wire

pytestmark = pytest.mark.server

SECONDS = 60
MAIL = b"From: a@test.example\r\nSubject: subject-7q2\r\n\r\n" + b"body-5k1 a OK body-5k1\r\n" * 2000
OTHER_PASSWORD = "wrong-2p9x"

LIMITS = {
    "commands_per_session": {"all": {"rate": 500, "per": "1s"}},
    "bytes_per_user": {"rate": "100MiB", "per": "1s"},
}


class SocketConnection(http.client.HTTPConnection):
    """HTTP over the administrators' socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)


def change(path: Path, verb: str, status: int = 200, **values: Any) -> dict[str, Any]:
    """Have something changed; gives what was done."""
    with closing(SocketConnection(path)) as connection:
        body = json.dumps({**values, "reason": "a complaint"})
        connection.request("POST", f"/v1/{verb}", body, {"Content-Type": "application/json"})
        with connection.getresponse() as answer:
            document = json.loads(answer.read())
            assert answer.status == status, document
    return dict(document.get("done", {}))


@contextmanager
def reading(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The lines that are told meanwhile; it grows."""
    lines: list[dict[str, Any]] = []
    began = threading.Event()
    ends: list[Callable[[], None]] = []

    async def read() -> None:
        async with await trio.open_unix_socket(str(path)) as stream, trio.open_nursery() as nursery:
            token = trio.lowlevel.current_trio_token()
            ends.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            websocket = await wrap_client_stream(
                nursery, stream, "localhost", "/v1/events?kinds=trace", subprotocols=["porter.events"]
            )
            began.set()
            with suppress(ConnectionClosed):  # the steward may die
                while True:
                    lines.append(json.loads(await websocket.get_message()))
            await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(read,))
    thread.start()
    try:
        assert began.wait(20)
        yield lines
    finally:
        for end in ends:
            end()
        thread.join(20)


def texts(lines: list[dict[str, Any]], side: str) -> list[str]:
    return [line["text"] for line in lines if line.get("side") == side]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="no limits"),
        pytest.param({"limits": LIMITS}, id="limits"),
    ],
)
def test_a_user_is_traced(
    start_porter: Callable[..., Porter], dovecots: list[Dovecot], short_folder: Path, changes: Mapping[str, Any]
) -> None:
    path = short_folder / "a.sock"
    porter = start_porter(admin={"socket": str(path)}, **changes)
    context = porter.pki.client_context()
    with (
        Wire.connect(porter.imaps_port, context) as lives,
        Wire.connect(porter.imaps_port, context) as other,
        reading(path) as lines,
    ):
        assert lives.login("u05", USERS["u05"]).startswith(b"OK")
        assert other.login("u06", USERS["u06"]).startswith(b"OK")
        trace = change(path, "trace", user="u05", seconds=SECONDS)["trace"]
        assert wait_for(lambda: len(porter.log("trace.began")) == 2), "both workers look on"

        lives.command(b"SELECT INBOX", tag=b"l1")
        other.command(b"NOOP", tag=b"o1")
        for synchronizing in (True, False):
            assert lives.append(b"INBOX", MAIL, synchronizing=synchronizing).startswith(b"OK")
        lives.command(b"NOOP")
        assert lives.fetch_body(b"*") == MAIL
        lives.command(b"FETCH * (ENVELOPE BODYSTRUCTURE BODY.PEEK[HEADER.FIELDS (Subject)])", tag=b"l2")
        lives.command(b'SEARCH TEXT "body-5k1" SUBJECT subject-7q2', tag=b"l3")
        lives.command(b"LOGIN u05 " + USERS["u05"].encode(), tag=b"l4")

        with Wire.connect(porter.starttls_port) as comes:
            comes.starttls(context)
            assert comes.login("u05", OTHER_PASSWORD).startswith(b"NO")
            assert comes.login("u05", USERS["u05"]).startswith(b"OK")
            comes.command(b"NOOP", tag=b"c1")
            comes.command(b"LOGOUT", tag=b"c2")
        assert wait_for(lambda: "ended: logged_out" in texts(lines, "note"))

        client, backend, notes = (texts(lines, side) for side in ("client", "backend", "note"))
        assert {"l1 SELECT INBOX", "c1 NOOP", 'l3 SEARCH TEXT "…" SUBJECT …'} <= {*client}
        assert not [text for text in [*client, *backend] if text.startswith("o1")]
        assert [text for text in client if f"…{len(MAIL)} octets left out" in text and " APPEND INBOX " in text]
        assert [text for text in backend if text.startswith("l1 OK")]
        assert [text for text in backend if "BODY[] {" in text and f"…{len(MAIL)} octets left out" in text]
        assert "answered here: (tag) BAD Command not allowed after login." in notes
        assert [note for note in notes if note.startswith("LOGIN: authentication_failed")]
        assert [note for note in notes if note.startswith("logged in: backend d")]

        # Nor does it end with the steward who was asked for it.
        porter.kill_one("steward")
        assert wait_for(lambda: len(porter.log("steward.began")) == 2)
        with reading(path) as later:
            lives.command(b"NOOP", tag=b"l5")
            assert wait_for(lambda: "l5 NOOP" in texts(later, "client"))
            change(path, "untrace", 404, trace=trace)  # the new steward does not know it, and ends it all the same
            assert wait_for(lambda: len(porter.log("trace.ended")) == 2)
            lives.command(b"NOOP", tag=b"l6")
            second = change(path, "trace", user="u05", seconds=SECONDS)["trace"]
            assert wait_for(lambda: len(porter.log("trace.began")) == 4)
            lives.command(b"NOOP", tag=b"l7")
            assert wait_for(lambda: "l7 NOOP" in texts(later, "client"))
            assert "l6 NOOP" not in texts(later, "client")
            change(path, "untrace", trace=second)
            lines += later

    everything = json.dumps(lines)
    for secret in (USERS["u05"], OTHER_PASSWORD, "body-5k1", "subject-7q2"):
        assert secret not in everything
