"""Clients and backends that misbehave: a clear answer or a clean end, and everybody else goes on undisturbed."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from argon2 import PasswordHasher

from tests.integration import fake_backend
from tests.integration.fake_backend import FakeBackend, Part
from tests.servers.accounts import USERS
from tests.servers.dovecot import Dovecot
from tests.servers.pki import Pki
from tests.servers.porter import Porter, porter_settings, wait_for, wait_until_still
from tests.servers.ports import LOOPBACK, Ports
from tests.servers.wire import Wire, ends_within

pytestmark = pytest.mark.server
LOGIN_SECONDS = 2
BACKEND_LOGIN_SECONDS = 1
TIMEOUTS = {
    "handshake": "1s",
    "login": f"{LOGIN_SECONDS}s",
    "backend_connect": "1s",
    "backend_login": f"{BACKEND_LOGIN_SECONDS}s",
    "drain": "2s",
}
SLACK_SECONDS = 3  # for a machine that is busy
MEMORY_BOUND = 32 * 2**20
PASSWORD = "any-pass-will-do-5u"


def run_porter(folder: Path, pki: Pki, ports: Ports, urls: dict[str, str], **changes: Any) -> Porter:
    folder.mkdir()
    settings, taken = porter_settings(pki, urls, ports)
    settings["limits"] = {**settings["limits"], "connections_per_address": 1000}
    return Porter(folder, {**settings, "timeouts": TIMEOUTS, **changes}, pki, taken)


@contextlib.contextmanager
def stays_well(porter: Porter, check_login: Callable[[], None]) -> Iterator[None]:
    """Whatever is done inside: the process lives, others can log in, and no memory is lost to it."""
    check_login()
    before = porter.resident_bytes()
    yield
    porter.check_alive()
    check_login()
    assert porter.resident_bytes() - before < MEMORY_BOUND


# --- clients ---


@pytest.fixture(scope="module")
def strict(folder: Path, pki: Pki, ports: Ports, dovecots: list[Dovecot]) -> Iterator[Porter]:
    """A proxy with little patience."""
    urls = {server.name: f"imap://{LOOPBACK}:{server.imap_port}" for server in dovecots}
    porter = run_porter(folder / "strict", pki, ports, urls)
    try:
        yield porter
        porter.stop()
    finally:
        porter.kill()


@pytest.fixture
def context(pki: Pki) -> ssl.SSLContext:
    return pki.client_context()


@pytest.fixture
def well(strict: Porter, context: ssl.SSLContext) -> Iterator[None]:
    """For tests of clients: the proxy is as good after as it was before."""

    def check_login() -> None:
        with Wire.connect(strict.imaps_port, context) as wire:
            assert wire.login("u01", USERS["u01"]).startswith(b"OK")
            assert wire.command(b"NOOP")[-1].split()[1] == b"OK"

    with stays_well(strict, check_login):
        yield


def push(wire: Wire, data: bytes) -> None:
    """Send to a peer that may have enough of it."""
    with contextlib.suppress(OSError):
        wire.send(data)


BYE = b"* BYE Too many or too large invalid commands.\r\n"
TOO_BIG = b"* BYE [TOOBIG] Literal too large.\r\n"
LATE = b"* BYE Not logged in within the time allowed.\r\n"
NO_COMMAND = b"* BAD Invalid tag or missing command.\r\n"
NOT_NOW = b" BAD Unknown command, or not allowed before login.\r\n"
SMTP_ANSWERS = b"EHLO" + NOT_NOW + b"MAIL" + NOT_NOW + b"RCPT" + NOT_NOW + NO_COMMAND * 4  # DATA hello . QUIT
# What is sent, and all that is answered before the connection ends, by either door.
GARBAGE = {
    "noise": (random.Random(3501).randbytes(20000), NO_COMMAND * 10 + BYE),
    "zeros": (bytes(20000), BYE),
    "newlines": (b"\r\n" * 10000, NO_COMMAND * 10 + BYE),
    "carriage returns": (b"\r" * 20000, BYE),
    "braces": (b"a {" * 6000 + b"\r\n", BYE),
    "parentheses": (b"a ID " + b"(" * 20000 + b"\r\n", BYE),
    # A browser that was lured here must not see anything it could take for an answer.
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a\r\nAccept: */*\r\n\r\n", b""),
    "http post": (b"POST /login HTTP/1.1\r\nContent-Length: 22\r\n\r\na LOGIN u01 something\r\n", b""),
    "smtp": (
        b"EHLO there\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n" * 10,
        SMTP_ANSWERS + SMTP_ANSWERS[: -4 * len(NO_COMMAND)] + BYE,
    ),
    "proxy header": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" * 50, (b"PROXY" + NOT_NOW) * 10 + BYE),
    "long line": (b"a LOGIN " + b"x" * 2**20 + b"\r\n", BYE),
    "long line without end": (b"x" * 2**20, BYE),
    "line that waits for more": (b"x" * 8000, LATE),
    "large literal": (b"a LOGIN {1073741824+}\r\n" + b"x" * 2**20, TOO_BIG),
    "many literals": (b"a LOGIN {4000+}\r\n" + (b"x" * 4000 + b" {4000+}\r\n") * 300, TOO_BIG),
    "literal that waits for more": (b"a ID {4000+}\r\n" + b"x" * 2000, LATE),
    "overflowing literal": (b"a LOGIN {18446744073709551617+}\r\nx\r\n" * 30, TOO_BIG),
    "unknown commands": (
        b"".join(b"a%d XYZZY\r\n" % number for number in range(1000)),
        b"".join(b"a%d" % number + NOT_NOW for number in range(10)) + BYE,
    ),
}


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize(("garbage", "answer"), GARBAGE.values(), ids=GARBAGE)
def test_garbage_ends_the_connection(strict: Porter, context: ssl.SSLContext, garbage: bytes, answer: bytes) -> None:
    ways = {"starttls": (strict.starttls_port, None), "imaps": (strict.imaps_port, context)}
    for name, (port, tls) in ways.items():
        with Wire.connect(port, tls) as wire:
            began = time.monotonic()
            push(wire, garbage)
            assert wire.rest() == answer, name
            assert time.monotonic() - began < LOGIN_SECONDS + SLACK_SECONDS, name


@pytest.mark.usefixtures("well")
def test_garbage_in_place_of_a_handshake(strict: Porter) -> None:
    noise, http = GARBAGE["noise"][0], GARBAGE["http"][0]
    for garbage in (noise, http, b"a LOGIN u01 x\r\n", b"\x16\x03\x01\xff\xff" + bytes(20000)):
        with Wire.connect(strict.imaps_port, greeting=False) as wire:
            push(wire, garbage)
            assert b"* OK" not in wire.rest()


@pytest.mark.usefixtures("well")
def test_a_literal_too_large_is_not_invited(strict: Porter, context: ssl.SSLContext) -> None:
    with Wire.connect(strict.imaps_port, context) as wire:
        wire.send(b"a LOGIN {999999999}\r\n")
        answer = wire.line()
        assert not answer.startswith(b"+")
        assert answer.split()[1] in (b"BAD", b"NO", b"BYE")


@pytest.mark.usefixtures("well")
def test_a_mistake_costs_nothing_but_an_answer(strict: Porter, context: ssl.SSLContext) -> None:
    with Wire.connect(strict.imaps_port, context) as wire:
        assert wire.command(b"AUTHENTICATE PLAIN !!!")[-1].split()[1] == b"BAD"
        wire.send(b"a AUTHENTICATE PLAIN\r\n")
        assert wire.line().startswith(b"+")
        wire.send(b"*\r\n")
        assert wire.until(b"a")[-1].startswith(b"a BAD")
        assert wire.command(b"LOGIN u02")[-1].split()[1] == b"BAD"
        assert wire.login("u02", USERS["u02"]).startswith(b"OK")


@pytest.mark.usefixtures("well")
def test_one_octet_at_a_time_is_slow_but_right(strict: Porter, context: ssl.SSLContext) -> None:
    with Wire.connect(strict.imaps_port, context) as wire:
        password = USERS["u03"].encode()
        for octet in b"a LOGIN {3+}\r\nu03 {%d+}\r\n%s\r\nb NOOP\r\n" % (len(password), password):
            wire.send(bytes([octet]))  # a TLS record of its own, which the proxy reads by itself
        assert wire.until(b"b")[-1].startswith(b"b OK")


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize("busy", [False, True], ids=["silent", "busy"])
def test_the_time_to_log_in_is_over_once(strict: Porter, context: ssl.SSLContext, busy: bool) -> None:
    """Commands do not extend it, nor does a line that never ends."""
    for port, tls in ((strict.starttls_port, None), (strict.imaps_port, context)):
        with Wire.connect(port, tls) as wire:
            client = wire.address
            began = time.monotonic()
            push(wire, b"a NOOP\r\nb LOGIN u0")
            assert wire.line().startswith(b"a OK")
            while busy and wire.silent_for(0.2) and time.monotonic() - began < LOGIN_SECONDS + SLACK_SECONDS:
                push(wire, b"1")
            assert wire.rest() == LATE
            assert time.monotonic() - began < LOGIN_SECONDS + SLACK_SECONDS
        strict.wait_for_log("session.closed", client=client, outcome="login_timeout")


@pytest.mark.usefixtures("well")
def test_half_a_handshake(strict: Porter, context: ssl.SSLContext) -> None:
    hello = client_hello(context)
    with ExitStack() as stack:
        wires = []
        for sent in (b"", hello[:3], hello[: len(hello) // 2], hello):
            wires.append(stack.enter_context(Wire.connect(strict.imaps_port, greeting=False)))
            wires[-1].send(sent)
            wires.append(stack.enter_context(Wire.connect(strict.starttls_port)))
            assert wires[-1].command(b"STARTTLS")[-1].split()[1] == b"OK"
            wires[-1].send(sent)
        for wire in wires:
            # Not `login_timeout`: the handshake has a shorter time of its own.
            strict.wait_for_log("tls.failed", client=wire.address, detail="handshake not finished in time")
            strict.wait_for_log("session.closed", client=wire.address, outcome="tls_failed")
            assert ends_within(wire.socket, SLACK_SECONDS)


def client_hello(context: ssl.SSLContext) -> bytes:
    """The first flight of a handshake, and nothing after it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.usefixtures("well")
