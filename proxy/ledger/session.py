"""What is known of one connection while it lives."""

from __future__ import annotations

import itertools
import math
import secrets
import time
from dataclasses import dataclass, field

from proxy.model import Endpoint

_PROCESS = secrets.token_hex(4)
_count = itertools.count(1)


def _new_id() -> str:
    """Unique over processes and restarts, and cheap: one is made for every connection."""
    return f"{_PROCESS}-{next(_count):x}"


@dataclass(slots=True)
class Session:
    """One connection, from accept to its end; becomes its log line."""

    client: Endpoint
    listener: str
    id: str = field(default_factory=_new_id)
    started: float = field(default_factory=time.monotonic)
    secure: bool = False
    mechanism: str = ""
    authentication_identity: str = ""
    authorization_identity: str = ""
    name: str = ""  # canonical
    source: str = ""  # which identity source knew the client
    stale: bool = False  # by what it had said before, since it was out
    backend: str = ""
    login_seconds: float = 0.0
    failures: int = 0
    ends_at: float = math.inf  # when what the client logged in with has expired, and the grace is over; monotonic
