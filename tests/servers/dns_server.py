"""Name servers on loopback: a real one, NSD, whose zones tests rewrite, and one that answers as a test says."""

from __future__ import annotations

import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset
import trio

from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.programs import require

CONFIGURATION = """\
server:
  ip-address: 127.0.0.1
  port: {port}
  server-count: 1
  username: ""
  chroot: ""
  database: ""
  zonesdir: "{folder}"
  pidfile: "{folder}/pid"
  logfile: "{folder}/log"
  xfrdfile: "{folder}/xfrd.state"
  xfrdir: "{folder}"
  zonelistfile: "{folder}/zone.list"
remote-control:
  control-enable: no
"""
ZONE = 'zone:\n  name: "{name}"\n  zonefile: "{name}.zone"\n'
_OWN_NAME = "serial"  # a record that says which writing of a zone is served


@dataclass
class Nsd:
    """NSD in the foreground, with zones that can be rewritten while it runs."""

    folder: Path
    port: int
    zones: Sequence[str]
    _serial: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Return once it answers."""
        command = [require("nsd"), "-d", "-c", str(self.folder / "nsd.conf")]
        with (self.folder / "out").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until_listening({self.port}, 10, self._check_alive)
        except BaseException:
            self.stop()
            raise

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"nsd ended: {(self.folder / 'out').read_text()}")

    def stop(self) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process = None

    def write(self, records: Mapping[str, str], ttl: int = 30) -> None:
        """Rewrite zones, and return once they are served.

        Args:
            records: By zone; lines of a zone file (RFC 1035 §5), relative to the zone's name.
        """
        self._serial += 1
        for zone, lines in records.items():
            (self.folder / f"{zone}.zone").write_text(
                f"$ORIGIN {zone}.\n$TTL {ttl}\n@ SOA ns hostmaster {self._serial} 3600 600 86400 5\n@ NS ns\n"
                f'ns A 127.0.0.1\n{_OWN_NAME} TXT "{self._serial}"\n{lines}\n'
            )
        if self._process is None:
            return
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while not all(self._serves(zone) for zone in records):
            self._check_alive()
            if time.monotonic() > deadline:
                raise TimeoutError(f"nsd does not serve the new zones: {(self.folder / 'log').read_text()}")
            time.sleep(0.02)

    def _serves(self, zone: str) -> bool:
        query = dns.message.make_query(f"{_OWN_NAME}.{zone}.", "TXT")
        with suppress(dns.exception.Timeout):
            answer = dns.query.udp(query, LOOPBACK, timeout=1, port=self.port)
            return bool(answer.answer) and f'"{self._serial}"' in answer.answer[0].to_text()
        return False


def write_nsd(folder: Path, ports: Ports, zones: Sequence[str]) -> Nsd:
    """Write all that one server with empty zones needs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Nsd(folder, ports.take(), zones)
    configuration = CONFIGURATION.format(folder=folder, port=server.port)
    (folder / "nsd.conf").write_text(configuration + "".join(ZONE.format(name=name) for name in zones))
    server.write(dict.fromkeys(zones, ""))
    return server


def remove(server: Nsd) -> None:
    """Stop it and take its folder away."""
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


Answer = dns.message.Message | bytes | None
Answering = Callable[[dns.message.Message], Answer]


@dataclass
class AnyAnswer:
    """A name server on UDP and TCP that says what a function says; None: nothing at all."""

    answer: Answering
    port: int = 0
    asked: list[str] = field(default_factory=list)  # "udp dovecot.test. A"

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled; `port` is set once started."""
        udp, listener = await self._bind()
        with udp:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self._speak_tcp, [listener])
                task_status.started()
                await self._speak_udp(udp)

    async def _bind(self) -> tuple[trio.socket.SocketType, trio.SocketListener]:
        """The same port for both."""
        while True:
            (listener,) = await trio.open_tcp_listeners(0, host=LOOPBACK)
            self.port = listener.socket.getsockname()[1]
            udp = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                await udp.bind((LOOPBACK, self.port))
            except OSError:  # somebody else's, for UDP
                udp.close()
                await listener.aclose()
            else:
                return udp, listener

    async def _speak_udp(self, udp: trio.socket.SocketType) -> None:
        while True:
            octets, peer = await udp.recvfrom(4096)
            answer = self._answer("udp", octets)
            if isinstance(answer, dns.message.Message):
                whole = answer.to_wire(max_size=65535)
                answer = whole if len(whole) <= 512 else truncated(answer).to_wire()
            if answer is not None:
                await udp.sendto(answer, peer)

    async def _speak_tcp(self, stream: trio.SocketStream) -> None:
        octets = b""
        async for chunk in stream:
            octets += chunk
            if len(octets) >= 2 and len(octets) >= 2 + (length := struct.unpack("!H", octets[:2])[0]):
                answer = self._answer("tcp", octets[2 : 2 + length])
                if isinstance(answer, dns.message.Message):
                    answer = answer.to_wire(max_size=65535)
                if answer is not None:
                    await stream.send_all(struct.pack("!H", len(answer)) + answer)
                octets = octets[2 + length :]

    def _answer(self, how: str, octets: bytes) -> Answer:
        query = dns.message.from_wire(octets)
        question = query.question[0]
        self.asked.append(f"{how} {question.name} {dns.rdatatype.to_text(question.rdtype)}")
        return self.answer(query)


def truncated(answer: dns.message.Message) -> dns.message.Message:
    """The same without its records, and the bit that says: ask again by TCP (RFC 2181 §9)."""
    short = dns.message.Message(answer.id)
    short.flags = answer.flags | dns.flags.TC
    short.question = answer.question
    return short


def refusal(query: dns.message.Message, code: dns.rcode.Rcode) -> dns.message.Message:
    """An answer without records."""
    answer = dns.message.make_response(query)
    answer.set_rcode(code)
    return answer


@dataclass
class Records:
    """Answers out of a table, as an ordinary name server gives them.

    Args:
        table: By name with its final dot and kind: "mail1.test. A"; a value is (TTL, texts). Instead of that a
            function may stand there, for an answer that no ordinary server would give.
    """

    table: dict[str, tuple[int, Sequence[str]] | Answering]

    def __call__(self, query: dns.message.Message) -> Answer:
        question = query.question[0]
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        found = self.table.get(f"{name} {kind}", self.table.get(f"{name} *"))
        if callable(found):
            return found(query)
        if found is not None:
            answer = dns.message.make_response(query)
            ttl, texts = found
            answer.answer.append(dns.rrset.from_text_list(question.name, ttl, "IN", kind, texts))
            return answer
        exists = any(known.split(" ")[0] == name for known in self.table)
        return refusal(query, dns.rcode.NOERROR if exists else dns.rcode.NXDOMAIN)
