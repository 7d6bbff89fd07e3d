"""Files that change while we run: seen by the master, taken over by those who may not read them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from proxy.app.files import Files, Watch
from proxy.auth.authenticator import Authenticator
from proxy.auth.cache import cached
from proxy.auth.file import FileSource
from proxy.auth.names import NameRules
from proxy.auth.passwords import Parameters, PasswordVerifier, hash_password
from proxy.auth.source import IdentitySource
from proxy.model import Credentials, Endpoint, Origin
from proxy.observe import log
from proxy.observe.metrics import METRICS
from proxy.outcome import Refused
from proxy.settings.models import Settings
from proxy.settings.secret import Secret
from proxy.transport.door import Door
from proxy.transport.tls import ServerCertificates

AUTHORITY = trustme.CA()
CHEAP = Parameters(memory_kib=8, time=1, parallelism=1)
ORIGIN = Origin(Endpoint("192.0.2.1", 40000))


def pem(name: str) -> tuple[bytes, bytes]:
    """A certificate and its key."""
    leaf = AUTHORITY.issue_cert(name)
    return leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()


def person(name: str, password: str) -> bytes:
    """A line of a users file."""
    return f'{name}: {{hash: "{hash_password(password.encode(), CHEAP)}"}}\n'.encode()


OLD, NEW, NEWER = pem("old.example"), pem("new.example"), pem("newer.example")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As Kubernetes mounts secrets: links to what is behind `..data`, which is a link itself."""
    (tmp_path / "..1").mkdir()
    (tmp_path / "..data").symlink_to("..1")
    contents = {
        "tls.crt": OLD[0],
        "tls.key": OLD[1],
        "second.crt": NEWER[0],
        "second.key": NEWER[1],
        "master": b"old\n",
        "field": b"old\n",
        "bind": b"old\n",
        "users.yaml": person("ann", "old"),
    }
    for name, content in contents.items():
        (tmp_path / "..1" / name).write_bytes(content)
        (tmp_path / name).symlink_to(f"..data/{name}")
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    bind = {"dn": "cn=porter", "password": {"file": "bind"}}
    search = {"base": "ou=people", "filter": "(mail={name})"}
    value: dict[str, Any] = {
        "version": 1,
        "listeners": [
            {"address": "127.0.0.1:1993", "tls": "implicit"},
            {"address": "127.0.0.1:1143", "tls": "starttls"},
        ],
        "tls": {
            "certificates": [
                {"certificate": "tls.crt", "private_key": "tls.key"},
                {"certificate": "second.crt", "private_key": "second.key"},
            ]
        },
        "identity": [
            {"file": {"path": "users.yaml"}},
            {"ldap": {"urls": ["ldaps://ldap.example"], "bind": bind, "search": search}},
            {"http": {"url": "http://127.0.0.1:9000/auth", "headers": {"X-Auth-Key": {"file": "field"}}}},
        ],
        "backends": {
            "servers": [{"name": "dovecot-1", "url": "imap://127.0.0.1"}],
            "login": {"method": "master", "name": "porter", "password": {"file": "master"}},
        },
    }
    return Settings.model_validate(value, context={"folder": folder})


def master_password(settings: Settings) -> Secret:
    password = settings.backends.login.password
    assert password is not None
    return password


