"""Questions to the running proxy, at either of its doors; and what commands that ask have in common.

What may be asked stands in the table that the API is made from too, `proxy.admin.verbs`: a question is checked here as
the proxy will check it.
"""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Callable
from typing import Any

from proxy.admin.questions import Question
from proxy.admin.verbs import VERBS, Unusable, Verb
from proxy.cli.doors import Door, NoDoor, NotAnswered, SocketDoor, address_door
from proxy.cli.options import Call
from proxy.cli.terminal import EXIT_OK, EXIT_SETTINGS, print_json, print_mistakes
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError, printable
from proxy.settings.models import Settings
from proxy.settings.units import SECONDS

EXIT_REFUSED = 2
EXIT_UNAVAILABLE = 3
NO_SOCKET = "admin.socket is not set; add e.g. admin: {socket: /run/imap-porter/admin.sock} and start the proxy anew"

TIMEOUT_SECONDS = 30.0
UNHEARD = "the change may still be made; look before you ask again"
_MAX_ANSWER_BYTES = 64 * 1024 * 1024

Show = Callable[[dict[str, Any]], None]


class Declined(Exception):
    """The proxy answered, and it was a no. The text is its own."""


class Proxy:
    """The running proxy."""

    def __init__(self, door: Door, settings: Settings | None = None) -> None:
        """Args:
        settings: Those of the file that named the door; None: a URL did.
        """
        self.door = door
        self.settings = settings

    def ask(
        self, verb: str, /, *, patience_seconds: float | None = None, unheard: str = UNHEARD, **values: Any
    ) -> dict[str, Any]:
        """Ask for something, or have something changed.

        Args:
            verb: Of the table.
            patience_seconds: How long to wait; None: TIMEOUT_SECONDS.
            unheard: What to say of a change whose answer did not come.
            values: The question.
        Returns:
            The answer; of a change what was done, and its `warning`.
        Raises:
            Declined: It makes no sense, or cannot be done.
            NotAsked: Nobody listens, or this user may not ask.
            NotAnswered: There is no answer, or it makes no sense.
        """
        wanted = VERBS[verb]
        seconds = TIMEOUT_SECONDS if patience_seconds is None else patience_seconds
        connection = _connect(self.door, seconds)
        try:
            question = wanted.ask(**values)
            answer = _exchange(connection, self.door, wanted, question, seconds)
            return answer if wanted.method == "GET" else {**answer["done"], "warning": answer["warning"]}
        except Unusable as exc:
            raise Declined(str(exc)) from None
        except (NotAnswered, KeyError, TypeError) as exc:
            problem = str(exc) if isinstance(exc, NotAnswered) else f"{self.door.name}: an answer of another version's"
            raise NotAnswered(problem if wanted.method == "GET" else f"{problem}; {unheard}") from None
        finally:
            connection.close()


def _connect(door: Door, seconds: float) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(door.host)
    try:
        sock = door.dial(seconds)
        try:
            connection.sock = sock if door.tls is None else door.tls.wrap_socket(sock, server_hostname=door.host)
        except BaseException:
            sock.close()
            raise
    except OSError as exc:
        raise door.explain(exc) from None
    return connection


def _exchange(
    connection: http.client.HTTPConnection, door: Door, verb: Verb, question: Question, seconds: float
) -> dict[str, Any]:
    try:
        connection.request(verb.method, verb.target(question), verb.body(question), dict(door.headers))
        response = connection.getresponse()
        return _read(door, response.status, response.read(_MAX_ANSWER_BYTES))
    except TimeoutError:
        raise NotAnswered(f"{door.name}: no answer within {seconds:g} s") from None
    except (OSError, http.client.HTTPException) as exc:
        raise NotAnswered(f"{door.name}: {exc or type(exc).__name__}") from None


def _read(door: Door, status: int, octets: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(octets)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NotAnswered(f"{door.name}: HTTP status {status}, and no answer of a proxy's")
    if status == http.client.OK:
        return answer
    raise Declined(str(answer.get("problem", f"HTTP status {status}")))


def find_proxy(call: Call) -> Proxy:
    """The proxy that is meant.

    Raises:
        SettingsError: The settings have mistakes.
        NoDoor: Nothing says where to ask.
    """
    if call.url is not None:
        return Proxy(address_door(call.url, call.token_file, call.ca))
    settings = load(call.config)
    if settings.admin.socket is None:
        raise NoDoor(f"{call.config}: {NO_SOCKET}")
    return Proxy(SocketDoor(settings.admin.socket), settings)


def attempt(call: Call, action: Callable[[Proxy], int]) -> int:
    """Find the proxy and do something with it; whatever goes wrong is told.

    Returns:
        What the action gives; 1: the settings have mistakes, or there is no door; 2: it cannot be done; 3: the proxy
        doesn't answer.
    """
    try:
        return action(find_proxy(call))
    except SettingsError as exc:
        print_mistakes(exc, call.json_output)
        return EXIT_SETTINGS
    except NoDoor as exc:
        return fail(call.json_output, EXIT_SETTINGS, str(exc))
    except Declined as exc:
        return fail(call.json_output, EXIT_REFUSED, str(exc))
    except NotAnswered as exc:
        return fail(call.json_output, EXIT_UNAVAILABLE, str(exc))


def conversation(call: Call, request: Callable[[Proxy], dict[str, Any]], show: Show) -> int:
    """Ask, and show the answer.

    Args:
        call: Whom to ask.
        request: Asks.
        show: For people.
    Returns:
        As attempt(); 0.
    """

    def action(proxy: Proxy) -> int:
        answer = request(proxy)
        if call.json_output:
            print_json({"ok": True, **answer})
        else:
            show(answer)
        return EXIT_OK

    return attempt(call, action)


def put(call: Call, verb: str, show: Show, **values: Any) -> int:
    """Ask one verb, and show the answer.

    Returns:
        As conversation().
    """
    return conversation(call, lambda proxy: proxy.ask(verb, **values), show)


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


def count(number: int, noun: str) -> str:
    """`1 session`, `3 sessions`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
