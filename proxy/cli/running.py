"""Questions to the running proxy, over the administrator's unix socket; and what commands that ask have in common."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from proxy.admin.commands import UnusableChange
from proxy.cli.terminal import EXIT_OK, EXIT_SETTINGS, print_json, print_mistakes
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError, printable
from proxy.settings.models import Settings
from proxy.settings.units import SECONDS

EXIT_REFUSED = 2
EXIT_UNAVAILABLE = 3
NO_SOCKET = "admin.socket is not set; add e.g. admin: {socket: /run/imap-porter/admin.sock} and start the proxy anew"

TIMEOUT_SECONDS = 30.0
_UNHEARD = "the change may still be made; look with imap-porter backends"
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


class NotAnswered(Exception):
    """There was no answer that could be used. The text says why."""


class NotAsked(NotAnswered):
    """Nobody was asked: there is no socket, or nobody listens there, or this user may not ask."""


class Declined(Exception):
    """The proxy answered, and it was a no. The text is its own."""


def path_of(*names: str) -> str:
    """A path whose parts may hold anything.

    Raises:
        Declined: Octets that are no UTF-8: no name of anything is spelled so.
    """
    try:
        return "".join(f"/{quote(name, safe='')}" for name in names)
    except UnicodeEncodeError:
        raise Declined("a name holds octets that are no UTF-8") from None


def ask(
    socket_path: Path,
    path: str,
    document: Mapping[str, Any] | None = None,
    *,
    seconds: float | None = None,
    unheard: str = _UNHEARD,
) -> dict[str, Any]:
    """Ask the proxy that listens on a socket.

    Args:
        socket_path: `admin.socket` of the settings.
        path: What is asked for.
        document: What is to be changed; None: nothing; empty: the path says it all.
        seconds: How long to wait; None: TIMEOUT_SECONDS.
        unheard: What to say of a change whose answer did not come.
    Raises:
        NotAsked: Nobody listens, or this user may not ask.
        NotAnswered: There is no answer, or it makes no sense.
        Declined: It cannot be done.
    """
    connection = _UnixConnection(socket_path, TIMEOUT_SECONDS if seconds is None else seconds)
    try:
        connection.connect()
        return _exchange(connection, path, document, unheard)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotAsked(f"the proxy is not running: nobody listens on {socket_path}") from None
    except PermissionError:
        raise NotAsked(f"{socket_path}: only root and the user whom the proxy runs as may open it") from None
    except OSError as exc:
        raise NotAnswered(f"{socket_path}: {exc}") from None
    finally:
        connection.close()


def _exchange(
    connection: _UnixConnection, path: str, document: Mapping[str, Any] | None, unheard: str
) -> dict[str, Any]:
    """Ask whoever listens."""
    socket_path = connection.socket_path
    method, body = ("GET", None) if document is None else ("POST", json.dumps(document) if document else None)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return _read(socket_path, response.status, response.read(_MAX_ANSWER_BYTES))
    except TimeoutError:
        problem = f"{socket_path}: no answer within {connection.seconds:g} s"
    except (OSError, http.client.HTTPException) as exc:
        problem = f"{socket_path}: {exc or type(exc).__name__}"
    except NotAnswered as exc:
        problem = str(exc)
    if document is not None:
        problem += f"; {unheard}"
    raise NotAnswered(problem)


def _read(socket_path: Path, status: int, octets: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(octets)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NotAnswered(f"{socket_path}: HTTP status {status}, and no answer of a proxy's")
    if status == http.client.OK:
        return answer
    raise Declined(str(answer.get("problem", f"HTTP status {status}")))


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket."""

    def __init__(self, socket_path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self.socket_path = socket_path
        self.seconds = seconds

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.socket_path))


def conversation(
    config: Path,
    json_output: bool,
    request: Callable[[Path, Settings], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
) -> int:
    """Find the socket, ask, and show the answer; whatever goes wrong is told.

    Args:
        request: Asks at a socket.
        show: For people.
    Returns:
        0; 1: the settings have mistakes, or no `admin.socket`; 2: it cannot be done; 3: the proxy doesn't answer.
    """
    try:
        settings = load(config)
    except SettingsError as exc:
        print_mistakes(exc, json_output)
        return EXIT_SETTINGS
    path = settings.admin.socket
    if path is None:
        return fail(json_output, EXIT_SETTINGS, f"{config}: {NO_SOCKET}")
    try:
        answer = request(path, settings)
    except (Declined, UnusableChange) as exc:
        return fail(json_output, EXIT_REFUSED, str(exc))
    except NotAnswered as exc:
        return fail(json_output, EXIT_UNAVAILABLE, str(exc))
    if json_output:
        print_json({"ok": True, **answer})
    else:
        show(answer)
    return EXIT_OK


def fail(json_output: bool, status: int, problem: str) -> int:
    """Tell a problem, of one line or several, and give the exit status back."""
    if json_output:
        print_json({"ok": False, "problem": problem})
    else:
        print("\n".join(printable(line) for line in problem.split("\n")), file=sys.stderr)
    return status


def rough_duration(seconds: float) -> str:
    """A duration as people say it: in the largest unit of which there are two."""
    for unit in ("d", "h", "m"):
        if seconds >= 2 * SECONDS[unit]:
            return f"{seconds // SECONDS[unit]:.0f}{unit}"
    return f"{seconds:.0f}s"
