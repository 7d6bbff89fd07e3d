"""Sessions that have to make way: ended at a safe point, or when patience is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from proxy.outcome import Outcome
from proxy.relay.engine import Engine

_ROUND_SECONDS = 0.1
_SLICE = 64  # so many sessions, and then it is the turn of others
# A session that is still logging in is not the engine's yet: its id is remembered, until it comes or does not.
_REMEMBERED_SECONDS = 60.0
_MOST = 200_000


@dataclass(slots=True, eq=False)
class _Leaver:
    outcome: Outcome
    ends_at: float  # safe point or not
    forgotten_at: float  # if it does not come to the engine
    met: bool  # it is, or was, the engine's


class Closer:
    """Ends sessions by their ids. close() only takes note; run() does it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._leavers: dict[str, _Leaver] = {}
        self._wanted = trio.Event()

    def __len__(self) -> int:
        return len(self._leavers)

    def close(self, session_ids: Sequence[str], outcome: Outcome, *, patience: float) -> None:
        """End these sessions at their next safe point, and after `patience` seconds in any case.

        One that is not logged in yet is withdrawn; if it gets in all the same it ends then.
        """
        now = trio.current_time()
        for session_id in session_ids:
            ends_at, met = now + patience, self._engine.find(session_id) is not None
            earlier = self._leavers.pop(session_id, None)
            if earlier is not None:
                ends_at = min(ends_at, earlier.ends_at)
            self._leavers[session_id] = _Leaver(outcome, ends_at, now + _REMEMBERED_SECONDS, met)
            if len(self._leavers) > _MOST:  # whoever wants it closed says so again
                del self._leavers[next(iter(self._leavers))]
        self._wanted.set()

    def withdrawn(self, session_id: str) -> bool:
        """Whether a login, let in by its backend, must not be finished: to be asked before its client is told OK."""
        return session_id in self._leavers

    def forget(self, session_id: str) -> None:
        """A login has failed and is given up: what was said of it must not meet the connection's next one."""
        self._leavers.pop(session_id, None)

    async def run(self) -> None:
        """End sessions as they can be ended, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            while self._leavers:
                await self._round()
                await trio.sleep(_ROUND_SECONDS)

    async def _round(self) -> None:
        for position, (session_id, leaver) in enumerate(list(self._leavers.items()), start=1):
            if self._leavers.get(session_id) is leaver:  # else told anew, while others had their turn
                self._try(session_id, leaver, trio.current_time())
            if not position % _SLICE:
                await trio.lowlevel.checkpoint()

    def _try(self, session_id: str, leaver: _Leaver, now: float) -> None:
        session = self._engine.find(session_id)
        if session is None:
            if leaver.met or now >= leaver.forgotten_at:
                del self._leavers[session_id]
            return
        leaver.met = True
        if session.at_safe_point or now >= leaver.ends_at:
            del self._leavers[session_id]
            self._engine.say_goodbye(session, leaver.outcome)
