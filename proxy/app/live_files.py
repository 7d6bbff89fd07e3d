"""Files that change while we run: read by the master, who may, and handed to those who may not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from proxy.app.children import Child
from proxy.app.files import Watch
from proxy.observe.log import get_logger
from proxy.settings.models import Settings

log = get_logger()


class LiveFiles:
    """The files that one generation's settings name and that are taken over without a new generation."""

    def __init__(self, settings: Settings, read_at: float) -> None:
        """Args:
        read_at: When they began to be read, Unix time.
        """
        self._watch = Watch(settings, read_at)
        self._since: dict[Path, bytes] = {}  # what has changed since the settings were read
        self._rejected: set[Path] = set()

    def look(self, children: Iterable[Child]) -> None:
        """Tell all of them what has changed since the last look."""
        changed = self._watch.poll()
        if not changed:
            return
        self._since.update(changed)
        self._rejected -= changed.keys()
        log.info("files.changed", paths=sorted(map(str, changed)))
        for child in children:
            _tell(child, changed)

    def tell_newcomer(self, child: Child) -> None:
        """A child that begins with the settings as they were read."""
        if self._since:
            _tell(child, self._since)

    def rejected(self, path: str, why: str) -> None:
        """A child goes on with the file of before. Each of them says so."""
        if Path(path) not in self._rejected:
            self._rejected.add(Path(path))
            log.warning("files.rejected", path=path, reason=why)


def _tell(child: Child, files: dict[Path, bytes]) -> None:
    # One for each child: who shares a descriptor shares its position too.
    opened = [(str(path), _in_memory(octets)) for path, octets in files.items()]
    child.post_files(opened)
    for _, descriptor in opened:
        os.close(descriptor)


def _in_memory(octets: bytes) -> int:
    descriptor = os.memfd_create("file")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(octets)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
