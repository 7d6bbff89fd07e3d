"""What is known of one connection while it lives."""

from __future__ import annotations

import itertools
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
    backend: str = ""
    login_seconds: float = 0.0
    failures: int = 0
