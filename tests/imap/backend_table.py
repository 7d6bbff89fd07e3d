"""A backend as a table of turns, and a dialogue that is led through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.imap.client import BackendDialogue, DialogueEvent
from proxy.imap.client_login import BackendLogin
from proxy.imap.events import BackendLoggedIn, BackendRefused, BackendStartTls
from proxy.outcome import Outcome

Cut = Callable[[bytes], list[bytes]]
Dialogue = Callable[[BackendLogin], BackendDialogue]


@dataclass(frozen=True, slots=True)
class Row:
    """One backend: each turn is what it says, and what the proxy sends having read it."""

    name: str
    login: BackendLogin
    turns: list[tuple[bytes, bytes]]
    events: list[DialogueEvent]


def refused(step: str, detail: str, outcome: Outcome = Outcome.UNAVAILABLE) -> BackendRefused:
    return BackendRefused(outcome, step, detail, "the backend closed the connection" in detail)


def converse(row: Row, cut: Cut, start: Dialogue = BackendDialogue) -> tuple[list[bytes], list[DialogueEvent]]:
    """What is sent after each turn of the backend, and all events. `EOF` at a turn's end closes the connection."""
    dialogue = start(row.login)
    flights: list[bytes] = []
    events: list[DialogueEvent] = []

    def drain() -> None:
        while (event := dialogue.next_event()) is not None:
            events.append(event)
            if isinstance(event, BackendStartTls):
                dialogue.tls_established()

    drain()
    assert dialogue.data_to_send() == b""  # nothing before the greeting
    for said, _ in row.turns:
        open_end = said.removesuffix(b"EOF")
        for piece in cut(open_end):
            if any(isinstance(event, BackendLoggedIn) for event in events):
                events[-1] = add_trailing(events[-1], piece)  # the driver owns the stream by now
            elif piece:
                dialogue.receive_data(piece)
                drain()
        if open_end != said:
            dialogue.receive_data(b"")
            drain()
        flights.append(dialogue.data_to_send())
    assert dialogue.next_event() is None
    return flights, events


def add_trailing(event: DialogueEvent, data: bytes) -> BackendLoggedIn:
    assert isinstance(event, BackendLoggedIn)
    return BackendLoggedIn(event.capability, event.notes, event.trailing_data + data)


def whole(data: bytes) -> list[bytes]:
    return [data]


def by_octet(data: bytes) -> list[bytes]:
    return [bytes([octet]) for octet in data]
