"""Who the client is: told by balancers and webmail servers, refused from others, and told on to a real Dovecot."""

from __future__ import annotations

import itertools
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.model import Endpoint, TlsFacts, Visitor
from proxy.transport.proxy_header import encode_v2
from tests.servers.accounts import USERS
from tests.servers.dovecot import Dovecot, write_dovecot
from tests.servers.haproxy import V1, V2, V2_OF_TLS, Front, Haproxy, write_haproxy
from tests.servers.nginx_stream import NginxStream, write_nginx_stream
from tests.servers.pki import Pki
from tests.servers.porter import Porter, porter_settings, wait_for
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.programs import require
from tests.servers.wire import Wire, ends_within

pytestmark = pytest.mark.server

KINDS = ("implicit", "starttls", "none")
HEADER = b"PROXY TCP4 192.0.2.77 203.0.113.1 40077 993\r\n"
HEADER_V6 = b"PROXY TCP6 2001:db8::77 2001:db8::1 40077 993\r\n"
UNAVAILABLE = b"NO [UNAVAILABLE] Account is temporarily unavailable."
HEADER_V2 = b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c\xc0\0\2\x4d\xcb\0q\1\x9c\x8d\x03\xe1"
HANDSHAKE_SECONDS = 2

# Every way to tell a backend, over every kind of connection to it; a user lives on each.
WAYS = ("id", "proxy_v1", "proxy_v2")
SCHEMES = ("imap", "imap+starttls", "imaps")
BACKENDS = {f"{way}-{scheme.replace('+', '-')}": (way, scheme) for way in WAYS for scheme in SCHEMES}
RESIDENTS = dict(zip(BACKENDS, (name for name in USERS if name.startswith("u")), strict=False))

_hosts = (f"127.1.{high}.{low}" for high, low in itertools.product(range(256), range(1, 255)))


@dataclass(frozen=True)
class Site:
    """A proxy with a listener of each kind behind balancers, and two for webmail servers; a Dovecot behind it."""

    porter: Porter
    dovecot: Dovecot
    ports: Mapping[str, int]
    tls: ssl.SSLContext

    def log_in(self, wire: Wire, user: str) -> None:
        answer = wire.login(user, USERS[user])
        assert answer.startswith(b"OK"), (answer, self.porter.output())

    def seen(self, user: str, client: str, server: str = "") -> str:
        """The line of Dovecot's log that says that this user has come from there."""
        lip = re.escape(server) or "."
        wanted = re.compile(rf".*Login: user=<{user}>.*rip={re.escape(client)}, .*lip={lip}.*")
        found: list[str] = []

        def look() -> bool:
            found[:] = wanted.findall(self.dovecot.log())
            return bool(found)

        assert wait_for(look), self.dovecot.log()
        return found[-1]

    def session(self, client: str) -> dict[str, Any]:
        """The line of the proxy's log for a connection that is over."""
        return self.porter.wait_for_log("session.closed", client=client)[-1]


@pytest.fixture(scope="module")
def seeing(folder: Path, pki: Pki, ports: Ports) -> Iterator[Dovecot]:
    """A Dovecot that can be told who the client is in every way."""
    require("dovecot")
    dovecot = write_dovecot("seeing", folder / "seeing", pki, ports, proxied=True)
    try:
        dovecot.start()
        yield dovecot
    finally:
        dovecot.stop()


def trust(*networks: str) -> dict[str, list[str]]:
    return {"trusted_networks": list(networks)}


def backend(name: str, dovecot: Dovecot) -> dict[str, Any]:
    way, scheme = BACKENDS[name]
    if way == "id":
        port = dovecot.imaps_port if scheme == "imaps" else dovecot.imap_port
    else:
        port = dovecot.proxied_imaps_port if scheme == "imaps" else dovecot.proxied_imap_port
    return {"name": name, "url": f"{scheme}://{LOOPBACK}:{port}", "client_address": way}


