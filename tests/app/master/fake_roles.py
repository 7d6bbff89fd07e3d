"""A worker and a steward who speak the control protocol and do little else; what they hear stands in the log.

They do as the file `orders.json` beside the settings says: it is read when a process begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

from proxy.app.plan import Plan, Roles, StewardPlace, WorkerPlace
from proxy.app.start import serve_with
from proxy.app.succession import Patience
from proxy.transport.packets import receive_packet, send_packet

PATIENCE = Patience(ready=3.0, hand_over=1.0, accepting=2.0, silent=2.0, leave=1.0, drained=1.0)


def tell(event: str, **values: object) -> None:
    """Into the log at once: a process that is killed takes lines along that wait for their writer."""
    os.write(2, json.dumps({"event": event, **values}).encode() + b"\n")


class Fake:
    """What both have in common."""

    def __init__(self, plan: Plan, name: str, control: socket.socket) -> None:
        self.plan, self.name, self.control = plan, name, control
        self.listening: list[socket.socket] = []
        self.clients: dict[int, socket.socket] = {}
        self.descriptors: list[int] = []
        self.over = False
        self.orders: list[str] = []
        with contextlib.suppress(PermissionError):  # who has given up his rights does without
            self.orders = json.loads(plan.config.with_name("orders.json").read_text()).get(name, [])

    def live(self) -> None:
        """Until told to stop, or the master is gone."""
        if "crash" in self.orders:
            raise RuntimeError("ordered to crash")
        if "never ready" not in self.orders:
            self.say(["ready"])
        spoken = time.monotonic()
        while not self.over:
            watched = [self.control, *self.listening, *self.clients.values(), *self.others()]
            readable, _, _ = select.select(watched, [], [], 0.2)
            for sock in readable:
                if sock is self.control:
                    self.obey()
                elif sock in self.listening:
                    self.accept(sock)
                elif sock in self.clients.values():
                    self.echo(sock)
                else:
                    self.look(sock)
            if time.monotonic() - spoken > 0.5 and "silent" not in self.orders:
                spoken = time.monotonic()
                self.say(["alive"])

    def others(self) -> list[socket.socket]:
        return []

    def look(self, sock: socket.socket) -> None:
        raise AssertionError(sock)

    def say(self, *messages: list[Any]) -> None:
        with contextlib.suppress(OSError):
            send_packet(self.control, messages)

    def obey(self) -> None:
        try:
            packet = receive_packet(self.control)
        except (EOFError, OSError):
            tell("fake.orphaned", process=self.name)
            self.over = True
            return
        if packet is None:
            return
        messages, self.descriptors = packet
        for message in messages:
            tell("fake.heard", process=self.name, pid=os.getpid(), message=message)
            getattr(self, f"on_{message[0]}", lambda *_: None)(*message[1:])

    def accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = listener.accept()
            client.sendall(f"{self.name} {os.getpid()}\n".encode())
            self.clients[client.fileno()] = client

    def echo(self, client: socket.socket) -> None:
        data = client.recv(4096)
        if data:
            client.sendall(data)
            return
        del self.clients[client.fileno()]
        client.close()

    def on_stop(self) -> None:
        self.over = "deaf" not in self.orders

    def on_files(self, paths: list[str]) -> None:
        for path, descriptor in zip(paths, self.descriptors, strict=True):
            with os.fdopen(descriptor, "rb") as file:
                tell("fake.file", process=self.name, path=path, text=file.read().decode())
        if "refuse files" in self.orders:
            self.say(["rejected", paths[0], "not to my taste"])


class FakeWorker(Fake):
    """Tells each client who it is, and echoes what he says."""

    def __init__(self, plan: Plan, place: WorkerPlace) -> None:
        super().__init__(plan, place.worker_id, place.control)
        self.place = place
        self.leaving = False
        tell("fake.worker", process=self.name, row=place.row, sockets=len(place.sockets))

    def on_accept(self) -> None:
        self.listening = [sock for _, sock in self.place.sockets]
        self.say(["accepting"])

    def on_retire(self, _seconds: float) -> None:
        self.listening = []
        self.over = not self.clients

    def on_drain(self, grace: float, seconds: float) -> None:
        self.over = "deaf" not in self.orders

    def echo(self, client: socket.socket) -> None:
        super().echo(client)
        if not self.listening and not self.clients:
            self.over = True


class FakeSteward(Fake):
    """Notices workers' ends, hands over what it has been handed, and asks for reloads when a client says so."""

    def __init__(self, plan: Plan, place: StewardPlace) -> None:
        super().__init__(plan, f"s{plan.generation}", place.control)
        self.place = place
        self.links = dict(place.links)
        self.history: list[str] = []
        tell("fake.steward", process=self.name, links=sorted(self.links))

    def others(self) -> list[socket.socket]:
        return list(self.links.values())

    def look(self, sock: socket.socket) -> None:
        name = next(name for name, link in self.links.items() if link is sock)
        try:
            receive_packet(sock)
            return
        except (EOFError, OSError):
            pass
        tell("fake.link_ended", process=self.name, worker=name)
        self.links.pop(name).close()

    def echo(self, client: socket.socket) -> None:
        if client.recv(4096) == b"reload\n":
            self.say(["ask", client.fileno(), "reload"])

    def on_answer(self, question: int, ok: bool, text: str) -> None:
        self.clients[question].sendall(f"{ok} {text}\n".encode())

    def on_begin(self) -> None:
        if self.place.hand_over is not None:
            self.history = json.loads(os.pread(self.place.hand_over, 4096, 0) or b"[]")
        tell("fake.begun", process=self.name, history=self.history)
        places = (self.place.metrics, self.place.admin, self.place.admin_socket)
        self.listening = [sock for sock in places if sock is not None]

    def on_hand_over(self) -> None:
        if "keep it" in self.orders:
            return
        os.pwrite(self.descriptors[0], json.dumps([*self.history, self.name]).encode(), 0)
        self.say(["handed_over"])
        self.over = True

    def on_worker(self, name: str) -> None:
        self.links[name] = socket.socket(fileno=self.descriptors[0])


ROLES = Roles(
    lambda plan, place: FakeWorker(plan, place).live(),
    lambda plan, place: FakeSteward(plan, place).live(),
)


def main() -> int:
    """As the command would be called: `serve -c FILE`, `check -c FILE`."""
    verb, _, config = sys.argv[1:4]
    if verb == "check":
        return 1 if Path(config).with_name("broken").exists() else 0
    return serve_with(Path(config), ROLES, PATIENCE)


if __name__ == "__main__":
    sys.exit(main())
