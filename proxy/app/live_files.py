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

_AT_ONCE = 100


class LiveFiles:
    """The files that one generation's settings name and that are taken over without a new generation."""

    def __init__(self, settings: Settings, read_at: float) -> None:
        """Args:
        read_at: When they began to be read, Unix time.
        """
        self._watch = Watch(settings, read_at)
        self._since: dict[Path, bytes] = {}  # what has changed since the settings were read
        self._before: dict[Path, bytes | None] = {}  # what stood in its place there, in case it is rejected
        self._rejected: set[Path] = set()

    def look(self, children: Iterable[Child]) -> None:
        """Tell all of them what has changed since the last look."""
        changed = self._watch.poll()
        if not changed:
            return
        self._before.update({path: self._since.get(path) for path in changed})
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
        """A child goes on with the file of before, as newcomers are to. Each of them says so."""
        file = Path(path)
        if file in self._rejected or file not in self._since:
            return
        self._rejected.add(file)
        before = self._before.pop(file, None)
        if before is None:
            del self._since[file]
        else:
            self._since[file] = before
        log.warning("files.rejected", path=path, reason=why)


def _tell(child: Child, files: dict[Path, bytes]) -> None:
    # Not all at once: descriptors are few. What belongs together comes in the order in which it was read.
    paths = list(files)
    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        # One for each child: who shares a descriptor shares its position too.
        opened = [(str(path), _in_memory(files[path])) for path in some]
        try:
            child.post_files(opened)
        finally:
            for _, descriptor in opened:
                os.close(descriptor)


def _in_memory(octets: bytes) -> int:
    descriptor = os.memfd_create("file")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(octets)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