@pytest.fixture(scope="module")
def site(folder: Path, pki: Pki, ports: Ports, seeing: Dovecot) -> Iterator[Site]:
    settings, taken = porter_settings(pki, {}, ports)
    taken |= {kind: ports.take() for kind in (*KINDS, "webmail", "webmail behind a balancer")}
    addresses = {kind: f"{LOOPBACK}:{port}" for kind, port in taken.items()}
    for kind in KINDS:
        listener = {"address": addresses[kind], "tls": kind, "proxy_protocol": trust(LOOPBACK)}
        settings["listeners"].append(listener | (trust("127.0.0.0/8") if kind == "none" else {}))
    settings["listeners"] += [
        {"address": addresses["webmail"], "tls": "starttls", "id_address": trust(LOOPBACK)},
        {
            "address": addresses["webmail behind a balancer"],
            "tls": "implicit",
            "proxy_protocol": trust(LOOPBACK),
            "id_address": trust(LOOPBACK, "192.0.2.0/24"),
        },
    ]
    settings["backends"]["servers"] = [backend(name, seeing) for name in BACKENDS]
    settings["routing"] = {"overrides": {user: name for name, user in RESIDENTS.items()}}
    settings["timeouts"]["handshake"] = f"{HANDSHAKE_SECONDS}s"
    place = folder / "told"
    place.mkdir()
    porter = Porter(place, settings, pki, taken)
    try:
        yield Site(porter, seeing, taken, pki.client_context())
        porter.stop()
    finally:
        porter.kill()


@pytest.fixture(scope="module")
def haproxy(folder: Path, pki: Pki, ports: Ports, site: Site) -> Iterator[Haproxy]:
    require("haproxy")
    fronts = {
        f"{kind}-{name}": Front(site.ports[kind], way) for kind in KINDS for name, way in (("v1", V1), ("v2", V2))
    }
    fronts["ends-tls"] = Front(site.ports["none"], V2_OF_TLS, ends_tls=True)
    fronts["checked"] = Front(site.ports["starttls"], V2, checked=True)
    balancer = write_haproxy(folder / "haproxy", fronts, pki, ports)
    try:
        balancer.start()
        yield balancer
    finally:
        balancer.stop()


@pytest.fixture(scope="module")
def nginx(folder: Path, ports: Ports, site: Site) -> Iterator[NginxStream]:
    require("nginx")
    balancer = write_nginx_stream(folder / "nginx-stream", {kind: site.ports[kind] for kind in KINDS}, ports)
    try:
        balancer.start()
        yield balancer
    finally:
        balancer.stop()


def enter(site: Site, port: int, kind: str, *, host: str = "", header: bytes = b"") -> Wire:
    """A client, from an address that no other test has, up to where it may log in."""
    connection = socket.create_connection((LOOPBACK, port), timeout=20, source_address=(host or next(_hosts), 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        connection.sendall(header)
        if kind == "implicit":
            connection = site.tls.wrap_socket(connection, server_hostname="localhost")
        wire = Wire(connection)
        if kind == "starttls":
            wire.starttls(site.tls)
    except BaseException:
        connection.close()
        raise
    return wire


def host_of(wire: Wire) -> str:
    return wire.address.rpartition(":")[0]


def is_told(site: Site, wire: Wire) -> None:
    """The client logs in, and both logs know where it is, though somebody else has connected."""
    with wire:
        client, host = wire.address, host_of(wire)
        site.log_in(wire, RESIDENTS["id-imap"])
    site.seen(RESIDENTS["id-imap"], host)
    assert site.session(client)["via"].startswith(f"{LOOPBACK}:")


# --- balancers ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_tells(site: Site, haproxy: Haproxy, kind: str, version: str) -> None:
    is_told(site, enter(site, haproxy.ports[f"{kind}-{version}"], kind))


@pytest.mark.parametrize("kind", KINDS)
def test_nginx_tells(site: Site, nginx: NginxStream, kind: str) -> None:
    is_told(site, enter(site, nginx.ports[kind], kind))


def test_haproxy_ends_tls(site: Site, haproxy: Haproxy) -> None:
    is_told(site, enter(site, haproxy.ports["ends-tls"], "implicit"))


def test_haproxy_checks_on_its_own_behalf(site: Site, haproxy: Haproxy) -> None:
    """LOCAL: the connection is nobody's but its own."""
    assert wait_for(lambda: haproxy.check_status("checked") == "L7OK"), haproxy.check_status("checked")
    is_told(site, enter(site, haproxy.ports["checked"], "starttls"))


# --- headers from who is not trusted, and none from who is ---


@pytest.mark.parametrize("header", [HEADER, HEADER_V2], ids=["v1", "v2"])
def test_a_header_from_elsewhere_is_no_tls(site: Site, header: bytes) -> None:
    with closing(socket.create_connection((LOOPBACK, site.ports["implicit"]), 20, (next(_hosts), 0))) as connection:
        host, port = connection.getsockname()
        connection.sendall(header)
        assert ends_within(connection, 10)
    assert site.session(f"{host}:{port}")["via"] == ""
    assert site.porter.log("tls.failed")[-1]["client"] == f"{host}:{port}"


@pytest.mark.parametrize("kind", ["starttls", "none"])
def test_a_header_from_elsewhere_is_a_bad_command(site: Site, kind: str) -> None:
    with enter(site, site.ports[kind], "none") as wire:
        client, host = wire.address, host_of(wire)
        wire.send(HEADER)
        assert wire.line().startswith(b"PROXY BAD ")
        if kind == "starttls":
            wire.starttls(site.tls)
        site.log_in(wire, RESIDENTS["id-imaps"])
    site.seen(RESIDENTS["id-imaps"], host)
    assert site.session(client)["via"] == ""


def test_a_listener_without_balancers_takes_no_header(site: Site) -> None:
    with closing(socket.create_connection((LOOPBACK, site.ports["imaps"]), 20)) as connection:
        connection.sendall(HEADER)
        assert ends_within(connection, 10)


INSTEAD = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "IMAP": b"a NOOP\r\n",
    "a wrong one": HEADER.replace(b"\r", b""),
    "half of one": HEADER[:20],
}


def refused_headers(site: Site) -> float:
    return site.porter.metrics().total("porter_connections_refused_total", limit="proxy_header")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "instead", [b"\x16\x03\x01\x02\x00\x01\x00", b"a NOOP\r\n", HEADER.replace(b"\r", b""), HEADER[:20]]
)
def test_a_balancer_without_a_header_is_sent_away(site: Site, kind: str, instead: bytes) -> None:
    before = refused_headers(site)
    with closing(socket.create_connection((LOOPBACK, site.ports[kind]), 20, (LOOPBACK, 0))) as connection:
        host, port = connection.getsockname()
        connection.sendall(instead)
        connection.settimeout(HANDSHAKE_SECONDS + 10)
        try:
            assert connection.recv(1000) == b""  # and not a word
        except ConnectionResetError:
            pass
    line = site.porter.wait_for_log("proxy_header.refused", peer=f"{host}:{port}")[0]
    assert "192.0" not in line["detail"]
    assert refused_headers(site) == before + 1


