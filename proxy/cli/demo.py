"""`imap-porter demo`: two small IMAP servers, the proxy before them, and one login by each door to show it."""

from __future__ import annotations

import contextlib
import datetime
import imaplib
import importlib.util
import ipaddress
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from rich.console import Console
from rich.table import Table

from proxy.auth.passwords import hash_password

_ACCOUNTS = {f"{name}@example.org": f"{name}-secret" for name in ("alice", "bob", "carol", "dave")}
_BACKENDS = ("backend-1", "backend-2")
_IMAPS_PORT, _STARTTLS_PORT, _METRICS_PORT = 1993, 1143, 9142
_START_SECONDS = 30.0


class DemoFailed(Exception):
    """The demo cannot go on. The text says why and what to do."""


def demo(*, once: bool) -> int:
    """Run the demo until Ctrl-C, or (`once`) only its self-check. Gives the exit status."""
    console = Console()
    if importlib.util.find_spec("pymap") is None:
        print("demo: its IMAP servers are not installed; try: pip install 'imap-porter[demo]'", file=sys.stderr)
        return 1
    # A stop by `kill` or `timeout` cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="imap-porter-demo-") as folder, contextlib.ExitStack() as stack:
            _check_ports()
            directory = Path(folder)
            with console.status("starting two IMAP servers and the proxy …"):
                certificate = _start(directory, stack)
            console.print(_self_check(certificate))
            if once:
                console.print("[green]All doors work.[/green]")
                return 0
            _print_how_to(console, certificate)
            threading.Event().wait()
    except DemoFailed as exc:
        Console(stderr=True).print(f"[red]demo:[/red] {exc}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped")
    return 0


def _check_ports() -> None:
    for port in (_IMAPS_PORT, _STARTTLS_PORT, _METRICS_PORT):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as exc:
                raise DemoFailed(f"port 127.0.0.1:{port} is taken ({exc.strerror}); stop what uses it") from exc


def _start(directory: Path, stack: contextlib.ExitStack) -> Path:
    """Everything up and answering; gives the certificate that clients have to trust."""
    certificate, key = _make_certificate(directory)
    servers = []
    for name in _BACKENDS:
        port = _free_port()
        accounts = [f"{user}:{password}" for user, password in _ACCOUNTS.items()]
        arguments = [sys.executable, "-m", "proxy.cli.demo_backend", name, str(port), *accounts]
        process = stack.enter_context(_running(arguments, directory / f"{name}.log"))
        servers.append({"name": name, "url": f"imap://127.0.0.1:{port}"})
        _wait_for(port, process, directory / f"{name}.log")
    users = {user: {"hash": hash_password(password.encode())} for user, password in _ACCOUNTS.items()}
    (directory / "users.yaml").write_text(yaml.safe_dump(users))
    settings = directory / "porter.yaml"
    settings.write_text(yaml.safe_dump(_settings(certificate, key, servers), sort_keys=False))
    arguments = [sys.executable, "-m", "proxy", "serve", "-c", str(settings)]
    process = stack.enter_context(_running(arguments, directory / "porter.log"))
    for port in (_IMAPS_PORT, _STARTTLS_PORT, _METRICS_PORT):
        _wait_for(port, process, directory / "porter.log")
    return certificate


def _settings(certificate: Path, key: Path, servers: list[dict[str, str]]) -> dict[str, object]:
    return {
        "version": 1,
        "listeners": [
            {"address": f"127.0.0.1:{_IMAPS_PORT}", "tls": "implicit"},
            {"address": f"127.0.0.1:{_STARTTLS_PORT}", "tls": "starttls"},
        ],
        "tls": {"certificates": [{"certificate": str(certificate), "private_key": str(key)}]},
        "names": {"default_domain": "example.org"},
        "identity": [{"file": {"path": "users.yaml"}}],
        "backends": {"servers": servers, "login": {"method": "password"}},
        "metrics": {"address": f"127.0.0.1:{_METRICS_PORT}"},
        "timeouts": {"drain": "2s"},
        "log": {"format": "json"},
    }


def _make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, valid for a week."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "imap-porter demo")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate_file, key_file = directory / "demo.crt", directory / "demo.key"
    certificate_file.write_bytes(certificate.public_bytes(pem))
    key_file.touch(mode=0o600)
    key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return certificate_file, key_file


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(arguments: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child process, ended with the block. In a session of its own: Ctrl-C is for us to hand on."""
    with output.open("wb") as sink:
        process = subprocess.Popen(arguments, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)  # noqa: S603
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                said = output.read_text(errors="replace").strip().splitlines()[-5:]
                raise DemoFailed(f"nothing listens on 127.0.0.1:{port}\n" + "\n".join(said)) from None
            time.sleep(0.05)
        else:
            return


def _self_check(certificate: Path) -> Table:
    """Log every user in by each door; a table of who got where."""
    table = Table("user", "door", "backend", "login", "INBOX", title="imap-porter demo: one user, one backend")
    for user, password in _ACCOUNTS.items():
        homes = set()
        for door in ("IMAPS", "STARTTLS"):
            home, seconds, messages = _log_in(door, certificate, user, password)
            homes.add(home)
            table.add_row(user, door, home, f"{seconds * 1000:.0f} ms", f"{messages} message")
        if len(homes) != 1:
            raise DemoFailed(f"{user} was sent to two backends: {', '.join(sorted(homes))}")
    return table


def _log_in(door: str, certificate: Path, user: str, password: str) -> tuple[str, float, int]:
    context = ssl.create_default_context(cafile=str(certificate))
    client: imaplib.IMAP4
    try:
        if door == "IMAPS":
            client = imaplib.IMAP4_SSL("localhost", _IMAPS_PORT, ssl_context=context, timeout=20)
        else:
            client = imaplib.IMAP4("localhost", _STARTTLS_PORT, timeout=20)
            client.starttls(context)
        with client:
            began = time.perf_counter()
            client.login(user, password)
            seconds = time.perf_counter() - began
            _, listed = client.list('""', '"Hello from *"')
            home = listed[0].decode().rpartition("Hello from ")[2].strip('"') if listed and listed[0] else "?"  # type: ignore[union-attr]
            _, count = client.select("INBOX", readonly=True)
            return home, seconds, int(count[0] or 0)
    except (OSError, imaplib.IMAP4.error) as exc:
        raise DemoFailed(f"{user} could not log in by {door}: {exc}") from exc


def _print_how_to(console: Console, certificate: Path) -> None:
    user, password = next(iter(_ACCOUNTS.items()))
    console.print(
        f"""
Connect a mail client to [bold]localhost:{_IMAPS_PORT}[/bold] (IMAPS) or
[bold]localhost:{_STARTTLS_PORT}[/bold] (STARTTLS).
Users: {", ".join(_ACCOUNTS)}; the password is the first name and "-secret".
The certificate to trust: {certificate}

  curl --cacert {certificate} -u {user}:{password} "imaps://localhost:{_IMAPS_PORT}/INBOX;MAILINDEX=1"
  curl http://127.0.0.1:{_METRICS_PORT}/metrics
  {certificate.with_name("porter.log")} holds the log, {certificate.with_name("porter.yaml")} the settings.

Ctrl-C ends it.""",
        highlight=False,
        soft_wrap=True,
    )