def test_many_who_never_log_in(strict: Porter, context: ssl.SSLContext) -> None:
    def waiting() -> float:
        return strict.metrics().total("porter_sessions", state="not_authenticated")

    with ExitStack() as stack:
        crowd = [stack.enter_context(Wire.connect(strict.starttls_port, greeting=False)) for _ in range(300)]
        assert wait_for(lambda: waiting() == 300, LOGIN_SECONDS)
        with Wire.connect(strict.imaps_port, context) as wire:
            assert wire.login("u02", USERS["u02"]).startswith(b"OK")
        heard = [wire.rest() for wire in crowd]
    assert [text for text in heard if not (text.startswith(b"* OK") and text.endswith(b"\r\n" + LATE))] == []
    assert wait_for(lambda: waiting() == 0)


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize("injected", [b"b NOOP\r\n", b"b CAPABILITY\r\n", b"b LOGOUT\r\n", b"b LOGIN u01 x\r\n", b"b"])
def test_commands_behind_starttls_end_the_connection(strict: Porter, context: ssl.SSLContext, injected: bytes) -> None:
    """They may be somebody else's (RFC 9051 §11.2): no answer to them, and no handshake either."""
    with Wire.connect(strict.starttls_port) as wire:
        wire.send(b"a STARTTLS\r\n" + injected)
        with pytest.raises((EOFError, OSError)):
            read_ok_and_shake_hands(wire, context)


