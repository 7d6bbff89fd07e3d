"""Identity from the backend itself: the credentials are passed on, and its answer to them is the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.auth.source import PASSWORD_MECHANISMS, TOKEN_MECHANISMS, Answer, Probe
from proxy.model import Credentials, Identity, Origin
from proxy.outcome import Outcome, Refused


class PassthroughSource:
    """`backend: {}`. It says yes to everyone, so the settings allow it only as the last source and only where the
    backend sees the user's own secret (`backends.login.method: password` or `token`).
    """

    name = "backend"

    def __init__(self, *, tokens: bool) -> None:
        """Args:
        tokens: Whether the backend login passes tokens on.
        """
        self.mechanisms = PASSWORD_MECHANISMS | TOKEN_MECHANISMS if tokens else PASSWORD_MECHANISMS

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Answer:
        """Take the client's word; the backend will not.

        Raises:
            Refused: AUTHENTICATION_FAILED, a token came without a name, and only its issuer can read it.
        """
        if not name:
            raise Refused(Outcome.AUTHENTICATION_FAILED, "the client named nobody, so that no backend can be chosen")
        return Identity(name, "backend", verified=False)

    async def probe(self) -> Sequence[Probe]:
        """Nothing of its own: the backends are tried as backends."""
        return ()