# --- backends ---

CLIENTS = [(HEADER, "192.0.2.77", "203.0.113.1"), (HEADER_V6, "2001:db8::77", "2001:db8::1")]


@pytest.mark.parametrize(("header", "client", "server"), CLIENTS, ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("name", BACKENDS)
def test_dovecot_is_told(site: Site, name: str, header: bytes, client: str, server: str) -> None:
    with enter(site, site.ports["implicit"], "implicit", host=LOOPBACK, header=header) as wire:
        if name == "proxy_v1-imap":
            # Dovecot takes no password in clear from outside its login_trusted_networks, and version 1 cannot tell it
            # of the client's TLS.
            assert wire.login(RESIDENTS[name], USERS[RESIDENTS[name]]) == UNAVAILABLE
            return
        site.log_in(wire, RESIDENTS[name])
    line = site.seen(RESIDENTS[name], client, server)
    spelled = f"[{client}]:40077" if ":" in client else f"{client}:40077"
    closed = site.porter.wait_for_log("session.closed", client=spelled, backend=name)[-1]
    if name.startswith("id-"):
        assert f"session=<{closed['session_id']}>" in line


def test_dovecot_is_told_of_a_client_of_our_own(site: Site) -> None:
    for name, user in RESIDENTS.items():
        with enter(site, site.ports["starttls"], "starttls") as wire:
            host = host_of(wire)
            site.log_in(wire, user)
        site.seen(user, host, LOOPBACK)
        assert site.porter.metrics().total("porter_backend_up", backend=name) == 1


@pytest.mark.parametrize(
    ("tls", "answer"), [(TlsFacts("TLSv1.3", "TLS_AES_128_GCM_SHA256", "localhost"), b"OK"), (None, UNAVAILABLE)]
)
def test_dovecot_is_told_of_tls_that_a_balancer_has_ended(site: Site, tls: TlsFacts | None, answer: bytes) -> None:
    """From there it takes no password in clear, and all that it sees of this client is in clear."""
    visitor = Visitor(Endpoint("192.0.2.99", 40099), Endpoint("203.0.113.1", 993), "balancer-1", tls)
    user = RESIDENTS["proxy_v2-imap"]
    with enter(site, site.ports["none"], "none", host=LOOPBACK, header=encode_v2(visitor)) as wire:
        assert wire.login(user, USERS[user]).startswith(answer)


# --- webmail servers, and other proxies ---

ORIGIN = (
    b'ID ("x-originating-ip" "192.0.2.88" "x-originating-port" "40088"'
    b' "x-connected-ip" "203.0.113.8" "x-connected-port" "443")'
)


def test_a_webmail_server_is_believed(site: Site) -> None:
    with enter(site, site.ports["webmail"], "starttls", host=LOOPBACK) as wire:
        front = wire.address
        assert wire.command(ORIGIN)[-1].split()[1] == b"OK"
        site.log_in(wire, RESIDENTS["id-imap"])
    site.seen(RESIDENTS["id-imap"], "192.0.2.88", "203.0.113.8")
    assert site.session("192.0.2.88:40088")["via"] == front


def test_what_a_webmail_server_said_in_clear_is_not_believed(site: Site) -> None:
    """It may have been somebody on the way who said it."""
    with enter(site, site.ports["webmail"], "none", host=LOOPBACK) as wire:
        front = wire.address
        wire.command(ORIGIN.replace(b".88", b".89"))
        wire.starttls(site.tls)
        site.log_in(wire, RESIDENTS["id-imap"])
    assert site.session(front)["via"] == ""
    assert "192.0.2.89" not in site.dovecot.log()


def test_others_are_not_believed(site: Site) -> None:
    with enter(site, site.ports["webmail"], "starttls") as wire:
        client, host = wire.address, host_of(wire)
        wire.command(ORIGIN.replace(b".88", b".90"))
        site.log_in(wire, RESIDENTS["id-imap-starttls"])
    site.seen(RESIDENTS["id-imap-starttls"], host)
    assert site.session(client)["via"] == ""
    assert "192.0.2.90" not in site.dovecot.log()


def test_behind_a_balancer_it_is_the_client_who_is_believed_or_not(site: Site) -> None:
    """That the balancer's own address is one of a webmail server's networks makes no webmail server of its clients."""
    port = site.ports["webmail behind a balancer"]
    stranger = b"PROXY TCP4 198.51.100.7 203.0.113.1 40001 993\r\n"
    with enter(site, port, "implicit", host=LOOPBACK, header=stranger) as wire:
        wire.command(ORIGIN.replace(b".88", b".91"))
        site.log_in(wire, RESIDENTS["id-imap"])
    site.seen(RESIDENTS["id-imap"], "198.51.100.7")
    assert "192.0.2.91" not in site.dovecot.log()
    with enter(site, port, "implicit", host=LOOPBACK, header=HEADER) as wire:
        wire.command(ORIGIN.replace(b"192.0.2.88", b"198.51.100.8"))
        site.log_in(wire, RESIDENTS["id-imap"])
    site.seen(RESIDENTS["id-imap"], "198.51.100.8")


@pytest.mark.parametrize(
    ("told", "answer"), [(b"1", UNAVAILABLE), (b"0", UNAVAILABLE), (b"2", b"OK")], ids=["1", "0", "2"]
)
def test_one_proxy_too_many(site: Site, told: bytes, answer: bytes) -> None:
    with enter(site, site.ports["webmail"], "starttls", host=LOOPBACK) as wire:
        wire.command(b'ID ("x-proxy-ttl" "%b")' % told)
        assert wire.login("alice", USERS["alice"]).startswith(answer)


def test_proxies_in_a_ring(folder: Path, pki: Pki, ports: Ports) -> None:
    """Two proxies that are each other's backends: the login goes round some times, and then it is over."""
    settings = [porter_settings(pki, {}, ports) for _ in range(2)]
    for (own, _), (_, other) in zip(settings, reversed(settings), strict=True):
        url = f"imap+starttls://{LOOPBACK}:{other['starttls']}"
        own["backends"]["servers"] = [{"name": "the-other", "url": url, "client_address": "id"}]
    porters: list[Porter] = []
    try:
        for number, (given, taken) in enumerate(settings):
            place = folder / f"ring-{number}"
            place.mkdir()
            porters.append(Porter(place, given, pki, taken))
        with Wire.connect(porters[0].imaps_port, pki.client_context()) as wire:
            assert wire.login("alice", USERS["alice"]) == UNAVAILABLE
        refused = [line for porter in porters for line in porter.wait_for_log("login.refused")]
        assert any("ring" in line["detail"] for line in refused), refused
        assert len(refused) <= 6
        for porter in porters:
            porter.stop()
    finally:
        for porter in porters:
            porter.kill()
