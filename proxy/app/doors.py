"""The doors of the generations. A listener that stays as it is keeps its door over a reload.

Session tickets are sealed with the keys of a door's base context, so clients resume at workers of any generation. What
certificates a door shows is another matter: all doors have theirs from one ServerCertificates, which is given the new
ones before the workers that are to show them are forked, and the old ones back if those don't come to anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from proxy.observe.log import get_logger
from proxy.settings.mistakes import Mistake, SettingsError
from proxy.settings.models import Listener, Settings
from proxy.transport.door import Door
from proxy.transport.tls import Pair, ServerCertificates

log = get_logger()

# A listener with all that its door knows of it, and who vouches for its clients.
_Key = tuple[Listener, bytes]


@dataclass(frozen=True, slots=True)
class _Made:
    """What one generation's doors are made of."""

    certificates: ServerCertificates | None = None
    minimum_version: str = ""
    pairs: Sequence[Pair] = ()
    files: dict[Path, bytes] = field(default_factory=dict)  # of the pairs
    doors: dict[_Key, Door] = field(default_factory=dict)


class Doors:
    """The doors of the current generation, and those of one that is to follow."""

    def __init__(self, config: Path) -> None:
        """Args:
        config: The settings file, for error texts.
        """
        self._config = config
        self._made = _Made()
        self._next: _Made | None = None

    def open(self, settings: Settings) -> list[Door]:
        """The doors of a generation that is about to be started; settle() or abandon() follows.

        Raises:
            SettingsError: A certificate cannot be used, though it looked well. Nothing has changed.
        """
        version = settings.tls.minimum_version
        pairs = [(pair.certificate, pair.private_key) for pair in settings.tls.certificates]
        try:
            files = {path: path.read_bytes() for pair in pairs for path in pair}
            certificates = self._certificates(pairs, version)
        except (OSError, ValueError) as exc:
            problem = f"the certificates cannot be used: {exc}"
            raise SettingsError([Mistake(self._config, 0, "tls.certificates", problem)]) from exc
        self._next = _Made(certificates, version, pairs, files)
        before = self._made.doors if certificates is self._made.certificates else {}
        doors = []
        try:
            for listener in settings.listeners:
                key = (listener, _authorities(listener))
                door = before.get(key) or Door(listener, certificates)
                doors.append(door)
                self._next.doors[key] = door
        except (OSError, ValueError) as exc:
            self.abandon()
            problem = f"client_certificates.ca cannot be used: {exc}"
            raise SettingsError([Mistake(self._config, 0, "listeners", problem)]) from exc
        return doors

    def settle(self) -> None:
        """The generation has begun."""
        assert self._next is not None
        self._made, self._next = self._next, None

    def abandon(self) -> None:
        """It has not: who is started in a place of the old one shows the old certificates, whatever is on disk now."""
        made, made_next, self._next = self._made, self._next, None
        if made_next is None or made.certificates is None or made.certificates is not made_next.certificates:
            return
        try:
            if made.pairs != made_next.pairs:
                made.certificates.swap(made.pairs)
            made.certificates.renew(made.files)
        except (OSError, ValueError) as exc:  # other files, and the old ones are gone
            log.warning("settings.certificates_not_restored", error=str(exc))

    def _certificates(self, pairs: Sequence[Pair], version: str) -> ServerCertificates | None:
        """Those of before with new contents where that can be: a base context is bound to one such object."""
        before = self._made.certificates
        if not pairs:
            return None
        if before is None or version != self._made.minimum_version:
            return ServerCertificates(pairs, version)
        before.swap(pairs)
        return before


def _authorities(listener: Listener) -> bytes:
    """What distinguishes the certificates that clients are checked by, beside the name of their file."""
    if listener.client_certificates is None:
        return b""
    return blake2b(listener.client_certificates.ca.read_bytes(), digest_size=16).digest()
