"""What is known of one connection while it lives."""

from __future__ import annotations

import itertools
import math
import os
import secrets
import time
from dataclasses import dataclass, field

from proxy.model import Endpoint, TlsFacts

_count = itertools.count(1)
_process = secrets.token_hex(4)


def _new_id() -> str:
    """Unique over processes and restarts, and cheap: one is made for every connection."""
    return f"{_process}-{next(_count):x}"


def _after_fork() -> None:
    global _process
    _process = secrets.token_hex(4)


os.register_at_fork(after_in_child=_after_fork)


@dataclass(slots=True)
class Session:
    """One connection, from accept to its end; becomes its log line."""

    client: Endpoint  # who it is, so far as is known: the other end, until someone trusted says more
    listener: str
    id: str = field(default_factory=_new_id)
    started: float = field(default_factory=time.monotonic)
    via: str = ""  # who said so: the other end of the connection, where it is not the client's
    local: Endpoint | None = None  # where the client connected to; None: at this socket
    proxy_ttl: int = 5  # how many proxies there may still be behind this one
    admitted: str | None = None  # the address that its place is counted by; None: by none
    secure: bool = False
    tls: TlsFacts | None = None  # what was agreed on with the client; set only where backends are told
    mechanism: str = ""
    authentication_identity: str = ""
    authorization_identity: str = ""
    name: str = ""  # canonical
    source: str = ""  # which identity source knew the client
    stale: bool = False  # by what it had said before, since it was out
    backend: str = ""
    epoch: str = ""  # of the placement that led there
    parted: bool = False  # it was logged in, and its backend is gone from it
    login_seconds: float = 0.0
    failures: int = 0
    ends_at: float = math.inf  # when what the client logged in with has expired, and the grace is over; monotonic
