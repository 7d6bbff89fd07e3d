"""Files that change while we run: what they hold now, and what is done with it.

The master watches them (`Watch`), for it may read them, and hands what has changed to its children, who may not
(`Files`). What belongs together, a certificate and its key, is handed over together, and only when all of it has been
still from one look to the next and fits together: so nobody meets a pair of which one half is written. Whatever cannot
be used is told once, and the old goes on.

Watched are certificates of listeners with their keys, secrets, and users files. Certificates that clients or backends
are verified by are not: what has been verified by the old ones lives on in session tickets. Those take a reload.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import trio

from proxy.app.admin_certificate import AdminCertificate
from proxy.auth.authenticator import Authenticator
from proxy.auth.cache import CachedSource
from proxy.auth.file import MAX_BYTES as MAX_USERS_BYTES
from proxy.auth.file import FileSource
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.settings.certificates import facts
from proxy.settings.mistakes import SettingsError
from proxy.settings.models import Section, Settings
from proxy.settings.secret import MAX_BYTES as MAX_SECRET_BYTES
from proxy.settings.secret import Secret, refresh, secret_in
from proxy.transport.door import Door
from proxy.transport.key_pair import read_key_pair
from proxy.transport.tls import Pair, ServerCertificates

log = get_logger()

Kind = Literal["pairs", "secret", "users"]
Contents = Mapping[Path, bytes]
Reject = Callable[[str, str], None]  # a path, and why
SWAPPED, REJECTED = "swapped", "rejected"
_MAX_PEM_BYTES = 1024 * 1024

_SWAPS = metrics.counter(
    "porter_files_swaps_total",
    "Files that have changed: certificates with their keys, secrets, users files. rejected: the old one goes on.",
    result=(SWAPPED, REJECTED),
)
_NOT_AFTER = metrics.gauge(
    "porter_certificate_not_after_timestamp_seconds",
    "When a certificate in use ends, Unix time; `certificate` is its file.",
    merge="min",
    kind=("listener", "backend_client", "admin"),
    certificate=None,
)


@dataclass(frozen=True, slots=True)
class Group:
    """Files that are taken over together."""

    kind: Kind
    paths: tuple[Path, ...]  # each once
    check: Callable[[Contents], None]  # raises ValueError for what cannot be used, as far as that is seen quickly
    most_bytes: int


def groups_of(settings: Settings) -> list[Group]:
    """All files that settings name and that may change while we run."""
    users = dict.fromkeys(source.file.path for source in settings.identity if source.file is not None)
    return [
        *map(_pairs_group, _that_share_files(settings)),
        *_secret_groups(settings),
        *(Group("users", (path,), lambda contents: None, MAX_USERS_BYTES) for path in users),
    ]


def _that_share_files(settings: Settings) -> list[list[Pair]]:
    """The pairs of listeners and of the admin door; together those that have a file in common."""
    groups: list[list[Pair]] = []
    ours = () if settings.admin.tls is None or settings.admin.address is None else (settings.admin.tls,)
    for each in (*settings.tls.certificates, *ours):
        pair = (each.certificate, each.private_key)
        near = [group for group in groups if not {*chain(*group)}.isdisjoint(pair)]
        groups = [group for group in groups if group not in near]
        groups.append([*chain(*near), pair])
    return groups


def _pairs_group(pairs: Sequence[Pair]) -> Group:
    def check(contents: Contents) -> None:
        for certificate, private_key in pairs:
            read_key_pair(contents[certificate], contents[private_key])

    return Group("pairs", tuple(dict.fromkeys(chain(*pairs))), check, _MAX_PEM_BYTES)


def _secret_groups(settings: Settings) -> Iterator[Group]:
    fields = {secret.place for source in settings.identity for secret in _secrets(source.http)}
    binds = {secret.place for source in settings.identity for secret in _secrets(source.ldap)}
    for place in dict.fromkeys(secret.place for secret in _secrets(settings)):
        demands = [_expect_field] if place in fields else []
        demands += [_expect_utf8] if place in binds else []
        yield _secret_group(Path(place), demands)


def _secret_group(path: Path, demands: Iterable[Callable[[bytes], None]]) -> Group:
    def check(contents: Contents) -> None:
        secret = secret_in(str(path), contents[path])
        for demand in demands:
            demand(secret)

    return Group("secret", (path,), check, MAX_SECRET_BYTES)


def _expect_field(secret: bytes) -> None:
    if not (secret.isascii() and secret.decode("ascii").isprintable()):
        raise ValueError("the secret is no text that a header field can hold")


def _expect_utf8(secret: bytes) -> None:
    try:
        secret.decode()
    except UnicodeDecodeError:
        raise ValueError("the password is not UTF-8, as directories expect it") from None


def _secrets(value: Any) -> Iterator[Secret]:
    """Those from files, wherever they stand."""
    if isinstance(value, Secret):
        if value.kind == "file":
            yield value
    elif isinstance(value, Section):
        for name in type(value).model_fields:
            yield from _secrets(getattr(value, name))
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_secrets, value.values()))
    elif isinstance(value, tuple):
        yield from chain.from_iterable(map(_secrets, value))


class Watch:
    """The master's look at them; once a second."""

    def __init__(self, settings: Settings, read_at: float | None = None) -> None:
        """Args:
        read_at: When the settings, and with them these files, began to be read, Unix time: what has changed since is
            handed over by poll(). None: nothing has.
        """
        self._watched = [
            _Watched(group, read_at) for group in groups_of(settings) if all(path.is_file() for path in group.paths)
        ]

    def poll(self) -> dict[Path, bytes]:
        """What has changed, has been still since the last call, and can be used as far as we can tell."""
        changed: dict[Path, bytes] = {}
        for watched in self._watched:
            try:
                changed.update(watched.look())
            except ValueError as exc:
                _SWAPS.labels(REJECTED).inc()
                log.warning("files.rejected", path=str(watched.group.paths[0]), reason=str(exc))
        return changed


