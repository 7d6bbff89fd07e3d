"""SASL mechanisms as pure code, server side: a response in, a challenge or credentials out (RFC 4422)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from proxy.model import Mechanism
from proxy.sasl.plain import Plain

# In the order in which a client is told of them.
MECHANISMS: Mapping[str, Callable[[], Mechanism]] = MappingProxyType({"PLAIN": Plain})
