"""The listening sockets: bound by the master, kept by it over the lives of those who accept from them.

Each worker has a socket of its own on every address where mail clients arrive (SO_REUSEPORT), so that the kernel
spreads clients over them without waking all. What is queued on a socket is lost when the last process closes it;
therefore a socket outlives its worker, and where there are fewer workers now than sockets, some have two. A socket
that nobody accepts from would swallow its share of the clients, so further ones listen only when there is somebody
for them.

Sockets that the service manager hands over (LISTEN_FDS, sd_listen_fds(3)) take the place of our own where addresses are
the same; all workers share such a one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy.app import private_socket
from proxy.app.private_socket import PrivateListener
from proxy.model import Endpoint
from proxy.observe.log import get_logger
from proxy.settings.models import Settings
from proxy.transport.door import Door
from proxy.transport.listen import BindFailed, bind, listen, prepare

log = get_logger()

_FIRST_GIVEN = 3  # SD_LISTEN_FDS_START


@dataclass(eq=False, slots=True)
class Listening:
    """One TCP socket."""

    endpoint: Endpoint  # as in the settings
    socket: socket.socket
    given: bool = False  # by the service manager
    fresh: bool = False  # made for a generation that has not begun


class Sockets:
    """Every listening socket that the settings ask for, by address."""

    def __init__(self) -> None:
        self.tcp: list[Listening] = []
        self.unix: dict[Path, PrivateListener] = {}
        self._fresh_unix: list[Path] = []

    # --- what a generation needs ---

    def reserve(self, settings: Settings, workers: int, *, listening: bool = False) -> None:
        """Bind what is missing for a generation that is about to be started. All or nothing.

        Args:
            listening: Clients can connect at once, though nobody accepts yet.
        Raises:
            BindFailed: An address cannot be listened on. Its text names the setting, where it is not a listener.
        """
        try:
            for setting, endpoint, number in _needs(settings, workers):
                with _naming(setting):
                    self._reserve_tcp(endpoint, number, listening=listening)
            path = settings.admin.socket
            if path is not None and path not in self.unix:
                with _naming("admin.socket"):
                    self.unix[path] = private_socket.make(path, settings.user)
                self._fresh_unix.append(path)
        except BindFailed:
            self.abandon()
            raise

    def listen(self) -> None:
        """Let clients connect to what has been reserved: there is somebody for them now.

        Raises:
            BindFailed: Somebody else has come to listen there.
        """
        for each in self.tcp:
            if each.fresh:
                listen(each.socket, each.endpoint)

    def abandon(self) -> None:
        """Close what has been reserved: the generation does not begin."""
        for each in [each for each in self.tcp if each.fresh]:
            each.socket.close()
            self.tcp.remove(each)
        for path in self._fresh_unix:
            self.unix.pop(path).close()
        self._fresh_unix.clear()

    def settle(self, settings: Settings) -> None:
        """The generation has begun: keep what has been reserved, close what no setting names any more.

        Sockets beyond the number of workers stay, and so does what the service manager has given: it goes on listening
        there, and would lose clients if nobody could ever accept them again.
        """
        needed = {endpoint for _, endpoint, _ in _needs(settings, 1)}
        for each in list(self.tcp):
            each.fresh = False
            if each.endpoint not in needed and not each.given:
                each.socket.close()
                self.tcp.remove(each)
        self._fresh_unix.clear()
        for path in [path for path in self.unix if path != settings.admin.socket]:
            if not self.unix[path].given:
                self.unix.pop(path).close()

    def close(self) -> None:
        """The end."""
        for each in self.tcp:
            each.socket.close()
        for listener in self.unix.values():
            listener.close()

    # --- whose is which ---

    def of_worker(
        self, doors: Sequence[Door], index: int, workers: int, *, heir: bool = True
    ) -> list[tuple[Door, socket.socket]]:
        """Where a worker accepts, of so many workers.

        Args:
            heir: It is of the generation that what has been reserved is for, and that may not listen yet.
        """
        return [
            (door, each.socket)
            for door in doors
            if door.protocol != "socketmap"
            for position, each in enumerate(self.on(door.endpoint))
            if (heir or not each.fresh) and (each.given or position % workers == index)
        ]

    def of_steward(self, doors: Sequence[Door]) -> list[tuple[Door, socket.socket]]:
        """Where the steward is asked for the sake of Postfix."""
        asking = [door for door in doors if door.protocol == "socketmap"]
        return [(door, each.socket) for door in asking for each in self.on(door.endpoint)]

    def on(self, endpoint: Endpoint) -> list[Listening]:
        """The sockets of one address. A socket keeps its place in the list for life."""
        return [each for each in self.tcp if each.endpoint == endpoint]

    def first(self, endpoint: Endpoint | None) -> socket.socket | None:
        """The socket of an address that one process serves."""
        return None if endpoint is None else self.on(endpoint)[0].socket

    def at(self, path: Path | None) -> socket.socket | None:
        """The unix socket of a path."""
        return None if path is None else self.unix[path].socket

    def _reserve_tcp(self, endpoint: Endpoint, number: int, *, listening: bool) -> None:
        have = self.on(endpoint)
        if any(each.given for each in have):
            return
        for position in range(len(have), number):
            where, beside = endpoint, position > 0
            if beside and endpoint.port == 0:  # any port, but all of them the same
                where = Endpoint(endpoint.host, self.on(endpoint)[0].socket.getsockname()[1])
            sock = bind(where, reuse_port=True, beside=beside, listening=listening)
            self.tcp.append(Listening(endpoint, sock, fresh=True))

    # --- what the service manager has opened ---

    def adopt(self, settings: Settings, environment: MutableMapping[str, str]) -> None:
        """Take over the sockets that the environment tells of, and take them out of it: they are nobody else's."""
        for descriptor in _given(environment):
            sock = socket.socket(fileno=descriptor)
            sock.set_inheritable(False)
            if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                log.warning("sockets.given_in_vain", descriptor=descriptor, address="")
                sock.close()
            elif sock.family == socket.AF_UNIX:
                self._adopt_unix(sock, settings)
            else:
                self._adopt_tcp(sock, settings)

    def _adopt_unix(self, sock: socket.socket, settings: Settings) -> None:
        path = Path(os.fsdecode(sock.getsockname()))
        if path != settings.admin.socket:
            log.warning("sockets.given_in_vain", descriptor=sock.fileno(), address=str(path))
        sock.setblocking(False)
        self.unix[path] = private_socket.given(sock)

    def _adopt_tcp(self, sock: socket.socket, settings: Settings) -> None:
        host, port, *_ = sock.getsockname()
        where = Endpoint(str(ipaddress.ip_address(host.partition("%")[0])), port)
        asked = (endpoint for _, endpoint, _ in _needs(settings, 1))
        endpoint = next((each for each in asked if _same(each, where)), None)
        if endpoint is None:
            log.warning("sockets.given_in_vain", descriptor=sock.fileno(), address=str(where))
        prepare(sock)
        self.tcp.append(Listening(endpoint or where, sock, given=True))


def _needs(settings: Settings, workers: int) -> Iterator[tuple[str, Endpoint, int]]:
    """Setting, address and how many sockets there have to be."""
    for listener in settings.listeners:
        yield "", listener.address, workers if listener.protocol != "socketmap" else 1
    for setting, endpoint in (("metrics.address", settings.metrics.address), ("admin.address", settings.admin.address)):
        if endpoint is not None:
            yield setting, endpoint, 1


def _same(asked: Endpoint, given: Endpoint) -> bool:
    host = asked.host.partition("%")[0]
    return asked.port == given.port and ipaddress.ip_address(host) == ipaddress.ip_address(given.host)


def _given(environment: MutableMapping[str, str]) -> range:
    """The descriptors that were meant for this process."""
    number, process_id = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_FDNAMES", None)
    if process_id != str(os.getpid()) or not number.isdecimal():
        return range(0)
    return range(_FIRST_GIVEN, _FIRST_GIVEN + int(number))


@contextlib.contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Say in a BindFailed which setting it comes from."""
    try:
        yield
    except BindFailed as exc:
        if not setting:
            raise
        raise BindFailed(f"{setting}: {exc}") from exc
