"""A real HAProxy on loopback that balances TCP and tells by a PROXY header who the client is."""

from __future__ import annotations

import csv
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.pki import Pki
from tests.servers.ports import LOOPBACK, Ports, wait_until_listening
from tests.servers.programs import require

CONFIGURATION = """
global
  stats socket {folder}/socket mode 600 level admin
defaults
  mode tcp
  unique-id-format %[uuid]
  timeout connect 3s
  timeout client 35m
  timeout server 35m
"""
FRONT = """
listen {name}
  bind {host}:{port} {bind}
  {check}
  server porter {host}:{target} {header}
"""
V1 = "send-proxy"
V2 = "send-proxy-v2 proxy-v2-options unique-id,crc32c"
V2_OF_TLS = "send-proxy-v2-ssl proxy-v2-options ssl-cipher,authority,unique-id,crc32c"
# Connections of its own, with a header that says so; the greeting has to come.
CHECK = "option tcp-check\n  tcp-check connect send-proxy\n  tcp-check expect string *\\ OK"


@dataclass(frozen=True)
class Front:
    """One port of a balancer: where it leads, and what is said there."""

    target: int
    header: str
    ends_tls: bool = False  # clients come by TLS, what goes on is in clear
    checked: bool = False


@dataclass
class Haproxy:
    """One HAProxy; its ports by the names of the fronts."""

    folder: Path
    ports: Mapping[str, int]
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Return once its ports accept."""
        command = [require("haproxy"), "-db", "-f", str(self.folder / "haproxy.cfg")]
        with (self.folder / "out").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until_listening(set(self.ports.values()), 10, self._check_alive)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and all connections through it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process = None

    def check_status(self, name: str) -> str:
        """How the last health check of a front's server went, in HAProxy's words: L7OK."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.folder / "socket"))
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return next(row["check_status"] for row in rows if (row["pxname"], row["svname"]) == (name, "porter"))

    def output(self) -> str:
        return (self.folder / "out").read_text(errors="replace")

    def _check_alive(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"haproxy ended: {self.output()}")


def write_haproxy(folder: Path, fronts: Mapping[str, Front], pki: Pki, ports: Ports) -> Haproxy:
    """Write all that it needs into `folder`."""
    folder.mkdir()
    taken = {name: ports.take() for name in fronts}
    both = folder / "server.pem"
    both.write_bytes(pki.certificate.read_bytes() + pki.private_key.read_bytes())
    both.chmod(0o600)
    text = CONFIGURATION.format(folder=folder)
    for name, front in fronts.items():
        text += FRONT.format(
            name=name,
            host=LOOPBACK,
            port=taken[name],
            bind=f"ssl crt {both}" if front.ends_tls else "",
            check=CHECK if front.checked else "",
            target=front.target,
            header=f"{front.header} check inter 200ms" if front.checked else front.header,
        )
    (folder / "haproxy.cfg").write_text(text)
    return Haproxy(folder, taken)
