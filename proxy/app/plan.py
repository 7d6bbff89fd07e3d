"""What the master hands to the processes that it starts."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proxy.settings.models import Settings
from proxy.transport.door import Door

Sockets = Sequence[tuple[Door, socket.socket]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the processes of one generation have in common."""

    settings: Settings
    config: Path  # the file that the settings come from
    doors: Sequence[Door]  # all of them, in the order of the settings
    generation: int  # from 1, over reloads and upgrades
    workers: int
    throttle_key: bytes = field(repr=False)  # the same for all generations
    users: Mapping[Path, bytes] = field(default_factory=dict, repr=False)  # users files, as they were without mistakes
    admin_tls: ssl.SSLContext | None = field(default=None, repr=False)  # with the key, which only root may read
    instance: str = ""  # what tells this proxy from others of its name; the same for all generations


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What one worker has for himself, and the ends of what leads to others."""

    index: int  # from 0, among the workers of his generation
    worker_id: str  # no two workers of a master have the same, not even one and his successor
    sockets: Sockets  # where mail clients arrive; one door may have several
    control: socket.socket
    link: socket.socket
    board: int
    row: int


@dataclass(frozen=True, slots=True)
class StewardPlace:
    """What the steward has for himself, and the ends of what leads to others."""

    control: socket.socket
    links: Mapping[str, socket.socket]  # by worker
    sockets: Sockets  # where Postfix asks
    metrics: socket.socket | None
    admin: socket.socket | None
    admin_socket: socket.socket | None
    hand_over: int | None  # what the steward before writes here is to be read at `begin`
    board: int


@dataclass(frozen=True, slots=True)
class Roles:
    """What the processes do until their end. Whatever these raise is a crash."""

    worker: Callable[[Plan, WorkerPlace], None]
    steward: Callable[[Plan, StewardPlace], None]
