"""A real Prometheus beside a proxy with a little to do: every panel has something to show, alerts fire and clear."""

from __future__ import annotations

import json
import random
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.grafana.grafana_files import ALERTS, alert_queries, annotation_queries, dashboard_queries, filled
from tests.servers.accounts import MASTER, MASTER_PASSWORD, USERS
from tests.servers.dovecot import Dovecot, write_dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Porter, wait_for
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.programs import require
from tests.servers.prometheus import Prometheus, write_prometheus
from tests.servers.slapd import PEOPLE, SERVICE_DN, SERVICE_PASSWORD, Slapd, remove, write_slapd
from tests.servers.valkey import Valkey
from tests.servers.wire import Wire

pytestmark = pytest.mark.server
StartPorter = Callable[..., Porter]
# What a rule waits for and looks back at is minutes; here it is this.
SHORT_WINDOW = "4s"
QUICK = {"interval": "200ms", "timeout": "1s", "down_after": 2, "up_after": 2}
# Everybody calls from this machine.
NO_LIMITS = {"failed_login_delay": "0s", "exempt_networks": ["127.0.0.0/8"]}
# Alerts about slowness say how busy the machine is that the tests run on.
OF_THE_MACHINE = {"PorterEventLoopLate", "PorterLoginSlow", "PorterBackendSlow"}


@pytest.fixture
def backends(folder: Path, pki: Pki, ports: Ports) -> Iterator[list[Dovecot]]:
    require("dovecot")
    servers = [write_dovecot(name, folder / f"watched-{name}", pki, ports) for name in ("d1", "d2")]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def directory(short_folder: Path, ports: Ports) -> Iterator[Slapd]:
    require("slapd")
    server = write_slapd(short_folder / "slapd", ports, None)
    try:
        server.start()
        yield server
    finally:
        remove(server)