_Signature = tuple[int, ...] | None  # of the file behind all links; None: there is none that could be looked at
_CLOCK_STEP_SECONDS = 1.0  # the time of a file's change is told coarsely, by some file systems very much so


class _Watched:
    """One group, as it was looked at last."""

    def __init__(self, group: Group, read_at: float | None) -> None:
        self.group = group
        self._seen = self._signatures()
        self._settled: tuple[_Signature, ...] | None = self._seen  # what has been dealt with
        self._judged = b""  # what it held then, well or badly
        if read_at is not None and any(_changed_at(path) >= read_at - _CLOCK_STEP_SECONDS for path in group.paths):
            self._settled = None
        else:
            try:
                self._judged = _digest(self._read(self._seen))
            except ValueError:
                self._settled = None

    def look(self) -> Contents:
        """What the files hold, if that is news and can be used.

        Raises:
            ValueError: It is news and cannot be used. The text says why.
        """
        now = self._signatures()
        still, self._seen = now == self._seen, now
        if now == self._settled or not still:
            return {}
        try:
            contents = self._read(now)
        except _Moving:
            return {}
        except ValueError:
            self._settled = now
            raise
        self._settled = now
        digest = _digest(contents)
        if digest == self._judged:
            return {}
        self._judged = digest
        for path, content in contents.items():
            if len(content) > self.group.most_bytes:
                raise ValueError(f'"{path}" is larger than {self.group.most_bytes} bytes')
        self.group.check(contents)
        return contents

    def _signatures(self) -> tuple[_Signature, ...]:
        return tuple(map(_signature, self.group.paths))

    def _read(self, signatures: Iterable[_Signature]) -> Contents:
        """Raises: ValueError: A file cannot be read. _Moving: Somebody is at it."""
        return {
            path: _read(path, signature, self.group.most_bytes)
            for path, signature in zip(self.group.paths, signatures, strict=True)
        }


class _Moving(ValueError):
    """A file is another one than a moment ago."""


def _signature(path: Path) -> _Signature:
    try:
        return _of(path.stat())
    except OSError:
        return None


def _of(status: os.stat_result) -> _Signature:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _changed_at(path: Path) -> float:
    """When a file, or the link that leads to it, was last changed."""
    try:
        return max(path.stat().st_ctime, path.lstat().st_ctime)
    except OSError:
        return 0.0


def _read(path: Path, signature: _Signature, most_bytes: int) -> bytes:
    """What a file holds, or so much of it that it is seen to be too large."""
    try:
        # Were it a pipe by now, opening it would wait for somebody who writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f'"{path}" is no regular file')
            content = file.read(most_bytes + 1)
            if not _of(status) == _of(os.fstat(descriptor)) == signature:
                raise _Moving(f'"{path}" is being written')
    except OSError as exc:
        raise ValueError(f'"{path}" cannot be read: {exc.strerror}') from None
    return content


def _digest(contents: Contents) -> bytes:
    return b"".join(blake2b(content, digest_size=16).digest() for content in contents.values())


