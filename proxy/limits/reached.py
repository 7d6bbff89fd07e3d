"""Limits that were reached: counted each time, logged so seldom that whoever reaches them cannot fill the log."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from proxy.observe import metrics
from proxy.observe.log import get_logger

log = get_logger()

REFUSE: Final = "refuse"
_COMMAND_ACTIONS = ("delay", REFUSE, "disconnect")
# By the settings' names: what there may be done at each.
ACTIONS: Final = {
    "connections": (REFUSE,),
    "connections_per_address": (REFUSE,),
    "connections_per_user": (REFUSE,),
    "connections_per_backend": (REFUSE,),
    "handshakes_at_once": ("delay", REFUSE),
    "logins_at_once": ("delay", REFUSE),
    "logins_per_address": (REFUSE,),
    "logins_per_user": (REFUSE,),
    "login_failures_per_address": (REFUSE,),
    "login_failures_per_user": (REFUSE,),
    "commands_per_user": _COMMAND_ACTIONS,
    "commands_per_session": _COMMAND_ACTIONS,
    "bytes_per_user": ("delay", "disconnect"),
}
# Of limits and names: whoever is pushed out may be told of once more, a little early.
_MOST_TOLD = 10_000

_REACHED = metrics.counter(
    "porter_limits_reached_total",
    "Times that a limit was reached, by the limit's name in the settings and what was done.",
    limit=None,
    action=None,
)
_COUNTERS = {
    (limit, action): _REACHED.labels(limit, action) for limit, actions in ACTIONS.items() for action in actions
}


class _Told:
    """When each was told of, the longest ago first."""

    def __init__(self, silence: float) -> None:
        """Args:
        silence: In seconds, between two times of the same.
        """
        self._silence = silence
        self._last: OrderedDict[tuple[str, str], float] = OrderedDict()

    def again(self, limit: str, name: str, now: float) -> bool:
        """Whether it is time to tell, which then counts as done."""
        key = (limit, name)
        last = self._last.get(key)
        if last is not None and now - last < self._silence:
            return False
        self._last[key] = now
        self._last.move_to_end(key)
        if len(self._last) > _MOST_TOLD:
            self._last.popitem(last=False)
        return True


Listener = Callable[[dict[str, str]], object]


class _Watch:
    """Whoever looks on just now."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.listener = listener
        self.told = _Told(1.0)


_told = _Told(60.0)
_watch = _Watch()


def watch(listener: Listener | None) -> None:
    """Tell somebody of limits that are reached, once a second for each and whoever reached it; None: nobody."""
    global _watch
    _watch = _Watch(listener)


def reached(limit: str, action: str = REFUSE, *, name: str = "", client: str = "", command: str = "") -> None:
    """Count it, and log it once a minute for each limit and whoever reached it.

    Args:
        limit: Its name in the settings.
        action: What was done.
        name: The canonical name that reached it. "": it is no name's.
        client: The address that reached it. "": it is none's, or it does not matter.
        command: What was commanded. "": it was no command.
    """
    _COUNTERS[limit, action].inc()
    who, now = name or client, time.monotonic()
    if (listener := _watch.listener) is not None and _watch.told.again(limit, who, now):
        listener({"limit": limit, "action": action, "user": name, "client": client})
    if _told.again(limit, who, now):
        log.info("limit.reached", limit=limit, action=action, name=name, client=client, command=command)