@pytest.fixture
def issuer(ports: Ports) -> Iterator[str]:
    """The URL of a token issuer that has no keys and knows no tokens."""

    class Issuer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"keys": []} if self.path == "/keys" else {"issuer": url, "jwks_uri": f"{url}/keys"})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer({"active": False})

        def _answer(self, document: Mapping[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    port = ports.take()
    url = f"http://{LOOPBACK}:{port}"
    server = ThreadingHTTPServer((LOOPBACK, port), Issuer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class ServerPair:
    """The listeners' certificate and key, in files that can be replaced."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.private_key = folder / "listener.pem", folder / "listener.key"
        self.ca = folder / "listener-ca.pem"
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(self.ca))
        self.renew(days=90)

    def renew(self, *, days: int) -> None:
        """Another certificate, which ends so many days from now."""
        now = datetime.now(UTC)
        issued = self._authority.issue_cert(
            "localhost", not_before=now - timedelta(days=1), not_after=now + timedelta(days=days)
        )
        issued.private_key_pem.write_to_path(str(self.private_key))
        self.private_key.chmod(0o600)
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))


@contextmanager
def light_load(log_in: Callable[[str, str], None]) -> Iterator[None]:
    """A few people who come and go; now and then one of them mistypes."""
    stopped = threading.Event()

    def live() -> None:
        chance = random.Random(6)
        while not stopped.wait(0.1):
            name = chance.choice([*USERS])
            password = USERS[name] if chance.random() > 0.1 else "mistyped-4x"
            # In an outage they are cut off.
            try:
                log_in(name, password)
            except (OSError, EOFError, AssertionError):
                continue

    threads = [threading.Thread(target=live) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join(30)


def visit(porter: Porter, pair: ServerPair, name: str, password: str) -> None:
    """Log in, look, rest for a moment, leave."""
    with Wire.connect(porter.imaps_port, ssl.create_default_context(cafile=str(pair.ca))) as wire:
        if wire.login(name, password).startswith(b"OK"):
            wire.command(b"SELECT INBOX")
            wire.send(b"i IDLE\r\n")
            wire.line()
            wire.send(b"DONE\r\n")
            wire.until(b"i")
            wire.command(b"LOGOUT")


def hurried(rules: str) -> str:
    """The same rules, in which all is a matter of seconds."""
    rules = re.sub(r"^(\s+for: )\d+[smh]$", r"\g<1>1s", rules, flags=re.MULTILINE)
    return re.sub(r"\[\d+[smh]\]", f"[{SHORT_WINDOW}]", rules)


@pytest.fixture
def stage(
    start_porter: StartPorter,
    short_folder: Path,
    ports: Ports,
    backends: list[Dovecot],
    directory: Slapd,
    issuer: str,
    valkey: Valkey,
) -> Iterator[tuple[Porter, Prometheus, ServerPair]]:
    require("prometheus")
    pair = ServerPair(short_folder)
    bind, master = short_folder / "ldap.password", short_folder / "master.password"
    for path, secret in ((bind, SERVICE_PASSWORD), (master, MASTER_PASSWORD)):
        path.write_text(secret)
        path.chmod(0o600)
    login = {"method": "master", "name": MASTER, "password": {"file": str(master)}}
    ldap = {
        "urls": [directory.url],
        "bind": {"dn": SERVICE_DN, "password": {"file": str(bind)}},
        "search": {"base": PEOPLE, "filter": "(uid={name})"},
        "timeout": "1s",
    }
    asked = {"url": f"{issuer}/introspect", "client_id": "porter", "client_secret": {"file": str(bind)}}
    oauth = {"issuer": issuer, "audience": "imap", "introspection": asked}
    porter = start_porter(
        backends_url={server.name: f"imaps://localhost:{server.imaps_port}" for server in backends},
        identity=[{"ldap": ldap}, {"oauth": oauth}],
        cache={"positive": "1s", "negative": "1s", "serve_stale": "1h"},
        backends={"health": QUICK, "login": login},
        timeouts={"backend_connect": "1s", "backend_login": "2s"},
        tls={"certificates": [{"certificate": str(pair.certificate), "private_key": str(pair.private_key)}]},
        limits=NO_LIMITS,
        fleet={"valkey": valkey.url, "password": {"file": str(valkey.password_file)}, "name": "porter-1"},
    )
    prometheus = write_prometheus(short_folder / "prometheus", ports, porter.metrics_port, hurried(ALERTS.read_text()))
    with ExitStack() as stack:
        stack.callback(prometheus.stop)
        prometheus.start()
        stack.enter_context(light_load(partial(visit, porter, pair)))
        yield porter, prometheus, pair


def test_a_day_in_the_life(
    stage: tuple[Porter, Prometheus, ServerPair], backends: list[Dovecot], directory: Slapd, valkey: Valkey
) -> None:
    porter, prometheus, pair = stage
    all_panels_show_something(prometheus)
    quiet = partial(only_of_the_machine, prometheus)
    assert wait_for(quiet, 20), prometheus.firing()
    assert prometheus.rule_errors() == []

    # Four things go wrong at once.
    backends[0].kill()
    directory.stop()
    valkey.stop()
    pair.renew(days=2)
    expected = {
        "PorterBackendDown": {"backend": "d1", "severity": "critical"},
        "PorterIdentitySourceOut": {"source": "ldap", "severity": "critical"},
        "PorterLdapServerDown": {"server": directory.url, "severity": "warning"},
        "PorterStaleAnswers": {"source": "ldap", "severity": "warning"},
        "PorterLoginErrors": {"severity": "critical"},
        "PorterFleetLost": {"severity": "warning"},
        "PorterCertificateAboutToEnd": {"kind": "listener", "certificate": str(pair.certificate)},
    }
    for name, labels in expected.items():
        assert wait_for(partial(fires, prometheus, name, labels), 30), (
            name,
            prometheus.firing(),
            porter.output()[-3000:],
        )
    assert "PorterAllBackendsDown" not in prometheus.firing()
    (last,) = prometheus.query(
        'max(porter_backend_last_failure_timestamp_seconds{backend="d1",step="connect"}) > time() - 60'
    )
    assert last["value"]

    # All is mended.
    backends[0].start()
    directory.start()
    valkey.start()
    pair.renew(days=90)
    assert wait_for(quiet, 40), prometheus.firing()
    all_panels_show_something(prometheus)

    porter.terminate()
    assert wait_for(partial(fires, prometheus, "PorterDown", {"job": "imap-porter"}), 20), prometheus.firing()


def all_panels_show_something(prometheus: Prometheus) -> None:
    """Every query of every panel has series; those of annotations and rules at least have an answer."""
    empty: list[str] = []

    def all_full() -> bool:
        empty[:] = [
            query.where
            for query in dashboard_queries()
            if not prometheus.query(filled(query.expression, __rate_interval=SHORT_WINDOW, backend="d1"))
        ]
        return not empty

    assert wait_for(all_full, 30), empty
    for query in (*annotation_queries(), *alert_queries()):
        prometheus.query(filled(query.expression))


def fires(prometheus: Prometheus, name: str, labels: Mapping[str, str]) -> bool:
    """Whether an alert with these labels fires."""
    return any(labels.items() <= found.items() for found in prometheus.firing().get(name, ()))


def only_of_the_machine(prometheus: Prometheus) -> bool:
    """Whether nothing fires that a proxy, and what it depends on, has to answer for."""
    return not prometheus.firing().keys() - OF_THE_MACHINE