def read_ok_and_shake_hands(wire: Wire, context: ssl.SSLContext) -> None:
    assert wire.line().startswith(b"a OK")
    wire.socket = context.wrap_socket(wire.socket, server_hostname="localhost")


@pytest.mark.usefixtures("well")
def test_nothing_said_in_clear_survives_starttls(strict: Porter, context: ssl.SSLContext) -> None:
    with Wire.connect(strict.starttls_port) as wire:
        wire.starttls(context)
        offered = wire.command(b"CAPABILITY")[0].split()
        assert b"STARTTLS" not in offered
        assert b"LOGINDISABLED" not in offered
        assert b"AUTH=PLAIN" in offered
        assert wire.command(b"STARTTLS")[-1].split()[1] == b"BAD"


@pytest.mark.usefixtures("well")
def test_clients_that_vanish(strict: Porter, context: ssl.SSLContext) -> None:
    """At every step of a login, and in the middle of a message: closed, and reset."""
    login = f"a LOGIN u04 {USERS['u04']}\r\n".encode()
    for said in (
        b"",
        login[:9],
        login,
        login + b"b APPEND INBOX {100000+}\r\nSubject: half\r\n",
        login + b"c IDLE\r\n",
    ):
        for reset in (False, True):
            wire = Wire.connect(strict.imaps_port, context)
            wire.send(said)
            if login in said:
                wire.until(b"a")
            if reset:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.close()
    assert wait_for(lambda: strict.metrics().total("porter_sessions") == 0)


