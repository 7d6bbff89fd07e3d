"""One worker, as the steward has him at the other end of a link."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

import trio

from proxy.ledger.guests import Guest
from proxy.ledger.resident import Stage
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Refused
from proxy.transport.packets import Message, Packets

log = get_logger()

# Messages that wait for one worker. Beyond so many he does not live, or is about to be killed: what he is not told then
# is said again (closings), is not missed any more (answers), or is of use only while it is fresh.
MOST_WAITING = 10_000
FEW_WAITING = 100
_MOST_REMEMBERED = 200_000  # answers that may still be given up: logins under way
_STAGES = (Stage.TRYING, Stage.COUNTED, Stage.OPENED)

_DROPPED = metrics.counter(
    "porter_link_messages_dropped_total", "Messages from the steward to workers that were behind with reading."
)


@dataclass(slots=True, eq=False)
class WorkerLink:
    """One worker, as the steward knows him."""

    name: str
    packets: Packets
    reported: bool = False
    accepting: bool = False
    usable: bool = True  # some identity source answers him
    shown: int = 0  # the view that he was told last
    lodgers: list[Guest] = field(default_factory=list)  # of his report
    waiting: dict[int, trio.CancelScope] = field(default_factory=dict)  # admits that have to wait
    answered: OrderedDict[int, str] = field(default_factory=OrderedDict)  # of logins under way, by question
    _questions: dict[str, int] = field(default_factory=dict)  # the other way round
    logins_waiting: dict[str, float] = field(default_factory=dict)  # by backend
    behind: bool = False

    def post(self, message: Message, most: int = MOST_WAITING) -> None:
        """Say something, unless so much waits for him already."""
        if self.packets.waiting < most:
            self.packets.post(message)
            self.behind = self.behind and self.packets.waiting > FEW_WAITING
            return
        _DROPPED.inc()
        if most == MOST_WAITING and not self.behind:  # once per spell
            self.behind = True
            log.error("steward.worker_behind", worker=self.name, messages=self.packets.waiting)

    def remember(self, question: int, session_id: str) -> None:
        """It has been answered, and may be given up before the answer is read."""
        self.answered[question] = session_id
        self._questions[session_id] = question
        if len(self.answered) > _MOST_REMEMBERED:
            self.forget(next(iter(self.answered.values())))

    def forget(self, session_id: str) -> None:
        """Whoever asked has read the answer, or is gone."""
        question = self._questions.pop(session_id, None)
        if question is not None:
            self.answered.pop(question, None)

    def is_under_way(self, session_id: str) -> bool:
        """Whether a session has been answered, and its worker may not know that yet."""
        return session_id in self._questions

    def refuse(self, question: int, refusal: Refused) -> None:
        """Answer a login that may not go on."""
        self.post(["refused", question, refusal.outcome, refusal.detail, refusal.limit])


def lodger_of(reported: object, worker: str, now: float) -> Guest | None:
    """A session as a worker tells of it; None: it makes no sense."""
    match reported:
        case [
            str(session_id),
            str(name),
            str(client),
            str(listener),
            str(backend),
            ("override" | "hash" | "failover") as why,
            int(stage),
            int() | float() as age,
            *_,
        ] if 0 <= stage < len(_STAGES) and 0 <= age < math.inf:
            return Guest(
                session_id, name, client, listener, worker, now - age, backend, _STAGES[stage], why, verified=stage > 0
            )
    return None
