"""The pages for movers, on the real things: what served a user before, and the proxy with the settings shown there.

Both are asked side by side, as the pages have administrators do it, and have to lead to the same server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.accounts import USERS
from tests.servers.auth_service import AuthService, Person
from tests.servers.dovecot import Dovecot, write_dovecot
from tests.servers.nginx_mail import NginxMail, write_nginx_mail
from tests.servers.pki import Pki
from tests.servers.porter import Porter
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.programs import require
from tests.servers.wire import Wire

pytestmark = pytest.mark.server
EXAMPLES = Path(__file__).resolve().parents[2] / "config" / "examples"
StartPorter = Callable[..., Porter]
BACKENDS = ("127.0.0.11", "127.0.0.12")


def example(name: str, changes: Mapping[str, str]) -> str:
    """An example's text for this machine; what is to be changed has to be there."""
    text = (EXAMPLES / name).read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def backend_of(port: int, pki: Pki, user: str) -> bytes:
    """Log in, and see who answers: each backend has a mailbox that says so."""
    with Wire.connect(port, pki.client_context()) as wire:
        assert wire.login(user, USERS[user]).startswith(b"OK")
        (listed,) = [line for line in wire.command(b'LIST "" On-*') if line.startswith(b"* LIST")]
        return listed.rpartition(b"On-")[2].strip(b'"')


@contextlib.contextmanager
def running(command: Sequence[str], ports: set[int], folder: Path) -> Iterator[None]:
    """A program that stays in the foreground."""
    with (folder / "out").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)

    def check_alive() -> None:
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended: {(folder / 'out').read_text()}")

    try:
        wait_until_listening(ports, 10, check_alive)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


# --- nginx ---


@pytest.fixture
def service(ports: Ports, dovecots: list[Dovecot]) -> Iterator[AuthService]:
    """A service that knows where each user's mail is."""
    people = {
        user: Person(USERS[user].encode(), {"Auth-Server": LOOPBACK, "Auth-Port": str(dovecot.imap_port)})
        for user, dovecot in zip(("alice", "bob"), dovecots, strict=True)
    }
    with AuthService(ports.take(), people) as running:
        yield running


@pytest.fixture
def nginx(service: AuthService, short_folder: Path, pki: Pki, ports: Ports) -> Iterator[NginxMail]:
    started = write_nginx_mail(short_folder / "nginx", service.url, pki, ports, {})
    own, _, _ = (started.folder / "nginx.conf").read_text().partition("events {")  # where the module and its files are
    changes = {
        "http://127.0.0.1:9000/auth": service.url,
        "/etc/nginx/tls.crt": str(pki.certificate),
        "/etc/nginx/tls.key": str(pki.private_key),
        "listen 993 ssl": f"listen {LOOPBACK}:{started.imaps_port} ssl",
        "listen 143": f"listen {LOOPBACK}:{started.imap_port}",
    }
    (started.folder / "nginx.conf").write_text(own + example("nginx-mail.conf", changes))
    started.start()
    yield started
    started.stop()


def test_nginx(
    nginx: NginxMail,
    service: AuthService,
    start_porter: StartPorter,
    dovecots: list[Dovecot],
    pki: Pki,
    short_folder: Path,
) -> None:
    (short_folder / "auth.key").write_text("7d0f8a2c\n")
    changes = {"http://127.0.0.1:9000/auth": service.url, "file: auth.key": f"file: {short_folder / 'auth.key'}"}
    for host, dovecot in zip(("10.0.0.11", "10.0.0.12"), dovecots, strict=True):
        changes[f"imap://{host}"] = f"imap://{LOOPBACK}:{dovecot.imap_port}"
    shown = yaml.safe_load(example("nginx-mail.yaml", changes))
    porter = start_porter(**{key: shown[key] for key in ("identity", "backends", "timeouts")})

    for user, dovecot in zip(("alice", "bob"), dovecots, strict=True):
        before, after = backend_of(nginx.imaps_port, pki, user), backend_of(porter.imaps_port, pki, user)
        assert before == after == dovecot.name.encode()
        asked, asked_again = service.questions[-2:]
        for field in ("Auth-Method", "Auth-User", "Auth-Pass", "Auth-Protocol", "Auth-SSL", "Client-IP", "X-Auth-Key"):
            assert asked[field] == asked_again[field]


# --- Perdition ---


@pytest.fixture
def perdition(short_folder: Path, dovecots: list[Dovecot], pki: Pki, ports: Ports) -> Iterator[int]:
    """The port of a Perdition that leads bob to the second server, and everybody else to the first."""
    program = require("perdition.imap4s")
    library = next(Path("/usr/lib").rglob("libperditiondb_posix_regex.so.0"))
    first, second = dovecots
    changes = {
        "/usr/lib/x86_64-linux-gnu/libperditiondb_posix_regex.so.0": str(library),
        "/etc/perdition/popmap.re": str(short_folder / "popmap.re"),
        "/etc/perdition/tls.crt": str(pki.certificate),
        "/etc/perdition/tls.key": str(pki.private_key),
        "outgoing_server mail-1.example.org": f"outgoing_server {LOOPBACK}:{first.imap_port}",
    }
    (short_folder / "perdition.conf").write_text(example("perdition.conf", changes))
    changes = {r"^boss@example\.org$": "^bob$", "mail-2.example.org": f"{LOOPBACK}:{second.imap_port}"}
    (short_folder / "popmap.re").write_text(example("perdition.popmap.re", changes))
    port = ports.take()
    command = [program, "--no_daemon", "-f", str(short_folder / "perdition.conf"), "--pid_file", ""]
    command += ["--bind_address", LOOPBACK, "--listen_port", str(port), "--ssl_mode", "ssl_listen"]
    command += ["--log_facility", str(short_folder / "log")]
    if os.geteuid() == 0:
        command += ["--username", "root", "--group", "root"]  # else it could not read the key
    with running(command, {port}, short_folder):
        yield port


