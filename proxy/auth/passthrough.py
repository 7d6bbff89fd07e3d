"""Identity from the backend itself: the credentials are passed on, and its answer to them is the verdict."""

from __future__ import annotations

from proxy.model import Credentials, Identity


class PassthroughSource:
    """`backend: {}`. It says yes to everyone, so the settings allow it only as the last source and only where the
    backend login uses the user's own password (`backends.login.method: password`).
    """

    name = "backend"
    mechanisms = frozenset({"LOGIN", "PLAIN"})

    async def authenticate(self, credentials: Credentials, name: str) -> Identity | None:
        """Take the client's word; the backend will not."""
        return Identity(name, "backend", verified=False)
