"""A web service for nginx's `auth_http`, as a site would have written it: a table of people, a thread per connection.

It keeps every question as it arrived, and can be told to answer in ways that no site would like.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR, socket
from types import TracebackType
from typing import Self
from urllib.parse import unquote_to_bytes

from tests.servers.ports import LOOPBACK

Fields = Mapping[str, str | bytes]
REFUSAL: Fields = {"Auth-Status": "Invalid login or password"}


@dataclass(frozen=True)
class Question:
    """A request; names of fields as they were spelled, values as the octets that came."""

    line: str
    fields: tuple[tuple[str, bytes], ...]

    def __getitem__(self, name: str) -> bytes:
        """The one value of a field.

        Raises:
            ValueError: There is none, or more than one.
        """
        (value,) = [value for each, value in self.fields if each.lower() == name.lower()]
        return value

    def __contains__(self, name: str) -> bool:
        return any(each.lower() == name.lower() for each, _ in self.fields)


@dataclass(frozen=True)
class Reply:
    """An answer of HTTP."""

    fields: Fields = field(default_factory=dict)
    status: int = 200
    body: bytes = b""
    raw: bytes | None = None  # these octets, in place of all that


@dataclass(frozen=True)
class Person:
    """Who may log in, and what the service says then besides Auth-Status."""

    password: bytes
    fields: Fields = field(default_factory=dict)


class AuthService:
    """The service; it runs from start() to stop(), and always on the same port."""

    def __init__(self, port: int, people: Mapping[str, Person] | None = None) -> None:
        self.port = port
        self.people = dict(people or {})
        self.refusal: Fields = REFUSAL
        self.reply: Reply | None = None  # in place of the table
        self.questions: list[Question] = []
        self.answering = threading.Event()  # cleared: it takes questions and keeps silent
        self.answering.set()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/auth"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Return once it accepts."""
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """End it and every connection to it."""
        self.answering.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.end_connections()
            self._server = None

    def answer(self, question: Question) -> Reply:
        """What the table says. A service gets octets and undoes nginx's escapes."""
        if self.reply is not None:
            return self.reply
        if "Auth-User" not in question:
            return Reply(status=400)
        person = self.people.get(unquote_to_bytes(question["Auth-User"]).decode())
        if person is None or person.password != unquote_to_bytes(question["Auth-Pass"]):
            return Reply(self.refusal)
        return Reply({"Auth-Status": "OK", **person.fields})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, service: AuthService) -> None:
        self.service = service
        self._connections: set[socket] = set()
        super().__init__((LOOPBACK, service.port), _Handler)

    def finish_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket)
        self._connections.add(request)
        super().finish_request(request, client_address)

    def shutdown_request(self, request: object) -> None:
        assert isinstance(request, socket)
        self._connections.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        for connection in tuple(self._connections):
            try:
                connection.shutdown(SHUT_RDWR)
            except OSError:  # it has ended by itself
                pass

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections end in every way here; nothing is printed of it."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:  # http.server asks for this name
        service = self.server.service
        # http.server reads ISO 8859-1, in which every octet is a character.
        fields = tuple((name, value.encode("latin-1")) for name, value in self.headers.items())
        question = Question(self.requestline, fields)
        service.questions.append(question)
        service.answering.wait(30)
        reply = service.answer(question)
        if reply.raw is not None:
            self.wfile.write(reply.raw)
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {**reply.fields, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value if isinstance(value, str) else value.decode("latin-1"))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *values: object) -> None:
        """Nothing is printed."""