class Files:
    """What a worker or the steward does with them."""

    def __init__(
        self,
        settings: Settings,
        doors: Iterable[Door],
        authenticator: Authenticator,
        *,
        admin: AdminCertificate | None = None,
        counts: bool = False,
    ) -> None:
        """Args:
        admin: What administrators are shown, if it is this process that they talk to.
        counts: Whether it is this process that tells, for all, what has been swapped, and when certificates end.
        """
        self._groups = groups_of(settings)
        found = [door.certificates for door in doors if door.certificates is not None]
        self._certificates: tuple[ServerCertificates, ...] = tuple(dict.fromkeys(found))
        self._sources = [(source, _innermost(source)) for source in authenticator.sources]
        self._admin = () if admin is None else (admin,)
        self._counts = counts
        self._users: dict[Path, tuple[bytes, Reject]] = {}  # that are still to be read
        self._users_came = trio.Event()
        self._thread = trio.CapacityLimiter(1)
        if counts:
            self._show_ends()
            _show_ends_of_ours(settings)

    def take(self, paths: Sequence[str], descriptors: Sequence[int], reject: Reject) -> None:
        """Take over what files hold now. Never waits: users files are read by run().

        Args:
            descriptors: Where each can be read from its beginning; they are closed.
            reject: Called for what cannot be used.
        """
        contents: dict[Path, bytes] = {}
        for index, descriptor in enumerate(descriptors):
            with open(descriptor, "rb") as file:
                if index < len(paths):
                    contents[Path(paths[index])] = file.read(MAX_USERS_BYTES + 1)
        for group in self._groups:
            part = {path: contents[path] for path in group.paths if path in contents}
            if part:
                self._apply(group, part, reject)

    async def run(self) -> None:
        """Read users files in a thread, one after the other."""
        while True:
            await self._users_came.wait()
            self._users_came = trio.Event()
            while self._users:
                path, (content, reject) = self._users.popitem()
                await self._reload(path, content, reject)

    def _apply(self, group: Group, contents: Contents, reject: Reject) -> None:
        if group.kind == "users":
            self._users |= {path: (content, reject) for path, content in contents.items()}
            self._users_came.set()
            return
        try:
            if group.kind == "pairs":
                renewed = [certificates.renew(contents) for certificates in (*self._certificates, *self._admin)]
                swapped = any(renewed)
                self._show_ends()
            else:
                group.check(contents)
                refresh(contents)
                swapped = True
        except ValueError as exc:
            self._rejected(group.paths[0], str(exc), reject)
        else:
            if swapped:
                self._swapped(contents)

    async def _reload(self, path: Path, content: bytes, reject: Reject) -> None:
        for source, inner in self._sources:
            if not isinstance(inner, FileSource) or inner.path != path:
                continue
            try:
                await trio.to_thread.run_sync(inner.reload, content, limiter=self._thread, abandon_on_cancel=True)
            except SettingsError as exc:
                more = f" (and {len(exc.mistakes) - 1} more)" if len(exc.mistakes) > 1 else ""
                self._rejected(path, f"{exc.mistakes[0]}{more}", reject)
                return
            except Exception:  # a bug in reading it must not take along those who are logged in
                log.exception("files.crashed", path=str(path))
                self._rejected(path, "a bug: see the log", reject)
                return
            if isinstance(source, CachedSource):
                source.clear()
        self._swapped({path: content})

    def _swapped(self, contents: Contents) -> None:
        if self._counts:
            _SWAPS.labels(SWAPPED).inc()
            log.info("files.swapped", paths=sorted(map(str, contents)))

    def _rejected(self, path: Path, why: str, reject: Reject) -> None:
        if self._counts:
            _SWAPS.labels(REJECTED).inc()
        reject(str(path), why)

    def _show_ends(self) -> None:
        if self._counts:
            for kind, shown in (("listener", self._certificates), ("admin", self._admin)):
                for path, end in chain.from_iterable(each.ends.items() for each in shown):
                    _show_end(kind, path, end)


def _show_end(kind: str, certificate: Path, end: datetime) -> None:
    _NOT_AFTER.labels(kind, certificate).set(end.timestamp())


def _innermost(source: object) -> object:
    return source.source if isinstance(source, CachedSource) else source


def _show_ends_of_ours(settings: Settings) -> None:
    """The certificates that we show to backends and administrators: those that there are now, for they are read at the
    same time.
    """
    backends = settings.backends
    for tls in (backends.tls, *(backends.tls_for(server) for server in backends.servers)):
        if tls.certificate is not None:
            # Whoever connects with it says more clearly that it cannot be read.
            with contextlib.suppress(ValueError):
                _show_end("backend_client", tls.certificate, facts(tls.certificate).not_after)
    if settings.admin.tls is not None:
        with contextlib.suppress(ValueError):
            _show_end("admin", settings.admin.tls.certificate, facts(settings.admin.tls.certificate).not_after)