class Lines:
    """What is logged meanwhile."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("log")
        self._sink = log.configure(descriptor=self._descriptor)

    def close(self) -> list[dict[str, Any]]:
        assert self._sink.close(5)
        log.restore()
        lines = os.pread(self._descriptor, 1 << 20, 0).splitlines()
        os.close(self._descriptor)
        return [json.loads(line) for line in lines]


def swaps(result: str) -> float:
    return metric(f'porter_files_swaps_total{{result="{result}"}}')


def metric(series: str) -> float:
    lines = METRICS.exposition()[0].decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{series} ")).rpartition(" ")[2])


# --- the master's look ---


def put(path: Path, content: bytes) -> None:
    path.resolve().write_bytes(content)


def test_nothing_has_changed(settings: Settings) -> None:
    watch = Watch(settings)
    assert watch.poll() == watch.poll() == {}


def test_a_change_is_told_when_it_has_been_still(settings: Settings, folder: Path) -> None:
    watch = Watch(settings)
    put(folder / "master", b"new\n")
    assert watch.poll() == {}
    put(folder / "master", b"newer\n")
    assert watch.poll() == {}
    assert watch.poll() == {folder / "master": b"newer\n"}
    assert watch.poll() == watch.poll() == {}


def test_links_that_are_put_elsewhere_are_seen(settings: Settings, folder: Path) -> None:
    watch = Watch(settings)
    (folder / "..2").mkdir()
    for old in (folder / "..1").iterdir():
        (folder / "..2" / old.name).write_bytes(old.read_bytes())
    (folder / "..2" / "tls.crt").write_bytes(NEW[0])
    (folder / "..2" / "tls.key").write_bytes(NEW[1])
    (folder / "..tmp").symlink_to("..2")
    (folder / "..tmp").rename(folder / "..data")
    assert watch.poll() == {}
    assert watch.poll() == {folder / "tls.crt": NEW[0], folder / "tls.key": NEW[1]}  # all others hold what they held


def test_half_a_pair_is_nobodys(settings: Settings, folder: Path) -> None:
    watch, before = Watch(settings), swaps("rejected")
    put(folder / "tls.crt", NEW[0])
    watch.poll()
    put(folder / "tls.key", NEW[1])
    assert watch.poll() == {}
    assert watch.poll() == {folder / "tls.crt": NEW[0], folder / "tls.key": NEW[1]}
    assert swaps("rejected") == before


def test_a_pair_whose_second_half_comes_late_comes_whole(settings: Settings, folder: Path) -> None:
    watch, before = Watch(settings), swaps("rejected")
    lines = Lines()
    put(folder / "tls.crt", NEW[0])
    for _ in range(5):
        assert watch.poll() == {}
    put(folder / "tls.key", NEW[1])
    watch.poll()
    assert watch.poll() == {folder / "tls.crt": NEW[0], folder / "tls.key": NEW[1]}
    assert swaps("rejected") == before + 1
    (told,) = lines.close()
    assert (told["event"], told["path"]) == ("files.rejected", str(folder / "tls.crt"))
    assert told["reason"] == "the key does not fit the certificate, the first one of its file"


BAD = [
    ("tls.crt", b"", "no certificate"),
    ("tls.key", b"hunter2", "no private key"),
    ("tls.key", b"x" * (1 << 21), "larger than"),
    ("master", b"", "holds no secret"),
    ("master", b"hunter2\0", "NUL"),
    ("master", b"hunter2" * 10_000, "larger than"),
    ("field", b"hunter2\x7f", "no text that a header field can hold"),
    ("bind", b"hunter2\xff", "not UTF-8"),
    ("users.yaml", None, "cannot be read"),
    ("tls.key", None, "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "reason"), BAD, ids=[f"{row[0]}: {row[2]}" for row in BAD])
def test_what_cannot_be_used_is_told_once(
    settings: Settings, folder: Path, name: str, content: bytes | None, reason: str
) -> None:
    watch, before = Watch(settings), swaps("rejected")
    path = (folder / name).resolve()
    held = path.read_bytes()
    lines = Lines()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert [watch.poll() for _ in range(5)] == [{}] * 5
    if content is not None:
        path.write_bytes(content)  # the same once more is no news
        assert [watch.poll() for _ in range(5)] == [{}] * 5
    (told,) = lines.close()
    assert told["event"] == "files.rejected"
    assert reason in told["reason"]
    assert "hunter2" not in json.dumps(told)
    assert swaps("rejected") == before + 1
    path.write_bytes(held)
    polls = [watch.poll(), watch.poll(), watch.poll()]
    told_again = {} if content is None else {folder / name: held}
    assert {path: content for poll in polls for path, content in poll.items() if path == folder / name} == told_again


def test_a_file_that_was_only_touched_is_no_news(settings: Settings, folder: Path) -> None:
    watch = Watch(settings)
    os.utime(folder / "tls.crt")
    put(folder / "users.yaml", (folder / "users.yaml").read_bytes())
    assert [watch.poll() for _ in range(3)] == [{}] * 3


def test_what_changed_while_settings_were_read_is_told(settings: Settings, folder: Path) -> None:
    read_at = (folder / "master").stat().st_ctime
    put(folder / "master", b"newer\n")
    assert Watch(settings, read_at + 3600).poll() == {}
    assert Watch(settings, read_at).poll()[folder / "master"] == b"newer\n"


def test_what_is_no_file_is_not_waited_for(settings: Settings, folder: Path) -> None:
    (folder / "master").unlink()
    os.mkfifo(folder / "master")
    watch = Watch(settings)
    path = (folder / "users.yaml").resolve()
    path.unlink()
    os.mkfifo(path)
    lines = Lines()
    assert [watch.poll() for _ in range(3)] == [{}] * 3
    assert [told["reason"] for told in lines.close()] == [f'"{folder}/users.yaml" is no regular file']


def test_pairs_that_share_a_file_go_together(settings: Settings, folder: Path) -> None:
    tls = settings.tls
    shared = tls.certificates[0].model_copy(update={"certificate": folder / "again.crt"})
    put(folder / "tls.crt", OLD[0])
    (folder / "again.crt").write_bytes(OLD[0])
    both = settings.model_copy(
        update={"tls": tls.model_copy(update={"certificates": (tls.certificates[0], tls.certificates[1], shared)})}
    )
    watch = Watch(both)
    put(folder / "tls.key", NEW[1])
    put(folder / "tls.crt", NEW[0])
    assert [watch.poll() for _ in range(3)] == [{}] * 3
    (folder / "again.crt").write_bytes(NEW[0])
    watch.poll()
    assert watch.poll() == {folder / "tls.crt": NEW[0], folder / "tls.key": NEW[1], folder / "again.crt": NEW[0]}


# --- what becomes of it ---


class Child:
    """A worker's files, and what it says of them."""

    def __init__(self, settings: Settings, *, counts: bool = False) -> None:
        self.rules = NameRules(settings.names)
        pairs = [(each.certificate, each.private_key) for each in settings.tls.certificates]
        self.certificates = ServerCertificates(pairs, settings.tls.minimum_version)
        doors = [Door(listener, self.certificates) for listener in settings.listeners]
        assert settings.identity[0].file is not None
        self.source = FileSource(settings.identity[0].file.path, self.rules, PasswordVerifier())
        remembering: IdentitySource = cached(self.source, settings.cache)
        self.authenticator = Authenticator([remembering], self.rules)
        self.files = Files(settings, doors, self.authenticator, counts=counts)
        self.rejected: list[tuple[str, str]] = []

    def take(self, contents: Mapping[Path, bytes]) -> None:
        """As it arrives: by descriptor, from somebody who may read the files."""
        descriptors = []
        for content in contents.values():
            descriptors.append(os.memfd_create("file"))
            os.write(descriptors[-1], content)
            os.lseek(descriptors[-1], 0, os.SEEK_SET)
        self.files.take([*map(str, contents)], descriptors, lambda path, why: self.rejected.append((path, why)))
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)

    async def logs_in(self, name: str, password: str) -> bool:
        try:
            await self.authenticator.authenticate(Credentials("PLAIN", name, "", password.encode()), ORIGIN)
        except Refused:
            return False
        return True