def test_perdition(perdition: int, start_porter: StartPorter, dovecots: list[Dovecot], pki: Pki) -> None:
    changes = {"boss@example.org": "bob"}
    for name, dovecot in zip(("mail-1", "mail-2"), dovecots, strict=True):
        changes[f"imap+starttls://{name}.example.org"] = f"imap+starttls://{LOOPBACK}:{dovecot.imap_port}"
    shown = yaml.safe_load(example("perdition.yaml", changes))
    porter = start_porter(**{key: shown[key] for key in ("identity", "routing", "backends", "limits", "timeouts")})

    for user, dovecot in (("alice", dovecots[0]), ("bob", dovecots[1]), ("u01", dovecots[0])):
        before, after = backend_of(perdition, pki, user), backend_of(porter.imaps_port, pki, user)
        assert before == after == dovecot.name.encode()


# --- Dovecot's director ---


@pytest.fixture
def two(folder: Path, pki: Pki, ports: Ports) -> Iterator[list[Dovecot]]:
    """Two Dovecots on one port: the director tells servers apart by address alone."""
    if os.geteuid() != 0:
        pytest.skip("Dovecot's director needs root")
    require("dovecot")
    if not Path("/usr/lib/dovecot/director").exists():
        pytest.skip("Dovecot's director is not installed")
    servers = [write_dovecot(f"m{number}", folder / f"directed-{number}", pki, ports) for number in (1, 2)]
    for server, address in zip(servers, BACKENDS, strict=True):
        text = server.configuration.read_text().replace("listen = 127.0.0.1", f"listen = {address}")
        text = text.replace(f"port = {server.imap_port}\n", f"port = {servers[0].imap_port}\n")
        server.configuration.write_text(text)
        server.imap_port = servers[0].imap_port
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.stop()
            shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def director(two: list[Dovecot], short_folder: Path, pki: Pki, ports: Ports) -> Iterator[tuple[int, Path]]:
    """The port of a director, and its configuration."""
    taken = {name: ports.take() for name in ("imap", "imaps", "lmtp", "ring")}
    changes = {
        "/etc/dovecot/tls.crt": str(pki.certificate),
        "/etc/dovecot/tls.key": str(pki.private_key),
        "= 10.0.0.5 10.0.0.6": f"= {LOOPBACK}",
        "= 10.0.0.11 10.0.0.12": f"= {' '.join(BACKENDS)}",
        "port = 9090": f"port = {taken['ring']}",
        "port = 24\n": f"port = {taken['lmtp']}\n",
        "starttls=any-cert": f"starttls=any-cert port={two[0].imap_port}",
    }
    text = example("dovecot-director.conf", changes)
    for name in ("base_dir", "state_dir", "log_path"):
        text += f"{name} = {short_folder / name}\n"
    text += f"instance_name = {short_folder.name}\nlisten = {LOOPBACK}\n"
    for name in ("imap", "imaps"):
        text += f"service imap-login {{\n inet_listener {name} {{\n  port = {taken[name]}\n }}\n}}\n"
    configuration = short_folder / "dovecot.conf"
    configuration.write_text(text)
    command = [require("dovecot"), "-F", "-c", str(configuration)]
    with running(command, {taken["imap"], taken["imaps"], taken["ring"]}, short_folder):
        yield taken["imaps"], configuration


def overrides(configuration: Path, folder: Path, names: Sequence[str]) -> Any:
    """What the script of the page makes of a list of names."""
    wrapper = folder / "bin" / "doveadm"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {require("doveadm")} -c {configuration} "$@"\n')
    wrapper.chmod(0o755)
    script = folder / "director-overrides.sh"
    script.write_text(
        example("director-overrides.sh", {r"10\.0\.0\.11": r"127\.0\.0\.11", r"10\.0\.0\.12": r"127\.0\.0\.12"})
    )
    made = subprocess.run(
        ["/bin/sh", str(script)],
        input="".join(f"{name}\n" for name in names),
        env={**os.environ, "PATH": f"{wrapper.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return yaml.safe_load(f"overrides:\n{made.stdout}")["overrides"]


def test_director(
    director: tuple[int, Path], two: list[Dovecot], start_porter: StartPorter, pki: Pki, short_folder: Path
) -> None:
    port, configuration = director
    told = overrides(configuration, short_folder, ["Alice", *USERS])
    assert told.keys() == USERS.keys()
    assert set(told.values()) == {"mail-1", "mail-2"}

    changes = {"{ca: ca.pem}": f"{{ca: {pki.ca}}}", "{file: probe.password}": "{env: HOME}"}
    for number, (address, server) in enumerate(zip(BACKENDS, two, strict=True), start=1):
        changes[f"imap+starttls://10.0.0.1{number}"] = f"imap+starttls://{address}:{server.imap_port}"
        changes[f"{{name: mail-{number}.example.org}}"] = "{name: localhost}"
    shown = yaml.safe_load(example("dovecot-director.yaml", changes))
    del shown["backends"]["health"]  # there is no such account here
    shown["routing"]["overrides"] = told
    porter = start_porter(identity=shown["identity"], routing=shown["routing"], backends=shown["backends"])

    names = {"mail-1": b"m1", "mail-2": b"m2"}
    for user in list(USERS)[:8]:
        before, after = backend_of(port, pki, user), backend_of(porter.imaps_port, pki, user)
        assert before == after == names[told[user]]