@pytest.mark.usefixtures("well")
def test_a_client_that_does_not_read(strict: Porter, context: ssl.SSLContext) -> None:
    """What it asked for waits at the backend, not in the proxy's memory."""
    with Wire.connect(strict.imaps_port, context) as wire:
        assert wire.login("alice", USERS["alice"]).startswith(b"OK")
        wire.command(b"EXAMINE INBOX")
        before = strict.resident_bytes()
        # Some 100 MB of answers to some 30 kB of commands.
        wire.send(b"".join(b"f%d FETCH 1:* BODY.PEEK[]\r\n" % number for number in range(200)))
        peak = before

        def carried() -> float:
            nonlocal peak
            peak = max(peak, strict.resident_bytes())
            return strict.metrics().total("porter_relayed_bytes_total", direction="from_backend")

        wait_until_still(carried)
        assert peak - before < MEMORY_BOUND // 4
        assert wire.until(b"f0")[-1].startswith(b"f0 OK")


# --- backends ---

OUTAGES: dict[str, Part] = {
    "hangs": fake_backend.hang,
    "bye": fake_backend.greet_bye,
    "preauth": fake_backend.greet_preauth,
    "http": fake_backend.greet_http,
    "endless": fake_backend.greet_without_end,
    "closes": fake_backend.close_at_once,
    "closes-at-login": fake_backend.close_at_login,
    "hangs-at-login": fake_backend.hang_at_login,
    "never-answers": fake_backend.answer_for_ever,
    "unavailable": fake_backend.be_unavailable,
}
BREAKDOWNS: dict[str, Part] = {
    "refuses": fake_backend.refuse,
    "dies-in-literal": fake_backend.die_in_literal,
    "resets-in-literal": fake_backend.reset_in_literal,
    "dies-in-line": fake_backend.die_in_line,
    "dies-between": fake_backend.die_between_responses,
    "says-bye": fake_backend.say_bye,
}
GREETINGS_WITHOUT_PASSWORD = ("hangs", "bye", "preauth", "http", "endless", "closes")


@pytest.fixture(scope="module")
def bad_backends(ports: Ports) -> Iterator[dict[str, FakeBackend]]:
    with ExitStack() as stack:
        parts = {**OUTAGES, **BREAKDOWNS}
        yield {name: stack.enter_context(FakeBackend(ports.take(), part)) for name, part in parts.items()}


@pytest.fixture(scope="module")
def unlucky(
    folder: Path, pki: Pki, ports: Ports, dovecots: list[Dovecot], bad_backends: dict[str, FakeBackend]
) -> Iterator[Porter]:
    """A proxy on whose every bad backend lives a user of the same name; u01 lives on a good one."""
    good = dovecots[0]
    urls = {name: f"imap://{LOOPBACK}:{backend.port}" for name, backend in bad_backends.items()}
    urls |= {"down": f"imap://{LOOPBACK}:{ports.take()}", good.name: f"imap://{LOOPBACK}:{good.imap_port}"}
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    digest = hasher.hash(PASSWORD)
    users = {name: {"hash": digest, "backend": name} for name in urls}
    users["u01"] = {"hash": hasher.hash(USERS["u01"]), "backend": good.name}
    users_file = folder / "unlucky-users.yaml"
    users_file.write_text(yaml.safe_dump(users))
    users_file.chmod(0o600)
    identity = [{"file": {"path": str(users_file)}}]
    porter = run_porter(folder / "unlucky", pki, ports, urls, identity=identity)
    try:
        yield porter
        porter.stop()
        assert PASSWORD not in porter.output()
    finally:
        porter.kill()