@pytest.fixture
def forbidden(settings: Settings, folder: Path) -> Callable[..., Child]:
    """Makes a child after whose birth no file can be read."""

    def make(**options: Any) -> Child:
        child = Child(settings, **options)
        for path in (folder / "..1").iterdir():
            path.unlink()
        return child

    return make


@contextlib.asynccontextmanager
async def running(child: Child) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.files.run)
        yield
        nursery.cancel_scope.cancel()


async def until(claim: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        for _ in iter(claim, True):
            await trio.sleep(0.005)


def shown(child: Child) -> set[float]:
    return {end.timestamp() for end in child.certificates.ends.values()}


async def test_each_kind_is_taken_over(forbidden: Callable[..., Child], settings: Settings, folder: Path) -> None:
    child = forbidden()
    before = {pair: pair_of.names for pair, pair_of in child.certificates._key_pairs.items()}
    async with running(child):
        child.take(
            {
                folder / "tls.crt": NEW[0],
                folder / "tls.key": NEW[1],
                folder / "master": b"new\n",
                folder / "users.yaml": person("ann", "new"),
                folder / "of another generation": b"x",
            }
        )
        await until(lambda: not child.files._users)
        assert await until_logged_in(child, "ann", "new")
    after = {pair: pair_of.names for pair, pair_of in child.certificates._key_pairs.items()}
    assert [*after.values()] == [(b"new.example",), (b"newer.example",)]
    assert [*before.values()] == [(b"old.example",), (b"newer.example",)]
    assert master_password(settings).value == b"new"
    assert child.rejected == []
    assert not await child.logs_in("ann", "old")


async def until_logged_in(child: Child, name: str, password: str) -> bool:
    for _ in range(2000):
        if await child.logs_in(name, password):
            return True
        await trio.sleep(0.005)
    return False


async def test_what_cannot_be_used_leaves_the_old(
    forbidden: Callable[..., Child], settings: Settings, folder: Path
) -> None:
    child = forbidden()
    async with running(child):
        child.take({folder / "tls.crt": NEW[0], folder / "master": b"\n", folder / "second.key": b"x"})
        child.take({folder / "users.yaml": person("bob", "x") + b"carol: {}\n"})
        await until(lambda: len(child.rejected) == 4)
        assert await child.logs_in("ann", "old")
        assert not await child.logs_in("bob", "x")
    assert {path for path, _ in child.rejected} == {
        str(folder / name) for name in ("tls.crt", "second.crt", "master", "users.yaml")
    }
    assert [why for path, why in child.rejected if path.endswith("yaml")] == [
        f"{folder}/users.yaml:2: carol: hash is missing; `imap-porter hash-password` makes one"
    ]
    assert [key_pair.names for key_pair in child.certificates._key_pairs.values()] == [
        (b"old.example",),
        (b"newer.example",),
    ]
    assert master_password(settings).value == b"old"


async def test_a_bad_pair_does_not_hold_up_a_good_one(forbidden: Callable[..., Child], folder: Path) -> None:
    child = forbidden()
    new = pem("zwei.example")
    child.take(
        {
            folder / "tls.crt": NEW[0],
            folder / "tls.key": b"",
            folder / "second.crt": new[0],
            folder / "second.key": new[1],
        }
    )
    assert child.rejected == [(str(folder / "tls.crt"), "no private key in PEM form")]
    assert [key_pair.names for key_pair in child.certificates._key_pairs.values()] == [
        (b"old.example",),
        (b"zwei.example",),
    ]


async def test_users_change_while_they_log_in(forbidden: Callable[..., Child], folder: Path) -> None:
    """Whoever is in both tables gets in at any moment; nobody is remembered past the swap who is not in the new one."""
    child = forbidden()
    always = person("eve", "always")
    child.source.reload(person("ann", "old") + always)
    failed: list[int] = []
    ended = trio.Event()

    async def log_in_again_and_again() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            if not await child.logs_in("eve", "always"):
                failed.append(number)
            await child.logs_in("ann", "old")
            await trio.lowlevel.checkpoint()  # what is remembered waits for nothing

    async with running(child), trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(log_in_again_and_again)
        for version in range(20):
            child.take({folder / "users.yaml": person("bob", f"{version}") + always})
            assert await until_logged_in(child, "bob", f"{version}")
            assert not await child.logs_in("ann", "old")
            assert not await child.logs_in("bob", f"{version - 1}")
        ended.set()
    assert failed == []


async def test_the_newest_of_several_counts(forbidden: Callable[..., Child], folder: Path) -> None:
    child = forbidden()
    for version in range(50):
        child.take({folder / "users.yaml": person("bob", f"{version}")})
    async with running(child):
        assert await until_logged_in(child, "bob", "49")
        await until(lambda: not child.files._users)
        assert await child.logs_in("bob", "49")


async def test_one_process_tells_of_all(forbidden: Callable[..., Child], folder: Path) -> None:
    child = forbidden(counts=True)
    path = folder / "tls.crt"
    series = f'porter_certificate_not_after_timestamp_seconds{{certificate="{path}",kind="listener"}}'
    assert metric(series) in shown(child)
    before = swaps("swapped"), swaps("rejected")
    lines = Lines()
    async with running(child):
        child.take({path: NEW[0], folder / "tls.key": NEW[1]})
        child.take({path: NEW[0], folder / "tls.key": NEW[1]})
        child.take({path: NEW[0], folder / "tls.key": b""})
        child.take({folder / "users.yaml": person("bob", "x")})
        await until(lambda: swaps("swapped") == before[0] + 2)
    assert swaps("rejected") == before[1] + 1
    assert metric(series) == child.certificates.ends[path].timestamp()
    assert [(told["event"], told["paths"]) for told in lines.close()] == [
        ("files.swapped", [str(path), str(folder / "tls.key")]),
        ("files.swapped", [str(folder / "users.yaml")]),
    ]


async def test_the_others_are_silent(forbidden: Callable[..., Child], folder: Path) -> None:
    child, before = forbidden(), (swaps("swapped"), swaps("rejected"))
    lines = Lines()
    child.take({folder / "tls.crt": NEW[0], folder / "tls.key": NEW[1], folder / "master": b""})
    assert lines.close() == []
    assert (swaps("swapped"), swaps("rejected")) == before
    assert len(child.rejected) == 1


def test_a_backends_view_of_us_is_shown(settings: Settings, folder: Path) -> None:
    backends = settings.backends
    tls = backends.tls.model_copy(update={"certificate": folder / "tls.crt", "private_key": folder / "tls.key"})
    changed = settings.model_copy(update={"backends": backends.model_copy(update={"tls": tls})})
    Child(changed, counts=True)
    path = folder / "tls.crt"
    assert metric(f'porter_certificate_not_after_timestamp_seconds{{certificate="{path}",kind="backend_client"}}') > 0