@pytest.fixture
def undisturbed(unlucky: Porter, context: ssl.SSLContext) -> Iterator[None]:
    """For tests of backends: the good one is reachable before and after."""

    def check_login() -> None:
        with Wire.connect(unlucky.imaps_port, context) as wire:
            assert wire.login("u01", USERS["u01"]).startswith(b"OK")

    with stays_well(unlucky, check_login):
        yield


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize("name", ["down", *OUTAGES])
def test_an_outage_is_no_wrong_password(
    unlucky: Porter, context: ssl.SSLContext, bad_backends: dict[str, FakeBackend], name: str
) -> None:
    with Wire.connect(unlucky.imaps_port, context) as wire:
        began = time.monotonic()
        answer = wire.login(name, PASSWORD)
        assert time.monotonic() - began < BACKEND_LOGIN_SECONDS + SLACK_SECONDS
        assert answer.startswith(b"NO [UNAVAILABLE]")
        assert b"host-17" not in answer
        assert wire.command(b"NOOP")[-1].split()[1] == b"OK", "the client may try again on this connection"
    if name in GREETINGS_WITHOUT_PASSWORD:
        assert PASSWORD.encode() not in bad_backends[name].received


@pytest.mark.usefixtures("undisturbed")
def test_a_backends_refusal_is_told_in_our_words(unlucky: Porter, context: ssl.SSLContext) -> None:
    with Wire.connect(unlucky.imaps_port, context) as wire:
        refused = wire.login("refuses", PASSWORD)
        wrong = wire.login("u01", "certainly-wrong")
    assert refused == wrong
    assert refused.startswith(b"NO [AUTHENTICATIONFAILED]")


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize(
    ("name", "sent", "whole"),
    [
        ("dies-in-literal", fake_backend.LITERAL_START, True),
        # A reset may overtake octets that were sent before it.
        ("resets-in-literal", fake_backend.LITERAL_START, False),
        ("dies-in-line", b"* 1 FETCH (FLA", True),
    ],
)
def test_nothing_is_added_to_half_a_response(
    unlucky: Porter, context: ssl.SSLContext, name: str, sent: bytes, whole: bool
) -> None:
    with Wire.connect(unlucky.imaps_port, context) as wire:
        assert wire.login(name, PASSWORD).startswith(b"OK")
        wire.send(b"f FETCH 1 BODY[]\r\n")
        got = wire.rest()
    if whole:
        assert got == sent
    else:
        # With none of it delivered the loss fell between two responses.
        assert sent.startswith(got) or got.startswith(b"* BYE")


@pytest.mark.usefixtures("undisturbed")
def test_a_backend_lost_between_responses(unlucky: Porter, context: ssl.SSLContext) -> None:
    with Wire.connect(unlucky.imaps_port, context) as wire:
        assert wire.login("dies-between", PASSWORD).startswith(b"OK")
        wire.send(b"n NOOP\r\n")
        assert wire.line() == b"n OK NOOP done"
        assert wire.line().startswith(b"* BYE [UNAVAILABLE]")
        assert wire.rest() == b""


@pytest.mark.usefixtures("undisturbed")
def test_a_backends_own_bye_is_the_only_one(unlucky: Porter, context: ssl.SSLContext) -> None:
    with Wire.connect(unlucky.imaps_port, context) as wire:
        assert wire.login("says-bye", PASSWORD).startswith(b"OK")
        wire.send(b"n NOOP\r\n")
        assert wire.rest() == b"n OK NOOP done\r\n* BYE Server is restarting\r\n"
